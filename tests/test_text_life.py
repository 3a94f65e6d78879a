"A model's life when things change or break on the way: another strategy, a stop at the worst moment, what cannot be learned; and a chat that keeps what was said."

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import files

from hrm.core import checkpoint
from hrm.core.config import ConfigError, load_params, merged
from hrm.core.device import seeded
from hrm.core.errors import DataError
from hrm.core.optim import OptimConfig
from hrm.core.resume import Stopped
from hrm.core.task import LoopConfig, Options
from hrm.core.tokens import CharacterTokenizer
from hrm.text.chat import TextChat, text_loop
from hrm.text.continual import Memory, MemoryConfig, Reservoir, memory_state, restore_memory
from hrm.text.data import Book, DataConfig
from hrm.text.data import build as build_books
from hrm.text.files import detect
from hrm.text.growth import Growth, GrowthConfig
from hrm.text.life import NEXT, chapters, create, decide, pending, teach
from hrm.text.model import TextArch, build
from hrm.text.train import MEASURED, RunConfig, TextTask, spans
from hrm.text.widgets import ChatPanel, TrainingForm
from hrm.tools.cli import main

ARCH = TextArch(
    hidden_size=32, num_heads=2, H_layers=1, L_layers=1, H_cycles=1, L_cycles=1, expansion=2, halt_max_steps=1
)
LETTERS = CharacterTokenizer(tuple("abcdef"))
KINDS = {
    "finetune": MemoryConfig(strategy="finetune"),
    "replay": MemoryConfig(strategy="replay", capacity=12, share=0.25),
    "narrow": MemoryConfig(strategy="replay", capacity=5, share=0.25),
    "ewc": MemoryConfig(strategy="ewc", windows=3, strength=10.0),
}


class Killed(BaseException):
    "As good as a lost machine."


def book(name: str, step: int = 1, length: int = 600) -> Book:
    ids = (7 + step * np.arange(length) % 6).astype(np.uint16)
    return Book(name, ids, ids[:90], LETTERS)


def recipe(**change) -> RunConfig:
    loop = LoopConfig(
        steps=4, evaluate_every=4, log_every=1, checkpoint_seconds=0.0, compile="off", best="bits", best_mode="min"
    )
    return RunConfig(
        **{
            "arch": ARCH,
            "loop": loop,
            "batch_size": 4,
            "seq_len": 16,
            "context": 4,
            "device": "cpu",
            "optim": OptimConfig(name="adamw", lr=3e-3),
        }
        | change
    )


def learned(home, one: Book, **change):
    "Teach a book with what differs from the recipe."
    options = {"growth": None, "memory": KINDS["finetune"], "config": recipe()} | change
    return teach(
        home,
        one,
        decide(home, one, options["config"], options["growth"], options["memory"])[1],
        Options(progress=False),
    )


def weights(results) -> dict[str, torch.Tensor]:
    return checkpoint.read(results[-1].folder / "final").weights


# --- memory


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("then", KINDS)
def test_a_model_may_go_on_with_another_strategy(first, then):
    model, before = build(ARCH, LETTERS.size, 16, seeded(0)), Memory(KINDS[first], 0)
    before.remember(book("a"), model, LETTERS)
    memory = restore_memory(Memory(KINDS[then], 0), memory_state(before))
    knows = {"finetune": False, "ewc": first == "ewc"}.get(then, first in ("replay", "narrow"))
    assert bool(memory.parts()) == knows  # a strategy that has kept nothing has nothing to say
    TextTask(model, [book("b", 5)], LETTERS, recipe(), seeded(1), **memory.parts()).loss(model)[0].backward()
    memory.remember(book("b", 5), model, LETTERS)
    assert memory.books == 2 and len(memory.reservoir.rows) == (
        {"replay": 12, "narrow": 5}.get(then) or len(before.reservoir.rows)
    )
    if then == "ewc":
        again = restore_memory(Memory(KINDS["replay"], 0), memory_state(memory))  # what was kept is carried along
        assert again.reservoir.rows.equal(before.reservoir.rows)


def test_fewer_places_keep_a_sample_of_what_was_kept():
    memory = Memory(MemoryConfig(strategy="replay", capacity=40, share=0.5), 0)
    memory.reservoir.offer(torch.arange(400)[:, None].expand(400, 2), seeded(0))
    kept, times = {tuple(row) for row in memory.reservoir.rows.tolist()}, torch.zeros(40)
    for seed in range(400):
        few = restore_memory(
            Memory(MemoryConfig(strategy="replay", capacity=10, share=0.5), seed), memory_state(memory)
        ).reservoir
        assert few.seen == 400 and len({tuple(row) for row in few.rows.tolist()} & kept) == 10
        times += (memory.reservoir.rows[:, 0][:, None] == few.rows[:, 0]).any(1)
    assert abs(times - 100).max() < 5 * (400 * 0.25 * 0.75) ** 0.5  # every one as often


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.lists(st.integers(0, 40), max_size=5), st.integers(0, 99))
def test_windows_may_be_offered_in_pieces(capacity, counts, seed):
    whole, pieces, draws = Reservoir(capacity), Reservoir(capacity), seeded(seed)
    windows = torch.arange(sum(counts))[:, None].expand(-1, 3)
    whole.offer(windows, seeded(seed))
    for piece in windows.split(counts) if counts else ():
        pieces.offer(piece, draws)
    assert pieces.rows.equal(whole.rows) if len(windows) else not len(pieces.rows)
    assert pieces.seen == whole.seen


def test_what_is_remembered_is_the_book_in_the_models_ids():
    larger, one = CharacterTokenizer(tuple("zfedcba")), book("a", length=400)
    model, memory = (
        build(ARCH, larger.size, 16, seeded(0)),
        Memory(MemoryConfig(strategy="replay", capacity=100, share=0.5), 0),
    )
    memory.remember(one, model, larger)
    assert memory.reservoir.rows.equal(torch.as_tensor(one.ids(larger, "train"))[: 400 // 17 * 17].view(-1, 17).int())


# --- lessons


def test_a_lesson_that_cannot_be_learned_is_not_left_begun(tmp_path):
    with pytest.raises(DataError, match=r"too short: tiny \(16\); allowed: 17 or more"):
        learned(tmp_path / "m", book("tiny", length=16))
    with pytest.raises(ConfigError, match="growth.parameters: found 500, but a block of this model has"):
        learned(tmp_path / "m", book("a"), growth=Growth(characters=128, parameters=500))
    assert not (tmp_path / "m" / NEXT).exists() and not (tmp_path / "m" / "resume").exists()
    assert (
        len(learned(tmp_path / "m", book("a"), growth=Growth(characters=1000, parameters=500))) == 1
    )  # no growth is due
    with pytest.raises(ValueError, match="growth.parameters: found 500"):
        GrowthConfig(seed=0, base=recipe(), growth=Growth(characters=128, parameters=500))


def test_a_stop_after_the_training_does_not_lose_it(tmp_path, monkeypatch):
    whole = learned(tmp_path / "whole", book("a"), memory=KINDS["ewc"])
    with monkeypatch.context() as patch:
        patch.setattr(Memory, "remember", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            learned(tmp_path / "cut", book("a"), memory=KINDS["ewc"])
    (state,) = (tmp_path / "cut" / "resume").glob("[!.]*")
    assert json.loads((state / "finished.json").read_text())["metrics"]["steps"] == 4 and not chapters(tmp_path / "cut")
    again = learned(tmp_path / "cut", book("a"), memory=KINDS["ewc"])
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(again).items())
    assert not any((tmp_path / "cut" / "resume").iterdir()) and not any((tmp_path / "whole" / "resume").iterdir())


def test_a_stop_between_the_last_two_files_does_not_learn_a_book_twice(tmp_path):
    home = tmp_path / "m"
    lesson = decide(home, book("a"), recipe(), None, KINDS["finetune"])[1]
    teach(home, book("a"), lesson, Options(progress=False))
    (home / NEXT).write_text(lesson.model_dump_json())
    assert pending(home) is None
    with pytest.raises(ConfigError, match="has learned 'a' already"):
        decide(home, book("a"), recipe(), None, KINDS["finetune"])
    assert decide(home, book("b", 5), recipe(), None, KINDS["finetune"])[0] == "new book"
    (home / NEXT).write_text("{")
    with pytest.raises(ConfigError, match="next.json"):
        pending(home)


def test_no_model_is_created_where_a_first_book_is_unfinished(tmp_path):
    home = tmp_path / "m"
    home.mkdir()
    (home / NEXT).write_text(decide(home, book("a"), recipe(), None, KINDS["finetune"])[1].model_dump_json())
    with pytest.raises(ConfigError, match="a model stands there already"):
        create(home, ARCH, 16, LETTERS)


def test_a_fresh_model_that_was_stopped_says_how_it_goes_on(tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise Stopped("stopped at step 3; the same command goes on from there")

    text = tmp_path / "book.txt"
    text.write_text("all the little words of a little book. " * 60)
    learned(tmp_path / "m", book("a"))
    monkeypatch.setenv("HRM_ROOT", str(ROOT))
    monkeypatch.setattr("hrm.text.life.teach", stopped)
    assert main(["text", "train", str(text), "--profile", "smoke", "--model", str(tmp_path / "m"), "--fresh"]) == 130
    assert f"--model {tmp_path / 'm_2'} and without --fresh" in capsys.readouterr().err
    assert main(["text", "train", str(text), "--profile", "smoke", "--model", str(tmp_path / "m")]) == 130
    assert "--fresh" not in capsys.readouterr().err


# --- one writer, and nothing outside of the model

WRITER = """
import sys, time
from pathlib import Path
from hrm.text.life import lock
with lock(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_second_training_of_a_model_changes_nothing(tmp_path, monkeypatch, capsys):
    home, text = tmp_path / "m", tmp_path / "book.txt"
    learned(home, book("a"))
    text.write_text("all the little words of a little book. " * 60)
    first = subprocess.Popen([sys.executable, "-c", WRITER, home], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "mine\n"
    before = files(tmp_path)
    monkeypatch.setenv("HRM_ROOT", str(ROOT))
    for words in (["train", str(text), "--model", str(home)], ["create", str(home)]):
        assert main(["text", *words]) == 2
        err = capsys.readouterr().err
        assert (
            f"{home}: is being trained by process {first.pid} on " in err
            and len(err.splitlines()) == 1
            and NEXT not in err
        )
    with pytest.raises(ConfigError, match=f"process {first.pid}"):
        learned(home, book("b", 5))
    form = TrainingForm(tmp_path, home, "smoke")
    form.drop()
    assert f"process {first.pid}" in form.says.value
    assert files(tmp_path) == before
    first.kill()
    first.wait(10)
    learned(home, book("b", 5))  # the lock has died with its process


def test_a_model_from_elsewhere_cannot_make_us_write_elsewhere(tmp_path, monkeypatch, capsys):
    home, precious, text = tmp_path / "m", tmp_path / "precious.txt", tmp_path / "book.txt"
    learned(home, book("a"))
    precious.write_text("keep me")
    text.write_text("all the little words of a little book. " * 60)
    (home / "books" / "book").mkdir(parents=True)
    for name in (".train.tmp", ".held_out.tmp", "train.npy", "book.json"):
        (home / "books" / "book" / name).symlink_to(precious)
    monkeypatch.setenv("HRM_ROOT", str(ROOT))
    line = ["text", "train", str(text), "--model", str(home), "--profile", "smoke", "--seq", "16", "--batch", "4"]
    assert main(line) == 0, capsys.readouterr().err
    assert precious.read_text() == "keep me"
    (tmp_path / "elsewhere").mkdir()
    (home / "books" / "other").symlink_to(tmp_path / "elsewhere")
    assert main([*line, "--again"]) == 2
    assert "found a link, which would lead out of the model" in capsys.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_book_never_takes_the_place_of_another_of_its_name(tmp_path, monkeypatch, capsys):
    home, first, second = tmp_path / "m", tmp_path / "a" / "book.txt", tmp_path / "b" / "book.txt"
    for text, words in (
        (first, "all the little words of a little book. "),
        (second, "other words of another book of that name. "),
    ):
        text.parent.mkdir()
        text.write_text(60 * words)
    monkeypatch.setenv("HRM_ROOT", str(ROOT))
    line = ["--model", str(home), "--profile", "smoke", "--seq", "16", "--batch", "4"]
    with monkeypatch.context() as patch:
        patch.setattr("hrm.text.life.run_growing", lambda *_, **__: (_ for _ in ()).throw(Stopped("stopped")))
        assert main(["text", "train", str(first), *line]) == 130
    before = files(home)
    assert main(["text", "train", str(second), *line]) == 2
    assert "was stopped and is not finished" in capsys.readouterr().err and files(home) == before
    assert main(["text", "train", str(first), *line]) == 0, capsys.readouterr().err
    shelf = files(home / "books")
    assert main(["text", "train", str(second), *line]) == 0, capsys.readouterr().err
    assert {name: raw for name, raw in files(home / "books").items() if name.startswith("book/")} == shelf
    assert sorted(path.name for path in (home / "books").iterdir()) == ["book", "book_2"]
    assert main(["text", "train", str(first), *line, "--again"]) == 0, capsys.readouterr().err
    assert sorted(path.name for path in (home / "books").iterdir()) == ["book", "book_2"]


@pytest.mark.parametrize("asked, measured", [(0, MEASURED), (50, 50), (MEASURED + 7, MEASURED + 7)])
def test_an_evaluation_in_training_reads_so_much_and_no_more(asked, measured):
    ids = np.full(2 * MEASURED, 7, dtype=np.uint16)
    long = Book("long", ids[:600], ids, LETTERS)
    task = TextTask(build(ARCH, LETTERS.size, 16, seeded(0)), [long], LETTERS, recipe(held_out=asked), seeded(1))
    assert len(task.held_out["long"]) == measured + 1


# --- errors that are said


@pytest.mark.parametrize("context", [8, 9])
def test_a_context_without_room_is_an_error_and_no_endless_loop(context):
    assert spans(8, 8, context) == [(0, 0)]
    with pytest.raises(ValueError, match=f"context: found {context} of a window of 8 characters; allowed: less"):
        spans(9, 8, context)


@pytest.mark.parametrize("name", ["hex", "rot13", "klingon", "undefined"])
def test_encodings_that_are_none_of_text(tmp_path, name):
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(DataError, match=f"encoding: found '{name}'; allowed: a name that Python knows"):
        detect(tmp_path / "a.txt", name)


def test_a_stated_encoding_overrides_what_was_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HRM_ROOT", str(ROOT))
    books = tmp_path / "books"
    books.mkdir()
    (books / "one.txt").write_bytes(("le thé noir brûle à côté. " * 60).encode("mac-roman"))
    (books / "two.txt").write_bytes(bytes(range(32)) * 9)
    command = ["text", "train", str(books), "--profile", "smoke", "--model", str(tmp_path / "m"), "--encoding"]
    assert main(command[:-1]) == 2  # guessing gives up on it
    assert "no text among 2 files" in capsys.readouterr().err
    assert main([*command, "mac-roman"]) == 0
    said = capsys.readouterr().err
    assert "mac-roman (stated)" in said and "left out: " in said and "two.txt" in said
    read = (tmp_path / "m" / "books" / "books" / "tokenizer.json").read_text(encoding="utf-8")
    assert all(letter in json.dumps(json.loads(read), ensure_ascii=False) for letter in "éûàô")
    for words, why in (
        (
            ["create", str(tmp_path / "n"), "--encoding", "utf-8"],
            "--encoding: there is no text to read; allowed: with --text",
        ),
        (
            ["train", str(tmp_path / "m" / "books" / "books"), "--model", str(tmp_path / "m"), "--encoding", "utf-8"],
            "is a book of ids already",
        ),
        ([*command[1:], "klingon"], "encoding: found 'klingon'"),
    ):
        assert main(["text", *words]) == 2
        assert why in capsys.readouterr().err


def test_a_chat_keeps_what_was_said(tmp_path):
    chat, said = TextChat(build(ARCH, LETTERS.size, 16, seeded(0)).eval(), LETTERS, seeded(0)), []
    text_loop(
        chat,
        [
            "limit 3",
            "/limit 3",
            "abc",
            "batch",
            "def",
            "XYZ",
            "fed",
            "",
            f"/save {tmp_path}",
            f"/load {tmp_path / 'no'}",
            "interactive",
            "cab",
        ],
        said.append,
    )
    assert [turn.text for turn in chat.turns] == [
        "abc",
        "def",
        "fed",
        "cab",
    ]  # the line that cannot be read takes nothing along
    assert "found no character of the vocabulary in 'XYZ'" in "".join(said) and str(tmp_path) in "".join(said)
    chat.save(tmp_path / "talk.json")
    assert [turn["text"] for turn in json.loads((tmp_path / "talk.json").read_text())["turns"]] == [
        "abc",
        "def",
        "fed",
        "cab",
    ]


def test_options_that_would_do_nothing_and_damaged_files_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HRM_ROOT", str(ROOT))
    learned(tmp_path / "m", book("a"))
    (tmp_path / "book.txt").write_text("all the little words of a little book. " * 60)
    assert (
        main(
            ["text", "train", str(tmp_path / "book.txt"), "--model", str(tmp_path / "m"), "--hidden", "64", "--N", "2"]
        )
        == 2
    )
    assert f"--N, --hidden: {tmp_path / 'm'} stands there with an architecture of its own" in capsys.readouterr().err
    (tmp_path / "m" / "1-a" / "life.json").write_text("{")
    for words in (
        ["status", str(tmp_path / "m")],
        ["chat", str(tmp_path / "m")],
        ["train", str(tmp_path / "book.txt"), "--model", str(tmp_path / "m")],
    ):
        assert main(["text", *words]) == 2
        assert f"{tmp_path / 'm' / '1-a' / 'life.json'}: Expecting property name" in capsys.readouterr().err


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project that has nothing but a recipe."
    folder = tmp_path_factory.mktemp("project")
    learn = merged(load_params(ROOT / "params.yaml"), "smoke", "text.learn")
    (folder / "params.yaml").write_text(json.dumps({"profiles": {"laptop": {"text": {"learn": learn}}}}))
    return folder


WRONG = ("..", "../../escape", "a/../../b", "/abs", "", ".hidden", "a..b", "-x", "x\0", "x" * 300)


@pytest.fixture
def refused(project, tmp_path, monkeypatch, capsys):
    "Run a command of text that is to be refused in a line that says all this, with nothing written."
    monkeypatch.setenv("HRM_ROOT", str(project))

    def call(*words, says: tuple[str, ...]):
        before = files(tmp_path)
        assert main(["text", *map(str, words)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("hrm: ") and len(err.splitlines()) == 1, err
        assert [part for part in says if part not in err] == [], err
        assert files(tmp_path) == before

    return call


def test_a_book_cannot_write_outside_the_model(refused, tmp_path):
    build_books(DataConfig(seed=0, books=("english",), characters=2000, held_out=0.1), tmp_path / "books")
    file = tmp_path / "books" / "english" / "book.json"
    about = json.loads(file.read_text())
    for wrong in WRONG:
        file.write_text(json.dumps(about | {"name": wrong}))
        refused("train", file.parent, "--model", tmp_path / "m", says=(str(file), "name: found ", "; allowed: a name"))
        refused("status", tmp_path, "--book", file.parent, says=(str(file), "name: found "))
    file.write_text("{}")
    missing = (f"{file}: name: missing key", f"{file}: characters: missing key")
    refused("train", file.parent, "--model", tmp_path / "m", says=missing)


def test_a_life_cannot_lead_outside_the_model(refused, tmp_path):
    learned(tmp_path / "m", book("a"))
    learned(tmp_path / "other", book("b", 5))
    (tmp_path / "book.txt").write_text("all the little words of a little book. " * 60)
    file, commands = (
        tmp_path / "m" / "1-a" / "life.json",
        [(verb, tmp_path / "m") for verb in ("status", "chat", "demo")],
    )
    said = json.loads(file.read_text())
    assert said["checkpoint"] == "piece_0/final"
    other = tmp_path / "other" / "1-b" / "piece_0" / "final"
    wrong = [
        ({"checkpoint": name}, f"checkpoint: found {json.dumps(name)}"[:60])
        for name in (*WRONG[:-1], "../../other/1-b/piece_0/final", str(other), "piece_0//final", "./final")
    ]
    wrong += [
        ({"checkpoint": 7}, "checkpoint: found 7; allowed: a valid string"),
        ({"book": 7}, "book: found 7"),
        ({"data": []}, "data: found []"),
        ({"tracker": 7}, "tracker: found 7"),
        ({"tracker": {"characters": "1"}}, 'tracker.characters: found "1"'),
    ]
    for change, why in wrong:
        file.write_text(json.dumps(said | change))
        for words in commands if change == wrong[0][0] else commands[:1]:
            refused(*words, says=(f"{file}, line 1: {why}",))
    for key in said.keys() - {"strategy"}:
        file.write_text(json.dumps({name: value for name, value in said.items() if name != key}))
        refused("status", tmp_path / "m", says=(f"{file}: {key}: missing key",))
    file.write_text(json.dumps(said | {"book": "Ιλιάδα"}))  # learned when books had such names
    assert main(["text", "status", str(tmp_path / "m")]) == 0


def test_a_lesson_cannot_lead_outside_the_model(refused, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "book.txt").write_text("all the little words of a little book. " * 60)
    file = tmp_path / "m" / NEXT
    said = decide(tmp_path / "m", book("a"), recipe(), None, KINDS["finetune"])[1].model_dump(mode="json")
    for wrong in WRONG:
        file.write_text(json.dumps(said | {"book": wrong}))
        refused("status", tmp_path / "m", says=(f"{file}, line 1: book: found ", "; allowed: a name of letters"))
    for change, why in (
        ({"book": 7}, "book: found 7"),
        ({"number": "1"}, 'number: found "1"'),
        ({"number": 0}, "number: found 0"),
        ({"config": 7}, "config: found 7"),
    ):
        file.write_text(json.dumps(said | change))
        refused("status", tmp_path / "m", says=(f"{file}, line 1: {why}",))
    file.write_text("{}")
    refused("status", tmp_path / "m", says=(f"{file}: number: missing key", f"{file}: book: missing key"))
    file.write_text(json.dumps(said))
    assert pending(tmp_path / "m").book == "a"


def test_a_profile_leads_to_no_other_books(refused, tmp_path):
    learned(tmp_path / "m", book("a"))
    refused("evaluate", tmp_path / "m", "--profile", "../../x", says=('--profile: found "../../x"; allowed: a name',))


def test_a_fresh_training_of_the_form_leaves_the_old_model_alone(tmp_path, monkeypatch):
    started, home = [], tmp_path / "m"
    monkeypatch.setattr(
        "hrm.text.widgets.subprocess.Popen",
        lambda words, **_: (
            started.append(words)
            or type("Ended", (), {"stdout": (), "wait": lambda *_: 130, "poll": lambda *_: 130, "returncode": 130})()
        ),
    )
    home.mkdir()
    (home / NEXT).write_text(decide(home, book("a"), recipe(), None, KINDS["finetune"])[1].model_dump_json())
    form = TrainingForm(tmp_path, home, "smoke")
    form.picker.picked, form.fresh.value = tmp_path / "book.txt", True
    for _ in range(2):  # begun, paused, gone on with
        form.start.click()
        form.reader.join()
    assert [words[words.index("--model") + 1] for words in started] == [
        str(tmp_path / "m_2")
    ] * 2 and "--fresh" not in started[1]
    form.stop.click()
    assert pending(home) is not None


def test_a_panel_tells_what_is_wrong_and_keeps_a_line_typed_too_early(tmp_path):
    panel = ChatPanel(TextChat(build(ARCH, LETTERS.size, 16, seeded(0)).eval(), LETTERS, seeded(0)))
    panel.line.value = f"/save {tmp_path}"
    panel.send.click()
    assert str(tmp_path) in panel.footer.value
    panel.worker, panel.line.value = type("Busy", (), {"is_alive": lambda _: True})(), "abc"
    panel.send.click()
    assert panel.line.value == "abc"
