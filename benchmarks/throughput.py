"""Samples per second of the tutorial's Sudoku model, beside a plain rendering of the same mathematics.

    python benchmarks/throughput.py [--device auto] [--dtype auto] [--repeats 5] [--out reports/benchmarks/throughput.json]

A sample is one board through one segment. A training step of 32 boards is: the segment, the next segment for the target of
Q_continue, the loss under stablemax, the backward pass, Adam-atan2 and the sign step of the puzzle embedding. The plain
model in `plain.py` is textbook PyTorch, uses none of our layers, loads our weights, and must give our logits and our loss
before anything is timed. Plain, eager and compiled runs take turns, so that a busy machine slows all of them.
"""

import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import plain
import torch
import typer
from torch import Tensor

from hrm.core.config import root
from hrm.core.files import write_atomic
from hrm.core.device import Placement, compiler, machine, machine_name, pick, seeded, threads
from hrm.core.hrm import HRM, ArchConfig
from hrm.core.layers import parameters
from hrm.core.optim import OptimConfig
from hrm.core.optim import build as build_optimizers
from hrm.core.flops import count_flops
from hrm.sudoku.model import TUTORIAL, build

SIZE = 9
OPTIM = OptimConfig(
    lr=plain.LR,
    betas=plain.BETAS,
    weight_decay=plain.WEIGHT_DECAY,
    puzzle_emb_lr=plain.PUZZLE_LR,
    puzzle_emb_weight_decay=plain.PUZZLE_WEIGHT_DECAY,
)
# samples per second of the original in training, measured by us on two cores of this kind while others used them too
REFERENCE = {"2x2": {"eager": 8.7, "compiled": 11.3}, "1x1": {"eager": 19.1, "compiled": 40.2}}


# Ours, through the same calls as `hrm.puzzles.train`.


def our_training(model: HRM, batch: dict[str, Tensor]) -> Callable[[], float]:
    "The same for our model: no exploration, every row runs to the last segment."
    optimizers, carry = build_optimizers(model.train(), OPTIM), model.start(batch)
    rows = len(batch["inputs"])
    least = torch.full((rows,), model.config.halt_max_steps)

    def step() -> float:
        nonlocal carry
        carry = model.admit(carry, {name: value[carry.halted] for name, value in batch.items()})
        carry, outputs = model(carry, least)
        loss, _ = model.loss(carry, outputs)
        (loss / rows).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return step


def our_inference(model: HRM, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    carry = model.eval().start(batch)

    @torch.no_grad()
    def segment() -> Tensor:
        nonlocal carry
        carry, outputs = model(carry)
        return outputs["logits"]

    return segment


MAKERS = {"training": (plain.training, our_training), "inference": (plain.inference, our_inference)}


def boards(rows: int, size: int, device: torch.device) -> dict[str, Tensor]:
    "Boards of chance with two fifths blank; how fast a model is does not depend on what they say."
    generator = seeded(0)
    labels = torch.randint(2, size + 2, (rows, size * size), generator=generator)
    inputs = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, 1)
    return {
        "inputs": inputs.to(device),
        "labels": labels.to(device),
        "puzzle_identifiers": torch.zeros(rows, dtype=torch.long, device=device),
    }


def fresh(arch: ArchConfig, size: int, placement: Placement) -> HRM:
    "A model whose halting head and puzzle embedding have left zero, so that a mistake in them would show."
    model = build(arch, size, seeded(0), placement)
    with torch.no_grad():
        model.inner.q_head.weight.copy_(torch.randn(2, arch.hidden_size, generator=seeded(1)) / arch.hidden_size**0.5)
        if arch.puzzle_emb_ndim:
            model.inner.puzzle_emb.weights.copy_(torch.randn(1, arch.puzzle_emb_ndim, generator=seeded(2)))
    return model


def check(
    arch: ArchConfig, size: int, placement: Placement, rows: int = 4, tolerance: float = 1e-4
) -> dict[str, float]:
    "Largest differences between plain and ours in float32: logits of two segments, losses of two training steps."
    model = fresh(arch.model_copy(update={"forward_dtype": "float32"}), size, placement)
    batch, found = boards(rows, size, placement.device), {}
    for kind, make in MAKERS.items():
        theirs, ours = make[0](plain.Plain(model), batch), make[1](model, batch)
        pairs = [(torch.as_tensor(theirs()), torch.as_tensor(ours())) for _ in range(2)]
        found[kind] = max(float(((a - b).abs() / b.abs().clamp(min=1)).max()) for a, b in pairs)
        if not found[kind] <= tolerance:
            raise AssertionError(f"plain and ours differ by {found[kind]:.2e} in {kind}; allowed is {tolerance}")
    return found


def clocked(work: Callable, device: torch.device) -> tuple[float, float]:
    "Wall-clock seconds, and processor seconds over all threads."
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def gemm_peak(placement: Placement, tries: int = 3) -> float:
    "FLOP per second of the best of several matrix products: square ones, and those of the model."
    big = 8192 if placement.device.type == "cuda" else 2048
    best = 0.0
    for m, k, n in ((1024, 1024, 1024), (big, big, big), (2624, 256, 1536), (2624, 768, 256)):
        a, b = (torch.randn(shape, device=placement.device).to(placement.dtype) for shape in ((m, k), (k, n)))
        best = max([best] + [2 * m * k * n / clocked(lambda: a @ b, placement.device)[0] for _ in range(tries + 1)])
    return best


def measure(kind: str, cycles: int, placement: Placement, rows: int, repeats: int, compiled: bool) -> dict:
    "One line of the table: every variant takes its turn, `repeats` times over, after two runs to warm up."
    arch = TUTORIAL.model_copy(update={"H_cycles": cycles, "L_cycles": cycles})
    batch, (make_plain, make_ours) = boards(rows, SIZE, placement.device), MAKERS[kind]
    model = fresh(arch, SIZE, placement)
    works = {"plain": make_plain(plain.Plain(model), batch), "eager": make_ours(model, batch)}
    flops = {name: count_flops(work) for name, work in works.items()}
    if compiled:
        other = fresh(arch, SIZE, placement)
        other.compile_segment()
        works["compiled"], flops["compiled"] = make_ours(other, batch), flops["eager"]
    warm_up = {name: sum(clocked(work, placement.device)[0] for _ in range(2)) for name, work in works.items()}
    taken, memory, peak = {name: [] for name in works}, {}, 0.0
    for _ in range(repeats):
        peak = max(peak, gemm_peak(placement))
        for name, work in works.items():
            if placement.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken[name].append(clocked(work, placement.device))
            if placement.device.type == "cuda":
                memory[name] = max(memory.get(name, 0.0), torch.cuda.max_memory_allocated() / 2**30)
    row = {"kind": kind, "cycles": f"{cycles}x{cycles}", "gemm_gflop_per_second": peak / 1e9}
    for name in works:
        wall, cpu = (statistics.median(column) for column in zip(*taken[name]))
        row[name] = {
            "samples_per_second": rows / wall,
            "best": rows / min(taken[name])[0],
            "samples_per_cpu_second": rows / cpu,
            "gflop_per_sample": flops[name] / rows / 1e9,
            "share_of_gemm_peak": flops[name] / wall / peak,
            "warm_up_seconds": warm_up[name],
        }
        row[name] |= {"peak_gpu_gib": memory[name]} if memory else {}
    for name in [name for name in works if name != "plain"]:
        row[f"{name}_over_plain"] = {
            "wall": row[name]["samples_per_second"] / row["plain"]["samples_per_second"],
            "cpu": row[name]["samples_per_cpu_second"] / row["plain"]["samples_per_cpu_second"],
            # if matrix products ran at the peak and nothing else took time
            "limit": flops["plain"] / flops[name] / row["plain"]["share_of_gemm_peak"],
        }
    return row


def show(rows: list[dict]) -> str:
    """The table as text. Speeds are medians in samples per second.

    `limit` is the ratio of a model whose matrix products run at the measured peak and whose other work takes no time.
    """
    head = (
        "",
        "plain",
        "eager",
        "compiled",
        "compiled/plain",
        "by CPU time",
        "limit",
        "share of GEMM peak",
        "reference eager, compiled",
    )
    lines = [head]
    for row in rows:
        speeds = [
            f"{row[name]['samples_per_second']:.1f}" if name in row else "-" for name in ("plain", "eager", "compiled")
        ]
        best = "compiled" if "compiled" in row else "eager"
        ratio = row[f"{best}_over_plain"]
        theirs = REFERENCE[row["cycles"]] if row["kind"] == "training" else {}
        lines.append(
            (
                f"{row['kind']} {row['cycles']}",
                *speeds,
                f"{ratio['wall']:.2f}",
                f"{ratio['cpu']:.2f}",
                f"{ratio['limit']:.2f}",
                f"{row[best]['share_of_gemm_peak']:.0%}",
                ", ".join(f"{speed}" for speed in theirs.values()) or "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths)) for line in lines)


def figures(rows: list[dict], batch_size: int, machine: str) -> dict[str, dict]:
    "The rows that reports/figures.json quotes: samples per second in training, compiled where that is possible."
    return {
        f"sudoku.throughput.train_{row['cycles']}": {
            "value": (row.get("compiled") or row["eager"])["samples_per_second"],
            "unit": "samples per second",
            "low": None,
            "high": None,
            "n": batch_size,
            "stage": "benchmarks/throughput",
            "profile": "laptop",
            "machine": machine,
        }
        for row in rows
        if row["kind"] == "training"
    }


def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16")] = "auto",
    batch_size: Annotated[int, typer.Option(help="boards")] = 32,
    repeats: Annotated[int, typer.Option(help="turns that each variant takes")] = 5,
    compile: Annotated[bool, typer.Option(help="also the compiled model")] = True,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/throughput.json",
) -> None:
    """Samples per second of the tutorial's Sudoku model, plain, eager and compiled, in training and inference."""
    placement, used = pick(device, dtype), threads()
    compiled, reason = compiler(placement.device) if compile else (False, "switched off")
    print(f"{machine_name()}, {used} threads\n{placement}\ncompiled: {reason}")
    differences = check(TUTORIAL, SIZE, placement)
    print("plain and ours differ by at most", ", ".join(f"{value:.1e} ({kind})" for kind, value in differences.items()))
    rows = []
    for kind in MAKERS:
        for cycles in (1, 2):
            rows.append(measure(kind, cycles, placement, batch_size, repeats, compiled))
            torch.compiler.reset()  # the graphs of one case are of no use to the next
            gc.collect()
            print(f"\n{show(rows)}" if len(rows) == 4 else f"{kind} {cycles}x{cycles} done", flush=True)
    record = {
        "machine": machine(),
        "device": str(placement.device),
        "dtype": str(placement.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "repeats": repeats,
        "parameters": parameters(build(TUTORIAL, SIZE)),
        "compile": {"used": compiled, "reason": reason},
        "largest_difference": differences,
        "rows": rows,
        "figures": figures(rows, batch_size, machine_name()),
        "reference": {"what": "training, measured by us on two cores of this kind, noisy"} | REFERENCE,
    }
    print("\n" + str(write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")))


if __name__ == "__main__":
    typer.run(main)
