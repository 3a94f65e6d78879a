"""The routing part: heads and controllers, Graves' ACT between two moves, decoding, the terms of the loss, freezing, and every flag of the command.

`HRM_WRITE_GOLDEN=1 pytest tests/test_routing_model.py -k golden` writes the stored curve again.
"""

import itertools
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from copies import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hrm.core import checkpoint
from hrm.core.config import ConfigError, load_params, merged
from hrm.core.device import pick, seeded
from hrm.core.flops import count_flops
from hrm.core.optim import OptimConfig
from hrm.core.resume import Stopped
from hrm.core.stats import Estimate
from hrm.core.task import Options
from hrm.core.tracking import read_log
from hrm.routing.data import DataConfig, SetConfig, draw, metrics, rank_posterior, read
from hrm.routing.data import build as build_data
from hrm.routing.evaluate import (
    EvaluateConfig,
    answer,
    decode,
    evaluate_set,
    expected_ranks,
    measure,
    read_lengths,
    sampled_ranks,
)
from hrm.routing.model import (
    CONTROLLERS,
    Adaptive,
    PointerBlock,
    RoutingArch,
    build,
    entropy,
    load,
    losses,
    mixture,
    parts,
)
from hrm.routing.train import (
    RunConfig,
    SortingTask,
    TrainConfig,
    entropy_weight,
    gradient_probe,
    run,
    run_all,
    run_tflop,
    step_flops,
    summary,
    temperature,
)
from hrm.tools.cli import main
from hrm.tools.commands.flags import FLAGS

ROUTED = tuple(name for name in CONTROLLERS if name != "none")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    build_data(
        DataConfig(
            seed=0,
            sets={
                "main": SetConfig(length=6, mask_rate=0.5, train=64, dev=24, test=24),
                "long": SetConfig(length=9, mask_rate=0.5, test=24),
            },
        ),
        folder,
    )
    return folder


def arch(controller="hrm", **change) -> RoutingArch:
    return RoutingArch(
        **{
            "width": 16,
            "heads": 4,
            "expansion": 2,
            "controller": controller,
            "iters": 4,
            "T": 2,
            "topk": None,
            "cache_heads": False,
        }
        | change
    )


def optimizer(lr=3e-3, clip=1.0) -> OptimConfig:
    return OptimConfig(name="adamw", lr=lr, betas=(0.9, 0.98), weight_decay=0.01, clip=clip)


def config(kind="hrm", **change) -> RunConfig:
    shape = change.pop("arch", {})
    return RunConfig(
        **{
            "set": "main",
            "arch": arch(kind, **shape),
            "encoder": optimizer(),
            "controller": optimizer(2e-3, 0.5),
            "other": optimizer(),
            "epochs": 3,
            "evaluate_every": 3,
            "batch_size": 16,
            "deep_supervision": True,
            "temp_init": 2.0,
            "temp_min": 0.7,
            "temp_decay": 0.5,
            "entropy_reg": 1e-2,
            "entropy_decay_epochs": 1,
            "controller_warmup_epochs": 1,
            "ponder_tau": 0.01,
            "device": "cpu",
        }
        | change
    )


def task_of(data, one: RunConfig, seed=0) -> SortingTask:
    return SortingTask(
        build(one.arch, seeded(seed), pick("cpu")),
        read(data, "main", "train"),
        read(data, "main", "dev"),
        one,
        seeded(1),
    )


def trained(data, tmp_path, one: RunConfig, name="run", seed=0, **more):
    return run(name, one, seed, data, tmp_path / name, Options(tmp_path / "resume", progress=False, **more))


def lists(rows=5, length=7, seed=0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = draw(rows, length, 0.5, np.random.default_rng(seed))
    return made["values"], made["visible"], made["ranks"]


# --- heads


@pytest.mark.parametrize("topk", [1, 2, 3])
def test_topk_keeps_the_strongest_and_makes_them_one_again(topk):
    logits = torch.randn(50, 4, generator=seeded(0), dtype=torch.float64)
    alpha = mixture(logits, 1.3, topk)
    for row, weights in zip(logits, alpha):
        strongest = sorted(range(4), key=lambda head: -row[head])[:topk]
        shares = {head: math.exp(row[head] / 1.3) for head in strongest}
        assert weights.tolist() == pytest.approx(
            [shares.get(head, 0) / sum(shares.values()) for head in range(4)], abs=1e-6
        )


@pytest.mark.parametrize("controller", ROUTED)
def test_topk_of_all_heads_or_more_changes_nothing(controller):
    values, visible, _ = lists()
    answers = [
        build(arch(controller, topk=topk), seeded(0), pick("cpu"))(values, visible)["rank"] for topk in (None, 4, 8, 2)
    ]
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
    assert (answers[0] - answers[3]).abs().max() > 1e-3


def test_entropy_has_a_finite_gradient_at_zero():
    logits = torch.randn(9, 4, generator=seeded(0), requires_grad=True)
    entropy(mixture(logits, 1.0, 2)).sum().backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().max() > 0.01
    assert entropy(torch.full((4,), 0.25)).item() == pytest.approx(math.log(4)) and entropy(
        torch.eye(4)[0]
    ).item() == pytest.approx(0, abs=1e-9)


def test_without_a_controller_it_is_a_transformer():
    block, x = PointerBlock(arch("none", iters=3)), torch.randn(2, 5, 16, generator=seeded(0))
    theirs = nn.TransformerEncoderLayer(16, 4, 32, 0.0, F.gelu, batch_first=True)
    own = dict(zip(("self_attn.in_proj_weight", "self_attn.in_proj_bias"), block.layer.qkv.parameters()))
    for name, module in (
        ("self_attn.out_proj", block.layer.mix_proj),
        ("linear1", block.layer.grow),
        ("linear2", block.layer.shrink),
        ("norm1", block.layer.norms[0]),
        ("norm2", block.layer.norms[1]),
    ):
        own |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    theirs.load_state_dict(own)
    expected = x
    for state in block(x, False, 3)[0]:
        expected = theirs(expected)
        assert torch.allclose(state, expected, atol=1e-5)


def test_cached_heads_look_once_and_are_another_model(monkeypatch):
    block, x = PointerBlock(arch()), torch.randn(2, 5, 16, generator=seeded(0))
    looks, original = [], type(block.layer).look
    monkeypatch.setattr(type(block.layer), "look", lambda layer, *given: (looks.append(1), original(layer, *given))[1])
    found = {}
    for cache, iters in itertools.product((True, False), (0, 1, 4)):
        looks.clear()
        found[cache, iters] = block(x, cache_heads=cache, iters=iters)[0][-1]
        assert len(looks) == (min(iters, 1) if cache else iters)
    assert torch.equal(found[True, 1], found[False, 1]) and (found[True, 4] - found[False, 4]).abs().max() > 0.01


def test_no_iterations_means_none(data, tmp_path):
    model, (values, visible, ranks) = build(arch(iters=0), seeded(0), pick("cpu")), lists()
    said = model(values, visible, deep=True)
    assert said["alphas"].shape == (0, 5, 1, 4) and said["rank"].shape[0] == 1 and said["updates"].eq(0).all()
    sum(losses(said, ranks).values()).sum().backward()
    assert all(p.grad is None for p in model.block.parameters()) and all(
        p.grad is not None for p in model.encoder.parameters()
    )
    with torch.no_grad():
        for p in model.block.parameters():
            p.normal_()
    assert torch.equal(model(values, visible)["rank"], said["rank"])
    result = trained(data, tmp_path, config(arch={"iters": 0}))
    assert result.metrics["held_out"]["routing_entropy"] is None and result.metrics["held_out"]["n_H_updates"] == 0


# --- controllers with a memory


@pytest.mark.parametrize("controller", ROUTED)
def test_each_list_decides_as_if_it_were_alone(controller):
    model, (values, visible, _) = build(arch(controller, iters=6, T=3), seeded(0), pick("cpu")), lists(8)
    if controller == "hrm_act":
        nn.init.normal_(model.controller.gate.weight, std=0.3, generator=seeded(1))
        nn.init.normal_(
            model.controller.enter.weight, std=1.0, generator=seeded(2)
        )  # summaries of lists are much alike
        nn.init.zeros_(model.controller.gate.bias)
    said = model(values, visible)
    alone = [model(values[row : row + 1], visible[row : row + 1]) for row in range(8)]
    for key, dim in (("rank", 1), ("pointer", 1), ("alphas", 1), ("updates", 0), ("ponder", 0)):
        assert torch.allclose(said[key], torch.cat([one[key] for one in alone], dim), atol=1e-5), key
    if controller == "hrm_act":
        assert len(set(said["updates"].tolist())) > 1, "the lists are to differ, or nothing was tested"


def test_the_period_runs_for_each_list():
    controller = CONTROLLERS["hrm"](arch(T=3))
    x, offsets = torch.randn(3, 5, 16, generator=seeded(0)), torch.tensor([0, 1, 2])
    state = controller.start(x)._replace(since=offsets)
    for step in range(1, 8):
        before = state.z_H
        _, state = controller(x, x.unflatten(-1, (4, 4)), state)
        moved = (state.z_H != before).any(-1)
        assert moved.tolist() == [(step - 1 + int(offset)) % 3 == 0 for offset in offsets]
    assert state.updates.tolist() == [3, 2, 2]


def by_hand(gates: list[float], states: list[torch.Tensor], limit: int, epsilon: float):
    "One list, step by step in plain numbers: (first step, last step, weights) of each segment."
    found, start = [], 0
    while start < len(gates):
        spent, weights = 0.0, []
        for n, p in enumerate(gates[start:], 1):
            if spent + p >= 1 - epsilon or n >= limit or start + n == len(gates):
                weights.append(1 - spent)
                break
            weights.append(p)
            spent += p
        found.append((start, start + len(weights), weights))
        start += len(weights)
    return found


@settings(max_examples=25, deadline=None)
@given(st.floats(-4, 4), st.floats(0.1, 6), st.integers(1, 5), st.integers(1, 8), st.integers(0, 10**6))
def test_the_gate_moves_the_slow_state_as_graves_says(bias, spread, limit, iters, seed):
    with torch.no_grad():
        torch.manual_seed(seed)
        controller = Adaptive(arch("hrm_act", max_ponders=limit, iters=iters)).double()
        controller.gate.bias.fill_(bias)
        nn.init.normal_(controller.gate.weight, std=spread)
        x = torch.randn(4, 5, 16, dtype=torch.float64)
        state, before = controller.start(x), []
        state = state._replace(
            **{name: getattr(state, name).double() for name in ("z_H", "z_L", "spent", "mean", "ponder")}
        )
        gates, fast, slow = [], [], [state.z_H]
        for step in range(iters):
            old = state
            _, state = controller(x, x.unflatten(-1, (4, 4)), state, last=step == iters - 1)
            gates.append(controller.gate(torch.cat((state.z_L, old.z_H), -1)).squeeze(-1).float().sigmoid())
            fast.append(state.z_L)
            slow.append(state.z_H)
        c = controller.enter(x.mean(1))
        for row in range(4):
            segments = by_hand([gate[row].item() for gate in gates], fast, limit, 0.01)
            assert state.updates[row] == len(segments)
            assert state.ponder[row].item() == pytest.approx(sum(len(w) + w[-1] for _, _, w in segments), abs=1e-4)
            for first, end, weights in segments:
                assert sum(weights) == pytest.approx(1)
                mean = sum(w * fast[step][row] for w, step in zip(weights, range(first, end)))
                moved = controller.norm_H(controller.slow(torch.cat((c[row], mean))[None], slow[first][row][None]))[
                    0
                ].float()
                assert torch.allclose(slow[end][row].float(), moved, atol=1e-4)
                assert all(torch.equal(slow[step][row], slow[first][row]) for step in range(first, end)), (
                    "it rests in between"
                )


@pytest.mark.parametrize("limit, moves", [(1, 6), (2, 3), (4, 2), (20, 1)])
def test_max_ponders_ends_a_gate_that_never_would(limit, moves):
    model, (values, visible, _) = build(arch("hrm_act", iters=6, max_ponders=limit), seeded(0), pick("cpu")), lists()
    nn.init.constant_(model.controller.gate.bias, -9.0)
    assert model(values, visible)["updates"].tolist() == [moves] * 5


def test_the_gate_learns_from_the_task_alone(data):
    task = task_of(data, config("hrm_act", ponder_tau=0.0, entropy_reg=0.0, controller_warmup_epochs=0))
    task.loss(task.model)[0].backward()
    assert (
        task.model.controller.gate.weight.grad.abs().max() > 0 and task.model.controller.gate.bias.grad.abs().max() > 0
    )


def test_a_ponder_cost_makes_the_gate_quicker(data, tmp_path):
    found = {
        tau: trained(
            data,
            tmp_path,
            config(
                "hrm_act",
                ponder_tau=tau,
                epochs=6,
                evaluate_every=6,
                controller=optimizer(4e-2),
                controller_warmup_epochs=0,
                arch={"iters": 6},
            ),
            f"tau {tau}",
        )
        for tau in (0.0, 3.0)
    }
    cheap, dear = (found[tau].metrics["held_out"] for tau in (0.0, 3.0))
    assert dear["ponder"] < cheap["ponder"] - 0.05 and dear["n_H_updates"] > cheap["n_H_updates"]


# --- the pointer


def test_items_have_no_position_and_ranks_no_number():
    model, (values, visible, _) = build(arch(), seeded(0), pick("cpu")), lists(3, 9)
    order = torch.randperm(9, generator=seeded(1))
    plain, mixed = model(values, visible), model(values[:, order], visible[:, order])
    assert torch.allclose(plain["rank"][:, :, order], mixed["rank"], atol=1e-4)
    assert torch.allclose(plain["pointer"][..., order], mixed["pointer"], atol=1e-4)
    x = torch.randn(1, 1, 5, 16, generator=seeded(2))
    five, nine = model.pointer(x)[0], model.pointer(torch.cat((x, x[:, :, :4]), 2))[0]
    assert torch.allclose(five, nine[:, :, ::2, :5], atol=1e-5), (
        "the rank at the same share of a longer list asks the same"
    )


def test_padding_is_no_item():
    for controller in CONTROLLERS:
        model, (values, visible, _) = build(arch(controller), seeded(0), pick("cpu")), lists(4, 6)
        sizes = torch.tensor([6, 3, 5, 4])
        mask = torch.arange(6) < sizes[:, None]
        together = model(values, visible, mask)
        for row, n in enumerate(sizes.tolist()):
            alone = model(values[row : row + 1, :n], visible[row : row + 1, :n])
            assert torch.allclose(together["pointer"][:, row, :n, :n], alone["pointer"][:, 0], atol=1e-4), controller
            assert torch.allclose(together["rank"][:, row, :n, :n], alone["rank"][:, 0], atol=1e-4), controller


def test_greedy_and_drawn_orders_by_brute_force():
    pointer = torch.randn(3, 4, 4, generator=seeded(0), dtype=torch.float64) * 2
    drawn = sampled_ranks(pointer, 8000, seeded(1))
    for row in range(3):
        left, named, mean = list(range(4)), [], torch.zeros(4, dtype=torch.float64)
        for t in range(4):
            named.append(max(left, key=lambda item: pointer[row, t, item]))
            left.remove(named[-1])
        assert decode(pointer)[row].tolist() == [named.index(item) for item in range(4)]
        for order in itertools.permutations(range(4)):
            p = math.prod(pointer[row, t, list(order[t:])].softmax(0)[0].item() for t in range(4))
            mean += p * torch.tensor([order.index(item) for item in range(4)])
        assert torch.allclose(drawn[row], mean, atol=0.05)


def test_the_exact_posterior_read_as_ranks_reaches_the_ceiling():
    one = draw(800, 10, 0.5, np.random.default_rng(0))
    logits = torch.from_numpy(rank_posterior(one["values"], one["visible"])).clamp(min=1e-30).log()
    assert np.allclose(
        expected_ranks(logits).numpy(), rank_posterior(one["values"], one["visible"]) @ np.arange(10), atol=1e-9
    )
    found = [
        metrics(scores, one["ranks"], one["visible"])["tau"].mean()
        for scores in (expected_ranks(logits), one["values"], decode(logits.transpose(1, 2)))
    ]
    assert found[0] == pytest.approx(found[1], abs=0.01) and found[2] < found[0] - 0.05


def test_deep_supervision_is_the_mean_over_the_iterations(data):
    deep = task_of(data, config(entropy_reg=0.0))
    rows = deep.stream.take(16)
    deep.stream.place = 0
    found, task = deep.loss(deep.model)[0], task_of(data, config(entropy_reg=0.0, deep_supervision=False))
    values, visible, ranks = (deep.train[name][rows] for name in ("values", "visible", "ranks"))
    nats = sum(losses(deep.model(values, visible, deep=True), ranks).values())
    assert nats.shape == (4,) and len(set(nats.tolist())) == 4
    assert found.item() == pytest.approx(nats.mean().item(), rel=1e-5)
    task.model.controller.temperature.fill_(2.0)
    assert task.loss(task.model)[0].item() == pytest.approx(nats[-1].item(), rel=1e-5)


# --- the terms of the loss


@pytest.mark.parametrize("controller", ROUTED)
def test_the_probe_tells_rounding_from_a_gradient(data, controller):
    "A single weight that is made to sum to one is 1, so nothing of the task reaches a controller that may choose one head."
    task = task_of(data, config(controller, arch={"topk": 1}, ponder_tau=0.0))
    assert set(gradient_probe(task)) == {
        name for name, _ in task.model.named_parameters() if name.startswith("block.controller.")
    }


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_everything_learns(data, controller):
    assert gradient_probe(task_of(data, config(controller))) == []


@pytest.mark.parametrize("controller", ROUTED)
def test_the_bonus_keeps_the_entropy_up(data, tmp_path, controller):
    found = {
        weight: trained(
            data,
            tmp_path,
            config(
                controller,
                entropy_reg=weight,
                entropy_decay_epochs=99,
                temp_init=0.7,
                controller=optimizer(4e-2),
                epochs=4,
                evaluate_every=4,
            ),
            f"{weight}",
        ).metrics["held_out"]["routing_entropy"]
        for weight in (0.0, 3.0)
    }
    assert found[3.0] > found[0.0] + 0.01 and found[3.0] > 0.95 * math.log(4)


def test_entropy_below_the_floor_is_charged(data):
    plain, floored = (task_of(data, config(entropy_reg=0.0, entropy_floor=floor)) for floor in (0.0, 2.0))
    (a, told), (b, _) = plain.loss(plain.model), floored.loss(floored.model)
    assert (b - a).item() == pytest.approx(2.0 - told["routing_entropy"].item(), rel=1e-4), (
        "all decisions have less than 2 nats, for ln 4 is less"
    )
    below = task_of(data, config(entropy_reg=0.0, entropy_floor=0.01))
    assert below.loss(below.model)[0].item() == a.item()


def test_schedules():
    one = config(temp_decay=0.95, temp_init=2.0, temp_min=0.7, entropy_reg=1e-3, entropy_decay_epochs=5)
    assert [temperature(e, one) for e in (0, 1, 21)] == pytest.approx([2.0, 1.9, 0.7])
    assert min(e for e in range(40) if temperature(e, one) == 0.7) == 21
    assert [entropy_weight(e, one) for e in (0, 4, 5, 9, 10)] == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4]


def test_temperature_and_bonus_follow_the_epochs_of_a_run(data, tmp_path):
    trained(data, tmp_path, config(epochs=4, evaluate_every=4))
    log = read_log(tmp_path / "run").dropna(subset=["loss"])
    assert log["temperature"].tolist() == pytest.approx([2.0, 1.0, 0.7, 0.7]) and log[
        "entropy_weight"
    ].tolist() == pytest.approx([0.01, 0.005, 0.0025, 0.00125])
    assert checkpoint.read(tmp_path / "run" / "final").weights["block.controller.temperature"].item() == pytest.approx(
        0.7
    )


# --- three parts, freezing, precision


def test_each_part_has_its_rate_and_its_clip(data, tmp_path, monkeypatch):
    clips, original = {}, nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        nn.utils,
        "clip_grad_norm_",
        lambda params, most: (clips.setdefault(most, len(params)), original(params, most))[1],
    )
    one = config(
        encoder=optimizer(1e-3, 0.9),
        controller=optimizer(1e-4, 0.4),
        other=optimizer(2e-3, 0.8),
        controller_warmup_epochs=0,
        epochs=1,
        evaluate_every=1,
    )
    trained(data, tmp_path, one)
    model = build(one.arch, seeded(0), pick("cpu"))
    assert clips == {most: len(list(part.parameters())) for most, part in zip((0.9, 0.4, 0.8), parts(model).values())}
    weights = checkpoint.read(tmp_path / "run" / "final").weights
    moved = {
        name: max(
            (weights[key] - p).abs().max().item()
            for key, p in model.named_parameters()
            if any(p is q for q in part.parameters())
        )
        for name, part in parts(model).items()
    }
    assert moved["controller"] < 5e-4 < moved["encoder"] < 5e-3 and moved["encoder"] < moved["other"] < 1e-2


def test_warm_up_thaws_what_was_trainable_and_nothing_else(data):
    task = task_of(data, config(controller_warmup_epochs=2))
    kept = task.model.controller.slow.weight_hh
    kept.requires_grad_(False)
    task = SortingTask(task.model, task.train, task.dev, task.config, seeded(1))
    seen = []
    for _ in range(3 * 64 // 16):
        task.loss(task.model)[0].backward()
        seen.append({name for name, p in task.model.controller.named_parameters() if p.grad is not None})
        task.model.zero_grad(set_to_none=True)
    names = {name for name, _ in task.model.controller.named_parameters()} - {"slow.weight_hh"}
    assert seen == [set()] * 8 + [names] * 4
    assert not task.model.controller.temperature.requires_grad and not kept.requires_grad


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("controller", ROUTED)
def test_amp_survives_a_frozen_controller(data, tmp_path, amp, controller):
    one = config(controller, amp=amp, epochs=2, evaluate_every=2, controller_warmup_epochs=1, temp_decay=0.9)
    fresh = build(one.arch, seeded(0), pick("cpu")).state_dict()
    trained(data, tmp_path, one.model_copy(update={"controller_warmup_epochs": 2}), "frozen")
    trained(data, tmp_path, one, "thawed")
    frozen, thawed = (checkpoint.read(tmp_path / name / "final").weights for name in ("frozen", "thawed"))
    own = {name for name in fresh if name.startswith("block.controller.") and not name.endswith("temperature")}
    assert {name for name in fresh if torch.equal(frozen[name], fresh[name])} == own
    assert not any(torch.equal(thawed[name], fresh[name]) for name in own)
    assert all(tensor.isfinite().all() for tensor in thawed.values())


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_checkpointing_changes_memory_and_no_gradient(controller):
    values, visible, ranks = lists(16, 12)
    grads, kept = {}, {}
    for again in (False, True):
        model, size = build(arch(controller, checkpointing=again, iters=6), seeded(0), pick("cpu")), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (size.append(t.numel()), t)[1], lambda t: t):
            total = sum(losses(model(values, visible, deep=True), ranks).values()).mean()
        total.backward()
        grads[again], kept[again] = {name: p.grad for name, p in model.named_parameters()}, sum(size)
    assert all(torch.equal(grads[True][name], grads[False][name]) for name in grads[True])
    assert kept[True] < 0.6 * kept[False]


@pytest.mark.parametrize("controller", ["classical", "hrm_act"])
def test_compiled_and_eager_agree(controller):
    values, visible, _ = lists()
    model = build(arch(controller, iters=1, topk=2), seeded(0), pick("cpu")).requires_grad_(False)
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)  # one graph, without a C++ compiler
    said, eager = compiled(values, visible, deep=True), model(values, visible, deep=True)
    assert all(torch.allclose(said[key], value, atol=1e-4) for key, value in eager.items())


def test_compile_asks_for_recorded_launches_on_a_gpu(data, monkeypatch):
    asked, task = [], task_of(data, config())
    monkeypatch.setattr(task.model, "compile", lambda **how: asked.append(how["mode"]))
    for kind in ("cpu", "cuda"):
        task.device = torch.device(kind)
        task.compile()
    assert asked == ["default", "reduce-overhead"]


# --- runs


def stop_at(step):
    return lambda now, row: os.kill(os.getpid(), signal.SIGINT) if now == step else None


def test_a_stopped_run_goes_on_to_the_same_bits(data, tmp_path):
    one = config("hrm_act", epochs=6, evaluate_every=2)
    whole = trained(data, tmp_path, one, "whole")
    with pytest.raises(Stopped, match="step 12"):
        trained(data, tmp_path, one, "one", watch=lambda name: stop_at(12))
    assert not (tmp_path / "one").exists()
    parts_ = trained(data, tmp_path, one, "one")
    files = {
        path.relative_to(tmp_path / "whole").as_posix() for path in (tmp_path / "whole").rglob("*") if path.is_file()
    }
    assert {"routing_log_epoch2.jsonl", "routing_log_epoch4.jsonl", "routing_log_epoch6.jsonl"} <= files
    for file in files - {"best/meta.json", "final/meta.json"}:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "one" / file).read_bytes(), file
    assert whole.metrics == parts_.metrics
    assert not list((tmp_path / "resume").glob("*/latest"))


def test_flops_by_the_closed_form(data, tmp_path):
    D, E, N, B, R, F_ = 16, 2, 6, 16, 4, 8
    layer = N * (4 * D * D + 2 * E * D * D + 2 * N * D)  # products of one list: projections, feed-forward, attention
    encoder = N * (2 * D + D * D) + layer
    pointer = R * (N * 2 * D * D + 2 * N * N * D) + N * (F_ * D + 2 * D * D)
    forward = 2 * (encoder + R * layer + pointer)
    model, (values, visible, _) = build(arch("none"), seeded(0), pick("cpu")), lists(B, N)
    per_list = count_flops(lambda: model(values, visible, deep=True)) / B
    shared = 2 * N * (F_ * D + 2 * D * D) * (1 - 1 / B)  # the ranks are asked for once in a batch
    assert per_list == pytest.approx(forward - shared, rel=1e-6)
    one = config("hrm", epochs=3, controller_warmup_epochs=1)  # 4 steps of 16 lists an epoch
    cold, warm = (step_flops(one.arch, B, N, True, frozen) for frozen in (True, False))
    assert run_tflop(one, 64, N) == pytest.approx((4 * cold + 8 * warm) / 1e12) and cold < warm
    again = B * (R + 1) * 2 * N * N * D  # attention's scores, which its backward pass computes anew
    unasked = B * 2 * N * 2 * D + 2 * N * F_ * D  # gradients of values and of shares
    assert step_flops(arch("none"), B, N, True, False) == 3 * B * round(per_list) + again - unasked


def test_a_study_pairs_its_runs_by_seed(data, tmp_path, monkeypatch):
    taken, original = {}, SortingTask.__init__

    def remember(task, model, train, dev, one, generator):
        original(task, model, train, dev, one, generator)
        taken[one.arch.controller, int(model.encoder.embed[0].weight.sum() * 1e6)] = task.stream.order.tolist()

    monkeypatch.setattr(SortingTask, "__init__", remember)
    study = TrainConfig(
        seeds=2, base=config(epochs=1, evaluate_every=1), runs={"none": {"arch": {"controller": "none"}}, "hrm": {}}
    )
    results = run_all(study, data, tmp_path / "out", Options(tmp_path / "resume", progress=False))
    table = summary(study, results)
    assert table[["run", "seed"]].values.tolist() == [["none", 0], ["none", 1], ["hrm", 0], ["hrm", 1]] and set(
        results
    ) == {"none-0", "none-1", "hrm-0", "hrm-1"}
    orders = list(taken.values())
    assert len(orders) == 4 and orders[0] == orders[2] != orders[1] == orders[3]


def test_the_log_of_routes_says_what_was_done(data, tmp_path):
    one = config("classical", arch={"topk": 2}, epochs=2, evaluate_every=2, routing_samples=5)
    trained(data, tmp_path, one)
    rows = [json.loads(line) for line in (tmp_path / "run" / "routing_log_epoch2.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["sample_id"]) for row in rows] == [(2, sample) for sample in range(5)]
    model, _ = load(tmp_path / "run" / "final", pick("cpu"))
    dev = read(data, "main", "dev")
    alphas = model(dev["values"][:5], dev["visible"][:5])["alphas"].mean(2)  # [R, B, H]
    for row in rows:
        assert np.allclose(row["alphas"], alphas[:, row["sample_id"]].detach(), atol=1e-5)
        assert all(
            len(heads) == 2 and weights[heads[0]] == max(weights)
            for heads, weights in zip(row["topk_heads"], row["alphas"])
        )


def test_measures_do_not_depend_on_the_batch(data):
    model, one = build(arch("hrm_act"), seeded(0), pick("cpu")).eval(), read(data, "main", "test")
    whole, cut = answer(model, one), answer(model, one, batch=7)
    assert (
        np.allclose(whole.expected, cut.expected, atol=1e-5)
        and whole.loss == pytest.approx(cut.loss, rel=1e-5)
        and whole.alphas.shape == cut.alphas.shape
    )
    row = evaluate_set(model, one, 4, 100)
    assert isinstance(row["to best rule"], Estimate) and row["ceiling"] == pytest.approx((3 + 4.5) / 15, abs=1e-12)
    assert row["measures"] == measure(model, one)


def test_longer_lists_than_in_training(data, tmp_path):
    trained(data, tmp_path, config(epochs=20, evaluate_every=20, encoder=optimizer(1e-2), other=optimizer(1e-2)))
    model, _ = load(tmp_path / "run" / "final", pick("cpu"))
    for name in ("main", "long"):
        row = evaluate_set(model, read(data, name, "test"), 4, 200)
        assert row["to best rule"].value > -0.08, f"{name}: {row['expected rank']} against {row['best rule']}"


def test_what_is_refused(data, tmp_path):
    for change, says in (
        ({"temp_min": 3.0}, "temp_min 3.0 above temp_init 2.0"),
        ({"evaluate_every": 9}, "evaluate_every 9 with 3 epochs"),
        ({"arch": {"width": 18}}, "width 18 with 4 heads"),
    ):
        with pytest.raises(ValueError, match=says):
            config(**change)
    with pytest.raises(ConfigError, match="at most the 64 lists"):
        trained(data, tmp_path, config(rows=65))
    with pytest.raises(ConfigError, match="no such lists"):
        trained(data, tmp_path, config(set="other"))
    assert not (tmp_path / "resume").exists(), "before any work"


def test_lengths_are_what_they_are_called(data):
    about = {"seed": 0, "samples": 1, "resamples": 1, "margin": 0.02}
    found = read_lengths(EvaluateConfig(lengths={6: "main", 9: "long"}, **about), data)
    assert {length: lists["ranks"].shape for length, lists in found.items()} == {6: (24, 6), 9: (24, 9)}
    for change, says in (
        ({"lengths": {6: "main", 12: "long"}}, "lengths.12: long has lists of 9"),
        ({"lengths": {6: "main"}, "heat_list": 24}, "heat_list: found 24; allowed: 0 to 23"),
        ({"lengths": {6: "mian"}}, "no such lists"),
    ):
        with pytest.raises(ConfigError, match=says):
            read_lengths(EvaluateConfig(**about | change), data)


GOLDEN = ROOT / "tests" / "golden" / "routing.txt"
COLUMNS = ("loss", "pointer", "rank", "routing_entropy", "ponder", "temperature")


def test_golden_curve(tmp_path):
    build_data(
        DataConfig(seed=0, sets={"main": SetConfig(length=8, mask_rate=0.5, train=16, dev=8)}), tmp_path / "lists"
    )
    trained(
        tmp_path / "lists",
        tmp_path,
        config("hrm_act", epochs=20, evaluate_every=20, controller_warmup_epochs=5, temp_decay=0.95),
    )
    rows = read_log(tmp_path / "run").dropna(subset=["loss"])
    if os.environ.get("HRM_WRITE_GOLDEN"):
        lines = [
            " ".join(("step", *COLUMNS)),
            *(" ".join([str(int(row.step)), *(f"{row[name]:.8g}" for name in COLUMNS)]) for _, row in rows.iterrows()),
        ]
        GOLDEN.write_text("\n".join(lines) + "\n")
    head, *stored = [line.split() for line in GOLDEN.read_text().splitlines()]
    assert tuple(head) == ("step", *COLUMNS) and len(stored) == len(rows) == 20
    for (_, row), (step, *values) in zip(rows.iterrows(), stored):
        assert [int(row.step), *(row[name] for name in COLUMNS)] == pytest.approx(
            [int(step), *map(float, values)], rel=1e-4
        ), f"step {step}"


# --- the command


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    "A project with one tiny profile, its lists drawn by the command."
    folder = tmp_path_factory.mktemp("project")
    base = config(
        "hrm_act",
        arch={"width": 8, "heads": 2, "iters": 3},
        epochs=2,
        evaluate_every=1,
        entropy_reg=0.3,
        temp_init=1.0,
        temp_min=0.6,
        temp_decay=0.8,
        controller_warmup_epochs=0,
    ).model_dump(mode="json")
    runs = {"fixed": {"arch": {"controller": "hrm"}}, "topped": {"arch": {"topk": 1}}}
    profile = {
        "routing": {
            "data": {
                "seed": 0,
                "simulated": 10,
                "lengths": [12, 20],
                "mask_rates": [0.5],
                "sets": {"main": {"length": 6, "mask_rate": 0.5, "train": 32, "dev": 8, "test": 8}},
            },
            "train": {"seeds": 2, "base": base, "runs": runs},
        }
    }
    (folder / "params.yaml").write_text(
        json.dumps({"run": ["tiny"], "runner": "host", "tracking": "disabled", "profiles": {"tiny": profile}})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HRM_ROOT", str(folder))
        assert main(["routing", "data", "--profile", "tiny"]) == 0
        for name in ("base", "fixed"):
            assert (
                main(
                    [
                        "routing",
                        "train",
                        "--profile",
                        "tiny",
                        "--out",
                        str(folder / name),
                        *(["--run", name] if name != "base" else []),
                    ]
                )
                == 0
            )
    return folder


@pytest.fixture
def hrm(project, monkeypatch, capsys):
    monkeypatch.setenv("HRM_ROOT", str(project))

    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in ("routing", *words)])
        return code, *capsys.readouterr()

    return call


WORDS = {
    "controller": "classical",
    "hrm_T": 1,
    "hrm_act": False,
    "ponder_tau": 2.0,
    "routing_topk": 1,
    "iters": 2,
    "cache_heads": True,
    "deep_supervision": False,
    "lr_encoder": 1e-3,
    "lr_controller": 1e-4,
    "lr_other": 1e-3,
    "clip_encoder": 1e-3,
    "clip_controller": 1e-3,
    "clip_other": 1e-3,
    "temp_init": 1.5,
    "temp_min": 0.9,
    "temp_decay": 0.7,
    "entropy_reg": 0.0,
    "entropy_decay_epochs": 5,
    "entropy_floor": 2.0,
    "controller_warmup_epochs": 1,
    "use_amp": True,
    "compile": False,
    "checkpointing": True,
    "epochs": 1,
    "batch_size": 8,
    "rows": 16,
}


@pytest.mark.parametrize("flag", FLAGS)
def test_each_flag_changes_what_it_says(hrm, project, tmp_path, flag):
    value, run_ = WORDS[flag], "fixed" if flag == "hrm_T" else "base"
    word = [f"--{flag}" if value is True else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", value]
    code, out, err = hrm(
        "train", "--profile", "tiny", *(["--run", run_] if run_ != "base" else []), "--out", tmp_path / "run", *word
    )
    assert code == 0, err
    before, after = (checkpoint.read(folder / "final") for folder in (project / run_, tmp_path / "run"))
    place, kind, _ = FLAGS[flag]
    said, was = after.meta["config"], before.meta["config"]
    for key in place.split("."):
        said, was = said[key], was[key]
    assert said == (kind[value] if isinstance(kind, dict) else value)
    shared = [name for name in before.weights if name in after.weights and name != "block.controller.temperature"]
    same = all(
        torch.equal(before.weights[name], after.weights[name])
        for name in shared
        if before.weights[name].shape == after.weights[name].shape
    )
    if flag in ("checkpointing", "compile"):  # other ways to the same bits; what they do has tests of its own above
        assert same and (said != was or flag == "compile")
    else:
        assert said != was and not same, "a flag that changes nothing"


def test_every_flag_of_the_table_has_a_test():
    assert set(WORDS) == set(FLAGS)


def test_documents_defaults_are_the_recipe_of_the_gpu_profile():
    base = merged(load_params(ROOT / "params.yaml"), "gpu", "routing.train")["base"]
    asked = {
        "arch.controller": "hrm",
        "arch.T": 4,
        "ponder_tau": 0.01,
        "arch.topk": None,
        "deep_supervision": True,
        "encoder.lr": 3e-4,
        "controller.lr": 1e-4,
        "other.lr": 3e-4,
        "encoder.clip": 1.0,
        "controller.clip": 0.5,
        "other.clip": 1.0,
        "temp_init": 2.0,
        "temp_min": 0.7,
        "temp_decay": 0.95,
        "entropy_reg": 1e-3,
        "entropy_decay_epochs": 5,
        "controller_warmup_epochs": 5,
    }
    for place, value in asked.items():
        found = base
        for key in place.split("."):
            found = found[key]
        assert found == value, place


def test_all_heads_again_and_short_words(hrm, project, tmp_path):
    code, out, _ = hrm("train", "--profile", "tiny", "--run", "topped", "--routing-topk", 0, "--out", tmp_path / "run")
    assert code == 0 and "ceiling 0.5000, held out: tau" in out
    weights, other = (checkpoint.read(folder / "final").weights for folder in (project / "base", tmp_path / "run"))
    assert all(torch.equal(weights[name], other[name]) for name in weights)


def test_refused_in_the_flags_own_name(hrm, project):
    for words, says in (
        (("--hrm_T", 0), "--hrm_T: found 0"),
        (("--controller", "hmr"), "--controller: found 'hmr'"),
        (("--temp_min", 5.0), "temp_min 5.0 above temp_init"),
        (("--controller", "none", "--hrm_act"), "allowed: one of the two"),
        (("--lr_encoder", -1.0), "--lr_encoder: found -1.0"),
        (("--run", "odd"), "fixed, topped"),
        (("--rows", 99), "at most the 32 lists"),
        (("--hrm_K", 1), "--hrm_K"),
    ):
        code, out, err = hrm("train", "--profile", "tiny", *words)
        assert (code, out) == (2, "") and says in err and "Traceback" not in err, err
    assert not (project / "data" / "tiny" / "routing" / "tried").exists()


def test_evaluate_prints_the_readings_beside_the_ceiling(hrm, project, tmp_path):
    code, out, err = hrm(
        "evaluate",
        "--profile",
        "tiny",
        "--checkpoint",
        project / "base" / "final",
        "--samples",
        3,
        "--resamples",
        50,
        "--json",
        tmp_path / "said.json",
    )
    assert code == 0, err
    assert all(
        word in out
        for word in ("ceiling", "expected rank", "drawn orders", "greedy", "best rule", "main", "routing_entropy")
    )
    (said,) = json.loads((tmp_path / "said.json").read_text())["sets"]
    model, _ = load(project / "base" / "final", pick("cpu"))
    found = measure(model, read(project / "data" / "tiny" / "routing" / "data", "main", "test"))
    assert said["expected rank"]["value"] == pytest.approx(found["tau"]) and said["greedy"]["value"] == pytest.approx(
        found["greedy_tau"]
    )
    assert said["ceiling"] == pytest.approx(0.5)
    code, _, err = hrm("evaluate", "--profile", "tiny", "--checkpoint", tmp_path / "none")
    assert code == 2 and "no checkpoint" in err
