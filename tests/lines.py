"Runs of milliseconds, in a module where helpers find them; as a program it trains all of them side by side."

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from hrm.core.beside import Shape
from hrm.core.config import ConfigError
from hrm.core.device import seeded
from hrm.core.resume import Stopped
from hrm.core.run import StepRun, start, start_all
from hrm.core.task import Options, Task

WIDTH, ROWS = 64, 2048  # two threads would share a product of this size, and come to other bits
NEEDS = {"fourth": ["first"]}


class LineConfig(StepRun):
    "What is learned, and what happens on the way."

    slope: float = 2.0
    pace: float = 0.0  # seconds of a step
    late: float = 0.0  # seconds before the first step
    slow: float = 0.0  # seconds of an evaluation
    fault: str = ""  # in the fifth step: error, or death
    when: str = ""  # a file that it waits for before that


class Line(Task):
    "A line in many dimensions."

    def __init__(self, config: LineConfig, seed: int):
        self.config, self.generator, self.step = config, seeded(2 * seed + 1), 0
        self.model = nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.model.weight), nn.init.zeros_(self.model.bias)
        self.groups = [(self.model, config.optim)]

    def loss(self, model: nn.Module):
        self.step += 1
        time.sleep(self.config.pace + (self.config.late if self.step == 1 else 0.0))
        while self.step == 5 and self.config.when and not Path(self.config.when).exists():
            time.sleep(0.01)
        if self.step == 5 and self.config.fault == "error":
            raise ConfigError("line: found a curve; allowed: none")
        if self.step == 5 and self.config.fault == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        x = torch.randn(ROWS, WIDTH, generator=self.generator)
        loss = F.mse_loss(model(x), self.config.slope * x + 1)
        return loss, {"loss": loss.detach(), "count": torch.ones(())}

    def evaluate(self):
        time.sleep(self.config.slow)
        return {"error": float((self.model.weight.diagonal() - self.config.slope).abs().mean())}

    def state_dict(self):
        return {"generator": self.generator.get_state(), "step": self.step}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])
        self.step = state["step"]

    def leave(self, folder, optimizers):
        return {"process": os.getpid(), "threads": torch.get_num_threads()}


def line(steps: int = 20, **changes) -> LineConfig:
    "Settings of a run."
    return LineConfig.model_validate(
        {
            "optim": {"name": "adamw", "lr": 0.05},
            "loop": {
                "steps": steps,
                "evaluate_every": 10,
                "log_every": 5,
                "keep_every": 10,
                "checkpoint_seconds": 1e6,
                "compile": "off",
                "best": "error",
                "best_mode": "min",
            },
            "batch_size": ROWS,
            "device": "cpu",
        }
        | changes
    )


def train(runs: dict[str, LineConfig], out: Path, name: str, options: Options, done: dict):
    "One of the runs; what it stands on is told in its slope."
    one = runs[name]
    if name in NEEDS:
        one = one.varied({"slope": sum(done[other].metrics["best"]["value"] for other in NEEDS[name])})
    shape = Shape(WIDTH, ROWS, one.loop.steps, one.device)
    return start(name, Line(one, 0), one, 0, "", out / name, options, shape=shape)


def train_all(runs: dict[str, LineConfig], folder: Path, aside: bool = True, **options):
    "All of them, side by side or not; that they take long enough to be worth it is made up."
    shape = lambda name: Shape(WIDTH, ROWS, 1000 if aside else 1, "cpu")
    one, told = partial(train, runs, folder / "out"), Options(folder / "resume", **{"progress": False} | options)
    return start_all(one, runs, folder / "out", told, needs=NEEDS, shape=shape)


def program(folder: Path, pace: float, slow: float) -> int:
    "What the tests with signals disturb: two runs that say when they are under way."
    more = {"steps": 200, "pace": pace, "slow": slow}
    runs = {"first": line(**more), "second": line(slope=3.0, **more)}
    said = lambda name: lambda step, row: print(name, step, flush=True)
    try:
        train_all(runs, folder, watch=said)
    except Stopped as why:
        print(f"stopped: {why}", flush=True)
        return 130
    return 0


if __name__ == "__main__":
    import lines  # by this name a helper finds it

    sys.exit(lines.program(Path(sys.argv[1]), *map(float, sys.argv[2:])))
