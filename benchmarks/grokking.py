"""Addition modulo 23: how many steps after the training pairs are known by heart does the rule appear?

    python benchmarks/grokking.py [--seeds 3] [--tflop 0.6] [--out reports/benchmarks/grokking.json]

One block of width 64 reads two numbers and says their sum modulo 23. It is trained on seven of ten of the 529 pairs, all of them in every
step, and tested on the others. Four optimizers have the same model and the same pairs: AdamW, Muon, Grokfast and MuGrokfast, the last two
with the filter of the Grokfast paper (alpha 0.98, lambda 2). A filtered one has the rate and the decay of the one without a filter, and
those were chosen on seed 0, where each of the two unfiltered ones found the rule. The delay is counted in steps, from a training
accuracy of 0.99 to the first test accuracy of 0.95. A run ends when the test accuracy has stayed above 0.99, or when its arithmetic is spent.
"""

import json
import statistics
import time
from typing import Annotated

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from tqdm import tqdm

from hrm.core.config import root
from hrm.core.files import write_atomic
from hrm.core.device import machine, machine_name, seeded, threads
from hrm.core.layers import Attention, CastedEmbedding, CastedLinear, SwiGLU
from hrm.core.optim import OptimConfig, build, rate
from hrm.core.flops import count_flops

FILTER = {"grokfast_alpha": 0.98, "grokfast_lambda": 2.0}
PLAIN, MATRIX = {"lr": 3e-3, "weight_decay": 2.0}, {"lr": 1e-2, "weight_decay": 1.0}
OPTIMIZERS = {
    "AdamW": {"name": "adamw"} | PLAIN,
    "Grokfast": {"name": "grokfast"} | PLAIN | FILTER,
    "Muon": {"name": "muon"} | MATRIX,
    "MuGrokfast": {"name": "mugrokfast"} | MATRIX | FILTER,
}
KNOWN, RISEN, STAYED = 0.99, 0.95, 0.99


class Adder(nn.Module):
    "Two numbers and a place for the answer, which looks at them once. No norm: the size of the weights is what decay acts on."

    def __init__(self, modulus: int, width: int, generator: torch.Generator):
        super().__init__()
        self.embed, self.embed_pos = (
            CastedEmbedding(rows, width, width**-0.5, generator=generator) for rows in (modulus + 1, 3)
        )
        self.attention, self.mlp = Attention(width, 4, generator=generator), SwiGLU(width, 4.0, generator)
        self.head = CastedLinear(width, modulus, generator=generator)

    def forward(
        self,
        pairs: Tensor,  # [N, 2] numbers
    ) -> Tensor:  # [N, modulus] logits of their sum
        x = self.embed(F.pad(pairs + 1, (1, 0))) + self.embed_pos.embedding_weight
        x = x[:, :1] + self.attention(x, first=1)
        return self.head(x + self.mlp(x))[:, 0]


def split(modulus: int, share: float, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    "All pairs with their sums, in a random order: those to train on, and the others."
    pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))[
        torch.randperm(modulus**2, generator=generator)
    ]
    count = round(share * len(pairs))
    return [(part, part.sum(1) % modulus) for part in (pairs[:count], pairs[count:])]


@torch.no_grad()
def accuracy(model: nn.Module, pairs: Tensor, sums: Tensor) -> float:
    return (model(pairs).argmax(-1) == sums).float().mean().item()


def first(steps: list[int], values: list[float], least: float) -> int | None:
    "The first step at which a value is reached."
    return next((step for step, value in zip(steps, values) if value >= least), None)


def grok(
    config: OptimConfig, seed: int, tflop: float, every: int, modulus: int = 23, width: int = 64, share: float = 0.7
) -> dict:
    "One run: its curves, and when each accuracy was reached."
    train, test = split(modulus, share, seeded(1000 + seed))
    model = Adder(modulus, width, seeded(seed))
    optimizers = build(model, config)
    flops = count_flops(lambda: F.cross_entropy(model(train[0]), train[1]).backward())
    most, steps, curves, began = int(tflop * 1e12 / flops), [], {"train": [], "test": []}, time.perf_counter()
    for step in range(1, most + 1):
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate(step - 1, most, config)
        F.cross_entropy(model(train[0]), train[1]).backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % every == 0 or step == most:
            steps.append(step)
            curves["train"].append(accuracy(model, *train))
            curves["test"].append(accuracy(model, *test))
            if len(steps) >= 5 and min(curves["test"][-5:]) >= STAYED:
                break
    known, risen = first(steps, curves["train"], KNOWN), first(steps, curves["test"], RISEN)
    return {
        "seed": seed,
        "known": known,
        "risen": risen,
        "delay": None if known is None or risen is None else risen - known,
        "steps": steps,
        **curves,
        "last": curves["test"][-1],
        "tflop": flops * steps[-1] / 1e12,
        "most_steps": most,
        "seconds": time.perf_counter() - began,
    }


def main(
    seeds: Annotated[int, typer.Option(min=1, help="runs of each optimizer")] = 3,
    tflop: Annotated[float, typer.Option(min=1e-6, max=0.6, help="most arithmetic of a run")] = 0.6,
    every: Annotated[int, typer.Option(min=1, help="steps between two looks at the accuracies")] = 10,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/grokking.json",
) -> None:
    """Steps from knowing the training pairs to knowing the rule, with four optimizers."""
    threads(1)  # so small a step only loses by a second one
    rows = {name: [] for name in OPTIMIZERS}
    with tqdm(total=seeds * len(OPTIMIZERS), desc="grokking", unit="run") as bar:
        for name, own in OPTIMIZERS.items():
            config = OptimConfig(betas=(0.9, 0.98), warmup=10, **own)
            for seed in range(seeds):
                rows[name].append(grok(config, seed, tflop, every))
                bar.update()
    figures = {}
    for name, runs in rows.items():
        delays = [run["delay"] for run in runs if run["delay"] is not None]
        said = f"median {statistics.median(delays):.0f} steps" if delays else "none"
        print(
            f"{name:11} knows the pairs after {[run['known'] for run in runs]}, the rule after {[run['risen'] for run in runs]}; delay {said}; "
            f"{sum(run['tflop'] for run in runs):.2f} TFLOP"
        )
        figures[f"memory.grokking.{name.lower()}.delay"] = {
            "value": statistics.median(delays) if delays else None,
            "unit": "optimizer steps",
            "low": min(delays, default=None),
            "high": max(delays, default=None),
            "n": len(delays),
            "stage": "benchmarks/grokking",
            "profile": "laptop",
            "machine": machine_name(),
        }
    record = {
        "machine": machine(),
        "modulus": 23,
        "width": 64,
        "share": 0.7,
        "optimizers": OPTIMIZERS,
        "tflop_a_run": tflop,
        "thresholds": {"known": KNOWN, "risen": RISEN, "stayed": STAYED},
        "runs": rows,
        "figures": figures,
    }
    print(write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"))


if __name__ == "__main__":
    typer.run(main)
