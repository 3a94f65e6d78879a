"A stage that is stopped, killed or orphaned: what it leaves and what it does not."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from copies import environment, shell

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


@pytest.fixture
def project(tmp_path) -> Path:
    "A project of one chapter that works for a minute and saves when it is interrupted."
    cells = [("markdown", [], "# A long chapter"), ("code", ["parameters"], 'profile = "smoke"'), ("code", [], CHAPTER),
             ("code", [], 'Path("later").touch()')]
    filled = [{"cell_type": kind, "id": f"c{i}", "metadata": {"tags": tags}, "source": source,
               **({"outputs": [], "execution_count": None} if kind == "code" else {})} for i, (kind, tags, source) in enumerate(cells)]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    (tmp_path / "nbs/chapters").mkdir(parents=True)
    (tmp_path / "nbs/chapters/01_long.ipynb").write_text(
        json.dumps({"cells": filled, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    (tmp_path / "params.yaml").write_text("run: [smoke]\nprofiles: {smoke: {}}\n")
    (tmp_path / "dvc.yaml").write_text("stages:\n  long:\n    cmd: python -m hrm.tools.stage run long smoke\n"
                                       "    outs:\n    - reports/smoke/long/long.ipynb: {cache: false}\n")
    return tmp_path


def start(project: Path, *line: str) -> subprocess.Popen:
    "Start a program in a session of its own and wait until the chapter is at work."
    log = open(project / "log", "w")
    process = subprocess.Popen(line, cwd=project, env=environment(), stdout=log, stderr=log, start_new_session=True)
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
        if process.info["cwd"] and Path(process.info["cwd"]) == project.resolve() and process.info["status"] != psutil.STATUS_ZOMBIE:
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


@pytest.mark.parametrize("wrapped", [False, True])
def test_killing_dvc_alone_leaves_no_orphan(project, wrapped, monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/sh")
    if wrapped:  # a shell that stays between DVC and the stage
        text = (project / "dvc.yaml").read_text()
        (project / "dvc.yaml").write_text(text.replace("run long smoke", "run long smoke; exit $?"))
    shell(sys.executable, "-m", "dvc", "init", "--no-scm", "-q", cwd=project)
    process = start(project, sys.executable, "-m", "dvc", "repro")
    process.kill()
    process.wait(10)
    wait_for(lambda: not running(project), 20, project)
    assert (project / "saved").exists() and not (project / "later").exists()


def test_wrong_names_are_told_before_anything_starts(project):
    for words, told in [(("run", "short", "smoke"), "allowed: long"), (("run", "long", "lapdog"), "allowed: smoke"),
                        (("run", "long"), "needs profile")]:
        done = shell(sys.executable, "-m", "hrm.tools.stage", *words, cwd=project, ok=False)
        assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_profile_is_no_path(project, monkeypatch, capsys):
    monkeypatch.setenv("HRM_ROOT", str(project))
    before = sorted(project.parent.rglob("*"))
    for verb, says in (("run", "no profile '../../x'"), ("execute", 'profile: found "../../x"; allowed: a name')):
        assert main([verb, "long", "../../x"]) == 2
        assert says in capsys.readouterr().err
    assert sorted(project.parent.rglob("*")) == before
