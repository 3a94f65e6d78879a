"""Tokens per second with a key-value cache through the cycles, beside the same model that computes its prefix again.

    python benchmarks/generate.py [--tokens 256] [--repeats 5] [--out reports/benchmarks/generate.json]

One row of text. Two prices are measured: of a whole text, written token by token from the first to the last, and of a single
token at the end of it. Without a cache the unpadded prefix is computed again for each token. The tokens are given, not drawn,
so that both ways read the same text; their logits must agree before anything is timed. Cached and uncached take turns.
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

from hrm.core.config import root, write_atomic
from hrm.core.device import Placement, machine, machine_name, pick, seeded, threads
from hrm.core.generate import Decoder
from hrm.core.hrm import HRM, ArchConfig, HRMConfig

ARCH = ArchConfig(hidden_size=128, num_heads=4, H_layers=2, L_layers=2, H_cycles=2, L_cycles=2, expansion=4, pos_encodings="rope",
                  halt_max_steps=1, causal=True)
VOCABULARY = 256


def made(width: int, tokens: int, placement: Placement) -> HRM:
    arch = ARCH.model_copy(update={"hidden_size": width, "num_heads": width // 32}).on(placement)
    return HRM(HRMConfig(**arch.model_dump(), vocab_size=VOCABULARY, seq_len=tokens), generator=seeded(0)).to(placement.device).eval()


def difference(model: HRM, text: Tensor) -> float:
    "Largest difference of any logit between cached and uncached, over every 16th position and the last; raises above 1e-3 in float32."
    cached, worst = Decoder(model), 0.0
    for place in range(text.shape[1]):
        logits = cached.feed(text[:, place : place + 1])
        if place % 16 == 0 or place == text.shape[1] - 1:
            again = Decoder(model, cached=False).feed(text[:, : place + 1])
            worst = max(worst, (logits - again).abs().max().item())
    if model.inner.dtype == torch.float32 and not worst <= 1e-3:
        raise SystemExit(f"generate: cached and uncached logits differ by {worst:.1e}; allowed is 1e-3")
    return worst


def write(model: HRM, text: Tensor, cached: bool) -> tuple[float, float]:
    "Seconds for the whole text and for its last token."
    synchronize = torch.cuda.synchronize if text.is_cuda else lambda: None
    decoder, stamps = Decoder(model, cached=cached), []
    for place in range(text.shape[1]):
        synchronize()
        stamps.append(time.perf_counter())
        decoder.feed(text[:, place : place + 1])
    synchronize()
    stamps.append(time.perf_counter())
    return stamps[-1] - stamps[0], stamps[-1] - stamps[-2]


def measure(width: int, tokens: int, repeats: int, placement: Placement) -> dict:
    "One line of the table: medians over the turns."
    model, text = made(width, tokens, placement), torch.randint(VOCABULARY, (1, tokens), generator=seeded(1)).to(placement.device)
    row = {"width": width, "parameters": sum(p.numel() for p in model.parameters()), "largest_difference": difference(model, text)}
    turns = [(write(model, text, True), write(model, text, False)) for _ in tqdm(range(repeats), f"width {width}", unit="turn")]
    for at, name in enumerate(("whole_text", "last_token")):
        count = tokens if name == "whole_text" else 1
        cached, again = ([turn[way][at] for turn in turns] for way in (0, 1))
        row[name] = {"cached": count / statistics.median(cached), "computed_again": count / statistics.median(again),
                     "ratio": statistics.median(again) / statistics.median(cached)}
    return row


def main(
    tokens: Annotated[int, typer.Option(min=2, help="length of the text")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="turns that each way takes")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/generate.json",
) -> None:
    """Tokens per second of a causal HRM, cached and computed again."""
    placement, used = pick(device), threads()
    print(f"{machine_name()}, {used} threads, {placement.device}")
    rows = [measure(width, tokens, repeats, placement) for width in (128, 256)]
    for row in rows:
        for name in ("whole_text", "last_token"):
            speed = row[name]
            print(f"width {row['width']}, {name.replace('_', ' '):10}: {speed['cached']:7.1f} tokens/s cached, "
                  f"{speed['computed_again']:6.1f} computed again, ratio {speed['ratio']:.1f}")
    figure = {"value": rows[0]["whole_text"]["ratio"], "unit": "ratio", "low": None, "high": None, "n": repeats,
              "stage": "benchmarks/generate", "profile": "laptop", "machine": machine_name()}
    record = {"machine": machine(), "device": str(placement.device), "tokens": tokens, "repeats": repeats, "arch": ARCH.model_dump(), "rows": rows,
              "figures": {"generate.cached_over_uncached": figure}}
    print(write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"))


if __name__ == "__main__":
    typer.run(main)
