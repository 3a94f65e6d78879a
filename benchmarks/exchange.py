"""A checkpoint on other people's puzzles, none of which it was trained on: one run, and tries under disguises.

    python benchmarks/exchange.py [--checkpoint FOLDER] [--out reports/benchmarks/exchange.json]

The puzzles are the files `exchange_*_200.csv` and `extreme_dev_500.csv` in the folder `data/sudoku` of the shared data
(`HRM_SHARED`, by default `../shared` beside the repository); they are not part of it. Each is shown under five symmetries
drawn by five seeds, so that no lucky orientation counts; intervals are over the puzzles.
"""

import json
import os
import time
from pathlib import Path
from typing import Annotated

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import numpy as np
import typer

from hrm.core.checkpoint import CheckpointError, read as read_checkpoint
from hrm.core.config import root
from hrm.core.device import machine, machine_name, seeded, threads
from hrm.core.errors import DataError
from hrm.core.files import write_atomic
from hrm.core.stats import bootstrap
from hrm.puzzles.evaluate import rollout
from hrm.puzzles.restarts import restarts
from hrm.sudoku.data import Puzzles, read
from hrm.sudoku.evaluate import baselines, passes
from hrm.sudoku.model import load
from hrm.sudoku.symmetry import disguises
from hrm.tools.commands.opening import PIPELINE, SHIPPED

FILES = {name: f"exchange_{name}_200.csv" for name in ("easy", "medium", "hard", "diabolical")}
FILES["extreme_dev"] = "extreme_dev_500.csv"
DEPTHS = (1, 2, 4, 8)  # times the trained segments, of one run
PATIENCE = 4  # of an attempt, which ends as soon as its answer passes


def files(folder: Path) -> dict[str, Path]:
    "The five files, the easiest first. Raises FileNotFoundError that says what is missing and where it was looked for."
    found = {name: folder / file for name, file in FILES.items()}
    if missing := [path.name for path in found.values() if not path.is_file()]:
        raise FileNotFoundError(
            f"{folder}: {', '.join(missing)} not found; set HRM_SHARED to the folder that holds data/sudoku"
        )
    return found


def checkpoint_or_shipped(given: Path | None) -> Path:
    "What was named, else what `make repro` leaves, else what came with the package."
    own = root() / PIPELINE["sudoku"]
    return given or (own if own.is_dir() else SHIPPED / "sudoku")


def one_run(model, data: Puzzles, segments: int, seeds: int) -> np.ndarray:  # [seeds, N, segments] bool: right
    "Whether a puzzle is right after each segment, under one disguise for each seed."
    right = []
    for seed in range(seeds):
        draw = disguises(len(data), data.size, 2, seeded(seed))(np.arange(len(data)), np.ones(len(data), int))
        result = rollout(model, draw.apply(data.tokens()[0]), segments)
        labels = draw.apply(data.tokens()[1]).numpy()
        right.append((result.tokens == labels[:, None]).all(-1))
    return np.stack(right)


def tried(model, data: Puzzles, tries: int, segments: int, seeds: int) -> np.ndarray:  # [seeds, N] attempts; 0 for none
    "How many attempts it took until an answer kept the clues and broke no rule."
    found = []
    for seed in range(seeds):
        drawn = disguises(len(data), data.size, tries + 1, seeded(seed))
        draw = lambda rows, attempts: drawn(rows, attempts + 1)  # the first attempt is in disguise as well
        found.append(restarts(model, data.tokens()[0], passes(data), draw, tries, segments, progress=True).tries)
    return np.stack(found)


def measure(model, data: Puzzles, seeds: int, tries: int, tried_seeds: int, rng: np.random.Generator) -> dict:
    "What is recorded of one file."
    trained = model.config.halt_max_steps
    deepest = trained * max(DEPTHS)
    over_puzzles = lambda hits: bootstrap(hits.astype(float).mean(0), rng).figure()
    began = time.perf_counter()
    right = one_run(model, data, deepest, seeds)
    speed = deepest * len(data) * seeds / (time.perf_counter() - began)
    numbers = tried(model, data, tries, trained * PATIENCE, tried_seeds)
    budgets = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= tries]
    return {
        "puzzles": len(data),
        "distinct": len({puzzle.tobytes() for puzzle in data.puzzles}),
        "clues": float(data.clues.mean()),
        "exact": {str(m * trained): over_puzzles(right[:, :, m * trained - 1]) for m in DEPTHS},
        "within": {str(k): over_puzzles((numbers > 0) & (numbers <= k)) for k in budgets},
        "mean_tries": float(numbers[numbers > 0].mean()) if (numbers > 0).any() else None,
        "without_a_model": {
            way: float((found == data.solutions).all(1).mean()) for way, found in baselines(data).items()
        },
        "segments_per_second": speed,
    }


def figures(found: dict[str, dict], best: str, about: dict) -> dict[str, dict]:
    "The rows that the book takes: one run at the best depth, and the most tries."
    rows = {}
    for name, one in found.items():
        prefix = "sudoku.extreme_dev" if name == "extreme_dev" else f"sudoku.exchange.{name}"
        most = max(one["within"], key=int)
        rows[f"{prefix}.exact"] = one["exact"][best] | about | {"unit": "share of boards"}
        rows[f"{prefix}.tries{most}"] = one["within"][most] | about | {"unit": "share of boards"}
    return rows


def show(found: dict[str, dict]) -> str:
    "The table as text."
    share = lambda figure: f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    lines = []
    for name, one in found.items():
        lines.append(f"{name}: {one['puzzles']} puzzles, {one['clues']:.1f} clues in the mean")
        lines += [f"  one run, {depth} segments     {share(figure)}" for depth, figure in one["exact"].items()]
        lines += [f"  within {tries:>2} tries          {share(figure)}" for tries, figure in one["within"].items()]
        lines += [f"  {way:<24} {value:.3f}" for way, value in one["without_a_model"].items()]
    return "\n".join(lines)


def main(
    checkpoint: Annotated[
        Path | None, typer.Option(help="a folder; by default the pipeline's, else the shipped one")
    ] = None,
    tries: Annotated[int, typer.Option(help="attempts at each puzzle")] = 16,
    tries_extreme: Annotated[int, typer.Option(help="attempts at each of the extreme ones")] = 64,
    seeds: Annotated[int, typer.Option(help="of the disguises")] = 5,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/exchange.json",
) -> None:
    """Accuracy of a checkpoint by level on the files of the shared data."""
    checkpoint, shared = checkpoint_or_shipped(checkpoint), Path(os.environ.get("HRM_SHARED", root().parent / "shared"))
    threads()
    try:
        paths, saved = files(shared / "data" / "sudoku"), read_checkpoint(checkpoint)
        sets = {name: read(path, verify=False)[0] for name, path in paths.items()}
        model = load(checkpoint)[0]
    except (FileNotFoundError, CheckpointError, DataError) as error:
        raise SystemExit(f"exchange: {error}") from None
    rng, found = np.random.default_rng(0), {}
    for name, data in sets.items():
        most = (
            (tries_extreme, 1) if name == "extreme_dev" else (tries, seeds)
        )  # the extreme ones take a quarter of an hour
        found[name] = measure(model, data, seeds, *most, rng)
        print(show({name: found[name]}), flush=True)
    depths = list(found["easy"]["exact"])
    best = max(depths, key=lambda depth: sum(one["exact"][depth]["value"] for one in found.values()))  # for all alike
    about = {"stage": "benchmarks/exchange", "profile": "laptop", "machine": machine_name()}
    record = {
        "machine": machine(),
        "checkpoint": {name: saved.meta.get(name) for name in ("name", "step", "config", "code")},
        "seeds": seeds,
        "best_depth": int(best),
        "levels": found,
        "figures": figures(found, best, about),
    }
    print("\n" + str(write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")))


if __name__ == "__main__":
    typer.run(main)
