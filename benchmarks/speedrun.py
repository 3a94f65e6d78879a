"""How much arithmetic, and how many minutes, until 90 % of the easy 9 x 9 boards are right? And until half of other people's medium ones?

    python benchmarks/speedrun.py [--goal easy9] [--only NAME ...] [--out reports/benchmarks/speedrun.json]

Every recipe trains from nothing on the same boards in the same disguises, on the same cores, one after the other, and is measured on the
same held-out boards every so often; the measuring is not counted. A recipe arrives at the first measurement at which it has the goal. Ours
is as long as it has to be for that, since its rate falls to nothing at its end; those with one technique taken away get as much, and where
that is not enough, three times as much. The official recipes have a constant rate after their warm-up and get ten times the arithmetic of
ours, at their published rate and at ten times that, since the models here are narrower than theirs; the better of the two is taken. Where
they do not arrive, what is said of them is a lower bound. To add a row, see README.md beside this file.
"""

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import typer
from hierarchy import cost  # beside this file

import hrm.core.optim
from hrm.core.config import hash_of, root, section
from hrm.core.device import machine, machine_name
from hrm.core.files import write_atomic
from hrm.core.hrm import ArchConfig
from hrm.core.pipeline import data_path
from hrm.core.task import Options
from hrm.sudoku.dataset import load_official, save_official
from hrm.sudoku.files import read
from hrm.sudoku.train import RunConfig, TrainConfig, run

GOALS = {  # name -> the run of params.yaml that is ours, its length in steps, what is measured, the share to reach
    "easy9": {"run": "easy9", "steps": 800, "measured": None, "share": 0.9},
    "medium": {"run": "newspaper", "steps": 2500, "measured": "data/sudoku/exchange_medium_200.csv", "share": 0.5},
}
MEASURED = 500  # boards
LOOKS = 20  # measurements in the length of ours
CAP, PATIENCE = 10, 3  # times the arithmetic of ours: of the official recipes, of ours without something

OFFICIAL = {
    "arch": {
        "model": "hrm",
        "pos_encodings": "rope",
        "H_cycles": 2,
        "L_cycles": 2,
        "gradient": "one_step",
        "halting": "q",
        "halt_mean_steps": None,
        "halt_max_steps": 16,
        "halt_exploration_prob": 0.1,
    },
    "optim": {
        "name": "adam_atan2",
        "lr": 1e-4,
        "weight_decay": 1.0,
        "clip": None,
        "warmup": 2000,
        "schedule": "constant",
        "lr_min_ratio": 1.0,
        "puzzle_emb_lr": 1e-4,
        "puzzle_emb_weight_decay": 1.0,
        "ema": 0.0,
    },
    "cross_entropy": "stablemax",
}
TRM = {
    "arch": OFFICIAL["arch"]
    | {
        "model": "trm",
        "H_layers": 0,
        "L_layers": 2,
        "H_cycles": 3,
        "L_cycles": 6,
        "mlp_t": True,
        "pos_encodings": "none",
        "puzzle_emb_len": 16,
        "gradient": "last_cycle",
        "halting": "bce",
    },
    "optim": OFFICIAL["optim"] | {"ema": 0.999},
    "cross_entropy": "stablemax",
}
TENFOLD = {"optim": {"lr": 1e-3, "puzzle_emb_lr": 1e-3}}
ROWS: dict[str, tuple[int, list[dict[str, Any]]]] = {  # name -> times our arithmetic, what is changed (each is added)
    "ours": (1, []),
    "with two modules": (PATIENCE, [{"arch": {"model": "hrm"}}]),
    "without relations": (PATIENCE, [{"arch": {"pos_encodings": "rope"}}]),
    "without Muon": (PATIENCE, [{"optim": {"name": "adam_atan2", "lr": 1e-3}}]),
    "without the full gradient": (PATIENCE, [{"arch": {"gradient": "one_step"}}]),
    "without bfloat16": (PATIENCE, [{"dtype": "float32"}]),
    "without float32 Newton-Schulz": (PATIENCE, [{}]),
    "without an average of the weights": (PATIENCE, [{"optim": {"ema": 0.0}}]),
    "official HRM": (CAP, [OFFICIAL]),
    "official HRM, ten times the rate": (CAP, [OFFICIAL, TENFOLD]),
    "official TRM": (CAP, [TRM]),
    "official TRM, ten times the rate": (CAP, [TRM, TENFOLD]),
}


def recipe(goal: dict[str, Any], changes: list[dict[str, Any]]) -> RunConfig:
    "The run of a goal, one network in both places, under some changes."
    config = section("laptop", "sudoku.train", TrainConfig).runs[goal["run"]].varied({"arch": {"model": "trm"}})
    for change in changes:
        if change.get("arch", {}).get("model") == "hrm":  # which has no word for what a TRM alone can choose
            plain = ArchConfig(**{name: getattr(config.arch, name) for name in ArchConfig.model_fields})
            config = config.model_copy(update={"arch": plain})
        config = config.varied(change)
    return config


def boards(goal: dict[str, Any], home: Path) -> Path:
    "The folder of the data: the profile's, or its training part with other people's boards to measure on."
    ours = data_path("sudoku_data", "laptop") / section("laptop", "sudoku.train", TrainConfig).runs[goal["run"]].set
    if not (ours / "train" / "dataset.json").is_file():
        raise SystemExit("speedrun: the data are absent: dvc repro sudoku_data@laptop")
    if goal["measured"] is None:
        return ours
    file = Path(os.environ.get("HRM_SHARED", root().parent / "shared")) / goal["measured"]
    if not file.is_file():
        raise SystemExit(f"speedrun: {file} not found; set HRM_SHARED to the folder that holds it")
    made = home / f"boards-{hash_of([str(file), str(ours)])[:8]}"
    if not (made / "test" / "dataset.json").is_file():
        save_official(load_official(ours / "train"), made, "train")
        save_official(read(file)[0].take(slice(MEASURED)), made, "test")
    return made


def arrival(log: Path, share: float) -> tuple[int | None, list[tuple[int, float]]]:
    "The first measured step with the share, and all measurements."
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    name = "held_out.exact_accuracy"
    seen = [(row["step"], row[name]) for row in rows if name in row]
    return next((step for step, value in seen if value >= share), None), seen


def attempt(name: str, config: RunConfig, data: Path, home: Path, share: float) -> dict[str, Any]:
    "One run, as long as its config says: its measurements, and when it arrived."
    small = hrm.core.optim.SMALL
    if name == "without float32 Newton-Schulz":
        hrm.core.optim.SMALL = 0  # no matrix is small
    try:
        result = run(name, config, 0, data, home / "runs" / name, Options(home / "resume" / name))
    finally:
        hrm.core.optim.SMALL = small
    step, seen = arrival(result.folder / "log.jsonl", share)
    steps, tflop, seconds = config.loop.steps, result.metrics["tflop"], result.timings["train_seconds"]
    part = None if step is None else step / steps
    return {
        "steps": steps,
        "tflop": tflop,
        "minutes": seconds / 60,
        "arrived": step,
        "tflop_until": None if part is None else part * tflop,
        "minutes_until": None if part is None else part * seconds / 60,
        "measured": seen,
        "last": seen[-1][1],
        "compiled": result.timings["compiled"],
        "precision": result.timings["dtype"],
    }


def main(
    goal: Annotated[str, typer.Option(help=f"what is to be reached: {', '.join(GOALS)}")] = "easy9",
    only: Annotated[list[str] | None, typer.Option(help="rows to run; the others stay as the record has them")] = None,
    share: Annotated[float, typer.Option(min=1e-4, max=1.0, help="of the usual steps")] = 1.0,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/speedrun.json",
) -> None:
    """Arithmetic and minutes until a share of the boards is right: ours, ours without each technique, the official recipes."""
    if goal not in GOALS:
        raise SystemExit(f"speedrun: --goal {goal}; allowed: {', '.join(GOALS)}")
    if strange := [name for name in only or () if name not in ROWS]:
        raise SystemExit(f"speedrun: --only {strange[0]!r}; allowed: {', '.join(ROWS)}")
    about, home = GOALS[goal], root() / "data" / "benchmarks" / "speedrun" / f"{goal}-{share:g}"
    data, file = boards(about, home), root() / out
    record = json.loads(file.read_text()) if file.is_file() else {"goals": {}}
    rows = record["goals"].get(goal, {}).get("rows", {})
    train, steps = load_official(data / "train"), max(LOOKS, round(share * about["steps"]))
    same = {"evaluate_puzzles": MEASURED, "loop": {"steps": steps, "keep_every": 0, "keep_at": ()}}
    budget = cost(recipe(about, [same]), train)[0] * steps
    for name in only or ROWS:
        times, changes = ROWS[name]
        config = recipe(about, [same, *changes])
        flops, size = cost(config, train)
        tries = [1, times] if times == PATIENCE else [times]
        for part in tries:
            length = max(LOOKS, round(part * budget / flops))
            every = max(1, math.ceil(budget / flops / LOOKS))
            long = config.varied({"loop": {"steps": length, "evaluate_every": every, "log_every": every}})
            row = attempt(name, long, data, home / f"{part}x", about["share"]) | {"parameters": size, "times": part}
            if row["arrived"] is not None:
                break
        rows[name] = row
        when = f"{row['tflop_until']:.2f} TFLOP, {row['minutes_until']:.2f} minutes" if row["arrived"] else "not"
        print(f"{name:34} {when} (of {row['tflop']:.2f} TFLOP; {row['last']:.3f} at the end)", flush=True)
        record["goals"][goal] = about | {"measured_boards": MEASURED, "rows": rows}
        record |= {"machine": machine(), "figures": figures(record["goals"])}
        write_atomic(file, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
    print(file)


def figures(goals: dict[str, Any]) -> dict[str, dict]:
    "What the book may take: ours, the official recipe, and the one over the other; a lower bound where it never arrives."
    found = {}
    for goal, about in goals.items():
        rows = about["rows"]
        official = [row for name, row in rows.items() if name.startswith("official HRM")]
        if "ours" not in rows or rows["ours"]["arrived"] is None or not official:
            continue
        came = [row for row in official if row["arrived"] is not None]
        spent = min((row["minutes_until"] for row in came), default=min(row["minutes"] for row in official))
        place = "sudoku.speedrun" if goal == "easy9" else f"sudoku.speedrun.{goal}"
        least = "" if came else ", at least (it did not arrive)"
        row = {"low": None, "high": None, "n": 1, "stage": "benchmarks/speedrun", "profile": "laptop"}
        row["machine"] = machine_name()
        ours = rows["ours"]["minutes_until"]
        found[f"{place}.ours_minutes"] = row | {"value": ours, "unit": "minutes"}
        found[f"{place}.reference_minutes"] = row | {"value": spent, "unit": f"minutes{least}"}
        found[f"{place}.ratio"] = row | {"value": spent / ours, "unit": f"ratio{least}"}
    return found


if __name__ == "__main__":
    typer.run(main)
