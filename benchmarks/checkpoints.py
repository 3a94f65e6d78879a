"""Seconds and peak memory of `hrm inspect` on nine checkpoints of 27,990,018 values, each time in a fresh process.

    python benchmarks/checkpoints.py [--folder data/laptop/checkpoints/train/v9] [--repeats 3] [--out reports/benchmarks/checkpoints.json]

The time is that of the command without its imports; the memory is the most that the process ever held, torch included.
With `--made` nine checkpoints are made in a temporary folder first (540 MB): the document's model with as many trained rows as
its files had, the puzzle embedding in float16.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Optional

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import torch
import typer
from tqdm import tqdm

from hrm.checkpoints.document import LINES, V9, rows_trained
from hrm.core import checkpoint
from hrm.core.config import root
from hrm.core.files import write_atomic
from hrm.core.device import machine, machine_name, seeded, threads
from hrm.core.hrm import HRM

TABLE = "inner.puzzle_emb.weights"
INSIDE = """
import contextlib, io, json, resource, sys, time
from pathlib import Path
from hrm.tools.cli import main
import hrm.checkpoints.architecture, hrm.checkpoints.evaluate, hrm.checkpoints.report
began, said = time.perf_counter(), io.StringIO()
with contextlib.redirect_stdout(said):
    code = main(["inspect", *sys.argv[1:]])
seconds = time.perf_counter() - began
status = Path("/proc/self/status")
if status.is_file():
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
else:  # macOS counts in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
heavy = sorted({"pandas", "matplotlib", "scipy"} & {name.partition(".")[0] for name in sys.modules})
print(json.dumps({"code": code, "seconds": seconds, "peak_mb": peak, "heavy": heavy, "summary": json.loads(said.getvalue() or "{}").get("summary")}))
"""


def make(folder: Path) -> Path:
    "Nine checkpoints of the document's form."
    draw = seeded(1)
    weights = HRM(V9, generator=seeded(0)).state_dict()
    order = torch.randperm(V9.num_puzzle_identifiers, generator=draw)
    done = 0
    for line in tqdm(LINES, "making", unit="file"):
        upto = sum(rows_trained(line)) // 2
        weights[TABLE][order[done:upto]] = 0.01 * torch.randn(max(upto - done, 0), V9.puzzle_emb_ndim, generator=draw)
        for name in weights:
            if name != TABLE and "init" not in name:
                weights[name] = weights[name] + 1e-3 * torch.randn(weights[name].shape, generator=draw)
        done = max(done, upto)
        checkpoint.write(
            folder / f"step_{line.step:06d}", weights | {TABLE: weights[TABLE].half()}, {"step": line.step}
        )
    return folder


def measure(folder: Path, pattern: str) -> dict:
    "One run of the command in a fresh process."
    done = subprocess.run(
        [sys.executable, "-c", INSIDE, str(folder), "--pattern", pattern, "--json"],
        capture_output=True,
        text=True,
        cwd=root(),
    )
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"checkpoints: hrm inspect {folder} failed: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    if found["code"]:
        raise SystemExit(f"checkpoints: hrm inspect {folder} ended with {found['code']}: {done.stderr.strip()}")
    return found


def main(
    folder: Annotated[
        Optional[str], typer.Option(help="checkpoints  [default: data/laptop/checkpoints/train/v9]", show_default=False)
    ] = None,
    pattern: Annotated[str, typer.Option(help="which of them")] = "step_*",
    made: Annotated[bool, typer.Option("--made", help="make nine checkpoints for this, in a temporary folder")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="fresh processes")] = 3,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/checkpoints.json",
) -> None:
    """Seconds and peak memory of hrm inspect on nine checkpoints."""
    used, place = threads(), Path(folder) if folder else root() / "data" / "laptop" / "checkpoints" / "train" / "v9"
    if not made and not place.is_dir():
        raise SystemExit(
            f"checkpoints: {place}: no such folder; run the pipeline, name another with --folder, or have them made with --made"
        )
    with tempfile.TemporaryDirectory() if made else contextlib.nullcontext() as temporary:
        place = make(Path(temporary)) if made else place
        size = sum(
            file.stat().st_size
            for one in place.glob(pattern)
            for file in ([one] if one.is_file() else one.glob("*.safetensors"))
        )
        runs = [measure(place, pattern) for _ in tqdm(range(repeats), "inspect", unit="run")]
    summary = runs[0]["summary"]
    about = {
        "unit": "s",
        "low": min(r["seconds"] for r in runs),
        "high": max(r["seconds"] for r in runs),
        "n": repeats,
        "stage": "benchmarks/checkpoints",
        "profile": "laptop",
        "machine": machine_name(),
    }
    figures = {
        "checkpoints.seconds": about | {"value": statistics.median(r["seconds"] for r in runs)},
        "checkpoints.peak_mb": about
        | {
            "unit": "MB",
            "value": max(r["peak_mb"] for r in runs),
            "low": min(r["peak_mb"] for r in runs),
            "high": max(r["peak_mb"] for r in runs),
        },
    }
    print(
        f"{machine_name()}: {summary['total_checkpoints']} checkpoints of {summary['model_parameters']:,} values, {size / 2**20:.0f} MB: median {figures['checkpoints.seconds']['value']:.2f} s, "
        f"peak {figures['checkpoints.peak_mb']['value']:.0f} MB"
    )
    record = {
        "machine": machine(),
        "threads": used,
        "made": made,
        "file_mb": size / 2**20,
        "summary": summary,
        "repeats": repeats,
        "runs": [{key: r[key] for key in ("seconds", "peak_mb", "heavy")} for r in runs],
        "figures": figures,
    }
    print(write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"))


if __name__ == "__main__":
    typer.run(main)
