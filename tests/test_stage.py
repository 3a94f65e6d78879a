"A stage that is stopped, killed or orphaned: what it leaves and what it does not."

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

import psutil
import pytest
from copies import ROOT, commit, environment, shell
from ruamel.yaml import YAML

from hrm.core.config import ConfigError
from hrm.tools import dvc as caller, lock
from hrm.tools.stage import main

CHAPTER = """
import os, time
from pathlib import Path
Path("kernel.pid").write_text(str(os.getpid()))
try:
    for step in range(600):
        time.sleep(0.1)
except KeyboardInterrupt:
    Path("saved").write_text(str(step))
    raise
"""


ALONE = not sys.platform.startswith("linux") or len(os.sched_getaffinity(0)) < 2
side_by_side = pytest.mark.skipif(ALONE, reason="systems go side by side on Linux and more than one core")


@pytest.fixture
def project(tmp_path) -> Path:
    "A project of one chapter that works for a minute and saves when it is interrupted; an editor wrote a kernel of its own into it."
    cells = [
        ("markdown", [], "# A long chapter"),
        ("code", ["parameters"], 'profile = "smoke"'),
        ("code", [], CHAPTER),
        ("code", [], 'Path("later").touch()'),
    ]
    filled = [
        {
            "cell_type": kind,
            "id": f"c{i}",
            "metadata": {"tags": tags},
            "source": source,
            **({"outputs": [], "execution_count": None} if kind == "code" else {}),
        }
        for i, (kind, tags, source) in enumerate(cells)
    ]
    kernel = {"kernelspec": {"name": "somebodys-own", "language": "julia", "display_name": "Nobody else has it"}}
    (tmp_path / "nbs/chapters").mkdir(parents=True)
    (tmp_path / "nbs/chapters/01_long.ipynb").write_text(
        json.dumps({"cells": filled, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    )
    (tmp_path / "params.yaml").write_text("run: [smoke]\nprofiles: {smoke: {}}\n")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  long:\n    cmd: python -m hrm.tools.stage run long smoke\n"
        "    outs:\n    - reports/smoke/long: {cache: false}\n"
    )
    return tmp_path


def launch(project: Path, *line: str) -> subprocess.Popen:
    "Start a program in a session of its own."
    with open(project / "log", "w") as log:
        return subprocess.Popen(line, cwd=project, env=environment(), stdout=log, stderr=log, start_new_session=True)


def start(project: Path, *line: str) -> subprocess.Popen:
    "Start a program and wait until the chapter is at work."
    process = launch(project, *line)
    wait_for(lambda: (project / "kernel.pid").exists() and (project / "kernel.pid").read_text(), 60, project)
    time.sleep(0.3)
    return process


def wait_for(reached, seconds: float, project: Path) -> None:
    "Wait until something is so, or fail with what was printed."
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, (project / "log").read_text()
        time.sleep(0.1)


def running(project: Path) -> list[int]:
    "Processes that still work in the project's folder."
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        if (
            process.info["cwd"]
            and Path(process.info["cwd"]) == project.resolve()
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ):
            found.append(process.pid)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_stage_lets_the_chapter_save(project, number):
    process = start(project, sys.executable, "-m", "hrm.tools.stage", "run", "long", "smoke")
    os.kill(process.pid, number)
    assert process.wait(30) == 128 + number
    assert (project / "saved").exists() and not (project / "later").exists()
    assert not (project / "reports").exists(), "a stopped chapter is no result"
    assert (project / "data/.partial/smoke/long/long.ipynb").exists()
    wait_for(lambda: not running(project), 10, project)


def test_killing_the_stage_ends_the_kernel(project):
    process = start(project, sys.executable, "-m", "hrm.tools.stage", "run", "long", "smoke")
    process.kill()
    process.wait(10)
    wait_for(lambda: not running(project), 10, project)
    assert not (project / "later").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels start warm on Linux alone")
@pytest.mark.parametrize("number, who", [("TERM", "stage"), ("KILL", "stage"), ("KILL", "server"), ("INT", "all")])
def test_a_kernel_that_was_forked_ends_like_any_other(project, number, who):
    shell(sys.executable, "-m", "dvc", "init", "--no-scm", "-q", cwd=project)
    process = start(project, sys.executable, "-m", "hrm.tools.stage", "dvc", "repro")
    kernel = psutil.Process(int((project / "kernel.pid").read_text()))
    server = kernel.parent()
    assert "hrm.machine.warm" in server.cmdline() and os.getpgid(kernel.pid) == kernel.pid
    number = signal.Signals[f"SIG{number}"]
    if who == "stage":
        (stage,) = [
            one for one in psutil.Process(process.pid).children(True) if {"hrm.tools.stage", "run"} <= {*one.cmdline()}
        ]
        stage.send_signal(number)
    elif who == "server":  # nobody misses it
        server.send_signal(number)
        os.killpg(process.pid, signal.SIGINT)
    else:  # as Ctrl-C in a terminal
        os.killpg(process.pid, number)
    assert process.wait(30) != 0
    wait_for(lambda: not running(project), 20, project)
    assert (project / "saved").exists() == (who != "stage" or number != signal.SIGKILL)
    assert not (project / "later").exists() and not (project / "reports").exists()
    assert not server.is_running()


@pytest.fixture
def two_systems(project) -> Path:
    "The chapter once more, in a system of its own; each notes its kernel, and what it has saved, by its name."
    chapter = (project / "nbs/chapters/01_long.ipynb").read_text()
    for number, name in enumerate(("long", "also"), 1):
        named = re.sub(r'"(kernel.pid|saved|later)', lambda found: f'"{name}.{found[1]}', chapter.replace('\\"', "'"))
        named = re.sub(r"'(kernel.pid|saved|later)", lambda found: f"'{name}.{found[1]}", named)
        (project / f"nbs/chapters/0{number}_{name}.ipynb").write_text(named)
    stages = [
        f"  {name}:\n    matrix: {{run: ['smoke']}}\n    cmd: python -m hrm.tools.stage run {name} ${{item.run}}\n"
        f"    deps: [closures/{name}]\n"
        f"    outs:\n    - reports/${{item.run}}/{name}: {{cache: false}}\n"
        for name in ("long", "also")
    ]
    code = "  code:\n    cmd: mkdir -p closures && touch closures/long closures/also\n    outs: [closures]\n"
    (project / "dvc.yaml").write_text("stages:\n" + code + "".join(stages))
    shell(sys.executable, "-m", "dvc", "init", "--no-scm", "-q", cwd=project)
    return project


@side_by_side
@pytest.mark.parametrize("number", ["TERM", "KILL", "INT"])
def test_systems_side_by_side_end_with_the_command(two_systems, number):
    project = two_systems
    process = launch(project, sys.executable, "-m", "hrm.tools.stage", "dvc", "--profile", "smoke")
    both = [project / f"{name}.kernel.pid" for name in ("long", "also")]
    wait_for(lambda: all(file.exists() and file.read_text() for file in both), 60, project)
    time.sleep(0.3)
    if number == "INT":  # as Ctrl-C in a terminal
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.Signals[f"SIG{number}"])
    code = process.wait(30)
    assert code == (-9 if number == "KILL" else 128 + signal.Signals[f"SIG{number}"])
    wait_for(lambda: not running(project), 20, project)
    for name in ("long", "also"):
        assert (project / f"{name}.saved").exists() and not (project / f"{name}.later").exists()


@side_by_side
def test_a_system_that_fails_does_not_stop_another(two_systems):
    project = two_systems
    for name, seconds in (("01_long", 0), ("02_also", 3)):
        file = project / f"nbs/chapters/{name}.ipynb"
        file.write_text(file.read_text().replace("range(600)", f"range({10 * seconds})" if seconds else "range(1 / 0)"))
    done = subprocess.run(
        (sys.executable, "-m", "hrm.tools.stage", "dvc", "--profile", "smoke"),
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "ZeroDivisionError" in done.stderr
    assert (project / "also.later").exists() and not (project / "long.later").exists()
    assert list(lock.entries((project / "dvc.lock").read_text())) == ["code", "also@smoke"]


@side_by_side
def test_each_group_of_stages_goes_to_a_dvc_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(caller, "stage_groups", lambda number: [["a", "b"], ["c"]])

    def dvc(line):
        (tmp_path / str(time.time_ns())).write_text(" ".join(line))
        return 3 if line[-1] == "c@smoke" else 0

    assert caller.side_by_side(dvc, "smoke") == 3
    first, *others = [file.read_text() for file in sorted(tmp_path.iterdir())]
    assert first == "repro code"
    one = "--wait-for-lock repro --single-item"
    assert sorted(others) == [f"{one} a@smoke b@smoke", f"{one} c@smoke"]
    assert caller.side_by_side(lambda line: 7, "smoke") == 7, "without the closures nothing begins"
    done = []
    with pytest.raises(ConfigError, match="no profile 'lapdog' among those of `run`; allowed: smoke, laptop"):
        caller.side_by_side(done.append, "lapdog")
    assert done == []
    with pytest.raises(SystemExit):
        main(["dvc", "--profile", "smoke", "repro", "--dry"])


@pytest.mark.parametrize("wrapped", [False, True])
def test_killing_dvc_alone_leaves_no_orphan(project, wrapped, monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/sh")
    if wrapped:  # a shell that stays between DVC and the stage
        text = (project / "dvc.yaml").read_text()
        (project / "dvc.yaml").write_text(text.replace("run long smoke", "run long smoke; exit $?"))
    shell(sys.executable, "-m", "dvc", "init", "--no-scm", "-q", cwd=project)
    dvc = ("dvc",) if wrapped else ("hrm.tools.stage", "dvc")  # DVC itself, and as `make` calls it
    process = start(project, sys.executable, "-m", *dvc, "repro")
    process.kill()
    process.wait(10)
    wait_for(lambda: not running(project), 20, project)
    assert (project / "saved").exists() and not (project / "later").exists()


@pytest.mark.parametrize("delay", [0.05, 0.4, 1.0])
def test_a_dvc_killed_early_leaves_no_orphan(project, delay):
    shell(sys.executable, "-m", "dvc", "init", "--no-scm", "-q", cwd=project)
    process = launch(project, sys.executable, "-m", "dvc", "repro")
    wait_for(psutil.Process(process.pid).children, 60, project)
    time.sleep(delay)
    process.kill()
    process.wait(10)
    wait_for(lambda: not running(project), 20, project)
    assert not (project / "later").exists() and not (project / "reports").exists()


@pytest.mark.parametrize("verb", ["run", "execute"])
def test_a_stage_whose_dvc_is_gone_does_nothing(project, verb):
    line = (sys.executable, "-m", "hrm.tools.stage", verb, "long", "smoke")
    done = shell(*line, cwd=project, ok=False, DVC_STAGE="long")
    assert (done.returncode, done.stderr) == (143, "long: the DVC that started this stage is gone; nothing was run\n")
    assert not (project / "kernel.pid").exists() and not (project / "data").exists()


def test_dvc_called_from_python_is_known_and_watched(project):
    shell(sys.executable, "-m", "dvc", "init", "--no-scm", "-q", cwd=project)
    process = start(project, sys.executable, "-c", "from dvc.repo import Repo\nRepo().reproduce()")
    process.kill()
    process.wait(10)
    wait_for(lambda: not running(project), 20, project)
    assert (project / "saved").exists() and not (project / "later").exists()


def test_a_second_signal_ends_a_chapter_that_takes_no_notice_of_the_first(project):
    chapter = project / "nbs/chapters/01_long.ipynb"
    chapter.write_text(chapter.read_text().replace("raise\\n", "time.sleep(600)\\n"))
    process = start(project, sys.executable, "-m", "hrm.tools.stage", "run", "long", "smoke")
    process.send_signal(signal.SIGTERM)
    wait_for((project / "saved").exists, 20, project)
    process.send_signal(signal.SIGHUP)  # a terminal that closes is no second request
    time.sleep(2)
    assert process.poll() is None and "once more" not in (project / "log").read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 143
    wait_for(lambda: not running(project), 10, project)
    assert "SIGINT: interrupting once more" in (project / "log").read_text() and not (project / "later").exists()


def test_nohup_lets_a_stage_outlive_its_terminal(project):
    process = start(project, "nohup", sys.executable, "-m", "hrm.tools.stage", "run", "long", "smoke")
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None and not (project / "saved").exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143


def test_a_kernels_sockets_go_with_the_run(project):
    folders = lambda: list(Path(tempfile.gettempdir()).glob(f"hrm-kernel-{process.pid}-*"))
    for number in (signal.SIGKILL, signal.SIGTERM):
        (project / "kernel.pid").unlink(missing_ok=True)
        killed, process = (
            folders() if number == signal.SIGTERM else [],
            start(project, sys.executable, "-m", "hrm.tools.stage", "run", "long", "smoke"),
        )
        assert len(folders()) == 1 and not any(path.exists() for path in killed), "a killed stage's folder is cleared"
        process.send_signal(number)
        process.wait(30)
        wait_for(lambda: not running(project), 10, project)
        assert list(project.glob("kernel*ipc*")) == []
    assert folders() == []


def test_wrong_names_are_told_before_anything_starts(project):
    for words, told in [
        (("run", "short", "smoke"), "allowed: long"),
        (("run", "long", "lapdog"), "allowed: smoke"),
        (("run", "long"), "needs profile"),
    ]:
        done = shell(sys.executable, "-m", "hrm.tools.stage", *words, cwd=project, ok=False)
        assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_stage_chooses_its_kernel_itself(project):
    chapter = project / "nbs/chapters/01_long.ipynb"
    chapter.write_text(chapter.read_text().replace("range(600)", "range(1)"))
    shell(sys.executable, "-m", "hrm.tools.stage", "run", "long", "smoke", cwd=project)
    stored = json.loads((project / "reports/smoke/long/long.ipynb").read_text())["metadata"]
    assert stored == {
        "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


# dvc.lock

PIPELINE = (ROOT / "dvc.yaml").read_text()


def written_lock() -> bytes:
    "A dvc.lock as DVC writes it when both profiles have run, with checksums of nothing."
    draw, stages, blocks = random.Random(1), {}, YAML(typ="safe").load(PIPELINE)["stages"]

    def files(paths, run):
        for path in sorted(path if isinstance(path, str) else next(iter(path)) for path in paths):
            folder = "." not in path.rsplit("/", 1)[-1].replace("${item.run}", "")
            yield {
                "path": path.replace("${item.run}", run),
                "hash": "md5",
                "md5": f"{draw.getrandbits(128):032x}" + ".dir" * folder,
                "size": draw.randrange(10**6),
            } | ({"nfiles": draw.randrange(30)} if folder else {})

    for name, run in [
        ("code", ""),
        *((name, run) for run in ("smoke", "laptop") for name in blocks if "matrix" in blocks[name]),
    ]:
        block = blocks[name]
        params = {
            key.replace("${item.run}", run): {"seed": 0, "runs": {"one": {"steps": 800}}}
            for key in block.get("params", [])
        }
        stages[f"{name}@{run}" if run else name] = {
            "cmd": block["cmd"].replace("${item.run}", run),
            "deps": list(files(block["deps"], run)),
            **({"params": {"params.yaml": params}} if params else {}),
            "outs": list(files(block["outs"], run)),
        }
    text = StringIO()
    YAML().dump({"schema": "2.0", "stages": stages}, text)
    return text.getvalue().encode()


LOCK = written_lock()
LAST = re.findall(rb"^  (\w+)@laptop:$", LOCK, re.M)[-1].decode()  # the stage that was added last
HEADER = LOCK.rindex(f"\n  {LAST}@laptop:".encode()) + 1


@pytest.fixture
def locked(tmp_path, monkeypatch) -> Path:
    "A project with this one's dvc.yaml and a dvc.lock of it, and with the copy that the stage runner keeps."
    (tmp_path / "params.yaml").touch()
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "dvc.lock").write_bytes(LOCK)
    monkeypatch.setenv("HRM_ROOT", str(tmp_path))
    lock.keep_lock()
    assert (tmp_path / "data/.partial/dvc.lock").read_bytes() == LOCK
    return tmp_path


def cuts() -> list[int]:
    "Where a write may end: anywhere, where Python's buffer is full, and at each kind of place there is in the file."
    draw, text = random.Random(0), LOCK.decode()
    headers = [found.start() for found in re.finditer(r"^  \S+:$", text, re.M)]
    lines = [found.end() for found in re.finditer("\n", text)]
    last = [place for place in lines if place > headers[-1]]
    return sorted(
        {
            0,
            1,
            text.index("stages:"),
            headers[0],
            *draw.sample(range(len(LOCK)), 15),
            *draw.sample(lines, 15),
            *range(8192, len(LOCK), 8192),
            *draw.sample(headers, 6),
            *draw.sample(last[:-1], 12),
            *last[-6:-1],
            len(LOCK) - 1,
        }
    )


def test_every_part_of_a_lock_file_is_restored(locked, capfd):
    newer = re.sub(rb"(?<=md5: )[0-9a-f]{32}", b"0" * 32, LOCK, count=1)  # the first stage has just run again
    assert len(cuts()) >= 40 and len(newer) == len(LOCK) and newer != LOCK
    for text in (LOCK, newer):
        for end in cuts():
            (locked / "dvc.lock").write_bytes(text[:end])
            lock.keep_lock(seconds=0)
            assert (locked / "dvc.lock").read_bytes() == LOCK, (end, text[max(0, end - 80) : end])
            told = capfd.readouterr().err
            assert told.startswith("dvc.lock: torn, it ") or told.startswith("dvc.lock: torn, the entry of "), told
            assert (
                told.endswith("; restored from data/.partial/dvc.lock; what was torn is beside it\n")
                and told.count("\n") == 1
            )


def test_a_new_stage_that_was_cut_is_not_kept(locked):
    (locked / "dvc.lock").write_bytes(LOCK[:HEADER])  # before the last stage ran for the first time
    (locked / "data/.partial/dvc.lock").unlink()
    lock.keep_lock()
    lines = [place.end() for place in re.finditer(b"\n", LOCK) if HEADER < place.end() < len(LOCK)]
    for end in (*lines[:3], *lines[3:-6:8], *lines[-6:]):
        (locked / "dvc.lock").write_bytes(LOCK[:end])
        lock.keep_lock(seconds=0)
        assert (locked / "dvc.lock").read_bytes() == LOCK[:HEADER], LOCK[end - 80 : end]


def test_what_somebody_wanted_is_left_alone(locked, capfd):
    newer = LOCK.replace(re.search(rb"md5: [0-9a-f]{32}", LOCK)[0], b"md5: " + b"0" * 32, 1)
    wish = re.sub(rf"(^  {LAST}:\n(?:    .*\n)*?    deps: \[)", r"\1README.md, ", PIPELINE, flags=re.M)
    without = PIPELINE.replace(f"  {LAST}:\n", "  one_renamed:\n")
    middle = re.sub(rb"(?ms)^  environment@smoke:\n.*?(?=^  sudoku_data@smoke:\n)", b"", LOCK)
    assert wish != PIPELINE != without and len(middle) < len(LOCK)
    for pipeline, text in ((PIPELINE, newer), (wish, newer), (without, LOCK[:HEADER]), (PIPELINE, middle)):
        (locked / "data/.partial/dvc.lock").write_bytes(LOCK)
        (locked / "dvc.yaml").write_text(pipeline)
        (locked / "dvc.lock").write_bytes(text)
        lock.keep_lock(seconds=0)
        assert (locked / "dvc.lock").read_bytes() == (locked / "data/.partial/dvc.lock").read_bytes() == text
    (locked / "dvc.lock").unlink()  # to forget everything
    lock.keep_lock(seconds=0)
    (locked / "dvc.lock").write_bytes(LOCK[: LOCK.index(b"  environment@smoke:")])
    lock.keep_lock(seconds=0)
    assert (locked / "dvc.lock").stat().st_size < 2000 and capfd.readouterr().err == ""


def test_what_git_has_committed_is_whole_and_the_last_resort(locked, capfd):
    older = LOCK[:HEADER]
    (locked / "dvc.lock").write_bytes(older)
    shell("git", "init", "-q", cwd=locked)
    commit(locked, "An older one")
    lock.keep_lock(seconds=0)
    assert (locked / "dvc.lock").read_bytes() == older and capfd.readouterr().err == ""
    shutil.rmtree(locked / "data")
    (locked / "dvc.lock").write_bytes(LOCK[:5000])
    lock.keep_lock(seconds=0)
    assert (locked / "dvc.lock").read_bytes() == older
    assert "restored from what git has committed" in capfd.readouterr().err
    shutil.rmtree(locked / ".git")
    shutil.rmtree(locked / "data", ignore_errors=True)
    (locked / "dvc.lock").write_bytes(LOCK[:5000])
    lock.keep_lock(seconds=0)
    assert (locked / "dvc.lock").read_bytes() == LOCK[:5000] and "there is no copy" in capfd.readouterr().err
    assert not (locked / "data").exists()


def test_a_file_that_is_just_being_written_is_waited_for(locked, capfd):
    newer = re.sub(rb"(?<=md5: )[0-9a-f]{32}", b"0" * 32, LOCK, count=1)
    writer = (
        "import sys, time\nwith open('dvc.lock', 'wb', buffering=0) as file:\n    print(flush=True)\n"
        "    data = sys.stdin.buffer.read()\n    for i in range(0, len(data), 40_000):\n"
        "        file.write(data[i:i + 40_000])\n        time.sleep(0.2)\n"
    )
    line = [sys.executable, "-c", writer]
    writing = subprocess.Popen(line, cwd=locked, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    writing.stdout.readline()
    writing.stdin.write(newer)
    writing.stdin.close()
    lock.keep_lock(seconds=2)
    assert (locked / "dvc.lock").read_bytes() == (locked / "data/.partial/dvc.lock").read_bytes() == newer
    assert writing.wait(10) == 0 and capfd.readouterr().err == ""


def test_dvc_goes_on_after_its_files_were_torn(tmp_path):
    (tmp_path / "params.yaml").touch()
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        + "".join(
            f"  {name}:\n    cmd: echo {name} >> {name}\n    deps: [{dep}]\n    outs:\n    - {name}: {{cache: false}}\n"
            for dep, name in (("params.yaml", "a"), ("a", "b"), ("b", "c"))
        )
    )
    dvc, lock = (sys.executable, "-m", "dvc"), (sys.executable, "-m", "hrm.tools.stage", "lock")
    shell(*dvc, "init", "--no-scm", "-q", cwd=tmp_path)
    assert shell(*dvc, "repro", cwd=tmp_path).stdout.count("Running stage") == 3
    assert shell(*lock, cwd=tmp_path).stderr == ""
    whole = (tmp_path / "dvc.lock").read_bytes()
    (tmp_path / "dvc.lock").write_bytes(whole[: whole.index(b"  b:")])
    (tmp_path / ".dvc/tmp/rwlock").write_text('{"write": {"a": {"pi')
    told = shell(*lock, cwd=tmp_path).stderr.splitlines()
    assert told == [
        "dvc.lock: torn, it ends after a, 1 of 3 stages; restored from data/.partial/dvc.lock; what was torn is beside it",
        ".dvc/tmp/rwlock: torn, a DVC was ended while it wrote; removed",
    ]
    assert "Running stage" not in shell(*dvc, "repro", cwd=tmp_path).stdout
    assert (tmp_path / "dvc.lock").read_bytes() == whole


def test_a_stage_restores_the_lock_file_below_a_running_dvc(project):
    long = (project / "dvc.yaml").read_text()
    other = "  a:\n    cmd: touch a\n    outs: [a]\n  b:\n    cmd: touch b\n    outs: [b]\n"
    chapter = project / "nbs/chapters/01_long.ipynb"
    chapter.write_text(chapter.read_text().replace("range(600)", "range(1)"))
    (project / "dvc.yaml").write_text(long.replace("stages:\n", "stages:\n" + other))
    shell(sys.executable, "-m", "dvc", "init", "--no-scm", "-q", cwd=project)
    shell(sys.executable, "-m", "dvc", "repro", "a", "b", cwd=project)
    shell(sys.executable, "-m", "hrm.tools.stage", "lock", cwd=project)
    whole = (project / "dvc.lock").read_bytes()
    (project / "dvc.lock").write_bytes(whole[: whole.index(b"  b:")])
    done = shell(sys.executable, "-m", "dvc", "repro", "long", cwd=project)
    assert "it ends after a, 1 of 2 stages; restored" in done.stderr
    assert list(lock.entries((project / "dvc.lock").read_text())) == ["a", "b", "long"]


@pytest.mark.parametrize("code", [0, 1])
def test_make_looks_at_the_lock_file_before_and_after(monkeypatch, code):
    for word, what in {"repro": ["repro", "book"], "smoke": ["--profile", "smoke"]}.items():
        lines = [line.split() for line in shell("make", "-n", word, cwd=ROOT).stdout.splitlines()]
        assert ["python", "-m", "hrm.tools.stage", "dvc", *what] in lines
        assert not [line for line in lines if line[0] == "dvc"], "no other way to DVC"
    done = []
    for name in ("put_back", "keep_lock", "mend_rwlock"):
        monkeypatch.setattr(caller, name, lambda name=name: done.append(name))
    monkeypatch.setattr("dvc.cli.main", lambda arguments: done.append(arguments) or code)
    monkeypatch.setattr(caller, "side_by_side", lambda dvc, profile: done.append(profile) or code)
    assert caller.with_dvc([], "smoke") == code
    assert done == ["put_back", "keep_lock", "mend_rwlock", "smoke"] + ["keep_lock"] * (code == 0)
    done.clear()
    assert caller.with_dvc(["repro", "book"]) == code
    looks = ["put_back", "keep_lock", "mend_rwlock", ["repro", "book"]]
    assert done == looks + ["keep_lock"] * (code == 0), "a copy of what a failure has left would be no good"


def test_a_profile_is_no_path(project, monkeypatch, capsys):
    monkeypatch.setenv("HRM_ROOT", str(project))
    before = sorted(project.parent.rglob("*"))
    for verb, says in (("run", "no profile '../../x'"), ("execute", 'profile: found "../../x"; allowed: a name')):
        assert main([verb, "long", "../../x"]) == 2
        assert says in capsys.readouterr().err
    assert sorted(project.parent.rglob("*")) == before
