"What the tests of training and of the command line share: a project with puzzles and a model so small that a step takes milliseconds."

import json
import os
import sys
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from hrm.sudoku.dataset import Puzzles, from_arrays, save_official
from hrm.sudoku.rules import BOXES

ROOT = Path(__file__).resolve().parents[1]
CLI = (sys.executable, "-m", "hrm.tools.cli")
ARCH = dict(
    hidden_size=32,
    num_heads=2,
    H_layers=1,
    L_layers=1,
    H_cycles=1,
    L_cycles=1,
    expansion=2,
    pos_encodings="relations",
    halt_max_steps=3,
    halt_exploration_prob=0.3,
    puzzle_emb_ndim=32,
)
OPTIM = dict(name="adam_atan2", lr=3e-3, weight_decay=0.1, clip=1.0, warmup=5, schedule="cosine", ema=0.9)
LOOP = dict(
    steps=160,
    evaluate_every=40,
    log_every=5,
    keep_every=80,
    checkpoint_seconds=0.1,
    compile="off",
    best="token_accuracy",
)
RUN = dict(
    set="toy",
    arch=ARCH,
    optim=OPTIM,
    loop=LOOP,
    batch_size=6,
    cross_entropy="stablemax",
    augment=True,
    evaluate_puzzles=4,
    device="cpu",
)


def boards(size: int, count: int, blanks: int, seed: int = 0) -> Puzzles:
    "One solution, written down by a formula, with different cells left blank; nothing says that it is the only one."
    high, _ = BOXES[size]
    row, column = np.divmod(np.arange(size * size), size)
    solution = (row * (size // high) + row // high + column) % size + 1
    puzzles, rng = np.tile(solution, (count, 1)), np.random.default_rng(seed)
    for puzzle in puzzles:
        puzzle[rng.choice(size * size, blanks, replace=False)] = 0
    return from_arrays(puzzles, np.tile(solution, (count, 1)), source="tiny")


def data_set(folder: Path, size: int = 4, train: int = 24, test: int = 8, blanks: int = 6) -> Path:
    "A data set in the official layout."
    data = boards(size, train + test, blanks)
    save_official(data.take(slice(train)), folder, "train")
    save_official(data.take(slice(train, train + test)), folder, "test")
    return folder


def project(folder: Path, **runs: dict) -> Path:
    "A project of one profile `tiny` with these runs and the set they train on; as HRM_ROOT it stands for the real one."
    folder.mkdir(parents=True, exist_ok=True)
    params = {"profiles": {"tiny": {"sudoku": {"train": {"seed": 0, "runs": runs}}}}}
    with open(folder / "params.yaml", "w") as file:
        YAML().dump(json.loads(json.dumps(params)), file)
    data_set(folder / "data" / "tiny" / "sudoku" / "data" / "toy")
    return folder


def environment(root: Path, **extra: str) -> dict[str, str]:
    "Of a process that works in such a project, on one thread."
    strange = (
        "WORLD_SIZE",
        "RANK",
        "LOCAL_RANK",
        "HRM_TRACEBACK",
        "PYTHONDONTWRITEBYTECODE",
    )  # the last would make every start slow
    mine = {name: value for name, value in os.environ.items() if name not in strange}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return mine | {"HRM_ROOT": str(root), "OMP_NUM_THREADS": "1", "PYTHONPATH": path} | extra


def files(folder: Path) -> dict[str, bytes]:
    "Every file under a folder."
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def unfinished(resume: Path) -> list[str]:
    "What a folder of runs holds but for finished ones."
    left = sorted(
        path for path in resume.iterdir() if not (path / "finished.json").is_file() or path.name.endswith("-incomplete")
    )
    return [path.name for path in left]
