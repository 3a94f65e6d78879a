"Training and testing of the memory part: losses, going on, logs, exact match, early exit, old checkpoints, chat, commands."

import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hrm.core import checkpoint
from hrm.core.checkpoint import CheckpointError
from hrm.core.config import ConfigError
from hrm.core.device import pick, seeded
from hrm.core.generate import Sampling
from hrm.core.losses import IGNORE
from hrm.core.optim import OptimConfig
from hrm.core.resume import Stopped
from hrm.core.task import Options
from hrm.memory.chat import MemoryChat, beside, memory_loop
from hrm.memory.data import DataConfig, load, rows
from hrm.memory.data import build as build_data
from hrm.memory.evaluate import (
    Answer,
    EvaluateConfig,
    ascii_safe,
    ask,
    distinct,
    drop_memory_state,
    exact_match,
    exit_curve,
    fits,
    load_model,
    longest_run,
    matches,
    pathologies,
    scores,
    verdict,
)
from hrm.memory.model import MemoryArch, build
from hrm.memory.tasks import Question, stored_questions
from hrm.memory.train import (
    RunConfig,
    TrainConfig,
    epoch_steps,
    epoch_table,
    halting_targets,
    log_faults,
    measure,
    pass_loss,
    run,
    run_all,
)
from hrm.tools.cli import app, main

ARCH = MemoryArch(
    hidden_size=16,
    layers=1,
    num_heads=2,
    expansion=1,
    memory_size=8,
    trm_heads=2,
    micro_steps=1,
    dropout=0.0,
    threshold=0.5,
)
RECIPE = RunConfig(
    sets={"reasoning": 8, "memory": 4},
    arch=ARCH,
    optim=OptimConfig(name="adamw", lr=3e-3),
    epochs=2,
    log_every=2,
    device="cpu",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("memory")
    build_data(DataConfig(seed=0, train=36, held_out=24, test=24), place / "data")
    return place


@pytest.fixture(scope="module")
def data(folder):
    return load(folder / "data")


@pytest.fixture(scope="module")
def trained(folder):
    "A finished run of two epochs."
    return run(
        "reasoning",
        RECIPE,
        0,
        folder / "data",
        folder / "train" / "reasoning",
        Options(folder / "resume", progress=False),
    )


@pytest.fixture(scope="module")
def loaded(trained):
    return load_model(trained.folder / "best")


def same(a, b) -> bool:
    one, two = checkpoint.read(a).weights, checkpoint.read(b).weights
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


# --- losses


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 6), st.integers(0, 2**31))
def test_halting_targets_position_by_position(batch, positions, seed):
    g = seeded(seed)
    labels = torch.where(
        torch.rand(batch, positions, generator=g) < 0.5, torch.randint(3, (batch, positions), generator=g), IGNORE
    )
    count = int((labels != IGNORE).sum())
    logits = torch.randn(2, count, 3, generator=g)
    found = halting_targets(logits, labels)
    for step in range(2):
        answer = torch.full_like(labels, -1)
        answer[labels != IGNORE] = logits[step].argmax(-1)
        for b in range(batch):
            told = [s for s in range(positions) if labels[b, s] != IGNORE]
            whole = all(answer[b, s] == labels[b, s] for s in told)
            assert found[step, b].tolist() == [
                float(answer[b, s] == labels[b, s]) if s in told else float(whole) for s in range(positions)
            ]


def test_the_loss_of_knowing_nothing_and_of_knowing_all():
    labels = torch.tensor([[IGNORE, 1, 2], [IGNORE, IGNORE, 3]])
    batch, weights = (
        {"labels": labels, "valid": torch.ones(2, 3, dtype=torch.bool)},
        torch.tensor([0.33, 0.5, 0.75, 1.0]),
    )
    ran = torch.ones(3, 2, 3, dtype=torch.bool)
    blank = {
        "logits": torch.zeros(4, 3, 8),
        "halting": torch.zeros(3, 2, 3),
        "ran": ran,
        "gate_entropy": torch.tensor(0.5),
    }
    loss, parts = pass_loss(blank, batch, weights, 0.1, 0.001)
    assert loss.item() == pytest.approx(math.log(8) + 0.1 * math.log(2) - 0.001 * 0.5, abs=1e-6)
    assert parts["steps"] == 3 and parts["lm_loss"].item() == pytest.approx(math.log(8))
    right = 50 * torch.nn.functional.one_hot(torch.tensor([1, 2, 3]), 8).float().expand(4, 3, 8)
    loss, parts = pass_loss(blank | {"logits": right, "halting": torch.full((3, 2, 3), 50.0)}, batch, weights, 0.1, 0.0)
    assert loss.item() == pytest.approx(0, abs=1e-6) and parts["accuracy"] == 1
    steps = [blank["logits"][0].clone() for _ in range(4)]
    steps[3] = right[3]  # only the last answer is right: its weight is 1 of 2.58
    loss, _ = pass_loss(blank | {"logits": torch.stack(steps)}, batch, weights, 0.0, 0.0)
    assert loss.item() == pytest.approx(math.log(8) * 1.58 / 2.58, abs=1e-5)


def test_what_is_not_labelled_does_not_change_the_language_loss(data):
    model = build(ARCH, data.tokenizer.size, data.longest, seeded(0), pick("cpu")).eval()
    batch = {name: value[:6].clone() for name, value in data.train["reasoning"].items()}
    at = batch["labels"] != IGNORE
    before = pass_loss(model(batch, at=at, early=False), batch, torch.ones(4), 0.0, 0.0)[0]
    for row in range(6):  # whatever stands behind the last answer
        batch["inputs"][row, int(at[row].nonzero().max()) + 1 :] = 9
    assert torch.allclose(
        before, pass_loss(model(batch, at=at, early=False), batch, torch.ones(4), 0.0, 0.0)[0], atol=1e-6
    )


# --- runs


def test_a_run_and_its_checkpoints(trained, data):
    per_epoch = epoch_steps(RECIPE.sets, data)
    assert per_epoch == 6 and trained.metrics["steps"] == 12 and trained.metrics["tflop"] > 0
    assert sorted(path.name for path in trained.folder.iterdir()) == [
        "best",
        "epoch_01",
        "epoch_02",
        "final",
        "log.jsonl",
    ]
    assert same(trained.folder / "epoch_02", trained.folder / "final")
    metas = {name: checkpoint.read(trained.folder / name).meta for name in ("best", "epoch_01", "final")}
    losses = [metas["epoch_01"]["metrics"]["loss"], metas["final"]["metrics"]["loss"]]
    assert metas["best"]["metrics"]["loss"] == min(losses) and metas["best"]["config"]["specialisation"] == "reasoning"
    assert losses[0] < data.entropies["reasoning"]["uniform"] and {"reasoning.exact", "memory.steps"} <= set(
        metas["final"]["metrics"]
    )
    assert log_faults(trained.folder, 2, per_epoch, 2) == []
    table = epoch_table(trained.folder, per_epoch)
    assert table["step"].tolist() == [6, 12] and table["held_out"].tolist() == losses
    assert table["reduction"].iloc[-1] == pytest.approx(1 - losses[1] / losses[0])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_broken_run_goes_on_to_the_same_bits(folder, dropout):
    recipe = RECIPE.model_copy(update={"arch": ARCH.model_copy(update={"dropout": dropout}), "log_every": 1})
    whole = run("whole", recipe, 0, folder / "data", folder / f"whole{dropout}", Options(folder / "r1", progress=False))
    stop = lambda step, row: os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None
    with pytest.raises(Stopped):
        run(
            "whole",
            recipe,
            0,
            folder / "data",
            folder / f"broken{dropout}",
            Options(folder / "r2", progress=False, watch=lambda name: stop),
        )
    assert not (folder / f"broken{dropout}").exists()
    seen = []
    again = run(
        "whole",
        recipe,
        0,
        folder / "data",
        folder / f"broken{dropout}",
        Options(folder / "r2", progress=False, watch=lambda name: lambda step, row: seen.append(step)),
    )
    assert same(whole.folder / "final", again.folder / "final") and again.metrics == whole.metrics
    assert (whole.folder / "log.jsonl").read_bytes() == (again.folder / "log.jsonl").read_bytes()


def test_a_finished_run_is_not_trained_twice(folder):
    config = TrainConfig(
        seed=0,
        runs={
            "reasoning": RECIPE.model_copy(update={"epochs": 1}),
            "memory": RECIPE.model_copy(update={"sets": {"memory": 6}, "epochs": 1, "log_every": 1}),
        },
    )
    stop = {"memory": lambda step, row: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None}
    with pytest.raises(Stopped):
        run_all(config, folder / "data", folder / "all", Options(folder / "r3", progress=False, watch=stop.get))
    seen = {"reasoning": [], "memory": []}
    results = run_all(
        config,
        folder / "data",
        folder / "all",
        Options(folder / "r3", progress=False, watch=lambda name: lambda step, row: seen[name].append(step)),
    )
    assert set(results) == {"reasoning", "memory"} and sorted(set(seen["memory"])) == list(range(1, 7))
    assert not tiny.unfinished(folder / "r3") and not list(
        folder.glob("r3/*/latest")
    )  # what was kept for going on is gone


def test_gaps_in_a_log_are_found(trained, tmp_path):
    place, arguments = tmp_path / "run", (2, 6, 2)
    shutil.copytree(trained.folder, place)
    lines = (place / "log.jsonl").read_text().splitlines(keepends=True)

    def faults(kept):
        (place / "log.jsonl").write_text("".join(kept))
        return log_faults(place, *arguments)

    assert faults(lines) == []
    assert "first difference at step 4" in faults([line for line in lines if json.loads(line)["step"] != 4])[0]
    assert "lm_loss: found 7 rows, expected 6" in faults([*lines, lines[0]])[0]
    assert (
        "held_out.loss: found 1 rows, expected 2"
        in faults([line for line in lines if "held_out.loss" not in line or json.loads(line)["step"] != 12])[0]
    )
    assert (
        "lm_loss: the same value 2.5"
        in faults(
            [json.dumps(json.loads(line) | ({"lm_loss": 2.5} if "lm_loss" in line else {})) + "\n" for line in lines]
        )[0]
    )
    assert any(
        "first difference at step 6" in one
        for one in faults(
            [
                line.replace(str(json.loads(line)["held_out.loss"]), "null") if "held_out.loss" in line else line
                for line in lines
            ]
        )
    )
    wild = [
        line.replace(str(json.loads(line)["lm_loss"]), "Infinity")
        if json.loads(line)["step"] == 4 and "lm_loss" in line
        else line
        for line in lines
    ]
    assert faults(wild) == ["lm_loss: a value that is not finite at step 4"]
    faults(lines)
    shutil.rmtree(place / "best")
    assert log_faults(place, *arguments) == ["checkpoints: best missing"]
    (place / "log.jsonl").unlink()
    assert log_faults(place, *arguments)[0].startswith("log: ")


def test_wrong_recipes_are_refused(folder):
    for change, why in (
        ({"sets": {}}, "at least one set"),
        ({"step_weights": (1.0, 1.0)}, "allowed: 4 weights"),
        ({"sets": {"memory": 0}}, "one row or more"),
    ):
        with pytest.raises(ValueError, match=why):
            RunConfig(**RECIPE.model_dump() | change)
    with pytest.raises(ConfigError, match="speech"):
        run(
            "x",
            RECIPE.model_copy(update={"sets": {"speech": 4}}),
            0,
            folder / "data",
            folder / "x",
            Options(folder / "r4", progress=False),
        )
    assert not (folder / "r4").exists()


# --- asking


def test_answers_do_not_depend_on_company_or_history(loaded, data):
    questions = data.test["memory"][:6] + data.test["reasoning"][:6]
    together = ask(loaded.model, loaded.tokenizer, questions, most=5)
    assert (
        together
        == [ask(loaded.model, loaded.tokenizer, [one], most=5)[0] for one in questions]
        == ask(loaded.model, loaded.tokenizer, questions, most=5, batch=2)
    )
    drawn = [
        ask(loaded.model, loaded.tokenizer, questions[:3], Sampling(temperature=0.7), seed=seed, most=5)
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("task", ["reasoning", "memory"])
def test_exact_in_one_pass_is_exact_match_under_greedy_decoding(data, task):
    model = build(
        ARCH.model_copy(update={"hidden_size": 32, "init_std": 0.15}),
        data.tokenizer.size,
        data.longest,
        seeded(1),
        pick("cpu"),
    )
    questions = data.test[task][:12]
    batch = rows([Question(one.question, one.answer, one.kind) for one in questions], data.tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(200):
        out = model(batch, at=batch["labels"] != IGNORE)
        pass_loss(out, batch, torch.ones(4), 0.1, 0.0)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0 and measure(model.eval(), batch)["exact"] > 0:
            break  # some are known, and most likely not all
        model.train()
    answers = ask(model, data.tokenizer, questions)
    right = [answer.stopped and answer.text == one.answer for answer, one in zip(answers, questions)]
    assert np.mean(right) == pytest.approx(measure(model, batch)["exact"]) and 0 < np.mean(right)


def test_a_lower_threshold_takes_fewer_steps(loaded, data):
    curve = exit_curve(
        loaded.model,
        loaded.tokenizer,
        data.test["reasoning"],
        (1e-6, 0.5, 1 - 1e-6),
        np.random.default_rng(0),
        100,
        most=4,
    )
    assert [row["threshold"] for row in curve] == [None, 1e-6, 0.5, 1 - 1e-6]
    steps = [row["mean_steps"] for row in curve]
    assert steps[0] == 3 and steps[1] == 1 and steps[1] <= steps[2] <= steps[3] <= 3
    assert curve[1]["saved"] == pytest.approx(2 / 3) and curve[0]["changed"] == 0


# --- scores


@given(st.integers(0, 10**17), st.integers(0, 3))
def test_numbers_match_as_numbers(n, zeros):
    assert (
        matches("0" * min(zeros, 18 - len(str(n))) + str(n), str(n))
        and not matches(str(n + 1), str(n))
        and not matches(f"{n}.", str(n))
    )


def test_the_interval_is_over_what_is_asked_about():
    rng = np.random.default_rng(0)
    questions = [Question("?", "1", "sum", "", (1, pair)) for pair in range(20) for _ in range(25)]
    right = [one.numbers[1] < 15 for one in questions]
    estimate = exact_match(questions, right, rng, 4000)
    spread = 1.96 * math.sqrt(0.75 * 0.25 / 20)  # of twenty pairs, not of five hundred questions
    assert estimate.value == 0.75 and estimate.n == 500
    assert estimate.low == pytest.approx(0.75 - spread, abs=0.05) and estimate.high == pytest.approx(
        0.75 + spread, abs=0.05
    )
    for bad in (([], []), (questions, right[:3])):
        with pytest.raises(ValueError, match="one result for each"):
            exact_match(*bad, rng)


def test_all_right_is_not_certain():
    "The exact binomial bound: 0.025 of the time, all of the things that were asked about would come out right at the lower end."
    rng, questions = (
        np.random.default_rng(0),
        [Question("?", "1", "sum", "", (1, pair)) for pair in range(18) for _ in range(9)],
    )
    for right in (True, False):
        found = exact_match(questions, [right] * 162, rng, 50)
        low, high = (found.low, found.high) if right else (1 - found.high, 1 - found.low)
        assert found.value == right and high == 1.0 and low**18 == pytest.approx(0.025), (
            "of eighteen pairs, not of 162 questions"
        )
    assert 0.8 < low < 0.83


def test_what_early_exit_loses_is_counted_question_by_question(loaded, data, monkeypatch):
    "All steps get two of three right, the threshold another two of three: as many, but not the same."
    from hrm.memory import evaluate

    questions = data.test["reasoning"]

    def reply(model, tokenizer, asked, most, threshold, early):
        return [
            Answer(one.answer if number % 3 != (1 if early else 0) else "", (7,), True, (1 if early else 3,))
            for number, one in enumerate(asked)
        ]

    monkeypatch.setattr(evaluate, "ask", reply)
    full, short = exit_curve(loaded.model, loaded.tokenizer, questions, (0.5,), np.random.default_rng(0), 500)
    assert (full["lost"].value, full["lost"].low, full["lost"].high) == (0.0, 0.0, 0.0) and full[
        "exact"
    ].value == pytest.approx(2 / 3)
    assert (
        short["lost"].value == pytest.approx(0)
        and short["lost"].low < 0 < short["lost"].high
        and short["saved"] == pytest.approx(2 / 3)
    )


def test_scores_by_kind_and_distance(data):
    answers = [Answer(one.answer if one.distance < 4 else "nothing", (), True, (1,)) for one in data.test["memory"]]
    found = scores(data.test["memory"], answers, np.random.default_rng(0), 50)
    assert found["all"]["all"].value == 0.5 and {d: v.value for d, v in found["distance"].items()} == {
        d: float(d < 4) for d in range(8)
    }
    assert set(found["kind"]) == {"fact", "count", "colour"} and "distance" not in scores(
        data.test["reasoning"], answers, np.random.default_rng(0), 50
    )
    assert (
        verdict(found["all"]["all"], 0.9) == "fail"
        and verdict(scores(data.test["memory"][:12], answers[:12], np.random.default_rng(0), 50)["all"]["all"], 0.4)
        == "pass"
    )


def test_noise_is_called_noise():
    assert [longest_run(ids) for ids in ([], [5], [1, 1, 1], [1, 2, 2, 1])] == [0, 1, 3, 2]
    assert distinct([[1, 1, 1, 2]], 1) == 0.5 and distinct([[1, 2], [1, 2]], 2) == 0.5 and distinct([[1]], 2) == 1.0
    sum_, colour = (
        Question("Ann has 2 pens and gets 3.", "5", "sum"),
        Question("Paint the cup red. What colour is the cup?", "red", "colour"),
    )
    noise = [Answer("::::::", (7,) * 6, False, (3,)), Answer("the cup is is", (1, 2, 3, 3), True, (3,))]
    good = [Answer("5", (4, 5), True, (1,)), Answer("blue", (6, 7), True, (1,))]
    bad = pathologies([sum_, colour], noise)
    assert bad["longest_run"] == 6 and bad["format"] == 0 and bad["prompt_words"] == 1 and bad["stopped"] == 0.5
    assert bad["distinct_1"] == pytest.approx((1 / 6 + 3 / 4) / 2)
    fine = pathologies([sum_, colour], good)  # a wrong colour has the right form
    assert (fine["longest_run"], fine["format"], fine["prompt_words"], fine["stopped"]) == (1, 1.0, 0.0, 1.0)
    assert not fits(sum_, Answer("5", (4, 5), False, (1,))) and not fits(colour, Answer("5", (4,), True, (1,)))


@given(st.text())
def test_ascii_is_ascii(text):
    assert ascii_safe(text).isascii() and (ascii_safe(text) == text) == text.isascii()


# --- checkpoints of the old kind


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_stale_memory_state_is_dropped(loaded, data, tmp_path, batch):
    stale = {"memory.memory_state": torch.randn(batch, 1, 160)}
    weights, notes = drop_memory_state(loaded.model.state_dict() | stale)
    assert set(weights) == set(loaded.model.state_dict()) and f"[{batch}, 1, 160]" in notes[0] and len(notes) == 1
    file = tmp_path / "best_model.pt"
    torch.save({"model_state_dict": loaded.model.state_dict() | stale}, file)
    file.with_suffix(".json").write_text(
        json.dumps({"config": loaded.meta["config"], "epoch": 1, "global_step": 2700, "best_val_loss": 2.5})
    )
    old = load_model(file)
    assert old.notes == notes and all(
        word in old.text() for word in ("epoch: 1", "global step: 2700", "best held-out loss: 2.5", "dropped")
    )
    questions = data.test["reasoning"][:3]
    assert ask(old.model, old.tokenizer, questions, most=4) == ask(loaded.model, loaded.tokenizer, questions, most=4)


class Harm:
    def __reduce__(self):
        return (os.mkdir, (str(self.place),))


def test_files_that_are_no_checkpoints_are_refused(loaded, tmp_path):
    file = tmp_path / "model.pt"
    harm = Harm()
    harm.place = tmp_path / "done"
    torch.save({"weight": harm}, file)
    file.with_suffix(".json").write_text("{}")
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        load_model(file)
    assert not (tmp_path / "done").exists()
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="model.pt"):
        load_model(file)
    torch.save({"weight": torch.ones(1)}, file)
    with pytest.raises(ConfigError, match="system: memory"):
        load_model(file)
    file.with_suffix(".json").write_text(json.dumps({"config": loaded.meta["config"]}))
    with pytest.raises(CheckpointError, match="missing embed_tokens"):
        load_model(file)
    file.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match="model.json: no such file"):
        load_model(file)


@pytest.mark.parametrize(
    "change, about, why",
    [
        ({"step": "x"}, {}, "step: found 'x'; allowed: a number of steps"),
        ({"best": 3}, {}, "best: found 3"),
        ({"best": {"metric": "loss"}}, {}, "allowed: metric, value and step"),
        ({}, {"per_epoch": 0}, "config, per_epoch: found 0"),
        ({}, {"sets": 3}, "config, sets: found 3"),
        ({}, {"vocab_size": 300}, "vocab_size: found 300; allowed: at least"),
        ({}, {"sets": {"../own": 3}}, 'config, sets: found "../own"; allowed: a name'),
        ({}, {"tokenizer": "merges"}, "config.tokenizer: .*tokens or merges are not lists"),
        (None, {}, "system: memory"),
    ],
)
def test_metadata_that_cannot_be_are_refused_while_loading(trained, tmp_path, change, about, why):
    place = tmp_path / "odd"
    shutil.copytree(trained.folder / "best", place)
    meta = json.loads((place / "meta.json").read_text())
    about = {"tokenizer": meta["config"]["tokenizer"] | {"merges": [5]}} if "tokenizer" in about else about
    odd = [1] if change is None else meta | change | {"config": meta["config"] | about}
    (place / "meta.json").write_text(json.dumps(odd))
    with pytest.raises(ConfigError, match=why) as error:
        load_model(place)
    assert str(place) in str(error.value)


def test_weights_that_are_no_numbers_are_refused(loaded, tmp_path):
    weights = loaded.model.state_dict() | {"halt_head.bias": torch.full((1,), float("nan"))}
    checkpoint.write(tmp_path / "nan", weights, loaded.meta)
    with pytest.raises(CheckpointError, match="nan: halt_head.bias holds values that are no finite numbers .1 of"):
        load_model(tmp_path / "nan")


# --- chat and commands


def test_a_chat_in_lines(folder, trained):
    other = folder / "train" / "memory"
    if not other.exists():
        shutil.copytree(trained.folder, other)
    for path in (folder / "train", folder / "train" / "memory", folder / "train" / "memory" / "best"):
        assert set(beside(path)) == {"reasoning", "memory"}
    said = []
    chat = MemoryChat({name: load_model(path) for name, path in beside(folder / "train").items()}, most=3)
    memory_loop(
        chat,
        [
            "hello",
            "/memory The cup is red. What colour is the cup?",
            "again",
            "/nothing",
            "/prompts",
            "",
            "/q",
            "unheard",
        ],
        said.append,
    )
    text = "".join(said)
    assert (
        text.count("[reasoning,") == 1
        and text.count("[memory,") == 2
        and "/nothing: no such command" in text
        and text.count("expected:") == 6
    )
    assert "unheard" not in text and text.endswith("\n")


def test_the_commands(folder, trained, capsys):
    own = folder / "own.jsonl"
    own.write_text(
        "".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(20)) + "{\n"
    )
    assert main(["memory", "data", "--profile", "smoke", "--source", str(own), "--out", str(folder / "sets")]) == 0
    out = capsys.readouterr()
    assert "own: 16 questions to train on, 2 held out, 2 to test" in out.out and "own.jsonl:21: not JSON" in out.err
    assert (
        main(
            [
                "memory",
                "train",
                "--profile",
                "smoke",
                "--run",
                "memory",
                "--sets",
                "own",
                "--data",
                str(folder / "sets"),
                "--out",
                str(folder / "mine"),
                "--resume",
                str(folder / "going"),
            ]
        )
        == 0
    )
    assert load_model(folder / "mine" / "memory" / "best").meta["config"]["sets"] == {"own": 16}, (
        "as many rows in a step as the run has"
    )
    assert "own.floor 0.0000" in capsys.readouterr().out
    assert (
        main(
            [
                "memory",
                "evaluate",
                "--checkpoint",
                str(trained.folder / "best"),
                "--data",
                str(folder / "data"),
                "--profile",
                "smoke",
                "--ascii",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert (
        out.isascii()
        and "reasoning: exact match" in out
        and "distance 7" in out
        and "global step: " in out
        and "threshold 0.9" in out
    )
    assert (
        main(
            [
                "memory",
                "evaluate",
                "--checkpoint",
                str(trained.folder / "best"),
                "--source",
                str(own),
                "--profile",
                "smoke",
            ]
        )
        == 0
    )
    assert "own: exact match" in capsys.readouterr().out
    typed = CliRunner().invoke(
        app,
        ["chat", "--checkpoint", str(trained.folder / "best"), "--most", "3"],
        input="/reasoning What is 25 + 17?\n/quit\n",
    )
    assert typed.exit_code == 0 and "steps a token]" in typed.output


@pytest.mark.parametrize(
    "words, why",
    [
        (["memory", "train", "--profile", "smoke", "--run", "speech"], "profile smoke has: reasoning, memory, speed"),
        (["memory", "train", "--data", "nowhere"], "hrm memory data"),
        (["memory", "train", "--sets", "memory,../own"], '--sets: found "../own"; allowed:'),
        (["memory", "evaluate", "--checkpoint", "nowhere"], "nowhere: no checkpoint"),
        (["memory", "data", "--source", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["memory", "data", "--tokenizer", "nowhere.json", "--out", "never"], "nowhere.json: cannot be read"),
    ],
)
def test_wrong_input_costs_a_line(words, why, capsys):
    assert main(words) == 2
    out = capsys.readouterr()
    assert why in out.err and len(out.err.strip().splitlines()) == 1 and not out.out


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.5])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match="greater than 0|less than 1"):
        EvaluateConfig(resamples=10, seed=0, thresholds=(0.9, threshold))


def test_questions_that_a_checkpoint_cannot_be_asked(folder, trained, tmp_path, capsys):
    long, words = (
        tmp_path / "long.jsonl",
        ["memory", "evaluate", "--profile", "smoke", "--checkpoint", str(trained.folder / "best")],
    )
    long.write_text(json.dumps({"question": "word " * 200, "answer": "1"}) + "\n")
    shutil.copytree(folder / "data" / "reasoning", tmp_path / "half" / "reasoning")
    shutil.copy(folder / "data" / "tokenizer.json", tmp_path / "half")
    for more, why in (
        (["--source", str(long)], "long.jsonl: own: 'word word"),
        (["--data", str(tmp_path / "half")], "half: holds no questions of memory"),
    ):
        assert main([*words, *more]) == 2
        out = capsys.readouterr()
        assert why in out.err and not out.out
    for option in (["--system", "you"], ["--compile"]):
        assert main(["chat", "--checkpoint", str(trained.folder / "best"), *option]) == 2
        assert f"{option[0]}: " in capsys.readouterr().err


def test_test_questions_are_those_of_the_data(folder, data):
    assert data.test["memory"] == stored_questions(folder / "data" / "memory" / "test.jsonl")
