"The model of the memory part: its parameters, the past alone, its two memories, halting by position, and the decoder."

import json
import math
import os
import signal
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.core import checkpoint
from hrm.core.config import ConfigError, section
from hrm.core.device import seeded
from hrm.core.flops import count_flops
from hrm.core.generate import Sampling, stream
from hrm.core.layers import inner_width, parameters
from hrm.core.optim import OptimConfig
from hrm.core.resume import Stopped
from hrm.core.task import LoopConfig, Options
from hrm.core.tokens import WordTokenizer
from hrm.memory.compare import RecallConfig, RecallTask, against_the_first, compare_memories, recall_chance, recall_rows
from hrm.memory.decode import MemoryDecoder, write
from hrm.memory.model import (
    DOCUMENT,
    CrossAttention,
    ExponentialMemory,
    Gate,
    MemoryArch,
    MemoryConfig,
    MemoryModel,
    Sight,
    by_part,
    load,
    remember_in_a_loop,
)
from hrm.memory.titans import TitansMemory, TitansState, learn_in_a_loop, read_chunk
from hrm.memory.train import TrainConfig

V, S = 13, 14
ARCH = dict(
    hidden_size=32,
    layers=2,
    num_heads=4,
    expansion=4.0,
    window=4,
    dropout=0.0,
    memory_size=16,
    decay=0.9,
    trm_heads=4,
    steps=3,
    threshold=0.5,
    init_std=0.2,
)
KINDS = {
    "as in the document": {},
    "no window": {"window": S},
    "one step, one micro-step": {"steps": 1, "micro_steps": 1},
    "no memory": {"memory": "none"},
    "window in the TRM": {"cross_window": 3},
    "Titans": {"memory": "titans", "chunk": 5, "persistent": 2},
    "Titans, token by token": {"memory": "titans", "chunk": 1, "cross_window": 2},
}


def texts(rows: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randint(V, (rows, S), generator=seeded(seed))


def made(split: bool = True, seed: int = 0, **change) -> MemoryModel:
    "A small model; with `split` its halting head is moved so that half of the tokens of `texts()` stop after the first step."
    model = MemoryModel(MemoryConfig(vocab_size=V, seq_len=S, arch=MemoryArch(**ARCH | change)), seeded(seed)).eval()
    if split:
        with torch.no_grad():
            model.halt_head.bias -= model({"inputs": texts()}, early=False)["halting"][0].quantile(0.5)
    return model


def same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# --- 32,571,041


def by_hand(vocab: int, positions: int, a: MemoryArch) -> dict[str, int]:
    "Weights and biases of every part, from the sizes alone."
    D, M, I = a.hidden_size, a.memory_size, inner_width(a.hidden_size, a.expansion)
    linear = lambda i, o: i * o + o
    attention = 4 * linear(D, D)
    z_mlp, y_mlp = linear(3 * D, 2 * D) + linear(2 * D, D), linear(2 * D, 2 * D) + linear(2 * D, D)
    return {
        "embed_tokens": vocab * D,
        "embed_pos": positions * D,
        "blocks": a.layers * (4 * D * D + 3 * D * I + 2 * D),
        "memory": 2 * D * M,
        "gate": linear(2 * D, D // 2) + linear(D // 2, D),
        "norm": D,
        "trm": 2 * linear(D, D) + 2 * attention + z_mlp + y_mlp + 2 * 2 * D,
        "halt_head": D + 1,
    }


def test_the_documents_parameters_one_part_after_the_other():
    with torch.device("meta"):
        counted = by_part(MemoryModel(DOCUMENT))
    assert (
        counted
        == {
            "embed_tokens": 16_082_240,
            "embed_pos": 655_360,
            "blocks": 13_112_320,
            "memory": 102_400,
            "gate": 154_080,
            "norm": 320,
            "trm": 2_464_000,
            "halt_head": 321,
        }
        and sum(counted.values()) == 32_571_041
    )
    expected = by_hand(50257, 2048, DOCUMENT.arch)
    assert counted == expected and inner_width(320, DOCUMENT.arch.expansion) == 1280
    small = made(split=False)
    assert parameters(small) == sum(by_hand(V, S, MemoryArch(**ARCH)).values())


def test_the_gpu_profile_has_the_documents_size_whatever_the_data_hold():
    for run in section("gpu", "memory.train", TrainConfig).runs.values():
        with torch.device("meta"):
            assert parameters(MemoryModel(MemoryConfig(vocab_size=522, seq_len=256, arch=run.arch))) == 32_571_041
    roomy, tight = made(vocab_rows=V + 5, position_rows=S + 3), made()
    roomy.load_state_dict(
        tight.state_dict()
        | {
            name: torch.cat((tight.state_dict()[name], torch.full((more, ARCH["hidden_size"]), 9.0)))
            for name, more in (("embed_tokens.embedding_weight", 5), ("embed_pos.embedding_weight", 3))
        }
    )
    assert torch.equal(roomy({"inputs": texts()})["logits"], tight({"inputs": texts()})["logits"]), (
        "rows without an id are never written"
    )


def test_the_documents_size_runs_forward_and_backward():
    model = MemoryModel(DOCUMENT, seeded(0)).train()
    text = torch.randint(50257, (1, 9), generator=seeded(1))
    at = torch.zeros(1, 8, dtype=torch.bool)
    at[0, 4:] = True
    torch.manual_seed(0)
    out = model({"inputs": text[:, :-1]}, at=at)
    assert out["logits"].shape == (4, 4, 50257) and out["halting"].shape == out["ran"].shape == (3, 1, 8)
    losses = torch.stack([F.cross_entropy(logits, text[:, 1:][at]) for logits in out["logits"]])
    assert losses.detach().numpy() == pytest.approx(math.log(50257), abs=0.3), "a fresh model guesses"
    (
        losses.mean()
        + F.binary_cross_entropy_with_logits(out["halting"], torch.ones_like(out["halting"]))
        - 0.001 * out["gate_entropy"]
    ).backward()
    assert [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ] == []


# --- the past alone


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_before_an_edited_token_moves(kind, training):
    model, text = made(**KINDS[kind]).train(training), texts()
    with torch.no_grad():
        one = model({"inputs": text})
        if len(one["ran"]) > 1:
            assert 0.2 < one["ran"][1].float().mean() < 0.8, (
                "some tokens stop and some do not, or the test says little about halting"
            )
        for place in range(S):
            edited = torch.where(torch.arange(S) == place, (text + 1) % V, text)
            other = model({"inputs": edited})
            for name in ("logits", "halting", "ran"):
                assert torch.equal(one[name][:, :, :place], other[name][:, :, :place]), (
                    f"{name} before position {place}"
                )
            assert not torch.equal(one["logits"][:, :, place], other["logits"][:, :, place])


def test_what_stands_in_the_padding_is_not_seen():
    model, text = made(**KINDS["Titans"]).train(), texts()
    valid = torch.arange(S) < torch.tensor([[9], [S], [4]])
    with torch.no_grad():
        one = model({"inputs": torch.where(valid, text, 0), "valid": valid})
        two = model({"inputs": torch.where(valid, text, 5), "valid": valid})
    for name in ("logits", "halting", "ran"):
        assert torch.equal(one[name][:, valid], two[name][:, valid]), name
    assert one["gate_entropy"] == two["gate_entropy"] and 0 < one["gate_entropy"] <= math.log(2)


def test_the_window_hides_what_is_far_and_not_the_persistent_tokens():
    assert Sight(S, 4, prefix=2)(S).tolist() == [[k <= q and (q - k < 4 or k < 2) for k in range(S)] for q in range(S)]
    far = made(split=False, layers=1, memory="none", cross_window=1, persistent=2)
    with torch.no_grad():
        before = far({"inputs": texts()})["logits"]
        edited = texts()
        edited[:, 3] = (edited[:, 3] + 1) % V
        moved = (far({"inputs": edited})["logits"] != before).any(-1).any(0).any(0)
        assert moved.nonzero().flatten().tolist() == [3, 4, 5, 6], "a window of four, one layer"
        far.embed_persistent += 1
        assert (far({"inputs": texts()})["logits"] != before).any(-1).all()


# --- memory: of one sequence, and of a stream on purpose


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_input_twice_and_rows_that_do_not_know_each_other(kind):
    model, text = made(**KINDS[kind]), texts()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        first, second = model({"inputs": text[:2]}), model({"inputs": text[:2]})
        assert torch.equal(first["logits"], second["logits"]), "nothing is left over from the first time"
        for row in range(2):
            alone = model({"inputs": text[row : row + 1]})
            for name in ("logits", "halting"):
                same(alone[name][:, 0], first[name][:, row])
            assert torch.equal(alone["ran"][:, 0], first["ran"][:, row])
    assert {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name])} == set()
    assert not [
        name
        for name in weights
        if "state" in name or name.startswith("memory") and "weight" not in name and "bias" not in name
    ]


def test_a_memory_that_is_carried_on_purpose_is_that_of_the_whole_text():
    for kind in ("as in the document", "Titans"):
        model, x = made(split=False, **KINDS[kind]), torch.randn(2, S, 32, generator=seeded(3))
        with torch.no_grad():
            whole, end = model.memory(x)
            state, pieces = None, []
            for piece in x.split((3, 1, 6, 4), dim=1):
                read, state = model.memory(piece, state)
                pieces.append(read)
            same(torch.cat(pieces, 1), whole)
            one, two = (
                model({"inputs": texts()}, state=s)["logits"] for s in (None, model({"inputs": texts(seed=5)})["state"])
            )
        assert not torch.equal(one, two), "what was handed on is read"


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.999), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_the_closed_form_is_the_recurrence(decay, places, begun, seed):
    memory = ExponentialMemory(6, 5, decay, 40)
    x, state = (
        torch.randn(2, places, 6, generator=seeded(seed)),
        torch.randn(2, 5, generator=seeded(seed + 1)) if begun else None,
    )
    with torch.no_grad():
        for ours, loop in zip(memory(x, state), remember_in_a_loop(memory, x, state)):
            same(ours, loop)


def test_the_memory_halves_every_69_tokens():
    memory = ExponentialMemory(4, 4, 0.99, 200)
    assert memory.weights[150, 150] == pytest.approx(0.01) and memory.weights[150, 151] == 0
    assert memory.weights[150, 81] / memory.weights[150, 150] == pytest.approx(0.5, abs=0.002)
    assert memory.weights[199].sum() + memory.kept[199] == pytest.approx(1, abs=1e-5), (
        "a mean, what was before included"
    )


def test_the_gate_is_between_its_two_inputs():
    gate, (y, m) = Gate(8), torch.randn(2, 3, 5, 8, generator=seeded(0))
    mixed, entropy = gate(y, m)
    assert ((mixed >= torch.minimum(y, m) - 1e-6) & (mixed <= torch.maximum(y, m) + 1e-6)).all()
    with torch.no_grad():
        gate.up.weight.zero_()
        same(gate(y, m)[0], (y + m) / 2)
        assert gate(y, m)[1] == pytest.approx(math.log(2))
        gate.up.bias.fill_(200.0)
        mixed, entropy = gate(y, m)
    same(mixed, y)
    assert entropy.isfinite().all() and entropy.max() < 1e-6


# --- the memory of the Titans paper


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 20), st.lists(st.integers(1, 20), max_size=3), st.integers(0, 99))
def test_chunks_are_the_loop_with_the_gradient_of_autograd(chunk, places, cuts, seed):
    torch.manual_seed(seed)
    memory, x = TitansMemory(7, 5, chunk), torch.randn(2, places, 7, generator=seeded(seed))
    with torch.no_grad():
        memory.gates.weight.mul_(4)
    loop, expected = learn_in_a_loop(memory, x)
    with torch.no_grad():
        state, pieces, edges = None, [], sorted({0, places, *(cut for cut in cuts if cut < places)})
        for start, end in zip(edges, edges[1:]):
            read, state = memory(x[:, start:end], state)
            pieces.append(read)
    same(torch.cat(pieces, 1), loop.detach(), 1e-4)
    for name in ("memory", "momentum", "start"):
        same(getattr(state, name), getattr(expected, name), 1e-4)
    assert state.place == places % chunk


def written(gates: list[list[float]], keys: torch.Tensor, values: torch.Tensor) -> TitansState:
    "A memory after tokens with these logits for forgetting, momentum and rate; gradients token by token."
    state = TitansState.empty(1, keys.shape[-1], keys)
    for gate, key, value in zip(gates, keys, values):
        _, memory, momentum = read_chunk(
            state, key[None, None], key[None, None], value[None, None], torch.tensor([[gate]])
        )
        state = TitansState(memory, momentum, memory)
    return state


def test_surprise_momentum_and_forgetting_do_what_they_are_called():
    never, always = -50.0, 50.0
    keys, values = torch.eye(3), torch.randn(3, 3, generator=seeded(0))
    plain = written([[never, never, always]] * 3, keys, values)
    same(plain.memory[0] @ keys.T, values.T)  # a rate of one half writes a value in one step
    again = written([[never, never, always]] * 6, torch.cat((keys, keys)), torch.cat((values, values)))
    same(again.memory, plain.memory)
    assert again.momentum.abs().max() < 1e-6, "what is known is no surprise"
    forgot = written([[never, never, always], [never, never, always], [always, never, always]], keys, values)
    same(forgot.memory[0] @ keys[2], values[2])
    assert (forgot.memory[0] @ keys[:2].T).abs().max() < 1e-6, (
        "forgetting clears what was written before, not what is written now"
    )
    half = written([[never, 0.0, always], [never, 0.0, never]], keys[:2], torch.stack((values[0], values[1])))
    same(half.memory[0] @ keys[0], 1.5 * values[0])  # momentum one half: the surprise goes on for half as much
    same(half.momentum[0] @ keys[0], 0.5 * values[0])


def test_a_query_finds_its_value_and_a_mean_does_not():
    keys = F.normalize(torch.randn(6, 24, generator=seeded(1)), dim=-1)
    values = F.normalize(torch.randn(6, 24, generator=seeded(2)), dim=-1)
    memory = written([[-50.0, -50.0, 50.0]] * 6, keys, values).memory[0]
    assert ((keys @ memory.T) @ values.T).argmax(1).tolist() == list(range(6))
    mean = ExponentialMemory(24, 24, 0.99, 6).weights[5] @ values
    assert (
        F.cosine_similarity(keys @ memory.T, values).mean() > 0.9 > 0.6 > F.cosine_similarity(mean[None], values).mean()
    )


# --- halting by position


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_position_that_is_done_keeps_its_state(training):
    model = made().train(training)
    features, _, _ = model.features(texts())
    out = model.trm(features, model.halt_head, 0.5)
    ran = out["ran"]
    assert ran[0].all() and (ran[:-1] >= ran[1:]).all() and 0 < ran[1].float().mean() < 1
    for step in range(1, 3):
        done = ~ran[step]
        assert torch.equal(ran[step], ran[step - 1] & (out["halting"][step - 1] <= 0)), (
            "a threshold of one half is a logit of zero"
        )
        for name, shift in (("y", 1), ("halting", 0)):
            assert torch.equal(out[name][step + shift][done], out[name][step + shift - 1][done]), name
            assert (out[name][step + shift][~done] != out[name][step + shift - 1][~done]).any(-1).all(), name


def test_halting_position_by_position_in_plain_python():
    "Every position for itself, in the order of the text: it sees the answers that those before it had at that step."
    model = made()
    trm, text = model.trm, texts(1)
    with torch.no_grad():
        features, _, _ = model.features(text)
        out = trm(features, model.halt_head, 0.5)
        answers: list[list[torch.Tensor]] = []  # of each position: before the first and after each step
        for place in range(S):
            z = trm.begin_z(features[:, place : place + 1])
            y = trm.begin_y(z)
            answers.append([y])
            known, done, steps = trm.look_f.remember(features[:, : place + 1]), False, 0
            for step in range(3):
                if not done:
                    told = trm.look_y.remember(torch.cat([before[step] for before in answers], dim=1))
                    z, y = trm.step(z, y, known, told, torch.ones(1, place + 1, dtype=torch.bool))
                    steps, done = steps + 1, bool(model.halt_head(z).sigmoid() > 0.5)
                answers[place].append(y)
            assert steps == out["ran"][:, 0, place].sum()
            same(torch.cat(answers[place], 1)[0], out["y"][:, 0, place])


@pytest.mark.parametrize("threshold, steps", [(1e-9, 1), (1 - 1e-9, 3), (None, 3)])
def test_the_threshold_decides(threshold, steps):
    model = made(split=False, threshold=threshold)
    with torch.no_grad():
        assert (model({"inputs": texts()})["ran"].sum(0) == steps).all()
        assert (model({"inputs": texts()}, early=False)["ran"].sum(0) == 3).all()


# --- gradients


def losses(model: MemoryModel, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    "Of the answers, by step, and of halting."
    out = model({"inputs": text[:, :-1]})
    answers = torch.stack([F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()) for logits in out["logits"]])
    right = (out["logits"][1:].argmax(-1) == text[:, 1:]).float()
    return answers, F.binary_cross_entropy_with_logits(out["halting"], right) - 0.001 * out["gate_entropy"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_the_halting_head_included(kind):
    model = made(**KINDS[kind]).train()
    answers, halting = losses(model, texts())
    (answers.mean() + 0.1 * halting).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == [] and model.halt_head.weight.grad.abs().max() > 1e-4


def test_deep_supervision_cuts_between_the_steps():
    reached = []
    for step in range(4):
        model = made(split=False, threshold=None).train()
        losses(model, texts())[0][step].backward()
        reached.append(
            {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
            | {
                name
                for name, p in model.named_parameters()
                if name.startswith("trm.begin") and p.grad is not None and p.grad.any()
            }
        )
    assert "blocks" in reached[0] and "trm.begin_y.weight" in reached[0] and "halt_head" not in reached[0]
    assert {"blocks", "memory", "gate", "trm.begin_z.weight"} <= reached[1]
    for late in reached[2:]:
        assert late == {"trm", "embed_tokens"}, "the features and the states before are given, not trained"


def test_logits_are_made_where_they_are_wanted():
    model, at = made(), torch.rand(3, S, generator=seeded(0)) < 0.3
    with torch.no_grad():
        same(model({"inputs": texts()}, at=at)["logits"], model({"inputs": texts()})["logits"][:, at])


# --- the decoder


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_head_is_one_graph(kind, monkeypatch):
    "Compiled with a backend that needs no C++ compiler, to the same bits; the loop asks for one graph per shape."
    torch.compiler.reset()  # a process compiles eight forms of a function, then no more
    model, text = made(**KINDS[kind]), texts()
    compiled = torch.compile(model.think, backend="eager", fullgraph=True)
    (said, entropy, _), (eager, expected, _) = compiled(text, None, 0.95), model.think(text, None, 0.95)
    assert torch.equal(entropy, expected) and all(torch.equal(said[name], eager[name]) for name in eager)
    asked = []
    monkeypatch.setattr(torch, "compile", lambda work, **how: asked.append(how) or compiled)
    was, before = model({"inputs": text})["logits"], model.think
    model.compile_thinking()
    assert asked == [{"dynamic": False}] and model.think != before and "think" not in model.state_dict()
    assert torch.equal(model({"inputs": text})["logits"], was)


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_gives_what_the_whole_text_gives(kind):
    model, text = made(**KINDS[kind]), texts()
    with torch.no_grad():
        whole = model({"inputs": text})
    for cached, pieces in ((True, (1,) * S), (True, (6, 1, 1, 5, 1)), (False, (5, 2, 7))):
        decoder, place = MemoryDecoder(model, rows=3, cached=cached), 0
        for piece in text.split(pieces, dim=1):
            assert decoder.room == S - place
            logits, place = decoder.feed(piece), place + piece.shape[1]
            same(logits, whole["logits"][-1, :, place - 1], 1e-4)
        assert torch.equal(decoder.steps, whole["ran"].sum(0)) and torch.equal(decoder.ids, text)
        with pytest.raises(ValueError, match="1 tokens for 0 places"):
            decoder.feed(text[:, :1])


def test_what_is_done_costs_nothing():
    model, text = made(split=False), texts(1)
    a, prices = model.config.arch, {}
    for steps, threshold in ((1, 1e-9), (3, 1 - 1e-9)):
        decoder = MemoryDecoder(model, threshold=threshold)
        decoder.feed(text[:, :8])
        prices[steps] = count_flops(lambda: decoder.feed(text[:, 8:9]))
        assert decoder.steps[0].tolist() == [steps] * 9
    D, seen = a.hidden_size, 9
    attention = 2 * D * D + 2 * seen * D  # query and output, scores and mixture
    micro = 2 * attention + 3 * D * 2 * D + 2 * D * D
    step = 2 * (a.micro_steps * micro + 2 * D * 2 * D + 2 * D * D)
    keys = 2 * 2 * D * D  # of the answer after a step, which the tokens to come will see
    assert prices[3] - prices[1] == 2 * step + keys


def test_rows_that_stop_at_different_times_are_those_of_each_alone():
    model = made(seed=4)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8], [9], [10, 11]]
    together = write(model, prompts, 8, stop=[3, 5])
    assert together == [write(model, [prompt], 8, stop=[3, 5])[0] for prompt in prompts]
    for prompt, one in zip(prompts, together):
        assert (
            1 <= len(one.ids) <= 8
            and len(one.steps) == len(prompt) + len(one.ids) - 1
            and all(1 <= steps <= 3 for steps in one.steps)
        )
        assert not {3, 5} & set(one.ids[:-1])
    drawn = [
        list(
            map(
                int,
                torch.stack(
                    list(stream(MemoryDecoder(model), torch.tensor([[1, 2]]), 9, Sampling(temperature=1.5), seeded(7)))
                ),
            )
        )
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 9
    assert len(write(model, [[1] * 10], 50)[0].ids) == S - 10 + 1  # the last one is never fed
    for wrong in ([[]], [[1] * S]):
        with pytest.raises(ValueError, match="allowed: 1 to 13"):
            write(model, wrong, 5)


# --- attention, configuration, checkpoints


def test_attention_across_is_torchs_own():
    ours, theirs = CrossAttention(12, 3), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_bias.normal_(generator=seeded(2))
        ours.q_proj.weight.copy_(theirs.in_proj_weight[:12]), ours.kv_proj.weight.copy_(theirs.in_proj_weight[12:])
        ours.q_proj.bias.copy_(theirs.in_proj_bias[:12]), ours.kv_proj.bias.copy_(theirs.in_proj_bias[12:])
        ours.o_proj.weight.copy_(theirs.out_proj.weight), ours.o_proj.bias.copy_(theirs.out_proj.bias)
    x, f = torch.randn(2, 2, 6, 12, generator=seeded(0))
    seen = torch.ones(6, 6, dtype=torch.bool).tril().triu(-2)
    same(ours(x, ours.remember(f), seen), theirs(x, f, f, attn_mask=~seen, need_weights=False)[0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_heads": 5}, "not a multiple of num_heads 5"),
        ({"trm_heads": 3}, "not a multiple of trm_heads 3"),
        ({"threshold": 1.0}, "less than 1"),
        ({"hidden_size": 33, "num_heads": 3, "trm_heads": 3, "positions": "sine"}, "allowed: an even one"),
        ({"memory": "lstm"}, "'ema', 'titans' or 'none'"),
    ],
)
def test_an_architecture_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        MemoryArch(**ARCH | change)
    with pytest.raises(ValueError, match="15 positions; the model was built for 14"):
        made(split=False)({"inputs": torch.zeros(1, 15, dtype=torch.long)})


def test_checkpoints_are_read_strictly(tmp_path):
    model, words = made(split=False), WordTokenizer(("plan", "test"))
    about = {"system": "memory", "tokenizer": words.to_dict()} | model.config.model_dump()
    checkpoint.write(tmp_path / "good", model.state_dict(), {"config": about})
    again, tokenizer, meta = load(tmp_path / "good")
    assert tokenizer == words and not again.training and meta["config"] == json.loads(json.dumps(about))
    with torch.no_grad():
        assert torch.equal(again({"inputs": texts()})["logits"], model.eval()({"inputs": texts()})["logits"])
    for name, change, message in (
        ("system", {"system": "dialogue"}, "is this a checkpoint of hrm memory"),
        ("arch", {"arch": about["arch"] | {"depth": 3}}, "depth: unknown key"),
        ("size", {"vocab_size": 3}, "config.vocab_size: found 3; allowed: at least 9 ids"),
        ("none", {"vocab_size": None}, "vocab_size"),
        ("words", {"tokenizer": words.to_dict() | {"words": 5}}, "words"),
    ):
        checkpoint.write(tmp_path / name, model.state_dict(), {"config": about | change})
        with pytest.raises(ConfigError, match=message):
            load(tmp_path / name)


# --- the comparison of memories


def recall(**change) -> RecallConfig:
    arch = ARCH | dict(layers=1, window=2, steps=1, micro_steps=1, cross_window=1, threshold=None)
    return RecallConfig(
        **dict(
            seeds=2,
            pairs=3,
            keys=6,
            values=4,
            batch_size=8,
            held_out=24,
            arch=MemoryArch(**arch),
            optim=OptimConfig(name="adamw", lr=3e-3),
            loop=LoopConfig(
                steps=5, evaluate_every=5, log_every=1, checkpoint_seconds=0.0, compile="off", best="accuracy"
            ),
            variants={"mean": {}, "Titans": {"memory": "titans", "chunk": 2}},
            device="cpu",
        )
        | change
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(0, 3), st.integers(2, 9), st.integers(0, 99))
def test_questions_that_only_a_memory_can_answer(pairs, more, values, seed):
    config = recall(pairs=pairs, keys=pairs + more, values=values)
    rows = recall_rows(20, config, seeded(seed))
    best = []
    for ids, labels, distance in zip(*(rows[name].tolist() for name in ("inputs", "labels", "distance"))):
        facts = dict(zip(ids[0 : 2 * pairs : 2], ids[1 : 2 * pairs : 2]))
        assert (
            len(facts) == pairs
            and ids[2 * pairs] == config.keys + config.values
            and labels[: 2 * pairs + 1] == [-100] * (2 * pairs + 1)
        )
        assert sorted(ids[2 * pairs + 1 :]) == sorted(facts) and labels[2 * pairs + 1 :] == [
            facts[key] for key in ids[2 * pairs + 1 :]
        ]
        assert all(
            ids[place - distance[place]] == ids[place] and place - distance[place] < 2 * pairs
            for place in range(2 * pairs + 1, len(ids))
        )
        assert min(distance[2 * pairs + 1 :]) >= 3, "outside of what attention passes on"
        best.append(Counter(facts.values()).most_common(1)[0][1] / pairs)
    assert recall_chance(rows) == pytest.approx(np.mean(best))


def test_without_a_memory_a_question_says_nothing_about_its_answer():
    "A model whose memory is cut off gives the same answer whatever the facts were."
    config = recall(variants={"none": {"memory": "none"}})
    model = MemoryModel(MemoryConfig(vocab_size=11, seq_len=10, arch=config.of("none")), seeded(0)).eval()
    rows = recall_rows(4, config, seeded(0))
    other = rows["inputs"].clone()
    other[:, :6] = recall_rows(4, config, seeded(1))["inputs"][:, :6]
    with torch.no_grad():
        assert torch.equal(model(rows)["logits"][:, :, 7:], model({"inputs": other})["logits"][:, :, 7:])
    with pytest.raises(ValueError, match="a position learns of 4 positions without the memory; allowed: 2"):
        recall(variants={"wide": {"window": 4}})


def test_a_comparison_that_was_stopped_goes_on(tmp_path, monkeypatch):
    whole = compare_memories(recall(), tmp_path / "whole", Options(tmp_path / "a", progress=False))
    calls, original = [], RecallTask.loss

    def loss(task, model):
        calls.append(1)
        if len(calls) == 10:  # in the second run: six calls are the first one's, counted FLOPs included
            os.kill(os.getpid(), signal.SIGTERM)
        return original(task, model)

    monkeypatch.setattr(RecallTask, "loss", loss)
    with pytest.raises(Stopped):
        compare_memories(recall(), tmp_path / "broken", Options(tmp_path / "b", progress=False))
    broken = compare_memories(recall(), tmp_path / "broken", Options(tmp_path / "b", progress=False))
    pd.testing.assert_frame_equal(broken.drop(columns="seconds"), whole.drop(columns="seconds"))
    assert (
        len(calls) < 10 + 4 * 6
        and list(whole.variant) == ["mean", "mean", "Titans", "Titans"]
        and not tiny.unfinished(tmp_path / "b")
    )
    same_weights = whole.groupby("variant").parameters.nunique()
    assert (same_weights == 1).all() and whole.accuracy.between(0, 1).all()


def test_differences_are_paired_by_seed_and_corrected():
    from scipy import stats

    draw = np.random.default_rng(0)
    luck = draw.normal(0, 5, 6)  # of a seed, the same for all
    groups = {name: luck + draw.normal(shift, 1, 6) for name, shift in (("a", 0), ("b", 3), ("c", 0.1))}
    rows = pd.DataFrame(
        [
            {"optimizer": name, "seed": seed, "loss": value}
            for name, values in groups.items()
            for seed, value in enumerate(values)
        ]
    )
    frame = against_the_first(rows.sample(frac=1, random_state=1).sort_values("optimizer"), "loss")
    p = [stats.ttest_rel(groups[name], groups["a"]).pvalue for name in "bc"]
    assert p[0] < p[1] and frame.p.iloc[1:].tolist() == pytest.approx([2 * p[0], max(p[1], 2 * p[0])])
    assert (
        frame["mean"].tolist() == pytest.approx([values.mean() for values in groups.values()])
        and frame.difference.iloc[0] is None
    )
    gap = groups["b"] - groups["a"]
    assert frame.difference.iloc[1].value == pytest.approx(gap.mean())
    assert frame.difference.iloc[1].high - gap.mean() == pytest.approx(stats.t.ppf(0.975, 5) * gap.std(ddof=1) / 6**0.5)
    flat = against_the_first(
        pd.DataFrame({"optimizer": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "loss": [1.0, 1.5, 2.0, 2.5]}), "loss"
    )
    assert flat.difference.tolist() == [None, None] and flat.p.iloc[1] == 1.0, (
        "without any spread there is nothing to test"
    )
    with pytest.raises(ValueError, match="1 runs are missing"):
        against_the_first(rows.iloc[1:], "loss")
