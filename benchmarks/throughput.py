"""Samples per second of the tutorial's Sudoku model, beside a plain rendering of the same mathematics and the official HRM.

    python benchmarks/throughput.py [--reference FOLDER] [--device auto] [--dtype auto] [--repeats 5]

A sample is one board through one segment. A training step of 32 boards is: the segment, the next segment for the target of
Q_continue, the loss under stablemax, the backward pass, Adam-atan2 and the sign step of the puzzle embedding. The plain
model in `plain.py` is textbook PyTorch and uses none of our layers. The official one is imported from a checkout of
github.com/sapientinc/HRM, where there is one (`official.py` says how). Both load our weights and must give our logits,
halting values and losses before anything is timed. All variants take turns, so that a busy machine slows all of them, and
are compared turn by turn.
"""

import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import numpy as np
import official
import plain
import torch
import typer
from torch import Tensor

from hrm.core.config import ConfigError, root
from hrm.core.files import write_atomic
from hrm.core.device import Placement, compiler, has_bf16, machine, machine_name, pick, seeded, threads
from hrm.core.hrm import HRM, ArchConfig
from hrm.core.layers import parameters
from hrm.core.optim import OptimConfig
from hrm.core.optim import build as build_optimizers
from hrm.core.flops import count_flops
from hrm.core.stats import bootstrap
from hrm.sudoku.model import TUTORIAL, build

SIZE = 9
OPTIM = OptimConfig(
    lr=plain.LR,
    betas=plain.BETAS,
    weight_decay=plain.WEIGHT_DECAY,
    puzzle_emb_lr=plain.PUZZLE_LR,
    puzzle_emb_weight_decay=plain.PUZZLE_WEIGHT_DECAY,
)
TOLERANCE = 1e-4  # largest difference to ours in float32, relative where a value is above one


KINDS = ("training", "inference")

# Ours, through the same calls as `hrm.puzzles.train`.


def our_training(
    model: HRM, batch: dict[str, Tensor], least: int | None = None
) -> Callable[[], tuple[float, Tensor, Tensor]]:
    "The same for our model, without exploration: every row runs `least` segments (by default to the last one)."
    optimizers, carry = build_optimizers(model.train(), OPTIM), model.start(batch)
    rows = len(batch["inputs"])
    at_least = torch.full((rows,), model.config.halt_max_steps if least is None else least, device=carry.halted.device)

    def step() -> tuple[float, Tensor, Tensor]:
        nonlocal carry
        carry = model.admit(carry, {name: value[carry.halted] for name, value in batch.items()})
        carry, outputs = model(carry, at_least)
        loss, _ = model.loss(carry, outputs)
        (loss / rows).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item(), *told(outputs)

    return step


def our_inference(model: HRM, batch: dict[str, Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    carry = model.eval().start(batch)

    @torch.no_grad()
    def segment() -> tuple[Tensor, Tensor]:
        nonlocal carry
        carry, outputs = model(carry)
        return told(outputs)

    return segment


def told(outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    "Logits [B, S, V] and halting values [B, 2]."
    return outputs["logits"].detach(), torch.stack((outputs["q_halt"], outputs["q_continue"]), dim=-1).detach()


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


def make(
    variant: str,  # plain, eager, compiled, official or official_compiled
    kind: str,  # training or inference
    arch: ArchConfig,
    size: int,
    placement: Placement,
    rows: int,
    reference: official.Official | None = None,
) -> Callable:  # one step or segment
    "A variant with weights of its own, on boards of its own; all variants begin alike."
    model, batch = fresh(arch, size, placement), boards(rows, size, placement.device)
    if variant == "plain":
        return (plain.training if kind == "training" else plain.inference)(plain.Plain(model), batch)
    if variant.startswith("official"):
        compiled = variant.endswith("compiled")
        if kind == "training":
            return official.training(reference, model, batch, OPTIM, compiled)
        return official.inference(reference, model, batch, compiled)
    if variant == "compiled":
        model.compile_segment()
    return (our_training if kind == "training" else our_inference)(model, batch)


def check(
    arch: ArchConfig,
    size: int,
    placement: Placement,
    reference: official.Official | None = None,
    rows: int = 4,
    tolerance: float = TOLERANCE,
) -> dict[str, dict[str, float]]:
    """Largest differences from ours in float32: logits and halting values of two segments; of two training steps, the loss
    too. Raises AssertionError.

    In training the official model's rows stop by its halting rule, so ours do as well when compared with it.
    """
    given = arch.model_copy(update={"forward_dtype": "float32"}), size, placement, rows
    found = {}
    for other in ("plain", "official") if reference else ("plain",):
        found[other] = {}
        for kind in KINDS:
            theirs, ours = make(other, kind, *given, reference), make("eager", kind, *given)
            if (other, kind) == ("official", "training"):
                ours = our_training(fresh(*given[:3]), boards(rows, size, placement.device), least=0)
            pairs = [pair for _ in range(2) for pair in zip(theirs(), ours(), strict=True)]
            pairs = [(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs]
            worst = max(float(((a - b).abs() / b.abs().clamp(min=1)).max()) for a, b in pairs)
            if not worst <= tolerance:
                raise AssertionError(f"{other} and ours differ by {worst:.2e} in {kind}; allowed is {tolerance}")
            found[other][kind] = worst
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


Turns = Sequence[tuple[float, float]]  # seconds by the clock and of the processor


def ratio(slow: Turns, fast: Turns) -> dict[str, float]:
    """How many times as fast one variant was as another, turn by turn: the median of the turns' ratios with its 95 %
    interval, the lowest and the highest, best turn over best turn, and the median of the ratios of processor time.
    """
    wall, cpu = ([a / b for a, b in zip(*columns, strict=True)] for columns in zip(zip(*slow), zip(*fast)))
    found = bootstrap(wall, np.random.default_rng(0), np.median)
    return {
        "median": found.value,
        "low": found.low,
        "high": found.high,
        "least": min(wall),
        "most": max(wall),
        "best": min(slow)[0] / min(fast)[0],
        "cpu": statistics.median(cpu),
    }


def best_of(variants: Sequence[str], names: Sequence[str]) -> str:
    "The compiled one where it ran."
    return [name for name in names if name in variants][-1]


OURS, THEIRS = ("eager", "compiled"), ("official", "official_compiled")


def measure(
    kind: str,
    cycles: int,
    placements: Sequence[Placement],  # one for each precision; the first is float32
    rows: int,
    repeats: int,
    compiled: bool,
    reference: official.Official | None = None,
) -> tuple[list[dict], list[str]]:  # a line of the table for each precision, and what failed
    "Every variant in every precision takes its turn, `repeats` times over, after two runs to warm up."
    arch = TUTORIAL.model_copy(update={"H_cycles": cycles, "L_cycles": cycles})
    device = placements[0].device
    variants = ["plain", *OURS[: 1 + compiled], *(THEIRS[: 1 + compiled] if reference else ())]
    works, flops, warm_up, failed = {}, {}, {}, []
    for placement in placements:
        for name in variants:
            key = placement.dtype, name
            try:
                work = make(name, kind, arch, SIZE, placement, rows, reference)
                if not name.endswith("compiled"):
                    flops[key] = count_flops(work)
                warm_up[key] = sum(clocked(work, device)[0] for _ in range(2))
                works[key] = work
            except Exception as error:  # torch.compile raises what it likes; ours must not fail
                if name != "official_compiled":
                    raise
                dtype, why = str(placement.dtype).removeprefix("torch."), " ".join(str(error).split())[:200]
                failed.append(f"{kind} {cycles}x{cycles} {dtype}: {type(error).__name__}: {why}")
    taken, memory, peaks = {key: [] for key in works}, {}, dict.fromkeys((p.dtype for p in placements), 0.0)
    for _ in range(repeats):
        for placement in placements:
            peaks[placement.dtype] = max(peaks[placement.dtype], gemm_peak(placement))
        for key, work in works.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken[key].append(clocked(work, device))
            if device.type == "cuda":
                memory[key] = max(memory.get(key, 0.0), torch.cuda.max_memory_allocated() / 2**30)
    lines = []
    for placement in placements:
        dtype, peak = placement.dtype, peaks[placement.dtype]
        row = {"kind": kind, "cycles": f"{cycles}x{cycles}", "dtype": str(dtype).removeprefix("torch.")}
        row["gemm_gflop_per_second"] = peak / 1e9
        here = [name for name in variants if (dtype, name) in works]
        for name in here:
            wall, cpu = (statistics.median(column) for column in zip(*taken[dtype, name]))
            found = bootstrap([rows / turn[0] for turn in taken[dtype, name]], np.random.default_rng(0), np.median)
            counted = flops[dtype, name.replace("official_compiled", "official").replace("compiled", "eager")]
            row[name] = {
                "samples_per_second": found.value,
                "low": found.low,
                "high": found.high,
                "best": rows / min(taken[dtype, name])[0],
                "samples_per_cpu_second": rows / cpu,
                "gflop_per_sample": counted / rows / 1e9,
                "share_of_gemm_peak": counted / wall / peak,
                "warm_up_seconds": warm_up[dtype, name],
            }
            row[name] |= {"peak_gpu_gib": memory[dtype, name]} if memory else {}
        turns = lambda name, dtype=dtype: taken[dtype, name]
        for name in [name for name in OURS if name in here]:
            counted = row["plain"]["gflop_per_sample"] / row[name]["gflop_per_sample"]
            # the limit: if matrix products ran at the peak and nothing else took time
            limit = {"limit": counted / row["plain"]["share_of_gemm_peak"]}
            row[f"{name}_over_plain"] = ratio(turns("plain"), turns(name)) | limit
        for ours, theirs in zip(OURS, THEIRS):
            if ours in here and theirs in here:
                row[f"{ours}_over_{theirs}"] = ratio(turns(theirs), turns(ours))
        # what precision and compilation give together: the best of ours over ours in float32, eager
        row["gain"] = ratio(turns("eager", placements[0].dtype), turns(best_of(here, OURS)))
        lines.append(row)
    return lines, failed


def show(rows: list[dict]) -> str:
    """The table as text. Speeds are medians in samples per second; ratios are medians over the turns.

    `limit` is the ratio to plain of a model whose matrix products run at the measured peak and whose other work takes no
    time. `ours/official` compares compiled with compiled where both are, and eager with eager otherwise.
    """
    columns = {"plain": "plain", "eager": "eager", "compiled": "compiled", "official": "official"}
    columns["official_compiled"] = "official compiled"
    head = (
        "",
        *columns.values(),
        "ours/plain",
        "limit",
        "ours/official",
        "best",
        "by CPU time",
        "gain",
        "GEMM GFLOP/s",
        "share",
    )
    lines = [head]
    for row in rows:
        speeds = [f"{row[name]['samples_per_second']:.1f}" if name in row else "-" for name in columns]
        best = best_of(row, OURS)
        pair = row.get("compiled_over_official_compiled") or row.get("eager_over_official")
        plainly = row[f"{best}_over_plain"]
        lines.append(
            (
                f"{row['kind']} {row['cycles']} {row['dtype']}",
                *speeds,
                f"{plainly['median']:.2f}",
                f"{plainly['limit']:.2f}",
                f"{pair['median']:.2f} [{pair['low']:.2f}, {pair['high']:.2f}]" if pair else "-",
                f"{pair['best']:.2f}" if pair else "-",
                f"{pair['cpu']:.2f}" if pair else "-",
                f"{row['gain']['median']:.2f}",
                f"{row['gemm_gflop_per_second']:.0f}",
                f"{row[best]['share_of_gemm_peak']:.0%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths)) for line in lines)


def figures(rows: list[dict], repeats: int, machine: str) -> dict[str, dict]:
    """The rows that reports/figures.json quotes: training, compiled where that ran; each with the 95 % interval of its
    median over the turns. Names of rows that are not float32 end in the precision.
    """
    found = {}
    for row in rows:
        if row["kind"] != "training":
            continue
        cycles = row["cycles"] + ("" if row["dtype"] == "float32" else f"_{row['dtype']}")
        said = {f"train_{cycles}": row[best_of(row, OURS)], f"gain_{cycles}": row["gain"]}
        if "official" in row:
            pair = row.get("compiled_over_official_compiled") or row["eager_over_official"]
            said |= {f"official_{cycles}": row[best_of(row, THEIRS)], f"over_official_{cycles}": pair}
        for name, values in said.items():
            speed = "samples_per_second" in values
            found[f"sudoku.throughput.{name}"] = {
                "value": values["samples_per_second" if speed else "median"],
                "unit": "samples per second" if speed else "ratio",
                "low": values["low"],
                "high": values["high"],
                "n": repeats,
                "stage": "benchmarks/throughput",
                "profile": "laptop",
                "machine": machine,
            }
    return found


def precisions(device: str, dtype: str) -> tuple[list[Placement], dict[str, str]]:
    """Where to measure: in float32, and in bfloat16 where the device multiplies it in hardware or it is asked for; and why
    what is left out. Raises ConfigError for any other wish.
    """
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"dtype: found {dtype!r}; allowed: auto, float32, bfloat16")
    base = pick(device, "float32")
    if dtype == "float32":
        return [base], {"bfloat16": "not asked for"}
    if dtype == "bfloat16" or has_bf16(base.device):
        return [base, pick(device, "bfloat16")], {}
    why = "this device has no bfloat16 units and would emulate it, tens of times slower; --dtype bfloat16 measures it"
    return [base], {"bfloat16": why}


def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 alone, or bfloat16 beside float32")] = "auto",
    batch_size: Annotated[int, typer.Option(help="boards")] = 32,
    repeats: Annotated[int, typer.Option(help="turns that each variant takes")] = 5,
    compile: Annotated[bool, typer.Option(help="also the compiled models")] = True,
    reference: Annotated[str | None, typer.Option(help="a checkout of github.com/sapientinc/HRM")] = None,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/throughput.json",
) -> None:
    "Samples per second of the tutorial's Sudoku model, plain, ours and official, in training and inference."
    theirs = official.load(reference) if reference else None
    placements, left_out = precisions(device, dtype)
    used, where = threads(), placements[0].device
    compiled, reason = compiler(where) if compile else (False, "switched off")
    print(f"{machine_name()}, {used} threads", *placements, f"compiled: {reason}", sep="\n")
    for name, why in left_out.items():
        print(f"{name} left out: {why}")
    differences = check(TUTORIAL, SIZE, placements[0], theirs)
    for other, found in differences.items():
        said = ", ".join(f"{value:.1e} ({kind})" for kind, value in found.items())
        print(f"{other} and ours differ by at most {said}; allowed {TOLERANCE}")
    rows, failures = [], []
    for kind in KINDS:
        for cycles in (1, 2):
            lines, failed = measure(kind, cycles, placements, batch_size, repeats, compiled, theirs)
            rows, failures = rows + lines, failures + failed
            torch.compiler.reset()  # the graphs of one case are of no use to the next
            gc.collect()
            print("\n" + show(lines), *(f"not compiled: {line}" for line in failed), sep="\n", flush=True)
    print("\n" + show(rows))
    record = {
        "machine": machine(),
        "device": str(where),
        "dtypes": [str(placement.dtype).removeprefix("torch.") for placement in placements],
        "left_out": left_out,
        "batch_size": batch_size,
        "repeats": repeats,
        "parameters": parameters(build(TUTORIAL, SIZE)),
        "compile": {"used": compiled, "reason": reason},
        "tolerance": TOLERANCE,
        "largest_difference": differences,
        "rows": rows,
        "figures": figures(rows, repeats, machine_name()),
        "reference": theirs and theirs.about | {"not_compiled": failures},
    }
    print("\n" + str(write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")))


if __name__ == "__main__":
    typer.run(main)
