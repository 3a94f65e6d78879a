"""The rules of Sudoku: solver, generator, symmetries, canonical form, split."""

import hashlib
import os
import time
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.sudoku import generate as S
from hrm.sudoku import rules as R
from hrm.sudoku import symmetry as Y
from hrm.sudoku import techniques as T
from hrm.sudoku.draw import draw_grid

SHARED = Path(os.environ.get("HRM_SHARED", Path(__file__).resolve().parents[1] / "../shared"))
SETS = {4: ((4, 10), "any"), 6: ((10, 24), "any"), 9: ((26, 55), "any")}
seeds = st.integers(0, 2**32 - 1)


def shared(name):
    "A file outside the repository, or a skip that says which."
    if not (path := SHARED / "data" / "sudoku" / name).exists():
        pytest.skip(f"{name} is not in the folder named by HRM_SHARED (default ../shared)")
    return path


@pytest.fixture(scope="module")
def made():
    return {n: S.generate(60, n, clues, kind, rng=n, progress=False) for n, (clues, kind) in SETS.items()}


@pytest.fixture(scope="module")
def fours():
    "All 4x4 solution grids, by brute force over rows."
    rows, grids = list(permutations(range(1, 5))), []
    for four in product(rows, repeat=4):
        if any(len({row[c] for row in four}) < 4 for c in range(4)):
            continue
        boxes = [{four[r][c], four[r][c + 1], four[r + 1][c], four[r + 1][c + 1]} for r in (0, 2) for c in (0, 2)]
        if all(len(box) == 4 for box in boxes):
            grids.append(sum(four, ()))
    return np.array(grids, np.uint8)


def solve_naive(grid):
    "Naked and hidden singles with sets and loops: what is filled in the end."
    n = R.size_of(len(grid))
    units, members = R.geometry(n)
    grid = [int(d) for d in grid]
    while True:
        left = {
            c: set(range(1, n + 1)) - {grid[m] for u in units[c] for m in members[u]}
            for c in range(n * n)
            if not grid[c]
        }
        moves = {c: next(iter(d)) for c, d in left.items() if len(d) == 1}
        for unit in members:
            for digit in range(1, n + 1):
                places = [c for c in unit if digit in left.get(c, ())]
                if len(places) == 1:
                    moves[places[0]] = digit
        if not moves:
            return np.array(grid)
        for cell, digit in moves.items():
            grid[cell] = digit


# ------------------------------------------------------------------ solver


def test_validity_cases():
    cases = [line.strip().split(":") for line in shared("validity_cases.txt").read_text().splitlines() if line.strip()]
    assert len(cases) == 43
    for puzzle, count, *answer in cases:
        found = S.solve(R.from_text(puzzle))
        assert found.count == min(2, int(count)), puzzle
        if found.count == 1:
            assert R.to_text(found.grid) == answer[0]
        elif found.count == 0:
            assert not found.grid.any()
        else:
            assert R.check(R.from_text(puzzle), found.grid) == []


def test_official_rows():
    import csv

    with open(shared("known_official_rows.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        found = S.solve(R.from_text(row["question"]))
        assert (found.count, R.to_text(found.grid)) == (1, row["answer"])
        assert found.guesses > 0


def test_every_4x4(fours):
    assert len(fours) == 288
    rng = np.random.default_rng(5)
    puzzles = np.where(rng.random((400, 16)) < rng.uniform(0.15, 0.6, (400, 1)), fours[rng.integers(288, size=400)], 0)
    noise = rng.random((400, 16)) < 0.03  # some puzzles become contradictory
    puzzles = np.where(noise, rng.integers(1, 5, (400, 16)), puzzles).astype(np.uint8)
    counts = np.array([R.extends(puzzle, fours).sum() for puzzle in puzzles])
    assert {0, 1} < set(np.minimum(counts, 2)) and (counts > 1).any()
    found = S.solve_all(puzzles)
    assert (found.count == np.minimum(counts, 2)).all()
    assert R.extends(puzzles, found.grid)[counts > 0].all() and R.valid(found.grid[counts > 0]).all()


def test_solver_is_deterministic_and_refuses_nonsense():
    grid = R.from_text("4...3.......6..8..........1....5..9..8....6...7.2........1.27..5.3....4.9........")
    one, two = S.solve(grid), S.solve(grid)
    assert one.guesses == two.guesses > 0 and (one.grid == two.grid).all()
    with pytest.raises(ValueError, match="allowed are 0 to 4"):
        S.solve(np.full(16, 5))
    with pytest.raises(ValueError, match="allowed are 16"):
        S.solve(np.zeros(80, int))
    assert S.solve_all(np.zeros((0, 81), int)).count.shape == (0,)


def test_complete_grid_is_its_own_solution(fours):
    found = S.solve(fours[17])
    assert (found.count, found.guesses) == (1, 0) and (found.grid == fours[17]).all()


# --------------------------------------------------------------- generator


@pytest.mark.parametrize(
    "size, clues, kind",
    [
        (9, (41, 55), "singles"),
        (9, (24, 32), "guesses"),
        (9, (28, 36), "any"),
        (6, (9, 20), "singles"),
        (6, (9, 16), "guesses"),
        (4, (4, 9), "singles"),
    ],
)
def test_generated(size, clues, kind):
    made = S.generate(60, size, clues, kind, rng=11, progress=False)
    found = S.solve_all(made.puzzles)
    assert made.puzzles.dtype == made.solutions.dtype == np.uint8
    assert (found.count == 1).all() and (found.grid == made.solutions).all() and (found.guesses == made.guesses).all()
    assert (made.clues == (made.puzzles > 0).sum(1)).all()
    assert clues[0] <= made.clues.min() and made.clues.max() <= clues[1]
    assert len({p.tobytes() for p in made.puzzles}) == 60
    singles = [(solve_naive(p) > 0).all() for p in made.puzzles]
    if kind == "singles":
        assert all(singles)
    if kind == "guesses":
        assert not any(singles) and (made.guesses > 0).all()
    assert [guesses == 0 for guesses in made.guesses] == singles


def test_seeds():
    one, two, other = (S.generate(40, 9, rng=seed, progress=False) for seed in (3, np.random.default_rng(3), 4))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one, two))
    assert one.puzzles.tobytes() != other.puzzles.tobytes()
    assert not {p.tobytes() for p in one.solutions} & {p.tobytes() for p in other.solutions}


def test_golden_puzzles():
    "The bytes of a seed do not move with a refactor, nor with the number of puzzles asked for."
    made = S.generate(3, 4, (5, 5), "any", rng=0, progress=False)
    assert [R.to_text(p) for p in made.puzzles] == ["..1..2.4.3..4...", "....1.3.....3.41", "2.3...4......1.4"]
    made = S.generate(20, 9, rng=0, progress=False)
    assert R.to_text(made.puzzles[0]) == (
        "213.5948767...21..945.17623..278...676.2.4.38..45..2715..326..4.26.783951.7.458.2"
    )
    assert hashlib.sha256(made.puzzles.tobytes() + made.solutions.tobytes()).hexdigest()[:16] == "cdf3780392cc7fab"
    assert (S.generate(5, 9, rng=0, progress=False).puzzles == made.puzzles[:5]).all()


def test_no_pattern_in_the_clues():
    "No symmetry is imposed on the pattern, every cell is blank equally often, every target is met."
    made = S.generate(1500, 9, (41, 55), rng=0, progress=False)
    given = (made.puzzles > 0).reshape(-1, 9, 9)
    assert (given == given[:, ::-1, ::-1]).all((1, 2)).mean() < 0.01
    share, expected = given.mean(0), given.mean()
    assert np.abs(share - expected).max() < 5 * np.sqrt(expected * (1 - expected) / 1500)
    counts = np.bincount(made.clues, minlength=56)[41:]
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100)
    first = np.bincount(made.solutions[:, 0], minlength=10)[1:]
    assert np.abs(first - 1500 / 9).max() < 5 * np.sqrt(1500 / 9)


def test_bad_requests():
    with pytest.raises(ValueError, match="allowed are 4, 6, 9"):
        S.generate(1, 16, progress=False)
    with pytest.raises(ValueError, match="allowed are"):
        S.generate(1, 9, difficulty="hard", progress=False)
    with pytest.raises(ValueError, match="0 < low <= high < 81"):
        S.generate(1, 9, (50, 40), progress=False)
    with pytest.raises(RuntimeError, match="found only"):  # no 4x4 puzzle has fewer than 4 clues
        S.generate(2, 4, (3, 3), "any", progress=False)
    assert S.generate(0, 9, progress=False).puzzles.shape == (0, 81)


def test_speed():
    "2,000 a second per core are wanted; the bound is loose for a busy machine, and counts processor time."
    S.generate(1, 9, progress=False)
    best = 0
    for seed in range(3):
        started = time.process_time()
        S.generate(1000, 9, (41, 55), "singles", rng=seed, progress=False)
        best = max(best, 1000 / (time.process_time() - started))
    print(f"{best:.0f} puzzles a second")
    assert best > 2000


# -------------------------------------------------------------- symmetries


def draw(seed, n, batch=60):
    return Y.draw_symmetry(batch, n, torch.Generator().manual_seed(seed))


@settings(max_examples=15, deadline=None)
@given(seed=seeds, n=st.sampled_from([4, 6, 9]))
def test_symmetry(made, seed, n):
    data, drawn = made[n], draw(seed, n)
    tokens, labels = (torch.from_numpy(g.astype(np.int64) + 1) for g in (data.puzzles, data.solutions))
    moved, moved_labels = Y.apply_symmetry(tokens, drawn), Y.apply_symmetry(labels, drawn)
    assert ((moved == 1) == Y.apply_symmetry(tokens == 1, drawn, "cells")).all()  # blanks stay blanks
    assert ((moved > 1).sum(1) == (tokens > 1).sum(1)).all()  # clues are preserved
    assert R.valid(moved_labels.numpy() - 1).all()
    found = S.solve_all(moved.numpy() - 1)
    assert (found.count == 1).all() and (found.grid == moved_labels.numpy() - 1).all()
    assert (Y.apply_symmetry(moved, drawn.inverse()) == tokens).all()
    assert (Y.apply_symmetry(tokens - 1, drawn, "digits") == moved - 1).all()
    for row in range(0, 60, 7):  # the loop version
        renamed = [int(drawn.digits[row, tokens[row, cell]]) for cell in drawn.cells[row]]
        assert moved[row].tolist() == renamed
    singles = S.solve_all(data.puzzles).guesses == 0
    assert ((found.guesses == 0) == singles).all()  # so does what singles can do


def test_symmetry_keeps_ids_dtype_and_units():
    for n in (4, 6, 9):
        drawn = draw(1, n, 500)
        assert (drawn.digits[:, :2] == torch.arange(2)).all()
        assert (drawn.digits.sort(1).values == torch.arange(n + 2)).all()
        assert (drawn.cells.sort(1).values == torch.arange(n * n)).all()
        grid = torch.full((500, n * n), -100, dtype=torch.int32)
        grid[:, 0] = 3
        out = Y.apply_symmetry(grid, drawn)
        assert out.dtype == torch.int32 and ((out == -100).sum(1) == n * n - 1).all()
        assert (Y.apply_symmetry(grid, Y.identity(500, n)) == grid).all()
        assert (Y.apply_symmetry(torch.zeros(500, n * n, dtype=torch.int64), drawn) == 0).all()  # padding stays
        units = torch.from_numpy(R.geometry(n)[0])
        for row in range(0, 500, 97):  # every unit comes whole from one unit
            inside = {tuple(sorted(drawn.cells[row][list(cells)].tolist())) for cells in R.geometry(n)[1]}
            assert inside == {tuple(sorted(cells.tolist())) for cells in R.geometry(n)[1]}
        assert units.shape == (n * n, 3)


def test_symmetry_covers_the_group_and_is_seeded():
    assert torch.equal(draw(2, 9).cells, draw(2, 9).cells) and not torch.equal(draw(2, 9).cells, draw(3, 9).cells)
    places = {n: {tuple(c) for c in draw(0, n, 80000).cells.tolist()} for n in (4, 6)}
    assert len(places[4]) == 2 * 8 * 8  # transpose, rows, columns
    assert len(places[6]) == (6 * 2**3) * (2 * 6**2)  # no transpose: boxes are 2 x 3
    with pytest.raises(ValueError, match="size 5"):
        Y.draw_symmetry(1, 5, torch.Generator())


# ---------------------------------------------------- canonical form, split


@settings(max_examples=12, deadline=None)
@given(seed=seeds, n=st.sampled_from([4, 6, 9]))
def test_canonical_is_invariant(made, seed, n):
    data, drawn = made[n], draw(seed, n)
    moved = [
        Y.apply_symmetry(torch.from_numpy(g.astype(np.int64)), drawn, "digits").numpy()
        for g in (data.puzzles, data.solutions)
    ]
    assert (Y.canonical(data.puzzles, data.solutions) == Y.canonical(*moved)).all()


def test_canonical_is_an_image_and_the_least(made, fours):
    for n in (4, 6, 9):
        data = made[n]
        forms = Y.canonical(data.puzzles, data.solutions)
        again = Y.canonical(forms[:, n * n :], forms[:, : n * n])
        assert (forms == again).all() and R.valid(forms[:, : n * n]).all()
        assert (S.solve_all(forms[:, n * n :]).grid == forms[:, : n * n]).all()
        assert ((forms[:, n * n :] > 0).sum(1) == data.clues).all()
        drawn = draw(9, n, 60)
        for part in (data.solutions,):
            images = Y.apply_symmetry(torch.from_numpy(part.astype(np.int64)), drawn, "digits").numpy()
            assert all(tuple(form) <= tuple(image) for form, image in zip(forms[:, : n * n], images))
    assert len(np.unique(Y.canonical(fours, fours), axis=0)) == 2  # a known number


def test_canonical_against_brute_force(fours):
    "4x4: least image over all 128 moves of cells and 24 renamings, pair of solution and puzzle."
    drawn = draw(0, 4, 4000)
    cells = np.unique(drawn.cells.numpy(), axis=0)
    names = np.array([(0, *p) for p in permutations(range(1, 5))])
    assert len(cells) == 128
    rng = np.random.default_rng(1)
    for solution in fours[rng.integers(288, size=12)]:
        puzzle = np.where(rng.random(16) < 0.4, solution, 0)
        pairs = names[:, np.concatenate([solution[cells], puzzle[cells]], 1)].reshape(-1, 32)
        assert tuple(Y.canonical(puzzle[None], solution[None])[0]) == min(map(tuple, pairs.tolist()))
    with pytest.raises(ValueError, match="complete"):
        Y.canonical(np.zeros((1, 16)), np.zeros((1, 16), int))


def test_canonical_tells_other_puzzles_of_one_grid_apart(made):
    solution = made[9].solutions[:1].repeat(20, 0)
    puzzles = np.where(np.random.default_rng(0).random((20, 81)) < 0.6, solution, 0)
    assert len(np.unique(Y.canonical(puzzles, solution), axis=0)) == 20


@pytest.mark.parametrize("n", [4, 9])
def test_split_is_disjoint_up_to_symmetry(made, n):
    data, drawn = made[n], draw(4, n)
    both = [
        np.concatenate([g, Y.apply_symmetry(torch.from_numpy(g.astype(np.int64)), drawn, "digits").numpy()])
        for g in (data.puzzles, data.solutions)
    ]
    train, held_out = Y.split(*both, 30, rng=1)
    assert len(held_out) == 30 and sorted([*train, *held_out]) == list(range(120))
    keys = [form.tobytes() for form in Y.canonical(*both)]
    assert not {keys[row] for row in train} & {keys[row] for row in held_out}
    assert all((held_out == row).any() == (held_out == row + 60).any() for row in range(60))
    assert (Y.split(*both, 30, rng=1)[1] == held_out).all()
    with pytest.raises(ValueError, match="held_out"):
        Y.split(*both, 121)


def test_split_has_no_shared_hard_rows():
    "exchange hard and hard1 share 92 of 200 puzzles, as they stand."
    files = [shared(f"exchange_{name}_200.csv").read_text().split()[1:] for name in ("hard", "hard1")]
    grids = [np.stack([R.from_text(line.split(",")[1]) for line in lines]) for lines in files]
    one, two = ({form.tobytes() for form in Y.canonical(g, S.solve_all(g).grid)} for g in grids)
    assert len(one & two) >= 92


# ------------------------------------------------------------ text, checks


@given(st.sampled_from([4, 6, 9]), st.data())
def test_text(n, data):
    grid = np.array(data.draw(st.lists(st.integers(0, n), min_size=n * n, max_size=n * n)), np.uint8)
    text = R.to_text(grid)
    assert (R.from_text(text) == grid).all() and (R.from_text(text.replace(".", "0")) == grid).all()
    flat = R.pretty(grid).replace("|", "").replace(" ", "").split("\n")
    assert "".join(line for line in flat if "-" not in line) == text


def test_text_errors():
    for text, word in [
        ("." * 80, "80 cells"),
        ("x" + "." * 80, "'x' at position 1"),
        ("7" + "." * 35, "allowed are 1 to 6"),
        ("", "0 cells"),
        ("٣" + "." * 80, "character"),
    ]:
        with pytest.raises(ValueError, match=word):
            R.from_text(text)


def test_check(made):
    puzzle, solution = made[9].puzzles[0], made[9].solutions[0]
    assert R.check(puzzle, solution) == [] and R.violations(puzzle) == []
    wrong = solution.copy()
    clue = np.flatnonzero(puzzle)[0]
    wrong[clue] = wrong[clue] % 9 + 1
    found = R.check(puzzle, wrong)
    assert f"the clue says {puzzle[clue]}" in found[0] and len(found) == 4  # and its row, column and box
    assert R.check(puzzle, puzzle)[0].endswith("cells are blank")
    assert "above 9" in R.check(puzzle, solution + 5)[0] and "cells" in R.check(puzzle, solution[:16])[0]
    stack = np.stack([solution, wrong, puzzle])
    assert R.valid(stack).tolist() == [True, False, False]
    assert [bool(v) for v in R.valid(stack)] == [not R.check(np.zeros(81, int), g) for g in stack]
    assert R.extends(puzzle, stack).tolist() == [True, False, True][:2] + [True]


def test_drawing(made):
    from matplotlib.figure import Figure

    for n in (4, 6, 9):
        ax = Figure().subplots()
        puzzle, solution = made[n].puzzles[0], made[n].solutions[0]
        draw_grid(ax, puzzle, solution, changed=puzzle == 0, wrong=np.zeros(n * n, bool), title="t")
        assert [t.get_text() for t in ax.texts] == [str(d) for d in solution]
        bold = [t.get_fontweight() == "bold" for t in ax.texts]
        assert bold == (puzzle > 0).tolist() and len(ax.patches) == (puzzle == 0).sum()


# -------------------------------------------------------------- techniques


@settings(max_examples=25, deadline=None)
@given(seed=seeds, n=st.sampled_from([4, 6, 9]))
def test_a_level_is_the_least_that_suffices_and_no_symmetry_changes_it(made, seed, n):
    puzzles = torch.from_numpy(made[n].puzzles.astype(np.int64))
    image = Y.draw_symmetry(len(puzzles), n, torch.Generator().manual_seed(seed))
    moved = Y.apply_symmetry(puzzles, image, "digits").numpy()
    level = T.by_techniques(made[n].puzzles).level
    assert (T.by_techniques(moved).level == level).all()
    filled = np.stack([(T.by_techniques(moved, most).grid > 0).all(1) for most in (1, 2, 3, 4)])
    assert (np.where(filled.any(0), filled.argmax(0), 4) == level).all()


def slow_techniques(grid, n, most):
    "Candidate sets and the same four rules, written from their definitions: where nothing more follows."
    units, members = R.geometry(n)
    peers = [set(members[units[c]].ravel()) - {c} for c in range(n * n)]
    left = [{int(grid[c])} if grid[c] else set(range(1, n + 1)) for c in range(n * n)]
    fixed = [bool(grid[c]) for c in range(n * n)]
    for c in np.flatnonzero(grid):
        for p in peers[c]:
            if not fixed[p]:
                left[p] -= left[c]

    def place(c, d):
        left[c], fixed[c] = {d}, True
        for p in peers[c]:
            if not fixed[p]:
                left[p].discard(d)

    moved = True
    while moved:
        before = [set(x) for x in left], list(fixed)
        for c in range(n * n):
            if not fixed[c] and len(left[c]) == 1:
                place(c, *left[c])
        for cells in members if most > 1 else ():
            for d in range(1, n + 1):
                if len(at := [c for c in cells if not fixed[c] and d in left[c]]) == 1:
                    place(at[0], d)
        open_ = lambda cells, d: {c for c in cells if not fixed[c] and d in left[c]}
        for a in members if most > 2 else ():
            for b in members:
                for d in range(1, n + 1):
                    if (inside := open_(a, d)) and inside <= set(b):
                        for c in open_(b, d) - set(a):
                            left[c].discard(d)
        for cells in members if most > 3 else ():
            free = [c for c in cells if not fixed[c]]
            for c, e in combinations(free, 2):
                if left[c] == left[e] and len(left[c]) == 2:
                    for other in set(free) - {c, e}:
                        left[other] -= left[c]
            for d, f in combinations(range(1, n + 1), 2):
                if (at := open_(cells, d)) == open_(cells, f) and len(at) == 2:
                    for c in at:
                        left[c] &= {d, f}
        moved = before != (left, fixed)
    return np.array([next(iter(left[c])) if fixed[c] else 0 for c in range(n * n)])


@pytest.mark.parametrize("n", [4, 6, 9])
def test_techniques_against_their_definitions(made, n):
    hard = S.generate(15, n, {4: (4, 5), 6: (8, 11), 9: (22, 27)}[n], "any", rng=9, progress=False).puzzles
    for puzzle in [*made[n].puzzles[:10], *hard]:
        for most in (1, 2, 3, 4):
            expected = slow_techniques(puzzle, n, most)
            assert (T.by_techniques(puzzle, most).grid[0] == expected).all(), (R.to_text(puzzle), most)


def test_techniques_never_fill_a_board_that_leaves_a_choice():
    cases = [line.strip().split(":") for line in shared("validity_cases.txt").read_text().splitlines() if line.strip()]
    boards = np.stack([R.from_text(puzzle) for puzzle, *_ in cases])
    several, filled = S.solve_all(boards).count > 1, (T.by_techniques(boards).grid > 0).all(1)
    assert several.any() and not (several & filled).any()
