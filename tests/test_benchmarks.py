"""The plain rendering that the throughput benchmark compares with is the same mathematics; every program tells how it is used."""

import importlib
import json
import random
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from copies import commit, copy_project

from hrm.core.device import pick
from hrm.core.hrm import ArchConfig

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
    "kills",
)


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.mark.parametrize("cycles", [(1, 1), (2, 2), (1, 3)])
def test_plain_rendering_equals_ours(program, cycles):
    arch = ArchConfig(
        hidden_size=32,
        num_heads=4,
        H_layers=2,
        L_layers=1,
        H_cycles=cycles[0],
        L_cycles=cycles[1],
        expansion=4,
        pos_encodings="rope",
        halt_max_steps=3,
        puzzle_emb_ndim=48,
    )
    found = program("throughput").check(arch, 4, pick("cpu"), tolerance=2e-5)
    assert set(found) == {"training", "inference"}


def test_check_notices_a_difference(program, monkeypatch):
    throughput, plain = program("throughput"), program("plain")
    arch = ArchConfig(
        hidden_size=32,
        num_heads=4,
        H_layers=1,
        L_layers=1,
        H_cycles=1,
        L_cycles=1,
        expansion=4,
        pos_encodings="rope",
        halt_max_steps=3,
        puzzle_emb_ndim=48,
    )
    monkeypatch.setattr(plain, "EPS", 1e-2)
    with pytest.raises(AssertionError, match="plain and ours differ"):
        throughput.check(arch, 4, pick("cpu"))


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
        program("exchange").main(checkpoint=tmp_path, segments=None, seed=0, out=str(tmp_path / "exchange.json"))
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
