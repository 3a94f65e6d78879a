"Narrow runs side by side: the same bits as alone, nobody left behind, every error with the name of its run."

import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import lines
import psutil
import pytest
import tiny
import torch

from hrm.core import beside, device, run
from hrm.core.beside import Shape, narrow, together
from hrm.core.config import ConfigError
from hrm.core.resume import Stopped
from hrm.core.task import Options

ROOT = Path(__file__).resolve().parents[1]


def bits(folder: Path) -> dict[str, bytes]:
    "What finished runs have left: logs, metrics, tensors."
    return tiny.files(folder / "out")


@pytest.fixture(autouse=True)
def two_threads():
    "The first process has two threads wherever it may; a run that took them would come to other bits."
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2, "the threads are as they were"
    torch.set_num_threads(before)


def test_alone_and_side_by_side_the_bits_are_the_same(tmp_path):
    runs = {
        "first": lines.line(late=1.5),  # speaks last, and is shown first
        "second": lines.line(slope=3.0),
        "third": lines.line(steps=10, slope=5.0),
        "fourth": lines.line(),  # stands on the first
    }
    seen, ended = [], []

    def watch(name):
        seen.append((name, "begins"))
        return lambda step, row: seen.append((name, step)) if "loss" in row else None

    done = lambda name, result: ended.append((name, os.getpid()))
    beside = lines.train_all(runs, tmp_path / "beside", watch=watch, done=done)
    alone = lines.train_all(runs, tmp_path / "alone", aside=False)
    assert list(beside) == list(alone) == list(runs)
    assert bits(tmp_path / "beside") == bits(tmp_path / "alone") and len(bits(tmp_path / "alone")) > 20
    assert [result.metrics for result in beside.values()] == [result.metrics for result in alone.values()]
    assert beside["first"].folder == tmp_path / "beside" / "out" / "first"
    others = {result.more["process"] for result in beside.values()}
    assert len(others) == 2 and os.getpid() not in others
    assert {result.more["process"] for result in alone.values()} == {os.getpid()}
    assert {result.more["threads"] for result in [*beside.values(), *alone.values()]} == {1}
    assert sorted(name for name, _ in ended) == sorted(runs) and {number for _, number in ended} == {os.getpid()}
    assert [name for name, what in seen if what == "begins"] == list(runs), "pictures stand in the order of the runs"
    assert [what for name, what in seen if name == "first"] == ["begins", 5, 10, 15, 20]
    assert multiprocessing.active_children() == []


def test_two_threads_would_come_to_other_bits(tmp_path):
    "The test above can fail: the same run on two threads."
    for name, wide in (("narrow", False), ("wide", True)):
        one, size = lines.line(steps=10), lines.WIDTH * (100 if wide else 1)
        options = Options(tmp_path / name, progress=False)
        shape = Shape(size, lines.ROWS, 10, "cpu")
        run.start("first", lines.Line(one, 0), one, 0, "", tmp_path / "out" / name, options, shape=shape)
    found = tiny.files(tmp_path / "out")
    assert found["narrow/log.jsonl"] != found["wide/log.jsonl"]


@pytest.mark.parametrize("fault", ["error", "death"])
def test_a_run_that_fails_names_itself_and_stops_the_others(tmp_path, fault):
    said = tmp_path / "said"  # by the first, before the second fails
    runs = {"first": lines.line(steps=200, pace=0.02), "second": lines.line(slope=3.0, fault=fault, when=str(said))}
    kind = {"error": ConfigError, "death": ChildProcessError}[fault]
    says = {"error": "found a curve", "death": r"second: the process that trained it was ended by SIGKILL"}[fault]
    with pytest.raises(kind, match=says) as error:
        lines.train_all(runs, tmp_path, watch=lambda name: lambda step, row: said.touch())
    assert fault == "death" or error.value.__notes__ == ["run 'second'"]
    assert multiprocessing.active_children() == []
    states = [file for file in (tmp_path / "resume").glob("*/latest/meta.json")]
    assert len(states) == 1 and 0 < int(re.search(r'"step": (\d+)', states[0].read_text())[1]) < 200, "the first saved"


def start(folder: Path, step: int, slow: float = 0.0) -> subprocess.Popen:
    "The program, in a group of its own, with both runs at this step."
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "lines.py", folder, "0.02", str(slow)],
        env=tiny.environment(ROOT),
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    waited = {f"first {step}", f"second {step}"}
    while waited and (line := process.stdout.readline()):
        waited.discard(line.strip())
    assert not waited, process.communicate()
    return process


def gone(processes: list[psutil.Process]) -> bool:
    "Whether all end within some seconds."
    return psutil.wait_procs(processes, timeout=10)[1] == []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, bytes]:
    "What the program leaves when nobody disturbs it, one run after the other."
    folder = tmp_path_factory.mktemp("unbroken")
    runs = {"first": lines.line(steps=200), "second": lines.line(steps=200, slope=3.0)}
    lines.train_all(runs, folder, aside=False)
    return {name: raw for name, raw in bits(folder).items() if not name.endswith("meta.json")}  # which tells the pace


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_no_process_is_left_and_the_next_call_goes_on(tmp_path, number, unbroken):
    process = start(tmp_path, 5)
    others = psutil.Process(process.pid).children(recursive=True)
    assert len(others) >= 2
    if number == signal.SIGINT:  # a terminal tells all
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert gone(others), others
    if number == signal.SIGKILL:  # Python says which semaphores it removes
        assert process.returncode == -number and "Traceback" not in err
    else:
        assert err == "", err
        assert process.returncode == 130
        told = dict(re.findall(r"(\w+): stopped at step (\d+)", out))
        states = [json.loads(file.read_text()) for file in (tmp_path / "resume").glob("*/latest/meta.json")]
        assert set(told) == {"first", "second"}, out
        assert {state["name"]: str(state["step"]) for state in states} == told, out
    runs = {"first": lines.line(steps=200, pace=0.02), "second": lines.line(steps=200, pace=0.02, slope=3.0)}
    lines.train_all(runs, tmp_path, aside=False)
    assert {name: raw for name, raw in bits(tmp_path).items() if not name.endswith("meta.json")} == unbroken


def test_a_second_signal_ends_all_at_once(tmp_path):
    process = start(tmp_path, 10, slow=60.0)  # both are evaluated after it
    others = psutil.Process(process.pid).children(recursive=True)
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None, "it waits for the state"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 15 and gone(others)
    assert process.returncode == 130 and "stopped at once" in out and err == "", (out, err)


def test_what_goes_side_by_side_is_a_rule(monkeypatch):
    slim, wide = Shape(32, 512, 400, "cpu"), Shape(256, 512, 4000, "cpu")
    work, three = partial(lines.train, {}, Path()), {"a": slim, "b": wide, "c": slim, "d": slim}
    monkeypatch.setattr(beside, "cores", lambda: 2)
    assert beside._aside(work, three) == ["a", "c", "d"]
    long = Shape(32, 512, 401, "cpu")
    assert beside._aside(work, three | {"e": long}) == ["e", "a", "c", "d"], "the longest begins first"
    assert beside._aside(work, {"a": slim, "c": slim}) == [], "four hundred steps can be won, which is too little"
    assert beside._aside(lambda *_: None, three) == beside._aside(work, three), "whatever module it is of"
    local = lambda *_: None
    local.__module__ = "__main__"
    assert beside._aside(partial(local), three) == []
    for name, value in (("cores", lambda: 1), ("world", lambda: (0, 2)), ("helping", lambda: True)):
        with monkeypatch.context() as patch:
            patch.setattr(beside, name, value)
            assert beside._aside(work, three) == [], name
    assert [narrow(64, positions, "cpu") for positions in (2048, 2049)] == [True, False]
    assert [narrow(width, 10**6, "cpu") for width in (32, 33)] == [True, False]
    assert [narrow(width, 8, "cpu") for width in (127, 128)] == [True, False]


def test_a_narrow_run_is_float32_unless_something_else_is_asked_for(monkeypatch):
    config = lines.line().model_copy(update={"device": "cpu"})
    monkeypatch.setattr(device, "has_bf16", lambda where: True)
    small, large = Shape(32, 64, 9, "cpu"), Shape(256, 64, 9, "cpu")
    for asked in (None, "auto"):
        monkeypatch.delenv("HRM_DTYPE", raising=False) if asked is None else monkeypatch.setenv("HRM_DTYPE", asked)
        placed = [config.placement(shape) for shape in (small, large, None)]
        assert [one.dtype for one in placed] == [torch.float32, torch.bfloat16, torch.bfloat16]
        assert "narrow" in placed[0].reason["dtype"]
    assert config.model_copy(update={"dtype": "bfloat16"}).placement(small).dtype == torch.bfloat16
    monkeypatch.setenv("HRM_DTYPE", "bfloat16")
    assert config.placement(small).dtype == torch.bfloat16


def test_the_longest_begin_first_and_come_back_in_their_order(monkeypatch):
    shapes = {"short": Shape(32, 64, 600, "cpu"), "long": Shape(32, 640, 600, "cpu"), "wide": Shape(256, 8, 9, "cpu")}
    monkeypatch.setattr(beside, "cores", lambda: 2)
    begun = []

    def in_order(crew, plan, ended, said):
        while ready := plan.ready(crew.names):
            begun.append(ready[0])
            plan.take(ready[0])
            ended(ready[0], ready[0])

    monkeypatch.setattr(beside, "_beside", in_order)
    found = together(lambda name, *_: begun.append(name), shapes, Options(progress=False), shape=shapes.get)
    assert begun == ["long", "short", "wide"] and list(found) == list(shapes)


class Odd(Exception):
    "Cannot be made of its words alone."

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_an_error_that_cannot_travel_sends_its_words():
    assert type(beside._portable(ConfigError("x"))) is ConfigError
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(Odd(1, 2)))
    assert str(beside._portable(Odd(1, 2))) == "Odd: 1 and 2"


def test_a_run_in_this_process_is_named_too():
    def work(name, options, done):
        if name == "b":
            raise Stopped("stopped at step 3; the same command goes on from there")
        raise ConfigError("wrong")

    with pytest.raises(Stopped, match="^b: stopped at step 3; the same command goes on from there$"):
        together(work, ["b", "a"], Options(progress=False))
    with pytest.raises(ConfigError, match="^wrong") as error:
        together(work, ["a", "b"], Options(progress=False))
    assert error.value.__notes__ == ["run 'a'"]
