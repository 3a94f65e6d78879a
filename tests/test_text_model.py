"""The model of text: sizes, causality, growth to the last bit, memory of earlier books, exact resume, a golden curve.

`HRM_WRITE_GOLDEN=1 pytest tests/test_text_model.py -k golden` writes the stored curve again.
"""

import json
import math
import os
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hrm.core import checkpoint, optim
from hrm.core.config import ConfigError
from hrm.core.device import seeded
from hrm.core.errors import DataError, LeakError
from hrm.core.generate import HRMDecoder
from hrm.core.layers import parameters
from hrm.core.optim import OptimConfig
from hrm.core.task import LoopConfig, Options
from hrm.core.tokens import SPECIALS, CharacterTokenizer
from hrm.core.tracking import read_log
from hrm.text.continual import (
    ContinualConfig,
    Elastic,
    Memory,
    MemoryConfig,
    Reservoir,
    backward_transfer,
    fisher,
    grow_vocabulary,
    learn_all,
    matrix,
    memory_state,
    restore_memory,
)
from hrm.text.data import Book, DataConfig, grow, load
from hrm.text.data import build as build_data
from hrm.text.growth import (
    Growth,
    GrowthConfig,
    Tracker,
    block_parameters,
    compare,
    grow_group,
    grow_layers,
    largest_change,
    pieces,
    plan,
    run_growing,
)
from hrm.text.life import NEXT, chapters, create, decide, free, newest, status, teach
from hrm.text.look import configurations, movements
from hrm.text.model import (
    ADVANCED,
    DOCUMENT,
    TextArch,
    TextConfig,
    TextDecoder,
    TextHRM,
    about,
    at,
    build,
    causality_probe,
    log_probabilities,
)
from hrm.text.model import load as load_model
from hrm.text.train import RunConfig, TextTask, TrainConfig, Windows, check_leak, fingerprint, nats, run, run_all, spans

ARCH = dict(hidden_size=32, num_heads=2, H_layers=1, L_layers=1, H_cycles=2, L_cycles=2, expansion=2, halt_max_steps=1)
LOOP = dict(steps=6, evaluate_every=6, log_every=1, checkpoint_seconds=0.0, compile="off", best="bits", best_mode="min")
GOLDEN = ROOT / "tests" / "golden" / "text.txt"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    build_data(DataConfig(seed=0, books=("english", "french", "greek"), characters=6000, held_out=0.1), folder)
    return folder


@pytest.fixture(scope="module")
def books(shelf) -> dict[str, Book]:
    return load(shelf)


def recipe(**change) -> RunConfig:
    arch, loop, optim = (change.pop(name, {}) for name in ("arch", "loop", "optim"))
    return RunConfig(
        **{
            "arch": TextArch(**ARCH | arch),
            "loop": LoopConfig(**LOOP | loop),
            "batch_size": 4,
            "seq_len": 24,
            "context": 8,
            "held_out": 150,
            "device": "cpu",
            "optim": OptimConfig(**{"name": "adamw", "lr": 3e-3, "clip": 1.0} | optim),
        }
        | change
    )


def weights(folder) -> dict[str, torch.Tensor]:
    return checkpoint.read(folder).weights


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def texts(rows: int, length: int, ids: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(ids, (rows, length), generator=seeded(seed))


# --- the model


@pytest.mark.parametrize(
    "arch, ids, count", [(DOCUMENT, 87, 3_980_290), (DOCUMENT, 100, 3_986_946), (ADVANCED, 200, 15_940_610)]
)
def test_parameters_of_the_document(arch, ids, count):
    with torch.device("meta"):
        model = TextHRM(TextConfig(**arch.model_dump(), vocab_size=ids, seq_len=80))
    assert parameters(model) == count
    if arch is DOCUMENT:
        assert count == 2 * ids * 256 + 2 * 256 + 2 + 655_872 * 6


VARIANTS = {
    "plain": {},
    "by position": {"halting": "graves", "halt_max_steps": 3},
    "stablemax": {"cross_entropy": "stablemax", "norm_weights": True},
    "three segments": {"halt_max_steps": 3},
    "learned positions": {"pos_encodings": "learned"},
    "grown": {"L_layers": 3, "L_grown": 2, "H_layers": 2, "H_grown": 1},
}


def varied(name: str, length: int = 16, ids: int = 13) -> TextHRM:
    model = build(TextArch(**ARCH | VARIANTS[name]), ids, length, seeded(0)).eval()
    with torch.no_grad():  # gates open and halting uneven, or the test would see less than there is
        for key, p in model.named_parameters():
            if key.endswith("gate"):
                p.fill_(0.3)
        torch.nn.init.normal_(model.inner.q_head.weight, std=0.3, generator=seeded(5))
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_causality_bit_for_bit(name):
    model = varied(name)
    assert causality_probe(model, texts(2, 16, 13), seeded(3), places=16) == 0.0
    leaky = build(TextArch(**ARCH | VARIANTS[name] | {"causal": False}), 13, 16, seeded(0))
    assert causality_probe(leaky, texts(2, 16, 13), seeded(3)) > 1e-3


@pytest.mark.parametrize("name", VARIANTS)
def test_decoding_equals_reading(name):
    model, text = varied(name), texts(2, 16, 13)
    with torch.no_grad():
        reading = model(text)
    said = log_probabilities(reading.logits[-1], model.config.cross_entropy)
    decoder, place = TextDecoder(model, rows=2), 0
    for piece in text.split((3, 1, 4, *(1,) * 8), dim=1):
        place += piece.shape[1]
        torch.testing.assert_close(decoder.feed(piece), said[:, place - 1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(decoder.weights, reading.weights[:, :, place - 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(TextDecoder(model, rows=2, cached=False).feed(text), said[:, -1], rtol=1e-4, atol=1e-5)
    if model.config.halting == "fixed":
        torch.testing.assert_close(
            HRMDecoder(model, rows=2).feed(text), reading.logits[-1, :, -1], rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match="1 characters for 0 places"):
        decoder.feed(text[:, :1])


def test_weights_of_the_segments_sum_to_one_and_steps_differ():
    reading = varied("by position")(texts(4, 16, 13))
    torch.testing.assert_close(reading.weights.sum(0), torch.ones(4, 16))
    assert reading.steps.unique().numel() > 1 and ((reading.weights > 0).sum(0) == reading.steps).all()


def test_probabilities_of_stablemax_and_softmax():
    logits = torch.randn(3, 7, generator=seeded(0)) * 3
    torch.testing.assert_close(log_probabilities(logits, "softmax"), logits.log_softmax(-1))
    value = torch.where(logits < 0, 1 / (1 - logits), logits + 1)
    torch.testing.assert_close(log_probabilities(logits, "stablemax").exp(), value / value.sum(-1, keepdim=True))


def test_other_cycles_share_the_weights():
    model = varied("plain")
    other = at(model, 1, 3)
    trace = []
    other(texts(1, 16, 13), trace)
    assert [step for step, _ in trace] == ["L", "L", "L", "H"] and other.inner.L_level is model.inner.L_level
    assert (model.config.H_cycles, model.config.L_cycles) == (2, 2)
    assert at(model, 2, 2)(texts(1, 16, 13)).logits.equal(model(texts(1, 16, 13)).logits)
    rows = configurations(model, texts(1, 16, 13))
    assert rows.changed[2] == 0 and rows.block_passes.is_monotonic_increasing
    assert movements(model, texts(1, 16, 13)).module.tolist() == ["L", "L", "H"] * 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"L_grown": 1}, "L_grown 1 of L_layers 1"),
        ({"puzzle_emb_ndim": 4}, "a text has no puzzle"),
        ({"halting": "q"}, "graves"),
        ({"cross_entropy": "hinge"}, "stablemax"),
    ],
)
def test_architectures_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        TextArch(**ARCH | change)


def test_a_checkpoint_says_everything(tmp_path):
    model, letters = (
        build(TextArch(**ARCH | VARIANTS["grown"]), (10, 2, 3), 16, seeded(0)).eval(),
        CharacterTokenizer(tuple("abcdefgh")),
    )
    checkpoint.write(tmp_path / "a", model.state_dict(), {"config": about(model, letters), "step": 0})
    again, tokenizer, _ = load_model(tmp_path / "a")
    assert (
        again.config == model.config
        and tokenizer == letters
        and again(texts(1, 16, 15)).logits.equal(model(texts(1, 16, 15)).logits)
    )
    for change, message in (
        ({"system": "dialogue"}, "system: text"),
        ({"vocab_parts": [10, 2]}, "the parts sum to the tokenizer's 15"),
        ({"seq_len": 0}, "seq_len"),
        ({"arch": {"hidden_size": 32}}, "missing key"),
        ({"tokenizer": {}}, "kind"),
    ):
        checkpoint.write(tmp_path / "b", model.state_dict(), {"config": about(model, letters) | change, "step": 0})
        with pytest.raises(ConfigError, match=message):
            load_model(tmp_path / "b")


# --- growth that is not heard


@settings(max_examples=25, deadline=None)
@given(
    st.integers(8, 90),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.sampled_from([1, 2, 7]),
    st.sampled_from([1, 3, 16]),
)
def test_new_characters_move_no_old_logit(old, more, rows, length):
    letters = CharacterTokenizer(tuple(map(chr, range(200, 200 + old))))
    model = build(TextArch(**ARCH), letters.size, 16, seeded(old)).eval()
    text = texts(rows, length, letters.size)
    with torch.no_grad():
        before, tokenizer = model(text).logits, letters
        for number, count in enumerate(more):
            other = CharacterTokenizer(tuple(map(chr, range(1000 * (number + 1), 1000 * (number + 1) + count))))
            model, tokenizer = grow_vocabulary(model, tokenizer, other, seeded(number))
        assert model.eval()(text).logits[..., : letters.size].equal(before)
    assert tokenizer.tokens[:old] == letters.tokens and model.config.vocab_parts == (letters.size, *more)
    new = model.inner.embed_tokens.embedding_weight[letters.size :]
    assert abs(new.std().item() * math.sqrt(32) - 1) < 0.35  # drawn like those of a fresh model


@pytest.mark.parametrize("name", VARIANTS)
def test_new_blocks_move_no_logit(name):
    model = varied(name)
    grown = grow_layers(model, 2, 1, seeded(7))
    text = texts(3, 16, 13)
    with torch.no_grad():
        assert grown(text).logits.equal(model(text).logits) and largest_change(model, grown) == 0.0
        decoders = TextDecoder(model, rows=3), TextDecoder(grown, rows=3)
        for piece in text.split((5, *(1,) * 11), dim=1):
            one, other = (decoder.feed(piece) for decoder in decoders)
            assert one.equal(other)
    assert parameters(grown) - parameters(model) == 3 * block_parameters(TextArch(**ARCH | VARIANTS[name]))
    assert (grown.config.H_grown, grown.config.L_grown) == (model.config.H_grown + 2, model.config.L_grown + 1)


def test_growth_that_is_heard_is_an_error(monkeypatch):
    monkeypatch.setattr(
        "hrm.text.model.TextBlock.add_gate",
        lambda self: setattr(self, "gate", torch.nn.Parameter(torch.full((), 1e-3))),
    )
    with pytest.raises(ArithmeticError, match="a new block must not be heard"):
        grow_layers(varied("plain"), 1, 0, seeded(0))


def stepped(model: TextHRM, optimizers: list, text: torch.Tensor) -> None:
    model.train()
    logits = model(text[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits[-1].flatten(0, 1), text[:, 1:].flatten()).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "adam_atan2", "muon"])
def test_old_parameters_are_trained_as_if_nothing_had_grown(name):
    config, text = OptimConfig(name=name, lr=1e-2, ema=0.5), texts(4, 17, 13)
    model = build(TextArch(**ARCH), 13, 16, seeded(0))
    optimizers = optim.build(model, config)
    for _ in range(3):
        stepped(model, optimizers, text)
    average = optim.average(model, config.ema)
    grown = grow_layers(model, 1, 1, seeded(1))
    again = optim.build(grown, config)
    group = grow_group(
        {"optimizers": [one.state_dict() for one in optimizers], "average": average.state_dict()}, model, grown, config
    )
    for optimizer, state in zip(again, group["optimizers"]):
        optimizer.load_state_dict(state)
    optim.average(grown, config.ema).load_state_dict(group["average"])
    forgetful = grow_layers(model, 1, 1, seeded(1))
    stepped(forgetful, optim.build(forgetful, config), text)
    stepped(model, optimizers, text)
    stepped(grown, again, text)
    old, new = dict(model.named_parameters()), dict(grown.named_parameters())
    for key, p in old.items():
        torch.testing.assert_close(new[key], p, rtol=1e-6, atol=1e-7, msg=key)
    assert any(
        not torch.allclose(p, forgetful.get_parameter(key), atol=1e-4) for key, p in old.items()
    )  # without its state it would go elsewhere
    assert all(p.item() != 0 for key, p in new.items() if key.endswith("gate"))


def test_every_parameter_learns_and_new_ones_after_their_gate(books):
    config = recipe(arch={"halting": "graves", "halt_max_steps": 2, "norm_weights": True, "gradient": "full"})
    model = build(config.arch, books["english"].tokenizer.size, config.seq_len, seeded(0))

    def silent(model):
        task = TextTask(model.train(), [books["english"]], books["english"].tokenizer, config, seeded(1))
        task.loss(model)[0].backward()
        quiet = {
            name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
        }
        gates = optim.build(model, OptimConfig(name="adamw", lr=1e-2))
        for optimizer in gates:
            optimizer.step()
            optimizer.zero_grad()
        return quiet

    assert silent(model) == set()
    grown = grow_layers(model, 1, 1, seeded(2))
    inside = {name for name, _ in grown.named_parameters() if ".layers.1." in name and not name.endswith("gate")}
    assert silent(grown) == inside  # the gates learn first
    assert silent(grown) == set()
    fixed = build(TextArch(**ARCH), 13, 16)
    assert {name for name, p in fixed.named_parameters() if not p.requires_grad} == {
        "inner.q_head.weight",
        "inner.q_head.bias",
    }


def test_plans_and_thresholds():
    million = Growth(characters=3_000_000, parameters=1_000_000)
    assert block_parameters(DOCUMENT) == 655_873 and plan(DOCUMENT, million) == (0, 1)
    assert plan(DOCUMENT.model_copy(update={"L_layers": 4}), million) == (1, 0)
    assert plan(DOCUMENT, Growth(characters=1, parameters=100_000_000)) == (5, 5)  # ten blocks at most
    tracker = Tracker()
    tracker.read("a", 2_900_000)
    assert (tracker.due(million), tracker.until(million)) == (0, 100_000)
    tracker.read("b", 4_100_000)
    assert (tracker.due(million), tracker.books, Tracker(**tracker.to_dict())) == (
        2,
        {"a": 2_900_000, "b": 4_100_000},
        tracker,
    )


@settings(max_examples=60, deadline=None)
@example(2, 2, 0, 1)  # a step reads two thresholds' worth
@given(st.integers(1, 400), st.integers(1, 50), st.integers(0, 5000), st.integers(1, 3000))
def test_pieces_end_where_the_tracker_passes_its_threshold(steps, per_step, before, every):
    growth = Growth(characters=every, parameters=1)
    tracker = Tracker(characters=before, growths=[{}] * (before // every))
    cuts = pieces(steps, per_step, tracker, growth)
    expected, due = [], before // every
    for step in range(1, steps):
        if (before + step * per_step) // every > due:
            expected.append(step)
            due += 1  # one growth at a time, even where one step passes two thresholds
    assert cuts == [*expected, steps]


class Killed(BaseException):
    "As good as a lost machine."


def killed_at(step: int):
    def watch(number, row):
        if number == step and "loss" in row:
            raise Killed

    return watch


def test_a_run_that_grows_goes_on_to_the_same_bits(books, tmp_path):
    config = recipe(
        loop={"steps": 12, "evaluate_every": 4},
        optim={"name": "muon", "ema": 0.9},
        embedding=OptimConfig(name="adamw", lr=1e-3),
        arch={"halting": "graves", "halt_max_steps": 2},
    )
    growth, one = Growth(characters=4 * config.characters, parameters=block_parameters(config.arch)), [books["english"]]
    whole, tracker = run_growing(
        "whole", config, growth, 0, one, tmp_path / "whole", Options(tmp_path / "r1", progress=False)
    )
    for step in (3, 7, 11):  # in each of the pieces
        with pytest.raises(Killed):
            run_growing(
                "whole",
                config,
                growth,
                0,
                one,
                tmp_path / "broken",
                Options(tmp_path / "r2", progress=False, watch=lambda name: killed_at(step)),
            )
    broken, again = run_growing(
        "whole", config, growth, 0, one, tmp_path / "broken", Options(tmp_path / "r2", progress=False)
    )
    assert len(whole) == 3 and again == tracker and not tiny.unfinished(tmp_path / "r2")
    for a, b in zip(whole, broken):
        assert equal(weights(a.folder / "final"), weights(b.folder / "final")) and a.metrics == b.metrics
    assert [(one["largest_change"], one["bits"][0] == one["bits"][1]) for one in tracker.growths] == [(0.0, True)] * 2
    rows = [row for result in whole for row in read_log(result.folder).dropna(subset=["loss"]).itertuples()]
    assert [row.step for row in rows] == list(range(1, 13))


def test_growing_against_the_final_size(books, tmp_path):
    config = GrowthConfig(
        seed=0,
        base=recipe(loop={"steps": 10, "evaluate_every": 10}),
        growth=Growth(characters=5 * 96, parameters=30_000),
    )
    table, tracker, _ = compare(config, [books["english"]], tmp_path / "out", Options(tmp_path / "r", progress=False))
    by = table.set_index("model")
    assert by.parameters["grown"] == by.parameters["from the start"] + 1 > by.parameters["never grown"]  # one gate
    assert by.steps["from the start"] < 10 < by.steps["never grown"]
    assert (by.tflop <= by.tflop["grown"] * (1 + 1e-9)).all() and len(tracker.growths) == 1
    with pytest.raises(ValueError, match="growth.characters 1000000; allowed: less than the 960"):
        GrowthConfig(seed=0, base=config.base, growth=Growth(characters=1_000_000, parameters=30_000))


# --- training and measuring


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_every_label_counts_once_and_has_its_context(labels, length, data):
    context = data.draw(st.integers(0, length - 1))
    length, counted = min(length, labels), np.zeros(labels, int)
    context = min(context, length - 1)
    for start, new in spans(labels, length, context):
        assert 0 <= start <= labels - length and new >= min(context, start)
        counted[start + new : start + length] += 1
    assert (counted == 1).all()


@pytest.mark.parametrize("name", ["plain", "stablemax", "by position"])
def test_surprise_by_its_definition(name):
    model, text = varied(name, 8), texts(1, 30, 13)[0].numpy()
    surprise, steps = nats(model, text, context=3, batch=2)
    for start, new in spans(29, 8, 3):
        for place in range(start + new, start + 8):
            with torch.no_grad():
                reading = model(torch.as_tensor(text[None, start : place + 1]))
            said = log_probabilities(reading.logits[-1, 0, -1], model.config.cross_entropy)
            assert (
                surprise[place] == pytest.approx(-said[text[place + 1]].item(), abs=1e-4)
                and steps[place] == reading.steps[0, -1]
            )
    assert nats(model, text[:4])[0].shape == (3,)  # shorter than a window


def test_windows_stay_inside_their_text_and_on_the_disk(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(50, dtype=np.uint16))
    on_disk, table = np.load(tmp_path / "ids.npy", mmap_mode="r"), np.arange(200) + 1
    windows = Windows({"a": (on_disk, table), "b": (np.arange(100, 120), table)}, 9)
    drawn = windows.draw(4000, seeded(0))
    assert drawn.dtype == torch.int64 and (drawn.diff(dim=1) == 1).all()
    starts = drawn[:, 0].bincount(minlength=130)
    assert starts.nonzero().flatten().tolist() == [*range(1, 42), *range(101, 112)]
    assert abs(starts[starts > 0] - 4000 / 52).max() < 5 * math.sqrt(4000 / 52)
    with pytest.raises(DataError, match=r"too short: b \(20\); allowed: 21 or more"):
        Windows({"a": (on_disk, table), "b": (np.arange(100, 120), table)}, 20)


def test_a_leak_is_an_error_and_the_documents_attention_is_one(books, tmp_path):
    check_leak(0.40, 0.41)
    with pytest.raises(LeakError, match="below the entropy rate"):
        check_leak(0.38, 0.41)
    run(
        "leak",
        recipe(arch={"causal": False}, sample=5),
        0,
        [books["english"]],
        tmp_path / "out",
        Options(tmp_path / "r", progress=False),
    )
    low = books["english"].__class__(**{**vars(books["english"]), "rate": 20.0})
    with pytest.raises(LeakError):
        run("leak", recipe(), 0, [low], tmp_path / "no", Options(tmp_path / "r", progress=False))


def test_accumulated_batches_are_one_large_batch(books):
    config = recipe(batch_size=4)
    model = build(config.arch, books["english"].tokenizer.size, config.seq_len, seeded(0))
    grads = []
    for size, times in ((4, 2), (8, 1)):
        task = TextTask(model, [books["english"]], books["english"].tokenizer, recipe(batch_size=size), seeded(1))
        for _ in range(times):
            (task.loss(model)[0] / times).backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert recipe(loop={"accumulate": 2}).characters == recipe(batch_size=8).characters
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], rtol=1e-4, atol=1e-6)


def test_groups_hold_every_parameter_once(books):
    config = recipe(embedding=OptimConfig(name="adamw", lr=1e-4))
    task = TextTask(
        build(config.arch, books["english"].tokenizer.size, 24),
        [books["english"]],
        books["english"].tokenizer,
        config,
        seeded(0),
    )
    held = [
        id(p)
        for part, own in task.groups
        for optimizer in optim.build(part, own)
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert sorted(held) == sorted(id(p) for p in task.model.parameters() if p.requires_grad) and len(task.groups) == 2


@pytest.mark.parametrize(
    "change, message",
    [({"context": 24}, "context 24 of seq_len 24"), ({"loop": {"best": "exact_accuracy"}}, "bits, loss, perplexity")],
)
def test_runs_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        recipe(**change)


def test_golden_curve(shelf, tmp_path):
    config = recipe(
        arch={
            "hidden_size": 64,
            "num_heads": 4,
            "halting": "graves",
            "halt_max_steps": 2,
            "cross_entropy": "stablemax",
            "norm_weights": True,
            "gradient": "last_cycle",
        },
        loop={"steps": 20, "evaluate_every": 20},
        embedding=OptimConfig(name="adamw", lr=1e-3),
        optim={"warmup": 4, "schedule": "cosine", "lr_min_ratio": 0.1},
    )
    result = run_all(
        TrainConfig(seed=0, runs={"golden": config}), shelf, tmp_path / "out", Options(tmp_path / "r", progress=False)
    )["golden"]
    log = read_log(result.folder).dropna(subset=["loss"])
    found = [[int(row.step), row.loss, row.steps] for row in log.itertuples()] + [
        [0, result.metrics["held_out"]["loss"], result.metrics["held_out"]["steps"]]
    ]
    if os.environ.get("HRM_WRITE_GOLDEN"):
        GOLDEN.write_text(
            "step loss steps\n" + "\n".join(f"{step} {loss:.8g} {steps:.8g}" for step, loss, steps in found) + "\n"
        )
    stored = [line.split() for line in GOLDEN.read_text().splitlines()[1:]]
    assert len(stored) == len(found) == 21
    for (step, loss, steps), (s, l, n) in zip(found, stored):
        assert (step, loss, steps) == (int(s), pytest.approx(float(l), rel=1e-4), pytest.approx(float(n), rel=1e-3)), (
            f"step {step}"
        )


# --- memory of earlier books


def one_by_one(capacity: int, stream, generator) -> list[int]:
    kept = []
    for number, window in enumerate(stream, 1):
        if len(kept) < capacity:
            kept.append(window)
        elif (place := int(torch.rand(1, generator=generator, dtype=torch.float64) * number)) < capacity:
            kept[place] = window
    return kept


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 60), st.integers(0, 1000))
def test_the_reservoir_is_the_loop(capacity, count, seed):
    reservoir = Reservoir(capacity)
    reservoir.offer(torch.arange(count)[:, None].expand(count, 2), seeded(seed))
    assert (
        reservoir.rows[:, 0].tolist() == one_by_one(capacity, range(count), seeded(seed))
        if count
        else len(reservoir.rows) == 0
    )
    assert (reservoir.seen, len(reservoir.draw(5, seeded(0)))) == (count, 5 if count else 0)


def test_the_reservoir_is_uniform_over_books():
    times, trials = torch.zeros(30), 2000
    for trial in range(trials):
        reservoir = Reservoir(6)
        for book in torch.arange(30).split((4, 20, 6)):
            reservoir.offer(book[:, None].expand(-1, 2), seeded(7 * trial + len(book)))
        times[reservoir.rows[:, 0].long()] += 1
    assert abs(times - trials / 5).max() < 4.5 * math.sqrt(trials * 0.2 * 0.8)


def test_fisher_and_penalty_by_brute_force():
    model = varied("plain", 6, 9)
    model.config = model.inner.config = model.config.model_copy(update={"gradient": "one_step"})
    rows = texts(4, 7, 9)
    found = fisher(model, rows, seeded(3))
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total, draws, whole = (
        {name: torch.zeros_like(p) for name, p in params.items()},
        seeded(3),
        at(model, 2, 2, gradient="full"),
    )
    for row in rows:
        share = whole(row[None, :-1]).logits[-1, 0].softmax(-1)
        drawn = torch.multinomial(share.detach(), 1, generator=draws)
        for name, grad in zip(params, torch.autograd.grad(share.gather(-1, drawn).log().sum(), list(params.values()))):
            total[name] += grad**2 / (4 * 6)
    assert found.keys() == total.keys()
    for name in found:
        torch.testing.assert_close(found[name], total[name], rtol=1e-4, atol=1e-8)
    elastic = Elastic(30.0)
    elastic.hold(model, found)
    elastic.hold(model, found)  # the informations of two books add up
    anchor = {name: p.detach().clone() for name, p in params.items()}
    with torch.no_grad():
        for p in params.values():
            p.add_(torch.randn(p.shape, generator=seeded(4)) * 0.1)
    price = elastic(model)
    price.backward()
    assert price.item() == pytest.approx(
        15 * sum((2 * found[name] * (p - anchor[name]) ** 2).sum().item() for name, p in params.items()), rel=1e-4
    )
    for name, p in params.items():
        torch.testing.assert_close(p.grad, 30 * 2 * found[name] * (p.detach() - anchor[name]), rtol=1e-4, atol=1e-8)


def test_rows_of_later_characters_cost_nothing():
    letters = CharacterTokenizer(tuple("abcd"))
    model = build(TextArch(**ARCH), letters.size, 6, seeded(0))
    elastic = Elastic(10.0)
    elastic.hold(model, fisher(model, texts(3, 7, letters.size), seeded(0)))
    grown, _ = grow_vocabulary(model, letters, CharacterTokenizer(tuple("xy")), seeded(1))
    assert elastic(grown).item() == 0.0
    with torch.no_grad():
        grown.inner.lm_head.weight[letters.size :] += 5
    assert elastic(grown).item() == 0.0
    with torch.no_grad():
        grown.inner.lm_head.weight[7] += 5
    assert elastic(grown).item() > 0


def test_a_batch_rehearses_its_share(books):
    memory, config = Memory(MemoryConfig(strategy="replay", capacity=30, share=0.25), 0), recipe(batch_size=8)
    tokenizer = reduce(grow, (book.tokenizer for book in books.values()))
    model = build(config.arch, tokenizer.size, config.seq_len, seeded(0))
    memory.remember(books["english"], model, tokenizer)
    task = TextTask(model, [books["greek"]], tokenizer, config, seeded(1), **memory.parts())
    batch = task.rows()
    kept = {tuple(row) for row in memory.reservoir.rows.tolist()}
    assert batch.shape == (8, 25) and [tuple(row) in kept for row in batch.tolist()] == [False] * 6 + [True] * 2
    again = restore_memory(Memory(memory.config, 0), memory_state(memory))
    assert again.reservoir.rows.equal(memory.reservoir.rows) and (again.books, again.reservoir.seen) == (
        1,
        memory.reservoir.seen,
    )


@pytest.mark.parametrize(
    "values",
    [
        {"strategy": "replay", "capacity": 5},
        {"strategy": "ewc", "windows": 5},
        {"strategy": "finetune", "share": 0.5},
        {"strategy": "ewc", "windows": 5, "strength": 1.0, "capacity": 3},
    ],
)
def test_memories_that_cannot_be(values):
    with pytest.raises(ValueError, match="with strategy"):
        MemoryConfig(**values)


def test_books_in_a_row_are_measured_and_resume(books, tmp_path):
    config = ContinualConfig(
        seed=0,
        base=recipe(),
        memories={
            "finetune": MemoryConfig(strategy="finetune"),
            "ewc": MemoryConfig(strategy="ewc", windows=3, strength=50.0),
            "replay": MemoryConfig(strategy="replay", capacity=20, share=0.5),
        },
    )
    table, runs = learn_all(config, books, tmp_path / "whole", Options(tmp_path / "r1", progress=False))
    kept, stop = [], {"after": 4}

    def stopped(name, *args, **options):
        if len(kept) == stop["after"]:
            raise Killed
        kept.append(name)
        return run(name, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hrm.text.continual.run", stopped)
        with pytest.raises(Killed):
            learn_all(config, books, tmp_path / "broken", Options(tmp_path / "r2", progress=False))
    again, _ = learn_all(config, books, tmp_path / "broken", Options(tmp_path / "r2", progress=False))
    assert again.equals(table) and not tiny.unfinished(tmp_path / "r2")
    assert len(runs) == 1 + 3 * 2 and len(table) == 3 * (1 + 2 + 3)
    found = matrix(table, "ewc")
    assert (
        list(found.columns) == list(found.index) == list(books)
        and np.isfinite(found.values[np.tril_indices(3)]).all()
        and np.isnan(found.values[np.triu_indices(3, 1)]).all()
    )
    assert backward_transfer(found) == pytest.approx(
        ((found.iloc[2, 0] - found.iloc[0, 0]) + (found.iloc[2, 1] - found.iloc[1, 1])) / 2
    )
    assert table[table["after"] == "english"].groupby("book").bits.nunique().tolist() == [1]  # the first book is shared
    model, tokenizer, meta = load_model(tmp_path / "whole" / "replay-2-greek" / "final")
    assert [read["books"] for read in meta["config"]["history"]] == [["english"], ["french"], ["greek"]] and len(
        model.config.vocab_parts
    ) == 3
    assert tokenizer == reduce(grow, (book.tokenizer for book in books.values()))


# --- the life of a model


def test_a_life(books, tmp_path):
    home, config, finetune = (
        tmp_path / "models" / "mine",
        recipe(),
        MemoryConfig(strategy="replay", capacity=10, share=0.25),
    )
    growth = Growth(characters=8 * config.characters, parameters=30_000)
    kind, lesson = decide(home, books["english"], config, growth, finetune)
    assert kind == "first"
    teach(home, books["english"], lesson, Options(progress=False))
    with pytest.raises(ConfigError, match="has learned 'english' already"):
        decide(home, books["english"], config, growth, finetune)
    kind, lesson = decide(home, books["french"], config, growth, finetune)
    assert (kind, lesson.number) == ("new book", 2)
    with pytest.raises(Killed):
        teach(home, books["french"], lesson, Options(progress=False, watch=lambda name: killed_at(4)))
    assert status(home)[0]["unfinished"] == "french" and newest(home)[1]["book"] == "english"
    assert decide(home, books["french"], recipe(batch_size=2), None, finetune) == (
        "goes on",
        lesson,
    )  # with the settings that it began with
    with pytest.raises(ConfigError, match="'french' was stopped and is not finished"):
        decide(home, books["greek"], config, growth, finetune)
    assert free(home).name == "mine_2" and free(tmp_path / "none").name == "none"
    results = teach(home, books["french"], lesson, Options(progress=False))
    other = tmp_path / "unbroken"
    for book in ("english", "french"):
        unbroken = teach(
            other, books[book], decide(other, books[book], config, growth, finetune)[1], Options(progress=False)
        )
    assert len(results) == 2 and equal(weights(results[-1].folder / "final"), weights(unbroken[-1].folder / "final"))
    (row,) = status(tmp_path / "models", fingerprint([books["french"]]))
    assert (row["books"], row["characters"], row["growths"], row["unfinished"], row["knows it"]) == (
        "english, french",
        12 * config.characters,
        1,
        "",
        True,
    )
    assert decide(home, books["english"], config, growth, finetune, again=True)[0] == "again"
    assert not (home / NEXT).exists() and len(chapters(home)) == 2
    with pytest.raises(ConfigError, match="a model stands there already"):
        create(home, TextArch(**ARCH), 24, books["english"].tokenizer)
    with pytest.raises(ConfigError, match="found seq_len 16; allowed: 24"):
        teach(
            home,
            books["greek"],
            decide(home, books["greek"], recipe(seq_len=16), growth, finetune)[1],
            Options(progress=False),
        )


def test_fingerprints_are_of_what_is_read(books):
    same = fingerprint([books["english"]])
    assert same == fingerprint(
        [
            Book(
                "renamed",
                np.array(books["english"].train),
                np.array(books["english"].held_out),
                books["english"].tokenizer,
            )
        ]
    )
    changed = np.array(books["english"].train)
    changed[-1] = changed[-1] % (books["english"].tokenizer.size - 1) + 1
    assert same != fingerprint([Book("english", changed, books["english"].held_out, books["english"].tokenizer)])
    assert len(SPECIALS) == 7 and json.loads(json.dumps(same)) == same
