"Configuration, device, tracking, statistics, plots and report: what they give, and what they say when asked for nonsense."

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from scipy import stats as scipy_stats

from hrm.core import config, device, files, halting, plots, report, stats, tracking
from hrm.core.config import ConfigError, Section, section

GOOD = """\
run: [smoke]
tracking: disabled
profiles:
  laptop:
    sudoku:
      train: &train
        steps: 900
        rate: 1e-3
        schedule: cosine
        inner: {width: 32, clip: 1.0}
      again:
        <<: *train
        steps: 90
  smoke:
    sudoku:
      train:
        steps: 20
        inner: {width: 8}
      again: {}
"""


class Inner(Section):
    width: int = Field(gt=0)
    clip: float | Literal["none"]


class Train(Section):
    steps: int = Field(gt=0)
    rate: float = Field(gt=0, lt=1)
    schedule: Literal["constant", "cosine"]
    inner: Inner
    widths: tuple[int, ...] = (8, 8)


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(GOOD)
    monkeypatch.setenv("HRM_ROOT", str(tmp_path))
    return tmp_path


# --- config ---


def test_section_reads_merged_values(project):
    got = section("laptop", "sudoku.again", Train)
    assert (got.steps, got.rate, got.schedule, got.widths) == (90, 1e-3, "cosine", (8, 8))
    assert got.inner == Inner(width=32, clip=1.0)
    with pytest.raises(Exception, match="frozen"):
        got.steps = 3


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "steps: 900",
            "stesp: 900",
            "params.yaml, line 6: profiles.laptop.sudoku.train.steps: missing key; allowed: int\n"
            "params.yaml, line 7: profiles.laptop.sudoku.train.stesp: unknown key; allowed: steps, rate, schedule, inner, widths (did you mean steps?)",
        ),
        (
            "steps: 900",
            "steps: 20.0",
            "params.yaml, line 7: profiles.laptop.sudoku.train.steps: found 20.0; allowed: a valid integer",
        ),
        (
            "steps: 900",
            'steps: "20"',
            'line 7: profiles.laptop.sudoku.train.steps: found "20"; allowed: a valid integer',
        ),
        (
            "steps: 900",
            "steps: true",
            "line 7: profiles.laptop.sudoku.train.steps: found true; allowed: a valid integer",
        ),
        ("steps: 900", "steps: 0", "line 7: profiles.laptop.sudoku.train.steps: found 0; allowed: greater than 0"),
        ("rate: 1e-3", "rate: .inf", "line 8: profiles.laptop.sudoku.train.rate: found "),
        (
            "schedule: cosine",
            "schedule: linear",
            "line 9: profiles.laptop.sudoku.train.schedule: found \"linear\"; allowed: 'constant' or 'cosine'",
        ),
        (
            "width: 32",
            "wdith: 32",
            "line 10: profiles.laptop.sudoku.train.inner.wdith: unknown key; allowed: width, clip (did you mean width?)",
        ),
        (
            "clip: 1.0",
            "clip: some",
            "line 10: profiles.laptop.sudoku.train.inner.clip: found \"some\"; allowed: a valid number or 'none'",
        ),
        ("{width: 32, clip: 1.0}", "7", "line 10: profiles.laptop.sudoku.train.inner: found 7; allowed: "),
        (
            "rate: 1e-3",
            "rate: --remove--",
            "line 8: profiles.laptop.sudoku.train.rate: found --remove--; allowed: any value, for there is no such key",
        ),
    ],
)
def test_every_kind_of_wrong_key(project, old, new, message):
    (project / "params.yaml").write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as e:
        section("laptop", "sudoku.train", Train)
    assert message in str(e.value)


def test_a_merged_mistake_is_reported_where_it_is_written(project):
    (project / "params.yaml").write_text(GOOD.replace("rate: 1e-3", "rate: 3"))
    with pytest.raises(
        ConfigError, match=r"line 8: profiles\.laptop\.sudoku\.again\.rate: found 3; allowed: less than 1"
    ):
        section("laptop", "sudoku.again", Train)


@pytest.mark.parametrize(
    "profile, name, message",
    [
        ("desk", "sudoku.train", "line 3: profiles: no profile 'desk'; allowed: laptop, smoke"),
        ("laptop", "sudoku.evaluate", "line 5: profiles.laptop.sudoku: no section 'evaluate'; allowed: train, again"),
        ("smoke", "sudoku.evaluate", "line 15: profiles.smoke.sudoku: no section 'evaluate'; allowed: train, again"),
        ("smoke", "maze.train", "line 14: profiles.smoke: no section 'maze'; allowed: sudoku"),
        ("laptop", "sudoku.train.steps", "line 7: profiles.laptop.sudoku.train.steps: found 900; allowed: a mapping"),
        ("smoke", "sudoku.train.steps", "line 17: profiles.smoke.sudoku.train.steps: found 20; allowed: a mapping"),
    ],
)
def test_unknown_places_list_what_there_is(project, profile, name, message):
    with pytest.raises(ConfigError) as e:
        section(profile, name, Train)
    assert message in str(e.value) and str(e.value).startswith("params.yaml, line ")


# --- a profile that is laid over laptop ---


def test_an_overlay_says_what_differs(project):
    got = section("smoke", "sudoku.train", Train)
    assert (got.steps, got.rate, got.schedule, got.inner) == (20, 1e-3, "cosine", Inner(width=8, clip=1.0))
    assert section("smoke", "sudoku.again", Train) == section("laptop", "sudoku.again", Train)
    params = config.load_params()
    assert config.merged(params, "smoke", "sudoku.train") == {
        "steps": 20,
        "rate": 1e-3,
        "schedule": "cosine",
        "inner": {"width": 8, "clip": 1.0},
    }
    assert set(config.merged(params, "smoke", "sudoku")) == {"train", "again"} and params == config.load_params()


@pytest.mark.parametrize(
    "old, new, message",
    [  # everything is read as smoke
        ("steps: 20", "stesp: 20", "line 17: profiles.smoke.sudoku.train.stesp: unknown key; allowed: steps, "),
        (
            "steps: 20",
            "steps: null",
            "line 17: profiles.smoke.sudoku.train.steps: found null; allowed: a valid integer",
        ),
        ("steps: 20", "steps: --remove--", "line 17: profiles.smoke.sudoku.train.steps: missing key; allowed: int"),
        ("steps: 20", "rate: 3", "line 17: profiles.smoke.sudoku.train.rate: found 3; allowed: less than 1"),
        (
            "rate: 1e-3",
            "rate: 3",
            "line 8: profiles.laptop.sudoku.train.rate (for smoke): found 3; allowed: less than 1",
        ),
        (
            "        rate: 1e-3\n",
            "",
            "line 6: profiles.laptop.sudoku.train.rate (for smoke): missing key; allowed: float",
        ),
        (
            "clip: 1.0",
            "clop: 1",
            "line 10: profiles.laptop.sudoku.train.inner.clip (for smoke): missing key; allowed: ",
        ),
        (
            "clip: 1.0",
            "clop: 1",
            "line 10: profiles.laptop.sudoku.train.inner.clop (for smoke): unknown key; allowed: width, clip",
        ),
        ("{width: 8}", "[8]", "line 18: profiles.smoke.sudoku.train.inner: found [8]; allowed: "),
        ("{width: 32, clip: 1.0}", "3", "line 18: profiles.smoke.sudoku.train.inner.clip: missing key; allowed: "),
        (
            "{width: 8}",
            "{width: --remove--}",
            "line 18: profiles.smoke.sudoku.train.inner.width: missing key; allowed: int",
        ),
        (
            "{width: 8}",
            "{height: --remove--}",
            "line 18: profiles.smoke.sudoku.train.inner.height: found --remove--; allowed: any value, for there is",
        ),
        (
            "{width: 8}",
            "{new: {old: --remove--}}",
            "line 18: profiles.smoke.sudoku.train.inner.new.old: found --remove--; allowed: any value",
        ),
        (
            "{width: 8}",
            "{width: [3, --remove--]}",
            "line 18: profiles.smoke.sudoku.train.inner.width.1: found --remove--; allowed: any value",
        ),
        (
            "rate: 1e-3",
            "rate: --remove--",
            "line 8: profiles.laptop.sudoku.train.rate: found --remove--; allowed: any value",
        ),
        (
            "      train:\n        steps: 20",
            "      trian:\n        steps: 20",
            "line 15: profiles.smoke.sudoku: no section 'train'; allowed: train: {} for laptop's own, trian, again",
        ),
        (
            "    sudoku:\n      train:\n        steps: 20",
            "    maze:\n      train:\n        steps: 20",
            "line 14: profiles.smoke: no section 'sudoku'; allowed: sudoku: {train: {}} for laptop's own, maze",
        ),
        (
            "      train: &train",
            "      trian: &train",
            "line 16: profiles.smoke.sudoku.train has nothing to be laid over: params.yaml, line 5: "
            "profiles.laptop.sudoku: no section 'train'; allowed: trian, again",
        ),
    ],
)
def test_a_wrong_overlay_names_the_line_that_is_wrong(project, old, new, message):
    changed = GOOD.replace(old, new)
    (project / "params.yaml").write_text(changed)
    with pytest.raises(ConfigError) as e:
        section("smoke", "sudoku.train", Train)
    assert changed != GOOD and f"params.yaml, {message}" in str(e.value), str(e.value)


def test_a_mistake_below_a_list_of_the_overlay_is_the_overlays(tmp_path):
    class Case(Section):
        width: int
        clip: float

    class Cases(Section):
        cases: tuple[Case, ...]

    (tmp_path / "p.yaml").write_text(
        "profiles:\n  laptop: {a: {b: {cases: [{width: 1, clip: 1.0}]}}}\n  smoke: {a: {b: {cases: [{width: 1}]}}}\n"
    )
    with pytest.raises(ConfigError, match=r"p.yaml, line 3: profiles.smoke.a.b.cases.0.clip: missing key"):
        section("smoke", "a.b", Cases, tmp_path / "p.yaml")


def test_without_laptop_a_profile_stands_for_itself(project):
    alone = GOOD.replace("  laptop:", "  desk:")
    (project / "params.yaml").write_text(alone)
    assert section("desk", "sudoku.train", Train).steps == 900
    with pytest.raises(ConfigError, match=r"line 16: profiles.smoke.sudoku.train.rate: missing key"):
        section("smoke", "sudoku.train", Train)
    (project / "params.yaml").write_text(alone.replace("steps: 20", "steps: --remove--"))
    with pytest.raises(ConfigError, match=r"line 17: profiles.smoke.sudoku.train.steps: found --remove--"):
        section("smoke", "sudoku.train", Train)


def test_new_keys_stand_where_the_overlay_has_them():
    base = {"a": {"x": 1}, "b": {}, "c": {}}
    assert list(config.laid_over({"a": {"x": 2}, "new": {}, "newer": {}, "c": {"y": None}}, base)) == [
        "a",
        "new",
        "newer",
        "b",
        "c",
    ]
    assert list(config.laid_over({"new": {}, "b": config.REMOVE, "last": 1}, base)) == ["a", "last", "c", "new"]
    assert config.laid_over({}, base) == base and base == {"a": {"x": 1}, "b": {}, "c": {}}


@pytest.mark.parametrize(
    "text, message",
    [
        ("profiles:\n  a: [1\n  b: 2\n", "p.yaml, line 3: not readable as YAML"),
        ("a: 1\na: 2\n", 'p.yaml, line 2: not readable as YAML: found duplicate key "a"'),
        ("a: *nowhere\n", "p.yaml, line 1: not readable as YAML: found undefined alias"),
        ("", "p.yaml: found nothing; allowed: a mapping"),
        ("- 1\n", "p.yaml: found list; allowed: a mapping"),
    ],
)
def test_malformed_yaml_names_file_and_line(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError) as e:
        config.load_params(tmp_path / "p.yaml")
    assert message in str(e.value)


def test_not_text_and_no_file(tmp_path):
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="p.yaml: not UTF-8 text"):
        config.load_params(tmp_path / "p.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        config.load_params(tmp_path / "none.yaml")


def test_root(project, monkeypatch, tmp_path_factory):
    assert config.root() == project.resolve()
    monkeypatch.delenv("HRM_ROOT")
    deep = project / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert config.root() == project
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ConfigError, match="HRM_ROOT"):
        config.root()
    monkeypatch.setenv("HRM_ROOT", str(deep))
    with pytest.raises(ConfigError, match="found no params.yaml"):
        config.root()


def test_settings_and_profiles(project):
    assert config.profiles() == ["laptop", "smoke"]
    assert config.setting("tracking", "online") == "disabled"
    assert config.setting("runner", "host") == "host"
    with pytest.raises(ConfigError, match='line 2: tracking: found "disabled"; allowed: online'):
        config.setting("tracking", "online", allowed=("online",))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_write_atomic_keeps_the_old_file(tmp_path, monkeypatch, broken):
    file = tmp_path / "deep" / "file.txt"
    assert files.write_atomic(file, "old\r\n") == file
    assert file.read_bytes() == b"old\r\n"

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(file, b"new")
    monkeypatch.undo()
    assert file.read_bytes() == b"old\r\n"
    assert [f.name for f in file.parent.iterdir()] == ["file.txt"]
    files.write_atomic(str(file), b"new")
    assert file.read_bytes() == b"new"


def test_write_atomic_does_not_write_through_a_link(tmp_path):
    (tmp_path / "cache").write_text("cached")
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    files.write_atomic(tmp_path / "link", "mine")
    assert (tmp_path / "cache").read_text() == "cached" and (tmp_path / "link").read_text() == "mine"


def test_a_temporary_file_is_never_one_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda length: "0" * 2 * length)  # as if somebody had guessed it
    (tmp_path / "precious").write_text("keep me")
    (tmp_path / f".file.txt.{'0' * 16}.tmp").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        files.write_atomic(tmp_path / "file.txt", "mine")
    assert (tmp_path / "precious").read_text() == "keep me" and not (tmp_path / "file.txt").exists()
    monkeypatch.undo()
    files.write_atomic(tmp_path / "file.txt", "mine")
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_what_a_killed_command_left_is_its_own(tmp_path):
    class Killed(BaseException):
        pass

    folder = tmp_path / "sets"
    folder.mkdir()
    files.write_atomic(folder / files.MADE, '{"by": "hrm text data", "files": null}')  # as after a SIGKILL
    files.write_atomic(folder / "half.npy", "half")
    with files.making(folder, "hrm text data"):
        files.write_atomic(folder / "half.npy", "whole")
    assert json.loads((folder / files.MADE).read_text()) == {"by": "hrm text data", "files": ["half.npy"]}
    for text in (
        "{",
        "[]",
        '{"by": "hrm text data"}',
        '{"by": "hrm text data", "files": 7}',
        "[" * 100000,
        '{"by": "hrm text data", "files": []}',
    ):
        (folder / files.MADE).write_text(text)  # no list that could be believed
        with pytest.raises(ConfigError, match=f"^{folder}"):
            with files.making(folder, "hrm text data"):
                raise Killed
    (tmp_path / "elsewhere").mkdir()
    for text in ('{"by": "hrm text data", "files": ["half.npy", "set"]}', '{"by": "hrm text data", "files": null}'):
        (folder / files.MADE).write_text(text)
        (folder / "set").unlink(missing_ok=True)
        (folder / "set").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConfigError, match="found set, which is not ours to replace"):
            with files.making(folder, "hrm text data"):
                raise Killed
    assert (folder / "half.npy").read_text() == "whole"


def test_what_came_to_nothing_leaves_nothing(tmp_path):
    with pytest.raises(ValueError):
        with files.making(tmp_path / "new", "hrm text data"):
            raise ValueError
    assert not list(tmp_path.iterdir())


@given(
    st.dictionaries(
        st.text(max_size=4),
        st.one_of(st.integers(), st.text(max_size=4), st.floats(allow_nan=False, allow_infinity=False)),
        min_size=1,
    )
)
@settings(max_examples=40, deadline=None)
def test_hash_of_ignores_order_and_sees_values(values):
    assert config.hash_of(values) == config.hash_of(dict(reversed(list(values.items()))))
    key = next(iter(values))
    assert config.hash_of(values) != config.hash_of(values | {key: [values[key]]})


def test_hashes(tmp_path):
    assert config.hash_of({}) == "44136fa355b3678a"
    assert config.hash_of({"a": np.float64(0.5), "b": (1, 2), "c": Path("x/y")}) == config.hash_of(
        {"a": 0.5, "b": [1, 2], "c": "x/y"}
    )
    with pytest.raises(TypeError, match="found object"):
        config.hash_of({"a": object()})
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("1")
    (tmp_path / "b.txt").write_text("2")
    one = config.tree_hash(tmp_path, "*.py")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "c.py").write_text("3")
    (tmp_path / "b.txt").write_text("4")
    assert config.tree_hash(tmp_path, "*.py") == one
    (tmp_path / "sub" / "a.py").rename(tmp_path / "sub" / "d.py")
    assert config.tree_hash(tmp_path, "*.py") != one
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        config.tree_hash(tmp_path / "none")


# --- device ---


def test_pick_on_the_cpu(monkeypatch):
    place = device.pick("cpu")
    assert (place.device, place.dtype, place.float64) == (torch.device("cpu"), torch.float32, torch.float64)
    assert set(place.reason) == {"device", "dtype", "float64"}
    assert device.pick("cpu", torch.float64).dtype == torch.float64
    for has, says in ((True, "asked for"), (False, "asked for; this device has no fast bfloat16, float32")):
        monkeypatch.setattr(device, "has_bf16", lambda where, has=has: has)
        assert device.pick("cpu", "bfloat16").reason["dtype"].startswith(says)
    with pytest.raises(ConfigError, match="device: found 'gpu'; allowed here: auto"):
        device.pick("gpu")
    with pytest.raises(ConfigError, match="dtype: found 'fp32'; allowed: auto, float32, bfloat16, float64"):
        device.pick("cpu", "fp32")


def test_pick_as_if_on_other_devices(monkeypatch):
    monkeypatch.delenv("HRM_DTYPE")
    monkeypatch.setattr(device, "available", lambda: {"cuda": "a GPU", "cpu": "a CPU"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert (device.pick().device.type, device.pick().dtype) == ("cuda", torch.bfloat16)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.pick().device == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="found cuda:2; allowed here: cuda:0 to cuda:1"):
        device.pick("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert device.pick().dtype == torch.float32
    monkeypatch.setattr(device, "available", lambda: {"mps": "Apple GPU", "cpu": "a CPU"})
    assert (device.pick().dtype, device.pick().float64) == (torch.float32, torch.float32)
    with pytest.raises(ConfigError, match="which has none"):
        device.pick("mps", "float64")


@pytest.mark.parametrize(
    "flags, dtype, named",
    [
        ("avx2 avx512f", torch.float32, "emulated"),
        ("avx2 avx512_bf16", torch.bfloat16, "avx512_bf16"),
        ("avx512_bf16 amx_bf16 amx_tile", torch.bfloat16, "amx_bf16"),
        ("amx_bf16 amx_int8", torch.float32, "emulated"),
    ],
)
def test_precision_by_the_flags_of_a_processor(monkeypatch, flags, dtype, named):
    monkeypatch.delenv("HRM_DTYPE")
    monkeypatch.setattr(device, "_cpuinfo", lambda: f"processor\t: 0\nmodel name\t: One\nflags\t\t: fpu {flags}\n")
    place = device.pick("cpu")
    assert place.dtype == dtype and named in place.reason["dtype"]
    assert device.has_bf16(torch.device("cpu")) == (dtype == torch.bfloat16)
    assert device.machine()["cpu_bf16"] == (named if dtype == torch.bfloat16 else None)
    monkeypatch.setenv("HRM_DTYPE", "float32")
    place = device.pick("cpu")
    assert (place.dtype, place.reason["dtype"]) == (torch.float32, "asked for by HRM_DTYPE")
    assert device.pick("cpu", "bfloat16").dtype == torch.bfloat16  # what a run says itself comes first


def test_precision_by_the_environment_reaches_programs(monkeypatch):
    assert os.environ["HRM_DTYPE"] == "float32"  # tests/conftest.py
    line = [sys.executable, "-c", "from hrm.core.device import pick; print(pick('cpu').reason['dtype'])"]
    said = subprocess.run(line, capture_output=True, text=True, cwd=ROOT).stdout
    assert said == "asked for by HRM_DTYPE\n"
    monkeypatch.setenv("HRM_DTYPE", "bf16")
    with pytest.raises(ConfigError, match="HRM_DTYPE: found 'bf16'; allowed: auto, float32, bfloat16"):
        device.pick("cpu")


def test_machine_is_stable_and_private():
    record = device.machine()
    assert record == device.machine()
    text = json.dumps(record)
    assert os.path.expanduser("~") not in text and "/" not in text.replace(record["cpu"], "")
    assert record["cores"] >= 1 and record["torch"] == torch.__version__
    assert record["cpu"] in device.machine_name(record)


def test_generators_and_determinism():
    assert torch.equal(torch.randperm(50, generator=device.seeded(3)), torch.randperm(50, generator=device.seeded(3)))
    for wrong in (-1, 1.0, True, 2**63):
        with pytest.raises(ConfigError, match="seed: found"):
            device.seeded(wrong)
    precision = torch.get_float32_matmul_precision()
    try:
        assert "deterministic kernels on" in device.set_determinism()
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    finally:
        device.set_determinism(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == precision


def test_threads_and_compiler(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert device.threads(1) == torch.get_num_threads() == 1
    device.threads(before)
    assert 1 <= device.cores() <= (os.cpu_count() or 1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert device.compiler() == (
        False,
        "no no-such-compiler found: models run eagerly (install it to make them faster)",
    )


# --- tracking ---


def log_steps(folder, first, last, **kwargs):
    with tracking.Tracker(folder, **kwargs) as tracker:
        for step in range(first, last + 1):
            tracker.log(step, loss=torch.tensor(1 / step), lr=np.float32(0.5), note="x")
            tracker.log_system(step, speed=12.0)
    return (Path(folder) / "log.jsonl").read_bytes()


@pytest.mark.parametrize("rest", [b"", b'{"loss": 0.1', b"\0\0\0\n"])
def test_resume_ends_in_the_same_bytes(tmp_path, rest):
    whole = log_steps(tmp_path / "whole", 1, 9)
    log_steps(tmp_path / "run", 1, 6)
    with open(tmp_path / "run" / "log.jsonl", "ab") as f:
        f.write(rest)
    assert log_steps(tmp_path / "run", 5, 9, resume_step=4) == whole
    assert log_steps(tmp_path / "run", 1, 9) == whole  # a fresh start empties the log
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 10)) and all(list(row) == sorted(row) for row in rows)
    assert "speed" not in rows[0]


def test_log_values(tmp_path):
    with tracking.Tracker(tmp_path) as tracker:
        tracker.log(0, loss=float("nan"), best=None, ok=True)
        tracker.log(1, acc=1, loss=float("inf"))
        for wrong in (torch.zeros(2), [1], object()):
            with pytest.raises(TypeError, match="log: loss: found"):
                tracker.log(2, loss=wrong)
    table = tracking.read_log(tmp_path)
    assert list(table.columns) == ["step", "acc", "best", "loss", "ok"] and len(table) == 2
    assert table.loss.isna().all() and table.acc[1] == 1
    with pytest.raises(FileNotFoundError, match="no such log"):
        tracking.read_log(tmp_path / "none")
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n[]\n{"step": 2}\n')
    with pytest.raises(ConfigError, match="log.jsonl, line 2: found"):
        tracking.read_log(tmp_path)
    with pytest.raises(ConfigError, match="tracking: found 'on'; allowed: disabled, offline, online"):
        tracking.Tracker(tmp_path, mode="on")


def test_rows_are_on_disk_at_once(tmp_path):
    tracker = tracking.Tracker(tmp_path)
    tracker.log(1, loss=2.0)
    assert (tmp_path / "log.jsonl").read_text() == '{"loss": 2.0, "step": 1}\n'
    tracker.close()
    tracker.close()


def test_disabled_does_not_import_wandb(tmp_path):
    code = f"""
import sys
from hrm.core.tracking import Tracker
with Tracker({str(tmp_path)!r}) as t: t.log(1, loss=1.0)
print("wandb" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


class FailingRun:
    "A W&B run whose methods all fail, or only some."

    id = "abc"

    def define_metric(self, *_, **__):
        pass

    def log(self, values):
        raise RuntimeError("Broken pipe\nand more")

    finish = log_artifact = log


def test_a_failing_guest_costs_one_warning(tmp_path, monkeypatch, capfd):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: FailingRun())
    with tracking.Tracker(tmp_path / "log", mode="offline") as tracker:
        for step in range(1, 4):
            tracker.log(step, loss=1.0)
        tracker.artifact(tmp_path, "x")
    monkeypatch.setattr(wandb, "init", lambda **_: 1 / 0)
    with tracking.Tracker(tmp_path / "init", mode="offline") as tracker:
        tracker.log(1, loss=1.0)
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with tracking.Tracker(tmp_path / "login", mode="online") as tracker:
        tracker.log(1, loss=1.0)
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("tracking:")]
    assert len(warnings) == 3
    assert (
        warnings[0] == "tracking: Weights & Biases is off from here on (RuntimeError: Broken pipe); log.jsonl goes on"
    )
    assert "ZeroDivisionError" in warnings[1] and "no login" in warnings[2]
    assert [len(tracking.read_log(tmp_path / name)) for name in ("log", "init", "login")] == [3, 1, 1]


def run_tracker(tmp_path, mode, **env):
    code = f"""
from pathlib import Path
from hrm.core.tracking import Tracker, read_log
folder = Path({str(tmp_path)!r})
(folder / "weights.txt").write_text("1")
with Tracker(folder / "run", mode={mode!r}, timeouts=(3, 3), config=dict(rate=1e-3)) as t:
    t.log(1, loss=1.0); t.log_system(1, speed=2.0)
    t.artifact(folder / "weights.txt", "the weights"); t.artifact(folder / "run", "folder")
    t.log(2, loss=0.5)
print(len(read_log(folder / "run")))"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"HOME": str(tmp_path / "home")} | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_offline_needs_no_network(tmp_path):
    done = run_tracker(tmp_path, "offline", WANDB_BASE_URL="http://127.0.0.1:9")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "2", "")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_online_without_login_or_network_goes_on(tmp_path):
    done = run_tracker(tmp_path, "online")
    assert (done.returncode, done.stdout.strip()) == (0, "2")
    assert [line for line in done.stderr.splitlines() if line] == [
        "tracking: Weights & Biases is off from here on (ConnectionError: no login; `wandb login` makes one); log.jsonl goes on"
    ]
    done = run_tracker(tmp_path, "online", WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="0" * 40)
    assert (done.returncode, done.stdout.strip()) == (0, "2")
    assert done.stderr.count("tracking: Weights & Biases is off") == 1


# --- stats ---


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_welch_is_scipys(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1, rng.integers(2, 9)), rng.normal(1, 3, rng.integers(2, 9))
    want, got = scipy_stats.ttest_ind(a, b, equal_var=False), stats.welch(a, b)
    assert np.allclose((got.t, got.p, got.df), (want.statistic, want.pvalue, want.df), rtol=1e-12)
    assert np.isclose(got.difference.value, a.mean() - b.mean())
    assert got.difference.low <= got.difference.value <= got.difference.high


def test_bootstrap_against_closed_forms():
    p, n = 0.91, 500
    got = stats.bootstrap(np.arange(n) < p * n, np.random.default_rng(0))
    half = 1.96 * np.sqrt(p * (1 - p) / n)
    assert got.value == p and got.n == n
    assert abs(got.low - (p - half)) < 3e-3 and abs(got.high - (p + half)) < 3e-3
    sample = np.random.default_rng(1).normal(5, 2, 400)
    got, half = stats.bootstrap(sample, np.random.default_rng(2), level=0.9), 1.645 * sample.std() / 20
    assert abs(got.low - (sample.mean() - half)) < 0.02 and abs(got.high - (sample.mean() + half)) < 0.02
    assert stats.bootstrap(sample, np.random.default_rng(2)) == stats.bootstrap(sample, np.random.default_rng(2))
    assert stats.bootstrap([0.5], np.random.default_rng(0)) == stats.Estimate(0.5, 0.5, 0.5, 1)
    assert stats.bootstrap(sample, np.random.default_rng(2), np.median).value == np.median(sample)
    for wrong in ([], [[1.0]], [np.nan]):
        with pytest.raises(ValueError, match="bootstrap: found"):
            stats.bootstrap(wrong, np.random.default_rng(0))


def test_blocks_do_not_change_the_bootstrap():
    sample = np.random.default_rng(1).normal(size=60)
    whole = stats._resampled([sample], np.random.default_rng(0), np.mean, 100, 100)
    assert np.array_equal(whole, stats._resampled([sample], np.random.default_rng(0), np.mean, 100, 7))


def test_paired_bootstrap():
    rng = np.random.default_rng(0)
    a = rng.normal(size=80)
    got = stats.paired_bootstrap(a + 0.25, a, np.random.default_rng(0))
    assert np.allclose((got.value, got.low, got.high), 0.25)
    with pytest.raises(ValueError, match="found 2 and 3 values"):
        stats.paired_bootstrap([1, 2], [1, 2, 3], rng)


def test_hedges_g_by_hand():
    a, b = (
        [2.0, 4.0, 6.0],
        [1.0, 3.0, 5.0],
    )  # both of standard deviation 2: d = 1/2; J(4) = Gamma(2)/(sqrt(2) Gamma(3/2))
    assert np.isclose(stats.hedges_g(a, b), 0.5 / (np.sqrt(2) * np.sqrt(np.pi) / 2))
    assert abs(stats._hedges_correction(58) - (1 - 3 / (4 * 58 - 1))) < 1e-5
    with pytest.raises(ValueError, match="no spread"):
        stats.hedges_g([1, 1], [2, 2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_holm_by_definition(p):
    order, worst, want = sorted(range(len(p)), key=lambda i: p[i]), 0.0, [0.0] * len(p)
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        want[i] = worst
    assert np.allclose(stats.holm(p), want)


def test_holm_by_hand():
    assert np.allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    with pytest.raises(ValueError, match="p_values: found 1.5; allowed: 0 to 1"):
        stats.holm([0.5, 1.5])


# --- plots and report ---


def test_palette_reads_on_white_and_dark():
    from matplotlib.colors import to_rgb

    def luminance(colour):
        c = np.array(to_rgb(colour))
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for colour in (*plots.PALETTE, plots.GREY):
        assert 1.05 / (luminance(colour) + 0.05) >= 3
        assert (luminance(colour) + 0.05) / (luminance("#131416") + 0.05) >= 3


def picture():
    fig, ax = plots.new(height=2)
    plots.reference(plots.series(ax, range(5), range(5), "line", low=range(5), high=range(1, 6)), 2.0, "level")
    return plots.label(ax, "step", "loss", "A line").figure


def test_figures_are_deterministic(project):
    import matplotlib.pyplot as plt

    stage = report.Stage("sudoku_train", "smoke")
    contents = []
    for name in ("one", "two"):
        plt.close(stage.figure(picture(), name))
        contents.append((stage.dir / f"{name}.png").read_bytes())
    assert contents[0] == contents[1] and len(contents[0]) < 60_000
    assert b"Software" not in contents[0] and b"tIME" not in contents[0]
    corner = plt.imread(stage.dir / "one.png")[0, 0]
    assert corner[3] == 0  # transparent
    with pytest.raises(ConfigError, match="figure: found '../x'"):
        stage.figure(None, "../x")


def test_stage_places(project):
    stage = report.Stage("sudoku_train", "smoke")
    assert stage.dir == project.resolve() / "reports/smoke/sudoku_train" and stage.dir.is_dir()
    assert stage.data == project.resolve() / "data/smoke/sudoku/train"
    assert report.Stage("environment", "smoke").data == project.resolve() / "data/smoke/environment"
    for wrong in (("../x", "smoke"), ("sudoku", "")):
        with pytest.raises(ConfigError, match="found"):
            report.Stage(*wrong)


def test_metrics_are_deterministic_and_finite(project):
    stage = report.Stage("sudoku_train", "smoke")
    stage.metrics({"b": {"y": np.float32(0.1), "x": torch.tensor(2)}, "a": [0.1 + 0.2, None, True]})
    first = (stage.dir / "metrics.json").read_bytes()
    stage.metrics({"a": [0.3, None, True], "b": {"x": 2, "y": float(np.float32(0.1))}})
    assert (stage.dir / "metrics.json").read_bytes() == first
    assert report.read_metrics("smoke", "sudoku_train") == {"a": [0.3, None, True], "b": {"x": 2, "y": 0.1000000015}}
    for wrong, key in (
        ({"a": {"b": [1, float("nan")]}}, r"a\.b\[1\]: found nan"),
        ({"a": np.array([np.inf])}, r"a\[0\]: found inf"),
    ):
        with pytest.raises(ValueError, match=key):
            stage.metrics(wrong)
    assert (stage.dir / "metrics.json").read_bytes() == first
    with pytest.raises(TypeError, match="a: found set"):
        stage.metrics({"a": {1}})
    stage.timings({"seconds": 1.5})
    assert report.read_metrics("smoke", "sudoku_train", "timings.json") == {
        "seconds": 1.5,
        "machine": json.loads(report.dump(device.machine())),
    }
    with pytest.raises(ConfigError, match="run the stage: dvc repro sudoku_data@smoke"):
        report.read_metrics("smoke", "sudoku_data")


def test_claims(project):
    stage = report.Stage("sudoku_train", "smoke")
    row = report.Claim("S1-10", "it halts", "works", "2.3 segments", "make repro")
    stage.claims([row, report.Claim("S1-3", "it solves", "partly", "0.93", "make repro")])
    got = report.read_metrics("smoke", "sudoku_train", "claims.json")
    assert [r["id"] for r in got] == ["S1-3", "S1-10"]
    assert got[1] == {
        "id": "S1-10",
        "claim": "it halts",
        "status": "works",
        "ours": "2.3 segments",
        "command": "make repro",
    }
    with pytest.raises(ValueError, match="found S1-10 twice"):
        stage.claims([row, row])
    for wrong, message in (
        (dict(id="x"), "found id 'x'"),
        (dict(status="yes"), "found status 'yes'; allowed: works, reproduced"),
        (dict(ours=""), "ours: found ''"),
    ):
        with pytest.raises(ValueError, match=message):
            report.Claim(**({"id": "S1-3", "claim": "c", "status": "works", "ours": "o", "command": "m"} | wrong))


def test_figure_rows(project):
    stage = report.Stage("sudoku_evaluate", "laptop")
    stage.figures(
        {"sudoku.easy9.exact": {"value": 0.93, "unit": "share", **stats.Estimate(0.93, 0.9, 0.95, 500).figure()}}
    )
    assert report.read_metrics("laptop", "sudoku_evaluate", "figures.json") == {
        "sudoku.easy9.exact": {
            "value": 0.93,
            "unit": "share",
            "low": 0.9,
            "high": 0.95,
            "n": 500,
            "stage": "sudoku_evaluate",
            "profile": "laptop",
            "machine": None,
        }
    }
    for wrong in ({"value": 1, "mean": 2}, {"unit": "x"}):
        with pytest.raises(ValueError, match="figure x: found"):
            stage.figures({"x": wrong})


def test_tables():
    rows = [
        {"level": "easy", "n": 12345, "exact": stats.Estimate(0.5, 0.25, 0.75, 4)},
        {"level": "a|b", "loss": 0.123456, "n": True},
    ]
    assert str(report.table(rows)) == (
        "| level | n | exact | loss |\n| --- | --- | ---: | ---: |\n"
        "| easy | 12,345 | 0.5 [0.25, 0.75] | – |\n| a\\|b | True | – | 0.1235 |"
    )
    frame = pd.DataFrame({"x": [1.0, float("nan")], "two words": [123456.7, np.float64(2)]})
    assert report.table(frame).splitlines()[1:] == ["| ---: | ---: |", "| 1 | 123,457 |", "| – | 2 |"]
    assert report.table([]) == "|  |\n|  |"
    assert report.table(rows)._repr_markdown_() == str(report.table(rows))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from([0.0, 0.01, 0.2]))
def test_graves_is_the_papers_definition(probabilities, epsilon):
    total, weights = 0.0, []
    for number, probability in enumerate(probabilities, 1):
        if total + probability >= 1 - epsilon or number == len(probabilities):
            weights.append(1 - total)
            break
        weights.append(probability)
        total += probability
    found, steps, remainder = halting.graves(torch.tensor(probabilities, dtype=torch.float64)[:, None], epsilon)
    assert steps.item() == len(weights) and remainder.item() == weights[-1]
    assert found[:, 0].tolist() == weights + [0.0] * (len(probabilities) - len(weights))
    spent, alive = torch.zeros(1, dtype=torch.float64), True
    for number, probability in enumerate(probabilities, 1):
        weight, spent, running = halting.graves_step(
            spent, torch.tensor([probability], dtype=torch.float64), number == len(probabilities), epsilon
        )
        assert weight.item() == found[number - 1].item() and running.item() == (alive and number < len(weights))
        alive = running.item()


def test_the_gate_of_graves_learns_from_the_cost_and_from_the_result():
    gates = torch.tensor([[0.2], [0.3], [0.9]], requires_grad=True)
    weights, steps, remainder = halting.graves(gates)
    (steps + remainder).sum().backward()
    assert gates.grad[:, 0].tolist() == [-1.0, -1.0, 0.0]
    gates.grad = None
    (halting.graves(gates)[0][:, 0] * torch.tensor([1.0, 5.0, 7.0])).sum().backward()
    assert gates.grad[:, 0].tolist() == [1.0 - 7.0, 5.0 - 7.0, 0.0]
