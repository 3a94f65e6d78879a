"Optimizers of core: the slow filter, Muon on any shape, query-key clipping; without them, what was there before."

import io
import json
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from hrm.core.checkpoint import read
from hrm.core.layers import Attention
from hrm.core import optim
from hrm.core.optim import AdamATan2, Grokfast, Muon, OptimConfig, QKClip, build, orthogonalised
from hrm.core.resume import Stopped
from hrm.core.task import LoopConfig, Task
from hrm.core.train import fit
from hrm.memory.model import CrossAttention, MemoryArch, MemoryConfig, MemoryModel


class Reader(nn.Module):
    "Embedding, attention, a wide and a tall matrix, a head."

    def __init__(self):
        super().__init__()
        seed = torch.Generator().manual_seed(0)
        self.embed, self.attention = nn.Embedding(7, 16), Attention(16, 2, causal=True, generator=seed)
        self.wide, self.tall, self.norm, self.head = (
            nn.Linear(16, 40),
            nn.Linear(40, 16),
            nn.LayerNorm(16),
            nn.Linear(16, 7),
        )
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=seed) * 0.1)

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.attention(x)
        return self.head(self.norm(x + self.tall(F.relu(self.wide(x)))))


def grads(model: nn.Module, step: int) -> None:
    seed = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=seed)


def config(name: str, **change) -> OptimConfig:
    return OptimConfig(
        **{"name": name, "lr": 0.01, "weight_decay": 0.1}
        | ({"grokfast_lambda": 0.3} if "grokfast" in name else {})
        | change
    )


def equal(ours: nn.Module, theirs: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


# --- the slow filter


@settings(max_examples=12, deadline=None)
@given(st.floats(0.5, 0.97), st.floats(0.1, 5), st.floats(-3, 3).filter(lambda g: abs(g) > 1e-2))
def test_what_stays_is_amplified_and_what_alternates_is_not(alpha, strength, g):
    for sign in (1, -1):
        w, seen = nn.Parameter(torch.zeros(1, dtype=torch.float64)), []
        inner = torch.optim.SGD([w], lr=1.0)
        inner.register_step_pre_hook(lambda *_: seen.append(w.grad.item() / g))
        optimizer = Grokfast([inner], alpha, strength)
        for t in range(400):
            w.grad = torch.tensor([g * sign**t], dtype=torch.float64)
            optimizer.step()
        if sign == 1:
            assert seen[0] == pytest.approx(1 + strength * (1 - alpha))
            assert seen[9] == pytest.approx(1 + strength * (1 - alpha**10))
            assert seen[-1] == pytest.approx(1 + strength, rel=1e-3), "in the end (1 + lambda) times"
        else:  # the slow part of an alternating gradient is (1 - alpha) / (1 + alpha) of it, with the sign of the last one
            assert abs(seen[-1]) == pytest.approx(1 + strength * (1 - alpha) / (1 + alpha), rel=1e-5)


def test_grokfast_is_adamw_on_the_filtered_gradient_bit_for_bit():
    ours, theirs = Reader(), Reader()
    (optimizer,) = build(ours, config("grokfast", grokfast_alpha=0.9, grokfast_lambda=2.0))
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    slow = [torch.zeros_like(p) for p in theirs.parameters()]
    for step in range(6):
        grads(ours, step), grads(theirs, step)
        for p, e in zip(theirs.parameters(), slow):
            e.lerp_(p.grad, 1 - 0.9)
            p.grad = p.grad + 2.0 * e
        optimizer.step(), adamw.step()
    assert equal(ours, theirs)


def test_mugrokfast_gives_both_parts_the_same_filtered_gradient():
    ours, theirs = Reader(), Reader()
    (optimizer,) = build(ours, config("mugrokfast", grokfast_lambda=0.5))
    muon, adamw = build(theirs, config("muon"))
    slow = [torch.zeros_like(p) for p in theirs.parameters()]
    for step in range(4):
        grads(ours, step), grads(theirs, step)
        for p, e in zip(theirs.parameters(), slow):
            e.lerp_(p.grad, 1 - 0.98)
            p.grad = p.grad + 0.5 * e
        optimizer.step(), muon.step(), adamw.step()
    assert equal(ours, theirs)
    names = {id(p): name for name, p in ours.named_parameters()}
    parts = [{names[id(p)] for group in inner.param_groups for p in group["params"]} for inner in optimizer.inner]
    assert [type(inner) for inner in optimizer.inner] == [Muon, torch.optim.AdamW]
    assert parts[0] == {"attention.qkv_proj.weight", "attention.o_proj.weight", "wide.weight", "tall.weight"}
    assert parts[1] == {
        "embed.weight",
        "wide.bias",
        "tall.bias",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }


def test_embeddings_heads_norms_and_biases_of_the_memory_model_stay_with_adamw():
    arch = MemoryArch(
        hidden_size=32, layers=1, num_heads=2, expansion=4.0, memory_size=8, trm_heads=2, persistent=2, memory="titans"
    )
    model = MemoryModel(MemoryConfig(vocab_size=9, seq_len=8, arch=arch))
    (optimizer,) = build(model, config("mugrokfast"))
    names = {id(p): name for name, p in model.named_parameters()}
    muon, adamw = ({names[id(p)] for group in inner.param_groups for p in group["params"]} for inner in optimizer.inner)
    assert {
        "embed_tokens.embedding_weight",
        "embed_pos.embedding_weight",
        "embed_persistent",
        "halt_head.weight",
        "norm.weight",
    } <= adamw
    assert (
        all(name.endswith("weight") and "norm" not in name for name in muon)
        and {"trm.z_mlp.0.weight", "memory.qkv.weight"} <= muon
    )
    assert muon | adamw == set(names.values())


@pytest.mark.parametrize(
    "name, kinds",
    [
        ("adam_atan2", [AdamATan2]),
        ("adamw", [torch.optim.AdamW]),
        ("adam", [torch.optim.Adam]),
        ("muon", [Muon, torch.optim.AdamW]),
    ],
)
def test_without_filter_and_clip_nothing_is_in_between(name, kinds):
    ours, theirs = Reader(), Reader()
    optimizers = build(ours, config(name))
    assert [type(optimizer) for optimizer in optimizers] == kinds
    own = dict(lr=0.01, weight_decay=0.1)
    hidden = [
        p
        for n, p in theirs.named_parameters()
        if name == "muon" and p.ndim == 2 and "embed" not in n and "head" not in n
    ]
    others = [p for p in theirs.parameters() if not any(p is h for h in hidden)]
    expected = ([Muon(hidden, adjust_lr_fn="match_rms_adamw", **own)] if hidden else []) + [
        kinds[-1](others, betas=(0.9, 0.95), **own)
    ]
    for step in range(4):
        grads(ours, step), grads(theirs, step)
        for optimizer in (*optimizers, *expected):
            optimizer.step()
    assert equal(ours, theirs)
    assert not any(module._forward_hooks for module in ours.modules())


@pytest.mark.parametrize("shape", [(64, 320), (320, 64), (8, 512), (48, 40)])
def test_muon_orthogonalises_matrices_of_any_shape(shape):
    w = nn.Parameter(torch.zeros(shape))
    (optimizer,) = build(nn.ParameterDict({"w": w, "bias": nn.Parameter(torch.zeros(1))}), config("mugrokfast", lr=1.0))
    w.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e3
    before = torch.linalg.svdvals(w.grad)
    optimizer.step()
    after = torch.linalg.svdvals(w.detach()) / (0.2 * max(shape) ** 0.5)
    assert 0.6 < after.min() and after.max() < 1.3, "whatever the length of the gradient"
    assert after.max() / after.min() < 2 and (shape[0] != 48 or before.max() / before.min() > 8)


def theirs(matrix: torch.Tensor) -> torch.Tensor:
    from torch.optim._muon import _zeropower_via_newtonschulz

    return _zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7).float()


@pytest.mark.parametrize("shape", [(64, 64), (64, 192), (192, 64), (1, 40), (40, 1), (8, 300)])
def test_orthogonalised_in_float32_is_what_torch_does_in_bfloat16(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalised(matrix)
    assert found.dtype == torch.float32 and found.shape == shape and torch.equal(found, orthogonalised(matrix))
    assert (found - theirs(matrix)).norm() < 0.03 * found.norm()  # bfloat16 keeps eight bits, and five steps add up
    assert (found - orthogonalised(-matrix)).norm() > found.norm()  # a control that fails
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert torch.allclose(found, (u * s @ v).float(), atol=2e-5)  # the same vectors, the polynomial of the values
    assert s.max() < 1.21 and (shape[0] == shape[1] or s.min() > 0.68)


def test_an_orthogonal_matrix_keeps_its_directions_and_nothing_stays_nothing():
    q = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    s = 32**-0.5
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert torch.allclose(orthogonalised(1e-3 * q), s * q, atol=1e-5) and 0.68 < s < 1.21
    assert torch.equal(orthogonalised(torch.zeros(5, 3)), torch.zeros(5, 3))


def test_wide_matrices_take_bfloat16_where_there_are_units_for_it(monkeypatch):
    small, wide = torch.randn(128, 140), torch.randn(130, 140)
    monkeypatch.setattr(optim, "has_bf16", lambda device: True)
    assert (orthogonalised(small).dtype, orthogonalised(wide).dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(orthogonalised(wide).float(), theirs(wide))
    monkeypatch.setattr(optim, "has_bf16", lambda device: False)
    assert orthogonalised(wide).dtype == torch.float32


@pytest.mark.parametrize("own", [{"adjust_lr_fn": "match_rms_adamw"}, {"nesterov": False, "momentum": 0.5}])
def test_the_state_goes_to_torch_and_back(own):
    begin = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    kinds = (Muon, torch.optim.Muon)
    weights = [nn.Parameter(begin.clone()) for _ in kinds]
    pair = [kind([w], lr=0.1, weight_decay=0.1, **own) for kind, w in zip(kinds, weights)]
    for step in range(6):
        if step % 2:
            said = [optimizer.state_dict() for optimizer in pair]
            assert said[0]["param_groups"] == said[1]["param_groups"]
            assert torch.equal(said[0]["state"][0]["momentum_buffer"], said[1]["state"][0]["momentum_buffer"])
            pair[0].load_state_dict(said[1]), pair[1].load_state_dict(said[0])
        for w, optimizer in zip(weights, pair):
            w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    assert (weights[0] - weights[1]).norm() < 0.02 * (weights[0] - begin).norm()


# --- query-key clipping


def largest(attention: nn.Module, x: torch.Tensor) -> torch.Tensor:
    "[H] largest logit of each head, from all pairs."
    with torch.no_grad():
        query, key = (
            attention._project(x, None)[:2]
            if hasattr(attention, "qkv_proj")
            else (
                attention.q_proj(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2),
                attention.remember(x)[0],
            )
        )
        return (query @ key.mT).abs().amax((0, 2, 3)) / query.shape[-1] ** 0.5


@pytest.mark.parametrize(
    "make",
    [lambda: Attention(24, 3, generator=torch.Generator().manual_seed(0)), lambda: CrossAttention(24, 3)],
    ids=["self", "cross"],
)
def test_no_logit_is_above_the_bound_afterwards_and_each_clip_counts(make):
    torch.manual_seed(0)
    attention, x = make(), torch.randn(4, 11, 24, generator=torch.Generator().manual_seed(1))
    loud = attention.qkv_proj if hasattr(attention, "qkv_proj") else attention.q_proj
    with torch.no_grad():
        loud.weight[8:16] *= 50
        if loud.bias is not None:
            loud.bias.normal_()
    kept = {name: p.detach().clone() for name, p in attention.named_parameters()}
    clip, run = (
        QKClip(attention, 30.0),
        lambda: attention(x) if hasattr(attention, "qkv_proj") else attention(x, attention.remember(x), None),
    )
    assert largest(attention, x)[1] > 30 > largest(attention, x)[[0, 2]].max()
    run(), run()
    clip.step()
    assert clip.count == 1 and largest(attention, x).max() <= 30.001
    changed = {
        name: (p != kept[name]).reshape(len(p), -1).any(1).nonzero().flatten().tolist()
        for name, p in attention.named_parameters()
    }
    head = list(range(8, 16))
    assert changed.get("qkv_proj.weight", head + list(range(32, 40))) == head + list(range(32, 40)), (
        "queries and keys of that head alone"
    )
    assert (
        changed.get("q_proj.weight", head) == changed.get("kv_proj.weight", head) == head
        and changed["o_proj.weight"] == []
    )
    clip.step()
    run()
    clip.step()
    assert clip.count == 1, "nothing was seen, and then nothing was above the bound"


def test_the_clip_looks_at_training_alone():
    model, ids = Reader(), torch.arange(6)[None]
    (optimizer,) = build(model, config("adamw", lr=1e-9, weight_decay=0.0, qk_clip=1e-6))
    before = model.attention.qkv_proj.weight.detach().clone()
    model.eval()(ids)
    with torch.no_grad():
        model.train()(ids)
    grads(model, 0)
    optimizer.step()
    torch.testing.assert_close(model.attention.qkv_proj.weight, before, atol=1e-7, rtol=0)
    assert optimizer.clip.count == 0
    model(ids)
    optimizer.zero_grad()  # as after a pass that only counts
    grads(model, 1)
    optimizer.step()
    assert optimizer.clip.count == 0
    model(ids)
    optimizer.step()
    assert optimizer.clip.count == 2 and model.attention.qkv_proj.weight[:32].norm() < 0.1 * before[:32].norm()
    assert optimizer.state_dict()["clipped"] == 2


# --- in the loop


class Copy(Task):
    "The token before, from the text."

    def __init__(self, optim: OptimConfig):
        self.model, self.place = Reader(), 0
        self.groups = [(self.model, optim)]

    def loss(self, model):
        ids = torch.randint(7, (8, 9), generator=torch.Generator().manual_seed(self.place))
        self.place += 1
        loss = F.cross_entropy(model(ids)[:, 1:].flatten(0, 1), ids[:, :-1].flatten())
        return loss, {"loss": loss.detach(), "count": torch.ones(())}

    def evaluate(self):
        return {"loss": float(self.loss(self.model)[0])}

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


LOOP = LoopConfig(
    steps=9, evaluate_every=9, log_every=1, checkpoint_seconds=1e6, compile="off", best="loss", best_mode="min"
)
FULL = dict(clip=1.0, warmup=3, schedule="cosine", lr_min_ratio=0.1, ema=0.5, qk_clip=0.01, grokfast_lambda=0.5)


@pytest.mark.parametrize("name", ["grokfast", "mugrokfast"])
def test_stopped_and_resumed_it_ends_in_the_same_bits(tmp_path, name):
    optim = config(name, lr=0.02, **FULL)
    whole = fit(Copy(optim), LOOP, tmp_path / "whole", tmp_path / "a", "one", {}, progress=False, keep=True)
    for at in (2, 5):
        with pytest.raises(Stopped):
            fit(
                Copy(optim),
                LOOP,
                tmp_path / "broken",
                tmp_path / "b",
                "one",
                {},
                progress=False,
                watch=lambda step, row: os.kill(os.getpid(), signal.SIGTERM) if step == at else None,
            )
    broken = fit(Copy(optim), LOOP, tmp_path / "broken", tmp_path / "b", "one", {}, progress=False, keep=True)
    ours, theirs = (load_file(result.folder / "final" / "model.safetensors") for result in (broken, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    logs = [
        [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
        for result in (broken, whole)
    ]
    assert logs[0] == logs[1] and logs[0][-2]["loss"] < logs[0][0]["loss"]
    state = [read(result.state / "latest").state()["groups"][0]["optimizers"][0] for result in (broken, whole)]
    assert state[0]["clipped"] == state[1]["clipped"] > 0 and len(state[0]["inner"]) == (
        2 if name == "mugrokfast" else 1
    )
    assert all(torch.equal(a, b) for a, b in zip(state[0]["slow"], state[1]["slow"], strict=True))


def test_a_schedule_acts_behind_the_filter(tmp_path):
    moved = []
    for warmup in (0, 4):
        optim = config("grokfast", lr=1e-3, weight_decay=0.0, warmup=warmup)
        task, before = Copy(optim), Reader()
        fit(
            task,
            LoopConfig(**LOOP.model_dump() | {"steps": 1, "evaluate_every": 1}),
            tmp_path / f"{warmup}",
            tmp_path / "r",
            f"{warmup}",
            {},
            progress=False,
        )
        moved.append((task.model.head.weight - before.head.weight).abs().max().item())
    assert moved[0] == pytest.approx(1e-3, rel=1e-3) and moved[1] == pytest.approx(2.5e-4, rel=1e-3)


def test_its_state_goes_through_a_file_and_another_optimizer():
    ours, theirs = Reader(), Reader()
    (one,) = build(ours, config("mugrokfast", qk_clip=9.0))
    for step in range(3):
        grads(ours, step)
        one.step()
    raw = io.BytesIO()
    torch.save(one.state_dict(), raw)
    raw.seek(0)
    theirs.load_state_dict(ours.state_dict())
    (two,) = build(theirs, config("mugrokfast", qk_clip=9.0))
    two.load_state_dict(torch.load(raw, weights_only=True))
    assert two.param_groups[0] is two.inner[0].param_groups[0], "a rate that is set here still acts there"
    for step in range(3, 6):
        grads(ours, step), grads(theirs, step)
        one.step(), two.step()
    assert equal(ours, theirs)
    with pytest.raises(ValueError):
        build(Reader(), config("grokfast"))[0].load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    "values",
    [
        {"name": "grokfast", "grokfast_lambda": 0.0},
        {"name": "muon", "grokfast_lambda": 0.3},
        {"name": "mugrokfast", "grokfast_lambda": -1.0},
        {"name": "adamw", "qk_clip": 0.0},
        {"name": "grokfast", "grokfast_lambda": 1.0, "grokfast_alpha": 1.0},
    ],
)
def test_settings_that_cannot_be(values):
    with pytest.raises(ValueError, match="allowed: above 0 with grokfast|greater than|less than"):
        OptimConfig(lr=1e-3, **values)
