"Questions of the memory part: splits, answers by an independent reader, chance, files, rows of ids, tokenizers."

import json
import re
import resource
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from hrm.core.config import ConfigError
from hrm.core.errors import DataError
from hrm.core.losses import IGNORE, bigram_entropy, bigram_loss
from hrm.core.tokens import BytePairTokenizer, CharacterTokenizer
from hrm.memory.data import (
    DataConfig,
    build,
    encode,
    entropies,
    learn_tokenizer,
    load,
    make_sets,
    prompt_ids,
    read_tokenizer,
    rows,
)
from hrm.memory.tasks import (
    KINDS,
    PARTITIONS,
    PARTS,
    PROMPTS,
    VALUES,
    Question,
    chance,
    hold_out,
    make,
    memory,
    numbers,
    pools,
    read_questions,
    result,
    stored_questions,
    wordings,
    write_questions,
)

CONFIG = DataConfig(seed=0, train=600, held_out=90, test=240)


@pytest.fixture(scope="module")
def sets():
    return make_sets(CONFIG)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("memory")
    build(CONFIG, place)
    return place


# --- an independent reader: it knows English, not how the questions were made


def sort_of(fact: str) -> str:
    "What a sentence tells."
    return "colour" if " the " in fact else "number" if "coins" in fact else "food"


def solve(question: str) -> str:
    "The answer, from the words alone."
    *told, asked = re.split(r"(?<=[.?]) ", question)
    amounts = [int(n) for n in re.findall(r"\d+", question)]
    if "miles" in question:
        return str(amounts[0] // amounts[1])
    if re.search(r"\b(gets|finds|buys|wins)\b", question):
        return str(amounts[0] + amounts[1])
    if re.search(r"\b(eats|loses|sells|gives)\b", question):
        return str(amounts[0] - amounts[1])
    key = re.findall(r"\w+", asked)[-1]
    wanted = "colour" if "colour" in asked else "number" if "coins" in asked or "number" in asked else "food"
    for fact in told:
        name, value = re.fullmatch(r"\w+ (?:the )?(\w+) (\w+)(?: coins)?\.", fact).groups()
        if (name, sort_of(fact)) == (key, wanted):
            return value
    raise AssertionError(f"nothing tells {question!r}")


def test_every_answer_is_what_a_reader_finds(sets):
    for parts in sets.values():
        for questions in parts.values():
            for one in questions:
                assert solve(one.question) == one.answer
                facts = re.split(r"(?<=[.?]) ", one.question)[:-1]
                for prompt, answer in one.more:
                    if prompt.startswith("Q: "):
                        assert solve(" ".join([*facts, prompt.removeprefix("Q: ").removesuffix(" A:")])) == answer
                    else:  # a fact told again, up to its value
                        assert [fact for fact in facts if fact.startswith(f"{prompt} {answer}")]


def test_distances_and_choices_are_what_the_text_says(sets):
    for one in sets["memory"]["test"]:
        facts = re.split(r"(?<=[.?]) ", one.question)[:-1]
        key, value = one.numbers
        sort = {"colour": "colour", "count": "number", "fact": "food"}[one.kind]
        same = [fact for fact in facts if sort_of(fact) == sort]
        place = [number for number, fact in enumerate(facts) if fact in same and re.search(rf"\b{key}\b", fact)]
        assert len(place) == 1 and len(facts) - 1 - place[0] == one.distance
        assert len(same) == one.choices >= 2 and value in facts[place[0]]


def test_the_six_prompts_are_the_documents():
    assert Counter(task for task, _ in PROMPTS) == {"reasoning": 3, "memory": 3}
    assert [one.answer for _, one in PROMPTS] == ["8", "42", "30", "Paris", "8", "blue"]


# --- splits


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_held_out_items_are_new_as_a_whole_and_known_in_parts(a, b, count, seed):
    items = [(x, y) for x in range(a) for y in range(b)]
    if count > (a - 1) * (b - 1):
        return  # more may not be possible
    try:
        stay, out = hold_out(items, count, np.random.default_rng(seed))
    except ValueError as why:
        assert "can be missed" in str(why)
        return
    assert len(out) == count and sorted(stay + out) == items
    for place in (0, 1):
        assert {item[place] for item in out} <= {item[place] for item in stay}


def test_nothing_is_shared_and_every_token_is_known(sets):
    tokenizer = learn_tokenizer([one for parts in sets.values() for one in parts["train"]], CONFIG.vocabulary)
    for parts in sets.values():
        for what in ("wording", "numbers"):
            seen = [{(one.kind, getattr(one, what)) for one in parts[part]} for part in PARTITIONS]
            assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
        known = {i for one in parts["train"] for i in encode(one, tokenizer)[0]}
        assert {i for one in parts["test"] for i in encode(one, tokenizer)[0]} <= known


def test_unheard_pairs_stand_nowhere_in_training_memory(sets):
    held = {(one.kind, one.numbers) for part in ("held_out", "test") for one in sets["memory"][part]}
    tails = {"fact": r" {0} {1}\.", "count": r" {0} {1} coins\.", "colour": r" the {0} {1}\."}
    text = " ".join(one.question for one in sets["memory"]["train"])
    assert held and not [pair for kind, pair in held if re.search(tails[kind].format(*pair), text)]


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_held_out_in_both_orders(seed):
    made = pools(np.random.default_rng(seed), largest=12)
    questions = {part: make("reasoning", part, 900, made, np.random.default_rng(seed)) for part in PARTITIONS}

    def asked(part):
        return {frozenset(re.findall(r"\d+", one.question)) for one in questions[part] if one.kind == "sum"}

    assert not asked("train") & asked("test") and not asked("train") & asked("held_out")


def test_numbers_and_results():
    assert len(numbers("sum", largest=30)) == 465 and len(numbers("difference", largest=30)) == 900
    assert all(result("difference", pair) >= 1 for pair in numbers("difference", largest=9))
    assert all(not any(int(digit) * hours > 9 for digit in str(speed)) for speed, hours in numbers("speed"))
    assert {len(wordings(kind)) for kind in PARTS} == {16, 24, 36}
    with pytest.raises(ValueError, match="below their number"):
        memory("fact", pools(np.random.default_rng(0))["test"]["fact"], {}, 2, 2, np.random.default_rng(0))


def test_the_test_has_every_kind_and_every_distance(sets):
    assert Counter(one.kind for one in sets["reasoning"]["test"]) == {kind: 80 for kind in KINDS["reasoning"]}
    assert set(Counter((one.kind, one.distance) for one in sets["memory"]["test"]).values()) == {10}
    assert {len(re.findall(r"\.", one.question)) for one in sets["memory"]["train"]} == set(range(2, 9))


# --- chance


def test_chance_is_what_guessers_score(sets):
    found = {task: chance(sets[task]["train"], sets[task]["test"]) for task in KINDS}
    rng, right, tries = np.random.default_rng(0), 0, 40
    for one in sets["memory"]["test"] * tries:
        stated = [
            fact
            for fact in re.split(r"(?<=[.?]) ", one.question)[:-1]
            if any(re.search(rf"\b{value}\b", fact) for value in VALUES[one.kind])
        ]
        values = [next(value for value in VALUES[one.kind] if re.search(rf"\b{value}\b", fact)) for fact in stated]
        right += values[rng.integers(len(values))] == one.answer
    assert abs(right / (240 * tries) - found["memory"]["stated"]) < 0.02
    assert found["memory"]["chance"] >= found["memory"]["stated"] and found["reasoning"]["stated"] == 0
    train = [Question("?", answer, "sum") for answer in "1122233"]
    assert chance(train, [Question("?", answer, "sum") for answer in "2234"]) == {
        "constant": 0.5,
        "stated": 0.0,
        "chance": 0.5,
    }
    with pytest.raises(ValueError, match="no questions"):
        chance(train, [])


def test_a_guesser_takes_the_better_way_for_each_kind(sets):
    "Where word problems and facts are asked together, chance is the mean over the questions of what each kind gives alone."
    train, test = (sets["reasoning"][part] + sets["memory"][part] for part in ("train", "test"))
    kinds = sorted({one.kind for one in test})
    alone = [
        max(chance(train, own)[way] for way in ("constant", "stated")) * len(own)
        for own in ([one for one in test if one.kind == kind] for kind in kinds)
    ]
    assert len(kinds) == 6 and chance(train, test)["chance"] == pytest.approx(sum(alone) / len(test))
    assert chance(train, test)["chance"] > max(chance(train, test)[way] for way in ("constant", "stated"))


# --- files


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.fixed_dictionaries({"question": st.text(max_size=9), "answer": st.text(max_size=9)}).map(
                lambda row: json.dumps(row).encode()
            ),
        ),
        max_size=6,
    )
)
def test_any_file_is_read_or_refused_by_line(tmp_path_factory, lines):
    file = tmp_path_factory.mktemp("own") / "own.jsonl"
    file.write_bytes(b"\n".join(lines))
    try:
        questions, report = read_questions(file)
    except DataError as why:
        assert str(file) in str(why)
        return
    assert len(questions) == report.good and all(one.question.strip() and one.answer.strip() for one in questions)
    assert len({one.question for one in questions}) == len(questions)
    with open(file, "rb") as handle:
        filled = sum(bool(raw.strip()) for raw in handle)
    assert report.good + report.repeated + len(report.bad) == filled or file.read_bytes().startswith(b"\xef\xbb\xbf")


def test_bad_lines_are_named(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(
        '{"question": "a?", "answer": "1"}\n{"question": "a?"}\n{"question": "a?", "answer": "2"}\nnull\n{"question": "%s", "answer": "1"}\n'
        % ("x" * 2001)
    )
    _, report = read_questions(file)
    assert (
        [line for line, _ in report.bad] == [2, 3, 4, 5]
        and "line 1 answers" in report.text()
        and "2,001" in report.text()
    )
    for bad in ("a folder", "no such file"):
        with pytest.raises(DataError, match=bad):
            read_questions(tmp_path if bad == "a folder" else tmp_path / "none")
    with pytest.raises(DataError, match="own.jsonl:2"):
        read_questions(file, strict=True)


def test_stored_questions_come_back(sets, tmp_path):
    every = sets["memory"]["train"][:50] + sets["reasoning"]["test"][:50]
    assert stored_questions(write_questions(tmp_path / "q.jsonl", every)) == every
    (tmp_path / "q.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(DataError, match="q.jsonl:1"):
        stored_questions(tmp_path / "q.jsonl")


# --- rows


def test_labels_are_the_answers_and_nothing_else(sets):
    tokenizer = learn_tokenizer(sets["memory"]["train"], 500)
    batch = rows(sets["memory"]["train"][:64], tokenizer, 64)
    for row, one in enumerate(sets["memory"]["train"][:64]):
        ids, answer = encode(one, tokenizer, 64)
        assert batch["inputs"][row, : len(ids) - 1].tolist() == ids[:-1] and len(ids) <= 65
        assert batch["labels"][row, : len(ids) - 1].tolist() == [
            i if told else IGNORE for i, told in zip(ids[1:], answer[1:])
        ]
        told = tokenizer.decode([int(i) for i in batch["labels"][row] if i != IGNORE and i != tokenizer.eos]).split()
        assert told == [one.answer, *(reply for _, reply in one.more)][: len(told)] and told
        assert tokenizer.decode(ids).startswith(one.prompt) and ids[: len(prompt_ids(one, tokenizer))] == prompt_ids(
            one, tokenizer
        )
    assert (batch["labels"][~batch["valid"]] == IGNORE).all() and (
        batch["inputs"][~batch["valid"]] == tokenizer.pad
    ).all()
    with pytest.raises(DataError, match="allowed: 12"):
        rows(sets["memory"]["train"][:2], tokenizer, 11)


def test_digits_stay_single_whatever_is_frequent(sets):
    tokenizer = learn_tokenizer(sets["reasoning"]["train"], 768)
    for number in (7, 15, 42, 444):
        pieces = [tokenizer.decode([i]) for i in tokenizer.encode(f"has {number} pens")]
        assert [piece.strip() for piece in pieces if piece.strip().isdigit()] == list(str(number))
    merged = BytePairTokenizer.train(
        [one.prompt for one in sets["reasoning"]["train"]], 768
    )  # what happens without the care
    assert len(merged.encode(" 15")) == 1


def test_tokenizers_of_the_users(sets, tmp_path):
    own = learn_tokenizer(sets["reasoning"]["train"], 400)
    file = tmp_path / "tokenizer.json"
    stored = json.loads(own._model.to_str())
    text = "Ann has 15 naïve pens 🙂"
    for merges in (
        stored["model"]["merges"],
        [" ".join(pair) for pair in stored["model"]["merges"]],
    ):  # newer and older files
        file.write_text(json.dumps(stored | {"model": stored["model"] | {"merges": merges}}))
        assert (
            read_tokenizer(file).encode(text) == own.encode(text)
            and read_tokenizer(file).decode(own.encode(text)) == text
        )
    for change, why in (
        ({"normalizer": {"type": "NFC"}}, "ByteLevel for both, and none"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "ByteLevel"),
        ({"model": {"vocab": {"a": 0}, "merges": []}}, "all 256"),
        ({"model": stored["model"] | {"type": "Unigram"}}, "found 'Unigram'; allowed: BPE"),
        ({"model": stored["model"] | {"vocab": stored["model"]["vocab"] | {"zz": "x"}}}, "no whole numbers"),
        ({"model": stored["model"] | {"vocab": dict.fromkeys(stored["model"]["vocab"], 0)}}, "one id for two tokens"),
        ({"model": stored["model"] | {"merges": [5]}}, "not lists of text"),
        ({"model": stored["model"] | {"merges": [[["a"], "b"]]}}, "not lists of text"),
    ):
        file.write_text(json.dumps(stored | change))
        with pytest.raises(ConfigError, match=why) as error:
            read_tokenizer(file)
        assert str(file) in str(error.value)
    for change in ({"tokens": 5}, {"merges": [5]}):
        file.write_text(json.dumps(own.to_dict() | change))
        with pytest.raises(ConfigError, match="not lists of text"):
            read_tokenizer(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tokenizer(tmp_path)


def test_build_and_load(folder, tmp_path):
    data = load(folder)
    assert set(data.train) == set(KINDS) and data.longest == 64 and all(len(one) == 240 for one in data.test.values())
    assert data.train["reasoning"]["inputs"].dtype == torch.long and data.entropies["memory"]["floor"] == 0
    assert all(one["bigram"] < one["unigram"] < one["uniform"] for one in data.entropies.values())
    build(CONFIG, tmp_path)
    for file in folder.rglob("*.*"):
        assert (tmp_path / file.relative_to(folder)).read_bytes() == file.read_bytes(), file
    train = tmp_path / "reasoning" / "train.jsonl"
    train.write_text(train.read_text() + (tmp_path / "reasoning" / "test.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match="1 questions are in both"):
        load(tmp_path)
    (tmp_path / "memory" / "train.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="rows of train cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    "file, content, why",
    [
        ("reasoning/test.jsonl", b"", "test.jsonl: holds no question"),
        ("reasoning/test.jsonl", b"\xff\n", "test.jsonl:1: not a stored question"),
        (
            "memory/train.safetensors",
            lambda t: {"inputs": t["inputs"]},
            "train.safetensors: found .* allowed: inputs, labels, valid of one shape",
        ),
        (
            "memory/held_out.safetensors",
            lambda t: t | {"inputs": t["inputs"] + 10**5},
            "held_out.safetensors: found ids from 3 to 100",
        ),
        ("memory/train.safetensors", lambda t: {name: rows[:0].clone() for name, rows in t.items()}, "one shape"),
        (None, None, "holds no set"),
    ],
)
def test_damaged_sets_are_refused_by_file(folder, tmp_path, file, content, why):
    place = tmp_path / "sets"
    shutil.copytree(folder, place)
    if file is None:
        for name in KINDS:
            shutil.rmtree(place / name)
    else:
        (place / file).write_bytes(content if isinstance(content, bytes) else save(content(load_file(place / file))))
    with pytest.raises(DataError, match=why):
        load(place)


def test_ranges_without_enough_numbers_are_refused():
    with pytest.raises(ConfigError, match="memory.data: share 0.39 .* allowed: a smaller share"):
        make_sets(CONFIG.model_copy(update={"share": 0.39, "largest": 4, "speed": 10, "hours": 3}))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**31))
def test_entropies_are_those_of_the_full_tables(classes, seed):
    g = torch.Generator().manual_seed(seed)
    part = lambda: {
        "inputs": torch.randint(classes, (5, 6), generator=g),
        "labels": torch.where(torch.rand(5, 6, generator=g) < 0.7, torch.randint(classes, (5, 6), generator=g), IGNORE),
    }
    one, two = part(), part()
    found = entropies(one, two, classes)
    assert found["bigram"] == pytest.approx(bigram_entropy(two["inputs"], two["labels"]), abs=1e-12)
    assert found["bigram_table"] == pytest.approx(
        bigram_loss((one["inputs"], one["labels"]), (two["inputs"], two["labels"]), classes)
    )


def test_a_vocabulary_as_large_as_gpt2s_costs_no_table_of_all_pairs(folder):
    "50,257 ids and seven specials: a table of pairs would take 20 GB, the rows take a few kB."
    data = load(folder)
    before, (one, two) = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        (part["memory"] for part in (data.train, data.held_out)),
    )
    high = {
        name: {
            "inputs": rows["inputs"] + 49_000,
            "labels": torch.where(rows["labels"] == IGNORE, IGNORE, rows["labels"] + 49_000),
        }
        for name, rows in (("a", one), ("b", two))
    }
    found = entropies(high["a"], high["b"], 50_264)
    assert found["uniform"] == pytest.approx(np.log(50_264)) and found["bigram"] == pytest.approx(
        data.entropies["memory"]["bigram"]
    )
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200, "MiB more than before"


def test_questions_of_the_users_are_a_third_set(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(
        "".join(json.dumps({"question": f"What is {n} and {n}?", "answer": str(2 * n)}) + "\n" for n in range(30))
        + "oops\n"
    )
    facts = build(
        CONFIG.model_copy(update={"train": 30, "test": 24, "held_out": 24, "source": str(file)}), tmp_path / "sets"
    )
    data = load(tmp_path / "sets")
    assert facts["lines_left_out"] == 1 and [facts["sets"]["own"][part]["questions"] for part in PARTITIONS] == [
        24,
        3,
        3,
    ]
    assert all(one.kind == "own" for one in data.test["own"]) and data.train["own"]["inputs"].shape == (24, 64)
    file.write_text('{"question": "a?", "answer": "1"}\n')
    with pytest.raises(DataError, match="three or more"):
        build(CONFIG.model_copy(update={"source": str(file)}), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_other_vocabularies_carry_the_rows_too(sets):
    tokenizer = CharacterTokenizer.train(
        [text for one in sets["reasoning"]["train"] for text in (one.prompt, one.answer)]
    )
    ids, answer = encode(sets["reasoning"]["train"][0], tokenizer)
    assert (
        tokenizer.decode(ids) == f"{sets['reasoning']['train'][0].prompt} {sets['reasoning']['train'][0].answer}"
        and sum(answer) >= 3
    )
