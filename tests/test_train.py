"""Training: it can be broken at any moment, shared by two processes, and counted; its curve does not move.

`HRM_WRITE_GOLDEN=1 pytest tests/test_train.py -k golden` writes the stored curve again.
"""

import copy
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from hrm.core import checkpoint, files, flops, train
from hrm.core.config import ConfigError, load_params, merged, section
from hrm.core.device import compiler, seeded
from hrm.core.flops import count_flops
from hrm.core.hrm import HRM, HRMConfig
from hrm.core.layers import agreement, inner_width
from hrm.core.optim import OptimConfig
from hrm.core.parallel import share
from hrm.core.resume import RECORD, Stopped
from hrm.core.task import LoopConfig, Options, Task
from hrm.core.train import fit
from hrm.sudoku.data import DataConfig
from hrm.sudoku.train import RunConfig, SudokuTask, TrainConfig, run

ROOT = Path(__file__).resolve().parents[1]


def changed(base: dict, **changes) -> dict:
    "A nested dictionary with some values changed; `loop__steps=3` reaches into `loop`."
    new = copy.deepcopy(base)
    for name, value in changes.items():
        inner, _, key = name.rpartition("__")
        (new[inner] if inner else new)[key] = value
    return new


def config(**changes) -> RunConfig:
    return RunConfig.model_validate_json(json.dumps(changed(tiny.RUN, **changes)))


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# --- broken and resumed ---------------------------------------------------------------------------------------------------------------


def start(root: Path, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*tiny.CLI, "train", "--profile", "tiny", *words],
        env=tiny.environment(root),
        cwd=root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_steps(process: subprocess.Popen, root: Path, before: set[int]) -> None:
    "Until the loop of this process has written a row of its own: a new log file, and then a longer one."
    seen = None
    while process.poll() is None:
        for file in root.glob("data/resume/*/log.jsonl"):
            try:
                now = file.stat()
            except FileNotFoundError:
                continue
            if now.st_ino in before:
                continue
            if seen is not None and now.st_size > seen:
                return
            seen = now.st_size if seen is None else seen
        time.sleep(0.002)


def state_step(root: Path) -> int:
    "The step of the saved state; 0 where there is none."
    found = [checkpoint.find(folder / "latest") for folder in root.glob("data/resume/[!.]*")]
    return max([json.loads((path / "meta.json").read_text())["step"] for path in found if path], default=0)


def test_killed_at_random_moments_it_ends_in_the_same_bits(tmp_path):
    one = changed(tiny.RUN, optim__name="muon", loop__accumulate=2)
    whole, broken = (tiny.project(tmp_path / name, one=one) for name in ("whole", "broken"))
    unbroken = start(whole)
    draw, hits, steps = random.Random(0), [], [0]
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL, None):
        before = {file.stat().st_ino for file in broken.glob("data/resume/*/log.jsonl")}
        process = start(broken)
        if number is not None:
            wait_for_steps(process, broken, before)
            time.sleep(draw.uniform(0, 0.15))
            if process.poll() is None:
                process.send_signal(number)
                hits.append(number)
        out, err = process.communicate(timeout=240)
        if process.returncode == 0:
            break
        steps.append(state_step(broken))
        assert number is not None, f"it failed by itself: {err}"
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL, err
        else:  # polite: the state is that of the last step
            assert process.returncode == 130, err
            assert (
                f"hrm: one: stopped at step {steps[-1]}; the same command goes on from there" in err
                and "Traceback" not in err
            )
    first, err = unbroken.communicate(timeout=240)
    assert unbroken.returncode == 0 and process.returncode == 0, err
    assert len(hits) >= 3 and signal.SIGKILL in hits and signal.SIGTERM in hits, f"too few of the signals hit: {hits}"
    assert steps == sorted(steps) and steps[-1] > 0, f"no progress: {steps}"
    ours, theirs = (tiny.files(folder / "data" / "tiny" / "sudoku" / "train" / "one") for folder in (broken, whole))
    assert (
        set(ours)
        == set(theirs)
        == {
            "log.jsonl",
            *(
                f"{name}/{file}"
                for file in ("meta.json", "model.safetensors")
                for name in ("best", "final", "step_000080", "step_000160")
            ),
        }
    )
    assert [name for name in ours if ours[name] != theirs[name]] == []
    told = [re.sub(r"[\d.]+ s of training|/\S*/data", "", text) for text in (out, first)]
    assert told[0] == told[1] and "held out" in told[0]
    assert not tiny.unfinished(broken / "data" / "resume") and not list(broken.glob("data/resume/*/latest")), (
        "a state is still there"
    )


def stop_at(step: int):
    "Something to watch a run with: asks politely for its end."
    return lambda now, row: os.kill(os.getpid(), signal.SIGTERM) if now == step else None


def trained(folder: Path, one: RunConfig, name: str = "one", watch=None, **options):
    "A run in this process."
    data = folder / "toy"
    if not data.exists():
        tiny.data_set(data)
    return run(
        "one",
        one,
        0,
        data,
        folder / name,
        Options(folder / "resume", progress=False, watch=watch and (lambda name: watch), **options),
    )


@pytest.fixture
def worked(monkeypatch) -> list:
    "One entry for every piece of work that is done on puzzles; the count of FLOPs at the start of a run is one too."
    calls, original = [], SudokuTask.loss
    monkeypatch.setattr(SudokuTask, "loss", lambda task, model: (calls.append(1), original(task, model))[1])
    return calls


def test_changed_parameters_do_not_resume(tmp_path, worked):
    short = dict(loop__steps=30, loop__evaluate_every=10, loop__keep_every=0, loop__checkpoint_seconds=1e6)
    one, other = config(**short), config(**short, optim__lr=1e-3)
    with pytest.raises(Stopped, match="step 15"):
        trained(tmp_path, one, watch=stop_at(15))
    assert not (tmp_path / "one").exists()
    (folder,) = (tmp_path / "resume").iterdir()
    worked.clear()
    result = trained(tmp_path, other, "other")
    assert len(worked) == 1 + 30 and result.metrics["steps"] == 30
    assert tiny.unfinished(tmp_path / "resume") == [folder.name], "the stopped run is not the other's business"
    worked.clear()
    seen = []
    trained(tmp_path, one, watch=lambda step, row: seen.append(step) if "loss" in row else None)
    assert len(worked) == 1 + 15 and not tiny.unfinished(tmp_path / "resume")
    assert seen == [5, 10, 15, 20, 25, 30], "who watches sees the whole curve, the part before the stop as well"
    shutil.rmtree(tmp_path / "resume")
    trained(tmp_path, one, "whole")
    assert tiny.files(tmp_path / "one") == tiny.files(tmp_path / "whole")
    assert (
        tiny.files(tmp_path / "one")["final/model.safetensors"]
        != tiny.files(tmp_path / "other")["final/model.safetensors"]
    )


def test_seconds_between_states_do_not_make_another_run(tmp_path, worked):
    short = dict(loop__steps=10, loop__evaluate_every=10, loop__keep_every=0)
    with pytest.raises(Stopped):
        trained(tmp_path, config(**short, loop__checkpoint_seconds=0.0), watch=stop_at(5))
    worked.clear()
    trained(tmp_path, config(**short, loop__checkpoint_seconds=60.0))
    assert len(worked) == 1 + 5


def test_stopped_in_its_last_step_and_kept(tmp_path, worked):
    one = config(loop__steps=10, loop__evaluate_every=10, loop__keep_every=0, loop__checkpoint_seconds=1e6)
    with pytest.raises(Stopped, match="step 10"):
        trained(tmp_path, one, watch=stop_at(10))
    worked.clear()
    first = trained(tmp_path, one, keep=True)
    assert len(worked) == 1 and first.metrics["held_out"]["token_accuracy"] >= 0
    before = tiny.files(tmp_path / "one")
    shutil.rmtree(tmp_path / "one")  # as DVC does before it starts a stage again
    again = trained(tmp_path, one, keep=True)
    assert len(worked) == 1 and again.metrics == first.metrics and tiny.files(tmp_path / "one") == before
    again.forget()
    assert not list((tmp_path / "resume").iterdir())


def stopped(tmp_path: Path, **changes) -> tuple[RunConfig, Path]:
    "A run that was stopped at step 5 of 10, and its folder."
    one = config(loop__steps=10, loop__evaluate_every=5, loop__keep_every=5, **changes)
    with pytest.raises(Stopped):
        trained(tmp_path, one, watch=stop_at(5))
    (folder,) = (tmp_path / "resume").iterdir()
    return one, folder


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "meta"])
def test_damaged_state_is_named(tmp_path, worked, damage):
    one, folder = stopped(tmp_path)
    state, meta = folder / "latest" / "state.pt", folder / "latest" / "meta.json"
    raw = bytearray(state.read_bytes())
    raw[len(raw) // 2] ^= 1
    if damage == "gone":
        state.unlink()
    else:
        (meta if damage == "meta" else state).write_bytes({"flipped": raw, "cut": raw[:500], "meta": b"{"}[damage])
    before = tiny.files(tmp_path)
    says = {
        "flipped": "state.pt: damaged",
        "cut": "state.pt: damaged",
        "gone": "no state.pt",
        "meta": "meta.json: not JSON",
    }[damage]
    with pytest.raises(checkpoint.CheckpointError, match=f"{says}.*; remove {folder} to train from the start"):
        trained(tmp_path, one)
    assert tiny.files(tmp_path) == before
    shutil.rmtree(folder)
    assert trained(tmp_path, one).metrics["steps"] == 10


EMPTIED = {
    "groups": lambda state: state | {"groups": []},
    "no groups": lambda state: {name: value for name, value in state.items() if name != "groups"},
    "optimizers": lambda state: state | {"groups": [state["groups"][0] | {"optimizers": []}]},
    "moments": lambda state: (
        state
        | {
            "groups": [
                state["groups"][0]
                | {"optimizers": [optimizer | {"state": {}} for optimizer in state["groups"][0]["optimizers"]]}
            ]
        }
    ),
    "average": lambda state: state | {"groups": [state["groups"][0] | {"average": {}}]},
    "carry": lambda state: state | {"task": state["task"] | {"carry": None}},
    "model": lambda state: state | {"model": {}},
    "torch": lambda state: state | {"torch": None},
}


@pytest.mark.parametrize("part", EMPTIED)
def test_a_state_with_a_part_emptied_is_refused(tmp_path, part):
    one, folder = stopped(tmp_path)
    found = checkpoint.read(folder / "latest")
    checkpoint.write(folder / "latest", {}, found.meta, EMPTIED[part](found.state()))  # with the right SHA-256
    with pytest.raises(checkpoint.CheckpointError, match=f"training state: .*; remove {folder}"):
        trained(tmp_path, one)


@pytest.mark.parametrize("missing", ["best", "step_000005", "log.jsonl"])
def test_a_run_with_something_missing_begins_again(tmp_path, missing, capsys):
    one, folder = stopped(tmp_path)
    path = folder / missing
    path.unlink() if path.is_file() else shutil.rmtree(path)
    trained(tmp_path, one)
    assert (
        f"{missing} missing; set aside as {folder.name}-incomplete, and the run begins again" in capsys.readouterr().err
    )
    assert tiny.unfinished(tmp_path / "resume") == [f"{folder.name}-incomplete"]
    shutil.rmtree(folder)
    trained(tmp_path, one, "whole")
    assert tiny.files(tmp_path / "one") == tiny.files(tmp_path / "whole")


# --- what is there stays there --------------------------------------------------------------------------------------------------------

SHORT = dict(loop__steps=10, loop__evaluate_every=10, loop__keep_every=0, loop__checkpoint_seconds=1e6)


def test_only_a_finished_run_of_the_same_name_is_replaced(tmp_path, worked):
    one, out = config(**SHORT), tmp_path / "one"
    trained(tmp_path, one)
    first = tiny.files(out)
    trained(tmp_path, config(**SHORT, optim__lr=1e-3))
    assert set(tiny.files(out)) == set(first) and tiny.files(out) != first
    (out / "best" / ".DS_Store").write_bytes(b"")
    trained(tmp_path, one)
    for name, says in (
        ("notes.txt", "notes.txt"),
        ("best/notes.txt", "best"),
        ("mine/meta.json", "mine"),
        ("step_12/meta.json", "step_12"),
    ):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text('{"name": "other"}')
        before, count = tiny.files(tmp_path), len(worked)
        with pytest.raises(
            ConfigError,
            match=f"one: found {says}, which is not ours to replace.*; allowed: a new or empty folder, or a finished run 'one'",
        ):
            trained(tmp_path, one)
        assert tiny.files(tmp_path) == before and len(worked) == count
        (out / name).unlink()
        if (out / name).parent not in (out, out / "best"):
            (out / name).parent.rmdir()
    meta = json.loads((out / "final" / "meta.json").read_text())
    (out / "final" / "meta.json").write_text(json.dumps(meta | {"name": "two"}))
    with pytest.raises(ConfigError, match="found final"):
        trained(tmp_path, one)


def test_what_is_no_folder_is_left_alone(tmp_path, worked):
    one, out = config(**SHORT), tmp_path / "one"
    out.write_text("a file of mine")
    with pytest.raises(ConfigError, match="one: found a file; allowed: a new or empty folder"):
        trained(tmp_path, one)
    assert out.read_text() == "a file of mine"
    out.unlink()
    (tmp_path / "elsewhere").mkdir()
    out.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="one: found a link"):
        trained(tmp_path, one)
    assert worked == [] and not list((tmp_path / "elsewhere").iterdir())


def test_what_came_while_it_trained_stays_and_so_does_the_run(tmp_path, worked):
    one, mine = config(**SHORT), tmp_path / "one" / "thesis.txt"

    def write(step, row):
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("years of work")

    with pytest.raises(ConfigError, match="found thesis.txt"):
        trained(tmp_path, one, watch=write)
    assert mine.read_text() == "years of work" and [path.name for path in mine.parent.iterdir()] == ["thesis.txt"]
    mine.unlink()
    worked.clear()
    trained(tmp_path, one)
    assert worked == [], "the finished run was still there"


def test_neighbours_are_not_ours_either(tmp_path, worked):
    one, out = config(**SHORT), tmp_path / "one"
    trained(tmp_path, one)
    worked.clear()
    for name in (".one.old", ".one.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"\.one\.old: found thesis.txt, which is not ours to replace"):
        trained(tmp_path, one)
    assert worked == []
    shutil.rmtree(tmp_path / ".one.old")
    trained(tmp_path, one)
    assert (tmp_path / ".one.new" / "thesis.txt").read_text() == "years of work" and (out / "final").is_dir()


def test_a_link_under_a_temporary_name_leads_nowhere(tmp_path):
    precious = tmp_path / "elsewhere" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("keep me")
    one, folder = stopped(tmp_path)
    (folder / ".latest.new").symlink_to(precious)
    (folder / f".latest.{'0' * 16}.new").symlink_to(precious.parent)
    trained(tmp_path, one)
    assert precious.read_text() == "keep me"


def test_a_failed_write_leaves_no_folder_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_sync", failing(1, files._sync))
    with pytest.raises(OSError, match="no space"):
        checkpoint.write(tmp_path / "best", {"w": torch.ones(1)}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["best/model.safetensors", "final/model.safetensors", "step_000005/model.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_checkpoint_that_was_damaged_before_the_end_is_not_published(tmp_path, file, damage):
    one = config(loop__steps=10, loop__evaluate_every=5, loop__keep_every=5)
    with pytest.raises(Stopped):
        trained(tmp_path, one, watch=stop_at(10))
    (folder,) = (tmp_path / "resume").iterdir()
    raw = bytearray((folder / file).read_bytes())
    raw[-1] ^= 1
    (folder / file).unlink()  # another may have a second name for it
    if damage != "gone":
        (folder / file).write_bytes(raw if damage == "flipped" else raw[:3])
    with pytest.raises(
        checkpoint.CheckpointError, match=f"model.safetensors.*; remove {folder} to train from the start"
    ):
        trained(tmp_path, one)
    assert not (tmp_path / "one").exists()


def test_a_log_without_its_held_out_rows_is_noticed(tmp_path, capsys):
    one, folder = stopped(tmp_path)
    rows = [line for line in (folder / "log.jsonl").read_text().splitlines(keepends=True) if "held_out." not in line]
    (folder / "log.jsonl").write_text("".join(rows))
    trained(tmp_path, one)
    assert "log.jsonl missing; set aside" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "resume")
    trained(tmp_path, one, "whole")
    assert tiny.files(tmp_path / "one") == tiny.files(tmp_path / "whole")


def test_two_runs_cannot_have_one_place(tmp_path):
    holder = "import sys, time; from hrm.core.files import Lock; Lock.take(sys.argv[1]); print('mine', flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", holder, tmp_path / "one"], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "mine\n"
    try:
        with pytest.raises(ConfigError, match=f"{tmp_path / 'one'}: is being trained by process {first.pid} on "):
            trained(tmp_path, config(**SHORT))
    finally:
        first.kill()
        first.wait(10)
    trained(tmp_path, config(**SHORT))
    assert not list(tmp_path.glob(".one*"))


def test_a_child_has_not_the_lock_of_its_parent(tmp_path):
    with files.Lock.take(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            try:
                files.Lock.take(tmp_path / "run")
            except ConfigError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_lock_that_somebody_removed_is_not_the_next_ones(tmp_path):
    taker = "import sys, time; from hrm.core.files import Lock; Lock.take(sys.argv[1]); print('mine', flush=True); time.sleep(60)"
    lock = files.Lock.take(tmp_path / "run")
    lock.file.unlink()  # by hand
    second = subprocess.Popen([sys.executable, "-c", taker, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert second.stdout.readline() == "mine\n"
    lock.free()
    with pytest.raises(ConfigError, match=f"process {second.pid} "):
        files.Lock.take(tmp_path / "run")
    second.kill()
    second.wait(10)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "run").mkdir()
    with files.Lock.take(tmp_path / "link"):
        assert [path.name for path in tmp_path.glob(".*")] == [".run.lock"], "one lock, by whatever link"


def test_one_process_at_a_time(tmp_path):
    root, words = tiny.project(tmp_path / "p", one=tiny.RUN), ("--run", "one")
    first = start(root, *words)
    wait_for_steps(first, root, set())
    first.send_signal(signal.SIGSTOP)  # it is still there, and does not end before the second one has looked
    (lock,) = root.glob("data/resume/.*.lock")
    before = tiny.files(root)
    second = start(root, *words)
    out, err = second.communicate(timeout=120)
    folder = root / "data" / "resume" / lock.name.removeprefix(".").removesuffix(".lock")
    assert (
        second.returncode == 2
        and f"hrm: {folder}: is being trained by process {first.pid} on " in err
        and len(err.splitlines()) == 1
    )
    assert tiny.files(root) == before
    first.kill()
    first.wait(10)
    third = start(root, *words)  # the lock has died with its process
    assert third.wait(240) == 0, third.communicate()
    assert not tiny.unfinished(root / "data" / "resume")
    whole = start(tiny.project(tmp_path / "whole", one=tiny.RUN), *words)
    assert whole.wait(240) == 0
    ours, theirs = (
        tiny.files(tmp_path / name / "data" / "tiny" / "sudoku" / "train" / "one") for name in ("p", "whole")
    )
    assert ours == theirs


class Slow(SudokuTask):
    "Its evaluation takes a minute, and is soon disturbed."

    def evaluate(self):
        for after in (0.5, 0.6, 1.5):  # the second one only echoes
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
        for _ in range(600):
            time.sleep(0.1)
        return super().evaluate()


Slow.__module__ = SudokuTask.__module__  # its code does not count: the run is the same


def test_a_second_signal_ends_an_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr("hrm.sudoku.train.SudokuTask", Slow)
    one = config(loop__steps=10, loop__evaluate_every=5, loop__keep_every=0, loop__checkpoint_seconds=0)
    began = time.monotonic()
    with pytest.raises(Stopped, match="stopped at once; the same command goes on from the last saved state"):
        trained(tmp_path, one)
    assert 1.4 < time.monotonic() - began < 30
    monkeypatch.undo()
    trained(tmp_path, one)
    shutil.rmtree(tmp_path / "resume")
    trained(tmp_path, one, "whole")
    assert tiny.files(tmp_path / "one") == tiny.files(tmp_path / "whole")


# --- what has ended is not trained again ------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_trained_again(tmp_path, worked, capsys):
    one, seen = config(loop__steps=10, loop__evaluate_every=5, loop__keep_every=5), []
    first = trained(tmp_path, one)
    before = tiny.files(tmp_path / "one")
    shutil.rmtree(tmp_path / "one")  # as DVC does before it runs a stage again
    worked.clear()
    capsys.readouterr()
    again = trained(tmp_path, one, watch=lambda step, row: seen.append(step) if "loss" in row else None)
    assert worked == [] and tiny.files(tmp_path / "one") == before and seen == [5, 10]
    assert (again.metrics, again.timings, again.more) == (first.metrics, first.timings, first.more)
    told = capsys.readouterr()
    assert told.out == "" and told.err == "one: has ended before; its checkpoints are taken, and nothing is trained\n"
    tensors = [folder / "final" / "model.safetensors" for folder in (first.state, first.folder)]
    assert tensors[0].samefile(tensors[1]), "the tensors have a second name, and take no space of their own"
    assert {path.name for path in first.state.iterdir()} == {*(Path(name).parts[0] for name in before), RECORD}


def test_a_finished_run_ends_in_its_place_whatever_was_cut_off(tmp_path, worked, monkeypatch):
    "Killed after the record was written: in the copy to its place, and when what is not needed goes."
    one = config(**SHORT)
    for name in ("publish", "tidy"):
        with monkeypatch.context() as patch:
            patch.setattr(train, name, lambda *_: (_ for _ in ()).throw(OSError("the power failed")))
            with pytest.raises(OSError, match="power"):
                trained(tmp_path, one)
        worked.clear()
        trained(tmp_path, one)
        assert worked == [] and (tmp_path / "one" / "final").is_dir() and not list(tmp_path.glob("resume/*/latest"))
        shutil.rmtree(tmp_path / "resume")
        shutil.rmtree(tmp_path / "one")


@pytest.mark.parametrize("damage", ["tensors", "meta", "log", "gone", "record"])
def test_a_damaged_finished_run_is_trained_again(tmp_path, worked, capsys, damage):
    one = config(**SHORT)
    first = trained(tmp_path, one)
    before = tiny.files(tmp_path / "one")
    shutil.rmtree(tmp_path / "one")
    file = (
        first.state
        / {
            "tensors": "best/model.safetensors",
            "meta": "final/meta.json",
            "log": "log.jsonl",
            "gone": "final/model.safetensors",
            "record": RECORD,
        }[damage]
    )
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.unlink()
    if damage != "gone":
        file.write_bytes(raw[:40] if damage == "record" else raw)
    worked.clear()
    again = trained(tmp_path, one)
    assert len(worked) == 1 + 10 and tiny.files(tmp_path / "one") == before and again.metrics == first.metrics
    name = file.relative_to(first.state).as_posix()
    assert f"{name} missing or damaged; set aside as {first.state.name}-incomplete" in capsys.readouterr().err
    assert tiny.unfinished(tmp_path / "resume") == [f"{first.state.name}-incomplete"]


def test_one_finished_run_for_each_place(tmp_path, worked):
    runs = [config(**SHORT, optim__lr=lr) for lr in (1e-3, 2e-3, 3e-3)]
    results = [trained(tmp_path, one, name) for one, name in zip(runs, ("one", "two", "one"))]
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == sorted(
        result.state.name for result in results[1:]
    )
    worked.clear()
    trained(tmp_path, runs[1], "two")
    assert worked == []
    holder = "import sys, time; from hrm.core.files import Lock; Lock.take(sys.argv[1]); print('mine', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", holder, results[2].state], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "mine\n"
    trained(tmp_path, runs[0], "one")
    assert results[2].state.is_dir(), "somebody is at work there"
    other.kill()
    other.wait(10)


def test_a_kept_state_can_be_gone_on_from_and_one_that_is_not_there_is_made(tmp_path, worked):
    loop = LoopConfig(steps=12, evaluate_every=4, log_every=1, best="error", best_mode="min", compile="off")
    first = fit(Fit(), loop, tmp_path / "a", tmp_path / "resume", "a", {}, progress=False)
    assert not (first.state / "latest").exists()
    kept = fit(Fit(), loop, tmp_path / "a", tmp_path / "resume", "a", {}, progress=False, keep=True)
    assert (kept.state / "latest").is_dir() and kept.metrics == first.metrics, (
        "trained again, since its state was needed"
    )
    more = loop.model_copy(update={"steps": 2 * loop.steps})
    second = fit(Fit(), more, tmp_path / "b", tmp_path / "resume", "b", {}, progress=False, begin=kept.state)
    assert second.metrics["steps"] == more.steps
    shutil.rmtree(kept.state / "latest")  # a finished run does not ask for it any more
    again = fit(Fit(), more, tmp_path / "b", tmp_path / "resume", "b", {}, progress=False, begin=kept.state)
    assert again.metrics == second.metrics


def test_a_docstring_leaves_a_run_what_it_is_and_a_constant_does_not(tmp_path):
    "In a copy of the package."
    root = tiny.project(
        tmp_path / "p", one=changed(tiny.RUN, loop__steps=10, loop__evaluate_every=10, loop__keep_every=0)
    )
    shutil.copytree(ROOT / "hrm", root / "hrm", ignore=shutil.ignore_patterns("__pycache__"))

    def run_once() -> str:
        words = [*tiny.CLI, "train", "--profile", "tiny", "--run", "one"]
        done = subprocess.run(
            words,
            env=tiny.environment(root) | {"PYTHONPATH": str(root)},
            cwd=root,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def edit(name: str, old: str, new: str) -> None:
        file = root / "hrm" / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))

    assert "nothing is trained" not in run_once()
    edit("core/layers.py", '    "', '    "In other words. ')
    assert "nothing is trained" in run_once()
    edit("core/layers.py", "\nclass CastedLinear", "\nCONSTANT = 3\n\n\nclass CastedLinear")
    assert "nothing is trained" not in run_once()


# --- two processes ----------------------------------------------------------------------------------------------------------------------


def test_two_processes_give_the_loss_of_one(tmp_path):
    short = dict(
        loop__steps=12,
        loop__evaluate_every=4,
        loop__log_every=1,
        loop__keep_every=0,
        loop__best="exact_accuracy",
        arch__halt_exploration_prob=0.5,
    )
    root, one = tiny.project(tmp_path / "project", one=changed(tiny.RUN, **short)), config(**short)
    data = root / "data" / "tiny" / "sudoku" / "data" / "toy"
    run("one", one, 0, data, root / "alone", Options(root / "other_resume", progress=False))
    with pytest.raises(Stopped):
        run(
            "one", one, 0, data, root / "never", Options(root / "resume", progress=False, watch=lambda name: stop_at(5))
        )
    for out, resume in (
        ("pair", "data/resume"),
        ("joined", "resume"),
    ):  # from the start, and from the fifth step of one process
        line = (
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "hrm.tools.cli",
            "train",
            "--profile",
            "tiny",
            "--out",
            out,
            "--resume",
            resume,
        )
        done = subprocess.run(line, env=tiny.environment(root), cwd=root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("one: 12 steps") == 1, "both processes speak"
        ours, alone = log(root / out / "one"), log(root / "alone")
        assert [row["step"] for row in ours] == [row["step"] for row in alone]
        for row, reference in zip(ours, alone):
            assert row.keys() == reference.keys()
            for name, value in reference.items():
                expected = value if value is None else pytest.approx(value, rel=1e-5, abs=1e-7)
                assert row[name] == expected, f"{out}, step {row['step']}: {name}"
        weights, references = (
            load_file(folder / "final" / "model.safetensors") for folder in (root / out / "one", root / "alone")
        )
        assert references["inner.puzzle_emb.weights"].abs().max() > 0.01
        for name, tensor in references.items():
            torch.testing.assert_close(
                weights[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text: f"{out}: {name}: {text}"
            )
    done = subprocess.run(
        [*line[:-4], "--out", "again", "--resume", "resume"],
        env=tiny.environment(root),
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stderr.count("and nothing is trained") == 1, done.stderr
    assert tiny.files(root / "again") == tiny.files(root / "joined")
    joined = [row for row in log(root / "joined" / "one") if row["step"] <= 5]
    assert joined == [row for row in log(root / "alone") if row["step"] <= 5], (
        "the rows of one process are kept as they were"
    )


def test_a_batch_that_cannot_be_shared():
    assert [share(6, rank, 2) for rank in (0, 1)] == [slice(0, 3), slice(3, 6)]
    with pytest.raises(ValueError, match="batch of 7 rows cannot be shared evenly by 2"):
        share(7, 0, 2)


# --- the curve that does not move -------------------------------------------------------------------------------------------------------

GOLDEN = ROOT / "tests" / "golden" / "sudoku.txt"
COLUMNS = ("loss", "lm_loss", "q_halt_loss", "q_continue_loss", "accuracy", "segment_1.lm_loss", "segment_3.lm_loss")


def test_golden_curve(tmp_path):
    tiny.data_set(tmp_path / "toy", size=9, blanks=30)
    one = config(
        arch__hidden_size=64,
        arch__num_heads=4,
        arch__H_cycles=2,
        arch__L_cycles=2,
        arch__puzzle_emb_ndim=64,
        batch_size=8,
        loop__steps=20,
        loop__evaluate_every=20,
        loop__log_every=1,
        loop__keep_every=0,
    )
    trained(tmp_path, one)
    rows = [row for row in log(tmp_path / "one") if "loss" in row]
    if os.environ.get("HRM_WRITE_GOLDEN"):
        lines = [" ".join(("step", *COLUMNS))]
        lines += [
            " ".join([str(row["step"]), *("-" if row[name] is None else f"{row[name]:.8g}" for name in COLUMNS)])
            for row in rows
        ]
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text("\n".join(lines) + "\n")
    head, *stored = [line.split() for line in GOLDEN.read_text().splitlines()]
    assert tuple(head) == ("step", *COLUMNS) and len(stored) == len(rows) == 20
    for row, (step, *values) in zip(rows, stored):
        assert row["step"] == int(step)
        for name, value in zip(COLUMNS, values):
            expected = None if value == "-" else pytest.approx(float(value), rel=1e-4)
            assert row[name] == expected, f"step {step}: {name}"


# --- the loop on a plain task -----------------------------------------------------------------------------------------------------------


class Fit(Task):
    "Two linear maps in a row on fixed data, taken in pieces of `rows`."

    def __init__(self, rows: int = 8, first: dict | None = None, second: dict | None = None):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        optimizer = dict(name="adamw", lr=0.05)
        self.groups = [
            (self.model[0], OptimConfig(**(optimizer | (first or {})))),
            (self.model[1], OptimConfig(**(optimizer | (second or {})))),
        ]
        self.x = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
        self.y, self.rows, self.place, self.seen = self.x.sum(1, keepdim=True) * 5, rows, 0, []
        self.errors = None

    def loss(self, model):
        chosen = torch.arange(self.place, self.place + self.rows) % len(self.x)
        self.place += self.rows
        answer = model(self.x[chosen])
        self.seen.append(answer.dtype)
        loss = F.mse_loss(answer.float(), self.y[chosen])
        return loss, {"loss": loss.detach() * self.rows, "count": torch.tensor(float(self.rows))}

    def evaluate(self):
        with torch.no_grad():
            return {"error": self.errors.pop(0) if self.errors else F.mse_loss(self.model(self.x), self.y).item()}

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def fitted(folder: Path, task: Task, name: str = "out", **changes):
    loop = dict(steps=12, evaluate_every=4, log_every=1, best="error", best_mode="min", compile="off") | changes
    return fit(task, LoopConfig(**loop), folder / name, folder / "resume", name, {}, progress=False)


def test_accumulating_halves_is_the_whole_batch(tmp_path):
    whole, halves = Fit(8), Fit(4)
    fitted(tmp_path, whole, "whole")
    fitted(tmp_path, halves, "halves", accumulate=2)
    for ours, theirs in zip(halves.model.parameters(), whole.model.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for row, reference in zip(log(tmp_path / "halves"), log(tmp_path / "whole")):
        assert row == pytest.approx(reference, rel=1e-5)


def test_each_group_has_its_own_clip(tmp_path):
    task, norms = Fit(first={"clip": 0.25}), {0: [], 1: []}

    def watch(optimizer, *_):
        values = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        part = next(
            i
            for i in (0, 1)
            if any(p is q for p in optimizer.param_groups[0]["params"] for q in task.model[i].parameters())
        )
        norms[part].append(torch.cat([value.flatten() for value in values]).norm().item())

    handle = register_optimizer_step_pre_hook(watch)
    try:
        fitted(tmp_path, task)
    finally:
        handle.remove()
    assert len(norms[0]) == len(norms[1]) == 12
    assert norms[0] == pytest.approx([0.25] * 12, rel=1e-4), "this group's gradients are long, and cut"
    assert min(norms[1]) > 1, "the other group's are as they were"


def test_checkpoints_hold_the_averaged_weights(tmp_path):
    task, path = Fit(first={"ema": 0.8}), []

    def watch(optimizer, *_):
        if any(p is task.model[0].weight for p in optimizer.param_groups[0]["params"]):
            path.append(task.model[0].weight.detach().clone())

    handle = register_optimizer_step_post_hook(watch)
    try:
        result = fitted(tmp_path, task)
    finally:
        handle.remove()
    average = path[0]
    for weight in path[1:]:
        average = 0.8 * average + 0.2 * weight
    saved = load_file(result.folder / "final" / "model.safetensors")
    torch.testing.assert_close(saved["0.weight"], average)
    assert torch.equal(task.model[0].weight, path[-1]) and not torch.equal(saved["0.weight"], path[-1])
    assert torch.equal(saved["1.weight"], task.model[1].weight), "a group without an average is saved as it is"
    x, y = task.x, task.y
    weights = [saved[name] for name in ("0.weight", "0.bias", "1.weight", "1.bias")]
    error = F.mse_loss(F.linear(F.linear(x, *weights[:2]), *weights[2:]), y).item()
    assert result.metrics["held_out"]["error"] == pytest.approx(error, rel=1e-5), (
        "measured with the averaged weights too"
    )


@pytest.mark.parametrize("amp, dtype", [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_amp_runs_on_a_cpu(tmp_path, amp, dtype):
    task = Fit()
    result = fitted(tmp_path, task, amp=amp)
    assert task.seen[1:] == [dtype] * 12  # the first was the count of FLOPs
    rows = [row for row in log(result.folder) if "loss" in row]
    assert rows[-1]["loss"] < rows[0]["loss"] and all(
        p.dtype == torch.float32 and p.isfinite().all() for p in task.model.parameters()
    )


@pytest.mark.parametrize("mode, value, step", [("min", 1.0, 8), ("max", 4.0, 12)])
def test_the_best_is_the_lowest_or_the_highest(tmp_path, mode, value, step):
    task = Fit()
    task.errors = [3.0, 1.0, 4.0]
    result = fitted(tmp_path, task, best_mode=mode)
    assert result.metrics["best"] == {"metric": "error", "value": value, "step": step}
    about = json.loads((result.folder / "best" / "meta.json").read_text())
    assert about["step"] == step and about["metrics"] == {"error": value} and about["best"] == result.metrics["best"]
    assert result.metrics["held_out"] == {"error": 4.0}, "the last measurement, whatever the best was"


def test_a_metric_that_nobody_measures(tmp_path):
    with pytest.raises(ConfigError, match="best: 'exact' is none of the held-out metrics error"):
        fitted(tmp_path, Fit(), best="exact")
    with pytest.raises(
        ValueError, match="'exact' is none of the held-out metrics token_accuracy"
    ):  # for puzzles before any work
        config(loop__best="exact")


# --- arithmetic -------------------------------------------------------------------------------------------------------------------------


def segment_flops(c: HRMConfig, rows: int, relations: int = 0) -> int:
    """FLOPs of one segment forward and back, two per multiplication and addition.

    A matrix product costs twice its forward again on the way back (once for its input, once for its weight). The fused
    attention has two products forward and five back, one of them the scores once more; with a bias that is trained it
    is not fused, and has two and four. Every product of the blocks sees an input with a gradient, because the embedded
    tokens enter at every step. The relation bias is a product of its own, whose other factor has no gradient.
    """
    S, D, I = c.seq_len + c.prefix, c.hidden_size, inner_width(c.hidden_size, c.expansion)
    linear = 2 * rows * S * (3 * D * D + D * D + 2 * I * D + I * D)
    attention = 2 * 2 * rows * S * S * D
    bias = 2 * c.num_heads * relations * S * S
    forward = linear + attention + bias
    backward = 2 * linear + (4 if relations else 5) * attention // 2 + bias
    steps = {"L": c.L_layers, "H": c.H_layers}
    order = (["L"] * c.L_cycles + ["H"]) * c.H_cycles
    last = {"one_step": 2, "last_cycle": c.L_cycles + 1, "full": len(order)}[c.gradient]
    heads = 2 * rows * D * (c.seq_len * c.vocab_size + 2)
    return (
        sum(steps[step] for step in order) * forward + sum(steps[step] for step in order[-last:]) * backward + 3 * heads
    )


def foresight_flops(c: HRMConfig, rows: int, relations: int = 0) -> int:
    "FLOPs of the look ahead: a segment forward, of whose last block only the first position is wanted, and the halting head."
    S, D, I = c.seq_len + c.prefix, c.hidden_size, inner_width(c.hidden_size, c.expansion)

    def block(positions: int) -> int:
        "One block of which some positions are wanted: keys and values are those of all."
        linear = 2 * rows * (S * 2 * D * D + positions * (2 * D * D + 2 * I * D + I * D))
        return linear + 2 * 2 * rows * positions * S * D + 2 * c.num_heads * relations * positions * S

    blocks = c.H_cycles * (c.L_cycles * c.L_layers + c.H_layers)
    return (blocks - 1) * block(S) + block(1) + 2 * rows * D * 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(H_cycles=2, L_cycles=3, H_layers=2),
        dict(H_cycles=2, L_cycles=2, gradient="full", halting="fixed"),
        dict(H_cycles=2, L_cycles=2, gradient="last_cycle", puzzle_emb_ndim=80),
        dict(pos_encodings="relations", halting="fixed"),
        dict(pos_encodings="relations", H_cycles=2, L_layers=2),
    ],
    ids=str,
)
def test_flops_are_those_of_the_closed_form(changes):
    rows, kinds = 3, agreement(torch.tensor([[i // 4, i % 4] for i in range(16)]))
    c = HRMConfig(**(tiny.ARCH | dict(pos_encodings="rope", puzzle_emb_ndim=0, vocab_size=6, seq_len=16) | changes))
    model = HRM(c, kinds, seeded(0)).train()
    batch = {
        "inputs": torch.ones(rows, 16, dtype=torch.long),
        "labels": torch.ones(rows, 16, dtype=torch.long),
        "puzzle_identifiers": torch.zeros(rows, dtype=torch.long),
    }

    def step():
        carry, outputs = model(model.start(batch), model.explore(rows, seeded(0)))
        model.loss(carry, outputs)[0].backward()

    relations = 0 if model.inner.relations is None else len(model.inner.relations)
    expected = segment_flops(c, rows, relations)
    if c.halting == "q":  # for the value of going on
        expected += foresight_flops(c, rows, relations)
    assert count_flops(step) == expected


def test_the_count_of_a_run_is_that_of_all_its_steps(tmp_path):
    one = config(
        loop__steps=4, loop__evaluate_every=4, loop__keep_every=0, loop__accumulate=3, arch__pos_encodings="rope"
    )
    result = trained(tmp_path, one)
    c = HRMConfig(**(one.arch.model_dump() | dict(vocab_size=6, seq_len=16)))
    piece = segment_flops(c, one.batch_size) + foresight_flops(c, one.batch_size)
    assert result.metrics["tflop"] == pytest.approx(piece * 3 * 4 / 1e12, rel=1e-12)


# --- a write that fails -----------------------------------------------------------------------------------------------------------------


def failing(number: int, original):
    "The function, which fails when it is called for the `number`-th time."
    calls = []

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise OSError("no space left on device")
        return original(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    "place, name, number",
    [
        (checkpoint, "save_file", 1),
        (torch, "save", 1),
        (Path, "write_text", 1),
        (files, "_sync", 1),
        (files, "_sync", 3),
        (Path, "rename", 1),
        (Path, "rename", 2),
        (files, "sync_folder", 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_failed_write_leaves_a_whole_checkpoint(tmp_path, monkeypatch, place, name, number):
    old, new = ({"w": torch.full((3,), value)} for value in (1.0, 2.0))
    folder = tmp_path / "latest"
    checkpoint.write(folder, old, {"step": 1}, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(place, name, failing(number, getattr(place, name)))
        with pytest.raises(OSError, match="no space"):
            checkpoint.write(folder, new, {"step": 2}, {"step": 2})
    found = checkpoint.read(folder)
    step = 2 if name == "sync_folder" else 1  # that comes after the new one has its name
    assert found.meta["step"] == step and found.state() == {"step": step}
    assert torch.equal(found.weights["w"], (old, new)[step - 1]["w"])
    checkpoint.write(folder, new, {"step": 3}, {"step": 3})  # the next write clears away what the failed one left
    assert checkpoint.read(folder).meta["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_a_first_write_that_fails_leaves_nothing_to_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", failing(1, checkpoint.save_file))
    with pytest.raises(OSError):
        checkpoint.write(tmp_path / "best", {"w": torch.ones(1)}, {})
    assert checkpoint.find(tmp_path / "best") is None
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        checkpoint.read(tmp_path / "best")


# --- the gpu profile cannot rot ---------------------------------------------------------------------------------------------------------

GPU = list(merged(load_params(ROOT / "params.yaml"), "gpu", "sudoku.train")["runs"])


def test_gpu_profile_has_runs():
    assert GPU


@pytest.mark.parametrize("name", GPU)
def test_gpu_runs_take_two_steps_here(tmp_path, name):
    path = ROOT / "params.yaml"
    one = section("gpu", "sudoku.train", TrainConfig, path).runs[name]
    size = section("gpu", "sudoku.data", DataConfig, path).sets[one.set].size
    tiny.data_set(tmp_path / "toy", size=size, blanks=size)
    arch = one.arch.model_copy(
        update=dict(hidden_size=32, num_heads=2, puzzle_emb_ndim=32 if one.arch.puzzle_emb_ndim else 0)
    )
    loop = one.loop.model_copy(update=dict(steps=2, evaluate_every=2, log_every=1, keep_every=2, compile="off"))
    cut = one.model_copy(update=dict(arch=arch, loop=loop, batch_size=4, evaluate_puzzles=4, device="cpu"))
    result = trained(tmp_path, RunConfig.model_validate(cut.model_dump()))
    assert result.metrics["steps"] == 2 and 0 <= result.metrics["held_out"]["token_accuracy"] <= 1
    losses = [row["loss"] for row in log(result.folder) if "loss" in row]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)


# --- the model against itself -----------------------------------------------------------------------------------------------------------


def rows_of(model: HRM, rows: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, model.config.vocab_size, (rows, model.config.seq_len), generator=seeded(seed))
    return {"inputs": ids, "labels": ids, "puzzle_identifiers": torch.zeros(rows, dtype=torch.long)}


@pytest.mark.parametrize("positions", ["rope", "learned", "relations"])
def test_a_causal_model_does_not_see_what_comes_later(positions):
    kinds = agreement(torch.tensor([[i // 4, i % 4] for i in range(16)]))
    c = HRMConfig(
        **(tiny.ARCH | dict(pos_encodings=positions, causal=True, L_cycles=2, H_cycles=2, vocab_size=9, seq_len=16))
    )
    model = HRM(c, kinds, seeded(0)).eval()

    def logits(batch):
        carry, found = model.start(batch), []
        for _ in range(3):
            carry, outputs = model(carry)
            found.append(outputs["logits"])
        return torch.stack(found, 1)  # [B, segments, S, V]

    batch = rows_of(model)
    with torch.no_grad():
        before = logits(batch)
        for place in range(1, 16):
            edited = batch["inputs"].clone()
            edited[:, place:] = edited[:, place:] % 8 + 1  # every token from here on is another one
            after = logits(batch | {"inputs": edited})
            assert torch.equal(after[:, :, :place], before[:, :, :place]), f"logits before {place} moved"
            assert not torch.equal(after[:, :, place], before[:, :, place])


def test_one_cycle_is_a_plain_pass_through_the_blocks():
    c = HRMConfig(
        **(tiny.ARCH | dict(pos_encodings="rope", puzzle_emb_ndim=0, H_layers=2, L_layers=2, vocab_size=9, seq_len=16))
    )
    model = HRM(c, generator=seeded(0)).eval()
    inner, batch = model.inner, rows_of(model)
    with torch.no_grad():
        _, outputs = model(model.start(batch))
        x = c.hidden_size**0.5 * inner.embed_tokens.embedding_weight[batch["inputs"]]
        z = inner.L_init + (inner.H_init + x)
        for block in inner.L_level.layers:
            z = block(z, rotary=inner.rotary)
        z = inner.H_init + z
        for block in inner.H_level.layers:
            z = block(z, rotary=inner.rotary)
    torch.testing.assert_close(outputs["logits"], inner.lm_head(z), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(outputs["q_halt"], inner.q_head(z[:, 0])[:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [dict(H_cycles=2, L_cycles=2, H_layers=2), dict(pos_encodings="relations", L_layers=2)], ids=str
)
def test_looking_ahead_gives_the_values_of_the_whole_segment(changes):
    kinds = agreement(torch.tensor([[i // 4, i % 4] for i in range(16)]))
    model = HRM(
        HRMConfig(**(tiny.ARCH | dict(pos_encodings="rope", vocab_size=6, seq_len=16) | changes)), kinds, seeded(0)
    )
    nn.init.normal_(model.inner.q_head.weight, generator=seeded(1))
    carry, _ = model.eval()(model.start(rows_of(model)))
    puzzles = model.inner.puzzle_emb(carry.batch["puzzle_identifiers"])
    values = model.foresee(carry.z_H, carry.z_L, carry.batch["inputs"], puzzles)
    expected = model.inner(carry.z_H, carry.z_L, carry.batch["inputs"], puzzles)[3]
    assert values.std() > 0.1
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


def test_compiled_is_eager():
    possible, reason = compiler("cpu")
    if not possible:
        pytest.skip(reason)
    torch.manual_seed(0)
    results = []
    for compiled in (False, True):
        model = HRM(
            HRMConfig(**(tiny.ARCH | dict(pos_encodings="rope", vocab_size=6, seq_len=16))), generator=seeded(0)
        ).train()
        if compiled:
            model.compile_segment()
        carry, outputs = model(model.start(rows_of(model)), torch.zeros(2, dtype=torch.int32))
        loss, _ = model.loss(carry, outputs)
        loss.backward()
        results.append(
            {
                "loss": loss.detach().float(),
                "z_H": carry.z_H,
                "logits": outputs["logits"].detach(),
                "puzzle": model.inner.puzzle_emb.used[-1][1].grad,
            }
            | {name: p.grad for name, p in model.named_parameters()}
        )
    for name, eager in results[0].items():
        error, scale = (results[1][name] - eager).abs().max().item(), eager.abs().max().item()
        assert error <= 1e-5 * scale, f"{name}: off by {error:.2e}, largest value {scale:.2e}"


class Compilable(Fit):
    "Says whether it was asked to compile."

    asked = False

    def compile(self):
        self.asked = True


@pytest.mark.skipif(not compiler("cpu")[0], reason=compiler("cpu")[1])
def test_what_compiles_is_decided_by_the_arithmetic_of_the_whole_run(tmp_path, monkeypatch):
    def trained(name, **changes):
        task = Compilable(8)
        return task, fitted(tmp_path, task, name, **({"compile": "auto", "checkpoint_seconds": 0.0} | changes))

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    task, alone = trained("alone")
    assert not task.asked and alone.timings["compile_reason"] == "one thread: eager"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    task, small = trained("small")
    assert not task.asked and not small.timings["compiled"] and small.timings["compile_seconds"] == 0
    assert small.timings["compile_reason"] == f"{small.metrics['tflop']:.3g} TFLOP: eager below 8"
    monkeypatch.setitem(flops.PAYS, "cpu", small.metrics["tflop"])
    task, enough = trained("enough")
    assert task.asked and enough.timings["compiled"] and "TFLOP: compiled from" in enough.timings["compile_reason"]
    assert enough.timings["train_seconds"] >= enough.timings["compile_seconds"] >= 0
    task, asked = trained("off", compile="off")
    assert not task.asked and asked.timings["compile_reason"] == "switched off"
    broken, again = Compilable(8), Compilable(8)
    loop = LoopConfig(steps=12, evaluate_every=4, log_every=1, best="error", best_mode="min", checkpoint_seconds=0.0)
    stop = lambda step, row: 1 / 0 if step == 9 else None
    fit_it = lambda task, watch: fit(
        task, loop, tmp_path / "broken", tmp_path / "resume", "broken", {}, progress=False, watch=watch
    )
    with pytest.raises(ZeroDivisionError):
        fit_it(broken, stop)
    assert fit_it(again, None).timings["compiled"] and broken.asked and again.asked, "the last third alone is less"


COMPILES = """
import hrm.core, torch
from torch._dynamo.utils import counters
print(torch.compile(lambda x: (x.sin() + 1).relu())(torch.ones(8)).sum().item())
print(counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.skipif(not compiler("cpu")[0], reason=compiler("cpu")[1])
def test_compiled_code_stays_in_the_project(tmp_path):
    "The second process finds what the first one made, and neither leaves code in the machine's temporary folder."
    project, temporary = tmp_path / "project", tmp_path / "tmp"
    (project / "deep").mkdir(parents=True)
    temporary.mkdir()
    (project / "params.yaml").touch()
    kept = {name: value for name, value in os.environ.items() if name not in ("HRM_ROOT", "TORCHINDUCTOR_CACHE_DIR")}
    run = lambda code=COMPILES, **more: subprocess.run(
        [sys.executable, "-c", code],
        cwd=project / "deep",
        env=kept | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)} | more,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    made = lambda folder: {file for file in folder.rglob("*.so")}
    value = str(8 * (torch.ones(1).sin() + 1).item())[:6]
    first = run()
    assert first[0].startswith(value) and first[1] == "0"
    (kind,) = (project / "data" / "compile").iterdir()
    libraries = made(kind)
    assert len(kind.name) == 8 and libraries and not made(temporary)
    assert {path.name for path in temporary.glob("torchinductor*/*")} <= {"precompiled_headers"}
    assert run(TORCHINDUCTOR_CACHE_DIR="") == [first[0], "1"] and made(kind) == libraries, "empty: not the image's"
    place = 'import hrm.core, os; print(os.environ["TORCHINDUCTOR_CACHE_DIR"])'
    assert run(place) == [str(kind)] and run(place, TORCHINDUCTOR_CACHE_DIR="own") == ["own"]


def test_a_task_of_ones_own_counts_with_its_whole_file(tmp_path, monkeypatch):
    "A model that stands beside the task in the same file decides the run as well."
    text = """"{doc}"
from hrm.core.task import Task


class Net:
    def forward(self):
        return {constant}


class Own(Task):
    def __init__(self):
        self.net = Net()
"""
    monkeypatch.syspath_prepend(tmp_path)
    codes = []
    for name, doc, constant in (("own_a", "First.", 1), ("own_b", "Other words.", 1), ("own_c", "First.", 2)):
        (tmp_path / f"{name}.py").write_text(text.format(doc=doc, constant=constant))
        codes.append(train.code_of(importlib.import_module(name).Own()))
    assert codes[0] == codes[1] != codes[2]
