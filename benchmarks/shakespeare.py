"""Validation loss on Tiny Shakespeare at the arithmetic of nanoGPT's recipe for a CPU, and what is forgotten from book to book.

    python benchmarks/shakespeare.py [--only NAME ...] [--share 1.0] [--out reports/benchmarks/shakespeare.json]

nanoGPT's recipe: 4 layers of 128 units, windows of 64 characters, batches of 12, 2,000 steps; its README reports a validation loss
of 1.88. Its FLOPs are counted, and every other model gets as many and not more: HRM at 1x1 (which is 4 layers, each used once) and
at 2x2, and a plain pre-norm transformer of the same parts and with the same optimizer as HRM, beside nanoGPT's own rendering with
nanoGPT's own settings. Data and split are the same for all (the first 90 % to learn from). The validation loss is the mean over
every character of the rest, in windows of 64 without overlap, as nanoGPT's estimate samples them.

The second part reads Alice in Wonderland, Through the Looking-Glass and the French Alice one after the other, with three
strategies, and measures every book that was read so far after each: the forgetting matrix, with a growing vocabulary.

A run that was killed goes on from its last state; a finished row stays in the record and is not computed again, unless
something that decides it has changed. --share 0.125 tries everything with an eighth of the steps.
"""

import json
import math
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Optional

import hrm.core  # noqa: F401  sets what must be set before torch is imported
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from hrm.core.config import hash_of, root, tree_hash
from hrm.core.device import machine, machine_name, pick, seeded
from hrm.core.files import write_atomic
from hrm.core.flops import count_flops
from hrm.core.layers import Attention, CastedEmbedding, CastedLinear, Rotary, SwiGLU, parameters, rms_norm
from hrm.core.optim import OptimConfig
from hrm.core.task import LoopConfig, Options
from hrm.core.train import fit
from hrm.text.continual import ContinualConfig, MemoryConfig, backward_transfer, learn_all, matrix
from hrm.text.data import Book, load_book, make_own
from hrm.text.files import inspect
from hrm.text.model import Reading, TextArch, TextConfig, build, load
from hrm.text.train import RunConfig, TextTask, fingerprint

TARGET, STEPS, BATCH, LENGTH, WIDTH, HEADS, LAYERS = 1.88, 2000, 12, 64, 128, 4, 4


ALICE = ("alice_in_wonderland", "through_the_looking_glass", "alice_fr")


def book_of(file: Path, folder: Path) -> Book:
    "A text as a book; its last tenth is held out."
    source = inspect(file)
    make_own(source, 0.1, folder / source.name)
    return load_book(folder / source.name)


class Layer(nn.Module):
    "A pre-norm layer: HRM's parts (rotary attention, SwiGLU, norms without weights), or nanoGPT's (GELU, LayerNorm)."

    def __init__(self, own: bool, generator: torch.Generator):
        super().__init__()
        self.own = own
        self.self_attn = Attention(WIDTH, HEADS, causal=True, generator=generator)
        if own:
            self.mlp = SwiGLU(WIDTH, 3.0, generator)
        else:
            self.mlp = nn.Sequential(
                nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH, bias=False)
            )
            self.norms = nn.ModuleList([nn.LayerNorm(WIDTH, bias=False) for _ in range(2)])

    def forward(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        first, second = (rms_norm, rms_norm) if self.own else self.norms
        x = x + self.self_attn(first(x), rotary=rotary)
        return x + self.mlp(second(x))


class Transformer(nn.Module):
    "A plain transformer that reads as `TextHRM` does, so that the same task trains it."

    def __init__(self, own: bool, vocab_size: int, generator: torch.Generator):
        super().__init__()
        self.own, self.inner, arch = own, nn.Module(), hrm_arch(1, 1)
        self.config = TextConfig(**arch.model_dump(), vocab_size=vocab_size, seq_len=LENGTH)
        inner = self.inner
        inner.register_buffer("H_init", torch.zeros(1), persistent=False)
        inner.embed_tokens = CastedEmbedding(vocab_size, WIDTH, 1.0 if own else 0.02, generator=generator)
        inner.layers = nn.ModuleList([Layer(own, generator) for _ in range(LAYERS)])
        inner.rotary = Rotary(WIDTH // HEADS, LENGTH) if own else None
        inner.lm_head = CastedLinear(WIDTH, vocab_size, generator=generator) if own else None
        if (
            not own
        ):  # learned positions, a last norm, tied weights, small normal weights, smaller ones at the end of each branch
            inner.positions, inner.norm = nn.Parameter(torch.empty(LENGTH, WIDTH)), nn.LayerNorm(WIDTH, bias=False)
            for name, p in self.named_parameters():
                if p.ndim > 1:
                    nn.init.normal_(
                        p,
                        std=0.02 / math.sqrt(2 * LAYERS) if name.endswith(("o_proj.weight", "mlp.2.weight")) else 0.02,
                        generator=generator,
                    )

    def forward(self, inputs: Tensor) -> Reading:
        inner = self.inner
        x = inner.embed_tokens(inputs)
        x = x if self.own else x + inner.positions[: x.shape[1]]
        for layer in inner.layers:
            x = layer(x, inner.rotary)
        logits = (
            inner.lm_head(rms_norm(x)) if self.own else F.linear(inner.norm(x), inner.embed_tokens.embedding_weight)
        )[None]
        ones = torch.ones_like(logits[..., 0])
        return Reading(logits, ones, ones[0], ones[0])

    def eagerly(self):
        return nullcontext()


def hrm_arch(H_cycles: int, L_cycles: int, gradient: str = "full") -> TextArch:
    return TextArch(
        hidden_size=WIDTH,
        num_heads=HEADS,
        H_layers=LAYERS // 2,
        L_layers=LAYERS // 2,
        H_cycles=H_cycles,
        L_cycles=L_cycles,
        expansion=3.0,
        halt_max_steps=1,
        gradient=gradient,
    )


OURS = dict(
    name="adamw",
    lr=2e-3,
    betas=(0.9, 0.95),
    weight_decay=0.1,
    clip=1.0,
    warmup=100,
    schedule="cosine",
    lr_min_ratio=0.0,
)
NANOGPT = OURS | dict(lr=1e-3, betas=(0.9, 0.99), lr_min_ratio=0.1)
MODELS = {  # what is built, and how it is trained
    "nanogpt": (lambda ids: Transformer(False, ids, seeded(0)), NANOGPT),
    "transformer": (lambda ids: Transformer(True, ids, seeded(0)), OURS),
    "hrm_1x1": (lambda ids: build(hrm_arch(1, 1), ids, LENGTH, seeded(0), pick("cpu")), OURS),
    "hrm_2x2": (lambda ids: build(hrm_arch(2, 2, "last_cycle"), ids, LENGTH, seeded(0), pick("cpu")), OURS),
}


def task_of(name: str, book: Book, steps: int) -> TextTask:
    "The task of a model; a model of the house or a plain one."
    make, optim = MODELS[name]
    config = RunConfig(
        arch=hrm_arch(1, 1),
        optim=OptimConfig(**optim | {"warmup": min(optim["warmup"], steps // 10)}),
        batch_size=BATCH,
        seq_len=LENGTH,
        loop=LoopConfig(
            steps=steps,
            evaluate_every=max(1, -(-steps // 4)),
            log_every=max(1, steps // 100),
            compile="off",
            best="loss",
            best_mode="min",
        ),
        device="cpu",
    )
    return TextTask(make(book.tokenizer.size), [book], book.tokenizer, config, seeded(1))


def flops(task: TextTask) -> int:
    "Of one step; AdamW has no matrix products."
    return count_flops(lambda: task.loss(task.model)[0].backward())


def shakespeare(name: str, book: Book, share: float, folder: Path, rows: dict[str, Any], save) -> dict[str, Any]:
    "One row of the first table; from the record where it is there."
    budget = share * STEPS * flops(task_of("nanogpt", book, 100))
    steps = int(budget // flops(task_of(name, book, 100)))
    task = task_of(name, book, steps)
    about = {"model": name, "config": task.config.model_dump(), "steps": steps, "arch": str(task.model)}
    key = hash_of(about)
    if rows.get(name, {}).get("key") != key:
        decides = about | {"program": tree_hash(__file__)}  # the plain models are built here, not in a module of hrm
        result = fit(task, task.config.loop, folder / name, folder / "resume", name, decides, fingerprint([book]))
        held_out = result.metrics["held_out"]
        rows[name] = {
            "key": key,
            "validation_loss": held_out["loss"],
            "bits_per_character": held_out["bits"],
            "best": result.metrics["best"],
            "tflop": result.metrics["tflop"],
            "budget_tflop": budget / 1e12,
            "steps": steps,
            "characters": steps * BATCH * LENGTH,
            "parameters": parameters(task.model),
            "seconds": result.timings["train_seconds"],
            "machine": machine_name(),
        }
        save()
    return rows[name]


def alice(texts: Path, folder: Path, share: float, record: dict[str, Any], save) -> dict[str, Any]:
    "The forgetting matrices of three books, each strategy on HRM at 1x1; from the record where they are there."
    books = {name: book_of(texts / f"{name}.txt", folder / "books") for name in ALICE}
    steps = max(4, round(share * 300))
    base = RunConfig(
        arch=hrm_arch(1, 1),
        optim=OptimConfig(**OURS | {"warmup": steps // 10}),
        batch_size=BATCH,
        seq_len=LENGTH,
        context=LENGTH // 2,
        device="cpu",
        loop=LoopConfig(
            steps=steps,
            evaluate_every=steps,
            log_every=max(1, steps // 20),
            compile="off",
            best="bits",
            best_mode="min",
        ),
    )
    config = ContinualConfig(
        seed=0,
        base=base,
        memories={
            "finetune": MemoryConfig(strategy="finetune"),
            "replay": MemoryConfig(strategy="replay", capacity=1000, share=0.25),
            "ewc": MemoryConfig(strategy="ewc", windows=200, strength=100.0),
        },
    )
    key = hash_of([config.model_dump(), fingerprint(list(books.values()))])
    if record.get("key") != key:
        table, runs = learn_all(config, books, folder / "alice", Options(folder / "resume"))
        found = {name: matrix(table, name) for name in config.memories}
        models = [load(folder / "alice" / name / "final") for name in runs if name.startswith(("first", "finetune"))]
        record.update(
            key=key,
            steps=steps,
            tflop=sum(result.metrics["tflop"] for result in runs.values()),
            machine=machine_name(),
            vocabulary=[tokenizer.size for _, tokenizer, _ in models],
            parts=list(models[-1][0].config.vocab_parts),
            bits_per_character={
                name: {
                    after: {book: value for book, value in row.items() if not math.isnan(value)}
                    for after, row in one.iterrows()
                }
                for name, one in found.items()
            },
            rise_on_earlier_books={name: backward_transfer(one) for name, one in found.items()},
        )
        save()
    return record


def figure(row: dict[str, Any], field: str, unit: str) -> dict[str, Any]:
    return {
        "value": row[field],
        "unit": unit,
        "low": None,
        "high": None,
        "n": 1,
        "stage": "benchmarks/shakespeare",
        "profile": "laptop",
        "machine": row["machine"],
    }


def main(
    only: Annotated[
        Optional[list[str]],
        typer.Option(help=f"models to train ({', '.join(MODELS)}), or books  [default: all]", show_default=False),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="of the 2,000 steps; rows of another share are kept apart")
    ] = 1.0,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/shakespeare.json",
) -> None:
    """Validation loss on Tiny Shakespeare at nanoGPT's arithmetic: HRM at 1x1 and 2x2 beside transformers."""
    if unknown := sorted(set(only or ()) - {*MODELS, "books"}):
        raise SystemExit(f"shakespeare: --only: found {', '.join(unknown)}; allowed: {', '.join(MODELS)}, books")
    texts = Path(os.environ.get("HRM_SHARED", root().parent / "shared")) / "data" / "text"
    if not (texts / "tiny_shakespeare.txt").is_file():
        raise SystemExit(
            f"shakespeare: {texts / 'tiny_shakespeare.txt'} is absent: set HRM_SHARED to the folder with the data for tests"
        )
    path, folder = root() / out, root() / "data" / "benchmarks" / "shakespeare"
    book = book_of(texts / "tiny_shakespeare.txt", folder / "books")
    record = json.loads(path.read_text()) if path.is_file() else {}
    if missing := [name for name in ALICE if not (texts / f"{name}.txt").is_file()]:
        raise SystemExit(
            f"shakespeare: {texts / missing[0]}.txt is absent: set HRM_SHARED to the folder with the data for tests"
        )
    rows = record.setdefault("models" if share == 1.0 else f"models_at_{share:g}", {})

    def save() -> None:
        full = record.get("models", {})
        named = {
            f"text.shakespeare.val_loss{'' if name == 'hrm_2x2' else '.' + name}": figure(
                row, "validation_loss", "nats per character"
            )
            for name, row in full.items()
        }
        if "key" in record.get("books", {}):
            rise = record["books"]["rise_on_earlier_books"]
            named |= {
                f"text.alice.forgetting.{name}": figure(
                    {"machine": record["books"]["machine"], "value": value},
                    "value",
                    "bits per character, mean rise on earlier books",
                )
                for name, value in rise.items()
            }
        record.update(machine=machine(), target=TARGET, figures=named)
        write_atomic(path, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")

    print(
        f"{machine_name()}; {len(book.train):,} characters to learn from, {len(book.held_out):,} held out, {book.tokenizer.size} ids"
    )
    for name in MODELS if only is None else only:
        if name == "books":
            continue
        row = shakespeare(name, book, share, folder / f"{share:g}", rows, save)
        print(
            f"{name:12} validation loss {row['validation_loss']:.4f} (at most {TARGET} wanted), {row['tflop']:.2f} of {row['budget_tflop']:.2f} TFLOP, "
            f"{row['steps']} steps, {row['characters']:,} characters drawn, {row['parameters']:,} values, {row['seconds']:.0f} s"
        )
    if only is None or "books" in only:
        row = alice(
            texts,
            folder / f"{share:g}",
            share,
            record.setdefault("books" if share == 1.0 else f"books_at_{share:g}", {}),
            save,
        )
        print(f"{' -> '.join(ALICE)}: {row['tflop']:.2f} TFLOP, {' -> '.join(map(str, row['vocabulary']))} ids")
        for name, after in row["bits_per_character"].items():
            print(f"  {name} ({row['rise_on_earlier_books'][name]:+.3f} bits on earlier books)")
            for learned, measured in after.items():
                print(f"    after {learned:26}", "  ".join(f"{book} {bits:.3f}" for book, bits in measured.items()))
    print(path)


if __name__ == "__main__":
    typer.run(main)
