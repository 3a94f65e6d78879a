"""Mazes: search and marks, generator, symmetries, files that people have, and what the pipeline builds."""

import csv
import hashlib
import io
import json
import time
from collections import Counter, deque
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import shared
from hrm.core.config import ConfigError, validate
from hrm.core.errors import DataError
from hrm.maze import data as D
from hrm.maze import dataset as M
from hrm.maze import files as F
from hrm.maze import generate as G
from hrm.maze import rules as R
from hrm.maze import symmetry as Y
from hrm.maze.draw import draw_maze, pretty
from hrm.puzzles.split import shared as shared_keys
from hrm.puzzles.split import split as split_keys
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

OFFICIAL = "data/maze/maze_30x30_hard_train.csv"
seeds = st.integers(0, 2**32 - 1)


def wild(seed: int, h: int, w: int, walls: float = 0.35, many: int = 1) -> np.ndarray:
    "Mazes with walls thrown at random, some without a way."
    rng = np.random.default_rng(seed)
    mazes = np.where(rng.random((many, h * w)) < walls, R.WALL, R.OPEN).astype(np.uint8)
    for maze in mazes:
        maze[rng.choice(h * w, 2, replace=False)] = R.START, R.GOAL
    return mazes.reshape(many, h, w)


def neighbours(maze: np.ndarray, cell: tuple[int, int]) -> list[tuple[int, int]]:
    "Open cells below, left, right and above."
    around = [(cell[0] + r, cell[1] + c) for r, c in ((1, 0), (0, -1), (0, 1), (-1, 0))]
    return [(r, c) for r, c in around if 0 <= r < maze.shape[0] and 0 <= c < maze.shape[1] and maze[r, c] != R.WALL]


def place(maze: np.ndarray, token: int) -> tuple[int, int]:
    return tuple(map(int, np.argwhere(maze == token)[0]))


def breadth_first(maze: np.ndarray) -> tuple[dict, dict]:
    "Steps and first parents, with a queue and dictionaries."
    start = place(maze, R.START)
    steps, parent, queue = {start: 0}, {}, deque([start])
    while queue:
        cell = queue.popleft()
        for other in neighbours(maze, cell):
            if other not in steps:
                steps[other], parent[other] = steps[cell] + 1, cell
                queue.append(other)
    return steps, parent


def walks(maze: np.ndarray, way: tuple) -> list[tuple]:
    "Every way to the goal that begins so and visits no cell twice."
    if maze[way[-1]] == R.GOAL:
        return [way]
    return [one for other in neighbours(maze, way[-1]) if other not in way for one in walks(maze, (*way, other))]


def content(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def small() -> M.Mazes:
    return M.from_generated(G.generate(12, (7, 9), 0.5, rng=0, progress=False))


@pytest.fixture(scope="module")
def official() -> M.Mazes:
    data, report = F.read(shared(OFFICIAL), strict=True)
    assert (len(data), report.bad, data.shape) == (1000, [], (30, 30))
    return data


# ------------------------------------------------------------ text, search


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_text(h, w, data):
    maze = np.array(data.draw(st.lists(st.integers(1, 5), min_size=h * w, max_size=h * w)), np.uint8).reshape(h, w)
    text = R.to_text(maze)
    assert (R.from_text(text) == maze).all() and R.from_text(text).dtype == np.uint8
    assert (R.from_text(text.replace("\n", ""), (h, w)) == maze).all()
    assert [len(line) for line in text.split("\n")] == [w] * h


@pytest.mark.parametrize(
    "text, word",
    [
        ("", "row 1 has 0 characters"),
        ("S G\n##", "row 2 has 2 characters; allowed are 3, as in row 1"),
        ("S G\n#?#", r"row 2 column 2 is '\?'; allowed are # for a wall, a blank, S, G and o"),
        ("S\tG", "row 1 column 2 is"),
    ],
)
def test_text_errors(text, word):
    with pytest.raises(ValueError, match=word):
        R.from_text(text)


def test_ids_are_the_official_ones():
    assert R.CHARS == "# SGo" and [R.WALL, R.OPEN, R.START, R.GOAL, R.PATH] == [1, 2, 3, 4, 5] and R.TOKENS == 6
    assert R.from_text("# SGo").tolist() == [[1, 2, 3, 4, 5]]
    assert R.to_text(np.array([[0, 1]])) == "?#"


@settings(max_examples=60, deadline=None)
@given(seed=seeds, h=st.integers(1, 9), w=st.integers(2, 9), walls=st.sampled_from([0.0, 0.3, 0.5]))
def test_search_against_a_queue_and_dictionaries(seed, h, w, walls):
    mazes = wild(seed, h, w, walls, 5)
    found, steps, back = R.solve(mazes), R.distances(mazes), R.distances(mazes, R.GOAL)
    for row, maze in enumerate(mazes):
        expected, parent = breadth_first(maze)
        grid = np.full((h, w), -1)
        for cell, step in expected.items():
            grid[cell] = step
        assert (steps[row] == grid).all()
        goal, start = place(maze, R.GOAL), place(maze, R.START)
        assert found.lengths[row] == grid[goal] == back[row][start]
        label, cell = maze.copy(), parent.get(goal, start)
        while cell != start:
            label[cell], cell = R.PATH, parent[cell]
        assert (found.labels[row] == label).all()
    assert (R.unmarked(found.labels) == mazes).all() and (R.solve(found.labels).labels == found.labels).all()


@settings(max_examples=30, deadline=None)
@given(seed=seeds, h=st.integers(1, 4), w=st.integers(2, 4))
def test_number_of_shortest_paths(seed, h, w):
    for maze in wild(seed, h, w, 0.25, 4):
        every = [len(way) - 1 for way in walks(maze, (place(maze, R.START),))]
        found = R.solve(maze[None])
        least = min(every, default=-1)
        assert (found.lengths[0], found.ways[0]) == (least, every.count(least))


def test_an_open_room_has_binomially_many_ways():
    room = np.full((1, 20, 20), R.OPEN, np.uint8)
    room[0, 0, 0], room[0, -1, -1] = R.START, R.GOAL
    assert R.solve(room).lengths.tolist() == [38] and R.solve(room).ways.tolist() == [35345263800.0]


def test_nothing_and_nonsense():
    none = R.solve(np.zeros((0, 5, 7), np.uint8))
    assert (none.labels.shape, none.lengths.shape, none.ways.shape) == ((0, 5, 7), (0,), (0,))
    assert len(R.marks(*np.zeros((3, 0, 5, 7), np.uint8))) == 0
    for text, word in (("S #", "0 times the character G"), ("SSG", "2 times the character S"), (" G", "0 times")):
        with pytest.raises(ValueError, match=word):
            R.solve(R.from_text(text)[None])
        with pytest.raises(ValueError, match=word):
            R.marks(*[R.from_text(text)[None]] * 3)


def test_degrees_and_junctions():
    cross = R.from_text("##S##\n#   #\n#o#o#\n# o  \n#G###")
    assert R.degrees(cross).tolist() == [
        [0, 0, 1, 0, 0],
        [0, 2, 3, 2, 0],
        [0, 2, 0, 2, 0],
        [0, 3, 2, 3, 1],
        [0, 1, 0, 0, 0],
    ]
    assert R.junctions(R.solve(cross[None]).labels).tolist() == [2]
    assert R.junctions(R.from_text("SooG")[None]).tolist() == [0]


# ------------------------------------------------------------------- marks

ROOM = "S  #\n # #\n   G\n## #"
ANSWERS = {  # exact, shortest, connected
    "S  #\no# #\noooG\n## #": (1, 1, 1),  # the label
    "Soo#\n #o#\n  oG\n## #": (0, 1, 1),  # the other shortest path
    "Soo#\no#o#\noooG\n## #": (0, 0, 1),  # both
    "S  #\no# #\noooG\n##o#": (0, 0, 1),  # a stray mark
    "S  #\no#o#\noooG\n## #": (0, 0, 1),  # a stray mark beside the path
    "S  #\n # #\noooG\n## #": (0, 0, 0),  # a gap behind the start
    "S  #\no# #\noo G\n## #": (0, 0, 0),  # a gap before the goal
    "So #\n o #\n ooG\n## #": (0, 0, 0),  # through a wall
    "S  o\no# #\noooG\n## #": (0, 0, 0),  # a wall marked elsewhere
    "S   \no# #\noooG\n## #": (0, 0, 0),  # a wall opened elsewhere
    "S# #\no# #\noooG\n## #": (0, 0, 0),  # a wall put up
    "o  #\no# #\noooG\n## #": (0, 0, 0),  # the start painted over
    "S  #\no# #\noooo\n## #": (0, 0, 0),  # the goal painted over
    "S  #\no# #\noooG\n##G#": (0, 0, 0),  # another goal
    "S  #\no# #\noooG\n##S#": (0, 0, 0),  # another start
    "S  #\n # #\n   G\n## #": (0, 0, 0),  # no mark
}


def test_marks_of_good_bad_and_odd_answers():
    answers = np.stack([R.from_text(text) for text in ANSWERS])
    mazes = np.repeat(R.from_text(ROOM)[None], len(answers), 0)
    scores = R.marks(mazes, answers, R.solve(mazes).labels)
    assert list(scores) == ["exact", "shortest", "connected"] and set(scores.dtypes) == {np.dtype(float)}
    assert list(map(tuple, scores.to_numpy().astype(int).tolist())) == list(ANSWERS.values())
    assert scores.equals(R.marks(mazes, answers.reshape(len(answers), -1), R.solve(mazes).labels))
    padded = answers.copy()
    padded[:, -1, -1] = 0  # padding where a wall is
    assert not R.marks(mazes, padded, R.solve(mazes).labels).to_numpy().any()
    for maze, answer, score in zip(mazes, answers, scores.shortest):
        assert (R.check(maze, answer) == []) == (score == 1)


def test_side_by_side_needs_no_mark():
    maze = R.from_text("SG \n   ")[None]
    assert R.solve(maze).lengths.tolist() == [1]
    assert R.marks(maze, maze, maze).to_numpy().tolist() == [[1, 1, 1]]
    more = R.from_text("SG \no  ")[None]
    assert R.marks(maze, more, maze).to_numpy().tolist() == [[0, 0, 1]]


def test_no_way_has_no_marks():
    maze = R.from_text("S#G")[None]
    assert R.marks(maze, maze, maze).to_numpy().tolist() == [[1, 0, 0]]
    assert R.marks(maze, R.from_text("SoG")[None], maze).to_numpy().tolist() == [[0, 0, 0]]


@settings(max_examples=80, deadline=None)
@given(seed=seeds, h=st.integers(2, 4), w=st.integers(2, 4))
def test_marks_against_all_walks(seed, h, w):
    "Labels, other walks, and the same with some cells changed."
    (maze,), rng = wild(seed, h, w, 0.2), np.random.default_rng(seed)
    every = walks(maze, (place(maze, R.START),))
    least = min(map(len, every), default=0)
    label, answers = R.solve(maze[None]).labels, []
    for _ in range(30):
        answer = maze.copy()
        for cell in every[rng.integers(len(every))][1:-1] if every else ():
            answer[cell] = R.PATH
        for _ in range(rng.integers(0, 3)):
            answer[rng.integers(h), rng.integers(w)] = rng.integers(0, 6)
        answers.append(answer)
    scores = R.marks(np.repeat(maze[None], 30, 0), np.stack(answers), np.repeat(label, 30, 0))
    for answer, exact, shortest, connected in zip(answers, *scores.to_numpy().T):
        kept = all(a == q or (q == R.OPEN and a == R.PATH) for a, q in zip(answer.flat, maze.flat))
        marked = set(map(tuple, np.argwhere(answer == R.PATH).tolist()))
        assert exact == (answer == label[0]).all()
        assert shortest == (kept and any(len(way) == least and marked == set(way[1:-1]) for way in every))
        assert connected == (kept and any(set(way[1:-1]) <= marked for way in every))
        assert connected >= shortest >= (exact and bool(every))


def test_what_is_wrong_is_said():
    room = R.from_text(ROOM)
    for text, word in [
        ("So #\n o #\n ooG\n## #", "row 2 column 2: a mark in the answer; the maze has a wall"),
        ("o  #\no# #\noooG\n## #", "row 1 column 1: a mark in the answer; the maze has the start"),
        ("S  #\no# #\no oG\n## #", "row 3 column 1: the marks end here; allowed is a path from the start to the goal"),
        (ROOM, "row 1 column 1: the marks end here"),
        ("Soo#\no#o#\noooG\n## #", "row 1 column 1: 7 marks between start and goal; a shortest path has 4"),
    ]:
        assert str(R.check(room, R.from_text(text))[0]).startswith(word)
    assert R.check(room, room[:2])[0].what == "the answer is 2x4; allowed is 4x4, as the maze"
    assert R.violations(room) == []
    for text, words in [
        ("S#G", ["row 1 column 1: no way leads from here to the goal; allowed is one at least"]),
        (
            "  #",
            [
                "row 1 column 1: no start in the maze; allowed is one",
                "row 1 column 1: no goal in the maze; allowed is one",
            ],
        ),
        (
            "SGS\nGS ",
            [
                f"row {r} column {c}: another {n}; allowed is one"
                for r, c, n in ((1, 3, "start"), (2, 2, "start"), (2, 1, "goal"))
            ],
        ),
        ("SoG", ["row 1 column 2: a mark in the question; allowed are walls, blanks, S and G"]),
    ]:
        assert [str(flaw) for flaw in R.violations(R.from_text(text))] == words
    assert R.violations(np.array([[3, 0, 4]]))[0].what == "token 0; allowed are 1 to 5"


# --------------------------------------------------------------- generator


@pytest.mark.parametrize("rows, columns, trees", [(2, 2, 4), (2, 3, 15), (3, 3, 192)])
def test_spanning_trees_are_uniform(rows, columns, trees):
    "All of them come up, equally often as far as chi-square can tell; a biased generator would not pass."
    draws, state, counts = 200 * trees, np.array([7], np.uint64), Counter()
    for _ in range(draws):
        maze = np.full((2 * rows + 1) * (2 * columns + 1), R.WALL, np.uint8)
        G._wilson(rows, columns, state, maze)
        counts[maze.tobytes()] += 1
    assert len(counts) == trees
    statistic = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert 0.001 < chi2.sf(statistic, trees - 1) < 0.999


def loops(mazes: np.ndarray) -> np.ndarray:
    "Independent cycles of connected mazes."
    return R.degrees(mazes).sum((1, 2)) // 2 - (mazes != R.WALL).sum((1, 2)) + 1


@settings(max_examples=12, deadline=None)
@given(seed=seeds, h=st.sampled_from([7, 9, 13]), w=st.sampled_from([7, 11, 15]))
def test_generated_mazes(seed, h, w):
    ends = []
    for braid in (0.0, 0.4, 1.0):
        made = G.generate(40, (h, w), braid, rng=seed, progress=False)
        assert made.mazes.shape == made.labels.shape == (40, h, w) and made.mazes.dtype == np.uint8
        assert all(R.violations(maze) == [] for maze in made.mazes)
        assert len(np.unique(made.mazes, axis=0)) == 40
        assert (made.mazes[:, 1::2, 1::2] != R.WALL).all()  # all rooms are open
        assert (made.mazes[:, ::2, ::2] == R.WALL).all()  # all posts stand
        frame = np.ones((h, w), bool)
        frame[1:-1, 1:-1] = False
        assert (made.mazes[:, frame] == R.WALL).all()
        steps = R.distances(made.mazes)
        assert ((steps >= 0) == (made.mazes != R.WALL)).all()  # everything can be reached
        found = R.solve(made.mazes)
        assert (found.labels == made.labels).all() and (found.lengths == made.lengths).all()
        assert (made.junctions == R.junctions(made.labels)).all()
        assert (made.lengths >= 0.75 * steps.max((1, 2))).all() and (made.lengths % 2 == 0).all()
        assert (loops(made.mazes) == 0).all() == (braid == 0)
        ends.append((R.degrees(made.mazes) == 1).sum((1, 2)))
        assert braid or (found.ways == 1).all()
    assert ends[0].mean() > ends[1].mean() > ends[2].mean() == 0


@pytest.mark.parametrize("braid", [0.25, 0.5, 0.8, 1.0])
def test_the_share_of_dead_ends_is_removed(braid):
    state = np.array([3], np.uint64)
    for _ in range(50):
        maze = np.full(21 * 21, R.WALL, np.uint8)
        G._wilson(10, 10, state, maze)
        before = (R.degrees(maze.reshape(21, 21)) == 1).sum()
        G._braid(maze, 10, 10, braid, state)
        left = before - (R.degrees(maze.reshape(21, 21)) == 1).sum()
        assert left - int(braid * before + 0.5) in (0, 1)  # one opening may end two


def test_lengths_that_were_asked_for():
    for shape, braid, lengths in [
        ((11, 11), 0.0, (20, 24)),
        ((15, 9), 0.6, (4, 4)),
        ((11, 11), 0.0, (36, 48)),
        ((31, 31), 0.0, (2, 900)),
    ]:
        made = G.generate(30, shape, braid, lengths, rng=1, progress=False)
        assert lengths[0] <= made.lengths.min() and made.lengths.max() <= lengths[1]
        assert (made.lengths == R.solve(made.mazes).lengths).all()


def test_the_bytes_of_a_seed_do_not_move():
    made = G.generate(20, (11, 11), rng=0, progress=False)
    assert R.to_text(made.labels[0]) == FIRST
    braided = G.generate(20, (9, 13), 0.5, (10, 20), rng=1, progress=False)
    assert hashlib.sha256(made.labels.tobytes() + braided.labels.tobytes()).hexdigest()[:16] == HASH
    assert (G.generate(5, (11, 11), rng=0, progress=False).mazes == made.mazes[:5]).all()
    assert (G.generate(20, (11, 11), rng=np.random.default_rng(0), progress=False).mazes == made.mazes).all()
    assert (G.generate(20, (11, 11), rng=2, progress=False).mazes != made.mazes).any()


FIRST = """\
###########
#   #  ooo#
# #####o#o#
#S#   #o#o#
#o# ###o#o#
#o  #ooo#o#
#o###o# #o#
#ooooo# #G#
### ##### #
#       # #
###########"""
HASH = "2432d411dc2d89e1"


def test_bad_requests():
    for shape in ((10, 11), (5, 7), (63, 61), (7, 8)):
        with pytest.raises(ValueError, match="allowed are odd numbers of rows and columns from 7 to 61"):
            G.generate(1, shape, progress=False)
    for lengths in ((0, 4), (9, 9), (8, 4), (18, 20)):
        with pytest.raises(ValueError, match="fewest <= 16 for 7x7"):
            G.generate(1, (7, 7), lengths=lengths, progress=False)
    with pytest.raises(ValueError, match="allowed is a share from 0"):
        G.generate(1, braid=-0.1, progress=False)
    with pytest.raises(RuntimeError, match="found only 0 of 3 distinct mazes of 15x15 with a path of 94 to 96 steps"):
        G.generate(3, (15, 15), lengths=(94, 96), progress=False)
    with pytest.raises(RuntimeError, match="allow other lengths or ask for fewer"):  # 192 trees, few pairs
        G.generate(200_000, (7, 7), lengths=(16, 16), progress=False)
    assert G.generate(0, (7, 7), progress=False).mazes.shape == (0, 7, 7)


def test_speed():
    "20,000 mazes of 11x11 in a few seconds are wanted; the bound is loose for a busy machine, and counts processor time."
    G.generate(1, (11, 11), progress=False)
    started = time.process_time()
    G.generate(20_000, (11, 11), progress=False)
    seconds = time.process_time() - started
    print(f"20,000 mazes of 11x11 in {seconds:.2f} s")
    assert seconds < 5


# -------------------------------------------------------------- symmetries


@pytest.mark.parametrize("h, w", [(7, 7), (7, 9), (4, 3)])
def test_symmetries_are_turns_and_mirrors(h, w):
    grid = np.arange(h * w).reshape(h, w)
    turned = [np.rot90(one, k) for one in (grid, np.fliplr(grid)) for k in range(4)]
    expected = {tuple(one.reshape(-1).tolist()) for one in turned if one.shape == (h, w)}
    assert {tuple(one) for one in Y.symmetries((h, w)).tolist()} == expected
    assert len(expected) == (8 if h == w else 4) and (Y.symmetries((h, w))[0] == np.arange(h * w)).all()


@settings(max_examples=20, deadline=None)
@given(seed=seeds, shape=st.sampled_from([(7, 7), (7, 11), (9, 9)]))
def test_a_symmetry_of_a_maze(seed, shape):
    made = G.generate(30, shape, 0.5, rng=seed % 100, progress=False)
    drawn = Y.draw_symmetry(30, shape, torch.Generator().manual_seed(seed))
    mazes, labels = (torch.from_numpy(grids.reshape(30, -1)) for grids in (made.mazes, made.labels))
    moved, moved_labels = (drawn.apply(tokens).numpy().reshape(made.mazes.shape) for tokens in (mazes, labels))
    assert torch.equal(drawn.undo(drawn.apply(mazes)), mazes) and drawn.apply(mazes).dtype == torch.uint8
    scores = R.marks(moved, moved_labels, R.solve(moved).labels)
    assert scores.shortest.all() and (R.junctions(moved_labels) == made.junctions).all()
    assert (Y.canonical(moved) == Y.canonical(made.mazes)).all()
    ignored = torch.full(mazes.shape, -100)
    assert torch.equal(drawn.apply(ignored), ignored)


def test_every_symmetry_is_drawn_and_seeded():
    for shape, many in (((7, 7), 8), ((7, 9), 4)):
        drawn = Y.draw_symmetry(4000, shape, torch.Generator().manual_seed(0)).cells
        counts = drawn.unique(dim=0, return_counts=True)[1]
        assert len(counts) == many and (counts - 4000 / many).abs().max() < 5 * (4000 / many) ** 0.5
        assert torch.equal(drawn, Y.draw_symmetry(4000, shape, torch.Generator().manual_seed(0)).cells)


def test_disguises_take_each_symmetry_once():
    rows = np.arange(50)
    for shape, many in (((7, 7), 8), ((7, 9), 4)):
        draw = Y.disguises(50, shape, many, torch.Generator().manual_seed(1))
        cells = torch.stack([draw(rows, np.full(50, at)).cells for at in range(many)], 1)
        assert (cells[:, 0] == torch.arange(shape[0] * shape[1])).all()
        assert all(len(one.unique(dim=0)) == many for one in cells)
        assert len(cells[:, 1].unique(dim=0)) == many - 1  # mazes have orders of their own
        mixed = draw(rows[::-1].copy(), rows % many)
        assert all(torch.equal(mixed.cells[at], cells[49 - at, at % many]) for at in range(50))
        with pytest.raises(ValueError, match=f"tries {many + 1}; allowed are 1 to {many}"):
            Y.disguises(1, shape, many + 1, torch.Generator())


def test_canonical_is_the_least_image():
    for shape in ((5, 5), (4, 6)):
        mazes = wild(5, *shape, many=60)
        forms = Y.canonical(mazes)
        images = [[tuple(maze.reshape(-1)[table]) for table in Y.symmetries(shape)] for maze in mazes]
        assert [tuple(form) for form in forms] == [min(every) for every in images]
        assert (Y.canonical(forms.reshape(mazes.shape)) == forms).all()
    assert Y.canonical(np.zeros((0, 7, 7), np.uint8)).shape == (0, 49)
    both = np.stack([R.from_text("SG \n   \n###"), R.from_text("GS \n   \n###")])
    assert len(np.unique(Y.canonical(both), axis=0)) == 2  # start and goal are not exchanged


def test_split_keeps_images_together():
    made = G.generate(100, (7, 7), rng=0, progress=False)
    tokens = torch.from_numpy(made.mazes.reshape(100, -1))
    moved = Y.draw_symmetry(100, (7, 7), torch.Generator().manual_seed(0)).apply(tokens).numpy().reshape(-1, 7, 7)
    both = np.concatenate([made.mazes, moved])
    train, held_out = Y.split(both, 40, rng=1)
    assert len(held_out) == 40 and sorted([*train, *held_out]) == list(range(200))
    forms = Y.canonical(both)
    assert shared_keys(forms[held_out], forms[train]) == 0
    assert (Y.split(both, 40, rng=1)[1] == held_out).all()
    with pytest.raises(ValueError, match="held_out 201 of 200 puzzles"):
        Y.split(both, 201)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 30), seeds)
def test_splits_by_keys(keys, held_out, seed):
    keys = np.array(keys)[:, None]
    try:
        train, test = split_keys(keys, held_out, seed)
    except ValueError as error:
        assert f"held_out {held_out} of {len(keys)} puzzles" in str(error)
    else:
        assert len(test) == held_out and sorted([*train, *test]) == list(range(len(keys)))
        assert not set(keys[train, 0]) & set(keys[test, 0]) and shared_keys(keys[test], keys[train]) == 0
        assert shared_keys(keys, keys) == len(keys)


# ----------------------------------------------------------------- drawing


def test_drawing():
    from matplotlib.figure import Figure

    made = G.generate(1, (9, 13), rng=0, progress=False)
    maze, label = made.mazes[0], made.labels[0]
    wrong = label.copy()
    wrong[0, 0] = R.PATH
    for answer, colours in ((None, 3), (label, 4), (label.reshape(-1), 4), (wrong, 5)):
        ax = draw_maze(Figure().subplots(), maze, answer, title="t")
        ground = np.asarray(ax.images[0].get_array())
        assert ground.shape == (9, 13, 4) and len(np.unique(ground.reshape(-1, 4), axis=0)) == colours
        assert [text.get_text() for text in ax.texts] == ["S", "G"] and ax.get_title() == "t"


def test_terminal():
    made = G.generate(1, (9, 13), rng=0, progress=False)
    maze, label = made.mazes[0], made.labels[0]
    assert pretty(maze) == R.to_text(maze) and pretty(maze, label.reshape(-1)) == R.to_text(label)
    coloured = pretty(maze, label, color=True)
    plain = "\n".join("".join(part.split("m", 1)[-1] for part in line.split("\033[")) for line in coloured.split("\n"))
    assert [len(line) for line in plain.split("\n")] == [26] * 9
    assert plain.replace(" ", "").replace("\n", "") in ("SG", "GS")
    assert coloured.count("\033[44m") == made.lengths[0] - 1 and "\033[41m" not in coloured
    assert "\033" not in pretty(maze, label)


# ----------------------------------------------------------- official folder


@settings(max_examples=15, deadline=None)
@given(seed=seeds, shape=st.sampled_from([(7, 7), (7, 11), (3, 5)]), grouped=st.booleans())
def test_official_round_trip(tmp_path_factory, seed, shape, grouped):
    folder = tmp_path_factory.mktemp("official")
    mazes = wild(seed, *shape, 0.1, 7)
    data = M.from_arrays(mazes, R.solve(mazes).labels, groups=np.array([0, 0, 1, 2, 2, 2, 3]) if grouped else None)
    M.save_official(data, folder, "train")
    again = M.load_official(folder / "train")
    for key in ("mazes", "labels", "groups"):
        assert np.array_equal(getattr(again, key), getattr(data, key)), key
    M.save_official(data, folder, "test")
    assert content(folder / "train") == content(folder / "test")


def test_official_contents(small, tmp_path):
    M.save_official(small, tmp_path, "train")
    assert json.loads((tmp_path / "identifiers.json").read_text()) == ["<blank>"]
    assert json.loads((tmp_path / "train/shape.json").read_text()) == [7, 9]
    assert json.loads((tmp_path / "train/dataset.json").read_text()) == dict(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=6,
        seq_len=63,
        num_puzzle_identifiers=1,
        total_groups=12,
        total_puzzles=12,
        mean_puzzle_examples=1.0,
        sets=["all"],
    )
    inputs, labels = (np.load(tmp_path / f"train/all__{key}.npy") for key in ("inputs", "labels"))
    assert (
        inputs.dtype == np.uint8
        and set(np.unique(inputs)) == {1, 2, 3, 4}
        and set(np.unique(labels)) == {1, 2, 3, 4, 5}
    )
    assert (inputs == small.mazes.reshape(12, -1)).all() and (labels == small.labels.reshape(12, -1)).all()


def test_reads_what_the_official_builder_writes(tmp_path):
    "Eight rows a group with --aug, no shape.json: a square."
    made = G.generate(3, (9, 9), rng=0, progress=False)
    images = [grids.reshape(3, -1)[:, Y.symmetries((9, 9))].reshape(24, 81) for grids in (made.mazes, made.labels)]
    at = tmp_path / "train"
    at.mkdir()
    arrays = dict(inputs=images[0], labels=images[1], puzzle_identifiers=np.zeros(24, np.int32))
    arrays |= dict(puzzle_indices=np.arange(25, dtype=np.int32), group_indices=np.arange(0, 25, 8, dtype=np.int32))
    for key, array in arrays.items():
        np.save(at / f"all__{key}.npy", array)
    meta = dict(seq_len=81, vocab_size=6, pad_id=0, ignore_label_id=0, blank_identifier_id=0)
    meta |= dict(num_puzzle_identifiers=1, total_groups=3, mean_puzzle_examples=1, sets=["all"])
    (at / "dataset.json").write_text(json.dumps(meta))
    data, report = F.read(tmp_path, part="train")
    assert (len(data), report.bad, data.shape) == (24, [], (9, 9))
    assert (data.originals().mazes == made.mazes).all() and data.groups.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    with pytest.raises(DataError, match="test/dataset.json"):
        F.read(tmp_path)


@pytest.mark.parametrize(
    "file, spoil, word",
    [
        ("shape.json", lambda p: p.write_text("[7, 8]"), "allowed for mazes of 7x8 is 56"),
        ("shape.json", lambda p: p.write_text("[7]"), r"found \[7\]; allowed are the numbers of rows and columns"),
        ("shape.json", lambda p: p.write_text("[0, 63]"), "allowed are the numbers"),
        ("shape.json", lambda p: p.write_text("[true, 63]"), "allowed are the numbers"),
        ("shape.json", lambda p: p.write_text("{"), "not readable as JSON"),
        ("shape.json", lambda p: p.unlink(), "seq_len is 63; allowed is a square number"),
        ("dataset.json", lambda p: p.write_text(p.read_text().replace("63", "64")), "seq_len is 64; allowed"),
        ("dataset.json", lambda p: p.write_text(p.read_text().replace('_size": 6', '_size": 7')), "vocab_size is 7"),
        ("all__inputs.npy", lambda p: np.save(p, np.zeros((12, 63), int)), "token 0 to 0; allowed are 1 to 5"),
        ("all__labels.npy", lambda p: np.save(p, np.full((12, 63), 6)), "token 6 to 6"),
        ("all__labels.npy", lambda p: p.unlink(), "missing"),
    ],
)
def test_broken_folder(small, tmp_path, file, spoil, word):
    M.save_official(small, tmp_path, "test")
    spoil(tmp_path / "test" / file)
    with pytest.raises(DataError, match=word):
        F.read(tmp_path)


def test_folder_with_wrong_rows(small, tmp_path, capsys):
    labels, mazes = small.labels.copy(), small.mazes.copy()
    labels[4] = mazes[4]
    mazes[7][mazes[7] == R.START] = R.OPEN
    M.save_official(replace(small, labels=labels, mazes=mazes), tmp_path, "test")
    data, report = F.read(tmp_path)
    assert len(data) == 10 and [bad.line for bad in report.bad] == [4, 7]
    assert "the answer is not a shortest path: the marks end here" in report.bad[0].reason
    assert report.bad[1].reason.startswith("no start in the maze")
    with pytest.raises(DataError, match="all__inputs.npy:4: "):
        F.read(tmp_path, strict=True)


def test_object(small):
    assert (small.shape, len(small)) == ((7, 9), 12)
    inputs, labels = small.tokens()
    assert (
        inputs.dtype == torch.int64 and inputs.shape == (12, 63) and small.tokens(torch.int32)[0].dtype == torch.int32
    )
    assert ((inputs == labels) | (inputs == R.OPEN)).all()
    assert (small.lengths == R.solve(small.mazes).lengths).all()
    rated = replace(small, ratings=["hard", "12", "", "3.5"] + [""] * 8)
    assert rated.levels == ["hard"] + [M.band(length) for length in small.lengths[1:]]
    assert rated.take(np.array([1, 0])).levels == [M.band(small.lengths[1]), "hard"]
    assert len(small.take(small.lengths > small.lengths.min())) < 12
    assert [M.band(length) for length in (1, 7, 8, 112)] == [
        "1 to 1 steps",
        "4 to 7 steps",
        "8 to 15 steps",
        "64 to 127 steps",
    ]
    both = M.concat([small, small])
    assert len(both) == 24 and len(set(both.groups.tolist())) == 24


# ------------------------------------------------------------------- files


def drawn(grids) -> str:
    return "\n\n".join(map(R.to_text, grids)) + "\n"


def signs(text: str, to: str) -> str:
    return text.translate(str.maketrans("# SG", to))


def spaced(text: str, sign: str) -> str:
    return "\n".join(sign.join(line) for line in text.split("\n"))


def in_rooms(maze: np.ndarray, wide: int) -> str:
    "A generated maze drawn with + - |."
    lines = []
    for row, line in enumerate(R.to_text(maze).split("\n")):
        text = ""
        for column, char in enumerate(line):
            width, post = (1, "+" if row % 2 == 0 else "|") if column % 2 == 0 else (wide, "-")
            text += (post if char == "#" else char).center(width) if row % 2 else (post if char == "#" else " ") * width
        lines.append(text)
    return "\n".join(lines)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t,
        lambda t: "\ufeff" + t,
        lambda t: t.replace("\n", "\r\n"),
        lambda t: t.replace("\n", "\r"),
        lambda t: "\n\n" + t.replace("\n\n", "\n\n\n") + "\n",
        lambda t: t.rstrip("\n"),
        lambda t: signs(t, "X sg"),
        lambda t: signs(t, "x.AB"),
        lambda t: signs(t, "█ SE"),
        lambda t: signs(t, "10SG"),
        lambda t: signs(t, "■·sG"),
        lambda t: spaced(signs(t, "10SG"), " "),
        lambda t: spaced(signs(t, "10AB"), ","),
        lambda t: spaced(t, ","),
    ],
)
def test_good_drawings(small, tmp_path, change):
    (tmp_path / "a.txt").write_bytes(change(drawn(small.mazes)).encode())
    data, report = F.read(tmp_path / "a.txt", strict=True)
    assert (data.mazes == small.mazes).all() and (data.labels == small.labels).all() and report.good == 12


@pytest.mark.parametrize("wide", [1, 2, 3])
def test_rooms_of_lines(small, wide):
    text = "\n\n".join(in_rooms(maze, wide) for maze in small.mazes)
    assert set(text) <= set("+-| SG\n")
    data, bad = F.read_text(text.encode(), "rooms.txt")
    assert bad == [] and (data.mazes == small.mazes).all()


def test_answers_in_drawings(small):
    data, bad = F.read_text(drawn(small.labels).encode(), "f")
    assert bad == [] and (data.labels == small.labels).all() and (data.mazes == small.mazes).all()
    other, bad = F.read_text("S  \n # \n  G\n\nSoo\n #o\n  G\n\nSoo\n##o\noGo".encode(), "f")
    assert [R.to_text(label) for label in other.labels] == ["S  \no# \nooG", "Soo\n #o\n  G"]
    assert str(bad[0]).startswith(
        "f:9:1: the answer is not a shortest path: 5 marks between start and goal; a shortest path has 4"
    )


BAD = [  # a drawing, line and column in it, what is said
    (
        "#####\n#S?G#\n#####",
        2,
        3,
        "a wrong character: found '?'; allowed are # X x █ ▓ ■ 1 (wall), a blank . 0 · (open)",
    ),
    ("#####\n#S G\n#####", 2, 5, "a ragged line: found 4 characters; allowed are 5, as in the first one"),
    ("#####\n#S G#\n######", 3, 6, "a ragged line: found 6 characters; allowed are 5"),
    ("#####\n#S G#\nXXXXX", 3, 1, "walls drawn in two ways: found '#' and 'X'; allowed is one sign in a maze"),
    ("#####\n#S.G#\n## ##", 3, 3, "open cells drawn in two ways: found '.' and ' '"),
    ("#####\n#S#G#\n#####", 2, 2, "no way leads from here to the goal"),
    ("#####\n#S G#\n##s##", 3, 3, "another start; allowed is one"),
    ("#####\n#S B#\n##G##", 3, 3, "another goal; allowed is one"),
    ("#####\n#   #\n##G##", 1, 1, "no start in the maze; allowed is one"),
    ("#####\n#S  #\n#####", 1, 1, "no goal in the maze; allowed is one"),
    ("11 11\n1S0G1\n11111", 2, 3, "open cells drawn in two ways"),
    ("1 1 1\n1 S G\n1 1 Q", 3, 5, "a wrong character: found 'Q'"),
    ("1 1 1 1 1\n1 S 1 G 1\n1 1 1 1 1", 2, 3, "no way leads from here to the goal"),
    ("+--+--+\n|S  G |\n+- +--+", 3, 2, "half a wall: found '- '; allowed is -- or blanks"),
    ("+--+--+\n|S   G|", 2, 1, "rooms that are open below"),
    ("+--+--+\n|S SG |\n+--+--+", 2, 4, "a wrong character: found 'S'; allowed is | or a blank every 3 columns"),
    ("+--+--+\n|SG   |\n+--+--+", 2, 2, "half a wall: found 'SG'; allowed is one character in a room at most"),
    ("+--+---+\n|S   G |\n+--+---+", 1, 1, "posts at uneven distances"),
    ("+--+--+\n|S |G |\n+--+--+", 2, 2, "no way leads from here to the goal"),
    ("+--+--+\n|S   G|\n+--+--", 3, 7, "a ragged line: found 6 characters; allowed are 7"),
]


@pytest.mark.parametrize("text, line, column, said", BAD)
def test_bad_drawings(text, line, column, said, tmp_path, capsys):
    "Behind two good ones, so that lines are counted in the file."
    good = "#####\n#S G#\n#####\n\n"
    (tmp_path / "b.txt").write_text(good + good + text + "\n")
    data, report = F.read(tmp_path / "b.txt")
    assert len(data) == 2 and len(report.bad) == 1
    (bad,) = report.bad
    assert (bad.line, bad.column) == (8 + line, column) and bad.reason.startswith(said), bad
    err = capsys.readouterr().err
    assert f"b.txt:{8 + line}:{column}: {said}" in err and "2 mazes read, 1 skipped" in err
    with pytest.raises(DataError, match=f"b.txt:{8 + line}:{column}: "):
        F.read(tmp_path / "b.txt", strict=True)


def test_a_line_of_blanks_is_a_row():
    data, bad = F.read_text(b"S  \n   \n  G\n\n    \nS##G\n", "f")
    assert [R.to_text(maze) for maze in data.mazes] == [
        "S  \n   \n  G"
    ] and "another shape: found 2x4; allowed is 3x3" in bad[0].reason
    data, bad = F.read_text(b"   \nS#G", "f")
    assert R.to_text(data.labels[0]) == "ooo\nS#G" and bad == []


def test_signs():
    text = "2001\n0110\n0003".replace("2", "P").replace("3", "Q")
    table = F.signs_of(start="P", goal="Q")
    assert R.to_text(F.read_text(text.encode(), "f", table)[0].mazes[0]) == "S  #\n ## \n   G"
    table = F.signs_of(start="P", goal="Q", wall="0", open="1")
    data, bad = F.read_text(text.encode(), "f", table)
    assert data is None and bad[0].reason.startswith("no way leads")
    table = F.signs_of(start="X", goal="#", wall="G", open="S")
    assert R.to_text(F.read_text(b"XSS#\nGGGG", "f", table)[0].labels[0]) == "SooG\n####"
    with pytest.raises(DataError, match="start: found 'P', which is a sign of goal too; allowed is one meaning"):
        F.signs_of(start="P", goal="QP")
    for wrong in ("", "a+", "\n", "-"):
        with pytest.raises(DataError, match="wall: found .*; allowed are one or more characters, none of them"):
            F.signs_of(wall=wrong)
    assert F.signs_of(wall=None) == F.signs_of()


def table(data: M.Mazes, *more: str) -> str:
    lines = F.to_csv(data).split("\n")
    return "\n".join([*lines[:4], *more, *lines[4:]])


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t,
        lambda t: "\ufeff" + t,
        lambda t: t.replace("\n", "\r\n"),
        lambda t: "\n\n" + t + "\n\n",
        lambda t: t.replace(",", ";"),
        lambda t: t.replace(",", "\t"),
        lambda t: "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in t.strip().split("\n")),
        lambda t: t.replace("question", " Maze ", 1).replace("answer", '"Solution"', 1),
        lambda t: "\n".join(line.split(",")[1] for line in t.strip().split("\n")),
        lambda t: "\n".join(",".join(line.split(",")[:2]) for line in t.strip().split("\n")),
        lambda t: "\n".join(",".join(reversed(line.split(","))) for line in t.strip().split("\n")),
    ],
)
def test_good_tables(small, tmp_path, change):
    (tmp_path / "a.csv").write_bytes(change(table(small)).encode())
    data, report = F.read(tmp_path / "a.csv", strict=True, shape=(7, 9))
    assert (data.mazes == small.mazes).all() and (data.labels == small.labels).all() and report.good == 12


def test_bad_rows_of_a_table(small, tmp_path, capsys):
    question, answer = (R.to_text(grid).replace("\n", "") for grid in (small.mazes[0], small.labels[0]))
    start, mark = question.index("S"), answer.index("o")
    row, column = start // 9 + 1, start % 9 + 1
    cases = [
        (
            f"me,{question[:-1]},{answer},1",
            "the maze has the wrong length: found 62 characters; allowed are 63 for 7x9",
        ),
        (f"me,{question.strip('#')},,1", "the maze has the wrong length: found"),
        ("me,,,", "the maze has the wrong length: found 0 characters"),
        (f"me,{question},{answer}#,1", "the answer has the wrong length: found 64 characters; allowed are 63 for 7x9"),
        (f"me,?{question[1:]},,1", "the maze has a wrong character: found '?'"),
        (f"me,{question},{answer[:-1]}?,1", "the answer has a wrong character: found '?'"),
        (f"me,{question.replace('S', ' ')},,1", "no start in the maze; allowed is one (row 1 column 1 of the maze)"),
        (f"me,{question.replace('G', 'S')},,1", "another start; allowed is one (row"),
        (f"me,{answer},,1", "a mark in the question; allowed are walls, blanks, S and G (row"),
        (
            f"me,{question},{question},1",
            f"the answer is not a shortest path: the marks end here; allowed is a path from the start to the goal (row {row} column {column} of the maze)",
        ),
        (
            f"me,{question},{answer[:mark]}#{answer[mark + 1 :]},1",
            "the answer is not a shortest path: a wall in the answer; the maze has an open cell",
        ),
        (f"me,{question},{answer},1,extra", "the row has the wrong number of fields: found 5; allowed are 2 to 4"),
        ("me", "the row has the wrong number of fields: found 1"),
        (f'"me,{question},{answer},1', "the row has the wrong number of fields: found 1"),
    ]
    (tmp_path / "b.csv").write_text(table(small, *(row for row, _ in cases)))
    data, report = F.read(tmp_path / "b.csv", shape=(7, 9))
    assert (data.mazes == small.mazes).all() and f"12 mazes read, {len(cases)} skipped" in capsys.readouterr().err
    assert [bad.line for bad in report.bad] == [5 + at for at in range(len(cases))]
    for bad, (_, said) in zip(report.bad, cases):
        assert bad.reason.startswith(said) and bad.column == 0, bad
    with pytest.raises(DataError, match="b.csv:5: the maze has the wrong length"):
        F.read(tmp_path / "b.csv", shape=(7, 9), strict=True)


@pytest.mark.parametrize(
    "raw, word",
    [
        (b"", "empty file"),
        (b"\x89PNG\r\n\x1a\n\0\xff", "not UTF-8"),
        (b"a\0b", "binary"),
        (b"\n\n", "no maze in it"),
        ("\ufeff".encode(), "no maze in it"),
        (b"source,question,answer,rating\n", "no maze in it"),
        (b"text,path to goal\n1,2\n", "found the header 'text,path to goal'; allowed is one with a column `question`"),
        (b"hello world\n", "no usable maze"),
    ],
)
def test_unusable_files(tmp_path, raw, word):
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(DataError, match=word) as error:
        F.read(tmp_path / "f")
    assert str(tmp_path / "f") in str(error.value)


def test_missing_files_and_several_shapes(small, tmp_path, capsys, monkeypatch):
    with pytest.raises(DataError, match="no such file or folder"):
        F.read(tmp_path / "nothing")
    with pytest.raises(DataError, match="no file given"):
        F.read()
    square = G.generate(3, (7, 7), rng=0, progress=False).mazes
    (tmp_path / "one").write_text(drawn(small.mazes))
    (tmp_path / "two").write_text(drawn(square))
    with pytest.raises(DataError, match="mazes of several shapes: .*one has 7x9, .*two has 7x7"):
        F.read(tmp_path / "one", tmp_path / "two")
    (tmp_path / "both").write_text(drawn(small.mazes) + "\n" + drawn(square))
    data, report = F.read(tmp_path / "both")
    assert (data.shape, len(report.bad)) == ((7, 9), 3)
    assert report.bad[0].reason == "the maze has another shape: found 7x7; allowed is 7x9, as most of the file's"
    assert F.read(tmp_path / "both", shape=(7, 7))[0].shape == (7, 7)
    twice, _ = F.read(tmp_path / "one", tmp_path / "one")
    assert len(twice) == 24 and len(set(twice.groups.tolist())) == 24
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(drawn(small.mazes).encode())))
    assert (F.read("-")[0].mazes == small.mazes).all() and capsys.readouterr().err == ""


def test_many_bad_ones_are_listed_up_to_twenty(small, tmp_path, capsys):
    (tmp_path / "b.txt").write_text(drawn(small.mazes) + "\n#S#\n" * 33)
    _, report = F.read(tmp_path / "b.txt")
    err = capsys.readouterr().err
    assert len(report.bad) == 33 and err.count("b.txt:") == 20 and "... and 13 more" in err
    assert "33 x the maze has another shape" in err


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=300)
    | st.text('# SGo10AB.+-|,"\nXq', max_size=120).map(str.encode)
    | st.text('# SGo,"\nXq', max_size=120).map(lambda text: b"question,answer\n" + text.encode())
)
def test_any_bytes_read_or_say_why(raw):
    try:
        data, bad = F.read_text(raw, "f")
    except DataError as error:
        assert str(error).startswith("f")
    else:
        assert all(one.file == "f" and one.line > 0 and one.column >= 0 and one.reason for one in bad)
        assert data is not None or bad
        if data is not None:
            assert all(R.violations(maze) == [] for maze in data.mazes)
            assert (R.marks(data.mazes, data.labels, data.labels) == 1).all(axis=None)


def test_the_official_file(official):
    "All labels are shortest paths, and ours, in the order in which the search visits neighbours."
    found = R.solve(official.mazes)
    assert (found.labels == official.labels).all() and (found.lengths == official.lengths).all()
    assert official.ratings == [str(length) for length in official.lengths] and set(official.names) == {
        "maze-30x30-hard-1k"
    }
    assert (R.marks(official.mazes, official.labels, official.labels) == 1).all(axis=None)
    assert found.lengths.min() == 109 and (found.ways > 1).mean() > 0.9
    assert len(np.unique(Y.canonical(official.mazes), axis=0)) == 1000


def test_the_official_file_is_written_back_byte_for_byte(official, tmp_path):
    raw = shared(OFFICIAL).read_bytes()
    assert F.write_csv(official, tmp_path / "again.csv").read_bytes() == raw
    text = io.StringIO(raw.decode(), newline="")
    rows = list(csv.DictReader(text))
    assert [R.to_text(maze).replace("\n", "") for maze in official.mazes] == [row["question"] for row in rows]
    M.save_official(official, tmp_path, "test")
    again, report = F.read(tmp_path)
    assert report.bad == [] and (again.labels == official.labels).all()
    shuffled = official.take(np.random.default_rng(0).permutation(1000))
    assert sorted(F.to_csv(shuffled).split("\n")) == sorted(raw.decode().split("\n"))


def test_the_official_mazes_as_drawings(official):
    "Without a frame of walls, so that rows begin and end with blanks, and some are blank."
    data, bad = F.read_text(drawn(official.mazes[:200]).encode(), "f")
    assert bad == [] and (data.mazes == official.mazes[:200]).all()


# ---------------------------------------------------------------- pipeline


def config(**more) -> D.DataConfig:
    sets = dict(
        tiny=dict(size=7, kind="perfect", length="any", train=60, held_out=12),
        wide=dict(size=[9, 13], kind="braided", braid=0.5, length=[8, 20], train=40, held_out=8),
    )
    return validate({"source": "generated", "seed": 5, "sets": sets} | more, D.DataConfig)


def test_build_is_disjoint_and_deterministic(tmp_path, capsys):
    summary = D.build(config(), tmp_path / "a", progress=False)
    D.build(config(), tmp_path / "b", progress=False)
    assert content(tmp_path / "a") == content(tmp_path / "b") and capsys.readouterr().err == ""
    for name, shape, counts in (("tiny", (7, 7), [60, 12]), ("wide", (9, 13), [40, 8])):
        train, test = (F.read(tmp_path / "a" / name, part=part, strict=True)[0] for part in ("train", "test"))
        assert train.shape == shape and [len(train), len(test)] == counts
        assert shared_keys(Y.canonical(test.mazes), Y.canonical(train.mazes)) == 0 == summary[name]["shared"]
        for told, data in ((summary[name]["train"], train), (summary[name]["held_out"], test)):
            assert told["mazes"] == len(data) == sum(told["lengths"].values()) == sum(told["junctions"].values())
            assert told["mean_length"] == data.lengths.mean() and told["longest"] == max(map(int, told["lengths"]))
            assert told["mean_junctions"] == data.junctions.mean() and sum(told["levels"].values()) == len(data)
    assert summary["tiny"]["train"]["one_way"] == 1 > summary["wide"]["train"]["one_way"]
    assert (
        summary["tiny"]["train"]["mean_dead_ends"]
        == (R.degrees(M.load_official(tmp_path / "a/tiny/train").mazes) == 1).sum() / 60
    )
    assert 8 <= min(map(int, summary["wide"]["train"]["lengths"])) and summary["wide"]["train"]["longest"] <= 20
    json.dumps(summary, allow_nan=False)
    D.build(config(seed=6), tmp_path / "c", progress=False)
    assert content(tmp_path / "c") != content(tmp_path / "a")
    alone = {"wide": config().sets["wide"].model_dump(mode="json")}
    D.build(config(sets=alone), tmp_path / "d", progress=False)  # another set leaves this one as it is
    assert content(tmp_path / "d" / "wide") == content(tmp_path / "a" / "wide")


def test_build_from_a_file(small, tmp_path):
    (tmp_path / "mine.csv").write_text(table(small.take(slice(1))))
    (tmp_path / "mine.txt").write_text(drawn(small.mazes) + "\n#S#\n")
    one = dict(size=[7, 9], length="any", train=999, held_out=999)
    path = str(tmp_path / "mine.txt")
    told = D.build(config(source=path, sets={"mine": one}), tmp_path / "out", False)["mine"]
    assert (told["train"]["mazes"], told["held_out"]["mazes"], told["skipped"], told["shared"]) == (10, 2, 1, 0)
    known = {maze.tobytes() for maze in small.mazes}
    assert {maze.tobytes() for maze in M.load_official(tmp_path / "out/mine/train").mazes} < known
    limit = int(np.median(small.lengths))
    told = D.build(config(sets={"mine": one | dict(source=path, length=[2, limit])}), tmp_path / "short", False)["mine"]
    assert told["train"]["longest"] <= limit
    for change, said in (
        (dict(size=7), "0 of 12 mazes of 7x9 have the size 7x7; allowed are 2 at least"),
        (dict(length=[60, 70]), "0 of 12 mazes of 7x9 have the size 7x9 and paths of 60 to 70 steps"),
    ):
        with pytest.raises(DataError, match=said):
            D.build(config(source=path, sets={"mine": one | change}), tmp_path / "no", False)


def test_build_keeps_an_official_split(small, tmp_path):
    M.save_official(small.take(slice(9)), tmp_path / "src", "train")
    M.save_official(small.take(slice(9, 12)), tmp_path / "src", "test")
    one = dict(size=[7, 9], length="any", train=100, held_out=2)
    told = D.build(config(source=str(tmp_path / "src"), sets={"mine": one}), tmp_path / "out", False)["mine"]
    assert (told["train"]["mazes"], told["held_out"]["mazes"]) == (9, 2)
    assert (M.load_official(tmp_path / "out/mine/train").mazes == small.mazes[:9]).all()
    assert (M.load_official(tmp_path / "out/mine/test").mazes == small.mazes[9:11]).all()


def test_too_few_mazes_are_an_error(tmp_path):
    one = dict(size=7, kind="perfect", length=[16, 16], train=100_000, held_out=10)
    with pytest.raises(DataError, match="distinct mazes of 7x7 with a path of 16 to 16 steps"):
        D.build(config(sets={"one": one}), tmp_path, False)


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(size=8), "allowed are odd numbers of rows and columns"),
        (dict(size=[7, 63]), "from 7 to 61"),
        (dict(size=0), "allowed are numbers above 0"),
        (dict(size="7"), "size"),
        (dict(kind="labyrinth"), "kind: found \"labyrinth\"; allowed: 'perfect' or 'braided'"),
        (dict(kind=None), "set one: kind None; allowed: perfect or braided for generated mazes"),
        (
            dict(source="mine.csv"),
            "set one: kind perfect; allowed: perfect or braided for generated mazes, none for a file's",
        ),
        (dict(braid=0.5), "allowed: braid with the kind braided, and only there"),
        (dict(kind="braided"), "allowed: braid with the kind braided, and only there"),
        (dict(kind="braided", braid=0.0), "braid"),
        (dict(kind="braided", braid=1.1), "braid"),
        (dict(length=[18, 20]), "fewest <= 16 for 7x7"),
        (dict(length=[5, 5]), "an even number among them"),
        (dict(length=[5, 4]), "1 <= fewest <= most"),
        (dict(length="long"), "length"),
        (dict(train=0), "train"),
        (dict(held_out=0), "held_out"),
        (dict(extra=1), "unknown key"),
    ],
)
def test_config_errors(change, said):
    good = dict(size=7, kind="perfect", length="any", train=30, held_out=8)
    with pytest.raises(ConfigError) as error:
        config(sets={"one": good | change})
    assert said in str(error.value)


def test_config_names():
    good = config().sets["tiny"].model_dump(mode="json")
    for sets in ({"../x": good}, {}):
        with pytest.raises(ConfigError):
            config(sets=sets)
