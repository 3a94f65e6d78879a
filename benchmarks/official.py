"""The official HRM, from a checkout of github.com/sapientinc/HRM, as `throughput.py` takes turns with it.

Nothing of it is in this repository: a folder is given, and its `models` package is imported from there. Two things that
need a GPU are stood in for. Attention is torch's own in place of flash-attn's, and Adam-atan2 is ours in place of its CUDA
kernel. The model, the loss head and the sign step of the puzzle embedding are its own.
"""

import hashlib
import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm.core.hrm import HRM
from hrm.core.optim import AdamATan2, OptimConfig

NEEDED = ("models/hrm/hrm_act_v1.py", "models/losses.py", "models/sparse_embedding.py")
STAND_INS = ("flash_attn_interface", "flash_attn")  # version 3 and version 2, in the order in which it looks
CONFIG = (
    "seq_len puzzle_emb_ndim num_puzzle_identifiers vocab_size H_cycles L_cycles H_layers L_layers hidden_size expansion "
    "num_heads pos_encodings rms_norm_eps rope_theta halt_max_steps"
).split()
OUTPUTS = ("logits", "q_halt_logits", "q_continue_logits")


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:  # all [B, S, H, K]
    "What the function of this name in flash-attn computes, by torch's fused attention."
    query, key, value = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(1, 2).contiguous()


class Official(NamedTuple):
    "What is used of a checkout."

    model: type[nn.Module]
    head: type[nn.Module]
    sign: type[torch.optim.Optimizer]
    about: dict[str, str]  # for the record: a name and a hash, no path


def load(folder: str | Path) -> Official:
    """Import the `models` package of a checkout. Raises SystemExit where files are missing.

    The package stays in `sys.modules`, where torch.compile looks its functions up again; a second call replaces it.
    """
    folder = Path(folder).resolve()
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise SystemExit(f"{folder} is no checkout of github.com/sapientinc/HRM: it has no {', '.join(missing)}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        del sys.modules[name]
    package = sys.modules["models"] = ModuleType("models")  # by hand: nothing else that is called `models` can be meant
    package.__path__ = [str(folder / "models")]
    installed = {name: sys.modules.get(name) for name in STAND_INS}
    for name in STAND_INS:
        sys.modules[name] = stand_in = ModuleType(name)
        stand_in.__spec__, stand_in.flash_attn_func = ModuleSpec(name, None), flash_attn_func
    try:
        act, losses, sparse = (importlib.import_module(name.removesuffix(".py").replace("/", ".")) for name in NEEDED)
    finally:
        for name, module in installed.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    content = hashlib.sha256()
    for file in sorted((folder / "models").rglob("*.py")):
        content.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return Official(
        act.HierarchicalReasoningModel_ACTV1,
        losses.ACTLossHead,
        sparse.CastedSparseEmbeddingSignSGD_Distributed,
        {
            "name": f"{folder.name} (github.com/sapientinc/HRM)",
            "sha256": content.hexdigest(),  # of models/**/*.py, names and contents
            "attention": "torch's scaled_dot_product_attention in place of flash-attn",
            "optimizer": "Adam-atan2 of hrm.core.optim in place of the CUDA kernel; its own sign step",
            "compiled": "training: torch.compile(loss head, dynamic=False); inference: torch.compile(model, dynamic=False)",
        },
    )


def build(official: Official, ours: HRM, rows: int) -> nn.Module:
    "Its loss head around its model: our configuration, weights (loaded strictly), device and precision; no exploration."
    config = {name: getattr(ours.config, name) for name in CONFIG}
    dtype = str(ours.inner.dtype).removeprefix("torch.")
    with torch.device(ours.inner.H_init.device):
        model = official.model(config | dict(batch_size=rows, halt_exploration_prob=0.0, forward_dtype=dtype))
        head = official.head(model, loss_type="stablemax_cross_entropy")
    model.load_state_dict(ours.state_dict())
    return head


def told(outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    "Logits [B, S, V] and halting values [B, 2]."
    logits, halt, go_on = (outputs[name] for name in OUTPUTS)
    return logits, torch.stack((halt, go_on), dim=-1)


def training(
    official: Official, ours: HRM, batch: dict[str, Tensor], optim: OptimConfig, compiled: bool = False
) -> Callable[[], tuple[float, Tensor, Tensor]]:
    "A function that makes one training step, as `train_batch` of its pretrain.py: loss, logits and halting values."
    rows = len(batch["inputs"])
    head = build(official, ours, rows).train()
    if compiled:
        head = torch.compile(head, dynamic=False)
    decay = optim.puzzle_emb_weight_decay
    optimizers = (
        official.sign(head.model.puzzle_emb.buffers(), lr=optim.puzzle_emb_lr, weight_decay=decay, world_size=1),
        AdamATan2(head.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay),
    )
    with torch.device(batch["inputs"].device):
        carry = head.initial_carry(batch)

    def step() -> tuple[float, Tensor, Tensor]:
        nonlocal carry
        carry, loss, _, outputs, _ = head(carry=carry, batch=batch, return_keys=OUTPUTS)
        (loss / rows).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item(), *told(outputs)

    return step


def inference(
    official: Official, ours: HRM, batch: dict[str, Tensor], compiled: bool = False
) -> Callable[[], tuple[Tensor, Tensor]]:
    "A function that runs one segment of its model, without the loss: logits and halting values."
    model = build(official, ours, len(batch["inputs"])).eval().model
    with torch.device(batch["inputs"].device):
        carry = model.initial_carry(batch)
    run = torch.compile(model, dynamic=False) if compiled else model

    @torch.no_grad()
    def segment() -> tuple[Tensor, Tensor]:
        nonlocal carry
        carry, outputs = run(carry=carry, batch=batch)
        return told(outputs)

    return segment
