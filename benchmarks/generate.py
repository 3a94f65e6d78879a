"""Tokens per second with a key-value cache through the cycles, beside the same model that computes its prefix again.

    python benchmarks/generate.py [--tokens 256] [--repeats 5] [--out reports/benchmarks/generate.json]

One row of text. Two prices are measured: of a whole text, written token by token from the first to the last, and of a single
token at the end of it. Without a cache the unpadded prefix is computed again for each token. With it there are two renderings:
eager, and with the pass over one position compiled (where there is a C++ compiler; compiling is not counted, and its seconds are
in the record). The tokens are given, not drawn, so that all ways read the same text; their logits must agree before anything is
timed. The ways take turns.
"""

import json
import statistics
import time
from typing import Annotated

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import torch
import typer
from torch import Tensor
from tqdm import tqdm

from hrm.core.config import root
from hrm.core.files import write_atomic
from hrm.core.device import Placement, compiler, gemm_rate, machine, machine_name, pick, seeded, threads
from hrm.core.generate import HRMDecoder
from hrm.core.hrm import HRM, ArchConfig, HRMConfig
from hrm.core.layers import parameters

ARCH = ArchConfig(
    hidden_size=128,
    num_heads=4,
    H_layers=2,
    L_layers=2,
    H_cycles=2,
    L_cycles=2,
    expansion=4,
    pos_encodings="rope",
    halt_max_steps=1,
    causal=True,
)
VOCABULARY = 256
WAYS = {"computed_again": {"cached": False}, "cached": {}, "cached_compiled": {"compiled": True}}


def made(width: int, tokens: int, placement: Placement) -> HRM:
    arch = ARCH.model_copy(update={"hidden_size": width, "num_heads": width // 32}).on(placement)
    return (
        HRM(HRMConfig(**arch.model_dump(), vocab_size=VOCABULARY, seq_len=tokens), generator=seeded(0))
        .to(placement.device)
        .eval()
    )


def difference(model: HRM, text: Tensor, way: dict) -> float:
    "Largest difference of any logit to the uncached ones, over every 16th position and the last; raises above 1e-3 in float32."
    cached, worst = HRMDecoder(model, **way), 0.0
    for place in range(text.shape[1]):
        logits = cached.feed(text[:, place : place + 1])
        if place % 16 == 0 or place == text.shape[1] - 1:
            again = HRMDecoder(model, cached=False).feed(text[:, : place + 1])
            worst = max(worst, (logits - again).abs().max().item())
    if model.inner.dtype == torch.float32 and not worst <= 1e-3:
        raise SystemExit(f"generate: cached and uncached logits differ by {worst:.1e}; allowed is 1e-3")
    return worst


def write(model: HRM, text: Tensor, way: dict) -> tuple[float, float]:
    "Seconds for the whole text and for its last token."
    synchronize = torch.cuda.synchronize if text.is_cuda else lambda: None
    decoder, stamps = HRMDecoder(model, **way), []
    for place in range(text.shape[1]):
        synchronize()
        stamps.append(time.perf_counter())
        decoder.feed(text[:, place : place + 1])
    synchronize()
    stamps.append(time.perf_counter())
    return stamps[-1] - stamps[0], stamps[-1] - stamps[-2]


def measure(width: int, tokens: int, repeats: int, placement: Placement) -> dict:
    "One line of the table: medians over the turns."
    model, text = (
        made(width, tokens, placement),
        torch.randint(VOCABULARY, (1, tokens), generator=seeded(1)).to(placement.device),
    )
    ways = {name: way for name, way in WAYS.items() if "compiled" not in way or compiler(placement.device)[0]}
    began = time.perf_counter()
    worst = max(difference(model, text, way) for name, way in ways.items() if name != "computed_again")
    row = {
        "width": width,
        "parameters": parameters(model),
        "largest_difference": worst,
        "seconds_to_begin": time.perf_counter() - began,
    }
    turns = [
        {name: write(model, text, way) for name, way in ways.items()}
        for _ in tqdm(range(repeats), f"width {width}", unit="turn")
    ]
    for at, name in enumerate(("whole_text", "last_token")):
        count = tokens if name == "whole_text" else 1
        seconds = {way: statistics.median(turn[way][at] for turn in turns) for way in ways}
        row[name] = {
            way: {"tokens_per_second": count / taken, "ratio": seconds["computed_again"] / taken}
            for way, taken in seconds.items()
        }
    return row


def main(
    tokens: Annotated[int, typer.Option(min=2, help="length of the text")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="turns that each way takes")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/generate.json",
) -> None:
    """Tokens per second of a causal HRM, cached and computed again."""
    placement, used = pick(device), threads()
    possible, reason = compiler(placement.device)
    print(f"{machine_name()}, {used} threads, {placement.device}; {reason}")
    rate = gemm_rate(placement.device, placement.dtype)
    rows = [measure(width, tokens, repeats, placement) for width in (128, 256)]
    for row in rows:
        for name in ("whole_text", "last_token"):
            said = ", ".join(
                f"{way.replace('_', ' ')} {of['tokens_per_second']:.1f} tokens/s ({of['ratio']:.1f})"
                for way, of in row[name].items()
            )
            print(f"width {row['width']}, {name.replace('_', ' '):10}: {said}")
    figures = {"generate.cached_over_uncached": "cached_compiled", "generate.cached_eager_over_uncached": "cached"}
    record = {
        "machine": machine(),
        "device": str(placement.device),
        "tokens": tokens,
        "repeats": repeats,
        "arch": ARCH.model_dump(),
        "rows": rows,
        "gemm_gflop_per_second": rate,
        "figures": {
            name: {
                "value": rows[0]["whole_text"][way]["ratio"],
                "unit": "ratio",
                "low": None,
                "high": None,
                "n": repeats,
                "stage": "benchmarks/generate",
                "profile": "laptop",
                "machine": machine_name(),
            }
            for name, way in figures.items()
            if way in rows[0]["whole_text"]
        },
    }
    print(write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"))


if __name__ == "__main__":
    typer.run(main)
