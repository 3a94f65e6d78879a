"""The tutorial's Sudoku model and its training step written down straight away, for `throughput.py` to compare with.

Textbook PyTorch: no layer, loss or optimizer of the package, no fused attention, one parameter after the other in Adam-atan2.
Shapes: B boards, S positions (the puzzle embedding's among them), D width, H heads, K = D / H, V tokens.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS, BETAS, LR, WEIGHT_DECAY, PUZZLE_LR, PUZZLE_WEIGHT_DECAY = 1e-5, (0.9, 0.95), 1e-4, 0.1, 1e-2, 0.1


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def rms_norm(x: Tensor) -> Tensor:
    x32 = x.to(torch.float32)
    variance = x32.pow(2).mean(dim=-1, keepdim=True)
    return (x32 * torch.rsqrt(variance + EPS)).to(x.dtype)


def rotate(x: Tensor, theta: float) -> Tensor:  # [B, S, H, K]
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[1], device=x.device)[:, None] * frequencies  # [S, K / 2]
    angles = torch.cat((angles, angles), dim=-1)[None, :, None, :]
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * angles.cos() + turned * angles.sin()).to(x.dtype)


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, theta: float):
        super().__init__()
        self.heads, self.theta = heads, theta
        self.self_attn = nn.ModuleDict(
            {"qkv_proj": nn.Linear(width, 3 * width, bias=False), "o_proj": nn.Linear(width, width, bias=False)}
        )
        self.mlp = nn.ModuleDict(
            {"gate_up_proj": nn.Linear(width, 2 * inner, bias=False), "down_proj": nn.Linear(inner, width, bias=False)}
        )

    def attention(self, x: Tensor) -> Tensor:
        boards, positions, width = x.shape
        query, key, value = linear(x, self.self_attn["qkv_proj"]).view(boards, positions, 3, self.heads, -1).unbind(2)
        query, key = rotate(query, self.theta), rotate(key, self.theta)
        scores = torch.einsum("bqhk,bshk->bhqs", query, key) / math.sqrt(width // self.heads)
        mixed = torch.einsum("bhqs,bshk->bqhk", torch.softmax(scores, dim=-1), value)
        return linear(mixed.reshape(boards, positions, width), self.self_attn["o_proj"])

    def forward(self, x: Tensor) -> Tensor:
        x = rms_norm(x + self.attention(x))
        gate, up = linear(x, self.mlp["gate_up_proj"]).chunk(2, dim=-1)
        return rms_norm(x + linear(F.silu(gate) * up, self.mlp["down_proj"]))


class PlainLevel(nn.Module):
    def __init__(self, blocks: int, *shape):
        super().__init__()
        self.layers = nn.ModuleList(PlainBlock(*shape) for _ in range(blocks))

    def forward(self, state: Tensor, injection: Tensor) -> Tensor:
        state = state + injection
        for layer in self.layers:
            state = layer(state)
        return state


class Plain(nn.Module):
    "The same model written down straight away; takes the state dict of ours."

    def __init__(self, model: nn.Module):
        super().__init__()
        c = self.config = model.config
        self.dtype = model.inner.dtype
        inner = model.inner.H_level.layers[0].mlp.down_proj.weight.shape[1]
        shape = (c.hidden_size, c.num_heads, inner, c.rope_theta)
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.puzzle_emb = nn.Embedding(c.num_puzzle_identifiers, c.puzzle_emb_ndim).requires_grad_(False)
        self.lm_head, self.q_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False), nn.Linear(c.hidden_size, 2)
        self.H_level, self.L_level = PlainLevel(c.H_layers, *shape), PlainLevel(c.L_layers, *shape)
        self.register_buffer("H_init", torch.zeros(c.hidden_size))
        self.register_buffer("L_init", torch.zeros(c.hidden_size))
        names = {
            name: name.removeprefix("inner.").replace("embedding_weight", "weight").replace("emb.weights", "emb.weight")
            for name in model.state_dict()
        }
        self.load_state_dict({names[name]: tensor for name, tensor in model.state_dict().items()})
        self.to(model.inner.H_init.device)

    def start(self, rows: int) -> tuple[Tensor, Tensor]:
        shape = (rows, self.config.seq_len + self.config.prefix, self.config.hidden_size)
        return self.H_init.to(self.dtype).expand(shape).clone(), self.L_init.to(self.dtype).expand(shape).clone()

    def forward(
        self, z_H: Tensor, z_L: Tensor, inputs: Tensor, puzzles: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c, prefix = self.config, self.config.prefix
        front = F.pad(puzzles, (0, prefix * c.hidden_size - c.puzzle_emb_ndim)).view(len(inputs), prefix, c.hidden_size)
        x = math.sqrt(c.hidden_size) * torch.cat((front, self.embed_tokens(inputs)), dim=1).to(self.dtype)
        with torch.no_grad():
            for step in range(c.H_cycles * c.L_cycles - 1):
                z_L = self.L_level(z_L, z_H + x)
                if (step + 1) % c.L_cycles == 0:
                    z_H = self.H_level(z_H, z_L)
        z_L = self.L_level(z_L, z_H + x)
        z_H = self.H_level(z_H, z_L)
        return z_H, z_L, linear(z_H[:, prefix:], self.lm_head), linear(z_H[:, 0], self.q_head).float()


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    value = torch.where(logits < 0, 1 / (1 - logits + 1e-30), logits + 1)
    log_probability = torch.log(value / value.sum(dim=-1, keepdim=True))
    return -log_probability.gather(-1, labels[..., None]).squeeze(-1)


class AdamATan2Loop:
    "One parameter after the other."

    def __init__(self, params):
        self.params, self.steps = list(params), 0
        self.m, self.v = ([torch.zeros_like(p) for p in self.params] for _ in "mv")

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        for p, m, v in zip(self.params, self.m, self.v):
            m.mul_(BETAS[0]).add_(p.grad, alpha=1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(p.grad, p.grad, value=1 - BETAS[1])
            root = (v / (1 - BETAS[1] ** self.steps)).sqrt()
            p.mul_(1 - LR * WEIGHT_DECAY)
            p.sub_(LR / (1 - BETAS[0] ** self.steps) * torch.atan2(m, root))
            p.grad = None


def training(model: Plain, batch: dict[str, Tensor]) -> Callable[[], tuple[float, Tensor, Tensor]]:
    "A function that makes one training step and returns its loss, logits and halting values."
    optimizer, (z_H, z_L) = (
        AdamATan2Loop(p for p in model.parameters() if p.requires_grad),
        model.start(len(batch["inputs"])),
    )
    rows, steps, last = len(batch["inputs"]), 0, model.config.halt_max_steps

    def step() -> float:
        nonlocal z_H, z_L, steps
        if steps == last:
            (z_H, z_L), steps = model.start(rows), 0
        leaf = model.puzzle_emb(batch["puzzle_identifiers"]).detach().requires_grad_()
        z_H, z_L, logits, q = model(z_H.detach(), z_L.detach(), batch["inputs"], leaf)
        steps += 1
        with torch.no_grad():
            ahead = model(z_H, z_L, batch["inputs"], leaf)[3]
            target = torch.sigmoid(ahead[:, 0] if steps == last else ahead.max(dim=-1).values)
            solved = (logits.argmax(-1) == batch["labels"]).all(-1).float()
        loss = stablemax_cross_entropy(logits, batch["labels"]).mean(-1).sum()
        loss = loss + 0.5 * (
            F.binary_cross_entropy_with_logits(q[:, 0], solved, reduction="sum")
            + F.binary_cross_entropy_with_logits(q[:, 1], target, reduction="sum")
        )
        (loss / rows).backward()
        optimizer.step()
        with torch.no_grad():
            ids, place = batch["puzzle_identifiers"].unique(return_inverse=True)
            sign = torch.zeros(len(ids), leaf.shape[1], device=leaf.device).index_add_(0, place, leaf.grad).sign()
            table = model.puzzle_emb.weight
            table[ids] = table[ids] * (1 - PUZZLE_LR * PUZZLE_WEIGHT_DECAY) - PUZZLE_LR * sign
        return loss.item(), logits.detach(), q.detach()

    return step


def inference(model: Plain, batch: dict[str, Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    "A function that runs one segment and returns its logits and halting values."
    z_H, z_L = model.start(len(batch["inputs"]))
    puzzles = model.puzzle_emb(batch["puzzle_identifiers"])

    @torch.no_grad()
    def segment() -> tuple[Tensor, Tensor]:
        nonlocal z_H, z_L
        z_H, z_L, logits, q = model(z_H, z_L, batch["inputs"], puzzles)
        return logits, q

    return segment
