"""Reading other people's checkpoints: statistics equal brute force, broken files cost one line, nothing is executed, verdicts can fail."""

import io
import json
import math
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, shared
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hrm.checkpoints import document
from hrm.checkpoints.architecture import components, configure, diagram, expected, prune, rebuild, recognise
from hrm.checkpoints.discover import CHUNK, Entry, chunks, discover, look, read, step_of
from hrm.checkpoints.evaluate import Examples, baselines, ensemble, evaluate, read_examples
from hrm.checkpoints.folder import analyse, late_change, record, summary
from hrm.checkpoints.report import markdown, text, write
from hrm.checkpoints.statistics import (
    CHANCES,
    Moments,
    TensorStats,
    bins,
    by_kind,
    document_columns,
    motion,
    quantiles,
    rows_from_sparsity,
    survey,
)
from hrm.checkpoints.verdict import Use, Verdict, healthy, judge, missing, recommend, use_cases
from hrm.core import checkpoint
from hrm.core.checkpoint import CheckpointError
from hrm.core.config import ConfigError
from hrm.core.device import seeded
from hrm.core.hrm import HRM, HRMConfig
from hrm.tools.cli import main

ARCH = dict(
    hidden_size=32,
    num_heads=2,
    H_layers=1,
    L_layers=1,
    H_cycles=1,
    L_cycles=1,
    expansion=2,
    pos_encodings="rope",
    halt_max_steps=2,
    puzzle_emb_ndim=32,
)
CONFIG = HRMConfig(**ARCH, vocab_size=12, seq_len=9, num_puzzle_identifiers=20)
LIMITS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def state(seed: int = 0, rows: int = 3) -> dict:
    "A small HRM with some trained puzzle rows."
    weights = dict(HRM(CONFIG, generator=seeded(seed)).state_dict())
    weights["inner.puzzle_emb.weights"][:rows] = torch.randn(rows, 32, generator=seeded(seed + 1))
    return weights


def series(folder: Path, steps=(10, 20, 40, 80)) -> Path:
    "Checkpoints of a drifting model, in our own layout."
    weights, draw = state(), seeded(9)
    for k, step in enumerate(steps):
        weights = {
            name: tensor
            + 0.01 * torch.randn(tensor.shape, generator=draw) * ("init" not in name and "puzzle" not in name)
            for name, tensor in weights.items()
        }
        weights["inner.puzzle_emb.weights"][3 * k : 3 * k + 3] = 0.1
        checkpoint.write(folder / f"step_{step:06d}", weights, {"step": step, "config": {"arch": ARCH, "seq_len": 9}})
    return folder


# Statistics equal brute force

numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)


@LIMITS
@given(
    st.lists(st.one_of(numbers, st.sampled_from([0.0, -0.0, 1.0, -5.0])), min_size=1, max_size=300),
    st.integers(1, 40),
    st.integers(0, 9),
)
@example([0.0] * 5, 2, 3)
@example([float("nan"), float("inf"), 1.0], 1, 0)
@example([-3.3895313892515355e38], 1, 0)  # in the last bin
def test_moments_equal_brute_force(values, piece, zeros):
    x = np.concatenate([np.array(values, np.float32), np.zeros(zeros, np.float32)])
    moments = Moments()
    for part in torch.tensor(values, dtype=torch.float32).split(piece):
        moments.add(part)
    moments.add_zeros(zeros)
    finite = x[np.isfinite(x)].astype(np.float64)
    assert (moments.count, moments.nan, moments.inf, moments.zeros) == (
        len(finite),
        np.isnan(x).sum(),
        np.isinf(x).sum(),
        (x == 0).sum(),
    )
    row = TensorStats.of("w", Entry("w", (len(x),), torch.float32), moments)
    if not len(finite):
        assert row.mean is row.std is row.min is None and row.quantiles == ()
        return
    scale = max(1e-30, np.abs(finite).max())
    assert math.isclose(row.mean, finite.mean(), rel_tol=1e-9, abs_tol=1e-9 * scale)
    assert math.isclose(row.abs_mean, np.abs(finite).mean(), rel_tol=1e-9, abs_tol=1e-12 * scale)
    assert (row.min, row.max) == (finite.min(), finite.max())
    if len(finite) > 1 and scale < 1e30:
        assert math.isclose(row.std, finite.std(ddof=1), rel_tol=1e-6, abs_tol=1e-7 * scale)
        assert math.isclose(row.norm, np.linalg.norm(finite), rel_tol=1e-6, abs_tol=1e-9 * scale)
    ordered = np.sort(finite)
    for chance, found in zip(CHANCES, row.quantiles):
        true = ordered[math.floor(chance * (len(ordered) - 1))]
        assert abs(found - true) <= 2**-7 * abs(true) + 1e-38, (chance, found, true)


@LIMITS
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=50))
def test_bins_keep_the_order(values):
    ordered = torch.tensor(sorted(values), dtype=torch.float32)
    assert (bins(ordered).diff() >= 0).all() and 0 <= bins(ordered).min() and bins(ordered).max() < 2**16


def test_quantiles_of_many_values_agree_with_sorting():
    x = torch.randn(300_000, generator=seeded(0)) * torch.rand(300_000, generator=seeded(1)) ** 6
    histogram = torch.bincount(bins(x), minlength=2**16)
    found, true = (
        quantiles(histogram, CHANCES, x.min().item(), x.max().item()),
        torch.quantile(x, torch.tensor(CHANCES)).tolist(),
    )
    assert np.allclose(found, true, rtol=2**-7, atol=1e-5)


dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])
shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)


@LIMITS
@given(
    st.lists(st.tuples(shapes, dtypes), min_size=1, max_size=5),
    st.integers(1, 30),
    st.integers(0, 2**30),
    st.booleans(),
)
def test_survey_equals_brute_force(tmp_path_factory, tensors, most, seed, safe):
    folder, draw = tmp_path_factory.mktemp("series"), seeded(seed)
    states = [
        {
            f"layer.{i}.weight": (torch.randn(shape, generator=draw) * (torch.rand(shape, generator=draw) > 0.4)).to(
                dtype
            )
            for i, (shape, dtype) in enumerate(tensors)
        }
        for _ in range(3)
    ]
    for step, weights in zip((100, 300, 700), states):
        save_file(weights, folder / f"model_step_{step}.safetensors") if safe else torch.save(
            weights, folder / f"model_step_{step}.pth"
        )
    found, skipped = discover(folder)
    assert [one.step for one in found] == [100, 300, 700] and not skipped
    seen = survey(found, most)
    for k, weights in enumerate(states):
        for name, tensor in weights.items():
            row, x = seen.stats[k][name], tensor.double()
            assert (row.parameters, row.bytes, row.shape) == (
                x.numel(),
                tensor.numel() * tensor.dtype.itemsize,
                tuple(x.shape),
            )
            if x.numel():
                assert np.allclose(
                    [row.mean, row.abs_mean, row.norm, row.zeros, row.min, row.max],
                    [x.mean(), x.abs().mean(), x.norm(), (x == 0).double().mean(), x.min(), x.max()],
                    rtol=1e-9,
                    atol=1e-12,
                )
            if x.numel() > 1:
                assert np.isclose(row.std, x.std(), rtol=1e-7, atol=1e-12)
            if k < 2:
                move, step = seen.moves[k][name], (states[k + 1][name].double() - x)
                assert np.isclose(move.length, step.norm(), rtol=1e-9, atol=1e-12)
                if x.norm() > 0:
                    assert np.isclose(move.relative, step.norm() / x.norm() / ((200, 400)[k] / 1000), rtol=1e-9)
        full = [t.double() for t in weights.values() if t.numel()]
        columns = document_columns(seen.stats[k])
        assert np.isclose(columns["avg_abs_mean"], np.mean([t.abs().mean() for t in full]) if full else 0.0)
        assert np.isclose(
            columns["avg_weight_std"], np.mean([t.std() if t.numel() > 1 else 0.0 for t in full]) if full else 0.0
        )
        assert np.isclose(columns["total_sparsity"], np.mean([(t == 0).double().mean() for t in full]) if full else 0.0)
        everything = torch.cat([t.flatten() for t in full]) if full else torch.empty(0)
        pooled = by_kind(seen.stats[k])["all"]
        if len(everything) > 1:
            assert np.allclose(
                [pooled["mean"], pooled["std"], pooled["abs_mean"]],
                [everything.mean(), everything.std(), everything.abs().mean()],
                rtol=1e-7,
                atol=1e-12,
            )
    steps = [torch.cat([(b[n].double() - a[n].double()).flatten() for n in a]) for a, b in zip(states, states[1:])]
    if steps[0].norm() > 0 and steps[1].norm() > 0:
        assert np.isclose(
            motion(seen)[0]["cosine"],
            (steps[0] @ steps[1] / steps[0].norm() / steps[1].norm()).item(),
            rtol=1e-7,
            atol=1e-9,
        )


def test_rows_and_movement_of_a_table(tmp_path):
    seen = survey(discover(series(tmp_path))[0], most=600)
    rows = [one["inner.puzzle_emb.weights"] for one in seen.rows]
    assert [(r.touched, r.ever, r.changed) for r in rows] == [(3, 3, None), (6, 6, 3), (9, 9, 3), (12, 12, 3)]
    assert all(abs(value / (0.1 * 32**0.5) - 1) < 0.01 for value in rows[-1].norms)
    assert seen.biases[0]["inner.q_head.bias"] == pytest.approx(read(seen.found[0], "inner.q_head.bias").tolist())


def test_a_row_that_returned_to_zero_still_counts_as_trained(tmp_path):
    for step, filled in ((1, [0, 1]), (2, [1, 2])):
        table = torch.zeros(5, 4)
        table[filled] = 1.0
        torch.save({"puzzle_emb.weights": table}, tmp_path / f"step_{step}.pt")
    last = survey(discover(tmp_path)[0]).rows[-1]["puzzle_emb.weights"]
    assert (last.touched, last.ever, last.changed) == (2, 3, 2)


def test_nan_and_infinity_are_named_with_their_tensor(tmp_path):
    series(tmp_path, (1, 2))
    weights = state()
    weights["inner.lm_head.weight"][1, 2], weights["inner.puzzle_emb.weights"][7, 7] = float("nan"), float("-inf")
    checkpoint.write(tmp_path / "step_3", weights, {"step": 3})
    found = analyse(tmp_path)
    checks = {check.name: check for check in found.checks}
    assert checks["NaN"].state == checks["infinity"].state == "failed" and healthy(found.checks) == "UNHEALTHY"
    assert "inner.lm_head.weight in step_3 (1 of 384)" in checks["NaN"].text and "puzzle_emb" in checks["infinity"].text
    assert json.loads(json.dumps(record(found), allow_nan=False))["summary"]["health_status"] == "UNHEALTHY"
    assert "NaN" in markdown(found)


# Every layout, the same tensors


def module_saved(weights, path):
    "With the prefixes of torch.compile and the loss head."
    torch.save({f"_orig_mod.model.{name}": tensor for name, tensor in weights.items()}, path)


LAYOUTS = {
    "raw.pth": lambda w, p: torch.save(w, p),
    "raw_step_7": lambda w, p: torch.save(w, p),
    "old_format.pt": lambda w, p: torch.save(w, p, _use_new_zipfile_serialization=False),
    "model_state_dict.pt": lambda w, p: torch.save(
        {
            "model_state_dict": w,
            "optimizer_state_dict": {"state": {0: {"m": torch.ones(3)}}},
            "epoch": 7,
            "loss": np.float64(0.5),
        },
        p,
    ),
    "state_dict.ckpt": lambda w, p: torch.save(
        {"state_dict": w, "hyper_parameters": {"lr": 1e-4}, "global_step": 7}, p
    ),
    "other_key.bin": lambda w, p: torch.save({"ema": w, "step": 7}, p),
    "prefixes.pth": module_saved,
    "model_prefix.pth": lambda w, p: torch.save({f"model.{name}": tensor for name, tensor in w.items()}, p),
    "module_prefix.pth": lambda w, p: torch.save(
        {"model": {f"module.{name}": tensor for name, tensor in w.items()}}, p
    ),
    "parameters.pth": lambda w, p: torch.save({name: torch.nn.Parameter(tensor) for name, tensor in w.items()}, p),
    "model.safetensors": save_file,
    "safe_step_7": save_file,
    "step_000007": lambda w, p: checkpoint.write(p, w, {"step": 7}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_tensors(tmp_path, name):
    weights = state()
    LAYOUTS[name](weights, tmp_path / name)
    (found,), skipped = discover(tmp_path)
    assert not skipped and sorted(found.entries) == sorted(weights)
    for key, tensor in weights.items():
        assert torch.equal(read(found, key), tensor)
        assert torch.equal(torch.cat(list(chunks(found, key, 5000))).flatten(), tensor.flatten())
    if "7" in name or name in ("model_state_dict.pt", "state_dict.ckpt", "other_key.bin"):
        assert found.step == 7
    known = recognise({key: entry.shape for key, entry in found.entries.items()})
    assert (known.kind, known.wrong) == ("HRM", ())
    assert torch.equal(rebuild(found, CONFIG).inner.lm_head.weight, weights["inner.lm_head.weight"])


def test_checkpoints_stand_in_the_order_of_their_steps(tmp_path):
    for step in (180, 904, 1083, 20, 7566):
        torch.save({"w": torch.full((2,), float(step))}, tmp_path / f"checkpoints_hrm_v9_optimized_step_{step}")
    assert [one.step for one in discover(tmp_path)[0]] == [20, 180, 904, 1083, 7566]
    assert [one.step for one in discover(tmp_path, "*_9*")[0]] == [904]


def test_a_step_in_the_name_counts_more_than_an_epoch_in_the_record():
    assert [
        step_of("model_step_500.pt", {"epoch": 2}),
        step_of("best.pt", {"epoch": 2}),
        step_of("model_step_500.pt", {"epoch": 2, "global_step": 40}),
    ] == [500, 2, 40]


def test_copies_count_once_and_differing_ones_both(tmp_path):
    weights = state()
    for name, w in (
        ("best", weights),
        ("step_000005", weights),
        ("final", weights | {"inner.q_head.bias": torch.zeros(2)}),
    ):
        checkpoint.write(tmp_path / name, w, {"step": 5})
    found, skipped = discover(tmp_path)
    assert [one.name for one in found] == ["step_000005", "final"] and skipped[
        0
    ].reason == "the same bytes as step_000005"


def test_links_are_followed(tmp_path):
    torch.save(state(), tmp_path / "kept.pth")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step_4").symlink_to(tmp_path / "kept.pth")
    assert [one.step for one in discover(tmp_path / "run")[0]] == [4]


# Broken files: named, never executed, never at the cost of the others


class Harm:
    "What unpickling would do: create a file."

    def __init__(self, call, *args):
        self.what = call, args

    def __reduce__(self):
        return self.what


def zipped(path: Path, pickled: bytes, **more: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", **more}.items():
            archive.writestr(f"archive/{name}", data)


def saved(value, **options) -> bytes:
    held = io.BytesIO()
    torch.save(value, held, **options)
    return held.getvalue()


def laughs():
    grown = [0]
    for _ in range(60):
        grown = [grown] * 10
    return {"w": torch.ones(2), "joke": grown}


def huge(size: int) -> bytes:
    "A state dict whose tensor claims far more values than its storage has."
    tensor = torch.ones(4)
    content = saved({"w": tensor})
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(changed, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith("data.pkl"):  # (4,) becomes (size,)
                data = data.replace(b"K\x04\x85", b"\x8a\x08" + size.to_bytes(8, "little") + b"\x85", 1)
            target.writestr(info, data)
    return changed.getvalue()


def evil_files(sentinel: Path) -> dict[str, bytes]:
    "Files that would act if they were unpickled in the ordinary way."
    touch, code = f"touch {sentinel}", f"open({str(sentinel)!r}, 'w').close()"
    harms = {
        "system": Harm(os.system, touch),
        "eval": Harm(eval, code),
        "exec": Harm(exec, code),
        "popen": Harm(subprocess.Popen, ["touch", str(sentinel)]),
        "open": Harm(open, str(sentinel), "w"),
    }
    made = {}
    for name, harm in harms.items():
        made[f"{name}_zip.pth"] = saved({"w": torch.ones(2), "optimizer": harm})
        made[f"{name}_old.pt"] = saved({"w": torch.ones(2), "harm": harm}, _use_new_zipfile_serialization=False)
        made[f"{name}_plain"] = pickle.dumps({"state_dict": harm})
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, data in {"data.pkl": pickle.dumps(harms["system"]), "version": b"3"}.items():
            archive.writestr(f"archive/{name}", data)
    return made | {"bare.pth": held.getvalue()}


def odd_files() -> dict[str, bytes]:
    "Files that are broken, or something else."
    good, safe = saved(state()), io.BytesIO()
    np.savez(safe, w=np.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = io.BytesIO()
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), scripted)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    deep = b'{"a":' * 3000 + b"1" + b"}" * 3000
    return {
        "empty.pth": b"",
        "one_byte.pt": b"\x80",
        "text": b"nothing to see here\n",
        "page.pth": b"<!doctype html><html></html>",
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid x\n",
        "cut_early.pth": good[:100],
        "cut_middle.pth": good[: len(good) // 2],
        "cut_late.pth": good[:-30],
        "tail_only.pth": good[len(good) // 2 :],
        "doubled.bin": b"PK\x03\x04" + good,
        "numbers.npz": safe.getvalue(),
        "script.pt": scripted.getvalue(),
        "list.pth": saved([torch.ones(2)]),
        "tensor.pth": saved(torch.ones(2)),
        "no_tensors.pth": saved({"loss": 0.5}),
        "nested_nothing.pth": saved({"model_state_dict": {}, "a": {"b": {"c": 1}}}),
        "module.pth": saved(torch.nn.Linear(2, 2)),
        "huge.pth": huge(2**40),
        "large.pth": huge(2**33),
        "length.safetensors": (2**62).to_bytes(8, "little") + b"{}",
        "claims.safetensors": len(header).to_bytes(8, "little") + header,
        "no_header.safetensors": b"\0" * 40,
        "deep.safetensors": len(deep).to_bytes(8, "little") + deep,
        "not_json.safetensors": (5).to_bytes(8, "little") + b"{]abc",
        "safe_cut.safetensors": b"",
        "complex.pth": saved({"w": torch.ones(2, dtype=torch.complex64)}),
        "sparse.pth": saved({"w": torch.eye(3).to_sparse()}),
    }


def with_good_ones(folder: Path) -> Path:
    for step in (1, 2):
        torch.save(state(step), folder / f"good_step_{step}.pth")
    return folder


def test_malicious_files_are_named_and_do_nothing(tmp_path):
    sentinel, folder = tmp_path / "harm", tmp_path / "run"
    folder.mkdir()
    made = evil_files(sentinel)
    for name, content in made.items():
        (with_good_ones(folder) / name).write_bytes(content)
    found = analyse(folder)
    assert not sentinel.exists()
    assert [one.step for one in found.seen.found] == [1, 2]
    reasons = {one.path.name: one.reason for one in found.skipped}
    assert reasons.keys() == made.keys()
    assert "system" in reasons["system_zip.pth"] and "nothing was run" in reasons["system_zip.pth"]
    assert pickle.loads(pickle.dumps(Harm(open, str(sentinel), "w"))) and sentinel.exists(), (
        "the files do act when they are unpickled"
    )


def test_broken_files_are_named_and_the_others_stay(tmp_path):
    made = odd_files()
    for name, content in made.items():
        (with_good_ones(tmp_path) / name).write_bytes(content)
    found, skipped = discover(tmp_path)
    assert [one.name for one in found] == ["good_step_1.pth", "good_step_2.pth"]
    reasons = {one.path.name: one.reason for one in skipped}
    assert reasons.keys() == made.keys()
    assert all(reason and reason.isprintable() and len(reason) < 250 for reason in reasons.values()), reasons
    assert reasons["empty.pth"] == "empty" and "LFS" in reasons["pointer.pth"] and "claims" in reasons["huge.pth"]


def test_odd_folders_links_and_pipes(tmp_path):
    with_good_ones(tmp_path)
    bad = {"meta_not_json": "{", "meta_list": "[1]", "meta_step": '{"step": "soon"}', "meta_nan": '{"step": NaN}'}
    for k, (name, meta) in enumerate(bad.items()):
        checkpoint.write(tmp_path / name, {"w": torch.full((2,), float(k))}, {})
        (tmp_path / name / "meta.json").write_text(meta)
    checkpoint.write(tmp_path / "half", {"w": torch.ones(2)}, {})
    (tmp_path / "half" / "model.safetensors").unlink()
    (tmp_path / "no_meta").mkdir()
    (tmp_path / "broken_link.pth").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    found, skipped = discover(tmp_path)
    assert {one.name for one in found} == {"good_step_1.pth", "good_step_2.pth", "meta_list", "meta_step", "meta_nan"}
    assert {one.path.name for one in skipped} == {
        "meta_not_json",
        "half",
        "no_meta",
        "broken_link.pth",
        "loop.pth",
        "pipe.pth",
    }


def test_a_nest_of_references_is_read_in_no_time(tmp_path):
    torch.save(laughs(), tmp_path / "nest_step_3.pth")
    (found,), _ = discover(tmp_path)
    assert found.step == 3 and list(found.entries) == ["w"] and len(json.dumps(found.about)) < 100_000


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_cut_or_change_of_a_file_costs_that_file_at_most(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    kind = data.draw(st.sampled_from(["zip", "old", "safe"]))
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16)}
    if kind == "safe":
        save_file(weights, folder / "whole")
        content = bytearray((folder / "whole").read_bytes())
        (folder / "whole").unlink()
    else:
        content = bytearray(saved(weights, _use_new_zipfile_serialization=kind == "zip"))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for at, value in data.draw(
            st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=4)
        ):
            content[at] = value
    (folder / ("odd.safetensors" if kind == "safe" else "odd.pth")).write_bytes(bytes(content))
    torch.save(weights, folder / "good_step_1.pth")
    found, skipped = discover(folder)
    seen = survey(found)
    names = {one.name for one in seen.found}
    assert "good_step_1.pth" in names and len(names) + len(skipped) + len(seen.failed) == 2
    good = next(k for k, one in enumerate(seen.found) if one.name == "good_step_1.pth")
    assert seen.stats[good]["a"].mean == 2.5


def test_a_file_that_disappears_on_the_way_is_left_out(tmp_path):
    found, _ = discover(series(tmp_path))
    (tmp_path / "step_000020" / "model.safetensors").unlink()
    seen = survey(found)
    assert seen.steps == [10, 40, 80] and [one.path.name for one in seen.failed] == ["step_000020"]


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        discover(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="no checkpoint found\n.*notes.txt"):
        analyse(tmp_path)
    with pytest.raises(CheckpointError, match="allowed: a relative pattern"):
        discover(tmp_path, "/etc/*")


def test_prefixes_that_would_make_two_names_one_stay(tmp_path):
    torch.save({"model.w": torch.ones(1), "w": torch.zeros(1)}, tmp_path / "two.pth")
    (found,), _ = discover(tmp_path)
    assert sorted(found.entries) == ["model.w", "w"] and read(found, "w") == 0


def test_tied_and_strided_tensors_are_read_as_they_are(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    torch.save(
        {"tied": base, "again": base, "turned": base.T, "scalar": torch.tensor(7.0), "none": torch.empty(0, 3)},
        tmp_path / "odd.pth",
    )
    (found,), _ = discover(tmp_path)
    for name, value in (("tied", base), ("again", base), ("turned", base.T), ("scalar", torch.tensor(7.0))):
        assert torch.equal(read(found, name), value)
        assert torch.equal(torch.cat(list(chunks(found, name, 4))).flatten(), value.reshape(-1))
    stats = survey([found]).stats[0]
    assert stats["scalar"].mean == 7 and stats["none"].mean is None and stats["turned"].mean == 5.5


# What model it is


def test_v9_has_the_documents_tensors():
    table = expected(document.V9.model_dump() | {"intermediate_size": 768, "q_actions": 2})
    assert len(table) == 23 and sum(math.prod(shape) for shape in table.values()) == 27_990_018
    assert (
        sum(math.prod(shape) for name, shape in table.items() if "_init" not in name and "puzzle" not in name)
        == 3_414_530
    )
    entries = {
        name: Entry(name, shape, torch.float16 if "puzzle" in name else torch.float32) for name, shape in table.items()
    }
    sizes = [round(sum(row[key] for row in components(entries)) / 2**20, 2) for key in ("float32_bytes", "bytes")]
    assert sizes == [106.77, 59.90] and recognise(table).kind == "HRM" and recognise(table).wrong == ()


@LIMITS
@given(
    st.sampled_from(["rope", "learned"]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([0, 16, 32, 80]),
    st.integers(2, 13),
)
def test_shapes_of_any_hrm_are_recognised(pos, H, L, ndim, vocab):
    config = HRMConfig(
        **ARCH | {"pos_encodings": pos, "H_layers": H, "L_layers": L, "puzzle_emb_ndim": ndim},
        vocab_size=vocab,
        seq_len=9,
        num_puzzle_identifiers=4,
    )
    known = recognise(
        {name: tuple(tensor.shape) for name, tensor in HRM(config, generator=seeded(0)).state_dict().items()}
    )
    assert (known.kind, known.wrong) == ("HRM", ())
    again, assumed = configure(known, {"config": {"arch": config.model_dump()}})
    assert assumed == ["seq_len"] * (pos == "rope") or assumed == []
    assert again.model_dump(exclude={"seq_len", "num_puzzle_identifiers"}) == config.model_dump(
        exclude={"seq_len", "num_puzzle_identifiers"}
    )
    assert "puzzle embedding" in diagram(known)


@pytest.mark.parametrize(
    "name", ["inner.lm_head.weight", "inner.q_head.bias", "inner.L_level.layers.0.mlp.down_proj.weight"]
)
def test_rebuilding_is_strict(tmp_path, name):
    weights = state()
    for file, changed in (
        ("less.pth", {k: v for k, v in weights.items() if k != name}),
        ("more.pth", weights | {"inner.extra": torch.ones(1)}),
        ("bent.pth", weights | {name: torch.ones(3, 3)}),
    ):
        torch.save(changed, tmp_path / file)
        with pytest.raises(CheckpointError, match="missing|unexpected|has shape"):
            rebuild(look(tmp_path / file), CONFIG)


def test_rebuilt_equals_the_strict_loader(tmp_path):
    torch.save({f"model.{name}": tensor for name, tensor in state().items()}, tmp_path / "m.pth")
    ours = rebuild(look(tmp_path / "m.pth"), CONFIG)
    theirs = checkpoint.load_official(torch.load(tmp_path / "m.pth", weights_only=True), CONFIG.model_dump())
    batch = {"inputs": torch.randint(0, 12, (5, 9), generator=seeded(2)), "puzzle_identifiers": torch.arange(5)}
    with torch.no_grad():
        assert torch.equal(*(one(one.start(batch))[1]["logits"] for one in (ours, theirs)))


@LIMITS
@given(st.sets(st.integers(0, 19)), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_pruning_leaves_every_logit_as_it_was(tmp_path_factory, used, dtype):
    folder, weights = tmp_path_factory.mktemp("prune"), state(rows=0)
    table = torch.zeros(20, 32)
    table[sorted(used)] = torch.randn(len(used), 32, generator=seeded(4))
    weights["inner.puzzle_emb.weights"] = table.to(dtype)
    torch.save(weights, folder / "whole.pth")
    facts = prune(look(folder / "whole.pth"), folder / "pruned")
    assert facts["kept"] == len(used) + (len(used) < 20)  # one row stands for all that are zero
    places = torch.tensor(json.loads((folder / "pruned" / "rows.json").read_text()))
    ids, inputs = torch.arange(20), torch.randint(0, 12, (20, 9), generator=seeded(5))
    small = CONFIG.model_copy(update={"num_puzzle_identifiers": facts["kept"]})
    whole, less = rebuild(look(folder / "whole.pth"), CONFIG), rebuild(look(folder / "pruned"), small)
    with torch.no_grad():
        a, b = (
            one(one.start({"inputs": inputs, "puzzle_identifiers": rows}))[1]["logits"]
            for one, rows in ((whole, ids), (less, places[ids]))
        )
    assert torch.equal(a, b)


def test_pruning_adds_no_row_where_all_are_used(tmp_path):
    checkpoint.write(tmp_path / "step_1", state(rows=20), {"step": 1})
    facts = prune(look(tmp_path / "step_1"), tmp_path / "pruned")
    assert (facts["rows"], facts["kept"]) == (20, 20) and json.loads(
        (tmp_path / "pruned" / "rows.json").read_text()
    ) == list(range(20))
    assert torch.equal(
        read(look(tmp_path / "pruned"), "inner.puzzle_emb.weights"),
        read(look(tmp_path / "step_1"), "inner.puzzle_emb.weights"),
    )


def test_trm_is_counted_by_its_keys():
    told = json.loads(shared("data/checkpoints/trm_released_keys.json").read_text())
    names = checkpoint.official_names({key: tuple(shape) for key, shape in told["keys"].items()})
    known = recognise(names)
    assert (known.kind, known.wrong, known.facts["hidden_size"], known.facts["L_layers"]) == ("TRM", (), 512, 2)
    parts = {
        row["part"]: row
        for row in components({name: Entry(name, tuple(shape), torch.float32) for name, shape in names.items()})
    }
    assert parts["puzzle embedding"]["parameters"] == 448_719_872
    assert sum(row["parameters"] for row in parts.values()) == 455_549_954
    assert "shares the L-module" in diagram(known)


def test_someone_elses_hrm_is_read_recognised_and_rebuilt(tmp_path):
    file = shared("data/checkpoints/hrm_cpu_model.pth")
    shapes = json.loads(shared("data/checkpoints/hrm_cpu_model.shapes.json").read_text())
    found = analyse(file, given=shapes["config_in_trainer"])
    assert {name: list(entry.shape) for name, entry in found.seen.found[0].entries.items()} == shapes["checkpoints"][
        "hrm_cpu_model"
    ]
    assert (found.architecture.kind, found.architecture.wrong, found.assumed, found.unbuilt) == ("HRM", (), [], "")
    assert (found.config.num_heads, found.config.seq_len, summary(found)["model_parameters"]) == (
        4,
        900,
        sum(math.prod(s) for s in shapes["checkpoints"]["hrm_cpu_model"].values()),
    )
    assert found.verdict.word == "UNDETERMINED" and found.best is None
    theirs = checkpoint.load_official(
        torch.load(file, map_location="cpu", weights_only=True), shapes["config_in_trainer"]
    )
    batch = {
        "inputs": torch.randint(0, 12, (1, 50), generator=seeded(0)),
        "puzzle_identifiers": torch.ones(1, dtype=torch.long),
    }
    ours = rebuild(found.seen.found[0], found.config)
    with torch.no_grad():
        assert torch.equal(*(one(one.start(batch))[1]["logits"] for one in (ours, theirs)))
    page = markdown(found)
    assert "hrm_cpu_model.pth" in page and "UNDETERMINED" in page and "Nothing: loss curves" not in page
    alone = analyse(file.parent, "*.pth")
    assert alone.assumed == ["num_heads", "H_cycles", "L_cycles", "expansion", "halt_max_steps", "seq_len"]


# Held-out examples


def made_examples(count: int = 30, seed: int = 0) -> Examples:
    inputs = np.random.default_rng(seed).integers(2, 12, (count, 9))
    return Examples(inputs, 13 - inputs, np.arange(count) % 20, 12, "made")


def test_evaluation_equals_a_plain_loop(tmp_path):
    torch.save(state(), tmp_path / "m.pth")
    model, examples = rebuild(look(tmp_path / "m.pth"), CONFIG), made_examples()
    found = evaluate(model, examples, batch_size=7)
    for k in range(len(examples)):
        batch = {
            "inputs": torch.from_numpy(examples.inputs[k : k + 1]),
            "labels": torch.from_numpy(examples.labels[k : k + 1]),
            "puzzle_identifiers": torch.from_numpy(examples.identifiers[k : k + 1]),
        }
        with torch.no_grad():
            carry = model.start(batch)
            for _ in range(CONFIG.halt_max_steps):
                carry, out = model(carry)
            facts = model.loss(carry, out)[1]
        assert np.isclose(found.loss[k], facts["lm_rows"].item(), rtol=1e-4)
        assert np.isclose(found.token_accuracy[k], facts["accuracy"].item()) and np.isclose(
            found.halt[k, -1], out["q_halt"].sigmoid().item()
        )


@LIMITS
@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 10**6))
def test_an_ensemble_is_never_worse_than_its_members_on_average(members, tokens, seed):
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.ones(tokens), (members, 8, 5)).astype(np.float32)
    labels = rng.integers(0, tokens, (8, 5))
    ones = [evaluate_like(one, labels) for one in chances]
    both = ensemble(ones, labels)
    assert (both.loss <= np.mean([one.loss for one in ones], axis=0) + 1e-5).all()
    assert np.allclose(
        both.loss, -np.log(np.take_along_axis(chances.mean(0), labels[..., None], -1)[..., 0]).mean(1), atol=1e-5
    )


def evaluate_like(chances, labels):
    from hrm.checkpoints.evaluate import _plain

    return _plain("one", chances, labels, keep=True)


def test_baselines_in_closed_form():
    labels = np.array([[1, 1, 2], [1, 2, 2]])
    known = baselines(Examples(np.array([[1, 1, 1], [1, 1, 1]]), labels, np.zeros(2, int), 3, "made"))
    assert np.allclose(known["uniform"].loss, math.log(3)) and known["copy"].token_accuracy.mean() == 0.5
    assert np.allclose(known["frequencies"].loss, -np.log((3 + 0.5) / (6 + 1.5)), atol=1e-6)


def test_data_sets_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "test").mkdir()
    with pytest.raises(ConfigError, match="dataset.json: not a description"):
        read_examples(tmp_path)
    arrays = dict(
        inputs=np.ones((4, 9), np.uint8),
        labels=np.ones((4, 9), np.uint8),
        puzzle_identifiers=np.zeros(2, np.int32),
        puzzle_indices=np.array([0, 2, 4]),
    )
    (tmp_path / "test" / "dataset.json").write_text(
        json.dumps({"sets": ["all"], "vocab_size": 12, "ignore_label_id": 0})
    )
    for wrong, says in (
        ({"labels": np.ones((4, 8), np.uint8)}, "shape"),
        ({"inputs": np.full((4, 9), 13)}, "tokens"),
        ({"puzzle_indices": np.array([0, 4])}, "entries"),
        ({"inputs": np.ones((4, 9))}, "integers"),
        ({"labels": np.array([[None] * 9] * 4)}, "not readable"),
        ({k: v[:0] for k, v in arrays.items()} | {"puzzle_indices": np.array([0])}, "no examples"),
    ):
        for name, array in (arrays | wrong).items():
            np.save(tmp_path / "test" / f"all__{name}.npy", array, allow_pickle=True)
        with pytest.raises(ConfigError, match=says):
            read_examples(tmp_path)
    for name, array in arrays.items():
        np.save(tmp_path / "test" / f"all__{name}.npy", array)
        np.save(tmp_path / f"all__{name}.npy", array)
    about = (tmp_path / "test" / "dataset.json").read_text()
    for wrong in ("../all", str(tmp_path / "all"), "..", "", 7):
        (tmp_path / "test" / "dataset.json").write_text(about.replace('"all"', json.dumps(wrong)))
        with pytest.raises(ConfigError, match="dataset.json: sets: found .*; allowed: a name of letters"):
            read_examples(tmp_path)
    (tmp_path / "test" / "dataset.json").write_text(about)
    assert read_examples(tmp_path).identifiers.tolist() == [0, 0, 0, 0] and len(read_examples(tmp_path, most=3)) == 3


# Verdicts


def test_weights_alone_never_conclude(tmp_path):
    found = analyse(series(tmp_path))
    assert (found.verdict.word, found.best, {use.choice for use in found.uses}) == ("UNDETERMINED", None, {"none"})
    assert summary(found)["recommended_checkpoint"] is None and summary(found)["convergence_status"] == "UNDETERMINED"
    page = markdown(found)
    assert "CONVERGED" not in page and "no held-out metric" in page and "Measure first" in page


@LIMITS
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8), st.integers(0, 10**6))
def test_the_recommended_one_is_the_best_and_of_equals_the_earliest(means, seed):
    scores = [np.full(20, round(mean, 1)) for mean in means]
    best = recommend(scores)
    assert scores[best].mean() == max(one.mean() for one in scores) and all(
        one.mean() < scores[best].mean() for one in scores[:best]
    )


@pytest.mark.parametrize("shift, word", [(0.5, "IMPROVING"), (-0.5, "DIVERGING"), (0.0, "CONVERGED")])
def test_words_follow_the_scores(shift, word):
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 2, 300)
    scores = [hard + level + rng.normal(0, 0.05, 300) for level in (0, 1, 2, 2 + shift, 2 + shift, 2 + shift)]
    assert judge(scores, last=3, delta=0.02, baseline=hard - 1).word == word
    assert judge(scores[:3], last=3).word == "UNDETERMINED"
    if word == "CONVERGED":
        assert judge(scores, last=3, delta=0.02, baseline=hard + 5).word == "UNDETERMINED", (
            "flat below the baseline is no convergence"
        )
    broken = [*scores[:-1], np.full(300, np.nan)]
    assert judge(broken, last=1).word == "DIVERGING" and recommend(broken) is not None


def test_a_use_that_no_figure_supports_gets_no_checkpoint():
    scores = [np.zeros(50), np.full(50, 0.1)]
    worse = {
        use.use: use.choice
        for use in use_cases(["a", "b"], scores, ("copy", np.full(50, 1.0)), ("a + b", np.full(50, 0.05)))
    }
    assert worse == {"Production": "none", "Balanced": "b", "Early-stage analysis": "none", "Ensemble": "none"}
    better = {
        use.use: use.choice
        for use in use_cases(["a", "b"], scores, ("copy", np.full(50, -1.0)), ("a + b", np.full(50, 0.2)))
    }
    assert better == {"Production": "b", "Balanced": "b", "Early-stage analysis": "a", "Ensemble": "a + b"}


def test_missing_information_is_found_where_it_is(tmp_path):
    torch.save(
        {
            "model_state_dict": state(),
            "optimizer_state_dict": {"a": 1},
            "config": {"lr": 1e-3},
            "val_accuracy": 0.5,
            "step": 3,
        },
        tmp_path / "full_step_3.pt",
    )
    torch.save(state(), tmp_path / "bare_step_4.pt")
    full, bare = discover(tmp_path)[0]
    assert [need.what for need in missing(full) if not need.where] == ["loss curves", "data set"]
    assert len([need for need in missing(bare) if not need.where]) == 5
    (tmp_path / "log.jsonl").write_text("{}\n")
    assert [need.where for need in missing(bare) if need.what == "loss curves"] == ["log.jsonl beside it"]


@pytest.mark.parametrize(
    "beside, what",
    [
        ({"metadata": {"by": "x"}, "config": {"evaluate_every": 5, "evaluate_puzzles": 9}}, ["hyperparameters"]),
        ({"search": {"a": 1}, "kwargs": {"b": 1}, "interval_s": 3}, []),
        ({"dataset_name": "arc", "val_loss": 0.5}, ["validation metrics", "data set"]),
        ({"held_out.loss": 0.5, "training_args": {"lr": 1}}, ["validation metrics", "hyperparameters"]),
        (
            {"best_accuracy": 0.5, "hyper_parameters": {"a": 1}, "train_data_path": "x"},
            ["validation metrics", "hyperparameters", "data set"],
        ),
    ],
)
def test_only_whole_words_count_as_information(tmp_path, beside, what):
    torch.save({"model": state(), **beside}, tmp_path / "one_step_1.pt")
    assert [need.what for need in missing(look(tmp_path / "one_step_1.pt")) if need.where] == what


def test_checkpoints_of_another_form_are_named_and_not_evaluated(tmp_path):
    series(tmp_path)
    checkpoint.write(
        tmp_path / "step_000001",
        {name: tensor for name, tensor in state().items() if "q_head" not in name} | {"inner.more": torch.ones(2)},
        {"step": 1},
    )
    found = analyse(tmp_path, examples=made_examples(), last=2, resamples=100)
    assert (
        found.odd.keys() == {"step_000001"}
        and "lacks inner.q_head.bias" in found.odd["step_000001"]
        and "has inner.more besides" in found.odd["step_000001"]
    )
    assert [one.name for one in found.tested.ones] == ["step_000010", "step_000020", "step_000040", "step_000080"]
    assert found.seen.found[found.best].name == found.tested.ones[recommend(found.tested.scores)].name
    assert text(found) and record(found)["checkpoints"][0]["scores"] is None


def learned(folder: Path, steps=(1, 2, 3), extra: str = "") -> Path:
    "a/, b/, c/model.pth; b is the only one whose head is not noise."
    for step, name in zip(steps, "abc"):
        weights = state()
        if name != "b":
            weights["inner.lm_head.weight"] = 3 * torch.randn(
                weights["inner.lm_head.weight"].shape, generator=seeded(step)
            )
        else:
            weights["inner.lm_head.weight"] = torch.zeros_like(weights["inner.lm_head.weight"])
        (folder / name).mkdir(parents=True)
        torch.save(
            {
                "model": weights | ({"inner.more": torch.ones(2)} if name == extra else {}),
                "step": step,
                "config": {"arch": ARCH, "seq_len": 9},
            },
            folder / name / "model.pth",
        )
    return folder


def test_files_of_one_name_are_told_apart(tmp_path, hrm):
    (learned(tmp_path / "run") / "a" / "bad.pth").write_bytes(b"PK\x03\x04")
    (tmp_path / "run" / "b" / "bad.pth").write_bytes(b"PK\x03\x04")
    found = analyse(tmp_path / "run", "**/*.pth", made_examples(), last=1, resamples=100)
    told = record(found)
    assert (found.best, told["summary"]["recommended_checkpoint"], set(told["skipped"])) == (
        1,
        "b/model.pth",
        {"a/bad.pth", "b/bad.pth"},
    )
    assert all(
        c["scores"]["loss"] == pytest.approx(one.loss.mean(), rel=1e-6)
        for c, one in zip(told["checkpoints"], found.tested.ones)
    )
    assert (
        text(found).count("<- recommended") == 1
        and "b/model.pth: step 2" in text(found).split("<- recommended")[0].splitlines()[-1]
    )
    assert (
        "12 of 20" not in text(found)
        and hrm(
            tmp_path / "run",
            "--pattern",
            "**/*.pth",
            "--data",
            data_set(tmp_path / "data"),
            "--out",
            tmp_path / "out",
            "--prune",
        )[0]
        == 0
    )
    assert (
        json.loads((tmp_path / "out" / "pruned" / "model" / "meta.json").read_text())["pruned"]["from"] == "b/model.pth"
    )


def test_one_odd_file_among_namesakes_costs_only_itself(tmp_path):
    found = analyse(learned(tmp_path, extra="a"), "**/*.pth", made_examples(), last=1, resamples=100)
    assert (
        found.odd.keys() == {"a/model.pth"}
        and [one.name for one in found.tested.ones] == ["b/model.pth", "c/model.pth"]
        and markdown(found)
    )


def test_a_stranger_does_not_decide_the_model(tmp_path):
    torch.save({"vae.weight": torch.ones(3, 3)}, series(tmp_path) / "vae.pth")
    found = analyse(tmp_path, examples=made_examples(), last=1, resamples=100)
    assert (
        found.architecture.kind == "HRM"
        and len(found.tested.ones) == 4
        and not found.odd
        and summary(found)["training_steps"] == 80
    )
    assert [(one.path.name, "no model known here" in one.reason) for one in found.skipped] == [("vae.pth", True)]


@pytest.mark.parametrize(
    "config, asked, meaning, assumed",
    [
        ({}, None, "stablemax", True),
        ({"cross_entropy": "softmax"}, None, "softmax", False),
        ({"cross_entropy": "softmax"}, "stablemax", "stablemax", False),
        ({"arch": ARCH | {"loss": {"loss_type": "softmax_cross_entropy"}}}, None, "softmax", False),
        ({}, "softmax", "softmax", False),
    ],
)
def test_what_the_logits_mean_is_said_or_named_as_assumed(tmp_path, config, asked, meaning, assumed):
    checkpoint.write(tmp_path / "step_1", state(), {"step": 1, "config": {"arch": ARCH, "seq_len": 9} | config})
    found, examples = analyse(tmp_path, examples=made_examples(), cross_entropy=asked, resamples=100), made_examples()
    alone = evaluate(rebuild(look(tmp_path / "step_1"), CONFIG), examples, "a", 1, cross_entropy=meaning)
    assert (
        found.tested.ones[0].loss == pytest.approx(alone.loss, rel=1e-3)
        and ("cross_entropy" in found.assumed) == assumed
    )
    assert ("cross_entropy" in text(found)) == assumed


def test_logits_of_unknown_meaning_are_refused(tmp_path, hrm):
    checkpoint.write(
        tmp_path / "run" / "step_1",
        state(),
        {"step": 1, "config": {"arch": ARCH, "seq_len": 9, "cross_entropy": "focal"}},
    )
    for words in ((), ("--cross-entropy", "hinge")):
        code, out, err = hrm(tmp_path / "run", "--data", data_set(tmp_path / f"data{len(words)}"), *words)
        assert code == 2 and "allowed: stablemax, softmax" in err and ("hinge" if words else "focal") in err
    assert hrm(tmp_path / "run", "--data", tmp_path / "data0", "--cross-entropy", "softmax")[0] == 0


def test_the_printed_loading_example_runs(tmp_path):
    for folder, pattern in ((series(tmp_path / "run"), None), (learned(tmp_path / "files"), "**/*.pth")):
        for examples in (None, made_examples()):
            found = analyse(folder, pattern, examples, last=1, resamples=100)
            page, ran = markdown(found), {}
            exec(page[page.index("```python") + 9 :].split("```")[0], ran)
            assert (
                isinstance(ran["model"], HRM)
                and ran["found"].path == found.seen.found[-1 if found.best is None else found.best].path
            )
    torch.save({"vae.weight": torch.ones(3, 3)}, tmp_path / "vae.pth")
    page, ran = markdown(analyse(tmp_path / "vae.pth")), {}
    exec(page[page.index("```python") + 9 :].split("```")[0], ran)
    assert ran["known"].kind == "unknown" and "model" not in ran


def test_the_change_over_the_last_steps_is_that_of_the_trained_weights(tmp_path):
    for step, scale in ((1000, 1.0), (5000, 2.0), (6500, 3.0), (7000, 4.0)):
        checkpoint.write(
            tmp_path / f"step_{step}", {name: scale * tensor for name, tensor in state().items()}, {"step": step}
        )
    found = analyse(tmp_path)
    assert (
        late_change(found) == (5000, pytest.approx(100))
        and late_change(found, 600)[1] == pytest.approx(100 / 3)
        and late_change(found, 10) is None
    )
    assert "from step 5,000 on" in markdown(found) and summary(found)["late_magnitude_change"] == pytest.approx(100)


def test_the_report_names_sweep_times_and_date_where_they_are_known(tmp_path):
    checkpoint.write(
        tmp_path / "step_1", state(), {"step": 1, "config": {"arch": ARCH, "seq_len": 9, "sweep": "runs/sweep-7"}}
    )
    found = analyse(tmp_path, examples=made_examples(), resamples=100)
    page = markdown(found, "2025-01-02", timed=True)
    assert (
        "Sweep: runs/sweep-7" in page
        and "Sweep: mine" in markdown(found, sweep="mine")
        and "Analysis date: 2025-01-02" in page
        and "arXiv:2506.21734" in page
    )
    assert "| seconds |" in page and "seconds" not in markdown(found).split("## Held-out")[1].split("##")[0]
    assert (
        record(found, timed=True)["checkpoints"][0]["scores"]["seconds"] > 0
        and "seconds" not in record(found)["checkpoints"][0]["scores"]
    )


@pytest.mark.parametrize(
    "word, advised", [("DIVERGING", "does not carry over"), ("CONVERGED", "no figure here asks for it")]
)
def test_advice_to_regularise_follows_the_verdict(tmp_path, word, advised):
    found = analyse(series(tmp_path, (1, 2)), examples=made_examples(), last=1, resamples=100)
    found.verdict = Verdict(word, "made here")
    assert advised in markdown(found)
    found.uses[0] = Use("Production", "none", "no better than copy")
    assert "Tune hyperparameters: no better than copy" in markdown(found)


# The document


def test_a_fresh_model_has_the_documents_average():
    columns = document_columns(document.fresh())
    assert (columns["total_parameters"], columns["num_layers"], columns["min_weight"]) == (27_990_018, 23, -5.0)
    assert columns["total_sparsity"] == pytest.approx(2 / 23) and columns["avg_weight_std"] == pytest.approx(
        0.1307, abs=1.5e-3
    )
    assert abs(columns["avg_abs_mean"] - 0.328) < 0.01 and document.fresh_average() == pytest.approx(
        document.LINES[0].abs_mean, abs=5e-4
    )
    real = HRM(CONFIG, generator=seeded(3)).state_dict()
    counted = document_columns(document.fresh(CONFIG, 3))
    assert counted["avg_abs_mean"] == pytest.approx(
        np.mean([tensor.abs().mean().item() for tensor in real.values()]), rel=1e-6
    )
    assert counted["avg_weight_std"] == pytest.approx(
        np.mean([tensor.std().item() for tensor in real.values()]), rel=1e-5
    )


@LIMITS
@given(st.integers(0, 95996), st.integers(2, 4))
def test_sparsity_turns_back_into_rows(rows, digits):
    percent = round(100 * (1 - rows / 95996) / 23, digits)
    low, high = rows_from_sparsity(percent, 23, 95996, digits)
    assert low <= rows <= high and high - low <= 95996 * 23 * 10.0**-digits / 100 + 1


def test_the_documents_lines_hold_the_counted_rows():
    for line, rows in zip(document.LINES, (160, 791, 926, 1051, 3010, 3907, 4375, 4541, 5240)):
        low, high = document.rows_trained(line)
        assert low <= rows <= high


# The report and the command


def test_the_same_folder_gives_the_same_files(tmp_path):
    folder, examples = series(tmp_path / "run"), made_examples()
    first, again = (
        write(analyse(folder, examples=examples, last=2, resamples=100), tmp_path / name) for name in ("a", "b")
    )
    assert [path.name for path in first] == [path.name for path in again] and len(first) == 9
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, again))
    detailed = json.loads((tmp_path / "a" / "detailed_checkpoint_analysis.json").read_text())
    assert [row["step"] for row in detailed] == [10, 20, 40, 80] and all(
        "unweighted" in row["weighting"] for row in detailed
    )
    architecture = json.loads((tmp_path / "a" / "model_architecture.json").read_text())
    assert (
        architecture["components"]["inner"]["num_layers"] == 15
        and architecture["model_size_mb"] == architecture["total_parameters"] * 4 / 2**20
    )
    rows = (tmp_path / "a" / "checkpoint_analysis.csv").read_text().splitlines()
    assert rows[0] == "checkpoint_path,step,checkpoint_keys" and len(rows) == 5


@pytest.fixture
def hrm(capsys):
    def call(*words):
        code = main(["inspect", *map(str, words)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return call


def data_set(folder: Path) -> Path:
    examples = made_examples()
    (folder / "test").mkdir(parents=True)
    for name, array in dict(
        inputs=examples.inputs,
        labels=examples.labels,
        puzzle_identifiers=examples.identifiers,
        puzzle_indices=np.arange(31),
    ).items():
        np.save(folder / "test" / f"all__{name}.npy", array.astype(np.int32))
    (folder / "test" / "dataset.json").write_text(json.dumps({"sets": ["all"], "vocab_size": 12, "ignore_label_id": 0}))
    return folder


def test_inspect_prints_writes_and_prunes(hrm, tmp_path):
    series(tmp_path / "run")
    (tmp_path / "run" / "broken_step_9.pth").write_bytes(b"PK\x03\x04")
    code, out, err = hrm(tmp_path / "run")
    assert (
        (code, err) == (0, "")
        and "HRM in" in out
        and "12 of 20 puzzle rows" in out
        and "broken_step_9.pth: skipped" in out
        and "UNDETERMINED" in out
    )
    code, out, err = hrm(
        tmp_path / "run",
        "--data",
        data_set(tmp_path / "data"),
        "--out",
        tmp_path / "out",
        "--prune",
        "--json",
        "--metric",
        "token_accuracy",
    )
    told = json.loads(out)
    assert (
        code == 0
        and told["summary"]["total_checkpoints"] == 4
        and told["skipped"].keys() == {"broken_step_9.pth"}
        and told["checkpoints"][0]["scores"]["loss"] > 0
    )
    assert told["summary"]["recommended_checkpoint"] in {c["name"] for c in told["checkpoints"]}
    assert (
        (tmp_path / "out" / "CHECKPOINT_EVALUATION_REPORT.md")
        .read_text()
        .startswith("# Checkpoint evaluation report\n\nGenerated: 20")
    )
    assert list((tmp_path / "out" / "pruned").glob("*/rows.json")) and "rows" in err


def test_inspect_refuses_in_one_line(hrm, tmp_path):
    series(tmp_path / "run")
    for words, says in (
        ((tmp_path / "nowhere",), "no such folder"),
        ((tmp_path / "run", "--pattern", "nothing*"), "no checkpoint found"),
        ((tmp_path / "run", "--prune"), "--out"),
        ((tmp_path / "run", "--metric", "speed"), "token_accuracy"),
        ((tmp_path / "run", "--data", tmp_path), "dataset.json"),
        ((), "folder"),
    ):
        code, out, err = hrm(*words)
        assert (code, out) == (2, "") and says in err and len(err.splitlines()) == 1, err
    data = data_set(tmp_path / "data")
    np.save(data / "test" / "all__puzzle_identifiers.npy", np.full(30, 99))
    assert "up to 99; the model has 20" in hrm(tmp_path / "run", "--data", data)[2]


def test_inspect_needs_neither_pandas_nor_matplotlib(tmp_path):
    series(tmp_path / "run", (1, 2))
    code = (
        "import sys\nfrom hrm.tools.cli import main\ncode = main(['inspect', sys.argv[1], '--json'])\n"
        "heavy = {'pandas', 'matplotlib', 'scipy'} & {name.partition('.')[0] for name in sys.modules}\nsys.exit(code or (3 if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"]["total_checkpoints"] == 2


def test_pieces_are_small():
    assert CHUNK * 8 <= 2**23
