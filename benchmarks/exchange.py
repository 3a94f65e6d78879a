"""A checkpoint on six levels of other people's puzzles, none of which it was trained on.

    python benchmarks/exchange.py [--checkpoint FOLDER] [--out reports/benchmarks/exchange.json]

The puzzles are the files `exchange_*_200.csv` in the folder `data/sudoku` of the shared data (`HRM_SHARED`, by default
`../shared` beside the repository); they are not part of it. Some puzzles are in two of
the levels hard1, hard and hard2; the record counts the distinct ones.
"""

import json
import os
from pathlib import Path
from typing import Annotated

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import numpy as np
import typer

from hrm.core.checkpoint import CheckpointError, read as read_checkpoint
from hrm.core.config import root
from hrm.core.errors import DataError
from hrm.core.files import write_atomic
from hrm.core.device import machine, threads
from hrm.sudoku.data import read
from hrm.sudoku.evaluate import METRICS, evaluate_files
from hrm.sudoku.model import load

CHECKPOINT, LEVELS = "data/laptop/sudoku/train/easy9/best", ("easy", "medium", "hard1", "hard", "hard2", "diabolical")


def files(folder: Path) -> list[Path]:
    "The six files from easy to diabolical. Raises FileNotFoundError that says what is missing and where it was looked for."
    found = [folder / f"exchange_{level}_200.csv" for level in LEVELS]
    missing = [path.name for path in found if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {', '.join(missing)} not found; set HRM_SHARED to the folder that holds data/sudoku"
        )
    return found


def levels(paths: list[Path], checkpoint: Path, segments: int | None, seed: int) -> list[dict]:
    "One plain dictionary for each level, and one for all."
    data, report = read(*paths)
    names, clues = np.array(data.levels, dtype=object), data.clues
    summary = evaluate_files(paths, load(checkpoint)[0], checkpoint, segments=segments, seed=seed)
    rows = []
    for row in summary.to_dict("records"):
        chosen = np.ones(len(data), bool) if row["level"] == "all" else names == row["level"]
        rows.append(
            {
                "level": row["level"],
                "puzzles": row["puzzles"],
                "clues": float(clues[chosen].mean()),
                "segments": float(row["segments"]),
            }
            | {name: row[name].figure() for name in METRICS}
        )
    return rows


def show(rows: list[dict]) -> str:
    "The table as text."
    lines = [("level", "puzzles", "clues", "solved", "95 % interval", "blanks right", "breaks no rule")]
    for row in rows:
        exact = row["exact_accuracy"]
        lines.append(
            (
                row["level"],
                str(row["puzzles"]),
                f"{row['clues']:.1f}",
                f"{exact['value']:.3f}",
                f"{exact['low']:.3f} to {exact['high']:.3f}",
                f"{row['blank_accuracy']['value']:.3f}",
                f"{row['valid']['value']:.3f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths)) for line in lines)


def main(
    checkpoint: Annotated[Path | None, typer.Option(help=f"a folder; by default {CHECKPOINT} of the project")] = None,
    segments: Annotated[int | None, typer.Option(help="per puzzle; by default as many as in training")] = None,
    seed: Annotated[int, typer.Option(help="of the bootstrap")] = 0,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/exchange.json",
) -> None:
    """Accuracy of a checkpoint by level on the six exchange files of the shared data."""
    checkpoint, shared = checkpoint or root() / CHECKPOINT, Path(os.environ.get("HRM_SHARED", root().parent / "shared"))
    threads()
    try:
        paths, saved = files(shared / "data" / "sudoku"), read_checkpoint(checkpoint)
        rows = levels(paths, checkpoint, segments, seed)
    except (FileNotFoundError, CheckpointError, DataError) as error:
        raise SystemExit(f"exchange: {error}") from None
    print(show(rows))
    about = {name: saved.meta.get(name) for name in ("name", "step", "config", "code")}
    record = {
        "machine": machine(),
        "checkpoint": about,
        "files": [path.name for path in paths],
        "segments": segments,
        "seed": seed,
        "distinct_puzzles": len({puzzle.tobytes() for puzzle in read(*paths, verify=False)[0].puzzles}),
        "levels": rows,
    }
    print("\n" + str(write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")))


if __name__ == "__main__":
    typer.run(main)
