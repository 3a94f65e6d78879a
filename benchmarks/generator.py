"""How fast unique 9x9 puzzles of the easy class are made, on one core.

    python benchmarks/generator.py [--count 10000] [--repeats 3] [--out reports/benchmarks/generator.json]

Easy is what the laptop profile trains on: solvable by singles alone, 41 to 55 clues, exactly one solution. Compiling the
search is not counted. Processor time tells what the core can do, wall-clock time what else the machine was doing.
"""

import json
import statistics
import time
from typing import Annotated

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import numpy as np
import typer

from hrm.core.config import root
from hrm.core.files import write_atomic
from hrm.core.device import machine
from hrm.sudoku.generate import generate, solve_all

EASY = {"size": 9, "clues": (41, 55), "difficulty": "singles"}


def measure(count: int, repeats: int, seed: int) -> dict:
    "Puzzles per second of each repeat, and whether every puzzle has one solution without guessing."
    generate(128, **EASY, rng=seed, progress=False)  # compiles
    wall, cpu, fine = [], [], True
    for repeat in range(repeats):
        began = time.perf_counter(), time.process_time()
        made = generate(count, **EASY, rng=np.random.default_rng([seed, repeat]), progress=False)
        wall.append(count / (time.perf_counter() - began[0]))
        cpu.append(count / (time.process_time() - began[1]))
        found, clues = solve_all(made.puzzles, progress=False), (made.puzzles > 0).sum(1)
        fine &= bool(
            (found.count == 1).all() and (found.guesses == 0).all() and clues.min() >= 41 and clues.max() <= 55
        )
    return {
        "puzzles_per_second": {"cpu": statistics.median(cpu), "wall": statistics.median(wall), "best_wall": max(wall)},
        "all_unique_and_easy": fine,
    }


def main(
    count: Annotated[int, typer.Option(help="puzzles per repeat")] = 2000,
    repeats: Annotated[int, typer.Option(help="repeats; the median counts")] = 3,
    seed: Annotated[int, typer.Option(help="of the puzzles")] = 0,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/generator.json",
) -> None:
    """Unique easy 9x9 puzzles per second on one core, warm."""
    found = measure(count, repeats, seed)
    speed = found["puzzles_per_second"]
    print(
        f"{speed['cpu']:.0f} puzzles per second of processor time, {speed['wall']:.0f} by the clock (best {speed['best_wall']:.0f}); "
        f"each with one solution, without guessing: {'yes' if found['all_unique_and_easy'] else 'NO'}"
    )
    record = {"machine": machine(), "class": EASY, "count": count, "repeats": repeats, "seed": seed} | found
    print(write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"))
    if not found["all_unique_and_easy"]:
        raise SystemExit("generator: a puzzle is not of the easy class")


if __name__ == "__main__":
    typer.run(main)
