"What several tests share: the environment of a user, and clean copies of the project."

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
place: Path  # of the copy that others are made of
LEFT_OUT = shutil.ignore_patterns(
    ".git",
    ".venv",
    "_*",
    "data",
    "dvc_plots",
    "wandb",
    "__pycache__",
    "*.egg-info",
    ".pytest_cache",
    ".hypothesis",
    ".ipynb_checkpoints",
    "cache",
    "tmp",
)


def environment(**extra: str) -> dict[str, str]:
    "The environment of a user with the project's .venv activated; nothing of the running test leaks into it."
    mine = {
        k: v
        for k, v in os.environ.items()
        if k not in ("HRM_ROOT", "IN_TEST", "PYTHONHASHSEED") and not k.startswith("DVC_")
    }
    return mine | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"} | extra


def shell(*line: str | Path, cwd: Path, ok: bool = True, **extra: str) -> subprocess.CompletedProcess:
    "Run a program of the project's environment; with `ok` its failure is the test's, with all it printed."
    done = subprocess.run(
        [str(word) for word in line], cwd=cwd, env=environment(**extra), capture_output=True, text=True
    )
    assert done.returncode == 0 or not ok, (
        f"{' '.join(map(str, line))}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done


WARM = """
from hrm.sudoku.generate import generate
from hrm.sudoku.symmetry import canonical
made = generate(1, 4, (6, 8), progress=False)
canonical(made.puzzles, made.solutions)
"""


def with_bytecode(target: Path) -> None:
    "Give a copy what Python and numba have compiled here: numba alone takes 20 seconds, and git ignores all of it."
    shell(sys.executable, "-c", WARM, cwd=ROOT, PYTHONDONTWRITEBYTECODE="")
    for cache in sorted((ROOT / "hrm").rglob("__pycache__")):
        shutil.copytree(
            cache,
            target / cache.relative_to(ROOT),
            ignore=shutil.ignore_patterns("*.tmp.*", "*.pyc.*"),
            dirs_exist_ok=True,
        )


@functools.cache
def clean_copy(target: Path) -> Path:
    "The tree as git would hand it to a new user, changes that are not committed yet included, as a repository of its own."
    if (ROOT / ".git").exists():
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, listing.stdout.split("\0")):
            if (ROOT / name).is_file():  # a file that was deleted is still listed until the deletion is committed
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target / name)
    else:
        shutil.copytree(ROOT, target, ignore=LEFT_OUT, dirs_exist_ok=True)
    with_bytecode(target)
    shell("git", "init", "-q", "-b", "main", ".", cwd=target)
    commit(target, "A clean copy")
    shell(sys.executable, "-m", "hrm.tools.stage", "plots", cwd=target)  # part of the set-up that `make` does
    return target


def copy_project(target: Path) -> Path:
    "A clean copy of the project, set up; made once in a process (`conftest` says where) and copied from there."
    return Path(shutil.copytree(clean_copy(place), target, symlinks=True, dirs_exist_ok=True))


def commit(project: Path, message: str) -> None:
    "Commit everything, as whoever runs the tests."
    shell("git", "add", "-A", cwd=project)
    shell(
        "git",
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.org",
        "commit",
        "-q",
        "--allow-empty",
        "-m",
        message,
        cwd=project,
    )
