"Models of mazes: where a cell looks, what a segment is asked for, and `hrm maze` from a data set to an animation."

import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image

import tiny
from hrm.core.config import ConfigError, section
from hrm.core.device import pick, seeded
from hrm.core.errors import DataError
from hrm.core.flops import count_flops
from hrm.core.hrm import ArchConfig
from hrm.maze import evaluate as E
from hrm.maze import rules as R
from hrm.maze import solve as S
from hrm.maze.data import own_set
from hrm.maze.dataset import from_generated, load_official, save_official
from hrm.maze.files import read, write_csv
from hrm.maze.generate import generate
from hrm.maze.model import build, kinds, load, on
from hrm.maze.symmetry import symmetries
from hrm.maze.train import MazeTask, RunConfig, TrainConfig, aims
from hrm.puzzles.evaluate import rollout
from hrm.tools.cli import main
from hrm.tools.commands.opening import PIPELINE, SHIPPED

ARCH = dict(
    hidden_size=32,
    num_heads=2,
    H_layers=1,
    L_layers=1,
    H_cycles=1,
    L_cycles=2,
    expansion=1,
    pos_encodings="relations",
    puzzle_emb_ndim=32,
    gradient="full",
    halting="fixed",
    halt_max_steps=4,
)
DRAWN = "#########\n#S#     #\n# # ### #\n#     #G#\n#########"


def model_for(shape=(7, 7), sees="neighbours", **more):
    return build(ArchConfig(**ARCH | more), shape, sees, seeded(0), pick("cpu", "float32")).eval()


# --- where a cell looks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 6), (5, 5), (4, 9)])
@pytest.mark.parametrize("sees", ["neighbours", "window"])
def test_kinds_by_hand(shape, sees):
    h, w = shape
    found, names = kinds(shape, sees), {}
    for one in range(h * w):
        for other in range(h * w):
            down, right = other // w - one // w, other % w - one % w
            kind = int(found[one, other])
            if sees == "neighbours":
                assert (kind >= 0) == (abs(down) + abs(right) <= 1)
                place = (down, right) if kind >= 0 else None
            else:
                assert kind >= 0
                near = abs(down) <= 2 and abs(right) <= 2
                place = (down, right) if near else ("row" if down == 0 else "", "column" if right == 0 else "")
            assert names.setdefault(kind, place) == place
    assert len(set(names.values())) == len(names)


def test_the_same_kinds_in_every_size():
    for sees, shape in (("neighbours", (5, 5)), ("window", (4, 4))):
        known = set(kinds((31, 31), sees).unique().tolist())
        assert set(kinds(shape, sees).unique().tolist()) == known


@torch.no_grad()
def test_a_message_walks_three_cells_in_a_segment():
    "Two steps of the L-module and one of the H-module, each by one cell; and the prefix, which sees all, is shut out."
    model, tokens = model_for((1, 15)), torch.full((1, 15), R.OPEN)
    for parameter in [
        layer.self_attn.relation_bias for level in (model.inner.H_level, model.inner.L_level) for layer in level.layers
    ]:
        parameter[:, 0] = -1e4  # pairs with the prefix
    moved = tokens.clone()
    moved[0, -1] = R.WALL
    states = []
    for inputs in (tokens, moved):
        batch = {"inputs": inputs, "puzzle_identifiers": torch.zeros(1, dtype=torch.long)}
        carry, seen = model.start(batch), []
        for _ in range(3):
            carry, outputs = model(carry)
            seen.append(outputs["logits"][0])
        states.append(torch.stack(seen))
    reached = [int((part != 0).any(1).nonzero().min()) for part in states[1] - states[0]]
    assert reached == [14 - 3, 14 - 6, 14 - 9]


@torch.no_grad()
@pytest.mark.parametrize("sees", ["neighbours", "window"])
def test_on_keeps_the_weights_and_the_answers(sees):
    model, tokens = model_for((7, 7), sees), torch.randint(1, 5, (3, 49), generator=seeded(1))
    answers = lambda one: rollout(one, tokens, 3).tokens
    before = answers(model)
    there = on(model, (9, 11), sees)
    assert all(torch.equal(part, model.state_dict()[name]) for name, part in there.state_dict().items())
    assert (answers(on(there, (7, 7), sees)) == before).all()
    for shape in ((1, 4), (2, 9), (3, 3)):
        fewer = on(model, shape, sees)
        assert rollout(fewer, torch.randint(1, 5, (2, shape[0] * shape[1])), 2).tokens.shape == (
            2,
            2,
            shape[0] * shape[1],
        )
    with pytest.raises(ValueError, match="allowed: those of 4x4 or more"):
        on(model_for((1, 9), sees), (7, 7), sees)
    with pytest.raises(ValueError, match="allowed: relations"):
        on(model_for((7, 7), sees, pos_encodings="rope"), (9, 9), sees)


@torch.no_grad()
def test_cells_that_see_the_same_say_the_same_in_every_size():
    "Without the prefix, the middle of an empty grid looks alike wherever the border is farther than the message walks."
    small, large = model_for((9, 9)), None
    for level in (small.inner.H_level, small.inner.L_level):
        level.layers[0].self_attn.relation_bias[:, 0] = -1e4
    large = on(small, (11, 11), "neighbours")
    found = []
    for model, side in ((small, 9), (large, 11)):
        batch = {"inputs": torch.full((1, side * side), R.OPEN), "puzzle_identifiers": torch.zeros(1, dtype=torch.long)}
        carry = model.start(batch)
        carry, outputs = model(carry)
        found.append(outputs["logits"].view(side, side, -1)[side // 2, side // 2])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


# --- what a segment is asked for ----------------------------------------------------------------------------------------


def filled_by_hand(maze: np.ndarray, rounds: int) -> np.ndarray:
    "Dead ends filled, by looking at every cell again in every round."
    free = maze != R.WALL
    for _ in range(rounds):
        gone = []
        for row, column in np.argwhere(free & (maze == R.OPEN)):
            beside = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
            inside = [at for at in beside if 0 <= at[0] < len(maze) and 0 <= at[1] < maze.shape[1]]
            if sum(free[at] for at in inside) <= 1:
                gone.append((row, column))
        for at in gone:
            free[at] = False
        if not gone:
            break
    return free


@pytest.mark.parametrize("braid", [0.0, 0.6])
def test_aims_by_brute_force(braid):
    made = generate(6, (9, 11), braid, rng=3, progress=False)
    rounds = R.fill(made.mazes)
    labels, cells = (torch.from_numpy(part.reshape(6, -1).astype(np.int64)) for part in (made.labels, rounds))
    for done in (1, 2, 5, 60):
        found = aims(labels, cells, torch.full((6,), done)).numpy().reshape(made.mazes.shape)
        for maze, label, aim in zip(made.mazes, made.labels, found):
            free, last = filled_by_hand(maze, done), filled_by_hand(maze, 200)
            if (free == last).all():  # nothing is left to fill: the answer
                assert (aim == label).all()
            else:
                assert (aim == np.where((maze == R.OPEN) & free, R.PATH, maze)).all()
    if braid == 0:
        assert (np.where((made.mazes == R.OPEN) & (rounds == 0), R.PATH, made.mazes) == made.labels).all()


def test_the_task_asks_each_row_for_its_own_segment():
    data = from_generated(generate(20, (7, 7), rng=0, progress=False))
    values = dict(
        set="own",
        sees="neighbours",
        aim="dead_ends",
        pace=2,
        arch=ARCH,
        optim=dict(name="adamw", lr=1e-3),
        batch_size=4,
    )
    values |= dict(loop=dict(steps=2, evaluate_every=1, log_every=1, best="exact"), cross_entropy="softmax")
    config = RunConfig(**values, augment=True, evaluate_puzzles=4)
    task = MazeTask(model_for((7, 7)), data, data, config, seeded(0))
    for _ in range(3):
        loss, _ = task.loss(task.model.train())
        assert torch.isfinite(loss)
        carry, found = task.carry, task.aims()
        for row in range(4):
            maze, label = (carry.batch[key][row].numpy().reshape(7, 7) for key in ("inputs", "labels"))
            free = filled_by_hand(maze, 2 * int(carry.steps[row]))
            over = (free == filled_by_hand(maze, 99)).all()
            wanted = label if over else np.where((maze == R.OPEN) & free, R.PATH, maze)
            assert (found[row].numpy().reshape(7, 7) == wanted).all()
    assert (
        MazeTask(
            model_for((7, 7)),
            data,
            data,
            RunConfig(**values | dict(aim="path", pace=None), augment=False, evaluate_puzzles=4),
            seeded(0),
        ).aims()
        is None
    )
    for aim, pace in (("path", 2), ("dead_ends", None)):
        with pytest.raises(ValueError, match="allowed: a pace with dead_ends, and only there"):
            RunConfig(**values | dict(aim=aim, pace=pace), augment=True, evaluate_puzzles=4)


# --- arithmetic ---------------------------------------------------------------------------------------------------------


def test_the_controls_cost_what_the_model_costs():
    "At the laptop profile: TFLOP within 5 %, and as many blocks called in a pass as in sixteen segments."
    runs = section("laptop", "maze.train", TrainConfig, tiny.ROOT / "params.yaml").runs
    data, cost = from_generated(generate(8, (11, 11), rng=0, progress=False)), {}
    calls = lambda arch: arch.H_cycles * (arch.L_cycles * arch.L_layers + (arch.H_layers or arch.L_layers))

    def flops(one, rows):
        model = build(one.arch, (11, 11), one.sees, seeded(0), pick("cpu", "float32")).train()
        task = MazeTask(model, data, data, one.model_copy(update={"batch_size": rows}), seeded(0))
        task.loss(model)
        return count_flops(lambda: task.loss(model)[0].backward())

    for name, one in runs.items():
        first, second = (flops(one, rows) for rows in (1, 2))  # a row costs the same; the bias of pairs comes once
        cost[name] = one.loop.steps * (first + (one.batch_size - 1) * (second - first)) / 1e12
    assert cost["maze"] < 10, "TFLOP of the training"
    for name in ("path", "fixed", "plain"):
        assert cost[name] == pytest.approx(cost["short"], rel=0.05), cost
    for name in ("fixed", "plain"):
        assert calls(runs[name].arch) == 16 * calls(runs["maze"].arch)


# --- evaluation ---------------------------------------------------------------------------------------------------------


def test_depth_grows_with_the_dead_ends():
    assert [E.depth(16, (11, 11), shape) for shape in ((5, 5), (11, 11), (31, 31), (11, 61))] == [16, 16, 76, 58]
    assert E.depth(1, (11, 11), (12, 11)) == 2, "never less than it takes"
    for size in (15, 21, 31):
        rounds = R.fill(generate(60, (size, size), rng=5, progress=False).mazes).max()
        assert E.depth(16, (11, 11), (size, size)) >= rounds / 2


def test_evaluate_mazes_counts_by_level():
    data = from_generated(generate(30, (9, 9), 0.5, rng=1, progress=False))
    table = E.evaluate_mazes(data, on(model_for(), (9, 9), "neighbours"), 2, progress=False)
    assert list(table.columns) == ["level", "mazes", *E.METRICS, "segments"]
    assert table.mazes.iloc[:-1].sum() == table.mazes.iloc[-1] == 30 and set(table.level[:-1]) == set(data.levels)
    halted = E.evaluate_mazes(data, on(model_for(), (9, 9), "neighbours"), 3, halt=True, threshold=0.5, progress=False)
    assert 1 <= halted.segments.iloc[-1] <= 3
    with pytest.raises(ValueError, match="tries 9; allowed are 1 to 8"):
        E.evaluate_mazes(data, model_for(), 2, tries=9, progress=False)


def test_by_segment_is_the_marks_of_each(official_like=None):
    data = from_generated(generate(10, (7, 7), rng=2, progress=False))
    result = rollout(model_for(), data.tokens()[0], 3)
    result.tokens[:, 1] = data.labels.reshape(10, -1)
    found = E.by_segment(result, data)
    assert all(found[name][:, 1].all() and not found[name][:, 0].any() for name in E.METRICS)


# --- solving ------------------------------------------------------------------------------------------------------------


def thought_of(maze: np.ndarray, pace: int = 2) -> S.Thought:
    "A model without fault: dead ends filled by hand."
    answers = [
        np.where((maze == R.OPEN) & filled_by_hand(maze, pace * t), R.PATH, maze).astype(np.uint8) for t in range(1, 40)
    ]
    told = [S.judge(maze, answer) for answer in answers]
    last = told.index(S.SOLVED) + 1
    return S.Thought(maze, np.stack(answers[:last]), np.linspace(0.1, 0.9, last), told[:last], attempt=1, took=last)


def test_what_is_said_of_an_answer():
    maze = R.from_text(DRAWN)
    label = R.solve(maze[None]).labels[0]
    every = np.where(maze == R.OPEN, R.PATH, maze)
    gap, wall = label.copy(), label.copy()
    gap[tuple(np.argwhere(label == R.PATH)[0])] = R.OPEN
    wall[0, 0] = R.PATH
    assert S.judge(maze, label) == "a shortest path" == S.SOLVED
    more = int((every == R.PATH).sum() - (label == R.PATH).sum())
    assert S.judge(maze, every) == f"connected, with {more} cells more than a shortest path" or more == 0
    assert (S.judge(maze, gap), S.judge(maze, wall)) == ("not connected", "changes the maze")
    assert S.judge(maze, maze) == "not connected"


def test_a_thought_is_told_and_drawn(tmp_path):
    maze = generate(1, (11, 11), rng=4, progress=False).mazes[0]
    thought, out = thought_of(maze), io.StringIO()
    S.tell(thought, out)
    heads = re.findall(
        r"^segment (\d+): (\d+) cells changed, halting probability (0\.\d{3}), (.*)$", out.getvalue(), re.M
    )
    assert [int(head[0]) for head in heads] == [at + 1 for at in thought.moving]
    assert [head[3] for head in heads][-1] == "a shortest path" and not any(
        "shortest path" == head[3] for head in heads[:-1]
    )
    boards = re.findall(r"(?m)^segment .*\n((?:.{11}\n){11})", out.getvalue())
    assert (R.from_text(boards[-1].rstrip("\n")) == R.solve(maze[None]).labels[0]).all()
    steps = R.solve(maze[None]).lengths[0]
    assert f"solved after {len(thought.told)} segments: a shortest path of {steps} steps" in out.getvalue()
    first = S.write_picture(thought, tmp_path / "a.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.width > 3 * picture.height / 2
    assert S.write_picture(thought, tmp_path / "a.png").read_bytes() == first
    first = S.write_animation(thought, tmp_path / "a.gif").read_bytes()
    with Image.open(tmp_path / "a.gif") as moving:
        assert moving.format == "GIF" and moving.n_frames >= len(thought.moving)
    assert S.write_animation(thought, tmp_path / "b" / "a.gif").read_bytes() == first


def test_what_stands_still_is_passed_over():
    maze = R.from_text(DRAWN)
    answers = np.stack([maze, maze, np.where(maze == R.OPEN, R.PATH, maze).astype(np.uint8), maze])
    told = [S.judge(maze, answer) for answer in answers]
    thought, out = S.Thought(maze, answers, np.full(4, 0.25), told, tries=3), io.StringIO()
    S.tell(thought, out)
    assert thought.moving == [0, 2, 3] and re.findall(r"^segment (\d)", out.getvalue(), re.M) == ["1", "3", "4"]
    assert "no shortest path in 4 segments, and in none of 3 tries: not connected" in out.getvalue()
    assert "solved" not in out.getvalue()


def test_tries_look_from_other_sides(monkeypatch):
    "A stand-in for a model that is right about one image of a maze alone."
    data = from_generated(generate(3, (7, 7), rng=6, progress=False))
    model, right = model_for(), data.labels.reshape(3, -1)
    images = {
        bytes(maze.reshape(-1)[table].tobytes()): (row, n)
        for row, maze in enumerate(data.mazes)
        for n, table in enumerate(symmetries((7, 7)))
    }

    class Knowing(type(model)):
        def forward(self, carry, *more):
            carry, outputs = super().forward(carry, *more)
            for at, inputs in enumerate(carry.batch["inputs"].numpy().astype(np.uint8)):
                row, side = images[inputs.tobytes()]
                answer = right[row][symmetries((7, 7))[side]] if side == row + 3 else inputs
                outputs["logits"][at] = torch.nn.functional.one_hot(
                    torch.from_numpy(answer.astype(np.int64)), 6
                ).float()
            return carry, outputs

    model.__class__ = Knowing
    thoughts = S.think_about(data, model, 2, tries=8)
    assert all(2 <= thought.attempt <= 8 and thought.took == 1 for thought in thoughts)
    assert all((thought.found.reshape(-1) == label).all() for thought, label in zip(thoughts, right))
    out = io.StringIO()
    S.solve_mazes(data.take([0]), model, 2, out, tries=8)
    assert (
        f"try {S.think_about(data.take([0]), model, 2, tries=8)[0].attempt} of 8, seen from another side:"
        in out.getvalue()
    )
    assert "solved after 1 segments: a shortest path of" in out.getvalue()
    assert re.search(r"breadth-first search, which is always right: \d+\.\d{3} ms a maze\n$", out.getvalue())


def test_what_is_solved_at_the_first_look_is_not_tried_again():
    "By the model that comes with the package, as the command does it: one maze, and eight tries that nobody needs."
    data = from_generated(generate(2, (11, 11), rng=0, progress=False))
    model, _, _ = load(SHIPPED / "maze", data.shape, pick("cpu", "float32"))
    thoughts = S.think_about(data, model, 32, tries=8)
    assert [(thought.attempt, thought.found, thought.told[-1]) for thought in thoughts] == [(1, None, S.SOLVED)] * 2
    assert all((thought.answers[-1] == label).all() for thought, label in zip(thoughts, data.labels))
    with pytest.raises(ValueError, match="tries 9; allowed are 1 to 8"):
        S.think_about(data, model, 32, tries=9)


def test_loops_are_said():
    out = io.StringIO()
    maze = S.mazes_of(b"S   \n    \n   G", "f")
    S.solve_mazes(maze, on(model_for(), (3, 4), "neighbours"), 1, out)
    assert "there are 10 shortest paths; each of them counts" in out.getvalue()


@pytest.mark.parametrize(
    "text, said",
    [
        (b"", "f: found an empty file"),
        (b"S#\n#?", "f:2:2: a wrong character: found '?'"),
        (b"S #\n# ", "f:2:3: a ragged line"),
        (b"S #\n# #", "f:1:1: no goal in the maze; allowed is one"),
        (b"SG#\n# S", "f:2:3: another start; allowed is one"),
        (b"S#G", "f:1:1: no way leads from here to the goal"),
        (b"question\nS  G\nS  ?\n", "f:3: the maze has a wrong character: found '?'"),
    ],
)
def test_mazes_that_cannot_be_solved(text, said):
    with pytest.raises(DataError) as error:
        S.mazes_of(text, "f")
    assert said in str(error.value)


# --- hrm maze -----------------------------------------------------------------------------------------------------------

RUN = dict(
    set="own",
    sees="neighbours",
    aim="dead_ends",
    pace=2,
    arch=ARCH,
    optim=dict(name="adamw", lr=1e-3),
    loop=dict(steps=2, evaluate_every=1, log_every=1, best="exact", compile="off"),
    batch_size=4,
    cross_entropy="softmax",
    augment=True,
    evaluate_puzzles=4,
    device="cpu",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    "A project with a model of two steps."
    folder = tmp_path_factory.mktemp("project")
    sets = {"own": dict(size=7, kind="perfect", length="any", train=24, held_out=6)}
    data = {"source": "generated", "seed": 0, "sets": sets}
    params = {"profiles": {"tiny": {"maze": {"data": data, "train": {"seed": 0, "runs": {"maze": RUN}}}}}}
    (folder / "params.yaml").write_text(json.dumps(params))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HRM_ROOT", str(folder))
        assert main(["maze", "data", "--profile", "tiny"]) == 0
        assert main(["maze", "train", "--profile", "tiny"]) == 0
    return folder


@pytest.fixture
def best(project) -> str:
    return str(project / "data" / "tiny" / "maze" / "train" / "maze" / "best")


@pytest.fixture
def hrm(project, monkeypatch, capsys):
    "Run the command line in this process: exit code, standard output, standard error."
    monkeypatch.setenv("HRM_ROOT", str(project))

    def call(*words, stdin: bytes = b"") -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(["maze", *map(str, words)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return call


@pytest.fixture
def refused(hrm):
    "Run a command that is to be refused: exit code 2, one line on standard error that says all this."

    def call(*words, says: str, stdin: bytes = b"", lines: int = 1):
        code, out, err = hrm(*words, stdin=stdin)
        assert (code, out, len(err.splitlines())) == (2, "", lines), err
        assert err.startswith("hrm: ") and says in err, err

    return call


def test_the_checkpoint_says_what_it_is(best):
    model, told, meta = load(best)
    assert (told.shape, told.sees, meta["config"]["system"]) == ((7, 7), "neighbours", "maze")
    assert load(best, (9, 13))[0].config.seq_len == 117


def test_data_makes_a_set_of_ones_own(hrm, refused, tmp_path):
    words = (
        "data",
        "--profile",
        "tiny",
        "--count",
        20,
        "--size",
        "7x9",
        "--kind",
        "braided",
        "--braid",
        0.5,
        "--length",
        "6-20",
    )
    code, out, err = hrm(*words, "--out", tmp_path / "a", "--seed", 3)
    assert (
        (code, err) == (0, "") and "own: 18 mazes to train on, 2 held out, 0 bad ones skipped" in out and "7x9" in out
    )
    hrm(*words, "--out", tmp_path / "b", "--seed", 3)
    files = [{k: v for k, v in tiny.files(tmp_path / name).items()} for name in "ab"]
    assert files[0] == files[1]
    data = load_official(tmp_path / "a" / "own" / "train")
    assert (len(data), data.shape) == (18, (7, 9)) and data.lengths.min() >= 6 and data.lengths.max() <= 20
    refused("data", "--size", 9, says="found --size without --count")
    refused("data", "--profile", "tiny", "--count", 9, "--size", "8", says="allowed are odd numbers")
    refused("data", "--profile", "tiny", "--count", 9, "--length", "1-2-3", says="--length: found '1-2-3'")
    refused("data", "--profile", "tiny", "--count", 9, "--braid", 0.5, says="allowed: braid with the kind braided")
    assert own_set(None) is None


def test_train_says_what_came_of_it(hrm, refused, project, tmp_path):
    where = ("--out", tmp_path / "runs", "--resume", tmp_path / "resume")
    code, out, err = hrm("train", "--profile", "tiny", *where)
    assert (code, err) == (0, "") and "maze: 2 steps" in out and "connected" in out
    ours, theirs = (tiny.files(folder) for folder in (tmp_path / "runs", project / "data/tiny/maze/train"))
    assert ours == theirs, "the same command, the same bytes"
    refused("train", "--profile", "tiny", "--run", "5x5", says="--run: found '5x5'; profile tiny has: maze")
    refused("train", "--profile", "tiny", "--data", tmp_path, says="no data set")


def test_evaluate_reads_every_layout(hrm, best, tmp_path):
    data = from_generated(generate(12, (9, 11), 0.5, rng=7, progress=False))
    write_csv(data, tmp_path / "mazes.csv")
    (tmp_path / "mazes.txt").write_text(
        "\n\n".join(map(R.to_text, data.mazes)).translate(str.maketrans("# SG", "01AB"))
    )
    save_official(data, tmp_path / "folder", "test")
    first = None
    for words in (
        ("--data", tmp_path / "mazes.csv", "--shape", "9x11"),
        (tmp_path / "mazes.txt", "--signs", "01AB"),
        ("--data", tmp_path / "folder"),
    ):
        code, out, err = hrm("evaluate", *words, "--checkpoint", best, "--segments", 2)
        assert (code, err) == (0, "") and out.splitlines()[-1].split()[:2] == ["all", "12"]
        first = first or out
        assert out == first
    there = tmp_path / "table.json"
    code, out, _ = hrm("evaluate", tmp_path / "folder", "--checkpoint", best, "--tries", 2, "--halt", "--json", there)
    stored = json.loads(there.read_text())
    assert (
        code == 0 and {"exact", "shortest", "connected", "solved_within_tries"} < set(stored) and stored["tries"] == 2
    )
    assert stored["levels"][-1]["mazes"] == 12 and stored["segments"] == E.depth(4, (7, 7), (9, 11)) == 7
    assert 0 <= stored["exact"] <= stored["shortest"] <= stored["connected"] <= 1
    again = hrm("evaluate", tmp_path / "folder", "--checkpoint", best, "--tries", 2, "--halt", "--json", there)
    assert again[:2] == (0, out) and json.loads(there.read_text()) == stored


def test_evaluate_refuses(refused, hrm, best, tmp_path):
    (tmp_path / "bad.txt").write_text(f"{DRAWN}\n\n{DRAWN.replace('G', '?')}\n")
    code, out, err = hrm("evaluate", tmp_path / "bad.txt", "--checkpoint", best, "--segments", 1)
    assert (
        code == 0
        and f"{tmp_path}/bad.txt:10:8: a wrong character: found '?'" in err
        and "1 mazes read, 1 skipped" in err
    )
    refused("evaluate", tmp_path / "bad.txt", "--strict", "--checkpoint", best, says="bad.txt:10:8", lines=2)
    refused("evaluate", "--checkpoint", best, says="no file given")
    refused("evaluate", tmp_path / "bad.txt", "--strict", "--shape", "3", says="--shape: found '3'")
    (tmp_path / "one.txt").write_text(DRAWN)
    refused("evaluate", tmp_path / "one.txt", "--checkpoint", best, "--tries", 9, says="tries 9; allowed are 1 to 4")


def test_solve_end_to_end(hrm, best, tmp_path):
    pictures = ("--picture", tmp_path / "a.png", "--animation", tmp_path / "a.gif")
    code, out, err = hrm("solve", DRAWN, "--checkpoint", best, "--segments", 3, *pictures)
    assert code in (0, 1) and err == "" and "segment 1: " in out and f"drawn: {tmp_path}/a.gif" in out
    assert ("solved after" in out) == (code == 0)
    with Image.open(tmp_path / "a.gif") as moving:
        assert moving.n_frames >= 2
    plain = lambda text: re.sub(r"\d+\.\d{3} ms", "", text).split("drawn:")[0]
    (tmp_path / "maze.txt").write_text(DRAWN + "\n")
    for words, stdin in (
        (("solve", "--file", tmp_path / "maze.txt"), b""),
        (("solve",), DRAWN.encode()),
        (("solve", "-"), DRAWN.replace("\n", "\r\n").encode()),
        (("solve", DRAWN.replace("#", "1").replace(" ", "0"), "--signs", "10SG"), b""),
    ):
        found = hrm(*words, "--checkpoint", best, "--segments", 3, stdin=stdin)
        assert found[0] == code and plain(found[1]) == plain(out)
    several = hrm("solve", f"{DRAWN}\n\n{DRAWN}", "--checkpoint", best, "--segments", 2, "--tries", 1)
    assert several[1].count("segment 1: ") == 2 and "tries" not in several[1]


@pytest.mark.parametrize(
    "maze, more, says",
    [
        ("#S#", (), "maze:1:1: no goal in the maze; allowed is one"),
        (DRAWN.replace("G", "S"), (), "maze:4:8: another start; allowed is one"),
        (DRAWN.replace("G", "g?"), (), "maze:4:9: a wrong character: found '?'"),
        (f"{DRAWN}\n\n{DRAWN}", ("--picture", "a.png"), "--picture: found 2 mazes; allowed: one at a time"),
        (DRAWN, ("--picture", "a.gif"), "a.gif: found the ending .gif; allowed: .png"),
        (DRAWN, ("--animation", "a"), "a: found the ending none; allowed: .gif"),
        (DRAWN, ("--tries", "5"), "tries 5; allowed are 1 to 4, the symmetries of a maze of 5x9"),
        (DRAWN, ("--file", "x"), "found a maze and --file; allowed: one of the two"),
        (DRAWN, ("--checkpoint", "none"), "none: no checkpoint there"),
    ],
)
def test_solve_refuses(refused, best, maze, more, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("solve", maze, *(() if "--checkpoint" in more else ("--checkpoint", best)), *more, says=says)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_somebody_else_stays(refused, best, tmp_path):
    (tmp_path / "holiday.png").write_text("a letter")
    refused("solve", DRAWN, "--checkpoint", best, "--picture", tmp_path / "holiday.png", says="not ours to replace")
    assert (tmp_path / "holiday.png").read_text() == "a letter"


def test_without_a_model_it_says_what_to_do(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("hrm.tools.commands.opening.SHIPPED", tmp_path / "shipped")
    refused("solve", DRAWN, says="`make repro`, or train another with `hrm maze train` and name it with --checkpoint")
    assert PIPELINE["maze"] == "data/laptop/maze/train/maze/best"


@pytest.mark.skipif(
    not (SHIPPED / "maze").is_dir(), reason="there is no hrm/weights/maze yet: the stage weights writes it"
)
def test_the_shipped_model_repeats_its_recorded_answers():
    model, told, meta = load(SHIPPED / "maze", placement=pick("cpu", "float32"))
    mazes, answers = (np.stack([R.from_text(text) for text in part]) for part in zip(*meta["answers"].items()))
    found = rollout(model, torch.from_numpy(mazes.reshape(len(mazes), -1).astype(np.int64)))
    assert len(mazes) == 8 and (found.tokens[:, -1] == answers.reshape(8, -1)).all()
    assert (R.marks(mazes, answers, answers) == 1).all(axis=None) and 0 < meta["figure"] <= 1
    assert meta["licence"] == "Apache-2.0" and 0.5 <= meta["halting_threshold"] < 1


# --- the benchmark ------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(tiny.ROOT / "benchmarks"))
    import maze_labels

    return maze_labels


def test_solvers_that_are_right_differ_by_their_ties(program):
    data = from_generated(generate(60, (9, 9), 0.8, rng=0, progress=False))
    found = program.measure(data, np.random.default_rng(0))
    solvers = found["solvers"]
    assert all(one[mark]["value"] == 1 for one in solvers.values() for mark in ("shortest", "connected"))
    assert solvers["search, as the labels"]["exact"]["value"] == 1 > solvers["search, upside down"]["exact"]["value"]
    ways = R.solve(data.mazes).ways
    assert found["several"]["value"] == (ways > 1).mean() and sum(found["ways"].values()) == 60
    assert solvers["any shortest path at random"]["exact"]["value"] == pytest.approx((1 / ways).mean())
    for table in symmetries((9, 9)):  # taken back, an answer belongs to the maze as it stands
        assert (R.marks(data.mazes, program.under(data, table), data.labels).shortest == 1).all()


def test_the_record_of_the_official_labels(program):
    record = json.loads((tiny.ROOT / "reports" / "benchmarks" / "maze_labels.json").read_text())
    assert record["mazes"] == 1000 and record["lengths"]["least"] == 109 and record["several"]["value"] > 0.99
    exact = {name: one["exact"]["value"] for name, one in record["solvers"].items()}
    assert (
        exact["search, as the labels"] == 1 and exact["search, upside down"] < 0.01 < exact["search, left to right"] < 1
    )
    file = SHARED / "data" / program.FILE
    if file.is_file():  # the record is what the program finds
        data = read(file)[0].take(slice(100))
        few = program.measure(data, np.random.default_rng(0))["solvers"]
        assert (
            few["search, upside down"]["exact"]["value"] < 0.05 and few["search, as the labels"]["exact"]["value"] == 1
        )


def test_the_benchmark_says_what_is_missing(program, tmp_path, monkeypatch):
    monkeypatch.setenv("HRM_SHARED", str(tmp_path))
    with pytest.raises(SystemExit, match="maze_labels: .*no such file or folder; set HRM_SHARED"):
        program.main(out=str(tmp_path / "out.json"))
    assert not os.path.exists(tmp_path / "out.json")


def test_config_errors_name_the_key():
    with pytest.raises(ConfigError, match="--kind: found"):
        own_set(9, kind="round")
