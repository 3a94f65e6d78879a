"""What does `exact` measure on Maze-Hard? Other shortest paths, and how often a perfect solver would draw the label's.

    python benchmarks/maze_labels.py [--out reports/benchmarks/maze_labels.json]

The mazes are the official training file of maze-30x30-hard, `data/maze/maze_30x30_hard_train.csv` in the shared data
(`HRM_SHARED`, by default `../shared` beside the repository); they are not part of it. A label marks one shortest path of many.
Three solvers that are always right are compared with it: the search that made the labels, the same search on the maze turned or
mirrored (which breaks ties in another order, and nothing else), and one that draws any shortest path with equal chances.
"""

import os
from pathlib import Path
from typing import Annotated

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import numpy as np
import typer

from hrm.core.config import root
from hrm.core.device import machine, machine_name
from hrm.core.errors import DataError
from hrm.core.files import write_atomic
from hrm.core.report import dump
from hrm.core.stats import bootstrap
from hrm.maze.dataset import Mazes
from hrm.maze.evaluate import METRICS
from hrm.maze.files import read
from hrm.maze.rules import marks, solve
from hrm.maze.symmetry import symmetries

IMAGES = (  # of `symmetries`, in their order
    "as the labels",
    "upside down",
    "left to right",
    "half a turn",
    "transposed",
    "a quarter turn",
    "a quarter turn back",
    "transposed the other way",
)
FILE = Path("maze") / "maze_30x30_hard_train.csv"


def under(data: Mazes, table: np.ndarray) -> np.ndarray:  # [N, h, w]
    "The paths that the search marks in the images of the mazes, taken back."
    flat = data.mazes.reshape(len(data), -1)
    images = solve(flat[:, table].reshape(data.mazes.shape)).labels.reshape(len(data), -1)
    answers = np.empty_like(images)
    answers[:, table] = images
    return answers.reshape(data.mazes.shape)


def measure(data: Mazes, rng: np.random.Generator) -> dict:
    "What is recorded of a file of mazes."
    found, over = solve(data.mazes), lambda values: bootstrap(np.asarray(values, float), rng).figure()
    solvers = {}
    for name, table in zip(IMAGES, symmetries(data.shape)):
        each = marks(data.mazes, under(data, table), data.labels)
        solvers[f"search, {name}"] = {mark: over(each[mark]) for mark in METRICS}
    always = {mark: over(np.ones(len(data))) for mark in METRICS}
    solvers["any shortest path at random"] = always | {"exact": over(1 / found.ways)}
    powers = np.floor(np.log10(found.ways)).astype(int)
    return {
        "mazes": len(data),
        "shape": list(data.shape),
        "several": over(found.ways > 1),
        "median_ways": float(np.median(found.ways)),
        "most_ways": float(found.ways.max()),
        "ways": {str(power): int((powers == power).sum()) for power in range(powers.max() + 1)},  # powers of ten
        "lengths": {"least": int(found.lengths.min()), "mean": float(found.lengths.mean())},
        "solvers": solvers,
    }


def figures(found: dict, about: dict) -> dict[str, dict]:
    "The rows that the book takes."
    exact = {name: one["exact"] | about for name, one in found["solvers"].items()}
    return {
        "maze.labels.several": found["several"] | about,
        "maze.labels.mirrored": exact[f"search, {IMAGES[2]}"],
        "maze.labels.upside_down": exact[f"search, {IMAGES[1]}"],
        "maze.labels.random": exact["any shortest path at random"],
    }


def main(
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/maze_labels.json",
) -> None:
    """What a perfect solver with other tie-breaks would get on the official labels."""
    shared = Path(os.environ.get("HRM_SHARED", root().parent / "shared"))
    try:
        data = read(shared / "data" / FILE)[0]
    except DataError as error:
        raise SystemExit(f"maze_labels: {error}; set HRM_SHARED to the folder that holds data/{FILE}") from None
    found = measure(data, np.random.default_rng(0))
    share = lambda figure: f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    print(
        f"{found['mazes']} mazes; several shortest paths in {share(found['several'])}, {found['median_ways']:,.0f} half-way"
    )
    for solver, one in found["solvers"].items():
        print(f"  {solver:<34}" + "  ".join(f"{name} {share(figure)}" for name, figure in one.items()))
    about = {"unit": "share", "stage": "benchmarks/maze_labels", "profile": "laptop", "machine": machine_name()}
    record = {"machine": machine(), "file": FILE.name} | found | {"figures": figures(found, about)}
    print(write_atomic(root() / out, dump(record)))


if __name__ == "__main__":
    typer.run(main)
