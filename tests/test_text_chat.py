"Every command changes what is said; decoding is the model's; the panels work without anybody at the screen; the commands from end to end."

import json
import re
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from typer.testing import CliRunner

from hrm.core import checkpoint
from hrm.core.config import ConfigError
from hrm.core.device import seeded
from hrm.core.generate import Sampling
from hrm.core.tokens import SPECIALS, CharacterTokenizer
from hrm.text.chat import (
    BARE,
    HELP,
    LIMIT,
    MODES,
    SAME,
    SENTENCE,
    UNLIMITED,
    Settings,
    TextChat,
    _command_of,
    text_loop,
    mode_of,
)
from hrm.text.decode import QuickDecoder, quick, write_on
from hrm.text.grammar import LANGUAGES, write
from hrm.text.model import TextArch, TextDecoder, about, at, build
from hrm.text.widgets import ChatPanel, FilePicker, TrainingForm
from hrm.tools.cli import main
from hrm.tools.commands.text import app

TINY = dict(hidden_size=32, num_heads=2, H_layers=1, L_layers=1, H_cycles=2, L_cycles=2, expansion=2, halt_max_steps=1)
TEXT, LONG = (write(LANGUAGES["english"], count, np.random.default_rng(count)) for count in (3000, 9000))


@pytest.fixture(scope="module")
def made():
    tokenizer = CharacterTokenizer.train([TEXT, LONG])
    return build(TextArch(**TINY), tokenizer.size, 24, seeded(0)).eval(), tokenizer


def chat(made, seed=1, **settings):
    return TextChat(*made, seeded(seed), Settings(**{"limit": 40} | settings))


def said(session, *lines):
    out = []
    text_loop(session, lines, out.append)
    return "".join(out)


# Writing


@pytest.mark.parametrize(
    "arch",
    [
        TINY,
        TINY
        | {
            "halt_max_steps": 2,
            "halting": "graves",
            "pos_encodings": "learned",
            "norm_weights": True,
            "H_layers": 2,
            "H_grown": 1,
            "cross_entropy": "stablemax",
        },
    ],
    ids=["plain", "everything"],
)
def test_the_quick_decoder_is_the_eager_one(arch):
    model = build(TextArch(**arch), 20, 10, seeded(0)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2, generator=seeded(1)) if p.ndim < 2 else None
    possible, reason = quick(model)
    if not possible:
        pytest.skip(reason)
    text, eager, fast = torch.randint(20, (1, 10), generator=seeded(2)), TextDecoder(model), QuickDecoder(model)
    for start, stop in ((0, 4), *((place, place + 1) for place in range(4, 10))):
        assert torch.allclose(eager.feed(text[:, start:stop]), fast.feed(text[:, start:stop]), atol=2e-5)
        assert torch.allclose(eager.weights, fast.weights, atol=1e-5)
    with pytest.raises(ValueError, match="0 places"):
        fast.feed(text[:, :1])
    assert fast.ids.tolist() == text.tolist()


def test_a_text_goes_on_beyond_the_window(made):
    model, tokenizer = made
    begin, ids = 0, [10, 11, 12]
    steps = list(write_on(model, ids, 60, Sampling(temperature=1.0), seeded(0), range(len(SPECIALS))))
    whole = ids + [step.id for step in steps]
    assert len(steps) == 60 and min(whole) >= len(SPECIALS)
    for place, step in enumerate(steps, 3):
        begin = place - 12 if place - begin > 24 else begin
        with torch.no_grad():
            logits = model(torch.tensor([whole[begin:place]])).logits[-1, 0, -1].double()
        logits[: len(SPECIALS)] = -torch.inf
        shares = logits.softmax(-1)
        assert step.probability == pytest.approx(float(shares[step.id]), rel=1e-3)
        assert step.likeliest[0][1] == pytest.approx(float(shares.max()), rel=1e-3)
        assert step.entropy == pytest.approx(float(torch.special.entr(shares).sum() / np.log(2)), rel=1e-3)


# Commands, one after the other


def test_each_mode_thinks_with_its_own_cycles(made):
    assert MODES == {"fast": (1, 1), "normal": (2, 2), "deep": (3, 2), "thorough": (4, 3), "extreme": (6, 4)}
    replies = {}
    for mode, cycles in MODES.items():
        session = chat(made)
        assert f"mode {mode} {cycles[0]}x{cycles[1]}" in said(session, mode, "Ada finds ")
        ids, want = made[1].encode("Ada finds "), []
        for step in write_on(
            at(made[0], *cycles), ids, 40, Sampling(temperature=0.8, top_k=50), seeded(1), range(len(SPECIALS))
        ):
            if len(want) >= SAME and set(want[-SAME:]) == {step.id}:
                break
            want.append(step.id)
        replies[mode] = session.turns[0].reply
        assert replies[mode] == made[1].decode(want) and session.turns[0].mode == mode
    assert len(set(replies.values())) == len(MODES)


@pytest.mark.parametrize(
    "lines, changed",
    [
        (["temp 0.1"], {"temperature": 0.1}),
        (["/temp 2.0"], {"temperature": 2.0}),
        (["/top_k 3"], {"top_k": 3}),
        (["unlimited"], {"limit": UNLIMITED}),
        (["unlimited", "unlimited"], {"limit": LIMIT}),
        (["/limit 7"], {"limit": 7}),
        (["natural"], {"natural": True}),
        (["natural", "/natural"], {}),
        (["/debug"], {"debug": True}),
        (["/plain"], {"plain": True}),
        (["/memory 50"], {"memory": 50}),
        (["batch"], {"streaming": False}),
        (["batch", "interactive"], {}),
        (["extreme"], {"mode": "extreme"}),
    ],
)
def test_a_command_changes_its_setting_and_nothing_else(made, lines, changed):
    session = TextChat(*made, seeded(0))
    said(session, *lines)
    assert session.settings == Settings(**changed)


@pytest.mark.parametrize(
    "line, why",
    [
        ("temp 2.5", "allowed: 0.1 to 2.0"),
        ("/temp warm", "allowed: a number"),
        ("/limit 0", "allowed: 1 or more"),
        ("/top_k -1", "allowed: 0 or more"),
        ("/colour red", "no such command"),
        ("/load nowhere.json", "that /save has written"),
        ("/save", "its value is missing"),
        ("χψω", "no character of the vocabulary"),
    ],
)
def test_what_is_wrong_is_told_and_changes_nothing(made, line, why):
    session = chat(made)
    before = session.settings
    assert why in said(session, line) and session.settings == before and session.turns == []


def test_bare_words_count_only_as_a_whole_line(made):
    assert {"fast", "normal", "deep", "extreme", "interactive", "batch", "unlimited", "natural", "status"} <= set(BARE)
    assert [
        _command_of(line)
        for line in ("fast", "FAST", "fast horses", "temp 1.5", "temp the milk", "/memory 20", "status quo")
    ] == [("fast", ""), ("fast", ""), None, ("temp", "1.5"), None, ("memory", "20"), None]
    session = chat(made)
    said(session, "deep water", "quit", "never read")
    assert [turn.text for turn in session.turns] == ["deep water"] and session.settings.mode == "normal"


def test_temperature_and_top_k_reach_the_draw(made):
    greedy = ["".join(chat(made, seed, temperature=0.0).say("Ada ")) for seed in (1, 2)]
    assert greedy[0] == greedy[1] == "".join(chat(made, 3, top_k=1).say("Ada "))
    assert len({"".join(chat(made, seed, temperature=2.0).say("Ada ")) for seed in range(5)}) == 5


def test_unlimited_writes_more_and_natural_stops_at_a_sentence(made):
    session = chat(made, temperature=2.0, limit=30)
    list(session.say("Ada "))
    assert (len(session.turns[-1].reply), session.turns[-1].ended) == (30, "limit")
    session.command("natural"), session.command("limit", "2000")
    reply = "".join(session.say("Ada "))
    assert reply[-1] in SENTENCE and not set(reply[:-1]) & SENTENCE and session.turns[-1].ended == "end of the sentence"


def test_a_reply_that_has_stuck_ends(made):
    model, tokenizer = made
    stuck = build(TextArch(**TINY), tokenizer.size, 24, seeded(0)).eval()
    with torch.no_grad():
        stuck.inner.lm_head.weight.zero_()  # every character as likely as any other: the first one wins at temperature 0
    session = TextChat(stuck, tokenizer, seeded(0), Settings(temperature=0.0))
    reply = "".join(session.say("Ada"))
    assert len(reply) == SAME and len(set(reply)) == 1 and "more than 10 times" in session.footer()


def test_interactive_streams_and_batch_answers_each_line_alone(made):
    session, pieces = chat(made), []
    text_loop(session, ["Ada "], pieces.append)
    assert sum(len(piece) == 1 for piece in pieces) >= 30  # character by character
    session, pieces = chat(made), []
    text_loop(session, ["batch", "Ada ", "Ben ", "", "interactive"], pieces.append)
    assert [turn.text for turn in session.turns] == ["Ada ", "Ben "] and session.turns[1].reply in pieces
    alone = chat(made)
    list(alone.say("Ada "))
    alone.turns.clear()
    assert "".join(alone.say("Ben ")) == session.turns[1].reply  # no memory of the other line
    assert "1. Ada " in "".join(pieces) and "2. Ben " in "".join(pieces)


def test_memory_is_read_limited_and_kept_in_files(made, tmp_path):
    session = chat(made, limit=10)
    said(session, "Ada finds ", "Ben takes ")
    first = session.turns[0]
    assert session.remembered() == first.whole + session.turns[1].whole
    ids, _ = session.prompt("Leo ")
    assert made[1].decode(ids) == session.remembered() + "Leo "
    fresh = chat(made, limit=10)
    replies = {"".join(chat(made, 5, limit=10).say("Ben takes ")), None}
    fresh.turns, fresh.generator = [first], seeded(5)
    assert "".join(fresh.say("Ben takes ")) not in replies  # what was said before changes the reply
    session.command("memory", "30")
    assert len(session.turns) == 1 and len(session.remembered()) <= 30
    session.command("memory", "0")
    assert session.turns == []
    said(
        session,
        "/memory 400",
        "Ada finds ",
        f"/save {tmp_path / 'talk.json'}",
        "/reset",
        "deep",
        f"/load {tmp_path / 'talk.json'}",
    )
    assert [turn.text for turn in session.turns] == ["Ada finds "] and session.settings.mode == "normal"
    assert said(session, "/history").count("Ada finds ") == 1
    (tmp_path / "bad.json").write_text(json.dumps({"settings": {"mode": "slow"}, "turns": []}))
    with pytest.raises(ConfigError, match="allowed: fast, normal"):
        session.load(tmp_path / "bad.json")


def test_plain_is_fast_without_memory_and_footer(made):
    session = chat(made)
    out = said(session, "/plain", "Ada ", "Ben ")
    assert session.turns[-1].mode == "fast" and session.remembered() == "" and "characters," not in out
    assert re.search(
        r"\[40 characters, [\d.]+ s, \d+ a second, normal 2x2, temperature 0.8, ended: limit\]",
        said(chat(made), "Ada "),
    )


def test_debug_shows_what_the_model_hesitates_between(made):
    session = chat(made, limit=6)
    out = said(session, "/debug", "Ada ")
    lines = [line for line in out.split("\n") if "entropy" in line and "segments" in line]
    assert len(lines) == 7 and "mean entropy" in lines[-1] and len(session.steps) == 6
    shown = float(re.search(r"p ([\d.]+)", lines[0])[1])
    assert shown == pytest.approx(session.steps[0].probability, abs=1e-3)
    thinker = build(TextArch(**TINY | {"halting": "graves", "halt_max_steps": 3}), made[1].size, 24, seeded(0)).eval()
    session = TextChat(thinker, made[1], seeded(0), Settings(limit=5, debug=True))
    list(session.say("Ada "))
    assert {step.segments for step in session.steps} <= {1, 2, 3}


def test_status_is_one_line_about_model_and_session(made):
    session = TextChat(
        *made,
        seeded(0),
        about={
            "step": 1200,
            "finished": "2031-05-04",
            "config": {"history": [{"books": ["alice"]}, {"books": ["alice", "glass"]}]},
        },
    )
    line = said(session, "status").split("\n")[0]
    assert (
        "books alice, glass; " in line
        and f"vocabulary {made[1].size}" in line
        and "step 1,200" in line
        and "2031-05-04" in line
        and "mode normal" in line
    )
    for word in [line.split()[0].strip(",") for line in HELP.split("\n")]:
        assert word in said(session, "help")


def test_characters_that_the_model_lacks_are_left_out_and_said(made):
    session = chat(made, limit=3)
    assert "1 characters are not in the vocabulary and are left out: 'χ'" in said(session, "Adχa ")
    assert made[1].decode(session.prompt("Adχa ")[0]).endswith("Ada ")


# Panels


def test_the_chat_panel_drives_the_session(made):
    session = chat(made, limit=12)
    panel = ChatPanel(session)
    panel.line.value = "Ada "
    panel.send.click()
    panel.worker.join()
    assert panel.talk.value == "Ada " + session.turns[0].reply + "\n" and "12 characters" in panel.footer.value
    panel.mode.value, panel.temperature.value = "thorough", 1.5
    for name in ("natural", "unlimited", "debug", "plain"):
        panel.switches[name].value = True
    assert session.settings == Settings(
        mode="thorough", temperature=1.5, limit=UNLIMITED, natural=True, debug=True, plain=True
    )
    panel.line.value = "/status"
    panel.send.click()
    assert "mode thorough" in panel.footer.value
    panel.reset.click()
    assert session.turns == [] and panel.talk.value == ""


def test_stop_ends_a_reply_where_it_stands(made):
    session = chat(made, limit=4000, temperature=2.0)
    panel = ChatPanel(session)
    panel.line.value = "Ada "
    panel.send.click()
    while len(panel.talk.value) < 8:
        time.sleep(0.01)
    panel.stop.click()
    panel.worker.join(20)
    assert (
        not panel.worker.is_alive()
        and len(session.turns[0].reply) < 4000
        and session.turns[0].ended == "stopped by hand"
    )


def test_the_picker_says_what_a_file_is(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes("Où <est> la clé ?\r\n".encode("utf-16") * 1)
    (tmp_path / "in" / "b.bin").write_bytes(bytes(99))
    picker = FilePicker(tmp_path)
    picker.list.value = tmp_path.resolve() / "in"
    picker.open.click()
    assert [label for label, _ in picker.list.options] == ["..", "a.txt", "b.bin"]
    picker.list.value = tmp_path.resolve() / "in" / "a.txt"
    picker.take.click()
    assert (
        picker.picked.name == "a.txt"
        and "utf-16 (byte order mark)" in picker.says.value
        and "CRLF" in picker.says.value
    )
    picker.list.value = tmp_path.resolve() / "in" / "b.bin"
    picker.take.click()
    assert picker.picked is None and "a binary file" in picker.says.value


def test_the_form_starts_pauses_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "book.txt").write_text(TEXT * 16, encoding="utf-8")
    form = TrainingForm(tmp_path, tmp_path / "model", "smoke")
    assert (form.epochs.value, form.batch.value, form.save.value, form.evaluate.value) == (3, 16, 1, 1)
    form.start.click()
    assert "found no text" in form.says.value and form.process is None
    form.picker.list.value = tmp_path.resolve() / "book.txt"
    form.picker.take.click()
    form.epochs.value = 32  # long enough to be paused
    assert form.command()[form.command().index("--epochs") + 1] == "32" and form.command()[-4:] == [
        "--evaluations",
        "32",
        "--save-seconds",
        "60",
    ]
    form.start.click()
    deadline = time.monotonic() + 90
    while not any("steps of" in line for line in form.lines) and time.monotonic() < deadline:
        time.sleep(0.1)
    form.pause.click()
    assert form.says.value == "paused: start goes on from there", form.lines
    assert (tmp_path / "model" / "next.json").is_file()
    form.start.click()
    form.process.wait(120)
    form.reader.join(20)
    assert form.says.value == "finished", form.lines
    assert any("goes on" in line for line in form.lines) and any(
        "bits per character held out" in line for line in form.lines
    )
    form.pause.click()
    assert form.says.value == "nothing is running"
    form.stop.click()
    assert "dropped" in form.says.value and (tmp_path / "model" / "1-book").is_dir()


# Commands


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    checkpoint.write(
        folder, made[0].state_dict(), {"config": about(*made) | {"history": [{"books": ["english"]}]}, "step": 7}
    )
    return folder


def test_hrm_chat_opens_a_model_of_text(saved):
    from hrm.tools.cli import app as whole

    result = CliRunner().invoke(
        whole, ["chat", "--checkpoint", str(saved), "--most", "20"], input="status\nfast\nAda finds \nquit\n"
    )
    assert result.exit_code == 0, result.output
    assert "step 7" in result.output and "mode fast 1x1" in result.output and "[20 characters" in result.output
    again = CliRunner().invoke(
        app,
        ["chat", str(saved), "--most", "20", "--mode", "fast", "--temperature", "1.0", "--top-k", "0"],
        input="Ada finds \n",
    )
    assert re.search(r"> ([^>]*)\n\[20", again.output)[1] == re.findall(r"> ([^>]*)\n\[20", result.output)[0]
    assert main(["chat", "--checkpoint", str(saved), "--system", "be kind"]) == 2
    assert main(["text", "chat", str(saved), "--temperature", "9"]) == 2


def test_data_evaluate_and_recover_from_the_command_line(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "rhyme.txt").write_bytes(TEXT.replace("\n", "\r\n").encode("utf-8-sig"))
    assert main(["text", "data", str(tmp_path / "rhyme.txt"), "--only", "--out", str(tmp_path / "books")]) == 0
    out = capsys.readouterr()
    assert (
        "utf-8-sig (byte order mark)" in out.err
        and "CRLF" in out.err
        and f"{len(TEXT) - round(len(TEXT) * 0.1):,} characters to train on" in out.out
    )
    (tmp_path / "long.txt").write_text(LONG)
    assert (
        main(
            [
                "text",
                "evaluate",
                str(saved),
                "--book",
                str(tmp_path / "long.txt"),
                "--sample",
                "100",
                "--json",
                str(tmp_path / "r.json"),
            ]
        )
        == 0
    )
    record = json.loads((tmp_path / "r.json").read_text())["books"]["long"]
    assert (
        record["bits"]["value"] > record["baselines"]["1-gram"] > record["baselines"]["6-gram"]
        and "6-gram" in capsys.readouterr().out
    )
    assert len(record["sample"]) == 100
    assert main(["text", "recover", str(saved), str(tmp_path / "tokenizer.json")]) == 0
    assert json.loads((tmp_path / "tokenizer.json").read_text())["kind"] == "character"
    assert main(["text", "data", "--only"]) == 2 and "--only" in capsys.readouterr().err
    assert main(["text", "evaluate", str(tmp_path / "nothing")]) == 2


@pytest.mark.parametrize("cycles, mode", [((1, 1), "fast"), ((2, 2), "normal"), ((3, 2), "deep"), ((5, 1), "normal")])
def test_a_conversation_begins_with_the_cycles_of_the_training(cycles, mode):
    model = build(TextArch(**TINY | {"H_cycles": cycles[0], "L_cycles": cycles[1]}), 20, 10, seeded(0))
    assert mode_of(model) == mode
