"""What does the hierarchy buy? Seven models at equal training arithmetic, on Sudoku boards that take thinking, and on mazes.

    python benchmarks/hierarchy.py [--seeds 5] [--share 1.0] [--boards 6x6 --boards 9x9 --boards mazes]
                                   [--out reports/benchmarks/hierarchy.json]

    hrm           two modules, two states, supervision after every segment, gradient through the whole segment
    trm           one network in both places
    single        that network on a single state
    one_step      hrm with the gradient of its paper: the last two steps of a segment
    unsupervised  hrm with one loss at the end of all segments instead of one after each, and the gradient through all
    deep          a plain transformer of as many blocks as the others call
    plain         a plain transformer of as many parameters as hrm

All have width 64 and the same embedding, loss, optimizer, schedule and data. A run lasts as many steps as its arithmetic allows: 0.5 TFLOP on
6 x 6 boards of few clues, 3 TFLOP on 9 x 9 boards, where the first three alone take part, 1.5 on mazes of 11 x 11, where `one_step` does not.
Each model has its own learning rate, the best of three on a seed that is not among those that count and on 300 held-out boards that are not
among those that count either; elsewhere it is the one of the 6 x 6 boards. On mazes a model with a loss after every segment is asked for the
dead ends filled by then, the others for the path; a cell sees its neighbours, or all cells where nothing is called again; and one pass through
everything goes with a sixteenth of the batch. Every finished model is measured at the depth of its training and at two, four and eight times
that (mazes up to four), and on mazes of 21 x 21 for as long as larger ones take. What is left of an earlier call is taken up.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import numpy as np
import typer

from hrm.core.config import hash_of, root
from hrm.core.device import machine, machine_name, seeded
from hrm.core.files import write_atomic
from hrm.core.flops import count_flops
from hrm.core.layers import parameters
from hrm.core.run import start_each
from hrm.core.stats import hedges_g, holm, smallest_effect, student, welch
from hrm.core.task import Options
from hrm.maze import data as maze_data
from hrm.maze import evaluate as maze_evaluate
from hrm.maze import model as maze_model
from hrm.maze import train as maze_train
from hrm.maze.dataset import from_generated
from hrm.maze.dataset import load_official as load_mazes
from hrm.maze.generate import generate
from hrm.puzzles.evaluate import at_segment, correct, rollout
from hrm.sudoku.data import DataConfig, SetConfig, build
from hrm.sudoku.dataset import load_official
from hrm.sudoku.model import build as build_model
from hrm.sudoku.model import load
from hrm.sudoku.train import RunConfig, SudokuTask, run

DEPTHS = (1, 2, 4, 8)  # times the depth of the training
RATES = (3e-3, 6e-3, 1.2e-2)
TUNING = 1000  # the seed of the runs that choose a rate
CHOSEN_ON = 300  # held-out boards that it is chosen on; the others count
BATCH = 8


@dataclass(frozen=True)
class Boards:
    "A class of Sudoku boards, who is compared on it, and for how much."

    size: int
    clues: tuple[int, int]
    difficulty: str
    segments: int  # T, of training
    tflop: float  # of a run
    models: tuple[str, ...]
    train: int = 20000
    held_out: int = 1300

    by = ("exact_accuracy", "token_accuracy")  # a rate is chosen by the first, and by the second where that is equal
    depths, place, run, read = DEPTHS, "sudoku.hierarchy", staticmethod(run), staticmethod(load_official)

    def write(self, counts: dict[str, int], folder: Path) -> None:
        "Make the boards, so many to train on and held out."
        wanted = SetConfig(size=self.size, clues=self.clues, difficulty=self.difficulty, **counts)
        build(DataConfig(source="generated", seed=0, sets={"boards": wanted}), folder)

    def recipe(self, model: str, rate: float, steps: int) -> RunConfig:
        "Everything that a run is told."
        return RunConfig(**shared(arch(model, self.segments), rate, steps, self.by[0]), batch_size=BATCH)

    def measure(self, folder: Path, held_out) -> dict[str, Any]:
        "Exact accuracy of a finished run at each depth, on the boards that count."
        model = load(folder / "final")[0]
        times = model.config.halt_max_steps
        result = rollout(model, held_out.tokens()[0], times * self.depths[-1])
        right = correct(result, held_out.tokens()[1].numpy())
        return {"exact": [float(right[:, times * depth - 1].mean()) for depth in self.depths]}


@dataclass(frozen=True)
class Mazes:
    "A class of perfect mazes, who is compared on it, and for how much."

    size: int
    larger: tuple[int, int]  # rows and columns of the mazes that nobody is trained on, and how many of them
    segments: int  # T, of training
    tflop: float  # of a run
    models: tuple[str, ...]
    train: int = 20000
    held_out: int = 500
    batch: int = 32

    by = ("shortest", "connected")
    depths, place, run, read = DEPTHS[:3], "maze.hierarchy", staticmethod(maze_train.run), staticmethod(load_mazes)

    def write(self, counts: dict[str, int], folder: Path) -> None:
        "Make the mazes, so many to train on and held out."
        wanted = maze_data.SetConfig(size=self.size, kind="perfect", length="any", **counts)
        maze_data.build(maze_data.DataConfig(source="generated", seed=0, sets={"boards": wanted}), folder)

    def recipe(self, model: str, rate: float, steps: int) -> maze_train.RunConfig:
        "Everything that a run is told."
        told = arch(model, self.segments)
        again = told["halt_max_steps"] > 1
        return maze_train.RunConfig(
            **shared(told, rate, steps, self.by[0]),
            batch_size=self.batch if again else max(1, self.batch // 16),
            sees="window" if model in ("deep", "plain") else "neighbours",
            aim="dead_ends" if again else "path",
            pace=2 if again else None,
        )

    def measure(self, folder: Path, held_out) -> dict[str, Any]:
        "The share of shortest paths of a finished run at each depth, and of larger mazes, on those that count."
        model, told, _ = maze_model.load(folder / "final")
        times, shape = model.config.halt_max_steps, (self.larger[0],) * 2
        shortest = lambda result, data, at: float(maze_evaluate.score(at_segment(result, at), data)["shortest"].mean())
        result = rollout(model, held_out.tokens()[0], times * self.depths[-1])
        large = from_generated(generate(self.larger[1], shape, rng=TUNING, progress=False))
        longest = maze_evaluate.depth(times, told.shape, shape)
        more = rollout(maze_model.on(model, shape, told.sees), large.tokens()[0], longest, batch_size=32)
        return {
            "exact": [shortest(result, held_out, times * depth) for depth in self.depths],
            "larger": shortest(more, large, longest),
        }


BOARDS = {
    "6x6": Boards(6, (8, 12), "any", 8, 0.5, ("hrm", "trm", "single", "one_step", "unsupervised", "deep", "plain")),
    "9x9": Boards(9, (30, 40), "any", 8, 3.0, ("hrm", "trm", "single")),
    "mazes": Mazes(11, (21, 60), 16, 1.5, ("hrm", "trm", "single", "unsupervised", "deep", "plain")),
}


def arch(model: str, segments: int) -> dict[str, Any]:
    "The architecture of a model; a segment is two steps of the L-module and one of the H-module, a block each."
    calls = 3 * segments
    base = dict(hidden_size=64, num_heads=4, L_layers=1, H_cycles=1, L_cycles=2, expansion=4.0, puzzle_emb_ndim=64)
    base |= dict(pos_encodings="relations", gradient="full", halting="fixed", halt_max_steps=segments)
    two, once = {"H_layers": 1}, {"H_layers": 1, "halt_max_steps": 1}
    own = {
        "hrm": two,
        "trm": {"model": "trm"},
        "single": {"model": "trm", "latents": 1},
        "one_step": two | {"gradient": "one_step"},
        "unsupervised": once | {"H_cycles": segments},
        "deep": once | {"L_cycles": 1, "L_layers": calls - 1},
        "plain": once | {"L_cycles": 1},
    }
    return base | own[model]


def shared(arch: dict[str, Any], rate: float, steps: int, best: str) -> dict[str, Any]:
    "What all runs are told, whatever they are trained on."
    return dict(
        set="boards",
        arch=arch,
        optim=dict(
            name="muon", lr=rate, weight_decay=0.1, clip=1.0, warmup=50, schedule="cosine", lr_min_ratio=0.0, ema=0.99
        ),
        loop=dict(steps=steps, evaluate_every=steps, log_every=max(1, steps // 20), best=best),
        cross_entropy="softmax",
        augment=True,
        evaluate_puzzles=CHOSEN_ON,
    )


def cost(config, data) -> tuple[int, int]:
    "Floating-point operations of a step, and parameters."
    generator, placement = seeded(0), config.placement()
    if isinstance(config, maze_train.RunConfig):
        model = maze_model.build(config.arch, data.shape, config.sees, generator, placement).train()
        task = maze_train.MazeTask(model, data, data, config, generator)
    else:
        model = build_model(config.arch, data.size, generator, placement).train()
        task = SudokuTask(model, data, data, config, generator)
    task.loss(model)  # the carry is made
    return count_flops(lambda: task.loss(model)[0].backward()), parameters(model)


def against(rows: dict[str, dict], base: str = "hrm") -> None:
    "Write down what parts every model from HRM, at the depth of the training: Welch's test, adjusted by Holm."
    others = [name for name in rows if name != base]
    ours = [runs[0] for runs in rows[base]["exact"]]
    found = []
    for name in others:
        theirs = [runs[0] for runs in rows[name]["exact"]]
        if len(ours) < 2 or np.var(ours) + np.var(theirs) == 0:
            continue
        test = welch(theirs, ours)
        rows[name]["against_hrm"] = {
            "difference": test.difference.figure(),
            "p": test.p,
            "hedges_g": hedges_g(theirs, ours),
            "smallest_effect": smallest_effect(theirs, ours),
        }
        found.append(name)
    for name, p in zip(found, holm([rows[name]["against_hrm"]["p"] for name in found]) if found else ()):
        rows[name]["against_hrm"]["p_holm"] = float(p)


def measure(name: str, boards: Boards | Mazes, seeds: int, share: float, rates: dict[str, float]) -> dict[str, Any]:
    "All runs on one class of boards, with the rates that are known, by model, or else chosen here."
    many = lambda usual, least: max(least, round(usual * min(1, 4 * share)))
    counts = {"train": many(boards.train, 64), "held_out": many(boards.held_out, 2 * CHOSEN_ON)}
    told = {key: value for key, value in asdict(boards).items() if key not in ("segments", "tflop", "models")} | counts
    home = root() / "data" / "benchmarks" / "hierarchy"
    data = home / "boards" / f"{name}-{hash_of(told)[:8]}"
    if not (data / "boards" / "test" / "dataset.json").is_file():
        boards.write(counts, data)
    train, test = (boards.read(data / "boards" / part) for part in ("train", "test"))
    counted, rows = test.take(slice(CHOSEN_ON, None)), {}
    for model in boards.models:
        flops, size = cost(boards.recipe(model, RATES[0], 1), train)
        rows[model] = {"parameters": size, "flop_a_step": flops, "steps": round(share * boards.tflop * 1e12 / flops)}

    def trained(todo: dict[str, tuple[str, float, int]], what: str) -> dict[str, Any]:
        "Train several: run -> model, rate, seed."
        configs = {
            key: (boards.recipe(model, rate, rows[model]["steps"]), seed) for key, (model, rate, seed) in todo.items()
        }
        shape = lambda key: configs[key][0].shape(data / "boards")
        options = Options(home / "resume")
        return start_each(
            boards.run, configs, data, home / f"{name}-{share:g}", options, bar=f"{name} {what}", shape=shape
        )

    unknown = [model for model in boards.models if model not in rates]
    tuning = {f"{model}-tuning-{rate:g}": (model, rate, TUNING) for model in unknown for rate in RATES}
    held_out = {key: result.metrics["held_out"] for key, result in trained(tuning, "rates").items()}
    for model, row in rows.items():
        if model in rates:
            row["rate"] = rates[model]
            continue
        tried = {rate: held_out[f"{model}-tuning-{rate:g}"] for rate in RATES}
        row["rates"] = {f"{rate:g}": found[boards.by[0]] for rate, found in tried.items()}
        row["rate"] = max(RATES, key=lambda rate: tuple(tried[rate][mark] for mark in boards.by))
    todo = {f"{model}-{seed}": (model, rows[model]["rate"], seed) for model in boards.models for seed in range(seeds)}
    results = trained(todo, "seeds")
    for model, row in rows.items():
        of_model = [results[f"{model}-{seed}"] for seed in range(seeds)]
        found = [boards.measure(result.folder, counted) for result in of_model]
        row |= {key: [one[key] for one in found] for key in found[0]}  # exact [seed][depth], of mazes larger [seed]
        row["tflop"] = [result.metrics["tflop"] for result in of_model]
        row["by_depth"] = [student([runs[at] for runs in row["exact"]]).figure() for at in range(len(boards.depths))]
    against(rows)
    return {"boards": vars(boards) | {"counted": len(counted)}, "depths": boards.depths, "models": rows}


def kept(out: Path, names: list[str], share: float) -> dict[str, dict]:
    "What an earlier record says of the classes that are not asked for now, measured for the same arithmetic."
    record = json.loads(out.read_text()) if out.is_file() else {"share": None}
    others = [name for name in BOARDS if name not in names and name in record.get("boards", {})]
    return {name: record["boards"][name] for name in others} if record["share"] == share else {}


def main(
    seeds: Annotated[int, typer.Option(min=2, help="runs of each model")] = 5,
    share: Annotated[float, typer.Option(min=1e-4, max=1.0, help="of the arithmetic")] = 1.0,
    boards: Annotated[list[str] | None, typer.Option(help="which; the others stay as the record has them")] = None,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/hierarchy.json",
) -> None:
    """Exact accuracy of HRM, TRM and five controls at equal training arithmetic."""
    names = boards or list(BOARDS)
    if strange := [name for name in names if name not in BOARDS]:
        raise SystemExit(f"hierarchy: --boards {strange[0]}; allowed: {', '.join(BOARDS)}")
    began, found, rates = time.perf_counter(), kept(root() / out, names, share), {}
    for name in BOARDS:
        if name in names:
            found[name] = measure(name, BOARDS[name], seeds, share, rates)
        rates = {model: row["rate"] for model, row in found.get(name, {"models": {}})["models"].items()} | rates
    about = {"unit": "share", "stage": "benchmarks/hierarchy", "profile": "laptop", "machine": machine_name()}
    figures = {}
    for name, record in found.items():
        place = BOARDS[name].place + ("" if name in ("6x6", "mazes") else f".{name}")
        for model, row in record["models"].items():
            figures[f"{place}.{model}.exact"] = row["by_depth"][0] | about
            by = ", ".join(f"{depth}x {one['value']:.3f}" for depth, one in zip(record["depths"], row["by_depth"]))
            test = row.get("against_hrm")
            more = f"; {test['difference']['value']:+.3f} against hrm, p {test['p_holm']:.3g}" if test else ""
            print(
                f"{name} {model:13} {row['parameters']:>9,} parameters, {row['steps']:>6} steps, {row['rate']:g}: {by}{more}"
            )
    record = {
        "machine": machine(),
        "share": share,
        "seconds": time.perf_counter() - began,
        "rates": RATES,
        "boards": found,
        "figures": figures,
    }
    print(write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"))


if __name__ == "__main__":
    typer.run(main)
