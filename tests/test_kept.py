"""Checkpoints that were trained before the loader was one, as users have them: each still loads, and says what it said then.

`kept/outputs.json` holds for each what it was asked and the logits that the code of that time gave. None of it is ever made
again: a checkpoint that no longer loads is a promise broken, not a file out of date.
"""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

from hrm.core import checkpoint
from hrm.core.device import pick

KEPT = Path(__file__).with_name("kept")
OUTPUTS = json.loads((KEPT / "outputs.json").read_text())


def boards(model, asked) -> torch.Tensor:
    "Logits of an HRM on boards or rows of text, after its second segment."
    inputs = torch.tensor(asked["inputs"])
    batch = {"inputs": inputs, "labels": inputs}
    if model.config.puzzle_emb_ndim:
        batch["puzzle_identifiers"] = torch.tensor(asked["puzzle_identifiers"])
    carry = model.start(batch)
    for _ in range(2):
        carry, outputs = model(carry)
    return outputs["logits"]


SAID = {
    "sudoku": boards,
    "arc": boards,
    "dialogue": boards,
    "text": lambda model, asked: model(torch.tensor(asked["inputs"])).logits[-1],
    "routing": lambda model, asked: model(torch.tensor(asked["values"]), torch.tensor(asked["visible"]))["pointer"][-1],
    "memory": lambda model, asked: model({"inputs": torch.tensor(asked["inputs"])})["logits"][-1],
}


@torch.no_grad()
def said(system: str, model, asked) -> torch.Tensor:  # [N] of two positions, eight logits of each at most
    return SAID[system](model, asked)[:, [2, -1], :8].flatten().float()


def load(system: str, folder: Path):
    "The model, as its system loads it."
    return import_module(f"hrm.{system}.model").load(folder, placement=pick("cpu"))[0]


@pytest.mark.parametrize("system", OUTPUTS)
def test_a_checkpoint_from_before_says_what_it_said(system):
    model = load(system, KEPT / system)
    assert not model.training
    torch.testing.assert_close(
        said(system, model, OUTPUTS[system]["asked"]), torch.tensor(OUTPUTS[system]["said"]), rtol=1e-5, atol=1e-5
    )
    checkpoint.read(KEPT / system).verify()


@pytest.mark.parametrize("system", OUTPUTS)
def test_a_checkpoint_from_before_there_were_hashes(system, tmp_path):
    shutil.copytree(KEPT / system, tmp_path / "old")
    meta = json.loads((KEPT / system / "meta.json").read_text())
    (tmp_path / "old" / "meta.json").write_text(
        json.dumps({key: value for key, value in meta.items() if not key.endswith("_sha256")})
    )
    assert torch.equal(
        *(said(system, load(system, folder), OUTPUTS[system]["asked"]) for folder in (KEPT / system, tmp_path / "old"))
    )
    with pytest.raises(checkpoint.CheckpointError, match="not in meta.json"):
        checkpoint.read(tmp_path / "old").verify()


def test_one_of_each_training_is_kept():
    assert set(OUTPUTS) == set(SAID) == {folder.name for folder in KEPT.iterdir() if folder.is_dir()}
    assert all((KEPT / system / "model.safetensors").stat().st_size <= 150_000 for system in OUTPUTS)
