"""Trainings, stages and DVC itself are killed at random moments, and must still leave the bytes of an unbroken run.

    python benchmarks/kills.py [--sequences 30] [--seed 0] [--only TARGET] [--out reports/benchmarks/kills.json]

A sequence begins with a fresh copy of the project. It starts its line, sends SIGINT, SIGTERM or SIGKILL, waits until
nothing of it works any more, starts it again, and after one to three kills lets it come to its end. Then every output
is compared with those of a run that nobody stopped, without the timings; of dvc.lock the stages and their md5s are.

    training  from the command line: Sudoku, the memory system's questions, a text
    data      a data stage, through DVC
    stage     a training stage, through DVC
    dvc       stages in a row, killed up to a second after DVC began to write dvc.lock

A signal goes to the process alone; half of the SIGINTs go to its whole group, as from a terminal. dvc.lock is as long
as the repository's own. Before every start `python -m hrm.tools.stage lock` looks at it, as in `make repro`.
"""

import hashlib
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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Optional

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import psutil
import typer

from hrm.core.config import root
from hrm.core.device import machine
from hrm.core.files import write_atomic
from hrm.core.resume import RECORD

HRM = (sys.executable, "-m", "hrm.tools.cli")
DVC = (sys.executable, "-m", "hrm.tools.stage", "dvc", "repro")  # as `make repro` calls it
SMOKE = ("--profile", "smoke")
OUTPUTS = ("data/code", "data/smoke", "reports/smoke")
MOST_KILLS, MOST_RUNS = 3, 3  # kills of a sequence; runs after them, of which the first should be enough
GRACE, LIMIT = 70.0, 900.0  # seconds: for a last checkpoint (a stage has 60), for a line that heeded no signal


@dataclass(frozen=True)
class Case:
    "A line that is killed."

    target: str
    name: str  # for people
    line: tuple[str, ...]
    before: tuple[str, ...] = ()  # the line that makes what it needs


def training(system: str) -> Case:
    "A system's training from the command line."
    return Case("training", f"hrm {system} train", (*HRM, system, "train", *SMOKE), (*HRM, system, "data", *SMOKE))


def stages(target: str, names: str, before: str = "code") -> Case:
    "Stages through DVC."
    return Case(target, f"dvc repro {names}", (*DVC, *names.split()), (*DVC, *before.split()))


TEXT = Case(
    "training", "hrm text train", (*HRM, "text", "train", "README.md", "--model", "data/smoke/text/model", *SMOKE)
)
CASES = {
    "training": [training("sudoku"), training("memory"), TEXT],
    "data": [stages("data", f"{name}_data@smoke") for name in ("sudoku", "text", "memory")],
    "stage": [stages("stage", f"{name}_train@smoke", f"code {name}_data@smoke") for name in ("sudoku", "routing")],
    "dvc": [stages("dvc", "routing_data@smoke sudoku_data@smoke dialogue_data@smoke")],
}


def draw(rng: random.Random, seconds: float, locking: bool) -> dict:
    "The next kill of a line that takes so many seconds: a signal, whom it reaches, and when."
    name = rng.choice(["SIGINT", "SIGTERM", "SIGKILL"])
    group, moment = name == "SIGINT" and rng.random() < 0.5, 0.9 * rng.random()
    return {
        "signal": name,
        "to": "group" if group else "process",
        "after": "dvc.lock" if locking else "start",
        "seconds": round(moment * (1 if locking else seconds), 3),
    }


def environment(project: Path) -> dict[str, str]:
    "A user's environment; the package is the copy's own, and DVC keeps its notes beside the copy."
    kept = {k: v for k, v in os.environ.items() if not re.match("DVC_|HRM_|IN_TEST$|PYTHONHASHSEED$", k)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(project), "DVC_SITE_CACHE_DIR": str(project.parent / "site")}


def again(project: Path, line: tuple[str, ...]) -> subprocess.Popen:
    "Start a line as `make repro` does, which looks at dvc.lock first. What they print is kept beside the project."
    with open(project.parent / "log", "a") as log:
        about = {"cwd": project, "env": environment(project), "stdout": log, "stderr": log}
        subprocess.run([sys.executable, "-m", "hrm.tools.stage", "lock"], **about)
        return subprocess.Popen(line, start_new_session=True, **about)


def said(project: Path) -> str:
    "The last error that was printed, or the last line."
    lines = [line for line in (project.parent / "log").read_text(errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if re.match("ERROR|error|hrm:", line)), lines[-1] if lines else "")


def whole(project: Path, line: tuple[str, ...]) -> float:
    "The seconds of a line that nobody stops. Raises `SystemExit` with what it printed last if it fails."
    process, start = again(project, line), time.monotonic()
    if code := process.wait():
        raise SystemExit(f"kills: {' '.join(line)}: exit code {code}: {said(project)}")
    return time.monotonic() - start


def strike(process: subprocess.Popen, kill: dict, lock: Path) -> bool:
    "Send the signal at its moment; False if the process had ended by then."
    size = lock.stat().st_size
    while kill["after"] == "dvc.lock" and process.poll() is None and (now := lock.stat().st_size) >= size:
        size = now  # DVC empties the file before it writes it
        time.sleep(0.003)
    try:
        process.wait(kill["seconds"])
        return False
    except subprocess.TimeoutExpired:
        send = os.killpg if kill["to"] == "group" else os.kill
        send(process.pid, signal.Signals[kill["signal"]])
        return True


def working(project: Path) -> list[psutil.Process]:
    "The processes that work in a project's folder."
    return [
        process
        for process in psutil.process_iter(["cwd", "status"])
        if process.info["cwd"] == str(project) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def settle(process: subprocess.Popen, project: Path) -> list[str]:
    "Wait for a process and all it started. What works on for long is an orphan: it is ended, its line returned."
    with suppress(subprocess.TimeoutExpired):
        process.wait(LIMIT)
    end = time.monotonic() + GRACE
    while (left := working(project)) and time.monotonic() < end:
        time.sleep(0.2)
    lines = []
    for orphan in left:
        with suppress(psutil.NoSuchProcess):  # it ended in the meantime
            lines.append(" ".join(orphan.cmdline()[1:]).replace(str(project), "."))
            orphan.kill()
    psutil.wait_procs(left)
    process.wait()
    return lines


def locked(project: Path) -> dict[str, list]:
    "The stages of dvc.lock with the path and md5 of all but the timings, read from its text: it need not be whole."
    parts = re.split(r"^  ([\w@]+):\n", (project / "dvc.lock").read_text(), flags=re.MULTILINE)[1:]
    entries = [re.findall(r"- path: (.+)\n +hash: md5\n +md5: (.+)\n", part) for part in parts[1::2]]
    kept = [[entry for entry in found if "timings.json" not in entry[0]] for found in entries]
    return dict(zip(parts[::2], kept))


def results(project: Path) -> dict[str, str]:
    "What must be the same again: the sha256 of every output but the timings, and the stages of dvc.lock."
    found = {f"dvc.lock {stage}": str(entries) for stage, entries in locked(project).items()}
    for path in (path for top in OUTPUTS for path in (project / top).rglob("*")):
        if path.is_file() and path.name != "timings.json":
            found[str(path.relative_to(project))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def leftovers(project: Path) -> list[str]:
    "Temporary files and folders, runs in progress and sockets that nobody needs any more."
    found = (path for path in project.rglob("*") if path.relative_to(project).parts[0] not in (".git", ".dvc"))
    return sorted(
        str(path.relative_to(project))
        for path in found
        if path.suffix in (".tmp", ".new", ".old", ".done")
        or path.parent.name == "resume"
        and path.name != "rows"
        and not (path / RECORD).is_file()
        or path.name.startswith("kernel-ipc-")
    )


def fresh(project: Path) -> Path:
    "The tree as git would hand it out, with changes that are not committed yet, as a repository of its own."

    def git(*words: str, cwd: Path = project) -> str:
        return subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, text=True).stdout

    listing = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=root())
    for name in listing.split("\0"):
        if (root() / name).is_file():  # the deleted and the committed ones are listed alike
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root() / name, project / name)
    git("init", "-q", ".")
    git("add", "-A")
    git("-c", "user.name=kills", "-c", "user.email=kills@example.org", "commit", "-q", "-m", "A copy")
    return project


@dataclass
class Campaign:
    "The projects that sequences begin with, and what unbroken runs leave; each is made when it is first needed."

    folder: Path  # where all copies are
    project: Path  # as a user gets it
    ready: dict[tuple, Path] = field(default_factory=dict)
    unbroken: dict[str, tuple[dict, float]] = field(default_factory=dict)

    def copy(self, source: Path, name: str) -> Path:
        "A copy in a folder of its own, where what belongs to it can stand beside it."
        return Path(shutil.copytree(source, self.folder / name / "project", symlinks=True))

    def reference(self, case: Case) -> tuple[dict, float]:
        "What an unbroken run of a case leaves, and the seconds that it takes."
        if case.before not in self.ready:
            self.ready[case.before] = self.copy(self.project, f"ready_{len(self.ready)}")
            if case.before:
                whole(self.ready[case.before], case.before)
        if case.name not in self.unbroken:
            project = self.copy(self.ready[case.before], "unbroken")
            seconds = whole(project, case.line)
            self.unbroken[case.name] = results(project), seconds
            shutil.rmtree(project.parent)
        return self.unbroken[case.name]

    def sequence(self, case: Case, rng: random.Random, most: int = MOST_KILLS) -> dict:
        "Kill a case's line at most so often, let it come to its end, and compare; the record as a plain dictionary."
        expected, seconds = self.reference(case)
        project = self.copy(self.ready[case.before], "copy")
        stages, planned, kills, orphans, runs, code = locked(project).keys(), rng.randint(1, most), [], [], 0, None
        while code != 0 and runs < planned + MOST_RUNS:
            process, runs = again(project, case.line), runs + 1
            kill = draw(rng, seconds, case.target == "dvc") if runs <= planned else {}
            hit = bool(kill) and strike(process, kill, project / "dvc.lock")
            orphans += settle(process, project)
            code = process.returncode
            if kill:
                lost = len(stages - locked(project).keys())
                kills.append(kill | {"hit": hit, "exit_code": code, "stages_lost": lost})
        found, left = results(project), leftovers(project)
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        littered = any(name.startswith(OUTPUTS) for name in left)
        record = {
            "target": case.target,
            "line": case.name,
            "kills": kills,
            "runs": runs,
            "exit_code": code,
            "said": said(project) if code else "",
            "equal": not differing,
            "differing": differing,
            "orphans": orphans,
            "leftovers": left,
            "forgotten": sorted(stages - locked(project).keys()),
            "sound": not (differing or orphans or littered),
        }
        shutil.rmtree(project.parent)
        return record


def summary(rows: list[dict]) -> dict[str, int]:
    "Counts over the sequences."
    kills = [kill for row in rows for kill in row["kills"]]
    return {
        "sequences": len(rows),
        "equal": sum(row["equal"] for row in rows),
        "sound": sum(row["sound"] for row in rows),
        "ended": sum(row["exit_code"] == 0 for row in rows),
        "kills": len(kills),
        "kills_that_hit": sum(kill["hit"] for kill in kills),
        "orphans": sum(len(row["orphans"]) for row in rows),
        "kills_that_tore_dvc_lock": sum(kill["stages_lost"] > 0 for kill in kills),
    }


def show(number: int, row: dict) -> str:
    "A sequence in one line."
    kills = ", ".join(f"{kill['signal']} {kill['seconds']:.1f} s" for kill in row["kills"] if kill["hit"])
    faults = {
        "differ": row["differing"],
        "orphaned": row["orphans"],
        "left over": row["leftovers"],
        f"exit code {row['exit_code']}": [row["said"]] if row["exit_code"] else [],
    }
    told = [f"{len(found)} {fault}: {found[0]}" for fault, found in faults.items() if found]
    return f"{number:3} {row['line']}: {kills or 'no hit'}; {row['runs']} runs; {'; '.join(told) or 'equal bytes'}"


def main(
    sequences: Annotated[int, typer.Option(min=1, help="of all targets in rotation")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="of signals and moments")] = 0,
    only: Annotated[Optional[str], typer.Option(help=f"one target: {', '.join(CASES)}")] = None,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/kills.json",
) -> None:
    """Kill trainings, stages and DVC at random moments, and compare what they leave in the end with unbroken runs."""
    if only is not None and only not in CASES:
        raise SystemExit(f"kills: --only: found {only}; allowed: {', '.join(CASES)}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of a background job would not hear it
    targets, rows = [only] if only else list(CASES), []
    with tempfile.TemporaryDirectory(prefix="hrm-kills-") as folder:
        campaign = Campaign(Path(folder).resolve(), fresh(Path(folder).resolve() / "fresh"))
        try:
            for number in range(sequences):
                cases = CASES[targets[number % len(targets)]]
                case = cases[number // len(targets) % len(cases)]
                rows.append(campaign.sequence(case, random.Random(f"{seed} {number}")))
                print(show(number, rows[-1]), flush=True)
                record = {"machine": machine(), "seed": seed, "summary": summary(rows), "sequences": rows}
                path = write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
        finally:  # Ctrl-C reaches no child, each has a session of its own
            for process in psutil.Process().children(recursive=True):
                process.kill()
    print(f"\n{summary(rows)}\n{path}")


if __name__ == "__main__":
    typer.run(main)
