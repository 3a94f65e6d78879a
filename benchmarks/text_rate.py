"""Characters per second of the 4M-parameter text model at 2x2, beside its matrix-vector products alone, and the price of a character along the window.

    python benchmarks/text_rate.py [--window 80] [--repeats 15] [--out reports/benchmarks/text_rate.json]

One row of text, drawn and fed back character by character, on one thread. Three renderings write: eager, with the core's compiled
modules, and quick (`hrm.text.decode`). Two renderings of the products alone set the limit: the library's, one call for each matrix, and
the compiled sums that quick is made of, one graph for each module. Both read every matrix as often as a character needs it, and do
nothing else. The headline divides by the library's, and a second, stricter figure by the faster of the two. All take turns, a window each, so that a busy machine slows all of them
alike; processor time stands beside the clock, and the ratios are of processor time, which other programs on the same cores disturb
least. Compiling is not counted. Before anything is timed the logits of the renderings must agree.
"""

import json
import statistics
import time
from typing import Annotated

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from tqdm import tqdm

from hrm.core.config import root
from hrm.core.files import write_atomic
from hrm.core.device import compiler, machine, machine_name, one_thread, seeded
from hrm.core.generate import Sampling, probabilities
from hrm.core.layers import parameters
from hrm.text.decode import QuickDecoder, _product
from hrm.text.model import TextArch, TextDecoder, TextHRM, build

ARCH = TextArch(
    hidden_size=256,
    num_heads=8,
    H_layers=3,
    L_layers=3,
    H_cycles=2,
    L_cycles=2,
    expansion=2.5,
    halt_max_steps=1,
    norm_weights=True,
)
VOCABULARY, PROMPT, SAMPLING = 87, 8, Sampling(temperature=0.8, top_k=50)
WAYS = {"eager": TextDecoder, "compiled": lambda model: TextDecoder(model, compiled=True), "quick": QuickDecoder}


def matrices(model: TextHRM) -> list[list[Tensor]]:
    "The matrices of each pass through a module that a character takes, in their order; the output head is the last."
    config, inner = model.config, model.inner
    layers = {
        name: [
            w.detach()
            for block in level.layers
            for w in (
                block.self_attn.qkv_proj.weight,
                block.self_attn.o_proj.weight,
                block.mlp.gate_up_proj.weight,
                block.mlp.down_proj.weight,
            )
        ]
        for name, level in (("H", inner.H_level), ("L", inner.L_level))
    }
    passes = [*["L"] * config.L_cycles, "H"] * config.H_cycles
    return [layers[name] for name in passes] + [[inner.lm_head.weight.detach()]]


@torch.compile(dynamic=False)
def together(weights: list[Tensor], vectors: list[Tensor]) -> list[Tensor]:
    "The products of one pass as sums."
    return [_product(weight, vector) for weight, vector in zip(weights, vectors)]


def products(passes: list[list[Tensor]], compiled: bool, characters: int) -> tuple[float, float]:
    "Seconds by the clock and of the processor for the products of so many characters."
    vectors = [[torch.ones(weight.shape[1]) for weight in weights] for weights in passes]
    rows = [[vector[None, None] for vector in some] for some in vectors]
    began = time.perf_counter(), time.process_time()
    for _ in range(characters):
        for weights, some, row in zip(passes, vectors, rows):
            if compiled:
                together(weights, some)
            else:
                [F.linear(vector, weight) for weight, vector in zip(weights, row)]
    return time.perf_counter() - began[0], time.process_time() - began[1]


def write(model: TextHRM, way: str, window: int, seed: int = 0) -> tuple[float, float, list[float]]:
    "Seconds by the clock and of the processor from the prompt to the end of the window, and by the clock of each character: drawn, and read back."
    decoder, generator, stamps = WAYS[way](model), seeded(seed), []
    logits = decoder.feed(torch.randint(VOCABULARY, (1, PROMPT), generator=seeded(1)))
    start = time.perf_counter(), time.process_time()
    for _ in range(window - PROMPT):
        began = time.perf_counter()
        drawn = torch.multinomial(probabilities(logits, SAMPLING), 1, generator=generator)
        int(drawn)  # what a reader gets to see
        logits = decoder.feed(drawn)
        stamps.append(time.perf_counter() - began)
    return time.perf_counter() - start[0], time.process_time() - start[1], stamps


def agree(model: TextHRM, ways: list[str], window: int) -> float:
    "Largest difference of any logit from the eager rendering's; raises above 1e-3."
    text, worst = torch.randint(VOCABULARY, (1, window), generator=seeded(2)), 0.0
    decoders = [WAYS[way](model) for way in ways]
    for place in range(window):
        first, *others = [decoder.feed(text[:, place : place + 1]) for decoder in decoders]
        worst = max([worst, *((first - other).abs().max().item() for other in others)])
    if not worst <= 1e-3:
        raise SystemExit(f"text_rate: the renderings' logits differ by {worst:.1e}; allowed is 1e-3")
    return worst


def main(
    window: Annotated[int, typer.Option(min=32, help="characters that the model can see")] = 80,
    repeats: Annotated[int, typer.Option(min=1, help="turns that each rendering takes")] = 15,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/text_rate.json",
) -> None:
    """Decoding rate of the 4M-parameter text model, and the rate of its products alone."""
    possible, reason = compiler("cpu")
    model = build(ARCH, VOCABULARY, window, seeded(0)).eval()
    ways, passes = ["eager"] + ["compiled", "quick"] * possible, matrices(model)
    print(f"{machine_name()}, one thread; {parameters(model):,} parameters; {reason}")
    worst = agree(model, ways, window)
    count = window - PROMPT
    written, alone = {way: [] for way in ways}, {name: [] for name in ["library", "compiled"][: 1 + possible]}
    with torch.no_grad(), one_thread():
        for turn in tqdm(range(repeats + 1), unit="turn"):
            for name, seconds in alone.items():
                some = products(passes, name == "compiled", count)
                seconds += [some] * bool(turn)  # the first turn compiles
            for way in ways:
                some = write(model, way, window, turn)
                written[way] += [some] * bool(turn)
    rate = lambda turns, clock: count / statistics.median(turn[clock] for turn in turns)
    rates, limits = ({name: rate(turns, 0) for name, turns in of.items()} for of in (written, alone))
    cpu, cpu_limits = ({name: rate(turns, 1) for name, turns in of.items()} for of in (written, alone))
    best = "quick" if possible else "eager"
    half = count // 2
    price = [1e3 * statistics.median(turn[2][place] for turn in written[best]) for place in range(count)]
    along = statistics.mean(price[half:]) / statistics.mean(price[:half])
    for name, per_second in limits.items():
        print(
            f"products alone, {name:8}: {per_second:6.1f} characters/s by the clock, {cpu_limits[name]:6.1f} of processor time"
        )
    for way, per_second in rates.items():
        print(
            f"streamed, {way:8}: {per_second:6.1f} characters/s by the clock, {cpu[way]:6.1f} of processor time; "
            + ", ".join(f"{cpu[way] / limit:.2f} of the {name} products" for name, limit in cpu_limits.items())
        )
    print(f"price along the window, second half over first: {along:.2f}")
    figure = {
        "unit": "ratio",
        "low": None,
        "high": None,
        "n": repeats,
        "stage": "benchmarks/text_rate",
        "profile": "laptop",
        "machine": machine_name(),
    }
    record = {
        "machine": machine(),
        "window": window,
        "repeats": repeats,
        "arch": ARCH.model_dump(),
        "parameters": parameters(model),
        "largest_difference": worst,
        "characters_per_second": rates,
        "products_per_second": limits,
        "by_processor_time": {"characters": cpu, "products": cpu_limits},
        "milliseconds_along_the_window": price,
        "figures": {
            "text.rate_over_matvec": figure | {"value": cpu[best] / cpu_limits["library"]},
            "text.rate_over_own_matvec": figure | {"value": cpu[best] / max(cpu_limits.values())},
            "text.rate": figure | {"value": rates[best], "unit": "characters per second"},
            "text.rate.along_the_window": figure | {"value": along},
        },
    }
    print(write_atomic(root() / out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"))


if __name__ == "__main__":
    typer.run(main)
