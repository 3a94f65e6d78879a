"ARC: official files, disguises, votes, generated tasks, data sets on disk, and checkpoints of the document's size."

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.arc import train as arc_train
from hrm.arc.data import DataConfig, build, draw, draw_places, load_examples, originals, save_examples, to_examples
from hrm.arc.evaluate import in_disguises, measure, passed
from hrm.arc.grids import (
    END,
    TURNS,
    UNDONE_BY,
    Answer,
    ArcTask,
    Disguise,
    Pair,
    collect,
    crop,
    draw_disguises,
    encode,
    pass_at,
    question_key,
    read_arc,
    undisguise,
    vote,
)
from hrm.arc.model import load, model_config
from hrm.arc.rules import FAMILIES, bounds, canonical, count, fall, fill, generate, outline, shift
from hrm.arc.train import RunConfig, TrainConfig
from hrm.core import checkpoint
from hrm.core.config import ConfigError, section, validate
from hrm.core.device import pick
from hrm.core.errors import DataError
from hrm.core.hrm import HRM, ArchConfig
from hrm.core.optim import OptimConfig
from hrm.core.task import LoopConfig, Options
from hrm.puzzles.data import PAD, Examples

GRIDS = (
    st.integers(1, 6)
    .flatmap(lambda w: st.lists(st.lists(st.integers(0, 9), min_size=w, max_size=w), min_size=1, max_size=6))
    .map(lambda rows: np.array(rows, np.uint8))
)
DISGUISES = st.builds(
    lambda turn, colours: Disguise(turn, (0, *colours)), st.integers(0, 7), st.permutations(range(1, 10))
)


# Grids and disguises


@given(GRIDS, st.integers(6, 8), st.data())
@settings(max_examples=60, deadline=None)
def test_encode_writes_the_grid_and_its_border(grid, canvas, data):
    (h, w), at = grid.shape, [data.draw(st.integers(0, canvas - side)) for side in grid.shape]
    square = encode(grid, canvas, tuple(at)).reshape(canvas, canvas)
    for r in range(canvas):
        for c in range(canvas):
            inside_r, inside_c = at[0] <= r < at[0] + h, at[1] <= c < at[1] + w
            expected = (
                grid[r - at[0], c - at[1]] + 2
                if inside_r and inside_c
                else END
                if inside_c and r == at[0] + h or inside_r and c == at[1] + w
                else PAD
            )
            assert square[r, c] == expected
    if at == [0, 0]:
        assert (crop(square.reshape(-1), canvas) == grid).all()


@given(st.lists(st.integers(0, 11), min_size=16, max_size=16))
@settings(max_examples=100, deadline=None)
def test_crop_is_the_largest_rectangle_from_the_corner(tokens):
    square, areas = np.array(tokens).reshape(4, 4), {}
    for h in range(1, 5):
        for w in range(1, 5):
            if (square[:h, :w] > END).all():
                areas[h, w] = h * w
    found = crop(np.array(tokens), 4)
    if not areas:
        assert found.size == 0
        return
    most = max(areas.values())
    assert found.shape == min(shape for shape, area in areas.items() if area == most)
    assert (found == square[: found.shape[0], : found.shape[1]] - 2).all()


def test_turns_are_the_symmetries_of_the_square():
    grid = np.array([[0, 1, 2], [3, 4, 5]])
    images = [(turn(grid).shape, turn(grid).tobytes()) for turn in TURNS]
    assert len(set(images)) == 8
    for one, turn in enumerate(TURNS):
        back = [
            other
            for other in range(8)
            if TURNS[other](turn(grid)).shape == grid.shape and (TURNS[other](turn(grid)) == grid).all()
        ]
        assert back == [UNDONE_BY[one]]
        for other in TURNS:  # closed under composition
            both = other(turn(grid))
            assert (both.shape, np.ascontiguousarray(both).tobytes()) in {
                (i[0], np.ascontiguousarray(t(grid)).tobytes()) for i, t in zip(images, TURNS)
            }


@given(GRIDS, DISGUISES)
@settings(max_examples=80, deadline=None)
def test_every_disguise_can_be_undone(grid, disguise):
    assert (disguise.inverse()(disguise(grid)) == grid).all() and (disguise(disguise.inverse()(grid)) == grid).all()
    assert undisguise(disguise.name("task_7")) == ("task_7", disguise)
    assert ((disguise(grid) == 0).sum(), sorted(Counter(disguise(grid).ravel().tolist()).values())) == (
        (grid == 0).sum(),
        sorted(Counter(grid.ravel().tolist()).values()),
    )


@given(GRIDS, GRIDS, DISGUISES)
@settings(max_examples=60, deadline=None)
def test_canonical_form_sees_through_every_disguise(question, answer, disguise):
    pair = Pair(question, answer)
    assert canonical(pair) == canonical(Pair(disguise(question), disguise(answer)))
    other = answer.copy()
    other[0, 0] = (other[0, 0] + 1) % 10
    same_under = any(
        (Disguise(turn)(question).shape, Disguise(turn)(other).shape) == (question.shape, other.shape)
        and _equal_up_to_colours((Disguise(turn)(question), Disguise(turn)(other)), (question, answer))
        for turn in range(8)
    )
    assert (canonical(Pair(question, other)) == canonical(pair)) == same_under


def _equal_up_to_colours(one, other) -> bool:
    "Whether a renaming that keeps 0 leads from one pair of grids to another: checked cell by cell."
    there, back = {0: 0}, {0: 0}
    for a, b in zip(
        np.concatenate([g.ravel() for g in one]).tolist(), np.concatenate([g.ravel() for g in other]).tolist()
    ):
        if there.setdefault(a, b) != b or back.setdefault(b, a) != a:
            return False
    return True


def test_draw_disguises_stops_where_a_task_has_no_more_images():
    plain = ArcTask("plain", [Pair(np.zeros((2, 2), np.uint8), np.zeros((1, 1), np.uint8))], [])
    assert draw_disguises(plain, 50, np.random.default_rng(0)) == [Disguise()]


# Files


def test_official_files_are_read_whole():
    for part, pairs, most in (("training", 1302, 3), ("evaluation", 1363, 2)):
        tasks = read_arc(shared(f"data/arc/arc-agi_{part}_challenges.json"))
        assert (len(tasks), sum(len(t.train) for t in tasks), max(len(t.test) for t in tasks)) == (400, pairs, most)
        assert [t.name for t in tasks] == sorted(t.name for t in tasks)
        raw = json.loads(shared(f"data/arc/arc-agi_{part}_solutions.json").read_text())
        for task in tasks:
            assert [pair.output.tolist() for pair in task.test] == raw[task.name]
            for pair in task.train[:1]:
                for grid in pair:
                    assert (crop(encode(grid)) == grid).all()


def test_official_tasks_become_a_data_set(tmp_path):
    file = shared("data/arc/arc-agi_training_challenges.json")
    config = DataConfig(
        source=str(file),
        seed=0,
        tasks=12,
        evaluation=3,
        disguises=4,
        identifiers=None,
        canvas=12,
        largest=6,
        demonstrations=(2, 2),
    )
    facts = build(config, tmp_path, progress=False)
    assert facts["tasks"] == 12 and facts["left_out"] == sum(t.largest > 12 for t in read_arc(file))
    test = load_examples(tmp_path / "test")
    tasks = {task.name: task for task in read_arc(file)}
    plain = originals(test)
    for number, question, label in zip(plain.identifiers, plain.inputs, plain.labels):
        pairs = [(pair.input.tolist(), pair.output.tolist()) for pair in tasks[test.names[number]].test]
        assert (crop(question, 12).tolist(), crop(label, 12).tolist()) in pairs


def test_single_tasks_and_a_folder_of_them(tmp_path):
    pair = {"input": [[1, 2]], "output": [[2], [1]]}
    (tmp_path / "b.json").write_text(json.dumps({"name": "whatever", "train": [pair], "test": [pair]}))
    (tmp_path / "a.json").write_text(json.dumps({"train": [pair, pair], "test": [{"input": [[0]]}]}))
    assert [(t.name, len(t.train), t.test[0].output is None) for t in read_arc(tmp_path)] == [
        ("a", 2, True),
        ("b", 1, False),
    ]


GOOD = {"input": [[1]], "output": [[2]]}


@pytest.mark.parametrize(
    "value, said",
    [
        ("{", "not readable as JSON"),
        ("[]", "found nothing"),
        ("[1]", "found list"),
        (json.dumps({"t1": 3}), "t1: found 3"),
        (json.dumps({"t1": {"train": [GOOD]}}), "t1: found test: null; allowed is a task with a list 'test'"),
        (json.dumps({"t1": {"train": [], "test": [GOOD]}}), "t1: found train: []"),
        (json.dumps({"t1": {"train": [{"input": [[1]]}], "test": [GOOD]}}), "t1: train[0]: found"),
        (json.dumps({"t1": {"train": [GOOD], "test": [{"output": [[1]]}]}}), "t1: test[0]: found"),
        (
            json.dumps({"t1": {"train": [GOOD, {"input": [[1, 2], [3]], "output": [[1]]}], "test": [GOOD]}}),
            "t1: train[1].input: found 2 rows of [1, 2] cells",
        ),
        (
            json.dumps({"t1": {"train": [GOOD], "test": [{"input": [[0, 10]]}]}}),
            "t1: test[0].input[0][1]: found 10; allowed is a colour",
        ),
        (json.dumps({"t1": {"train": [GOOD], "test": [{"input": [[True]]}]}}), "test[0].input[0][0]: found true"),
        (json.dumps({"t1": {"train": [GOOD], "test": [{"input": [[1] * 31]}]}}), "found 1 rows of [31] cells"),
        (json.dumps({"t1": {"train": [GOOD], "test": [{"input": "x"}]}}), 'test[0].input: found "x"'),
    ],
)
def test_broken_files_are_named(tmp_path, value, said):
    file = tmp_path / "some.json"
    file.write_text(value)
    with pytest.raises(DataError) as error:
        read_arc(file)
    assert str(file) in str(error.value) and said in str(error.value)


def test_solutions_have_to_fit_the_questions(tmp_path):
    (tmp_path / "x_challenges.json").write_text(
        json.dumps({"t1": {"train": [GOOD], "test": [{"input": [[1]]}, {"input": [[2]]}]}})
    )
    (tmp_path / "x_solutions.json").write_text(json.dumps({"t1": [[[1]]]}))
    with pytest.raises(DataError, match="t1: solutions: found 1; allowed is a list of 2 grids"):
        read_arc(tmp_path / "x_challenges.json")
    with pytest.raises(DataError, match="no such file"):
        read_arc(tmp_path / "none.json")


@pytest.mark.parametrize("depth", [900, 5_000, 200_000])
@pytest.mark.parametrize("around", ["{}", '{{"t1": {{"train": {}, "test": [1]}}}}'])
def test_deeply_nested_files_are_refused(tmp_path, depth, around):
    file = tmp_path / "deep.json"
    file.write_text(around.format("[" * depth + "]" * depth))
    with pytest.raises(DataError, match="deep.json"):
        read_arc(file)


# Generated tasks


def test_rules_by_hand_and_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(60):
        grid = np.where(rng.random((5, 6)) < 0.5, rng.integers(1, 4, (5, 6)), 0).astype(np.uint8)
        filled, near, fallen = fill(grid, 7), outline(grid, 7), fall(grid)
        reached = grid == 0
        reached[1:-1, 1:-1] = False  # background at the edge; grow it until nothing changes
        for _ in range(30):
            for r in range(5):
                for c in range(6):
                    around = [
                        (r + a, c + b)
                        for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))
                        if 0 <= r + a < 5 and 0 <= c + b < 6
                    ]
                    reached[r, c] |= grid[r, c] == 0 and any(reached[at] for at in around)
        assert (filled == np.where((grid == 0) & ~reached, 7, grid)).all()
        for r in range(5):
            for c in range(6):
                touches = (grid[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2] > 0).any()
                assert near[r, c] == (7 if grid[r, c] == 0 and touches else grid[r, c])
        for c in range(6):
            column = [cell for cell in grid[:, c] if cell]
            assert fallen[:, c].tolist() == [0] * (5 - len(column)) + column
        assert count(grid, 2).shape == (1, (grid == 2).sum())
        rows, columns = np.nonzero(grid)
        assert (bounds(grid) == grid[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]).all()
        for down, right in ((1, -1), (-1, 0), (0, 1)):
            moved = shift(grid, down, right)
            for r in range(5):
                for c in range(6):
                    inside = 0 <= r - down < 5 and 0 <= c - right < 6
                    assert moved[r, c] == (grid[r - down, c - right] if inside else 0)


def test_generated_tasks_are_seeded_solvable_and_different():
    tasks = generate(200, np.random.default_rng(5), 10, (2, 4))
    again = generate(200, np.random.default_rng(5), 10, (2, 4))
    key = lambda task: (task.name, [(p.input.tolist(), p.output.tolist()) for p in task.train + task.test])
    assert list(map(key, tasks)) == list(map(key, again))
    assert Counter(task.name.split("_")[0] for task in tasks) == {family: 20 for family in FAMILIES}
    assert max(task.largest for task in tasks) <= 10 and {len(task.train) for task in tasks} == {2, 3, 4}
    forms = [canonical(pair) for task in tasks for pair in task.train + task.test]
    assert len(set(forms)) == len(forms)
    for task in tasks:
        shown = {0} | {c for pair in task.train for grid in pair for c in grid.ravel().tolist()}
        assert set(task.test[0].input.ravel().tolist()) <= shown
        for pair in task.train + task.test:
            assert pair.input.shape != pair.output.shape or (pair.input != pair.output).any()


# The vote


def test_vote_by_hand():
    a, b, c = np.array([[1]]), np.array([[2]]), np.array([[1, 1]])
    ranked = vote([(b, 0.9), (a, 0.1), (a, 0.3), (c, 0.5)])
    assert [(answer.grid.tolist(), answer.votes) for answer in ranked] == [([[1]], 2), ([[2]], 1), ([[1, 1]], 1)]
    assert ranked[0].q == pytest.approx(0.2)
    assert vote([]) == []


def test_pass_at_counts_whole_tasks_or_shares():
    right, wrong = Answer(np.array([[1]]), 2, 0.5), Answer(np.array([[2]]), 1, 0.5)
    solution = np.array([[1]])
    tasks = {
        "both": [([right], solution), ([right, wrong], solution)],
        "one": [([right], solution), ([wrong, right], solution)],
        "none": [([], solution)],
    }
    assert pass_at(tasks, 1) == pytest.approx(1 / 3)
    assert pass_at(tasks, 2) == pytest.approx(2 / 3)
    assert pass_at(tasks, 1, fractional=True) == pytest.approx((1 + 0.5 + 0) / 3)


@given(st.lists(DISGUISES, min_size=3, max_size=6, unique=True), GRIDS, GRIDS, GRIDS)
@settings(max_examples=40, deadline=None)
def test_votes_in_any_disguise_find_each_other(disguises, question, solution, other):
    if solution.shape == other.shape and (solution == other).all():
        return
    wrong = 1 if len(disguises) > 2 else 0  # one vote for another answer, with all the trust
    inputs = np.stack([encode(one(question), 7) for one in disguises])
    outputs = np.stack([encode(one(other if number < wrong else solution), 7) for number, one in enumerate(disguises)])
    found = collect(
        [one.name("t") for one in disguises],
        inputs,
        outputs,
        np.array([1.0] * wrong + [0.1] * (len(disguises) - wrong)),
        7,
    )
    ranked = found["t"][question_key(question)]
    assert (
        (ranked[0].grid == solution).all()
        and ranked[0].votes == len(disguises) - wrong
        and (ranked[1].grid == other).all()
    )


# Data sets

SMALL = DataConfig(
    source="generated",
    seed=3,
    tasks=20,
    evaluation=5,
    disguises=5,
    identifiers=98,
    canvas=9,
    largest=8,
    demonstrations=(2, 3),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arc") / "data"
    return folder, build(SMALL, folder, progress=False)


@given(GRIDS, GRIDS, st.lists(DISGUISES, min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_rows_are_what_encode_writes_one_by_one(question, answer, disguises, seed):
    pair = Pair(question, answer)
    places = draw_places(pair, disguises, 7, np.random.default_rng(seed))
    for grid in pair:
        assert (
            draw(grid, disguises, places, 7)
            == [encode(one(grid), 7, tuple(at)) for one, at in zip(disguises, places.tolist())]
        ).all()


def test_folder_follows_the_official_layout(data):
    "Read back as the original reads it: group -> puzzles -> examples, with plain numpy."
    folder, facts = data
    names, tasks = (
        json.loads((folder / "identifiers.json").read_text()),
        generate(20, np.random.default_rng(3), 8, (2, 3)),
    )
    by_name = {task.name: task for task in tasks}
    assert len(names) == facts["identifiers"] == 98 and names[0] == "<blank>" and len(set(names)) == 98
    held_out = set()
    for part in ("test", "train"):
        meta = json.loads((folder / part / "dataset.json").read_text())
        arrays = {
            key: np.load(folder / part / f"all__{key}.npy")
            for key in ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
        }
        assert (
            meta["vocab_size"],
            meta["seq_len"],
            meta["num_puzzle_identifiers"],
            meta["pad_id"],
            meta["ignore_label_id"],
        ) == (12, 81, 98, 0, 0)
        assert (meta["total_groups"], meta["total_puzzles"]) == (
            len(arrays["group_indices"]) - 1,
            len(arrays["puzzle_indices"]) - 1,
        )
        assert meta["mean_puzzle_examples"] == pytest.approx(len(arrays["inputs"]) / meta["total_puzzles"])
        assert arrays["inputs"].dtype == np.uint8 and arrays["puzzle_identifiers"].dtype == np.int32
        for g in range(meta["total_groups"]):
            puzzles = range(arrays["group_indices"][g], arrays["group_indices"][g + 1])
            own = {undisguise(names[arrays["puzzle_identifiers"][p]])[0] for p in puzzles}
            assert len(own) == 1
            task = by_name[own.pop()]
            if part == "test":
                held_out.add(task.name)
            wanted = task.test if part == "test" else task.train + (task.test if task.name not in held_out else [])
            for p in puzzles:
                disguise = undisguise(names[arrays["puzzle_identifiers"][p]])[1]
                rows = range(arrays["puzzle_indices"][p], arrays["puzzle_indices"][p + 1])
                assert len(rows) == len(wanted)
                for row, pair in zip(rows, wanted):
                    for key, grid in (("inputs", pair.input), ("labels", pair.output)):
                        square = arrays[key][row].reshape(9, 9)
                        inside = np.argwhere(square > END)
                        top, left = inside.min(0) if len(inside) else (0, 0)
                        h, w = disguise(grid).shape
                        assert (square[top : top + h, left : left + w] - 2 == disguise(grid)).all() and len(
                            inside
                        ) == h * w
                        if row == rows[0] or part == "test":
                            assert (top, left) == (0, 0)
    assert len(held_out) == facts["evaluation"] == 5 and facts["shared"] == 0


def test_same_config_same_bytes(data, tmp_path):
    folder, facts = data
    assert build(SMALL, tmp_path, progress=False) == facts
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in files if (folder / name).read_bytes() != (tmp_path / name).read_bytes()] == []


def test_round_trip_through_the_folder(data, tmp_path):
    for part in ("train", "test"):
        rows = load_examples(data[0] / part)
        save_examples(rows, tmp_path, part)
        again = load_examples(tmp_path / part)
        assert (
            all(
                (getattr(again, key) == getattr(rows, key)).all()
                for key in ("inputs", "labels", "identifiers", "groups")
            )
            and again.names == rows.names
        )


@pytest.mark.parametrize(
    "file, make, said",
    [
        ("test/dataset.json", lambda p: p.write_text("{"), "not readable as JSON"),
        (
            "test/dataset.json",
            lambda p: p.write_text(p.read_text().replace('"vocab_size": 12', '"vocab_size": 11')),
            "vocab_size is 11; allowed for ARC is 12",
        ),
        (
            "test/dataset.json",
            lambda p: p.write_text(p.read_text().replace('"seq_len": 81', '"seq_len": 80')),
            "seq_len is 80; allowed for ARC is a square",
        ),
        ("identifiers.json", lambda p: p.write_text("[]"), "allowed is a list of num_puzzle_identifiers = 98 names"),
        ("test/all__inputs.npy", lambda p: p.write_bytes(b"?"), "not a plain numpy array"),
        ("test/all__labels.npy", lambda p: np.save(p, np.load(p) + 4), "allowed are 0 to 11"),
        ("test/all__labels.npy", lambda p: np.save(p, np.load(p)[:-1]), "shape"),
        ("test/all__puzzle_indices.npy", lambda p: np.save(p, np.load(p)[:-1]), "ascending table"),
        ("test/all__puzzle_identifiers.npy", lambda p: np.save(p, np.load(p) + 90), "each below 98"),
    ],
)
def test_broken_folders_are_named(data, tmp_path, file, make, said):
    for part in ("train", "test"):
        save_examples(load_examples(data[0] / part), tmp_path, part)
    make(tmp_path / file)
    with pytest.raises(DataError) as error:
        load_examples(tmp_path / "test")
    assert str(tmp_path / file) in str(error.value) and said in str(error.value)


def test_impossible_sets_are_refused_before_any_work():
    values = SMALL.model_dump()
    for change, said in (
        ({"largest": 10}, "largest 10 on a canvas of 9"),
        ({"evaluation": 20}, "allowed are fewer than all"),
        ({"identifiers": 102}, "allowed are 21 to 101"),
        ({"canvas": 31}, "less than or equal to 30"),
    ):
        with pytest.raises(ConfigError, match=said):
            validate(values | change, DataConfig)
    big = ArcTask(
        "big", [Pair(np.ones((8, 8), np.uint8), np.ones((8, 8), np.uint8))], [Pair(np.ones((2, 2), np.uint8), None)]
    )
    with pytest.raises(DataError, match="big: a grid of 8 rows or columns"):
        to_examples([big], set(), 2, None, 7, np.random.default_rng(0), progress=False)
    with pytest.raises(DataError, match="big: a test input without an output"):
        to_examples([big], {"big"}, 2, None, 8, np.random.default_rng(0), progress=False)


# Training

ARCH = ArchConfig(
    hidden_size=32,
    num_heads=2,
    H_layers=1,
    L_layers=1,
    H_cycles=1,
    L_cycles=1,
    expansion=2,
    pos_encodings="rope",
    halt_max_steps=2,
    puzzle_emb_ndim=32,
    halt_exploration_prob=0.5,
)
LOOP = LoopConfig(
    steps=24,
    evaluate_every=24,
    log_every=4,
    keep_at=(5, 12, 24),
    keep_optimizer=True,
    checkpoint_seconds=0,
    best="loss",
    best_mode="min",
    store={"inner.puzzle_emb.weights": "float16"},
    compile="off",
)
RUN = RunConfig(
    arch=ARCH,
    optim=OptimConfig(lr=3e-3, warmup=3, puzzle_emb_lr=0.013),
    loop=LOOP,
    batch_size=2,
    cross_entropy="stablemax",
    evaluate_puzzles=5,
    device="cpu",
)


def test_the_documents_model_has_23_tensors_and_27990018_values():
    for profile in ("laptop", "gpu"):
        one = section(profile, "checkpoints.train", TrainConfig).runs["v9"]
        data = section(profile, "checkpoints.data", DataConfig)
        with torch.device("meta"):  # shapes without memory
            model = HRM(model_config(one.arch, data.canvas, data.identifiers))
        state = model.state_dict()
        assert (len(state), sum(t.numel() for t in state.values()), sum(p.numel() for p in model.parameters())) == (
            23,
            27_990_018,
            3_414_530,
        )
        width = {name: 2 if name in one.loop.store else 4 for name in state}
        assert sum(t.numel() * width[name] for name, t in state.items()) / 2**20 == pytest.approx(59.90, abs=0.005)
        assert sum(t.numel() * 4 for t in state.values()) / 2**20 == pytest.approx(106.77, abs=0.005)
        document = (180, 904, 1083, 1261, 3607, 4503, 5767, 6306, 7566)
        assert one.loop.keep_at == tuple(round(step * one.loop.steps / 7566) for step in document)
        assert one.batch_size == 1 and (profile == "gpu" or one.loop.steps <= 400)


class Failing(arc_train.ArcPuzzleTask):
    "Fails in the middle of its n-th step; the first loss is the one that counts FLOPs."

    left = 0

    def loss(self, model):
        self.left -= 1
        if self.left == 0:
            raise OSError("the power failed")
        return super().loss(model)


Failing.__module__ = arc_train.ArcPuzzleTask.__module__  # its code does not count: the run is the same


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return arc_train.run("tiny", RUN, 0, data[0], folder / "out", Options(folder / "resume", progress=False))


def test_a_broken_run_with_narrow_checkpoints_ends_with_the_same_bits(data, finished, tmp_path, monkeypatch):
    "At step 14 two checkpoints in 16 bits lie behind it; the training state it goes on from is in 32."
    Failing.left = 16
    monkeypatch.setattr(arc_train, "ArcPuzzleTask", Failing)
    arguments = ("tiny", RUN, 0, data[0], tmp_path / "out", Options(tmp_path / "resume", progress=False))
    with pytest.raises(OSError):
        arc_train.run(*arguments)
    latest = checkpoint.read(next((tmp_path / "resume").iterdir()) / "latest")
    assert latest.meta["step"] == 14 and latest.state()["model"]["inner.puzzle_emb.weights"].dtype == torch.float32
    Failing.left = -1
    second = arc_train.run(*arguments)
    assert second.metrics == finished.metrics
    files = sorted(path.relative_to(finished.folder) for path in finished.folder.rglob("*") if path.is_file())
    assert len(files) == 5 * 3 + 1  # best, final, three kept; the log
    assert [
        name for name in files if (finished.folder / name).read_bytes() != (tmp_path / "out" / name).read_bytes()
    ] == []


def test_only_the_table_is_narrow_and_it_is_exact(data, finished, tmp_path):
    wide = arc_train.run(
        "tiny",
        RUN.model_copy(update={"loop": LOOP.model_copy(update={"store": {}})}),
        0,
        data[0],
        tmp_path / "out",
        Options(tmp_path / "resume", progress=False),
    )
    for name in ("step_000005", "step_000012", "final"):
        full, kept = (checkpoint.read(run.folder / name).weights for run in (wide, finished))
        assert {tensor.dtype for key, tensor in kept.items() if key != "inner.puzzle_emb.weights"} == {torch.float32}
        for key, tensor in kept.items():
            assert torch.equal(tensor, full[key].half() if key == "inner.puzzle_emb.weights" else full[key])
        table, own = full["inner.puzzle_emb.weights"], kept["inner.puzzle_emb.weights"]
        assert (
            torch.equal(table.any(1), own.any(1)) and (table != own.float()).any()
        )  # no row vanishes; rounding there is
    model, meta = load(finished.folder / "final")
    assert torch.equal(model.state_dict()["inner.puzzle_emb.weights"], own.float())
    assert meta["config"]["num_puzzle_identifiers"] == 98 and meta["metrics"] == finished.metrics["held_out"]


def test_rows_touched_are_the_puzzles_that_were_met(data, finished):
    "The table's non-zero rows against the rows that the seeded stream hands out."
    train = load_examples(data[0] / "train")
    touched = [
        int(checkpoint.read(finished.folder / f"step_{step:06d}").weights["inner.puzzle_emb.weights"].any(1).sum())
        for step in LOOP.keep_at
    ]
    assert 0 < touched[0] < touched[1] < touched[2] <= len(set(train.identifiers.tolist()))
    assert not checkpoint.read(finished.folder / "final").weights["inner.puzzle_emb.weights"][0].any()  # the blank one
    seen = []

    class Spy(arc_train.ArcPuzzleTask):
        def rows(self, slots):
            rows = super().rows(slots)
            seen.extend(rows["puzzle_identifiers"].tolist())
            return rows

    generator = arc_train.seeded(0)
    model = arc_train.build(model_config(ARCH.on(pick("cpu")), train.size, len(train.names)), generator, pick("cpu"))
    task = Spy(model, train, load_examples(data[0] / "test"), RUN, generator)
    from hrm.core.optim import build as optimizers

    steps = optimizers(model, RUN.optim)
    for _ in range(5):
        task.loss(model)[0].backward()
        for optimizer in steps:
            optimizer.step()
            optimizer.zero_grad()
    assert set(model.inner.puzzle_emb.weights.any(1).nonzero().squeeze(1).tolist()) == set(seen)


def test_checkpoints_of_one_step_share_their_tensors(finished):
    names = ("final", "step_000024") + (("best",) if finished.metrics["best"]["step"] == 24 else ())
    for file in ("model.safetensors", "state.pt"):
        assert len({(finished.folder / name / file).stat().st_ino for name in names}) == 1
    assert len(checkpoint.read(finished.folder / "step_000005").state()["groups"]) == 1


def test_padding_has_no_label_and_measures_agree_with_training(data, finished):
    model, _ = load(finished.folder / "final")
    plain = originals(load_examples(data[0] / "test"))
    result = measure(model, plain, batch_size=2)
    assert result.loss.mean() == pytest.approx(finished.metrics["held_out"]["loss"], rel=1e-3)
    padded = replace(plain, labels=np.where(np.arange(81) % 2, PAD, plain.labels).astype(np.uint8))
    half = measure(model, padded, batch_size=5)
    valid = padded.labels != PAD
    assert half.token_accuracy == pytest.approx(
        ((result.tokens == plain.labels) & valid).sum(1) / valid.sum(1), abs=1e-6
    )
    right = replace(result, tokens=plain.labels)
    assert passed(plain, right) == {1: 1.0, 2: 1.0} and passed(
        plain, replace(result, tokens=np.zeros_like(plain.labels))
    ) == {1: 0.0, 2: 0.0}


def test_questions_in_disguise_are_taken_task_by_task(data):
    test = load_examples(data[0] / "test")
    some = in_disguises(test, 3, 2)
    tasks = [undisguise(test.names[number])[0] for number in some.identifiers]
    assert Counter(tasks) == {name: 2 for name in dict.fromkeys(tasks)} and len(set(tasks)) == 3
    assert isinstance(some, Examples) and len(originals(some)) == 3


@pytest.mark.parametrize(
    "change, said",
    [
        ({"keep_at": (5, 5)}, "ascending"),
        ({"keep_at": (30,)}, "from 1 to 24"),
        ({"store": {"inner.H_init": "int8"}}, "float16"),
    ],
)
def test_wrong_loops_are_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        validate(RUN.model_dump() | {"loop": LOOP.model_dump() | change}, RunConfig)


def test_unknown_weights_are_refused_before_the_first_step(data, tmp_path):
    wrong = RUN.model_copy(update={"loop": LOOP.model_copy(update={"store": {"puzzle_emb": "float16"}})})
    with pytest.raises(ConfigError, match="found puzzle_emb; allowed: .*inner.puzzle_emb.weights"):
        arc_train.run("tiny", wrong, 0, data[0], tmp_path / "out", Options(tmp_path / "resume", progress=False))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_kind_is_named(finished, tmp_path):
    meta = json.loads((finished.folder / "final" / "meta.json").read_text())
    for number, (change, said) in enumerate(
        (({"system": "dialogue"}, "system: arc"), ({"seq_len": "x"}, "seq_len"), ({"arch": None}, "arch"))
    ):
        saved = checkpoint.read(finished.folder / "final")
        checkpoint.write(tmp_path / str(number), saved.weights, meta | {"config": meta["config"] | change})
        with pytest.raises(ConfigError, match=said):
            load(tmp_path / str(number))
