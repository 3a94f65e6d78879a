"Any grid puzzle from one rule file: rules, solver, generator, symmetries, data, relations, training and the command."

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from copies import ROOT, environment
from hrm.core.config import ConfigError, tree_hash, validate
from hrm.core.device import seeded
from hrm.core.errors import DataError
from hrm.core.layers import relation_classes
from hrm.core.resume import Stopped
from hrm.core.task import Options
from hrm.core.tracking import read_log
from hrm.puzzle import data as D
from hrm.puzzle import evaluate as E
from hrm.puzzle import generate as G
from hrm.puzzle import model as M
from hrm.puzzle import rules as R
from hrm.puzzle import solve as V
from hrm.puzzle import solver as S
from hrm.puzzle import symmetry as Y
from hrm.puzzle import train as T
from hrm.puzzle.draw import draw_puzzle
from hrm.sudoku import model as sudoku_model
from hrm.sudoku import rules as sudoku_rules
from hrm.sudoku import symmetry as sudoku_symmetry
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from typer.testing import CliRunner

SHIPPED = ("cages_4", "latin_5", "sudoku_9", "x_sudoku_6")
FOUR = "title: four\nsize: 4\ngivens: [4, 9]\nunits: {rows: true, columns: true, boxes: [2, 2]}\n"
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture
def write(tmp_path):
    "Writes a rule file and reads it."

    def rules(text: str, name: str = "mine") -> R.Rules:
        (tmp_path / f"{name}.yaml").write_text(text)
        return R.from_file(tmp_path / f"{name}.yaml")

    return rules


@pytest.fixture(scope="module")
def rules() -> dict[str, R.Rules]:
    return {name: R.from_file(name) for name in SHIPPED}


@pytest.fixture(scope="module")
def made(rules) -> dict[str, D.Puzzles]:
    "A few puzzles of each kind."
    many = {"cages_4": 24, "latin_5": 24, "x_sudoku_6": 12, "sudoku_9": 2}
    return {
        name: D.Puzzles(rules[name], *G.generate(rules[name], n, 7, progress=False), "made") for name, n in many.items()
    }


# Rules


def test_the_files_that_come_with_the_package(rules):
    assert R.shipped() == list(SHIPPED)
    assert {name: (one.shape, one.n, len(one.units), one.families) for name, one in rules.items()} == {
        "cages_4": ((4, 4), 4, 14, ("row", "column", "cage")),
        "latin_5": ((5, 5), 5, 10, ("row", "column")),
        "sudoku_9": ((9, 9), 9, 27, ("row", "column", "box")),
        "x_sudoku_6": ((6, 6), 6, 20, ("row", "column", "box", "diagonal")),
    }
    assert all(S.rules_of(name).told == one.told for name, one in rules.items())


def test_units_of_every_form(write):
    rules = write(
        "title: all\nsize: [2, 4]\nsymbols: abcdefg\ngivens: [0, 8]\nunits:\n  boxes: [2, 2]\n  maps:\n    odd: |\n      AABB\n      A.BB\n"
        "  cells:\n    ring: [r1c1 r2c4, r2c4 r1c2]\n"
    )
    assert [(unit.name, unit.cells) for unit in rules.units] == [
        ("box 1", (0, 1, 4, 5)),
        ("box 2", (2, 3, 6, 7)),
        ("odd A", (0, 1, 4)),
        ("odd B", (2, 3, 6, 7)),
        ("ring 1", (0, 7)),
        ("ring 2", (7, 1)),
    ]
    assert R.peers(rules)[7] == (0, 1, 2, 3, 6)
    fixed = write(
        "title: s\nsize: 3\ngivens: [0, 9]\nunits: {rows: true}\ncages: {map: AAB .CB .CC, sums: {A: 3, C: 6}}\n"
    )
    assert [(cage.name, cage.total) for cage in fixed.cages] == [("A", 3), ("B", None), ("C", 6)]
    assert [cage.name for cage in fixed.asked] == ["B"]
    assert fixed.reachable(2) == [3, 4, 5] and D.totals(fixed) == [3, 4, 5] and D.vocabulary(fixed) == 3 + 2 + 3


HEAD = "title: mine\nsize: 4\ngivens: [2, 4]\n"


@pytest.mark.parametrize(
    "text, said",
    [
        (HEAD + "units: {rows: true, colums: true}\n", "mine.yaml, line 4: units.colums: unknown key; allowed: rows,"),
        (HEAD + "units: {rows: 1}\n", "mine.yaml, line 4: units.rows: found 1; allowed:"),
        (HEAD, "mine.yaml: units: missing key"),
        (HEAD + "units: {}\n", "line 4: units: found no unit and no cage"),
        (
            HEAD + "units:\n  cells:\n    far: [r1c1 r1c4, r4c1 r5c4]\n",
            "line 6: units.cells.far.1: found r5c4, outside of the grid; allowed: r1c1 to r4c4",
        ),
        (HEAD + "units:\n  cells:\n    far: [r1c1 r1c1]\n", "found r1c1 twice"),
        (HEAD + "units:\n  cells:\n    far: [a1]\n", "found 'a1'; allowed: cells such as r1c1"),
        (
            HEAD + "symbols: '123'\nunits:\n  columns: true\n",
            "line 6: units.columns: column 1 has 4 cells; allowed: at most 3, one for each symbol of 123",
        ),
        (HEAD + "symbols: '1123'\nunits: {rows: true}\n", "line 4: symbols: found '1123'"),
        (
            HEAD + "symbols: '10'\nunits: {rows: true}\n",
            "line 4: symbols: found '0'; allowed: characters that are no blank",
        ),
        (
            HEAD + "units: {rows: true}\ncages:\n  map: |\n    AABB\n    CCDD\n    ...\n    ....\n",
            "line 9: cages.map: row 3 of the map has 3 columns; allowed: 4",
        ),
        (
            HEAD + "units: {rows: true}\ncages: {map: AA.. ....}\n",
            "line 5: cages.map: found a map of 2 rows; allowed: 4",
        ),
        (
            HEAD + "units: {rows: true}\ncages:\n  map: AA.. .... .... ....\n  sums:\n    A: 9\n",
            "line 8: cages.sums.A: found 9 for 2 cells; allowed: 3, 4, 5, 6, 7",
        ),
        (
            HEAD + "units: {rows: true}\ncages: {map: AA.. .... .... ...., sums: {B: 3}}\n",
            "cages.sums.B: found a cage that is not in the map; allowed: A",
        ),
        (
            HEAD + "symbols: abcd\nunits: {rows: true}\ncages: {map: AA.. .... .... ....}\n",
            "allowed: the digits 1 to 9",
        ),
        (HEAD + "units: {boxes: [3, 2]}\n", "units.boxes: found 3 x 2; allowed: what divides 4 rows and 4 columns"),
        ("title: w\nsize: [2, 3]\ngivens: [0, 1]\nunits: {diagonals: true}\n", "allowed: diagonals in a square"),
        ("title: w\nsize: 17\ngivens: [0, 1]\nunits: {rows: true}\n", "line 2: size: found 17 x 17; allowed: 1 to 16"),
        ("title: w\nsize: 4\ngivens: [3, 17]\nunits: {rows: true}\n", "line 3: givens: found [3, 17]"),
        ("title: [\n", "mine.yaml, line 2: not readable as YAML"),
        ("- 1\n", "mine.yaml: found list; allowed: a mapping with the keys title, size"),
    ],
)
def test_a_wrong_file_is_told_in_a_line(write, text, said):
    with pytest.raises(ConfigError) as error:
        write(text)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_no_such_file_and_rules_without_a_solution(tmp_path):
    with pytest.raises(
        ConfigError, match="nothing.yaml: no such rule file; allowed: a YAML file, or one of cages_4, latin_5"
    ):
        R.from_file("nothing.yaml")
    file = tmp_path / "two.yaml"
    file.write_text("title: two\nsize: 2\ngivens: [0, 2]\nunits: {rows: true, columns: true, diagonals: true}\n")
    with pytest.raises(ConfigError, match="two.yaml: the rules contradict each other: no grid of 12 obeys row, column"):
        S.rules_of(file)


def test_what_is_broken_is_said(rules):
    cages = rules["cages_4"]
    grid = np.array([1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1])
    sums = R.sums_of(cages, grid[None])[0]
    assert sums.tolist() == [6, 9, 5, 5, 9, 6] and R.broken(cages, grid, sums) == []
    assert R.broken(cages, grid, sums + [0, 0, 1, 0, 0, 0]) == ["cage C comes to 5 instead of 6"]
    grid[0] = 2
    assert R.broken(cages, grid)[:2] == ["row 1 has 2 times the symbol 2", "column 1 has 2 times the symbol 2"]
    assert np.flatnonzero(R.clashing(cages, grid)).tolist() == [0, 1, 8]
    assert R.valid(cages, grid[None]).tolist() == [False]


def test_text_of_a_puzzle(rules):
    cages = rules["cages_4"]
    text = "1..4............ 6 9 5 5 9 6"
    assert R.to_text(cages, *R.from_text(cages, text)) == text
    for wrong, column, said in (
        ("1..5", 4, "found '5'; allowed: 1234, and one of .0_* for a blank"),
        ("1..4", 1, "found 4 cells; allowed: 16, for 4 x 4"),
        ("", 1, "found 0 cells"),
        (text[:16], 1, "found 0 sums; allowed: 6, of the cages A B C D E F"),
        (text[:-1] + "5", 28, "found 5 for cage F; allowed: 6, 7, 8, 9"),
        (text + " 3", 30, "found 7 sums"),
    ):
        with pytest.raises(R.TextError) as error:
            R.from_text(cages, wrong)
        assert error.value.column == column and said in error.value.reason
    letters = rules["latin_5"]
    assert R.from_text(letters, "A0_*." + "." * 19 + "E")[0].tolist() == [1, *[0] * 23, 5]


# Sudoku is such a file


def test_sudoku_is_such_a_file(rules):
    rng, sudoku = np.random.default_rng(0), rules["sudoku_9"]
    whole = S.solve(sudoku, np.zeros(81))
    grids = np.stack(
        [whole, np.roll(whole, 1), *(np.where(rng.random(81) < 0.02, 1, whole) for _ in range(20)), whole * 0]
    )
    assert R.valid(sudoku, grids).tolist() == sudoku_rules.valid(grids).tolist() and R.valid(sudoku, grids)[0]
    for grid in grids:
        said = [text.replace("the symbol", "the digit") for text in R.broken(sudoku, grid)]
        assert said == sudoku_rules.violations(grid)
        assert R.clashing(sudoku, grid).tolist() == sudoku_rules.clashing(grid).tolist()
    ours, theirs = (relation_classes(one)[0].bool() for one in (M.kinds(sudoku), sudoku_model.kinds(9)))
    assert {one.numpy().tobytes() for one in ours} == {one.numpy().tobytes() for one in theirs} and len(ours) == 7


def test_symmetries_are_those_of_sudoku(write):
    four, rng = write(FOUR), np.random.default_rng(0)
    group = Y.group_of(four, rng)
    drawn = sudoku_symmetry.draw_symmetry(4000, 4, seeded(0)).cells
    assert (
        set(map(tuple, group.cells.tolist())) == set(map(tuple, drawn.tolist()))
        and group.size == 128
        and group.renaming
    )
    puzzles = G.generate(four, 250, 0, progress=False)
    exact = sudoku_symmetry.canonical(puzzles.puzzles, puzzles.solutions)
    classes = np.unique(exact, axis=0, return_inverse=True)[1].reshape(-1)
    prints = np.unique(Y.fingerprint(four, *puzzles[:2]), return_inverse=True)[1].reshape(-1)
    pairs = set(zip(classes.tolist(), prints.tolist()))
    assert len(pairs) == len(set(classes.tolist())), "a symmetry changes the fingerprint"
    assert len(set(prints.tolist())) > 0.9 * len(set(classes.tolist()))


def test_a_large_group_is_drawn_from(rules):
    group = Y.group_of(rules["sudoku_9"], np.random.default_rng(0))
    assert (group.size, len(group.cells), group.most(16)) == (None, Y.MANY, 16)
    assert all(Y.keeps(rules["sudoku_9"], cells) for cells in Y.draw_symmetry(group, 40, seeded(0)).cells.numpy())
    assert len(np.unique(group.cells.numpy(), axis=0)) > 0.98 * Y.MANY


# The solver


def test_known_numbers_of_grids(write):
    latin = "title: l\nsize: {}\ngivens: [0, 4]\nunits: {{rows: true, columns: true}}\n"
    assert [len(S.every(write(latin.format(n)))) for n in (2, 3, 4)] == [2, 12, 576]
    assert len(S.every(write(FOUR))) == 288
    with pytest.raises(ValueError, match="more than 100 solutions"):
        S.every(write(FOUR), most=100)


@pytest.mark.parametrize(
    "text",
    [
        "size: 3\nsymbols: '1234'\nunits: {rows: true, diagonals: true}\n",
        "size: 3\nunits: {columns: true}\ncages: {map: AA. .B. .BB, sums: {A: 4}}\n",
        "size: [2, 3]\nunits: {rows: true, maps: {odd: 'AAB BBA'}}\n",
    ],
)
def test_the_solver_agrees_with_brute_force(write, text):
    rules = write("title: b\ngivens: [0, 6]\n" + text)
    grids = np.array(list(itertools.product(range(1, rules.n + 1), repeat=rules.S)), np.uint8)
    right = grids[R.valid(rules, grids)]
    assert np.array_equal(S.every(rules), right) and len(right)
    rng = np.random.default_rng(1)
    for _ in range(25):
        grid = right[rng.integers(len(right))] * (rng.random(rules.S) < 0.4)
        grid[rng.integers(rules.S)] = rng.integers(0, rules.n + 1)  # sometimes against the rules
        sums = R.sums_of(rules, right[rng.integers(len(right))][None])[0]
        fits = right[R.extends(grid, right) & (R.sums_of(rules, right) == sums).all(1)]
        found = S.count(rules, grid, sums)
        assert found.count == min(2, len(fits))
        assert not len(fits) or found.grid.tolist() in fits.tolist()


def test_solver_keeps_away_from_what_it_is_told(rules):
    latin = rules["latin_5"]
    one = S.solve(latin, np.zeros(25))
    other = S.solve(latin, np.zeros(25), other=one)
    assert R.valid(latin, np.stack([one, other])).all() and (one != other).any()
    assert S.solve(latin, one, other=one) is None
    assert S.solve(latin, np.zeros(25), without={3: [1, 2, 3, 4]})[3] == 5
    assert S.solve(latin, np.zeros(25), without={3: [1, 2, 3, 4, 5]}) is None
    assert np.array_equal(S.solve(latin, np.zeros(25), seed=5), S.solve(latin, np.zeros(25), seed=5))


# The generator


def test_every_puzzle_has_one_solution(made):
    for name, data in made.items():
        least, most = data.rules.told.givens
        assert (data.givens <= most).all() and len(np.unique(data.puzzles, axis=0)) > 1, name
        for puzzle, solution, sums in zip(data.puzzles, data.solutions, data.sums):
            found = S.count(data.rules, puzzle, sums)
            assert found.count == 1 and np.array_equal(found.grid, solution), name
        assert R.valid(data.rules, data.solutions, data.sums).all()


def test_a_minimal_puzzle_and_the_same_seed(rules):
    latin, rng = rules["latin_5"], np.random.default_rng(3)
    puzzle = G.dig(latin, G.random_grid(latin, rng), 0, rng)
    for cell in np.flatnonzero(puzzle):
        assert S.count(latin, np.where(np.arange(25) == cell, 0, puzzle)).count == 2
    one, again, other = (G.generate(latin, 4, seed, progress=False) for seed in (1, 1, 2))
    assert [part.tobytes() for part in one] == [part.tobytes() for part in again]
    assert one.puzzles.tobytes() != other.puzzles.tobytes()


def test_fixed_sums_are_obeyed(write):
    rules = write(
        "title: f\nsize: 4\ngivens: [2, 8]\nunits: {rows: true, columns: true}\ncages: {map: AA.. .... .... ..BB, sums: {A: 7, B: 3}}\n"
    )
    data = G.generate(rules, 5, 0, progress=False)
    assert (
        (data.solutions[:, :2].sum(1) == 7).all()
        and (data.solutions[:, -2:].sum(1) == 3).all()
        and data.sums.shape == (5, 0)
    )


def test_too_few_puzzles_are_said(write, tmp_path):
    rules = write("title: t\nsize: 2\ngivens: [1, 1]\nunits: {rows: true, columns: true}\n")
    with pytest.raises(
        ValueError, match="mine: 20 puzzles with 1 to 1 givens; found 8, and then 200 tries gave no other"
    ):
        G.generate(rules, 20, 0, progress=False)
    with pytest.raises(DataError, match="mine: .*; found 8"):
        D.build(rules, tmp_path / "set", 10, 10, 0, progress=False)


# Symmetries


@settings(max_examples=20, deadline=None)
@given(seed=seeds, name=st.sampled_from(["cages_4", "latin_5", "x_sudoku_6"]))
def test_a_symmetry_keeps_the_rules_and_can_be_undone(seed, name, made, groups):
    data, symmetry = made[name], Y.draw_symmetry(groups[name], len(made[name]), seeded(seed))
    questions, answers = data.tokens()
    moved, moved_answers = symmetry.apply(questions), symmetry.apply(answers)
    assert torch.equal(symmetry.undo(moved), questions) and torch.equal(symmetry.undo(moved_answers), answers)
    grids, puzzles = D.symbols_of(data.rules, moved_answers), D.symbols_of(data.rules, moved)
    sums = R.sums_of(data.rules, grids)
    assert R.valid(data.rules, grids).all() and R.extends(puzzles, grids).all()
    assert np.array_equal(D.encode(data.rules, puzzles, sums), moved)
    prints = Y.fingerprint(data.rules, data.puzzles, data.solutions)
    assert np.array_equal(Y.fingerprint(data.rules, puzzles, grids), prints)


@pytest.fixture(scope="module")
def groups(rules) -> dict[str, Y.Group]:
    return {name: Y.group_of(rules[name], np.random.default_rng(0)) for name in ("cages_4", "latin_5", "x_sudoku_6")}


def test_groups_of_the_shipped_files(groups):
    assert {name: (one.size, one.renaming, one.most(8)) for name, one in groups.items()} == {
        "cages_4": (4, False, 4),
        "latin_5": (None, True, 8),
        "x_sudoku_6": (8, True, 8),
    }
    with pytest.raises(ValueError, match="tries 5; allowed: 1 to 4"):
        Y.disguises(groups["cages_4"], 2, 5, seeded(0))


# Data


def test_tokens_tell_the_sums(rules):
    cages = rules["cages_4"]
    grid, sums = R.from_text(cages, "1..4............ 6 9 5 5 9 6")
    assert D.encode(cages, grid[None], sums[None])[0].tolist() == [2, 9, 12, 5, 9, 8, 8, 12, 12, 8, 8, 9, 12, 12, 9, 9]
    assert D.totals(cages) == [3, 4, 5, 6, 7, 8, 9] and D.vocabulary(cages) == 13


def test_a_set_is_written_the_same_and_no_symmetry_crosses(rules, tmp_path):
    cages = rules["cages_4"]
    for name in ("one", "two"):
        facts = D.build(cages, tmp_path / name, 30, 10, 5, progress=False)
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")
    assert (facts["train"]["puzzles"], facts["held_out"]["puzzles"], facts["shared"], facts["skipped"]) == (
        30,
        10,
        0,
        0,
    )
    parts = [D.load(tmp_path / "one" / part) for part in ("train", "test")]
    keys = [set(Y.fingerprint(cages, part.puzzles, part.solutions).reshape(-1).tolist()) for part in parts]
    assert not keys[0] & keys[1]
    told = json.loads((tmp_path / "one" / "train" / "rules.json").read_text())
    assert R.from_told(validate(told[1], R.RuleFile), told[0]).units == cages.units
    with pytest.raises(DataError, match="was made by other rules"):
        D.load(tmp_path / "one" / "train", rules["latin_5"])
    labels = tmp_path / "one" / "test" / "all__labels.npy"
    array = np.load(labels)
    array[3, [0, 1]] = array[3, [1, 0]]
    np.save(labels, array)
    with pytest.raises(DataError, match="the answer of row 3 does not keep its question and the rules"):
        D.load(tmp_path / "one" / "test")


def test_a_file_of_puzzles_is_read_and_bad_lines_are_named(made, tmp_path):
    data, file = made["cages_4"], tmp_path / "mine.txt"
    lines = [R.to_text(data.rules, *pair) for pair in zip(data.puzzles, data.sums)]
    file.write_text(
        "# mine\r\n" + "\r\n".join(lines) + "\n\n1.5. 3\n" + "." * 16 + " 6 9 5 5 9 6\n" + "11" + lines[0][2:] + "\n"
    )
    found, report = D.read(file, data.rules)
    assert np.array_equal(found.solutions, data.solutions) and np.array_equal(found.sums, data.sums)
    assert [(one.line, one.column) for one in report.bad] == [(27, 3), (28, 0), (29, 0)]
    assert str(report.bad[0]) == f"{file}:27:3: found '5'; allowed: 1234, and one of .0_* for a blank"
    assert "several solutions" in report.bad[1].reason and "no solution" in report.bad[2].reason
    with pytest.raises(DataError, match=r"mine.txt:27:3: .*\n.*mine.txt:28: "):
        D.read(file, data.rules, strict=True)
    facts = D.build(data.rules, tmp_path / "set", 100, 5, 0, source=file, progress=False)
    assert (facts["train"]["puzzles"] + facts["held_out"]["puzzles"], facts["skipped"]) == (24, 3)
    file.write_text("# nothing\n")
    with pytest.raises(DataError, match="no puzzle in it"):
        D.read(file, data.rules)


# Model and marks


def test_relations_are_the_families_that_two_cells_share(rules):
    table = M.kinds(rules["x_sudoku_6"])
    assert (
        table[0, 0] == 16 and table[0, 7] == 4 + 8 and table[0, 1] == 1 + 4 and table[0, 35] == 8 and table[2, 9] == 0
    )
    assert torch.equal(table, table.T)


def test_baselines_are_right_where_they_answer(made):
    for name, data in made.items():
        if name == "sudoku_9":
            continue
        found = E.singles(data.rules, data.puzzles, data.sums)
        assert ((found == 0) | (found == data.solutions)).all() and (found > 0).sum() > (data.puzzles > 0).sum(), name
        assert E.score(data.puzzles + 1, data).exact_accuracy.max() == 0
        assert E.score(data.solutions + 1, data).to_numpy().min() == 1
        accept = E.passes(data)
        assert accept(np.arange(len(data)), data.solutions + 1).all()
    cages = made["cages_4"]
    wrong = cages.sums.copy()
    wrong[:, 0] += 1
    assert not E.passes(D.Puzzles(cages.rules, cages.puzzles, cages.solutions, wrong, ""))(
        np.arange(24), cages.solutions + 1
    ).any()


# Training


ARCH = dict(
    hidden_size=32,
    num_heads=2,
    H_layers=1,
    L_layers=1,
    H_cycles=1,
    L_cycles=1,
    expansion=2,
    pos_encodings="relations",
    halt_max_steps=3,
    halt_exploration_prob=0.3,
    puzzle_emb_ndim=32,
)
RUN = dict(
    train=30,
    held_out=8,
    arch=ARCH,
    optim=dict(lr=3e-3),
    loop=dict(steps=6, evaluate_every=3, log_every=1, checkpoint_seconds=0.0, compile="off"),
    batch_size=6,
    cross_entropy="softmax",
    augment=True,
    evaluate_puzzles=8,
    device="cpu",
)


@pytest.fixture(scope="module")
def a_set(rules, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    D.build(rules["cages_4"], folder, 30, 8, 0, progress=False)
    return folder


@pytest.mark.parametrize("family", ["hrm", "trm"])
def test_training_is_the_same_after_a_stop(family, a_set, tmp_path):
    arch = ARCH | ({"model": "trm", "latents": 1, "H_layers": 0} if family == "trm" else {})
    config = validate(RUN | {"arch": arch}, T.RunConfig)
    whole = T.run("whole", config, 0, a_set, tmp_path / "whole", Options(tmp_path / "a", progress=False))

    def watch(name):
        def stop(step, row):
            if step == 2:
                raise KeyboardInterrupt

        return stop

    with pytest.raises((Stopped, KeyboardInterrupt)):
        T.run("whole", config, 0, a_set, tmp_path / "again", Options(tmp_path / "b", progress=False, watch=watch))
    again = T.run("whole", config, 0, a_set, tmp_path / "again", Options(tmp_path / "b", progress=False))
    assert again.metrics == whole.metrics and whole.metrics["steps"] == 6
    losses = [read_log(one.folder).loss.dropna().tolist() for one in (whole, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    models = [M.load(one.folder / "final") for one in (whole, again)]
    assert all(torch.equal(a, b) for a, b in zip(*(one[0].state_dict().values() for one in models)))
    assert models[0][2].units == R.from_file("cages_4").units


def test_every_weight_learns(a_set):
    config, data = validate(RUN, T.RunConfig), D.load(a_set / "train")
    group = Y.group_of(data.rules, np.random.default_rng(0))
    model = M.build(config.arch, data.rules, seeded(0))
    task = T.RuleTask(model, data, data, config, seeded(0), group)
    loss, _ = task.loss(model)
    loss.backward()
    still = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert [name for name in still if "q_head" not in name and "puzzle_emb" not in name] == []


def test_a_recipe_and_what_a_kind_changes():
    section = dict(seed=0, tries=2, resamples=100, base=RUN, kinds={"latin_5": {"loop": {"steps": 3}}})
    config = validate(section, T.TrainConfig)
    assert [config.run_of(name).loop.steps for name in ("latin_5", "mine")] == [3, 6]
    with pytest.raises(ConfigError, match="batch_sise: unknown key"):
        validate(section | {"kinds": {"latin_5": {"batch_sise": 3}}}, T.TrainConfig)


def test_an_untrained_model_solves_nothing_and_says_so(made, rules):
    data = made["cages_4"].take(slice(3))
    model, out = M.build(validate(RUN, T.RunConfig).arch, data.rules, seeded(0)), io.StringIO()
    assert not V.solve_puzzles(data, model, out=out, tries=8)
    said = out.getvalue()
    assert said.count("none of 4 tries keeps the givens and the rules") == 3 and "solved" not in said
    assert V.told(data.rules, data.puzzles[0], data.solutions[0], data.sums[0]) == "solved"
    with pytest.raises(ConfigError, match="some/best: was trained by other rules"):
        V.check_rules(rules["latin_5"], data.rules, "some/best")


def test_pictures(made):
    import matplotlib.pyplot as plt

    for data in made.values():
        ax = draw_puzzle(plt.figure().gca(), data.rules, data.puzzles[0], data.solutions[0], data.sums[0])
        assert len(ax.texts) == data.rules.S + len(data.rules.cages)
    plt.close("all")


# The command


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    "A project with one profile and a recipe of six steps."
    folder = tmp_path_factory.mktemp("project")
    section = {"seed": 0, "tries": 2, "resamples": 100, "base": RUN, "kinds": {}}
    with open(folder / "params.yaml", "w") as handle:
        YAML().dump({"profiles": {"laptop": {"puzzle": {"train": section}}}}, handle)
    (folder / "mine.yaml").write_text("title: three\nsize: 3\ngivens: [3, 6]\nunits: {rows: true, columns: true}\n")
    return folder


def hrm(project, monkeypatch, capfd, *words) -> tuple[int, str, str]:
    "What `hrm puzzle ...` answers: exit code, output, errors."
    from hrm.tools.cli import main

    monkeypatch.chdir(project)
    monkeypatch.delenv("HRM_ROOT", raising=False)
    try:
        code = main(["puzzle", *map(str, words)])
    except SystemExit as error:
        code = error.code
    return code, *capfd.readouterr()


def test_from_a_rule_file_to_a_model(project, monkeypatch, capfd):
    code, out, err = hrm(project, monkeypatch, capfd, "train", "--rules", "mine.yaml")
    assert code == 0, err
    own = project / "data" / "laptop" / "puzzle" / "own" / "mine"
    assert (own / "set" / "train" / "dataset.json").is_file() and (own / "run" / "best" / "meta.json").is_file()
    assert (
        "exact" in out
        and "naked singles" in out
        and "on 8 held-out puzzles" in out
        and f"{own / 'run' / 'best'}" in out
    )
    before = tree_hash(own / "set")
    code, out, err = hrm(project, monkeypatch, capfd, "train", "--rules", "mine.yaml")  # the same set, a run again
    assert code == 0 and tree_hash(own / "set") == before
    code, out, err = hrm(project, monkeypatch, capfd, "solve", "12..3....", "--rules", "mine.yaml", "--tries", "3")
    assert (
        code in (0, 1) and out.startswith("segment 1: ") and "checkpoint: data/laptop/puzzle/own/mine/run/best" in err
    )
    code, out, err = hrm(project, monkeypatch, capfd, "solve", "1........", "--rules", "mine.yaml", "--tries", "1")
    assert "there are other solutions as well" in out


def test_data_of_ones_own(project, monkeypatch, capfd):
    words = ("data", "--rules", "mine.yaml", "--out", "made", "--count", "20", "--givens", "4-6", "--seed", "3")
    code, out, err = hrm(project, monkeypatch, capfd, *words)
    assert (
        code == 0
        and "mine: 18 puzzles to train on, 2 held out, 0 bad rows skipped, 0 shared up to symmetry -> made" in out
    )
    givens = D.load(project / "made" / "train").givens
    assert givens.min() >= 4 and givens.max() <= 6
    (project / "lines.txt").write_text("12..3....\n123......\n12..3...x\n1.2......\n1..2.....\n..12.....\n")
    code, out, err = hrm(
        project, monkeypatch, capfd, "data", "--rules", "mine.yaml", "--out", "own", "--source", "lines.txt"
    )
    assert code == 0 and "bad rows skipped" in out


@pytest.mark.parametrize(
    "words, said",
    [
        (("solve", "12..4....", "--rules", "mine.yaml"), "puzzle:1:5: found '4'; allowed: 123"),
        (("solve", "11.......", "--rules", "mine.yaml"), "puzzle:1: the puzzle has no solution"),
        (("solve", "1........", "--rules", "mine.yaml", "--unique"), "several solutions"),
        (("solve", "12..3...."), "no rules; name the rule file with --rules"),
        (("solve", "12..3....", "--rules", "other.yaml"), "other.yaml: no such rule file"),
        (("solve", "." * 25, "--rules", "latin_5"), "no checkpoint there; make it with `hrm puzzle train --rules`"),
        (("solve", "12..3....", "--rules", "mine.yaml", "--file", "x"), "found a puzzle and --file"),
        (
            ("data", "--rules", "mine.yaml", "--givens", "few"),
            "--givens: found 'few'; allowed: a number, or fewest and most",
        ),
        (("data", "--rules", "mine.yaml", "--givens", "4-12"), "--givens: found '4-12'; allowed: at most 9"),
        (("train", "--rules", "mine.yaml", "--profile", "none"), "no profile 'none'"),
        (("data", "--rules", "bad.yaml"), "bad.yaml, line 4: units.row: unknown key"),
        (("data",), "Missing option '--rules'"),
    ],
)
def test_wrong_input_costs_a_line(project, monkeypatch, capfd, words, said):
    (project / "bad.yaml").write_text("title: bad\nsize: 3\ngivens: [1, 2]\nunits: {row: true}\n")
    code, out, err = hrm(project, monkeypatch, capfd, *words)
    assert (code, out) == (2, "") and said in err and len(err.strip().splitlines()) == 1, err


def test_a_model_of_other_rules_is_refused(project, a_set, tmp_path, monkeypatch, capfd):
    T.run("other", validate(RUN, T.RunConfig), 0, a_set, tmp_path / "run", Options(tmp_path / "resume", progress=False))
    words = ("solve", "12..3....", "--rules", "mine.yaml", "--checkpoint", tmp_path / "run" / "best")
    code, out, err = hrm(project, monkeypatch, capfd, *words)
    assert (code, out) == (2, "") and "was trained by other rules (Cages 4 x 4)" in err


def test_a_command_that_solves_nothing_loads_no_solver():
    import subprocess
    import sys

    code = "import sys, hrm.tools.cli, hrm.puzzle.train, hrm.puzzle.solve; print([m for m in sys.modules if m.startswith('ortools')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_names_the_files_that_come_with_the_package():
    from hrm.tools.commands.puzzle import app

    for verb in ("data", "train", "solve"):
        shown = " ".join(CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).output.split())
        assert all(name in shown for name in SHIPPED) and "--rules" in shown
