"""How long the Makefile's commands take in a fresh clone of what is committed, with this machine's rate of matrix products beside each.

    python benchmarks/commands.py [--test] [--repro] [--keep FOLDER] [--out reports/benchmarks/commands.json]

Always set-up, `make try`, `make smoke`, and `make smoke` again, which has nothing to do; on demand `make test`, and `make repro` with its
second call. Each is one process from start to end, in the order of a user, in an environment without this one's Python; downloads are part of
set-up, and a cache of packages that the user has is used. Before each the best rate of a float32 product is measured, since a busy
machine is what most differences come from. The record is written after each command, so a failure loses only what follows.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from hrm.core.config import root
from hrm.core.device import gemm_rate, machine, machine_name
from hrm.core.files import write_atomic

STEPS = {  # name -> target of the Makefile, unit
    "setup": (".venv/.ready", "seconds"),
    "try": ("try", "seconds"),
    "smoke": ("smoke", "minutes"),
    "smoke_again": ("smoke", "seconds"),
    "test": ("test", "minutes"),
    "repro": ("repro", "minutes"),
    "repro_again": ("repro", "seconds"),
}


def clean() -> dict[str, str]:
    "A user's environment: nothing of this project's, and no Python but the machine's own."
    ours = ("HRM_", "DVC_", "PYTHON", "VIRTUAL_ENV", "OMP_", "MAKE", "MFLAGS")
    here = {Path(sys.prefix, "bin"), Path(sys.executable).parent}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    places = [place for place in kept["PATH"].split(os.pathsep) if Path(place) not in here]
    shared = {"HRM_SHARED": os.environ["HRM_SHARED"]} if "HRM_SHARED" in os.environ else {}
    return kept | shared | {"PATH": os.pathsep.join(places)}


@contextmanager
def clone(project: Path, keep: Path | None = None) -> Iterator[Path]:
    "A fresh clone of what a project has committed, in an empty folder that goes afterwards unless it is to be kept."
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch) / "hrm"
        if folder.exists() and any(folder.iterdir()):
            raise typer.BadParameter(f"{folder}: not empty")
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(project), str(folder)], check=True)
        yield folder


def seconds(folder: Path, target: str, log: Path) -> float:
    "What `make target` takes. Raises `SystemExit` with the end of what it printed where it fails."
    began = time.perf_counter()
    with open(log, "w") as printed:
        done = subprocess.run(["make", target], cwd=folder, env=clean(), stdout=printed, stderr=subprocess.STDOUT)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{log.read_text(errors='replace')[-4000:]}\nmake {target}: exit code {done.returncode}")
    return took


def record(rows: dict[str, dict], commit: str) -> dict:
    "What is stored of the commands measured so far."
    about = {"low": None, "high": None, "n": 1, "stage": "benchmarks/commands", "profile": "laptop"}
    about["machine"] = machine_name()
    scale = {"seconds": 1, "minutes": 60}
    found = {
        f"commands.{name}": about | {"value": row["seconds"] / scale[STEPS[name][1]], "unit": STEPS[name][1]}
        for name, row in rows.items()
    }
    rate = about | {"value": min(row["gemm"] for row in rows.values()), "unit": "GFLOP/s"}
    return {"machine": machine(), "commit": commit, "commands": rows, "figures": found | {"commands.gemm": rate}}


def main(
    test: Annotated[bool, typer.Option("--test", help="also `make test`")] = False,
    repro: Annotated[bool, typer.Option("--repro", help="also `make repro`, twice")] = False,
    keep: Annotated[Path | None, typer.Option(help="an empty folder for the clone; kept afterwards")] = None,
    out: Annotated[Path, typer.Option(help="where the record goes, inside the project")] = Path(
        "reports/benchmarks/commands.json"
    ),
    project: Annotated[Path | None, typer.Option(help="what is cloned; this project by default")] = None,
):
    "Time the Makefile's commands in a fresh clone."
    project = (project or root()).resolve()
    wanted = ["setup", "try", "smoke", "smoke_again", *["test"] * test, *["repro", "repro_again"] * repro]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
    rows = {}
    with clone(project, keep and keep.resolve()) as folder, tempfile.TemporaryDirectory() as logs:
        for name in wanted:
            rate = gemm_rate(tries=20)
            took = seconds(folder, STEPS[name][0], Path(logs) / name)
            rows[name] = {"seconds": took, "gemm": rate}
            print(f"make {STEPS[name][0]:13} {took:8.1f} s at {rate:.0f} GFLOP/s", flush=True)
            text = json.dumps(record(rows, commit.stdout.strip()), indent=1, sort_keys=True, allow_nan=False) + "\n"
            write_atomic(root() / out, text)
    print(out)


if __name__ == "__main__":
    typer.run(main)
