"""Every number of the official TRM that a fixture holds is reproduced.

`HRM_PARITY_TRM_DIR` names the folder of the fixtures (default: `parity_trm` in the shared data); one test per file.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import SHARED, shared
from test_parity import close, part, read

from hrm.core.checkpoint import CheckpointError, load_official, official_names
from hrm.core.losses import CROSS_ENTROPY
from hrm.core.optim import SignSGD, average
from hrm.core.trm import TRM, TRMConfig, build

FOLDER = Path(os.environ.get("HRM_PARITY_TRM_DIR", SHARED / "parity_trm"))
FILES = sorted(FOLDER.glob("*.safetensors"))


def test_parity_fixtures_are_there():
    if not FILES:
        pytest.skip(f"no *.safetensors in {FOLDER}: set HRM_PARITY_TRM_DIR to the folder of the fixtures")
    assert all(file.stat().st_size for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_parity(file):
    tensors, meta = read(file)
    config, rates, seen = json.loads(meta["config"]), json.loads(meta["rates"]), set()

    def check(ours, name):
        close(ours, tensors[name], name)
        seen.add(name)

    def same(ours, name):
        assert torch.equal(ours.to(tensors[name].dtype), tensors[name]), name
        seen.add(name)

    # the two cross-entropies
    logits, labels = tensors["loss.logits"], tensors["loss.labels"]
    for kind, function in CROSS_ENTROPY.items():
        check(function(logits, labels), f"loss.{kind}")
    seen |= {"loss.logits", "loss.labels"}

    # evaluation: every segment, from a fresh carry
    model = load_official(part(tensors, "weights."), config)
    assert isinstance(model, TRM)
    batch = {name: value.long() for name, value in part(tensors, "batch.").items()}
    carry = model.start(batch)
    with torch.no_grad():
        for step in range(1, config["halt_max_steps"] + 1):
            carry, outputs = model(carry)
            prefix = f"eval.step{step}."
            for name in ("z_H", "z_L"):
                check(getattr(carry, name), prefix + name)
            check(outputs["logits"], prefix + "logits")
            for name in ("q_halt", "q_continue"):
                check(outputs[name], f"{prefix}{name}_logits")
            check(model.loss(carry, outputs)[0], prefix + "loss")
            same(carry.steps, prefix + "steps")
            same(carry.halted, prefix + "halted")
    assert carry.halted.all()

    def trained(prefix: str, **changes):
        "Two training segments from a fresh carry, the gradients of the first, and the table after one step."
        model = load_official(part(tensors, "weights."), config | changes).train()
        least = torch.zeros(len(batch["inputs"]), dtype=torch.int32)  # the fixtures have no exploration
        carry = model.start(batch)
        for which in ("", "second."):
            carry, outputs = model(carry, least)
            loss, parts = model.loss(carry, outputs)
            check(loss, f"{prefix}{which}loss")
            check(parts["lm_loss"], f"{prefix}{which}lm_loss")
            check(parts["q_halt_loss"], f"{prefix}{which}q_halt_loss")
            same(outputs["logits"].argmax(-1), f"{prefix}{which}preds")
            same(carry.steps, f"{prefix}{which}steps")
            same(carry.halted, f"{prefix}{which}halted")
            if changes:
                check(parts["q_continue_loss"], f"{prefix}{which}q_continue_loss")
                check(outputs["target_continue"], f"{prefix}{which}target_q_continue")
            if which == "":
                (loss / len(batch["inputs"])).backward()
                parameters = {f"model.{name}": p for name, p in model.named_parameters()}
                for name in part(tensors, f"{prefix}grad.model."):
                    check(parameters[f"model.{name}"].grad, f"{prefix}grad.model.{name}")
                assert len(part(tensors, f"{prefix}grad.model.")) == len(parameters)
                table = model.inner.puzzle_emb
                check(table.used[-1][1].grad, f"{prefix}grad.puzzle_emb_local")
                if not changes:
                    before = table.weights.clone()
                    SignSGD(table, lr=rates["puzzle_emb_lr"], weight_decay=rates["puzzle_emb_weight_decay"]).step()
                    check(table.weights, f"{prefix}puzzle_emb_after_signsgd")
                    table.weights.copy_(before)
            # the same weights, the carry kept, halted rows take the same batch again
            carry = model.admit(carry, {name: value[carry.halted] for name, value in batch.items()})

    trained("train.")
    if any(name.startswith("continue.") for name in tensors):
        trained("continue.", no_ACT_continue=False)

    # the average of the weights: registered with the first values, then updated twice
    weights = torch.nn.ParameterDict(part(tensors, "ema.step0.param."))
    averaged = average(weights, rates["ema_rate"])
    for step in range(3):
        weights.load_state_dict(part(tensors, f"ema.step{step}.param."))
        averaged.update_parameters(weights)
        seen |= {f"ema.step{step}.param.{name}" for name in weights}
        for name, value in averaged.module.items() if step else ():
            check(value, f"ema.step{step}.shadow.{name}")

    left = {n for n in tensors if not n.startswith(("weights.", "batch."))} - seen
    assert not left, f"tensors of the fixture that nothing was compared with: {sorted(left)}"


def test_the_released_checkpoint_fits():
    "Its names and shapes, as the logs of somebody who loaded it have them; 455 million values that nobody needs here."
    told = json.loads(shared("data/checkpoints/trm_released_keys.json").read_text())
    config = {name: value for name, value in told["config"].items() if name not in ("no_ACT_continue",)}
    with torch.device("meta"):
        model = build(TRMConfig(**config))
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == official_names(told["keys"])


def test_a_released_file_of_a_small_model_is_read_with_its_own_configuration():
    "Prefixes of a compiled run, states in bfloat16, and the keys of the original's arch that say nothing of a shape."
    config = dict(
        name="recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
        loss={"name": "losses@ACTLossHead"},
        batch_size=8,
        seq_len=9,
        vocab_size=5,
        num_puzzle_identifiers=3,
        puzzle_emb_ndim=16,
        puzzle_emb_len=4,
        H_cycles=2,
        L_cycles=2,
        H_layers=0,
        L_layers=1,
        hidden_size=16,
        expansion=4,
        num_heads=2,
        pos_encodings="none",
        halt_max_steps=3,
        halt_exploration_prob=0.1,
        mlp_t=True,
        no_ACT_continue=True,
    )
    own = {
        name: value for name, value in config.items() if name not in ("name", "loss", "batch_size", "no_ACT_continue")
    }
    weights = build(TRMConfig(**own), generator=torch.Generator().manual_seed(0)).state_dict()
    wrapped = {f"_orig_mod.model.{name}": tensor for name, tensor in weights.items()}
    for name in ("H_init", "L_init"):
        wrapped[f"_orig_mod.model.inner.{name}"] = weights[f"inner.{name}"].bfloat16()
    model = load_official(wrapped, config)
    assert model.config.halting == "bce" and model.inner.prefix == 4
    assert torch.equal(model.inner.H_init, weights["inner.H_init"].bfloat16().float())
    wrapped["_orig_mod.model.inner.L_level.layers.0.self_attn.o_proj.weight"] = torch.zeros(16, 16)
    with pytest.raises(CheckpointError, match="unexpected inner.L_level.layers.0.self_attn.o_proj.weight"):
        load_official(wrapped, config)
