"""Every number of the official implementation that a fixture holds is reproduced.

`HRM_PARITY_DIR` names the folder of the fixtures (default: `parity` in the shared data); one test per file.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from conftest import SHARED
from hrm.core.checkpoint import load_official
from hrm.core.losses import CROSS_ENTROPY
from hrm.core.optim import SignSGD

FOLDER = Path(os.environ.get("HRM_PARITY_DIR", SHARED / "parity"))
FILES = sorted(FOLDER.glob("*.safetensors"))
TOLERANCE = 1e-5  # max|a - b| <= TOLERANCE * max|b|


def close(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    ours, theirs = ours.detach().double().reshape(theirs.shape), theirs.double()
    error, scale = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert error <= TOLERANCE * scale, f"{name}: off by {error:.2e}, largest value {scale:.2e}"


def read(file: Path) -> tuple[dict, dict]:
    with safe_open(file, framework="pt") as f:
        return {name: f.get_tensor(name) for name in f.keys()}, f.metadata()


def part(tensors: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def test_parity_fixtures_are_there():
    if not FILES:
        pytest.skip(f"no *.safetensors in {FOLDER}: set HRM_PARITY_DIR to the folder of the fixtures")
    assert all(file.stat().st_size for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_parity(file):
    tensors, meta = read(file)
    config, seen = json.loads(meta["config"]), set()

    def check(ours, name):
        close(ours, tensors[name], name)
        seen.add(name)

    # the two cross-entropies
    logits, labels = tensors["loss.logits"], tensors["loss.labels"]
    for kind, function in CROSS_ENTROPY.items():
        check(function(logits, labels), f"loss.{kind}")
    seen |= {"loss.logits", "loss.labels"}

    # evaluation: every segment, from a fresh carry
    model = load_official(part(tensors, "weights."), config)
    batch = part(tensors, "batch.")
    carry = model.start(batch)
    with torch.no_grad():
        for step in range(1, config["halt_max_steps"] + 1):
            carry, outputs = model(carry)
            for name in ("logits", "q_halt", "q_continue"):
                check(outputs[name], f"eval.step{step}.{name}")
            check(model.loss(carry, outputs)[0], f"eval.step{step}.loss")
    assert carry.halted.all()

    # training: the first segment, its gradients, and the sparse embedding after one step
    model.train()
    least = torch.zeros(len(batch["inputs"]), dtype=torch.int32)  # the fixtures have no exploration
    carry, outputs = model(model.start(batch), least)
    loss, parts = model.loss(carry, outputs)
    (loss / len(batch["inputs"])).backward()
    check(loss, "train.loss")
    for name in ("lm_loss", "q_halt_loss", "q_continue_loss"):
        check(parts[name], f"train.{name}")
    parameters = {f"model.{name}": p for name, p in model.named_parameters()}
    for name in part(tensors, "train.grad.model."):
        check(parameters[f"model.{name}"].grad, f"train.grad.model.{name}")
    assert len(part(tensors, "train.grad.model.")) == len(parameters)
    if config["puzzle_emb_ndim"]:
        table = model.inner.puzzle_emb
        check(table.used[-1][1].grad, "train.grad.puzzle_emb_local")
        before = table.weights.clone()
        SignSGD(table, lr=1e-2, weight_decay=0.1).step()  # the rates in the fixtures' metadata
        check(table.weights, "train.puzzle_emb_after_signsgd")
        table.weights.copy_(before)

    # the segment after it: same weights, the carry kept, halted rows take the same batch again
    carry = model.admit(carry, {name: value[carry.halted] for name, value in batch.items()})
    carry, outputs = model(carry, least)
    check(model.loss(carry, outputs)[0], "train.second.loss")

    left = {n for n in tensors if not n.startswith(("weights.", "batch."))} - seen
    assert not left, f"tensors of the fixture that nothing was compared with: {sorted(left)}"


def test_real_state_dict_of_the_official_classes():
    "Another person's checkpoint: an embedding narrower than the model, one layer each, expansion 2."
    from conftest import shared

    state = torch.load(shared("data/checkpoints/hrm_cpu_model.pth"), map_location="cpu", weights_only=True)
    state = state.get("model_state_dict", state)
    config = dict(
        batch_size=1,
        seq_len=36,
        vocab_size=12,
        num_puzzle_identifiers=2,
        puzzle_emb_ndim=32,
        H_cycles=2,
        L_cycles=2,
        H_layers=1,
        L_layers=1,
        hidden_size=64,
        expansion=2,
        num_heads=4,
        pos_encodings="rope",
        halt_max_steps=6,
        halt_exploration_prob=0.1,
    )
    model = load_official(state, config)
    ids = torch.zeros(2, 36, dtype=torch.long)
    with torch.no_grad():
        _, outputs = model(model.start({"inputs": ids, "labels": ids, "puzzle_identifiers": torch.tensor([0, 1])}))
    assert outputs["logits"].isfinite().all() and outputs["logits"].std() > 0.1
    assert len(model.state_dict()) == len(state) == 15
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
