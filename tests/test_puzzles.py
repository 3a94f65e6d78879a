"What grid puzzles share: the official folder for any kind of them, marks, and what a run in segments records."

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hrm.core.config import ConfigError, validate
from hrm.core.device import pick, seeded
from hrm.core.errors import DataError
from hrm.core.generate import ChatSession, Sampling
from hrm.core.hrm import HRM, HRMConfig
from hrm.dialogue import model as dialogue_model
from hrm.memory.evaluate import ask, load_model
from hrm.memory.tasks import Question
from hrm.puzzles.data import Examples, Kind, as_batch, read_part, write_part
from hrm.puzzles.evaluate import METRICS, at_segment, calibration, marks, rollout, stopping_segment, think
from hrm.puzzles.train import PuzzleRunConfig
from hrm.sudoku.evaluate import digits
from hrm.sudoku.model import load
from hrm.sudoku.rules import extends, from_text, valid
from hrm.text import model as text_model
from hrm.text.chat import Settings, TextChat, mode_of
from hrm.tools.commands.opening import SHIPPED

KINDS = {"shared": Kind("squares", {4: 6}, "4", 1), "own": Kind("squares", {4: 6}, "4", 0, identified=True)}
KEYS = ("inputs", "labels", "identifiers", "groups")
ARCH = dict(
    hidden_size=32,
    num_heads=2,
    H_layers=1,
    L_layers=1,
    H_cycles=1,
    L_cycles=1,
    expansion=2,
    pos_encodings="rope",
    halt_max_steps=3,
    puzzle_emb_ndim=32,
)


def examples(kind: str, seed: int = 0) -> Examples:
    "Three groups of one to three puzzles, each of one to three rows where puzzles are told apart."
    rng, rows = np.random.default_rng(seed), []
    for group in range(3):
        for _ in range(rng.integers(1, 4)):
            number = max((row[0] for row in rows), default=0) + 1 if kind == "own" else 0
            rows += [(number, group)] * (rng.integers(1, 4) if kind == "own" else 1)
    identifiers, groups = (np.array(column) for column in zip(*rows))
    grids = rng.integers(KINDS[kind].lowest, 6, (2, len(rows), 4)).astype(np.uint8)
    return Examples(
        *grids, identifiers.astype(np.int32), groups, ["<blank>", *(f"p{n}" for n in range(1, identifiers.max() + 1))]
    )


@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, kind, seed):
    folder, data, stars = (
        tmp_path_factory.mktemp("part"),
        examples(kind, seed),
        np.random.default_rng(seed).integers(0, 5, 40),
    )
    at = write_part(data, KINDS[kind], folder, "test", {"stars": stars[: len(data)]}, {"words": ["a"] * len(data)})
    again, more = read_part(at, KINDS[kind], {"stars": -1, "moons": 7})
    assert all(np.array_equal(getattr(again, key), getattr(data, key)) for key in KEYS) and again.names == data.names
    assert np.array_equal(more["stars"], stars[: len(data)]) and (more["moons"] == 7).all()
    meta = json.loads((at / "dataset.json").read_text())
    assert meta["total_puzzles"] == (len(data) if kind == "shared" else len(data.names) - 1)
    write_part(data, KINDS[kind], folder, "test", lists={"words": None})
    assert not (at / "words.json").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_several_sets_are_read_as_one(tmp_path, kind):
    data = examples(kind)
    at = write_part(data, KINDS[kind], tmp_path, "train")
    for file in at.glob("all__*.npy"):
        file.with_name(file.name.replace("all__", "more__")).write_bytes(file.read_bytes())
    meta = json.loads((at / "dataset.json").read_text())
    (at / "dataset.json").write_text(json.dumps(meta | {"sets": ["all", "more"]}))
    both, _ = read_part(at, KINDS[kind])
    assert np.array_equal(both.inputs, np.concatenate([data.inputs] * 2)) and np.array_equal(
        both.identifiers, np.tile(data.identifiers, 2)
    )
    assert both.groups.tolist() == [*data.groups, *data.groups + 3]


@pytest.mark.parametrize(
    "file, make, said",
    [
        (
            "dataset.json",
            lambda p: p.write_text(p.read_text().replace('"seq_len": 4', '"seq_len": 4.0')),
            "seq_len is 4.0; allowed for squares is 4",
        ),
        (
            "dataset.json",
            lambda p: p.write_text(p.read_text().replace('"pad_id": 0', '"pad_id": true')),
            "pad_id is True",
        ),
        (
            "dataset.json",
            lambda p: p.write_text(p.read_text().replace('"ignore_label_id": 0', '"ignore_label_id": 1')),
            "ignore_label_id is 1",
        ),
        (
            "all__inputs.npy",
            lambda p: np.save(p, np.where(np.load(p) > 0, 9, 9)),
            "all__inputs.npy:0: token 9 to 9; allowed are 0 to 5",
        ),
        ("all__stars.npy", lambda p: np.save(p, np.arange(3)), "3 entries; allowed are"),
        ("all__puzzle_identifiers.npy", lambda p: np.save(p, np.load(p)[1:]), "identifiers up to"),
    ],
)
def test_broken_parts_are_named(tmp_path, file, make, said):
    data = examples("own")
    at = write_part(data, KINDS["own"], tmp_path, "test", {"stars": np.zeros(len(data), int)})
    make(at / file)
    with pytest.raises(DataError) as error:
        read_part(at, KINDS["own"], {"stars": 0})
    assert str(at / file) in str(error.value) and said in str(error.value)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_marks_cell_by_cell(seed):
    rng = np.random.default_rng(seed)
    labels, answers = rng.integers(0, 3, (6, 5)), rng.integers(0, 3, (6, 5))
    labels[:, 0], answers[:2] = 1, labels[:2]  # something is asked of each; two are right
    found = marks(answers, labels)
    for row in range(6):
        asked = [(a, b) for a, b in zip(answers[row], labels[row]) if b]
        right = sum(a == b for a, b in asked)
        assert found.iloc[row].tolist() == [right / len(asked), float(right == len(asked))]


@pytest.mark.parametrize("halting", ["q", "bce", "fixed"])
def test_a_run_in_segments_records_what_the_rule_would_do(halting):
    model = HRM(HRMConfig(**ARCH, halting=halting, vocab_size=5, seq_len=9), generator=seeded(0)).eval()
    with torch.no_grad():
        model.inner.q_head.bias.copy_(torch.tensor([0.01, 0.0]))
    inputs = torch.randint(1, 5, (20, 9), generator=seeded(1))
    result = rollout(model, inputs, segments=4, batch_size=7)
    rows = as_batch(inputs, inputs, torch.zeros(20))
    with torch.no_grad():
        seen = [(outputs["q_halt"], outputs["q_continue"], stops) for _, outputs, stops in think(model, rows, 4)]
    for t, (go, on, stops) in enumerate(seen):
        assert torch.allclose(torch.from_numpy(result.q_halt[:, t]), go.float(), atol=1e-5)
        assert (stops == ((go > (on if halting == "q" else 0)) | (t == 3))).all()
    assert (stopping_segment(result) == result.halted.argmax(1) + 1).all() and result.halted[:, -1].all()
    assert calibration(result, inputs.numpy())["count"].sum() == 80


def test_the_best_checkpoint_is_by_a_metric_of_the_system():
    class Run(PuzzleRunConfig):
        metrics = METRICS

    values = dict(arch=ARCH, optim=dict(lr=1e-3), batch_size=2, cross_entropy="softmax", evaluate_puzzles=1)
    loop = dict(steps=2, evaluate_every=1, log_every=1)
    validate(values | {"loop": loop | {"best": "token_accuracy"}}, Run)
    with pytest.raises(ConfigError, match="is none of the held-out metrics token_accuracy, exact_accuracy"):
        validate(values | {"loop": loop | {"best": "valid"}}, Run)


# ----------------------------------------------------- the model that travels


@pytest.mark.parametrize("name", ["sudoku", "sudoku_6x6"])
def test_the_shipped_models_repeat_their_recorded_answers(name):
    folder = SHIPPED / name
    model, meta = load(folder, placement=pick("cpu", "float32"))
    puzzles, answers = (np.stack([from_text(text) for text in part]) for part in zip(*meta["answers"].items()))
    result = rollout(model, torch.from_numpy(puzzles.astype(np.int64)) + 1)
    assert len(puzzles) == 8 and (digits(at_segment(result)) == answers).all()
    assert valid(answers).all() and extends(puzzles, answers).all()
    assert meta["licence"] == "Apache-2.0" and meta["stored"] in ("float16", "float32") and 0 < meta["figure"] <= 1
    if name == "sudoku":
        assert sum(parameter.numel() for parameter in model.parameters()) == 67_106
        assert 0.5 <= meta["halting_threshold"] < 1


def test_the_shipped_models_of_language_repeat_their_recorded_answers():
    exact = pick("cpu", "float32")
    model, tokenizer, meta = dialogue_model.load(SHIPPED / "dialogue", placement=exact)
    assert meta["answers"] and all(meta["answers"].values())
    for text, reply in meta["answers"].items():
        session = ChatSession(model, tokenizer, Sampling(temperature=0.0), seeded(0), meta["system"])
        assert "".join(session.say(text)) == reply
    model, tokenizer, meta = text_model.load(SHIPPED / "text", placement=exact)
    for text, more in meta["answers"].items():
        chat = TextChat(model, tokenizer, seeded(0), Settings(mode=mode_of(model), temperature=0, limit=200))
        assert "".join(chat.say(text)) == more and len(more) == 200
    loaded = load_model(SHIPPED / "memory")
    questions = [Question(text, "") for text in loaded.meta["answers"]]
    said = [answer.text for answer in ask(loaded.model, loaded.tokenizer, questions)]
    assert said == list(loaded.meta["answers"].values()) and len(said) == 8


def test_the_shipped_models_are_small():
    assert {folder.name for folder in SHIPPED.iterdir()} >= {"sudoku", "maze", "dialogue", "text", "memory"}
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < 4_000_000
