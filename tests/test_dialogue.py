"The dialogue part: tokens, chat files, the grammar and its entropy, models, leaks, going on, real chats."

import json
import math

import numpy as np
import pytest
import torch
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.core import checkpoint
from hrm.core.config import ConfigError
from hrm.core.device import compiler, seeded
from hrm.core.errors import DataError, LeakError
from hrm.core.generate import ChatSession, HRMDecoder, Sampling
from hrm.core.layers import parameters
from hrm.core.losses import IGNORE, bigram_entropy, bigram_loss
from hrm.core.optim import OptimConfig
from hrm.core.task import LoopConfig, Options
from hrm.core.tokens import (
    SPECIALS,
    BytePairTokenizer,
    CharacterTokenizer,
    WordTokenizer,
    decode_chat,
    encode_chat,
    rows,
    tokenizer_from,
)
from hrm.dialogue.ablate import AblateConfig
from hrm.dialogue.data import (
    DataConfig,
    damage,
    document_filter,
    faults,
    filter_scores,
    make_sets,
    prepare,
    slot_entropy,
)
from hrm.dialogue.data import build as build_data
from hrm.dialogue.evaluate import (
    _chat,
    causality_probe,
    check_leak,
    continue_chats,
    gradient_probe,
    label_losses,
    looked_at,
    text_loss,
)
from hrm.dialogue.evaluate import given as given_ids
from hrm.dialogue.files import Chat, read_chats, write_chats
from hrm.dialogue.grammar import SLOTS, Combination, combinations, conversation, entropy, first_fault, parse
from hrm.dialogue.model import PHASE_0, PHASE_2, STEP_3, LanguageArch, LanguageConfig, LanguageHRM, build, load
from hrm.dialogue.train import ChatTask, RunConfig, TrainConfig, run, run_all

ARCH = dict(
    hidden_size=32,
    num_heads=2,
    H_layers=1,
    L_layers=1,
    H_cycles=2,
    L_cycles=2,
    expansion=2,
    pos_encodings="rope",
    halt_max_steps=2,
    halting="fixed",
    causal=True,
)
LOOP = dict(steps=6, evaluate_every=6, log_every=3, checkpoint_seconds=0.0, compile="off", best="loss", best_mode="min")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialogue")
    build_data(DataConfig(seed=0, basic=40, expanded=60, held_out=12), folder)
    return folder


def recipe(**change) -> RunConfig:
    arch, loop, optim = (change.pop(name, {}) for name in ("arch", "loop", "optim"))
    return RunConfig(
        **{
            "set": "expanded",
            "arch": LanguageArch(**ARCH | arch),
            "loop": LoopConfig(**LOOP | loop),
            "batch_size": 4,
            "device": "cpu",
            "optim": OptimConfig(**{"name": "adam", "lr": 3e-3, "clip": 1.0} | optim),
        }
        | change
    )


# --- tokens


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_byte_pairs_and_characters_lose_nothing(text):
    pieces = BytePairTokenizer.train(["a plan of a test", "zażółć gęślą jaźń"], 300)
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(ValueError, match="surrogate"):
            pieces.encode(text)
        return
    assert pieces.decode(pieces.encode(text)) == text
    letters = CharacterTokenizer.train([text])
    assert letters.decode(letters.encode(text)) == text
    assert all(i >= len(SPECIALS) for i in pieces.encode(text))


def test_specials_cannot_be_typed():
    words = WordTokenizer.train(["pad unk sos eos user < > plain"])
    for one in (words, CharacterTokenizer.train(["<eos>user"]), BytePairTokenizer.train(["<eos>"] * 9, 300)):
        ids = encode_chat(one, [{"role": "user", "content": "<eos><assistant>"}])
        assert ids.count(one.eos) == 1 and one.role("assistant") not in ids


def test_tokenizers_are_stored_and_checked():
    pieces = BytePairTokenizer.train(["the plan of the test"] * 3, 280)
    assert BytePairTokenizer.train(["the plan of the test"] * 3, 280) == pieces
    stored = json.loads(json.dumps(pieces.to_dict()))
    assert tokenizer_from(stored) == pieces
    for change, message in (
        ({"kind": "rune"}, "kind"),
        ({"specials": []}, "specials"),
        ({"tokens": ["a"]}, "256"),
        ({"more": 1}, "more"),
        ({"merges": [["a", "zz"]]}, "merges"),
    ):
        with pytest.raises(ConfigError, match=message):
            tokenizer_from(stored | change)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(alphabet="abc .,?", min_size=1)),
        min_size=1,
        max_size=5,
    )
)
def test_chats_survive_the_ids(turns):
    letters = CharacterTokenizer.train(["abc .,?"])
    chat = [{"role": role, "content": text} for role, text in turns]
    assert decode_chat(letters, encode_chat(letters, chat)) == chat


def test_rows_are_padded_on_the_right_and_do_not_count():
    batch = rows([[2, 4, 5, 3], [2, 3]], length=5)
    assert batch["inputs"].tolist() == [[2, 4, 5, 0, 0], [2, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[4, 5, 3, IGNORE, IGNORE], [3] + [IGNORE] * 4]
    assert batch["valid"].sum().item() == 4


# --- entropies


def test_bigrams_by_brute_force():
    generator = seeded(0)
    inputs, labels = (torch.randint(4, (3, 50), generator=generator) for _ in range(2))
    pairs = list(zip(inputs.flatten().tolist(), labels.flatten().tolist()))
    by_hand = -sum(math.log(pairs.count(pair) / sum(a == pair[0] for a, _ in pairs)) for pair in pairs) / len(pairs)
    assert bigram_entropy(inputs, labels) == pytest.approx(by_hand, abs=1e-9)
    assert bigram_loss((inputs, labels), (inputs, labels), 4, added=1e-12) == pytest.approx(by_hand, abs=1e-6)


def test_floor_is_the_entropy_of_all_conversations(data):
    made = prepare(data / "expanded")
    assert entropy() == pytest.approx(math.log(2 * 11 * 8 * 8))
    labels = sum(len(ids) - 1 for ids in made.held_out)
    assert made.entropies["floor"] == pytest.approx(entropy() * len(made.held_out) / labels)
    assert made.entropies["leak_bound"] == pytest.approx(slot_entropy(made.chats) * len(made.held_out) / labels)
    assert made.entropies["leak_bound"] <= made.entropies["floor"]
    assert all(95 <= len(ids) - 1 <= 110 for ids in made.train)


def test_leak_is_an_error_below_the_bound():
    entropies = {"floor": 0.07, "leak_bound": 0.068}
    check_leak(0.0681, entropies)
    check_leak(0.0, {"unigram": 4.0})
    with pytest.raises(LeakError, match="leak"):
        check_leak(0.0679, entropies)


# --- the grammar


def test_every_combination_parses_and_only_it():
    for one in combinations()[::37]:
        turns = conversation(one)
        assert parse(turns) == one and len(turns) == 9
        for number, turn in enumerate(turns):
            for name, values in SLOTS.items():
                if getattr(one, name) in turn["content"]:
                    other = next(v for v in values if v != getattr(one, name))
                    changed = [dict(t) for t in turns]
                    changed[number]["content"] = turn["content"].replace(getattr(one, name), other)
                    assert name in first_fault(changed)
        assert first_fault(turns[:-1]) == "turn 9 is missing"
        assert "one too many" in first_fault(turns + turns[:1])
        assert "role" in first_fault([turns[0] | {"role": "user"}, *turns[1:]])


def test_splits_share_no_combination():
    sets, _ = make_sets(DataConfig(seed=3, basic=200, expanded=400, held_out=100))
    held = {tuple(chat.metadata.values()) for chat in sets["expanded"][1]}
    assert len(held) == 100
    assert all(not held & {tuple(chat.metadata.values()) for chat in train} for train, _ in sets.values())
    assert {chat.metadata["template"] for chat in sets["basic"][0]} == {"A"}
    assert make_sets(DataConfig(seed=3, basic=200, expanded=400, held_out=100))[0] == sets


def test_filters_do_what_they_say():
    chats = [Chat(conversation(one), one._asdict()) for one in combinations()[::5]]
    scores = filter_scores(*damage(chats, 0.5, np.random.default_rng(1)))
    assert scores["ours"]["recall"] == scores["ours"]["precision"] == 1.0
    assert scores["documents' filter"]["recall"] < 0.7
    seen = set()
    assert faults(chats[0], seen) == [] and faults(chats[0], seen) == ["duplicate"]
    assert document_filter(
        Chat(conversation(Combination("A", "transfer_attacks", "social_engineering", "deny_service")))
    )
    assert not document_filter(Chat(conversation(Combination("A", "jailbreak", "social_engineering", "deny_service"))))


# --- chat files


def test_real_files():
    chats, report = read_chats([shared("data/chat/dummy_conversation_messages.jsonl"), shared("data/chat/valid.jsonl")])
    assert (len(chats), report.bad) == (506, [])
    odd, report = read_chats(shared("data/chat/odd.jsonl"))
    assert len(odd) == report.good == 5
    assert [line for _, line, _ in report.bad] == [1, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 18, 19, 21, 22]
    assert [line for _, line, _ in report.odd] == [2, 7]
    with pytest.raises(DataError, match=r"odd\.jsonl:1: messages: found no turns"):
        read_chats(shared("data/chat/odd.jsonl"), strict=True)


GOOD = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'


@pytest.mark.parametrize(
    "raw, good, bad",
    [
        (b"\xef\xbb\xbf" + GOOD.encode(), 1, []),
        (GOOD.encode() + b"\r\n" + GOOD.encode() + b"\r\n", 2, []),
        (GOOD.encode() + b"\n\n\n" + GOOD.encode(), 2, []),
        (GOOD.encode() + b'\n{"messages": \xff}\n', 1, [2]),
        (GOOD.encode() + b"\n" + b"[" * 100_000, 1, [2]),
        (GOOD.encode() + b"\n" + b"1" * 5000, 1, [2]),
        (GOOD.encode() + "\n".encode() + GOOD.replace("Hello", "a\u2028b").encode(), 2, []),
    ],
)
def test_odd_bytes(tmp_path, raw, good, bad):
    (tmp_path / "chat.jsonl").write_bytes(raw)
    chats, report = read_chats(tmp_path / "chat.jsonl")
    assert (len(chats), [line for _, line, _ in report.bad]) == (good, bad)


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"")
    for name, message in (("empty.jsonl", "no usable conversation"), ("none.jsonl", "no such file"), ("", "a folder")):
        with pytest.raises(DataError, match=message):
            read_chats(tmp_path / name)


def row(**change) -> str:
    return (
        json.dumps(
            {"messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]} | change
        )
        + "\n"
    )


def test_what_cannot_be_written_again_is_left_out_of_a_row(tmp_path):
    deep = "[" * 700 + "]" * 700
    (tmp_path / "a.jsonl").write_text(
        row(id="\ud800")
        + row(metadata={"a": "\ud800"})
        + row(id="fine", metadata={"template": "chatml"})
        + row(metadata=0).replace('"metadata": 0', f'"metadata": {{"a": {deep}}}')
    )
    chats, report = read_chats(tmp_path / "a.jsonl")
    assert [(chat.id, chat.metadata) for chat in chats] == [
        ("", {}),
        ("", {}),
        ("fine", {"template": "chatml"}),
        ("", {"a": json.loads(deep)}),
    ] or [chat.metadata for chat in chats] == [{}, {}, {"template": "chatml"}, {}]
    assert [line for _, line, reason in report.odd if "left out" in reason][:2] == [1, 2]
    assert read_chats(write_chats(tmp_path / "b.jsonl", chats))[0] == chats


def test_layouts_and_files_that_say_nothing(tmp_path):
    (tmp_path / "good.jsonl").write_text(row(conversation="id7") + '{"messages": [{"content": "no role"}]}\n')
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    chats, report = read_chats([tmp_path / "empty.jsonl", tmp_path / "good.jsonl"])
    assert len(chats) == 1 and [reason for _, _, reason in report.bad] == [
        "no rows in this file",
        "turn 1: found no 'role'; allowed: role and content",
    ]
    with pytest.raises(DataError, match="empty.jsonl: no rows"):
        read_chats([tmp_path / "empty.jsonl", tmp_path / "good.jsonl"], strict=True)


@pytest.mark.parametrize("metadata", [{"template": "chatml"}, {"strategy": ["x"]}, {"template": ["x"]}])
def test_metadata_of_others_are_not_taken_for_ours(tmp_path, metadata):
    turns = [
        [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}]
        for word in ("one", "two", "three")
    ]
    source = write_chats(tmp_path / "own.jsonl", [Chat(turn, metadata) for turn in turns])
    facts = build_data(DataConfig(seed=0, basic=4, expanded=6, held_out=4, source=str(source)), tmp_path / "data")
    assert facts["own"]["train"]["strategy_values"] == 0
    assert "floor" not in prepare(tmp_path / "data" / "own").entropies


def test_sets_that_would_not_be_halves_are_refused():
    with pytest.raises(ValueError, match="held_out 3; allowed: an even number"):
        DataConfig(seed=0, basic=10, expanded=10, held_out=3)
    with pytest.raises(ValueError, match="expanded 30 with basic 10"):
        DataConfig(seed=0, basic=10, expanded=30, held_out=4)


def test_writing_and_reading_again(tmp_path):
    chats = [Chat(conversation(one), one._asdict(), str(i)) for i, one in enumerate(combinations()[:5])]
    assert read_chats(write_chats(tmp_path / "a.jsonl", chats))[0] == chats


# --- models


def test_parameters_of_the_documents():
    with torch.device("meta"):
        counted = [
            parameters(LanguageHRM(LanguageConfig(**arch.model_dump(), vocab_size=5000, seq_len=256)))
            for arch in (PHASE_0, STEP_3)
        ]
    assert counted == [32_384_002, 14_457_602]


ADAPTED = PHASE_2.model_dump() | {"hidden_size": 32, "num_heads": 2, "halt_max_steps": 3}


@pytest.mark.parametrize(
    "arch, causal",
    [
        (ARCH, True),
        (ARCH | {"pos_encodings": "learned"}, True),
        (ARCH | {"puzzle_emb_ndim": 16}, True),
        (ADAPTED, True),
        (ARCH | {"window": 5, "convolution": 4}, True),
        (ARCH | {"causal": False}, False),
        (ARCH | {"causal": "H"}, False),
        (ARCH | {"causal": "L"}, False),
    ],
)
def test_causality_bit_for_bit(data, arch, causal):
    made = prepare(data / "expanded")
    model = build(LanguageArch(**arch), made.tokenizer.size, made.longest, seeded(0))
    worst = causality_probe(model, made.held_out[:3], seeded(1))
    assert worst == 0.0 if causal else worst > 1e-4


def test_gradient_reaches_every_parameter(data):
    made = prepare(data / "expanded")
    for arch in (ADAPTED, ADAPTED | {"gradient": "full", "pos_encodings": "rope"}, ARCH | {"causal": False}):
        assert (
            gradient_probe(build(LanguageArch(**arch), made.tokenizer.size, made.longest, seeded(0)), made.train[:2])
            == []
        )


def test_padding_and_neighbours_change_no_loss(data):
    made = prepare(data / "expanded")
    for arch in (ARCH, ARCH | {"causal": False}, ADAPTED):
        model = build(LanguageArch(**arch), made.tokenizer.size, 128, seeded(0))
        sequences = [made.held_out[0], made.held_out[1][:20], made.held_out[2][:50]]
        together = label_losses(model, sequences)[0]
        for row, sequence in enumerate(sequences):
            alone = label_losses(model, [sequence])[0][0]
            assert torch.allclose(together[row, : len(alone)], alone, atol=1e-5)
            assert not together[row, len(sequence) - 1 :].any()


@pytest.mark.parametrize(
    "arch", [ADAPTED, ARCH | {"window": 5, "convolution": 4, "dropout": 0.3}], ids=["phase 2", "window"]
)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_decoding_with_convolution_and_window(arch, compiled):
    if compiled and not compiler()[0]:
        pytest.skip(compiler()[1])
    model, text = build(LanguageArch(**arch), 11, 14, seeded(0)).eval(), torch.randint(11, (2, 14), generator=seeded(1))
    with torch.no_grad():
        carry = model.start({"inputs": text, "labels": text})
        for _ in range(model.config.halt_max_steps):
            carry, outputs = model(carry)
    decoder, place = HRMDecoder(model, rows=2, compiled=compiled), 0
    for piece in text.split((2, 1, 3, *(1,) * 8), dim=1):
        place += piece.shape[1]
        torch.testing.assert_close(
            decoder.feed(piece), outputs["logits"][:, place - 1], rtol=1e-4, atol=1e-4
        )  # other sums, same order of size


def test_a_model_that_cannot_write_is_refused_before_the_first_reply():
    tokenizer = WordTokenizer(("one", "two"))
    model = build(LanguageArch(**ARCH | {"causal": "H"}), tokenizer.size, 12, seeded(0))
    with pytest.raises(ValueError, match="found causal = 'H'"):
        ChatSession(model, tokenizer, Sampling(), seeded(0))
    with pytest.raises(ValueError, match="compiled: found True, but without a cache"):
        HRMDecoder(build(LanguageArch(**ARCH), tokenizer.size, 12, seeded(0)), cached=False, compiled=True)


def test_a_turn_that_is_too_long_changes_nothing_and_others_vocabularies_are_refused():
    tokenizer = WordTokenizer(("one", "two", "three"))
    model = build(LanguageArch(**ARCH), tokenizer.size, 16, seeded(0))
    session = ChatSession(model, tokenizer, Sampling(), seeded(0), most=2)
    list(session.say("one two"))
    before = [dict(turn) for turn in session.turns]
    with pytest.raises(ValueError, match="in the last turn; allowed: fewer than 16"):
        list(session.say("one " * 20))
    assert session.turns == before
    with pytest.raises(ValueError, match="system and the last turn"):
        list(ChatSession(model, tokenizer, Sampling(), seeded(0), system="two " * 20).say("one"))
    with pytest.raises(ValueError, match="10 outputs and a tokenizer of 9 ids"):
        ChatSession(model, WordTokenizer(("one", "two")), Sampling(), seeded(0))


def test_attribution_of_a_causal_model_ends_at_the_present(data):
    made = prepare(data / "expanded")
    model = build(LanguageArch(**ARCH), made.tokenizer.size, made.longest, seeded(0))
    offsets, share = looked_at(model, made.held_out[0])
    assert share[offsets > 0].max() == 0 and share.sum() > 0.3


def test_what_stands_between_the_turns_is_a_fault(data):
    made = prepare(data / "expanded")
    tokenizer, ids = made.tokenizer, list(made.held_out[0])
    eos = [place for place, i in enumerate(ids) if i == tokenizer.eos]
    assert (
        _chat(ids, tokenizer)[1] is None and _chat(ids + [tokenizer.unk] * 3, tokenizer)[1] is None
    )  # after the ninth turn: not looked at
    stray = ids[: eos[0] + 1] + [ids[3]] + ids[eos[0] + 1 :]
    assert _chat(stray, tokenizer) == (_chat(ids, tokenizer)[0], "ids that belong to no turn")
    assert _chat(ids[: eos[2]] + ids[eos[2] + 1 :], tokenizer)[1] == "ids that belong to no turn"
    assert _chat(ids[: eos[2]] + [tokenizer.unk, tokenizer.pad] + ids[eos[2] :], tokenizer)[1] is not None


def test_a_conversation_as_long_as_the_model_is_written_to_its_last_word(data, monkeypatch):
    made = prepare(data / "expanded")
    longest = max(made.held_out, key=len)
    model = build(LanguageArch(**ARCH), made.tokenizer.size, len(longest) - 1, seeded(0))
    rest = iter(longest[len(given_ids(longest, made.tokenizer)) :])
    monkeypatch.setattr(
        "hrm.core.generate.probabilities",
        lambda logits, _: torch.nn.functional.one_hot(torch.tensor([next(rest)]), logits.shape[-1]).float(),
    )
    assert continue_chats(model, made.tokenizer, [longest], Sampling(), seeded(0)).faults == [None]


def test_the_halting_head_reads_the_last_word_in_training(data):
    made = prepare(data / "expanded")
    config = recipe(arch={"halt_max_steps": 1})
    model = build(config.arch, made.tokenizer.size, made.longest, seeded(0))
    made.train = [ids[: 20 + number % 7] for number, ids in enumerate(made.train)]
    task = ChatTask(model, made, config, seeded(1))
    batch = task.rows(torch.arange(4))
    assert batch["valid"].any(1).all() and not batch["valid"].all()
    torch.nn.init.normal_(model.inner.q_head.weight, generator=seeded(2))
    with torch.no_grad():
        together = model.eval()(model.start(batch))[1]["q_halt"]
        for number, length in enumerate(batch["valid"].sum(1).tolist()):
            alone = model(model.start({name: value[number : number + 1, :length] for name, value in batch.items()}))[1][
                "q_halt"
            ]
            assert alone.item() == pytest.approx(together[number].item(), abs=1e-4)


def test_variants_with_other_weights_see_the_same_rows(data, tmp_path, monkeypatch):
    orders = []
    monkeypatch.setattr(
        "hrm.dialogue.train.start",
        lambda name, task, *_, **__: orders.append(task.stream.order.tolist()) or type("R", (), {"metrics": {}})(),
    )
    for change in ({}, {"convolution": 3}, {"hidden_size": 64}):
        run("x", recipe(arch=change), 3, data, tmp_path / "out", Options(tmp_path / "resume", progress=False))
    assert orders[0] == orders[1] == orders[2] != sorted(orders[0])


def test_a_change_of_a_number_into_a_section_names_the_key():
    base = recipe().model_dump()
    with pytest.raises(ValueError, match="variants.odd.batch_size: found"):
        AblateConfig(seeds=2, base=base, variants={"odd": {"batch_size": {"x": 1}}})


# --- training


def weights(folder):
    return checkpoint.read(folder).weights


def test_going_on_gives_the_bits_of_an_unbroken_run(data, tmp_path):
    first, more = (
        recipe(arch={"dropout": 0.2, "convolution": 3}),
        recipe(arch={"dropout": 0.2, "convolution": 3}, loop={"steps": 12}),
    )
    runs = TrainConfig(
        seed=1, runs={"first": first, "more": more.model_copy(update={"after": "first"}), "unbroken": more}
    )
    results = run_all(runs, data, tmp_path / "out", Options(tmp_path / "resume", progress=False))
    a, b = weights(tmp_path / "out/more/final"), weights(tmp_path / "out/unbroken/final")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert results["more"].metrics["tflop"] == pytest.approx(results["unbroken"].metrics["tflop"] / 2)
    model, tokenizer, meta = load(tmp_path / "out/more/best")
    assert meta["config"]["system"] == "dialogue" and tokenizer == prepare(data / "expanded").tokenizer


def test_a_run_that_goes_on_with_more_rows_sees_all_of_them(data, tmp_path):
    easy = recipe(rows=5, arch={"halt_max_steps": 1})
    seen = []

    class Watched(ChatTask):
        def rows(self, slots):
            batch = super().rows(slots)
            seen.extend(tuple(row.tolist()) for row in batch["inputs"])
            return batch

    made = prepare(data / "expanded")
    config = recipe(batch_size=4, arch={"halt_max_steps": 1})
    task = Watched(build(config.arch, made.tokenizer.size, made.longest, seeded(0)), made, config, seeded(0))
    first = prepare(data / "expanded")
    first.train = first.train[: easy.rows]
    before = ChatTask(build(easy.arch, made.tokenizer.size, made.longest, seeded(0)), first, easy, seeded(3))
    before.stream.take(7)  # into its second epoch
    task.load_state_dict(before.state_dict())
    for _ in range(-(-len(made.train) // 4)):
        task.loss(task.model)
    assert len({row[:60] for row in seen}) == len({tuple(ids[:60]) for ids in made.train})


@pytest.mark.parametrize(
    "change",
    [{}, {"arch": {"halting": "q", "halt_max_steps": 3, "halt_exploration_prob": 0.5}}, {"arch": {"dropout": 0.3}}],
)
def test_a_stopped_run_resumes_to_the_same_bits(data, tmp_path, change):
    config = recipe(**change, loop={"steps": 7})
    run("whole", config, 0, data, tmp_path / "whole", Options(tmp_path / "resume", progress=False))

    class Enough(Exception):
        pass

    def watch(step, row):
        if step == 3:
            raise Enough

    with pytest.raises(Enough):
        run(
            "whole",
            config,
            0,
            data,
            tmp_path / "broken",
            Options(tmp_path / "again", progress=False, watch=lambda name: watch),
        )
    run("whole", config, 0, data, tmp_path / "broken", Options(tmp_path / "again", progress=False))
    a, b = weights(tmp_path / "whole/final"), weights(tmp_path / "broken/final")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_leaking_run_stops_unless_it_is_the_exhibit(data, tmp_path, monkeypatch):
    made = prepare(data / "expanded")
    low = made.entropies["leak_bound"] / 2
    for leak in ("error", "shown"):
        config = recipe(leak=leak, arch={"causal": False})
        task = ChatTask(build(config.arch, made.tokenizer.size, made.longest, seeded(0)), made, config, seeded(0))
        monkeypatch.setattr("hrm.dialogue.train.text_loss", lambda nats, labels: low)
        if leak == "error":
            with pytest.raises(LeakError):
                task.evaluate()
        else:
            assert task.evaluate()["loss"] == low


def test_wrong_recipes_are_refused_before_any_work(data, tmp_path):
    with pytest.raises(ConfigError, match="vocab_size: found 20"):
        run("small", recipe(vocab_size=20), 0, data, tmp_path / "out", Options(tmp_path / "resume", progress=False))
    with pytest.raises(ConfigError, match="earlier run"):
        run("lost", recipe(after="first"), 0, data, tmp_path / "out", Options(tmp_path / "resume", progress=False))
    with pytest.raises(ValueError, match="window"):
        LanguageArch(**ARCH | {"causal": False, "window": 3})
    with pytest.raises(DataError, match="no such file"):
        run("none", recipe(set="none"), 0, data, tmp_path / "out", Options(tmp_path / "resume", progress=False))
    assert not list(tmp_path.iterdir())


def test_a_split_that_shares_conversations_is_refused(data, tmp_path):
    for part in ("train", "held_out"):
        write_chats(tmp_path / "set" / f"{part}.jsonl", [Chat(conversation(one)) for one in combinations()[:3]])
    with pytest.raises(DataError, match="3 conversations are in both"):
        prepare(tmp_path / "set")


def test_training_on_real_chats(tmp_path):
    source = shared("data/chat/dummy_conversation_messages.jsonl")
    facts = build_data(DataConfig(seed=0, basic=4, expanded=6, held_out=4, source=str(source)), tmp_path / "data")
    assert facts["own"]["train"]["conversations"] + facts["own"]["held_out"]["conversations"] == 500
    config = recipe(
        set="own",
        tokens="byte_pair",
        byte_pairs=400,
        seq_len=96,
        batch_size=8,
        optim={"lr": 1e-2},
        loop={"steps": 60, "evaluate_every": 60, "log_every": 60},
        arch={"H_cycles": 1, "halt_max_steps": 1, "hidden_size": 48, "gradient": "full"},
    )
    result = run("own", config, 0, tmp_path / "data", tmp_path / "own", Options(tmp_path / "resume", progress=False))
    made = prepare(tmp_path / "data" / "own", "byte_pair", longest=96, size=400)
    assert result.metrics["held_out"]["loss"] < made.entropies["unigram"] - 0.5
    assert result.metrics["held_out"]["per_character"] == pytest.approx(
        result.metrics["held_out"]["loss"] * made.per_character
    )
    model, tokenizer, _ = load(tmp_path / "own" / "best")
    nats, _, labels = label_losses(model, made.held_out)
    assert text_loss(nats, labels) == pytest.approx(result.metrics["best"]["value"], abs=1e-6)
