"""Does a model learn less when its activations are bfloat16? Held-out results of three systems in both precisions, pairs by seed.

    python benchmarks/precision.py [--seeds 5] [--share 1.0] [--jobs 2] [--out reports/benchmarks/precision.json]

The runs are those of the laptop profile: the 4 x 4 Sudoku (sudoku.train), the base of the dialogue ablations (dialogue.ablate), the base
of the continual text study on the English book (text.continual), each measured once at its end, Sudoku after a quarter of its steps. The two
runs of a pair have the same weights at the start and the same data in the same order, and differ in `dtype` alone. That bfloat16 costs
nothing is refuted where the 95 % interval of the difference lies on the worse side of zero. A control says whether this could be noticed
at all: the same runs with products of numbers that keep two bits of their fraction, where bfloat16 keeps seven.

Hardware with bfloat16 units multiplies rounded inputs exactly, adds in float32 and rounds the sum once. Where there is no such hardware
this program does just that with float32 products, which differs in nothing but the order of the sums and is some twenty times as fast as
torch's own emulation; the two products inside of attention are left to torch. The record says which it was.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import numpy as np
import torch
import typer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hrm.core.config import root, section
from hrm.core.device import bf16_flag, cores, machine, machine_name, threads
from hrm.core.files import write_atomic
from hrm.core.pipeline import data_path
from hrm.core.run import StepRun
from hrm.core.stats import bootstrap, hedges_g, paired_bootstrap, welch
from hrm.core.task import Options
from hrm.core.train import Result
from hrm.dialogue import ablate as dialogue
from hrm.dialogue.train import run as dialogue_run
from hrm.sudoku import train as sudoku
from hrm.text import continual
from hrm.text.data import load as load_books
from hrm.text.train import run as text_run

PART = {"sudoku": 0.25, "dialogue": 1.0, "text": 1.0}  # of the profile's steps; Sudoku's are the dear ones
CONTROLS = 3  # pairs that have a control
aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}


class Units(TorchDispatchMode):
    "Within it products of bfloat16 matrices are what hardware units give: exact products, float32 sums, one rounding."

    def __init__(self, bits: int = 7):  # of the fraction that the inputs keep
        super().__init__()
        self.half, self.cut = (1 << 7 - bits) // 2, -(1 << 7 - bits)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs or {})
        wide = [self.wide(value) if isinstance(value, Tensor) else value for value in args]
        return func(*wide, **kwargs or {}).bfloat16()

    def wide(self, x: Tensor) -> Tensor:
        return (((x.view(torch.int16) + self.half) & self.cut).view(torch.bfloat16) if self.half else x).float()


def systems() -> dict[str, tuple[StepRun, Callable, str, str]]:
    "Name -> recipe, what trains it (name, recipe, seed, out, options), the metric, its unit."
    base = {
        "sudoku": section("laptop", "sudoku.train", sudoku.TrainConfig).runs["4x4"],
        "dialogue": section("laptop", "dialogue.ablate", dialogue.AblateConfig).base,
        "text": section("laptop", "text.continual", continual.ContinualConfig).base.varied({"sample": 0}),
    }
    boards, talks = data_path("sudoku_data", "laptop"), data_path("dialogue_data", "laptop")
    book = lambda: [load_books(data_path("text_data", "laptop"))["english"]]
    return {
        "sudoku": (
            base["sudoku"],
            lambda name, one, seed, *rest: sudoku.run(name, one, seed, boards, *rest),
            "exact_accuracy",
            "share of held-out boards",
        ),
        "dialogue": (
            base["dialogue"],
            lambda name, one, seed, *rest: dialogue_run(name, one, seed, talks, *rest),
            "loss",
            "nats per label token",
        ),
        "text": (
            base["text"],
            lambda name, one, seed, *rest: text_run(name, one, seed, book(), *rest),
            "bits",
            "bits per character",
        ),
    }


def train(kind: str, name: str, config: StepRun, seed: int, train: Callable, folder: Path) -> Result:
    "One run: float32, bfloat16, or the control."
    one = config.varied({"device": "cpu", "dtype": "float32" if kind == "float32" else "bfloat16"})
    if kind == "control":
        units = Units(bits=2)
    else:
        units = nullcontext() if bf16_flag() else Units()
    with units:
        return train(f"{name}-{kind}-{seed}", one, seed, folder / f"{name}-{kind}-{seed}", Options(folder / "resume"))


def compare(found: dict[str, list[float]], kind: str) -> dict[str, Any]:
    "A precision against float32, in pairs; the tests are missing where no run differs from another."
    ours, base = found[kind], found["float32"]
    base = base[: len(ours)]
    row = {"difference": paired_bootstrap(ours, base, np.random.default_rng(0)).figure()}
    if len(ours) > 1 and len({*ours}) + len({*base}) > 2:
        row |= {"welch_p": welch(ours, base).p, "hedges_g": hedges_g(ours, base)}
    return row


def figures(name: str, row: dict[str, Any]) -> dict[str, dict]:
    "What the book may take."
    about = {"unit": row["unit"], "stage": "benchmarks/precision", "profile": "laptop", "machine": machine_name()}
    each = {kind: bootstrap(values, np.random.default_rng(0)).figure() for kind, values in row["held_out"].items()}
    each["difference"] = row["bfloat16"]["difference"]
    return {f"precision.{name}.{kind}": value | about for kind, value in each.items()}


def measure(name: str, seeds: int, share: float) -> dict[str, Any]:
    "All runs of a system, one after the other: its row of the record."
    threads(1)  # the models are narrow
    config, run, metric, unit = systems()[name]
    whole, folder = config.loop.steps, root() / "data" / "benchmarks" / "precision" / f"{share:g}"
    steps = max(1, round(share * PART[name] * whole))
    config = config.varied({"loop": {"steps": steps, "evaluate_every": steps, "compile": "off"}})
    found: dict[str, list[float]] = {"float32": [], "bfloat16": [], "control": []}
    seconds, reasons = dict.fromkeys(found, 0.0), {}
    for seed in range(seeds):
        for kind in found if seed < CONTROLS else ("float32", "bfloat16"):
            result = train(kind, name, config, seed, run, folder)
            found[kind].append(float(result.metrics["held_out"][metric]))
            seconds[kind] += result.timings["train_seconds"]
            reasons[kind] = f"{result.timings['dtype']}: {result.timings['dtype_reason']}"
    row = {"metric": metric, "unit": unit, "steps": steps, "steps_of_the_profile": whole, "held_out": found}
    row |= {"tflop_a_run": result.metrics["tflop"], "seconds": seconds, "precision": reasons}
    return row | {kind: compare(found, kind) for kind in ("bfloat16", "control")}


def main(
    seeds: Annotated[int, typer.Option(min=1, help="pairs of each system")] = 5,
    share: Annotated[float, typer.Option(min=0.001, max=1.0, help="of the usual steps")] = 1.0,
    jobs: Annotated[int, typer.Option(min=1, help="systems side by side, a core each")] = cores(),
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/precision.json",
) -> None:
    """Held-out results in float32 and in bfloat16 beside each other, with intervals over the seeds."""
    if absent := [f"{name}@laptop" for name in ("sudoku_data", "dialogue_data", "text_data") if not data(name)]:
        raise SystemExit(f"precision: the data are absent: dvc repro {' '.join(absent)}")
    began, names = time.perf_counter(), list(systems())
    if jobs == 1:
        rows = [measure(name, seeds, share) for name in names]
    else:
        with ProcessPoolExecutor(min(jobs, len(names)), get_context("spawn")) as pool:
            rows = list(pool.map(measure, names, [seeds] * len(names), [share] * len(names)))
    record = {
        "machine": machine(),
        "flag": bf16_flag() or None,
        "emulated": not bf16_flag(),
        "share": share,
        "seconds": time.perf_counter() - began,
        "systems": dict(zip(names, rows)),
        "figures": {key: one for name, row in zip(names, rows) for key, one in figures(name, row).items()},
    }
    for name, row in record["systems"].items():
        print(f"{name}, {row['metric']} ({row['unit']}), {row['steps']} of {row['steps_of_the_profile']} steps")
        for kind, values in row["held_out"].items():
            gap = row.get(kind, {}).get("difference")
            more = f", {gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}] over float32" if gap else ""
            print(f"  {kind:9} {np.mean(values):.4f}, {len(values)} seeds{more}")
    print(write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"))


def data(name: str) -> bool:
    "Has a stage's data been made?"
    return data_path(name, "laptop").is_dir()


if __name__ == "__main__":
    typer.run(main)
