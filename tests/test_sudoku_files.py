"""Sudoku files: the official folder, CSV, lines, bad rows, and what the pipeline builds."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hrm.sudoku import data as D
from hrm.sudoku.generate import generate, solve_all
from hrm.sudoku.rules import from_text, pretty, to_text, turn

SHARED = Path(os.environ.get("HRM_SHARED", Path(__file__).resolve().parents[1] / "../shared"))
KEYS = ("puzzles", "solutions", "guesses", "ratings", "groups")


def shared(name):
    if not (path := SHARED / "data" / "sudoku" / name).exists():
        pytest.skip(f"{name} is not in the folder named by HRM_SHARED (default ../shared)")
    return path


@pytest.fixture(scope="module")
def nines():
    made = generate(12, 9, (30, 50), "any", rng=2, progress=False)
    return D.from_arrays(made.puzzles, made.solutions, made.guesses, source="generated")


def same(one, two):
    for key in KEYS:
        assert np.array_equal(getattr(one, key), getattr(two, key)), key


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


# ------------------------------------------------------------------ object


def test_tokens(nines):
    inputs, labels = nines.tokens()
    assert inputs.dtype == torch.int64 and inputs.shape == (12, 81)
    assert (inputs == 1).sum() == (nines.puzzles == 0).sum() and labels.min() == 2 and labels.max() == 10
    assert nines.tokens(torch.int32)[0].dtype == torch.int32
    assert ((inputs == labels) | (inputs == 1)).all()
    assert nines.size == 9 and (nines.clues == (nines.puzzles > 0).sum(1)).all()


def test_levels(nines):
    data = replace(nines, ratings=["easy", "12", "", "3.5"] + [""] * 8, guesses=np.array([9, 0, 3, 31] + [-1] * 8))
    assert data.levels[:5] == ["easy", "singles", "1 to 5 guesses", "over 30 guesses", "unrated"]
    assert data.take(np.array([2, 0])).levels == ["1 to 5 guesses", "easy"]
    assert len(data.take(data.guesses > 0)) == 3


# --------------------------------------------------------- official folder


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), n=st.sampled_from([4, 6, 9]), grouped=st.booleans(), words=st.booleans())
def test_round_trip(tmp_path_factory, seed, n, grouped, words):
    folder, rng = tmp_path_factory.mktemp("official"), np.random.default_rng(seed)
    grids = rng.integers(1, n + 1, (7, n * n))
    data = D.from_arrays(
        np.where(rng.random(grids.shape) < 0.5, grids, 0),
        grids,
        rng.integers(-1, 90, 7),
        [str(r) for r in rng.choice(["easy", "7", ""], 7)] if words else None,
        np.array([0, 0, 1, 2, 2, 2, 3]) if grouped else None,
    )
    D.save_official(data, folder, "train")
    same(D.load_official(folder / "train"), data)
    D.save_official(data, folder, "test")
    one, two = content(folder / "train"), content(folder / "test")
    assert one == two and "all__inputs.npy" in one


def test_official_contents(nines, tmp_path):
    D.save_official(nines, tmp_path, "train")
    assert json.loads((tmp_path / "identifiers.json").read_text()) == ["<blank>"]
    assert json.loads((tmp_path / "train/dataset.json").read_text()) == dict(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=11,
        seq_len=81,
        num_puzzle_identifiers=1,
        total_groups=12,
        total_puzzles=12,
        mean_puzzle_examples=1.0,
        sets=["all"],
    )
    arrays = {
        key: np.load(tmp_path / f"train/all__{key}.npy", allow_pickle=False)
        for key in ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
    }
    assert arrays["inputs"].dtype == arrays["labels"].dtype == np.uint8
    assert (arrays["inputs"] == nines.puzzles + 1).all() and (arrays["labels"] == nines.solutions + 1).all()
    assert (arrays["puzzle_identifiers"] == 0).all() and arrays["puzzle_identifiers"].shape == (12,)
    assert (arrays["puzzle_indices"] == np.arange(13)).all() and (arrays["group_indices"] == np.arange(13)).all()
    with pytest.raises(ValueError, match="allowed are 'train' and 'test'"):
        D.save_official(nines, tmp_path, "val")


def test_reads_what_the_official_builder_writes(nines, tmp_path):
    "int64 arrays, three rows a group, no files of ours, no total_puzzles."
    at = tmp_path / "train"
    at.mkdir()
    arrays = dict(
        inputs=nines.puzzles.astype(np.int64) + 1,
        labels=nines.solutions.astype(np.int64) + 1,
        puzzle_identifiers=np.zeros(12, np.int32),
        puzzle_indices=np.arange(13, dtype=np.int32),
        group_indices=np.arange(0, 13, 3, dtype=np.int32),
    )
    for key, array in arrays.items():
        np.save(at / f"all__{key}.npy", array)
    meta = dict(
        seq_len=81,
        vocab_size=11,
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        num_puzzle_identifiers=1,
        total_groups=4,
        mean_puzzle_examples=1,
        sets=["all"],
    )
    (at / "dataset.json").write_text(json.dumps(meta))
    data, report = D.read(tmp_path, part="train")
    assert (len(data), report.good, report.bad) == (12, 12, [])
    assert data.groups.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert (data.guesses == nines.guesses).all() and (data.originals().puzzles == nines.puzzles[::3]).all()
    assert (D.read(at)[0].puzzles == nines.puzzles).all()  # the part itself
    with pytest.raises(D.DataError, match="test/dataset.json"):
        D.read(tmp_path)


class Pickled:
    pass


def _pickle(path):
    np.save(path, np.array([Pickled()], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    "file, spoil, word",
    [
        ("all__inputs.npy", lambda p: p.unlink(), "missing"),
        ("all__inputs.npy", lambda p: p.write_bytes(p.read_bytes()[:-7]), "not a plain numpy array"),
        ("all__inputs.npy", lambda p: p.write_bytes(b""), "not a plain numpy array"),
        ("all__labels.npy", _pickle, "not a plain numpy array"),
        ("all__labels.npy", lambda p: np.save(p, np.ones((12, 80), int)), r"allowed is \(12, 81\)"),
        ("all__labels.npy", lambda p: np.save(p, np.full((12, 81), 12)), "token 12"),
        ("all__inputs.npy", lambda p: np.save(p, np.ones((12, 81))), "allowed are integers"),
        ("all__puzzle_indices.npy", lambda p: np.save(p, np.array([0, 5, 3, 12])), "ascending"),
        ("all__group_indices.npy", lambda p: np.save(p, np.array([0, 99])), "from 0 to 12"),
        ("all__guesses.npy", lambda p: np.save(p, np.zeros(3, int)), "3 entries"),
        ("levels.json", lambda p: p.write_text('["a"]'), "list of 12"),
        ("levels.json", lambda p: p.write_text("{"), "not readable as JSON"),
        ("dataset.json", lambda p: p.write_text("[]"), "seq_len is None"),
        ("dataset.json", lambda p: p.write_text("{"), "not readable as JSON"),
        ("dataset.json", lambda p: p.write_text(p.read_text().replace("81", "900")), "seq_len is 900"),
        ("dataset.json", lambda p: p.write_text(p.read_text().replace("11", "12")), "vocab_size is 12"),
        (
            "dataset.json",
            lambda p: p.write_text(p.read_text().replace('"all"', '"../all"')),
            'sets: found "../all"; allowed',
        ),
        (
            "dataset.json",
            lambda p: p.write_text(p.read_text().replace('"all"', '"a..b"')),
            r'sets: found "a\.\.b"; allowed',
        ),
        ("dataset.json", lambda p: p.write_text(p.read_text().replace('"all"', "7")), "sets: found 7; allowed: a name"),
        ("dataset.json", lambda p: p.write_text(p.read_text().replace('"sets"', '"seats"')), "sets is None"),
    ],
)
def test_broken_folder(nines, tmp_path, file, spoil, word):
    D.save_official(nines, tmp_path, "test")
    spoil(tmp_path / "test" / file)
    with pytest.raises(D.DataError, match=word) as error:
        D.read(tmp_path)
    assert file in str(error.value)


def test_folder_with_a_wrong_row(nines, tmp_path):
    solutions = nines.solutions.copy()
    solutions[4] = solutions[5]
    D.save_official(replace(nines, solutions=solutions), tmp_path, "test")
    data, report = D.read(tmp_path)
    assert len(data) == 11 and report.bad[0][1] == 4 and "not the puzzle's" in report.bad[0][2]
    with pytest.raises(D.DataError, match="all__inputs.npy:4:"):
        D.read(tmp_path, strict=True)


# ------------------------------------------------------------------- files


def rows(nines, *more):
    lines = [f"me,{to_text(p)},{to_text(s)},{r}" for p, s, r in zip(nines.puzzles, nines.solutions, range(12))]
    return "\n".join(["source,question,answer,rating", *lines[:3], *more, *lines[3:]])


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t,
        lambda t: "\ufeff" + t,
        lambda t: t.replace("\n", "\r\n"),
        lambda t: t.replace("\n", "\r"),
        lambda t: t + "\n\n",
        lambda t: t.replace(".", "0"),
        lambda t: t.replace("\n", "\n# a note\n", 3),
        lambda t: "\n\n" + t,
        lambda t: t.replace("me,", '"me, you",'),
        lambda t: t.replace("question", " Question "),
    ],
)
def test_good_csv(nines, tmp_path, change):
    (tmp_path / "a.csv").write_bytes(change(rows(nines)).encode())
    data, report = D.read(tmp_path / "a.csv", strict=True)
    assert report.bad == [] and report.good == 12
    assert (data.puzzles == nines.puzzles).all() and (data.solutions == nines.solutions).all()
    assert data.ratings == [str(i) for i in range(12)] and (data.guesses == nines.guesses).all()


@pytest.mark.parametrize(
    "text",
    [
        lambda p, s: "question\n" + "\n".join(p),
        lambda p, s: "puzzle,x\n" + "\n".join(f"{q},1" for q in p),
        lambda p, s: "answer,question,rating\n" + "\n".join(f",{q}" for q in p),
        lambda p, s: "# note\n" + "\n".join(p),
        lambda p, s: "\n".join(p).replace(".", "_") + "\n",
        lambda p, s: "\r\n".join(p).replace(".", "*"),
        lambda p, s: "  " + "  \n  ".join(p),
    ],
)
def test_answers_are_found_by_us(nines, tmp_path, text):
    (tmp_path / "a").write_text(text([to_text(g) for g in nines.puzzles], None), newline="")
    data, report = D.read(tmp_path / "a", strict=True)
    assert (data.puzzles == nines.puzzles).all() and (data.solutions == nines.solutions).all()


def test_bad_rows(nines, tmp_path, capsys):
    p, s = to_text(nines.puzzles[0]), to_text(nines.solutions[0])
    cases = [
        (f"me,{p[:-1]},{s},1", "found 80 characters; allowed are 81"),
        (f"me,{p},{s}1,1", "the answer has the wrong length: found 82"),
        (f"me,x{p[1:]},,1", "found character 'x' at position 1; allowed are 1 to 9"),
        (f"me,{p},{'?' + s[1:]},1", "the answer has a wrong character"),
        ("me,55" + "." * 79 + ",,1", "a clue breaks a rule: row 1 has 2 times the digit 5"),
        (f"me,{p},{to_text(nines.solutions[1])},1", "the answer is not the puzzle's"),
        (f"me,{p},{s[:-1]}.,1", "1 cells are blank"),
        (f"me,{p},{s[1] + s[1:]},1", "the answer is not the puzzle's"),
        ("me," + "." * 81 + f",{s},1", "several solutions"),
        ("me,12345678....9" + "." * 8 + "9" + "." * 59 + ",,1", "a clue breaks a rule: column 4 has 2"),
        ("me,12345678." + "." * 17 + "9" + "." * 54, "no solution"),
        (f"me,{p},{s},1,extra", "wrong number of fields: found 5; allowed are 2 to 4"),
        ("me", "wrong number of fields: found 1"),
        (f'"me,{p},{s},1', "wrong number of fields: found 1"),
        ("me," + "." * 16 + ",,", "found 16 characters"),
        ("me,,,", "found 0 characters"),
    ]
    (tmp_path / "b.csv").write_text(rows(nines, *(row for row, _ in cases)))
    data, report = D.read(tmp_path / "b.csv")
    shown = capsys.readouterr()
    assert shown.out == "" and f"12 puzzles read, {len(cases)} rows skipped" in shown.err
    same(data, D.read_text(rows(nines).encode(), "x")[0])
    assert [line for _, line, _ in report.bad] == [5 + i for i in range(len(cases))]
    for bad, (row, reason) in zip(report.bad, cases):
        assert reason in bad[2] and "; " in bad[2], (row, bad[2])
    assert f"{tmp_path / 'b.csv'}:5: the puzzle has the wrong length" in shown.err
    with pytest.raises(D.DataError, match="b.csv:5: .*80 characters"):
        D.read(tmp_path / "b.csv", strict=True)


def test_many_bad_rows_are_listed_up_to_twenty(nines, tmp_path, capsys):
    (tmp_path / "b.csv").write_text(rows(nines, *["me,123,,"] * 33))
    _, report = D.read(tmp_path / "b.csv")
    err = capsys.readouterr().err
    assert len(report.bad) == 33 and err.count("b.csv:") == 20 and "... and 13 more" in err
    assert "33 x the puzzle has the wrong length" in err


@pytest.mark.parametrize(
    "raw, word",
    [
        (b"", "empty file"),
        (b"\x89PNG\r\n\x1a\n\0\xff", "not UTF-8"),
        (b"a\0b", "binary"),
        (b"\n\n", "no puzzle"),
        (b"# only a note\n", "no puzzle"),
        ("\ufeff".encode(), "no puzzle"),
        (b"source,question,answer,rating\n", "no puzzle"),
        (b"a,b,c\n1,2,3\n", "column `question`"),
        (b"hello world\n", "no usable puzzle"),
    ],
)
def test_unusable_files(tmp_path, raw, word):
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(D.DataError, match=word) as error:
        D.read(tmp_path / "f")
    assert str(tmp_path / "f") in str(error.value)


def test_missing_folder_and_sizes(nines, tmp_path):
    with pytest.raises(D.DataError, match="no such file or folder"):
        D.read(tmp_path / "nothing")
    with pytest.raises(D.DataError, match="a folder without test/dataset.json"):
        D.read(tmp_path)
    with pytest.raises(D.DataError, match="no file given"):
        D.read()
    four = generate(3, 4, (5, 9), "any", rng=0, progress=False)
    (tmp_path / "four").write_text("\n".join(map(to_text, four.puzzles)))
    (tmp_path / "nine").write_text("\n".join(map(to_text, nines.puzzles)))
    assert D.read(tmp_path / "four")[0].size == 4
    with pytest.raises(D.DataError, match="several sizes"):
        D.read(tmp_path / "four", tmp_path / "nine")
    both, _ = D.read(tmp_path / "nine", tmp_path / "nine")
    assert len(both) == 24 and len(set(both.groups)) == 24


def test_standard_input(nines, monkeypatch):
    text = "\n".join(map(to_text, nines.puzzles)).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert (D.read("-")[0].puzzles == nines.puzzles).all()


def test_trusting(nines, tmp_path):
    (tmp_path / "a.csv").write_text(rows(nines, "me," + "." * 81 + f",{to_text(nines.solutions[0])},"))
    data, report = D.read(tmp_path / "a.csv", verify=False)
    assert len(data) == 13 and report.bad == [] and (data.guesses == -1).all()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300) | st.text('.0123456789,\n"#axq', max_size=300).map(lambda t: b"question\n" + t.encode()))
def test_any_bytes_read_or_say_why(raw):
    try:
        data, bad = D.read_text(raw, "f")
    except D.DataError as error:
        assert str(error).startswith("f")
    else:
        assert all(name == "f" and line > 0 and reason for name, line, reason in bad)
        assert data is not None or bad


def test_outside_files():
    for name, count in [
        ("known_official_rows.csv", 2),
        ("exchange_easy_200.csv", 200),
        ("exchange_diabolical_200.csv", 200),
        ("extreme_1k_train.csv", 1000),
        ("extreme_dev_500.csv", 500),
    ]:
        data, report = D.read(shared(name))
        assert (len(data), report.bad) == (count, []) and (solve_all(data.puzzles).grid == data.solutions).all()
    data, _ = D.read(*(shared(f"exchange_{level}_200.csv") for level in ("easy", "hard1")))
    assert [data.levels.count(level) for level in ("easy", "hard1")] == [200, 200]


# ---------------------------------------------------------------- pipeline


def config(**more):
    sets = dict(
        nine=dict(size=9, clues=(41, 55), difficulty="singles", train=30, held_out=8),
        four=dict(size=4, clues=(4, 9), difficulty="any", train=60, held_out=12),
    )
    return D.DataConfig(**{"source": "generated", "seed": 5, "sets": sets} | more)


def test_build_is_disjoint_and_deterministic(tmp_path, capsys):
    summary = D.build(config(), tmp_path / "a", progress=False)
    D.build(config(), tmp_path / "b", progress=False)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert capsys.readouterr().err == ""
    for name, n in (("nine", 9), ("four", 4)):
        train, test = (D.read(tmp_path / "a" / name, part=part)[0] for part in ("train", "test"))
        assert train.size == n and D.shared(test, train) == 0 == summary[name]["shared"]
        assert (len(train), len(test)) == (summary[name]["train"]["puzzles"], summary[name]["held_out"]["puzzles"])
    assert len(D.read(tmp_path / "a/nine", part="train")[0]) == 30
    assert summary["nine"]["train"]["levels"] == {"singles": 30}
    json.dumps(summary, allow_nan=False)
    D.build(config(seed=6), tmp_path / "c", progress=False)
    assert content(tmp_path / "c") != content(tmp_path / "a")
    alone = {"nine": config().sets["nine"]}
    D.build(config(sets=alone), tmp_path / "d", progress=False)  # another set leaves this one as it is
    assert content(tmp_path / "d" / "nine") == content(tmp_path / "a" / "nine")


def test_build_from_a_file(nines, tmp_path):
    (tmp_path / "mine.csv").write_text(rows(nines, "me,123,,"))
    one = dict(size=9, clues=(30, 50), difficulty="any", train=8, held_out=2)
    path = str(tmp_path / "mine.csv")
    summary = D.build(D.DataConfig(source=path, seed=0, sets={"mine": one}), tmp_path / "out", False)["mine"]
    assert (summary["train"]["puzzles"], summary["held_out"]["puzzles"], summary["skipped"]) == (8, 2, 1)
    known = {p.tobytes() for p in nines.puzzles}
    train, test = (D.read(tmp_path / "out/mine", part=part)[0] for part in ("train", "test"))
    assert {p.tobytes() for p in train.puzzles} < known and D.shared(test, train) == 0
    many = one | dict(train=999, held_out=999, source=path)
    short = D.DataConfig(source="generated", seed=0, sets={"mine": many})
    summary = D.build(short, tmp_path / "short", False)["mine"]
    assert (summary["train"]["puzzles"], summary["held_out"]["puzzles"]) == (10, 2)
    four = D.DataConfig(source=str(tmp_path / "mine.csv"), seed=0, sets={"four": one | dict(size=4, clues=(4, 9))})
    with pytest.raises(D.DataError, match="at least 2 of size 4"):
        D.build(four, tmp_path / "no", False)


def test_build_keeps_an_official_split(nines, tmp_path):
    D.save_official(nines.take(slice(9)), tmp_path / "src", "train")
    D.save_official(nines.take(slice(9, 12)), tmp_path / "src", "test")
    one = dict(size=9, clues=(17, 80), difficulty="any", train=100, held_out=100)
    D.build(D.DataConfig(source=str(tmp_path / "src"), seed=0, sets={"mine": one}), tmp_path / "out", False)
    assert (D.load_official(tmp_path / "out/mine/train").puzzles == nines.puzzles[:9]).all()
    assert (D.load_official(tmp_path / "out/mine/test").puzzles == nines.puzzles[9:]).all()


@pytest.mark.parametrize(
    "change",
    [
        dict(size=5),
        dict(clues=(50, 40)),
        dict(clues=(0, 40)),
        dict(clues=(4, 81)),
        dict(train=0),
        dict(held_out=0),
        dict(difficulty="hard"),
        dict(extra=1),
    ],
)
def test_config_errors(change):
    with pytest.raises(ValidationError):
        config(sets={"one": dict(size=9, clues=(41, 55), difficulty="singles", train=30, held_out=8) | change})
    with pytest.raises(ValidationError):
        config(sets={"../x": config().sets["nine"].model_dump()})
    with pytest.raises(ValidationError):
        config(sets={})


def test_text_helpers_agree():
    assert (from_text("1_*0" + "." * 12) == from_text("1..." + "0" * 12)).all()


# ------------------------------------------------- layouts that people have

COMPLETE = "594823671263517489178694352327965814486172593915438726839256147752341968641789235"


def odd(name):
    if not (path := SHARED / "data" / "odd" / name).exists():
        pytest.skip(f"{name} is not in the folder named by HRM_SHARED (default ../shared)")
    return path


@pytest.mark.parametrize(
    "name", ["26_pair_with_a_space.txt", "27_semicolon.csv", "28_sadman.sdk", "29_simple_sudoku.ss"]
)
def test_a_board_in_the_layouts_of_other_programs(name):
    data, report = D.read(odd(name))
    assert [to_text(grid) for grid in data.solutions] == [COMPLETE] and not report.bad
    assert to_text(data.puzzles[0]).startswith("...823..1..3...4..") and data.guesses[0] >= 0


def test_upright_boxes_are_recognised_and_said(capsys):
    path = odd("30_six_by_six_boxes_of_3x2.csv")
    data, report = D.read(path)
    assert data.turned and not report.bad and "boxes of 3 rows and 2 columns" in capsys.readouterr().err
    assert to_text(turn(data.solutions[0])) == "123456345612561234214365436521652143"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), n=st.sampled_from([4, 6, 9]), framed=st.booleans(), several=st.integers(1, 3))
def test_blocks_of_lines_are_the_boards_they_draw(seed, n, framed, several):
    made = generate(several, n, (n * n // 2, n * n - n), "any", rng=seed, progress=False)
    drawn = [pretty(grid) if framed else "\n".join(to_text(row) for row in grid.reshape(n, n)) for grid in made.puzzles]
    data, bad = D.read_text("\n\n".join(drawn).encode(), "drawn.txt")
    assert not bad and np.array_equal(data.puzzles, made.puzzles) and np.array_equal(data.solutions, made.solutions)


def test_an_incomplete_block_is_named_by_its_line():
    made = generate(2, 4, (8, 9), "any", rng=0, progress=False)
    lines = ["\n".join(to_text(row) for row in grid.reshape(4, 4)) for grid in made.puzzles]
    data, bad = D.read_text(f"{lines[0]}\n\n{lines[1][:-5]}\n".encode(), "half.txt")
    assert len(data) == 1 and [str(row).split(":")[:2] for row in bad] == [["half.txt", "6"]]
    assert "a board is incomplete" in str(bad[0]) and "allowed are 4 of 4" in str(bad[0])
