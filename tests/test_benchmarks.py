"""The plain rendering that the throughput benchmark compares with is the same mathematics; every program tells how it is used."""

import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import types
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from copies import commit, copy_project, shell

from hrm.core.config import ConfigError, section
from hrm.core.device import pick, seeded
from hrm.core.hrm import HRM, ArchConfig
from hrm.core.run import StepRun
from hrm.core.trm import TRM
from hrm.sudoku.model import build as build_board
from hrm.sudoku.train import TrainConfig

FOLDER = ROOT / "benchmarks"
PROGRAMS = (
    "throughput",
    "exchange",
    "generate",
    "generator",
    "checkpoints",
    "container",
    "shakespeare",
    "grokking",
    "hierarchy",
    "maze_labels",
    "kills",
    "precision",
    "commands",
    "page",
    "speedrun",
)


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def tiny(H_cycles: int = 1, L_cycles: int = 1) -> ArchConfig:
    return ArchConfig(
        hidden_size=32,
        num_heads=4,
        H_layers=2,
        L_layers=1,
        H_cycles=H_cycles,
        L_cycles=L_cycles,
        expansion=4,
        pos_encodings="rope",
        halt_max_steps=3,
        puzzle_emb_ndim=48,
    )


@pytest.mark.parametrize("cycles", [(1, 1), (2, 2), (1, 3)])
def test_plain_rendering_equals_ours(program, cycles):
    found = program("throughput").check(tiny(*cycles), 4, pick("cpu"))
    assert set(found) == {"plain"} and set(found["plain"]) == {"training", "inference"}
    assert found["plain"]["inference"] < 2e-5  # training compares logits after an optimizer step, within 1e-4


def test_check_notices_a_difference(program, monkeypatch):
    monkeypatch.setattr(program("plain"), "EPS", 1e-2)
    with pytest.raises(AssertionError, match="plain and ours differ"):
        program("throughput").check(tiny(), 4, pick("cpu"))


# A checkout of the official HRM for tests: its interface around our model, and nothing of its code.
CHECKOUT = {
    "layers": "from flash_attn import flash_attn_func\n",
    "losses": """
import torch
from torch import nn

class ACTLossHead(nn.Module):
    def __init__(self, model, loss_type):
        super().__init__()
        assert loss_type == "stablemax_cross_entropy"
        self.model, self.initial_carry = model, model.initial_carry

    def forward(self, return_keys, carry, batch):
        carry, outputs = self.model(carry=carry, batch=batch)
        loss, _ = self.model.inside.loss(carry, self.model.outputs)
        return carry, SCALE * loss, {}, {name: outputs[name].detach() for name in return_keys}, carry.halted.all()
""",
    "sparse_embedding": """
from hrm.core.optim import SignSGD

class CastedSparseEmbeddingSignSGD_Distributed(SignSGD):
    def __init__(self, params, world_size, lr, weight_decay):
        assert world_size == 1
        super().__init__(*params, lr, weight_decay)
""",
    "hrm/hrm_act_v1": """
import torch
from torch import nn
from models.layers import flash_attn_func
from hrm.core.hrm import HRM, HRMConfig

class HierarchicalReasoningModel_ACTV1(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.rows = config.pop("batch_size")
        object.__setattr__(self, "inside", HRM(HRMConfig(**config)))
        self.inner = self.inside.inner

    @property
    def puzzle_emb(self):
        class Table:
            buffers = lambda _: [self.inner.puzzle_emb]
        return Table()

    def initial_carry(self, batch):
        assert len(batch["inputs"]) == self.rows
        return self.inside.start(batch)

    def forward(self, carry, batch):
        self.inside.train(self.training)
        if self.training:
            carry = self.inside.admit(carry, {name: value[carry.halted] for name, value in batch.items()})
        carry, self.outputs = self.inside(carry, torch.zeros(self.rows) if self.training else None)
        named = {"logits": "logits", "q_halt_logits": "q_halt", "q_continue_logits": "q_continue"}
        return carry, {name: self.outputs[ours] for name, ours in named.items()}
""",
}


@pytest.fixture
def checkout(tmp_path):
    "A function that writes such a checkout whose loss is `scale` times the right one, and gives its folder."

    def write(scale: float = 1.0):
        folder = tmp_path / "HRM"
        for name, text in CHECKOUT.items():
            file = folder / "models" / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("SCALE", str(scale)))
        return folder

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        del sys.modules[name]


def test_official_is_imported_from_its_folder_only(program, checkout, tmp_path, monkeypatch):
    official, folder, stranger = program("official"), checkout(), types.ModuleType("stranger")
    sys.modules["models"] = stranger
    monkeypatch.setitem(sys.modules, "flash_attn", stranger)
    found = official.load(folder)
    assert sys.modules["models.layers"].flash_attn_func is official.flash_attn_func
    assert sys.modules["flash_attn"] is stranger and "flash_attn_interface" not in sys.modules
    assert found.about["name"].startswith("HRM ") and str(tmp_path) not in json.dumps(found.about)
    assert official.load(folder).about == found.about
    assert official.load(checkout(scale=2)).about["sha256"] != found.about["sha256"]
    (folder / "models/losses.py").unlink()
    with pytest.raises(SystemExit, match="no checkout.*it has no models/losses.py$"):
        official.load(folder)


@pytest.mark.parametrize("causal", [False, True])
def test_stand_in_for_flash_attention(program, causal):
    q, k, v = torch.randn(3, 2, 5, 4, 8, generator=torch.Generator().manual_seed(0))  # [B, S, H, K]
    scores = torch.einsum("bqhk,bshk->bhqs", q, k) / 8**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    expected = torch.einsum("bhqs,bshk->bqhk", scores.softmax(-1), v)
    found = program("official").flash_attn_func(q=q, k=k, v=v, causal=causal)
    assert torch.allclose(found, expected, atol=1e-6) and found.is_contiguous()


@pytest.mark.parametrize("cycles", [(1, 1), (2, 2)])
def test_official_is_compared_before_it_is_timed(program, checkout, cycles):
    official, throughput = program("official"), program("throughput")
    found = throughput.check(tiny(*cycles), 4, pick("cpu"), official.load(checkout()))
    assert found["official"] == {"training": 0, "inference": 0}  # it is our model inside
    with pytest.raises(AssertionError, match="official and ours differ by .* in training; allowed is 0.0001"):
        throughput.check(tiny(*cycles), 4, pick("cpu"), official.load(checkout(scale=1.001)))


@pytest.mark.parametrize("cycles", [(1, 1), (2, 2), (1, 3)])
def test_the_real_official_equals_ours(program, checkout, cycles):
    folder = os.environ.get("HRM_REFERENCE")
    if not folder:
        pytest.skip("HRM_REFERENCE names no checkout of github.com/sapientinc/HRM")
    found = program("throughput").check(tiny(*cycles), 4, pick("cpu"), program("official").load(folder))
    assert set(found["official"]) == {"training", "inference"} and max(found["official"].values()) < 2e-5


def test_throughput_needs_a_checkout(program, tmp_path):
    with pytest.raises(SystemExit, match="no checkout of github.com/sapientinc/HRM"):
        program("throughput").main(reference=str(tmp_path), out=str(tmp_path / "throughput.json"))
    assert not (tmp_path / "throughput.json").exists()


def test_throughput_takes_turns_with_the_official(program, checkout, tmp_path, monkeypatch, capsys):
    throughput = program("throughput")
    monkeypatch.setattr(throughput, "TUTORIAL", tiny())
    monkeypatch.setattr(throughput, "SIZE", 4)
    monkeypatch.setattr(throughput, "gemm_peak", lambda placement: 1e11)
    monkeypatch.setattr(throughput, "has_bf16", lambda device: False)
    monkeypatch.setattr(throughput, "compiler", lambda device: (True, "g++ found"))
    monkeypatch.setattr(HRM, "compile_segment", lambda self: None)  # ours: as if it had been compiled

    def broken(model, dynamic):
        raise RuntimeError("no graph")

    monkeypatch.setattr(torch, "compile", broken)
    out = tmp_path / "throughput.json"
    throughput.main(batch_size=4, repeats=3, device="cpu", reference=str(checkout()), out=str(out))
    record = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert record["dtypes"] == ["float32"] and "no bfloat16 units" in record["left_out"]["bfloat16"]
    assert record["left_out"]["bfloat16"] in printed and "not compiled: training 1x1 float32: RuntimeError" in printed
    assert [line.partition(":")[0] for line in record["reference"]["not_compiled"]] == [
        f"{kind} {cycles} float32" for kind in ("training", "inference") for cycles in ("1x1", "2x2")
    ]
    for row in record["rows"]:
        assert {"plain", "eager", "compiled", "official"} < set(row) and "official_compiled" not in row
        assert row["official"]["gflop_per_sample"] >= row["eager"]["gflop_per_sample"] > 0
        for pair in ("eager_over_plain", "eager_over_official", "gain"):
            low, median, high = (row[pair][name] for name in ("least", "median", "most"))
            assert 0 < low <= row[pair]["low"] <= median <= row[pair]["high"] <= high
    figures = record["figures"]
    assert set(figures) == {
        f"sudoku.throughput.{name}_{cycles}"
        for name in ("train", "official", "over_official", "gain")
        for cycles in ("1x1", "2x2")
    }
    first = record["rows"][0]
    assert figures["sudoku.throughput.train_1x1"]["value"] == first["compiled"]["samples_per_second"]
    assert figures["sudoku.throughput.official_1x1"]["value"] == first["official"]["samples_per_second"]
    assert figures["sudoku.throughput.over_official_1x1"]["value"] == first["eager_over_official"]["median"]
    assert str(tmp_path) not in out.read_text()


def test_turns_are_compared_pair_by_pair(program):
    slow, fast = [(2.0, 4.0), (6.0, 8.0), (3.0, 3.0)], [(1.0, 2.0), (2.0, 1.0), (2.0, 3.0)]  # clock, processor
    found = program("throughput").ratio(slow, fast)
    assert (found["least"], found["median"], found["most"], found["best"], found["cpu"]) == (1.5, 2, 3, 2, 2)


def test_precisions(program, monkeypatch):
    throughput = program("throughput")
    names = lambda dtype: [str(place.dtype) for place in throughput.precisions("cpu", dtype)[0]]
    for fast, auto in ((False, ["torch.float32"]), (True, ["torch.float32", "torch.bfloat16"])):
        monkeypatch.setattr(throughput, "has_bf16", lambda device, fast=fast: fast)
        assert names("auto") == auto
        assert names("float32") == ["torch.float32"] and names("bfloat16") == ["torch.float32", "torch.bfloat16"]
    with pytest.raises(ConfigError, match="found 'float64'; allowed: auto, float32, bfloat16"):
        throughput.precisions("cpu", "float64")


@pytest.mark.parametrize("name", PROGRAMS)
def test_help(name):
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout


def test_generator_counts_only_puzzles_of_its_class(program, tmp_path):
    program("generator").main(count=200, repeats=1, seed=0, out=str(tmp_path / "generator.json"))
    record = json.loads((tmp_path / "generator.json").read_text())
    assert record["all_unique_and_easy"] and record["puzzles_per_second"]["cpu"] > 0 and "cpu" in record["machine"]


def test_exchange_says_what_is_missing(program, tmp_path, monkeypatch):
    monkeypatch.setenv("HRM_SHARED", str(tmp_path))
    with pytest.raises(SystemExit, match="exchange_easy_200.csv.*HRM_SHARED"):
        program("exchange").main(
            checkpoint=tmp_path, tries=2, tries_extreme=2, seeds=1, out=str(tmp_path / "exchange.json")
        )
    assert not (tmp_path / "exchange.json").exists()


def test_generate_reads_the_same_text_both_ways(program, tmp_path):
    generate = program("generate")
    generate.main(tokens=6, repeats=1, device="cpu", out=str(tmp_path / "generate.json"))
    record = json.loads((tmp_path / "generate.json").read_text())
    assert [row["width"] for row in record["rows"]] == [128, 256] and all(
        row["largest_difference"] < 1e-4 for row in record["rows"]
    )
    whole = record["rows"][0]["whole_text"]
    assert whole["computed_again"]["ratio"] == 1
    for name, way in (
        ("generate.cached_eager_over_uncached", "cached"),
        ("generate.cached_over_uncached", "cached_compiled"),
    ):
        if way in whole or way == "cached":
            assert record["figures"][name]["value"] == whole[way]["ratio"] > 0
        else:
            assert name not in record["figures"]  # no C++ compiler


def test_checkpoints_measures_fresh_processes(program, tmp_path, capsys):
    checkpoint, hrm = importlib.import_module("hrm.core.checkpoint"), importlib.import_module("hrm.core.hrm")
    config = hrm.HRMConfig(
        hidden_size=32,
        num_heads=2,
        H_layers=1,
        L_layers=1,
        H_cycles=1,
        L_cycles=1,
        expansion=2,
        pos_encodings="rope",
        halt_max_steps=1,
        vocab_size=4,
        seq_len=4,
    )
    for step in (1, 2):
        checkpoint.write(tmp_path / f"step_{step}", hrm.HRM(config).state_dict(), {"step": step})
    program("checkpoints").main(
        folder=str(tmp_path), pattern="step_*", made=False, repeats=1, out=str(tmp_path / "record.json")
    )
    record = json.loads((tmp_path / "record.json").read_text())
    figures = record["figures"]
    assert record["summary"]["total_checkpoints"] == 2 and record["runs"][0]["heavy"] == []
    assert 0 < figures["checkpoints.seconds"]["value"] < 15 and 50 < figures["checkpoints.peak_mb"]["value"] < 400
    with pytest.raises(SystemExit, match="--made"):
        program("checkpoints").main(
            folder=str(tmp_path / "nowhere"), pattern="*", made=False, repeats=1, out=str(tmp_path / "none.json")
        )


def test_shakespeare_compares_at_equal_arithmetic(program, monkeypatch, tmp_path):
    shakespeare = program("shakespeare")
    (tmp_path / "verse.txt").write_text("To be, or not to be: that is the question.\n" * 60)
    book = shakespeare.book_of(tmp_path / "verse.txt", tmp_path / "books")
    tasks = {name: shakespeare.task_of(name, book, 10) for name in shakespeare.MODELS}
    blocks = {name: shakespeare.flops(task) for name, task in tasks.items()}
    assert tasks["nanogpt"].model(tasks["nanogpt"].rows()[:, :-1]).logits.shape == (1, 12, 64, book.tokenizer.size)
    layer, head = (
        12 * 128**2,
        book.tokenizer.size * 128,
    )  # of nanoGPT: attention's projections and the feed-forward network
    scores = (
        4 * (4 + 10) * 12 * 64**2 * 128
    )  # two products of every layer, forward; five in the backward pass of the fused kernel
    assert blocks["nanogpt"] == 6 * 12 * 64 * (4 * layer + head) + scores
    assert (
        blocks["hrm_1x1"] == blocks["transformer"] + 2 * 12 * 64 * 128 * 2
    )  # the halting head, which is read and not trained
    assert blocks["hrm_2x2"] > 1.9 * blocks["hrm_1x1"]
    for task in tasks.values():  # none of them sees the future
        text = task.rows()[:2, :-1]
        other = text.clone()
        other[:, 40:] = other[:, 40:].flip(1)
        assert task.model.eval()(text).logits[:, :, :40].equal(task.model(other).logits[:, :, :40])


def test_shakespeare_says_what_is_missing(program, tmp_path, monkeypatch):
    monkeypatch.setenv("HRM_SHARED", str(tmp_path))
    with pytest.raises(SystemExit, match="tiny_shakespeare.txt.*HRM_SHARED"):
        program("shakespeare").main(only=None, share=1.0, out=str(tmp_path / "out.json"))
    with pytest.raises(SystemExit, match="found gpt; allowed: nanogpt"):
        program("shakespeare").main(only=["gpt"], share=1.0, out=str(tmp_path / "out.json"))


def test_grokking_counts_from_knowing_the_pairs_to_knowing_the_rule(program, tmp_path, monkeypatch):
    grokking = program("grokking")
    train, test = grokking.split(23, 0.5, grokking.seeded(0))
    pairs = [tuple(pair) for part in (train, test) for pair in part[0].tolist()]
    assert len(pairs) == len(set(pairs)) == 529 and len(train[0]) == 264
    assert all((a + b) % 23 == c for part in (train, test) for (a, b), c in zip(part[0].tolist(), part[1].tolist()))
    assert (grokking.first([10, 20, 30], [0.2, 0.96, 0.1], 0.95), grokking.first([10], [0.2], 0.95)) == (20, None)
    monkeypatch.setattr(grokking, "OPTIMIZERS", {name: grokking.OPTIMIZERS[name] for name in ("AdamW", "MuGrokfast")})
    grokking.main(seeds=1, tflop=0.003, every=5, out=str(tmp_path / "grokking.json"))
    record = json.loads((tmp_path / "grokking.json").read_text())
    for (run,) in record["runs"].values():
        assert (
            run["most_steps"] == run["steps"][-1]
            and 0 < run["tflop"] <= 0.003
            and len(run["train"]) == len(run["test"]) == len(run["steps"])
        )
        assert run["delay"] is None and run["train"][0] < run["train"][-1], (
            "it learns, and sixteen steps are too few for the rule"
        )
    assert record["figures"]["memory.grokking.mugrokfast.delay"]["value"] is None


def test_products_as_hardware_units_make_them(program):
    precision, seed = program("precision"), torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=seed).bfloat16() for shape in ((40, 64), (64, 48)))
    exact = a.double() @ b.double()
    with precision.Units():
        found, wide = a @ b, a.float() @ b.float()
    assert found.dtype == torch.bfloat16 and wide.dtype == torch.float32 and torch.equal(wide, a.float() @ b.float())
    assert (found != exact.bfloat16()).double().mean() < 0.01  # one rounding; sums in float32 may tip a tie
    assert (found.double() - exact).abs().max() <= exact.abs().max() / 2**8
    coarse = precision.Units(bits=2).wide(torch.tensor([1.0, 1.1, 1.13, -1.2, 1.9, 3e-5]).bfloat16())
    assert torch.allclose(coarse, torch.tensor([1.0, 1.0, 1.25, -1.25, 2.0, 3.0518e-5]), rtol=1e-4)
    with precision.Units(bits=2):
        assert (a @ b).double().sub(exact).abs().mean() > 10 * (found.double() - exact).abs().mean()


def test_precision_pairs_by_seed(program, tmp_path, monkeypatch):
    precision, asked = program("precision"), []

    def train(name, config, seed, out, options):
        asked.append((name, config.dtype, config.loop.steps, options.resume.parent.name))
        a = torch.randn(30, 30, generator=torch.Generator().manual_seed(seed)).to(getattr(torch, config.dtype))
        held_out = {"loss": seed + (a @ a).double().abs().mean().item()}
        timings = {"train_seconds": 1.0, "dtype": config.dtype, "dtype_reason": "asked for"}
        return types.SimpleNamespace(metrics={"held_out": held_out, "tflop": 0.5}, timings=timings)

    recipe = StepRun(
        optim={"lr": 1e-3}, loop={"steps": 100, "evaluate_every": 10, "log_every": 10, "best": "loss"}, batch_size=1
    )
    monkeypatch.setattr(precision, "systems", lambda: {"sudoku": (recipe, train, "loss", "nats")})
    monkeypatch.setattr(precision, "data", lambda name: True)
    precision.main(seeds=4, share=0.5, jobs=1, out=str(tmp_path / "precision.json"))
    assert {(steps, share) for *_, steps, share in asked} == {(12, "0.5")}
    assert [name for name, dtype, *_ in asked if dtype == "float32"] == [f"sudoku-float32-{seed}" for seed in range(4)]
    record = json.loads((tmp_path / "precision.json").read_text())
    row, figures = record["systems"]["sudoku"], record["figures"]
    assert [len(row["held_out"][kind]) for kind in ("float32", "bfloat16", "control")] == [4, 4, 3]
    assert (row["steps"], row["steps_of_the_profile"], record["emulated"]) == (12, 100, not record["flag"])
    gaps = [ours - base for ours, base in zip(row["held_out"]["bfloat16"], row["held_out"]["float32"])]
    found = figures["precision.sudoku.difference"]
    assert found["value"] == pytest.approx(sum(gaps) / 4) and min(gaps) <= found["low"] <= found["high"] <= max(gaps)
    assert found["high"] - found["low"] < 0.1 < figures["precision.sudoku.float32"]["high"] - 1, "pairs cancel the seed"
    assert set(figures) == {f"precision.sudoku.{kind}" for kind in ("float32", "bfloat16", "control", "difference")}
    coarse = row["control"]["difference"]
    assert coarse["high"] - coarse["low"] > 5 * (found["high"] - found["low"]) and 0 < row["bfloat16"]["welch_p"] <= 1


def test_the_models_of_the_hierarchy_call_as_many_blocks(program):
    "All but the plain one, in a run as long as that of the training; the shares of a step that carry a gradient differ."
    hierarchy, calls = program("hierarchy"), {}
    for name in hierarchy.BOARDS["6x6"].models:
        model = build_board(hierarchy.BOARDS["6x6"].recipe(name, 1e-3, 1).arch, 4, seeded(0), pick("cpu"))
        seen = []
        for block in [module for module in model.modules() if type(module).__name__ == "Block"]:
            block.register_forward_hook(lambda *_: seen.append(1))
        ids = torch.ones(2, 16, dtype=torch.long)
        carry = model.eval().start({"inputs": ids, "puzzle_identifiers": torch.zeros(2, dtype=torch.long)})
        with torch.no_grad():
            for _ in range(model.config.halt_max_steps):
                carry, _ = model(carry)
        calls[name] = len(seen)
    assert calls.pop("plain") == 2
    assert set(calls.values()) == {24}


def test_hierarchy_compares_at_equal_arithmetic(program, tmp_path, monkeypatch, capsys):
    hierarchy, models = program("hierarchy"), ("hrm", "single", "one_step", "deep")
    (tmp_path / "params.yaml").write_text("profiles: {}\n")
    monkeypatch.setenv("HRM_ROOT", str(tmp_path))
    monkeypatch.setattr(hierarchy, "CHOSEN_ON", 8)
    monkeypatch.setattr(hierarchy, "RATES", (1e-3, 6e-3))
    small = hierarchy.Boards(4, (6, 9), "singles", 2, 2e-3, models, 64, 24)
    monkeypatch.setattr(hierarchy, "BOARDS", {"6x6": small})
    hierarchy.main(seeds=2, share=1.0, boards=None, out="record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    rows = record["boards"]["6x6"]["models"]
    assert set(rows) == set(models)
    for row in rows.values():
        assert abs(row["steps"] * row["flop_a_step"] - 2e9) <= row["flop_a_step"] / 2, "equal but for half a step"
        assert row["rate"] in (1e-3, 6e-3) and len(row["exact"]) == 2 and {len(runs) for runs in row["exact"]} == {4}
        assert row["tflop"] == pytest.approx([row["steps"] * row["flop_a_step"] / 1e12] * 2, rel=0.02)
    assert rows["one_step"]["steps"] > rows["hrm"]["steps"] and rows["single"]["parameters"] < rows["hrm"]["parameters"]
    assert set(record["figures"]) == {f"sudoku.hierarchy.{name}.exact" for name in models}
    before = capsys.readouterr().out
    hierarchy.main(seeds=2, share=1.0, boards=None, out="again.json")  # everything is there
    assert capsys.readouterr().out.replace("again", "record") == before
    assert json.loads((tmp_path / "again.json").read_text())["boards"] == record["boards"]

    few = replace(small, models=("hrm", "single"))
    monkeypatch.setattr(hierarchy, "BOARDS", {"6x6": small, "9x9": few})
    shutil.rmtree(tmp_path / "data")
    hierarchy.main(seeds=2, share=1.0, boards=["9x9"], out="record.json")
    both = json.loads((tmp_path / "record.json").read_text())
    assert both["boards"]["6x6"] == record["boards"]["6x6"], "kept, though its runs are gone"
    assert not list(tmp_path.rglob("*tuning*")), "the rates are those of the record"
    assert {name: row["rate"] for name, row in both["boards"]["9x9"]["models"].items()} == {
        name: rows[name]["rate"] for name in few.models
    }
    assert set(both["figures"]) - set(record["figures"]) == {f"sudoku.hierarchy.9x9.{n}.exact" for n in few.models}

    mazes = hierarchy.Mazes(7, (9, 4), 4, 2e-3, ("hrm", "single", "unsupervised", "deep"), 64, 24, 16)
    monkeypatch.setattr(hierarchy, "BOARDS", {"6x6": small, "9x9": few, "mazes": mazes})
    known = record["boards"]["6x6"] | {"models": rows | {"unsupervised": rows["hrm"]}}
    monkeypatch.setattr(hierarchy, "kept", lambda *_: {"6x6": known})
    hierarchy.main(seeds=2, share=1.0, boards=["mazes"], out="mazes.json")
    found = json.loads((tmp_path / "mazes.json").read_text())
    assert found["boards"]["mazes"]["depths"] == [1, 2, 4] and found["boards"]["mazes"]["boards"]["counted"] == 16
    for name, row in found["boards"]["mazes"]["models"].items():
        assert abs(row["steps"] * row["flop_a_step"] - 2e9) <= row["flop_a_step"] / 2, "equal but for half a step"
        assert [len(runs) for runs in row["exact"]] == [3, 3] and len(row["larger"]) == 2
        assert found["figures"][f"maze.hierarchy.{name}.exact"]["n"] == 2


def test_every_recipe_of_the_speedrun_can_be_run(program):
    speedrun = program("speedrun")
    for goal in speedrun.GOALS.values():
        base = section("laptop", "sudoku.train", TrainConfig).runs[goal["run"]]
        made = {name: speedrun.recipe(goal, changes) for name, (_, changes) in speedrun.ROWS.items()}
        models = {name: build_board(one.arch, 9, seeded(0), pick("cpu")) for name, one in made.items()}
        assert type(models["with two modules"]) is type(models["official HRM"]) is HRM and type(models["ours"]) is TRM
        assert made.pop("without float32 Newton-Schulz") == made.pop("ours")
        if not hasattr(base.arch, "latents"):  # which only a TRM has
            assert made["with two modules"] == base
        assert len({one.model_dump_json() for one in made.values()}) == len(made)
        official = made["official HRM"]
        assert (official.arch.gradient, official.arch.halting, official.optim.lr) == ("one_step", "q", 1e-4)
        assert made["official TRM, ten times the rate"].arch.model == "trm"


def test_speedrun_says_when_a_recipe_arrives(program, tmp_path):
    speedrun, name = program("speedrun"), "held_out.exact_accuracy"
    rows = [{"step": 5, "loss": 1.0}, {"step": 10, name: 0.2}, {"step": 20, name: 0.9}, {"step": 30, name: 0.8}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert speedrun.arrival(tmp_path / "log.jsonl", 0.9) == (20, [(10, 0.2), (20, 0.9), (30, 0.8)])
    assert speedrun.arrival(tmp_path / "log.jsonl", 0.95)[0] is None
    ours = {"arrived": 20, "minutes_until": 2.0, "minutes": 3.0}
    never, late = {"arrived": None, "minutes": 50.0}, {"arrived": 9, "minutes_until": 30.0, "minutes": 50.0}
    found = lambda *official: speedrun.figures(
        {"easy9": {"rows": {"ours": ours} | {f"official HRM {i}": row for i, row in enumerate(official)}}}
    )["sudoku.speedrun.ratio"]
    assert (found(never)["value"], found(never, late)["value"]) == (25.0, 15.0)
    assert "at least" in found(never)["unit"] and "at least" not in found(never, late)["unit"]


def test_precision_says_what_is_missing(program, tmp_path, monkeypatch):
    precision = program("precision")
    monkeypatch.setattr(precision, "data_path", lambda name, profile: tmp_path / name)
    (tmp_path / "text_data").mkdir()
    with pytest.raises(SystemExit, match="dvc repro sudoku_data@laptop dialogue_data@laptop$"):
        precision.main(seeds=1, share=1.0, jobs=1, out=str(tmp_path / "out.json"))


def test_killed_lines_leave_what_an_unbroken_run_leaves(program, tmp_path):
    kills = program("kills")
    project = copy_project(tmp_path / "fresh")
    for name, old, new in [
        ("params.yaml", "^run: .*", "run: [smoke]"),
        ("dvc.lock", r"^  \w+@laptop:\n(    .*\n)+", ""),
    ]:
        text = re.sub(old, new, (project / name).read_text(), flags=re.MULTILINE)
        (project / name).write_text(text)
    commit(project, "Without the laptop's stages DVC takes half the time")
    campaign = kills.Campaign(tmp_path, project)
    text = (*kills.HRM, "text", "train", "benchmarks/README.md", "--model", "data/smoke/text/model", *kills.SMOKE)
    cases = [
        kills.Case("training", "text", text),
        *(kills.Case(name, "code", (*kills.DVC, "code")) for name in ("data", "dvc")),
    ]
    rows = [campaign.sequence(case, random.Random(seed), most=1) for case, seed in zip(cases, (10, 117, 5))]
    assert [row["sound"] and row["forgotten"] == [] for row in rows] == [True] * 3, rows
    drawn = [kill for row in rows for kill in row["kills"]]
    assert {kill["signal"] for kill in drawn} == {"SIGTERM", "SIGINT", "SIGKILL"} and any(kill["hit"] for kill in drawn)


def test_kills_compares_outputs_and_dvc_lock(program, tmp_path):
    kills = program("kills")
    (tmp_path / "data/smoke/a/.b.1.2.tmp").mkdir(parents=True)
    for name in (
        "data/smoke/a/weights",
        "data/resume/run",
        "data/resume/ended/finished.json",
        "reports/smoke/a/timings.json",
        "kernel-ipc-1",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    entry = "    - path: {}\n      hash: md5\n      md5: {}\n      size: 1\n"
    lock = f"stages:\n  a@smoke:\n    outs:\n{entry.format('a', '{}')}{entry.format('timings.json', '{}')}  b:\n    cmd: b\n"
    (tmp_path / "dvc.lock").write_text(lock.format(1, 1))
    before = kills.results(tmp_path)
    assert set(before) == {"data/smoke/a/weights", "dvc.lock a@smoke", "dvc.lock b"}
    (tmp_path / "dvc.lock").write_text(lock.format(1, 2))
    assert kills.results(tmp_path) == before
    (tmp_path / "dvc.lock").write_text(lock.format(2, 2))
    (tmp_path / "data/smoke/a/weights").write_text("other")
    found = kills.results(tmp_path)
    assert {name for name in before if before[name] != found[name]} == {"data/smoke/a/weights", "dvc.lock a@smoke"}
    (tmp_path / "dvc.lock").write_text(lock[:60])
    assert kills.locked(tmp_path) == {"a@smoke": []}
    assert kills.leftovers(tmp_path) == ["data/resume/run", "data/smoke/a/.b.1.2.tmp", "kernel-ipc-1"]


def test_kills_ends_orphans_and_names_them(program, tmp_path, monkeypatch):
    kills = program("kills")
    monkeypatch.setattr(kills, "GRACE", 0.5)
    inner = "import time; time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}]); import time; time.sleep(60)"
    process = kills.again(tmp_path, (sys.executable, "-c", outer))
    (tmp_path / "dvc.lock").touch()
    kill = {"signal": "SIGKILL", "to": "process", "after": "start", "seconds": 1.0}
    assert kills.strike(process, kill, tmp_path / "dvc.lock")
    assert kills.settle(process, tmp_path) == [f"-c {inner}"] and not kills.working(tmp_path)


def test_commands_are_timed_in_a_fresh_clone(tmp_path):
    "In the order of a user, from what is committed, without this environment's Python; a failure tells why and keeps what was measured."
    project = tmp_path / "project"
    project.mkdir()
    says = '\t@echo $@ >> order; test -z "$$VIRTUAL_ENV$$HRM_ROOT"; test ! -e uncommitted\n'
    targets = (
        "".join(f"{one}:\n{says}" for one in (".venv/.ready", "try", "smoke")) + "repro:\n\t@echo it broke; exit 3\n"
    )
    (project / "Makefile").write_text(f".PHONY: .venv/.ready try smoke repro\n{targets}")
    shell("git", "init", "-q", "-b", "main", ".", cwd=project)
    commit(project, "A project")
    (project / "uncommitted").touch()
    out, clone = tmp_path / "commands.json", tmp_path / "clone"
    line = (sys.executable, FOLDER / "commands.py", "--repro", "--project", project, "--keep", clone, "--out", out)
    done = shell(*line, cwd=ROOT, ok=False, VIRTUAL_ENV="elsewhere")
    assert done.returncode == 1 and "it broke\n" in done.stderr and "make repro: exit code" in done.stderr, done.stderr
    assert (clone / "order").read_text().split() == [".venv/.ready", "try", "smoke", "smoke"]
    found = json.loads(out.read_text())
    assert set(found["commands"]) == {"setup", "try", "smoke", "smoke_again"}
    assert {name: row["unit"] for name, row in found["figures"].items()} == {
        "commands.setup": "seconds",
        "commands.try": "seconds",
        "commands.smoke": "minutes",
        "commands.smoke_again": "seconds",
        "commands.gemm": "GFLOP/s",
    }
    assert found["figures"]["commands.smoke"]["value"] == pytest.approx(found["commands"]["smoke"]["seconds"] / 60)
    refused = shell(*line, cwd=ROOT, ok=False)
    assert refused.returncode == 2 and "not empty" in re.sub(r"[\s│]+", " ", refused.stderr)
