"`hrm train`, `hrm evaluate` and `hrm solve`: what they print, which exit code they end with, and one clear line for a wrong input."

import inspect
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from hrm.core import checkpoint
from hrm.core.hrm import HRM, HRMConfig
from hrm.sudoku.dataset import load_official
from hrm.sudoku.rules import extends, from_text, to_text, valid
from hrm.sudoku.generate import solve_all
from hrm.sudoku.model import load
from hrm.tools.cli import app, main
from hrm.tools.commands.opening import PIPELINE

MEMORY = tiny.RUN | {  # no symmetries: one solution, which a model that knows its cells learns by heart in a moment
    "augment": False,
    "arch": tiny.ARCH | {"pos_encodings": "learned"},
    "optim": {"name": "adamw", "lr": 3e-3},
    "loop": dict(steps=80, evaluate_every=80, log_every=20, compile="off", best="exact_accuracy"),
}
SOLUTION = to_text(tiny.boards(4, 1, 0).solutions[0])
KNOWN = "".join("." if at in (0, 3, 6, 9, 13) else digit for at, digit in enumerate(SOLUTION))
FOREIGN = "12343412214343.."  # another solution, which nobody has shown the model
NINE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    "A project with a trained run."
    folder = tiny.project(tmp_path_factory.mktemp("project"), memory=MEMORY, other=MEMORY | {"set": "missing"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HRM_ROOT", str(folder))
        assert main(["train", "--profile", "tiny", "--run", "memory"]) == 0
    return folder


@pytest.fixture
def best(project) -> str:
    return str(project / "data" / "tiny" / "sudoku" / "train" / "memory" / "best")


@pytest.fixture
def hrm(project, monkeypatch, capsys):
    "Run the command line in this process: exit code, standard output, standard error."
    monkeypatch.setenv("HRM_ROOT", str(project))

    def call(*words: str, stdin: bytes = b"") -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return call


@pytest.fixture
def refused(hrm):
    "Run a command that is to be refused: exit code 2, nothing on standard output, one line on standard error that says all this."

    def call(*words: str, says: tuple[str, ...], stdin: bytes = b"", lines: int = 1):
        code, out, err = hrm(*words, stdin=stdin)
        assert (code, out) == (2, ""), err
        assert err.startswith("hrm: ") and len(err.splitlines()) == lines, err
        assert [part for part in says if part not in err] == [], err

    return call


def test_the_puzzles_of_this_file_have_one_solution():
    assert solve_all(np.stack([from_text(text) for text in (KNOWN, FOREIGN)])).count.tolist() == [1, 1]


# --- train ------------------------------------------------------------------------------------------------------------------------------


def test_train_tells_where_the_best_is(hrm, project, best, tmp_path):
    code, out, err = hrm(
        "sudoku",
        "train",
        "--profile",
        "tiny",
        "--run",
        "memory",
        "--out",
        tmp_path / "runs",
        "--resume",
        tmp_path / "resume",
    )
    assert (code, err) == (0, "")
    assert (
        "memory: 80 steps, " in out
        and " TFLOP, " in out
        and "exact_accuracy 1.0000" in out
        and f"-> {tmp_path}/runs/memory/best" in out
    )
    assert [path.name for path in (tmp_path / "resume").glob("*/*.json")] == ["finished.json"]
    ours, theirs = tiny.files(tmp_path / "runs" / "memory"), tiny.files(Path(best).parent)
    assert ours == theirs, "the same command, the same bytes"


def test_train_on_a_data_set_of_ones_own(hrm, project, tmp_path):
    tiny.data_set(tmp_path / "mine", size=6, blanks=5)
    code, out, _ = hrm(
        "train", "--profile", "tiny", "--run", "other", "--data", tmp_path / "mine", "--out", tmp_path / "runs"
    )
    assert code == 0 and "other: 80 steps" in out
    assert json.loads((tmp_path / "runs" / "other" / "best" / "meta.json").read_text())["config"]["size"] == 6


def test_train_a_trm_of_the_same_sizes(hrm, project, tmp_path):
    where = ("--out", tmp_path / "runs", "--resume", tmp_path / "resume")
    code, out, err = hrm("train", "--profile", "tiny", "--run", "memory", "--model", "trm", *where)
    assert (code, err) == (0, "") and "memory_trm: 80 steps" in out
    best = tmp_path / "runs" / "memory_trm" / "best"
    arch = json.loads((best / "meta.json").read_text())["config"]["arch"]
    assert (arch["model"], arch["H_layers"], arch["hidden_size"]) == ("trm", 0, tiny.ARCH["hidden_size"])
    model, _ = load(best)
    assert type(model).__name__ == "TRM" and [name for name in model.state_dict() if "H_level" in name] == []
    test = project / "data" / "tiny" / "sudoku" / "data" / "toy"
    code, out, _ = hrm("evaluate", "--checkpoint", best, "--data", test)
    assert code == 0 and "exact_accuracy" in out


def test_train_refuses(refused, project, tmp_path):
    refused("train", "--profile", "tiny", "--model", "rnn", says=("--model", "'rnn'", "hrm, trm"))
    refused("train", "--profile", "tinny", says=("params.yaml", "no profile 'tinny'", "tiny"))
    refused("train", "--profile", "tiny", "--run", "memories", says=("--run", "'memories'", "memory, other"))
    refused(
        "train",
        "--profile",
        "tiny",
        "--run",
        "other",
        says=("no data set", "missing", "hrm sudoku data --profile tiny"),
    )
    refused("train", "--profile", "tiny", says=("no data set",))  # before the first run has begun
    refused("train", "--profile", "tiny", "--data", tmp_path, "--run", "memory", says=("no data set", str(tmp_path)))
    refused(
        "train",
        "--profile",
        "tiny",
        "--tracking",
        "on",
        "--run",
        "memory",
        says=("--tracking", "'on'", "disabled, offline, online"),
    )
    refused("train", "--profil", "tiny", says=("--profil",))
    assert not (project / "data" / "resume").exists() or not tiny.unfinished(project / "data" / "resume")


def test_train_names_the_key_that_is_wrong(tmp_path, monkeypatch, capsys):
    wrong = MEMORY | {"loop": MEMORY["loop"] | {"best": "exact"}, "batch_sise": 3}
    monkeypatch.setenv("HRM_ROOT", str(tiny.project(tmp_path, wrong=wrong)))
    assert main(["train", "--profile", "tiny"]) == 2
    err = capsys.readouterr().err
    assert "profiles.tiny.sudoku.train.runs.wrong.batch_sise: unknown key" in err and "did you mean batch_size?" in err


def test_train_names_the_key_of_a_trm_that_is_wrong(tmp_path, monkeypatch, capsys):
    arch = {name: value for name, value in tiny.ARCH.items() if name != "H_layers"}
    for change, says in (
        ({"model": "trm", "mlpt": True}, "runs.wrong.arch.mlpt: unknown key"),
        ({"model": "trm", "latents": 3}, "runs.wrong.arch.latents: "),
        ({"model": "rnn"}, "runs.wrong.arch: "),
    ):
        wrong = MEMORY | {"arch": arch | change}
        folder = tmp_path / str(len(says))
        monkeypatch.setenv("HRM_ROOT", str(tiny.project(folder, wrong=wrong)))
        assert main(["train", "--profile", "tiny"]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["..", "../../escape", ".", "a/b", "{tmp}/abs", ""])
def test_no_name_leads_out_of_its_folder(wrong, tmp_path, monkeypatch, capsys):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "note.txt").write_text("here before")
    wrong = wrong.replace("{tmp}", str(tmp_path))  # where nothing is lost if it fails
    shown = json.dumps(wrong) if len(wrong) < 58 else json.dumps(wrong)[:57] + "..."
    refusal = f"found {shown}; allowed: a name of letters"
    for number, (runs, words, says) in enumerate(
        (
            ({wrong: MEMORY}, ("--profile", "tiny"), f"sudoku.train.runs: {refusal}"),
            ({"fine": MEMORY | {"set": wrong}}, ("--profile", "tiny"), f"sudoku.train.runs.fine.set: {refusal}"),
            ({"fine": MEMORY}, ("--profile", "tiny", "--run", wrong), f"--run: found {wrong!r}; profile tiny has"),
            ({"fine": MEMORY}, ("--profile", wrong), f"no profile {wrong!r}; allowed: tiny"),
        )
    ):
        monkeypatch.setenv("HRM_ROOT", str(tiny.project(tmp_path / f"project{number}", **runs)))
        before = tiny.files(tmp_path)
        folders = ("--out", str(tmp_path / "kept" / "runs"), "--resume", str(tmp_path / "resume"))
        assert main(["train", *words, *folders]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("hrm: ") and len(err.splitlines()) == 1 and says in err
        assert tiny.files(tmp_path) == before


def test_no_option_leads_out_of_its_folder(refused):
    refused("routing", "evaluate", "--set", "../x", says=('--set: found "../x"; allowed: a name of letters',))
    refused("routing", "sweep", "--profile", "../x", says=("no profile '../x'",))
    refused("memory", "train", "--profile", "../x", says=("no profile '../x'",))
    refused("sweep", "agent", "../x", says=("no chapter for stage '../x'",))


# --- evaluate ---------------------------------------------------------------------------------------------------------------------------


def csv(path: Path, *rows: str) -> Path:
    path.write_text("source,question,answer,rating\n" + "".join(f"me,{row}\n" for row in rows))
    return path


@pytest.fixture
def table(tmp_path) -> Path:
    return csv(
        tmp_path / "mine.csv", f"{KNOWN},,easy", f"{FOREIGN},,hard", f"{KNOWN.replace(KNOWN[5], '.')},{SOLUTION},easy"
    )


def numbers(text: str) -> dict[str, list[str]]:
    "The words of each row of the table, by its first."
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()}


def test_evaluate_prints_a_table_by_level(hrm, best, table, tmp_path):
    code, out, err = hrm("evaluate", "--data", table, "--checkpoint", best, "--json", tmp_path / "table.json")
    assert (code, err) == (0, "")
    rows = numbers(out)
    assert set(rows) == {"level", "easy", "hard", "all"}
    assert rows["level"] == ["puzzles", "token_accuracy", "blank_accuracy", "exact_accuracy", "valid", "segments"]
    assert rows["easy"] == ["2", *["1.000", "[1.000,", "1.000]"] * 4, "3.00"]
    assert rows["hard"][7:10] == ["0.000", "[0.000,", "0.000]"]
    stored = json.loads((tmp_path / "table.json").read_text())
    assert [row["level"] for row in stored["levels"]] == ["easy", "hard", "all"]
    assert stored["levels"][2]["exact_accuracy"] == pytest.approx(dict(value=2 / 3, low=0, high=1, n=3), rel=1e-6)
    assert stored["data"] == [str(table)] and stored["halt"] is False
    assert stored["exact_accuracy"] == pytest.approx(2 / 3) and "solved_within_tries" not in stored


def test_evaluate_tries_again(hrm, best, table, tmp_path):
    code, out, err = hrm(
        "evaluate", "--data", table, "--checkpoint", best, "--tries", "8", "--json", tmp_path / "t.json"
    )
    stored = json.loads((tmp_path / "t.json").read_text())
    assert (code, err, stored["tries"]) == (0, "", 8) and "solved_within_tries" in out
    assert 1 >= stored["solved_within_tries"] >= stored["exact_accuracy"] == pytest.approx(2 / 3)


def test_data_makes_a_set_of_ones_own(hrm, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("HRM_ROOT", str(tiny.ROOT))
    words = (
        "sudoku",
        "data",
        "--profile",
        "smoke",
        "--count",
        "20",
        "--size",
        "4",
        "--clues",
        "5-9",
        "--difficulty",
        "any",
    )
    code, out, err = hrm(*words, "--out", tmp_path / "sets", "--seed", "3")
    assert (code, err) == (0, "") and "own: 18 puzzles to train on, 2 held out" in out and "naked singles" in out
    assert hrm(*words, "--out", tmp_path / "again", "--seed", "3")[0] == 0
    one, two = (load_official(tmp_path / name / "own" / "train") for name in ("sets", "again"))
    assert len(one) == 18 and set(one.clues) <= set(range(5, 10)) and (one.puzzles == two.puzzles).all()
    refused("sudoku", "data", "--size", "4", says=("--size", "--count"))
    never = ("sudoku", "data", "--profile", "smoke", "--count", "9", "--size", "4", "--clues", "15")
    refused(*never, "--difficulty", "guesses", says=("found only 0 of 9", "allow more clues"))
    refused("sudoku", "data", "--profile", "smoke", "--count", "5", "--clues", "few", says=("--clues", "22-40"))
    refused("sudoku", "data", "--profile", "smoke", "--count", "5", "--size", "5", says=("size",))
    refused("sudoku", "data", "--profile", "smoke", "--count", "5", "--clues", "50-40", says=("fewest <= most",))


def test_evaluate_takes_several_files_in_every_layout(hrm, best, table, project, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text(f"{KNOWN}\n{KNOWN}\n")
    code, out, _ = hrm(
        "sudoku", "evaluate", "--data", table, lines, "--data", "-", "--checkpoint", best, stdin=f"{FOREIGN}\n".encode()
    )
    rows = numbers(out)
    assert (
        code == 0 and rows["all"][0] == "6" and rows["singles"][0] == "3"
    )  # what a file does not rate, our solver does
    folder = tmp_path / "folder"
    tiny.data_set(folder, blanks=1, test=4)
    code, out, _ = hrm("evaluate", "--data", folder, "--checkpoint", best, "--segments", "2")
    assert code == 0 and numbers(out)["all"][0] == "4" and numbers(out)["all"][-1] == "2.00"


def test_evaluate_can_halt(hrm, best, table):
    code, out, _ = hrm("evaluate", "--data", table, "--checkpoint", best, "--halt", "--segments", "8")
    assert code == 0 and 1 <= float(numbers(out)["all"][-1]) <= 8


def test_evaluate_skips_bad_rows_or_stops(hrm, refused, best, tmp_path):
    bad = csv(tmp_path / "bad.csv", f"{KNOWN},,easy", f"{KNOWN[:-3]},,easy", f"11{'.' * 14},,easy", f"{'.' * 16},,easy")
    code, out, err = hrm("evaluate", "--data", bad, "--checkpoint", best)
    assert code == 0 and numbers(out)["all"][0] == "1"
    assert f"{bad}:3: the puzzle has the wrong length: found 13" in err and f"{bad}:4: a clue breaks a rule" in err
    assert f"{bad}:5: several solutions" in err and "1 puzzles read, 3 rows skipped" in err
    refused(
        "evaluate",
        "--data",
        bad,
        "--checkpoint",
        best,
        "--strict",
        says=("bad.csv:3", "bad.csv:4", "bad.csv:5", "3 rows skipped"),
        lines=4,
    )


def test_evaluate_refuses_files(refused, best, tmp_path):
    empty, binary, nine = tmp_path / "empty.csv", tmp_path / "binary", tmp_path / "nine.txt"
    empty.touch()
    binary.write_bytes(bytes(range(256)))
    nine.write_text(NINE + "\n")
    refused("evaluate", "--checkpoint", best, says=("no file given", "question"))
    refused("evaluate", "--data", tmp_path / "none.csv", "--checkpoint", best, says=("none.csv", "no such file"))
    refused("evaluate", "--data", empty, "--checkpoint", best, says=("empty.csv", "empty file"))
    refused("evaluate", "--data", binary, "--checkpoint", best, says=("binary", "not UTF-8"))
    refused("evaluate", "--data", tmp_path, "--checkpoint", best, says=(str(tmp_path), "dataset.json"))
    refused("evaluate", "--data", nine, "--checkpoint", best, says=("nine.txt", "size 9", "4x4"))
    refused("evaluate", "--data", "-", "--checkpoint", best, says=("-", "empty file"))
    refused("evaluate", "--data", nine, "--checkpoint", best, "--segments", "0", says=("--segments",))


# --- checkpoints ------------------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_not_there(refused, project, tmp_path, monkeypatch):
    monkeypatch.setattr("hrm.tools.commands.opening.SHIPPED", tmp_path / "shipped")  # and nothing came with the package
    refused("chat", says=("data/laptop/dialogue/train/phase4/final", "make repro", "--checkpoint"))
    refused("solve", KNOWN, "--checkpoint", tmp_path / "none", says=(f"{tmp_path}/none", "no checkpoint there"))
    refused("evaluate", "--data", "-", "--checkpoint", tmp_path, says=(str(tmp_path), "no checkpoint there"))


def test_what_the_pipeline_has_made_is_taken_where_nothing_is_named_and_that_is_said(hrm, best, tmp_path, monkeypatch):
    project = tiny.project(tmp_path / "project")
    shutil.copytree(best, project / PIPELINE["sudoku_4x4"])
    monkeypatch.setenv("HRM_ROOT", str(project))
    assert hrm("solve", KNOWN) == (
        0,
        hrm("solve", KNOWN, "--checkpoint", best)[1],
        f"checkpoint: {PIPELINE['sudoku_4x4']}\n",
    )


def test_a_checkpoint_of_another_system_is_called_by_its_name(refused, best, tmp_path):
    for system, words in (("dialogue", ("solve", KNOWN)), ("routing", ("chat",)), ("arc", ("evaluate", "--data", "-"))):
        checkpoint.write(tmp_path / system, {}, {"config": {"system": system}})
        refused(
            *words,
            "--checkpoint",
            tmp_path / system,
            says=(f"{tmp_path / system}: found a checkpoint of {system}; allowed: ",),
        )
    refused("chat", "--checkpoint", best, says=("found a checkpoint of sudoku; allowed: dialogue, text, memory",))
    refused("text", "demo", best, says=("found a checkpoint of sudoku; allowed: text",))


def damage(best: str, folder: Path, file: str, content: bytes | None) -> Path:
    "A copy of the checkpoint in which one file is another, or gone."
    shutil.copytree(best, folder)
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    return folder


def test_a_damaged_checkpoint(refused, best, tmp_path):
    whole = (Path(best) / "model.safetensors").read_bytes()
    cases = {
        "cut": ("model.safetensors", whole[:1000], "damaged or not a safetensors file"),
        "gone": ("model.safetensors", None, "model.safetensors is missing"),
        "text": ("meta.json", b"{", "not JSON"),
        "binary": ("meta.json", bytes(range(256)), "not JSON"),
    }
    for name, (file, content, says) in cases.items():
        folder = damage(best, tmp_path / name, file, content)
        refused("solve", KNOWN, "--checkpoint", folder, says=(str(folder), says))


def test_a_checkpoint_of_another_kind(refused, best, tmp_path):
    meta = json.loads((Path(best) / "meta.json").read_text())
    weights = {"w": torch.zeros(2)}
    kinds = {
        "list": [],
        "empty": {},
        "language": {"config": {"vocabulary": 50}},
        "board": {"config": meta["config"] | {"size": 5}},
    }
    for name, about in kinds.items():
        checkpoint.write(tmp_path / name, weights, {})
        (tmp_path / name / "meta.json").write_text(json.dumps(about))
        refused(
            "solve",
            KNOWN,
            "--checkpoint",
            tmp_path / name,
            says=(str(tmp_path / name), "is this a checkpoint of hrm sudoku?"),
        )
    arch = meta["config"]["arch"]
    checkpoint.write(tmp_path / "arch", weights, {"config": {"size": 4, "arch": arch | {"H_cycles": "two"}}})
    refused(
        "solve",
        KNOWN,
        "--checkpoint",
        tmp_path / "arch",
        says=(str(tmp_path / "arch"), "meta.json", "config.arch.H_cycles", '"two"'),
    )
    checkpoint.write(tmp_path / "weights", weights, meta)
    refused(
        "solve", KNOWN, "--checkpoint", tmp_path / "weights", says=(str(tmp_path / "weights"), "missing inner.H_init")
    )
    checkpoint.write(
        tmp_path / "wide", checkpoint.read(best).weights, {"config": {"size": 4, "arch": arch | {"hidden_size": 64}}}
    )
    refused("solve", KNOWN, "--checkpoint", tmp_path / "wide", says=("has shape", "expected"))


def test_a_checkpoint_of_the_original(hrm, refused, tmp_path):
    config = tiny.ARCH | dict(pos_encodings="rope", vocab_size=6, seq_len=16, num_puzzle_identifiers=1, batch_size=4)
    model = HRM(HRMConfig(**{name: value for name, value in config.items() if name != "batch_size"}))
    file, other = tmp_path / "step_10.pth", tmp_path / "official.yaml"
    torch.save({f"_orig_mod.model.{name}": tensor for name, tensor in model.state_dict().items()}, file)
    other.write_text("arch:\n" + "".join(f"  {name}: {value}\n" for name, value in config.items()))
    refused("solve", KNOWN, "--checkpoint", file, says=("step_10.pth", "no configuration", "--config"))
    code, out, err = hrm("solve", KNOWN, "--checkpoint", file, "--config", other)
    assert code in (0, 1) and err == "" and out.count("segment ") == 3
    refused("solve", KNOWN, "--checkpoint", file, "--config", tmp_path / "none.json", says=("--config", "none.json"))
    for text, says in (
        ("{", "not a mapping"),
        ("- 1\n- 2\n", "not a mapping"),
        ("hidden_size: 32\n", "official config"),
    ):
        other.write_text(text)
        refused("solve", KNOWN, "--checkpoint", file, "--config", other, says=(says,))
    other.write_text("".join(f"{name}: {value}\n" for name, value in (config | {"H_layers": 2}).items()))
    refused(
        "solve",
        KNOWN,
        "--checkpoint",
        file,
        "--config",
        other,
        says=("official state dict", "missing inner.H_level.layers.1"),
    )
    file.write_bytes(b"PK\3\4 not a checkpoint")
    refused(
        "solve", KNOWN, "--checkpoint", file, "--config", other, says=("step_10.pth", "cannot be read as a state dict")
    )


def test_a_checkpoint_cannot_run_code(refused, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    file, config = tmp_path / "trap.pth", tmp_path / "trap.json"
    torch.save(Trap(), file)
    config.write_text("{}")
    refused("solve", KNOWN, "--checkpoint", file, says=("trap.pth", "cannot be read as a state dict"))
    assert not (tmp_path / "trapped").exists()


# --- solve ------------------------------------------------------------------------------------------------------------------------------


def test_solve_prints_each_segment(hrm, best):
    code, out, err = hrm("solve", KNOWN, "--checkpoint", best)
    assert (code, err) == (0, "")
    heads = [line for line in out.splitlines() if line.startswith("segment ")]
    assert [head.split(":")[0] for head in heads] == ["segment 1", "segment 2", "segment 3"][: len(heads)] != []
    assert heads[-1].endswith(", solved") and all(
        " cells changed, halting probability 0." in head or " cells changed, halting probability 1." in head
        for head in heads
    )
    assert sum(head.endswith(", solved") for head in heads) == 1, "it stops at the first board that is solved"
    last = "".join(out.split(heads[-1])[1].splitlines()).translate({ord(c): None for c in " []"})
    assert last == SOLUTION


def test_solve_says_when_it_fails(hrm, best):
    code, out, err = hrm("sudoku", "solve", FOREIGN, "--checkpoint", best, "--segments", "2")
    assert (code, err) == (1, "") and out.count("segment ") == 2 and "solved" not in out
    assert any(word in out.split("segment 2")[1].splitlines()[0] for word in ("breaks a rule", "changes a clue"))
    assert "none of 16 tries" in out
    assert "tries" not in hrm("solve", FOREIGN, "--checkpoint", best, "--segments", "2", "--tries", "1")[1]


def test_solve_takes_a_board_with_several_solutions_unless_told_not_to(hrm, refused, best):
    several = KNOWN.translate({ord(digit): "." for digit in "12"})
    code, out, err = hrm("solve", several, "--checkpoint", best)
    assert code in (0, 1) and err == "" and "the clues leave a choice" in out
    refused("solve", several, "--checkpoint", best, "--unique", says=("several solutions: the clues leave a choice",))
    answer = "".join(char for char in out.rsplit(", solved", 1)[1] if char.isdigit()) if code == 0 else ""
    assert answer == "" or valid(from_text(answer)[None]).all() and extends(from_text(several), from_text(answer))


def test_solve_reads_files_and_standard_input(hrm, best, tmp_path):
    file = tmp_path / "puzzles.txt"
    file.write_text(f"# two of them\n{KNOWN}\n{KNOWN}\n")
    once, twice = hrm("solve", KNOWN, "--checkpoint", best)[1], hrm("solve", "--file", file, "--checkpoint", best)
    assert twice[0] == 0 and twice[1].count("segment 1") == 2 and once in twice[1]
    for words in (("solve",), ("solve", "-"), ("solve", "--file", "-")):
        assert hrm(*words, "--checkpoint", best, stdin=KNOWN.encode() + b"\r\n") == (0, once, "")


@pytest.mark.parametrize(
    "puzzle, says",
    [
        (KNOWN[:-2], "the puzzle has the wrong length: found 14 characters; allowed are 16, 36, 81"),
        ("11" + "." * 14, "a clue breaks a rule: row 1 has 2 times the digit 1"),
        ("123........4....", "no solution: the clues contradict each other"),
        (KNOWN.replace(".", "x", 1), "a wrong character"),
        ("5" + KNOWN[1:], "a wrong character"),
        ("", "an empty file"),
    ],
    ids=["short", "broken rule", "contradiction", "letter", "digit", "empty"],
)
def test_solve_refuses_puzzles(refused, best, puzzle, says):
    refused("solve", puzzle, "--checkpoint", best, says=("puzzle", says))


def test_solve_refuses(refused, best, tmp_path):
    refused("solve", NINE, "--checkpoint", best, says=("size 9", "4x4"))
    refused("solve", "--checkpoint", best, says=("standard input", "empty file"))
    refused("solve", "--file", tmp_path / "none.txt", "--checkpoint", best, says=("none.txt", "no such file"))
    refused("solve", "--file", tmp_path, "--checkpoint", best, says=(str(tmp_path), "no such file"))
    file = tmp_path / "puzzles.txt"
    file.write_text(f"{KNOWN}\n{KNOWN[:9]}\n")
    refused("solve", "--file", file, "--checkpoint", best, says=(f"{file}:2", "wrong length"))
    refused("solve", str(file), "--checkpoint", best, says=(str(file), "--file"))
    refused("solve", KNOWN, "--file", file, "--checkpoint", best, says=("one of the two",))


# --- the program ------------------------------------------------------------------------------------------------------------------------


def test_as_a_program(project, best):
    def program(*words, stdin=""):
        return subprocess.run(
            [*tiny.CLI, *words], env=tiny.environment(project), input=stdin, capture_output=True, text=True, cwd=project
        )

    solved = program("solve", "--checkpoint", best, stdin=KNOWN)
    assert solved.returncode == 0 and "solved" in solved.stdout and solved.stderr == ""
    wrong = program("solve", "123", "--checkpoint", best)
    assert (
        wrong.returncode == 2
        and wrong.stdout == ""
        and wrong.stderr.startswith("hrm: puzzle:1: ")
        and wrong.stderr.count("\n") == 1
    )


@pytest.mark.parametrize(
    "words, says",
    [
        (
            ("train",),
            (
                "profile of params.yaml",
                "[default: laptop]",
                "data/<profile>/sudoku/train",
                "data/resume",
                "exit code 130",
            ),
        ),
        (
            ("evaluate",),
            ("data/laptop/sudoku/train/newspaper/best", "segments", "95 %", "--strict", "--halt", "may be repeated"),
        ),
        (("solve",), ("Exit code 0 if it is solved", "segments", "standard input", "[x>=1]")),
    ],
)
def test_help_names_defaults_and_units(words, says):
    from typer.testing import CliRunner

    short, long = (
        CliRunner().invoke(app, [*where, *words, "--help"], env={"COLUMNS": "200"}) for where in ((), ("sudoku",))
    )
    assert short.exit_code == long.exit_code == 0
    flat = " ".join(short.output.split())
    assert [part for part in says if part not in flat] == []
    assert short.output.split("\n", 1)[1] == long.output.split("\n", 1)[1]


# --- what is there stays there ---------------------------------------------------------------------------------------------------------

MINE = {
    "thesis.txt": b"years of work",
    "easy9/photo.jpg": b"\xff\xd8",
    "memory/notes.txt": b"notes",
    "1-diary/monday.txt": b"rain",
}
WRITERS = {  # command -> its words before the folder, and where in the folder the stranger's files are
    ("sudoku", "data"): (["--out"], "."),
    ("sudoku", "train"): (["--run", "4x4", "--data", "{data}", "--out"], "4x4"),
    ("train",): (["--run", "4x4", "--data", "{data}", "--out"], "4x4"),
    ("maze", "data"): (["--out"], "."),
    ("maze", "train"): (["--run", "maze", "--data", "{data}", "--out"], "maze"),
    ("puzzle", "data"): (["--rules", "latin_5", "--out"], "."),
    ("puzzle", "train"): (["--rules", "latin_5", "--out"], "."),
    ("dialogue", "data"): (["--out"], "."),
    ("dialogue", "train"): (["--run", "phase1_corrected", "--out"], "phase1_corrected"),
    ("memory", "data"): (["--out"], "."),
    ("memory", "train"): (["--run", "speed", "--out"], "speed"),
    ("routing", "data"): (["--out"], "."),
    ("routing", "train"): (["--out"], "."),
    ("routing", "study"): (["{file}", "--out"], "."),
    ("text", "data"): (["{file}", "--only", "--out"], "."),
    ("text", "books"): (["--out"], "."),
    ("inspect",): (["{best}", "--out"], "."),
    ("checkpoints", "inspect"): (["{best}", "--out"], "."),
    ("text", "create"): ([], "."),
    ("text", "train"): (["{file}", "--model"], "."),
    ("routing", "sweep"): (["--out"], "thesis.txt"),
    ("evaluate",): (["{file}", "--json"], "thesis.txt"),
    ("sudoku", "evaluate"): (["{file}", "--json"], "thesis.txt"),
    ("maze", "evaluate"): (["{file}", "--json"], "thesis.txt"),
    ("routing", "evaluate"): (["--json"], "thesis.txt"),
    ("text", "evaluate"): (["{best}", "--json"], "thesis.txt"),
    ("sweep", "file"): (["--out"], "thesis.txt"),
    ("sweep", "table"): (["--csv"], "thesis.txt"),
}


def commands(group=app, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], dict]:
    "Every command of the program, found by walking it -> the parameters of its function."
    found = {(*words, one.name): inspect.signature(one.callback).parameters for one in group.registered_commands}
    for below in group.registered_groups:
        found |= commands(below.typer_instance, (*words, below.name))
    return found


def test_every_command_that_writes_to_a_given_place_is_tried_below():
    places = ("out", "as_json", "csv", "model", "folder")
    found = {
        words
        for words, taken in commands().items()
        if any(name in taken and "Path" in str(taken[name].annotation) for name in places)
    }
    reads_only = {("text", name) for name in ("chat", "run", "demo", "status")}
    assert found - reads_only - {("text", "recover")} == set(WRITERS)  # `recover` keeps what stood there as a backup


def test_every_command_takes_the_laptop_profile_unless_told_otherwise():
    taken = {
        words: parameters["profile"].default for words, parameters in commands().items() if "profile" in parameters
    }
    assert len(taken) > 15 and set(taken.values()) == {"laptop"}


def test_the_files_of_the_commands_are_short():
    long = {
        path.name: lines
        for path in (tiny.ROOT / "hrm" / "tools" / "commands").glob("*.py")
        if (lines := sum(bool(line.strip()) for line in path.read_text().splitlines())) >= 150
    }
    assert long == {}


@pytest.mark.parametrize("command", WRITERS, ids=" ".join)
def test_no_command_touches_what_it_did_not_make(command, best, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HRM_ROOT", str(tmp_path / "project"))
    (tmp_path / "project").mkdir()
    shutil.copy(tiny.ROOT / "params.yaml", tmp_path / "project")
    data, file, (words, inside) = tiny.data_set(tmp_path / "set"), tmp_path / "file.txt", WRITERS[command]
    file.write_text(KNOWN)
    place = tmp_path / "place"
    for name, raw in MINE.items():
        (place / inside if inside != "thesis.txt" else place).joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        (place / inside if inside != "thesis.txt" else place).joinpath(name).write_bytes(raw)
    before = tiny.files(tmp_path)
    words = [word.format(data=data, file=file, best=best) for word in words]
    code = main([*command, *words, str(place / "thesis.txt" if inside == "thesis.txt" else place)])
    err = capsys.readouterr().err
    assert code == 2 and "is not ours to replace" in err, err
    assert len(err.splitlines()) == 1 and str(place) in err
    assert tiny.files(tmp_path) == before


def test_a_command_replaces_what_it_has_made(hrm, tmp_path, monkeypatch):
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(tiny.ROOT / "params.yaml", root)
    monkeypatch.setenv("HRM_ROOT", str(root))
    for _ in range(2):
        code, _, err = hrm("routing", "data", "--profile", "smoke", "--out", tmp_path / "sets")
        assert code == 0, err
    (tmp_path / "sets" / "mine.txt").write_text("mine")
    code, _, err = hrm("routing", "data", "--profile", "smoke", "--out", tmp_path / "sets")
    assert code == 2 and "found mine.txt" in err
