"The languages and their floor, what counting reaches, and scores that are what their formulas say."

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hrm.core.device import seeded
from hrm.core.errors import DataError
from hrm.core.tokens import SPECIALS, CharacterTokenizer
from hrm.text.baselines import PPM, NGrams, baselines, compressed
from hrm.text.data import Book
from hrm.text.evaluate import judge, mean_bits, sample, surprise_of
from hrm.text.grammar import (
    LANGUAGES,
    Choice,
    Language,
    Reader,
    cost,
    draw,
    entropy,
    faults,
    length,
    rate,
    read,
    spell,
    surprise,
    write,
    zipf,
)
from hrm.text.model import TextArch, build
from hrm.text.quality import (
    SCORES,
    bands,
    copying,
    known_words,
    longest_run,
    repetition,
    scores,
    trigram_cosine,
    yardstick,
)
from hrm.text.trouble import Symptoms, diagnose, kept_bytes, largest_gradient_change

EVERY = list(LANGUAGES.values())


# The floor


@pytest.mark.parametrize("language", EVERY, ids=lambda language: language.name)
def test_the_rate_is_that_of_a_long_text(language):
    rng = np.random.default_rng(7)
    drawn = [draw(language, rng) for _ in range(6_000)]
    bits, characters = (
        np.array([cost(language, one) for one in drawn]),
        np.array([len(spell(language, one)) for one in drawn]),
    )
    ratio = bits.sum() / characters.sum()
    error = np.std(bits - ratio * characters) / math.sqrt(len(drawn)) / characters.mean()
    assert abs(ratio - rate(language)) < 3 * error and error < 0.004
    assert abs(bits.mean() - entropy(language)) < 3 * bits.std() / math.sqrt(len(drawn))
    assert abs(characters.mean() - length(language)) < 3 * characters.std() / math.sqrt(len(drawn))


@settings(max_examples=60, deadline=None)
@given(which=st.integers(0, 2), seed=st.integers(0, 10**6))
def test_a_sentence_has_one_reading_and_its_surprise_adds_up(which, seed):
    language = EVERY[which]
    one = draw(language, np.random.default_rng(seed))
    sentence = spell(language, one)
    assert read(language, sentence) == one
    assert surprise(language, sentence).sum() == pytest.approx(
        cost(language, one), abs=1e-9
    )  # a second reading would make it cheaper


def test_the_shares_of_all_sentences_sum_to_one():
    small = Language("small", ((0.7, "{a} {b}{a:1}.\n"), (0.3, "so {b}\n")), (("a", "x/1 yy/2 z/3"), ("b", "p q")))
    every = [Choice(0, (("a", i), ("b", j))) for i in range(3) for j in range(2)] + [
        Choice(1, (("b", j),)) for j in range(2)
    ]
    shares = np.array([2 ** -cost(small, one) for one in every])
    assert shares.sum() == pytest.approx(1)
    assert entropy(small) == pytest.approx(float(-(shares * np.log2(shares)).sum()))
    assert length(small) == pytest.approx(float(shares @ [len(spell(small, one)) for one in every]))
    assert len({spell(small, one) for one in every}) == len(every)


def test_the_oracle_gives_probabilities_and_knows_what_must_come():
    reader, text = Reader(LANGUAGES["greek"]), "Ada βρήκε «το λευκό αυγό»· το αυγό πέφτει, λέει Ada.\n"
    certain = ""
    for character in text:
        following = reader.next()
        assert sum(following.values()) == pytest.approx(1) and min(following.values()) > 0
        certain += character if len(following) == 1 else "_"
        reader.feed(character)
    assert certain.endswith(" Ada.\n") and "»· το αυγό " in certain and certain.startswith("_")


def test_wrong_sentences_are_found_at_their_first_wrong_letter():
    english = LANGUAGES["english"]
    right = "Ada finds (the old lamp); her lamp burns, says Ada.\n"
    assert faults(english, right * 3) == (3, [])
    for wrong in (right.replace("her", "his"), right.replace(")", "]"), right.replace("says Ada", "says Ben")):
        place = 1 + next(i for i, (a, b) in enumerate(zip(wrong, right)) if a != b)
        count, found = faults(english, right + wrong)
        assert count == 2 and len(found) == 1 and f"character {place} of" in found[0]
    with pytest.raises(ValueError, match="more than one sentence"):
        read(english, right * 2)
    with pytest.raises(ValueError, match="0 readings"):
        read(english, right[:-1])


def test_the_alphabets_overlap_and_each_brings_its_own():
    letters = [set(write(language, 40_000, np.random.default_rng(0))) for language in EVERY]
    for one in (0, 1):
        assert len(letters[one] & letters[one + 1]) > 10 and len(letters[one + 1] - set.union(*letters[: one + 1])) > 10
    assert [
        max(len(s) for s in write(language, 40_000, np.random.default_rng(0)).split("\n")) <= 72 for language in EVERY
    ] == [True] * 3


# What counting reaches


@pytest.mark.parametrize("language", EVERY, ids=lambda language: language.name)
def test_the_six_gram_stays_a_quarter_above_the_rate(language):
    "At the size of the laptop profile."
    text = write(language, 360_000, np.random.default_rng(1))
    tokenizer = CharacterTokenizer.train([text])
    ids = np.array(tokenizer.encode(text))
    grams, held_out = NGrams(ids[:324_000], tokenizer.size, 6), ids[324_000:]
    found = [grams.bits(held_out, order) for order in range(1, 7)]
    assert min(found) > 1.25 * rate(language)
    assert found == sorted(found, reverse=True)  # each longer context helps: the smoothing works
    context = tokenizer.encode("ab")
    for order in range(1, 7):
        assert grams.distribution(context, order).sum() == pytest.approx(1)


def brute(text, size, order, context, one, top=True):
    "Interpolated Kneser-Ney, straight from the formula."
    if order == 0:
        return 1 / size
    grams = lambda n: Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
    count = grams(order) if top else Counter(g[1:] for g in grams(order + 1))
    h = tuple(context[len(context) - order + 1 :]) if order > 1 else ()
    same = {g: c for g, c in count.items() if g[:-1] == h}
    once, twice = (sum(c == k for c in count.values()) for k in (1, 2))
    discount, below = once / (once + 2 * twice) if once else 0.5, brute(text, size, order - 1, context, one, False)
    if not same:
        return below
    total = sum(same.values())
    return max(same.get((*h, one), 0) - discount, 0) / total + discount * len(same) / total * below


@settings(max_examples=25, deadline=None)
@given(
    text=st.lists(st.integers(0, 3), min_size=8, max_size=40),
    order=st.integers(1, 4),
    context=st.lists(st.integers(0, 4), min_size=3, max_size=3),
)
def test_kneser_ney_is_its_formula(text, order, context):
    grams = NGrams(np.array(text), 5, order)
    mine = grams.distribution(context)
    assert mine.sum() == pytest.approx(1) and mine.min() > 0
    assert mine == pytest.approx([brute(text, 5, order, context, one) for one in range(5)])
    assert grams.probability(np.array([*context, 0]))[-1] == pytest.approx(mine[0])


def test_a_bigram_of_independent_draws_costs_their_entropy():
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    ids = np.random.default_rng(0).choice(4, 200_000, p=shares)
    assert NGrams(ids[:150_000], 4, 2).bits(ids[150_000:]) == pytest.approx(1.75, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(text=st.lists(st.integers(0, 3), min_size=1, max_size=40), order=st.integers(0, 4))
def test_ppm_charges_probabilities(text, order):
    costs = PPM(6, order).read(text)
    before = PPM(6, order)
    before.read(text[:-1])
    shares = before.distribution(text[:-1])
    assert shares.sum() == pytest.approx(1) and shares.min() > 0
    assert 2 ** -costs[-1] == pytest.approx(shares[text[-1]])


def test_baselines_beside_the_compressors():
    text = write(LANGUAGES["english"], 40_000, np.random.default_rng(0))
    tokenizer = CharacterTokenizer.train([text])
    ids = np.array(tokenizer.encode(text))
    found = baselines(ids[:36_000], ids[36_000:], tokenizer.size) | compressed(text[:36_000], text[36_000:])
    assert found["uniform"] == pytest.approx(math.log2(tokenizer.size))
    assert rate(LANGUAGES["english"]) < found["PPM, order 5"] < found["xz"] < found["1-gram"] < found["uniform"]
    assert compressed("", "a" * 10_000)["xz"] < 0.2
    with pytest.raises(ValueError, match="empty text"):
        compressed("abc", "")


# Scores


def test_scores_are_their_formulas():
    lists = (frozenset({"of"}), ("red hat",))
    one = scores("The hat of it was painted xy.", lists)
    assert one["coherence"] == pytest.approx(
        (100 - 200 * abs(22 / 29 - 0.75) + 100 - 500 * abs(6 / 29 - 0.15) + 100 - 1000 * abs(1 / 29 - 0.05)) / 3
    )
    assert (one["word formation"], one["structure"], one["meaning"]) == (pytest.approx(200 / 7), 60, 0)
    assert one["overall"] == pytest.approx(np.mean([one[name] for name in SCORES]))
    assert scores("abcdefgh1 abcdefgh1", lists)["word formation"] == 90  # two long words that are not all letters
    assert scores("a red hat now", lists)["meaning"] == 25
    assert scores("red hat " * 90, lists)["meaning"] == 100
    assert scores("aa aaaa aa aaaa", lists)["diversity"] == pytest.approx((75 + 10) / 2)
    assert scores("The cat. Dogs!", lists)["structure"] == pytest.approx((20 + 0) / 2)
    with pytest.raises(ValueError, match="no word"):
        scores("?!", lists)


def test_the_yardstick_lists_the_commonest():
    words, phrases = yardstick("the cat sat. The cat ran. the dog sat", words=3, phrases=2)
    assert words == {"the", "cat", "sat"} and phrases == ("the cat", "cat ran")


def test_each_score_is_blind_as_the_notebook_says():
    rng = np.random.default_rng(0)
    real, other = write(LANGUAGES["english"], 4000, rng), write(LANGUAGES["english"], 4000, rng)
    lists, shuffled = yardstick(other), " ".join(rng.permutation(real.split()))
    letters = "".join(rng.permutation(list(real)))
    assert trigram_cosine(shuffled, other) > 0.9 * trigram_cosine(real, other)
    assert scores(letters, lists)["coherence"] == pytest.approx(
        scores(real, lists)["coherence"]
    )  # order does not count at all
    assert scores("aaaa bbbb", lists)["word formation"] == 100
    assert scores("The xed foo. " * 9, lists)["structure"] == 60
    assert scores("Léo perd la clé dorée ici.", lists)["structure"] < 60
    assert faults(LANGUAGES["english"], real)[1] == [] and len(faults(LANGUAGES["english"], shuffled + "\n")[1]) == 1


def test_trigram_cosine_by_hand():
    assert trigram_cosine("abcabc", "abc") == pytest.approx(100 * 2 / math.sqrt(6))
    assert trigram_cosine("a\nb", "a b") == pytest.approx(100)
    with pytest.raises(ValueError):
        trigram_cosine("ab", "abc")


@settings(max_examples=80, deadline=None)
@given(sample=st.text("abc", min_size=1, max_size=25), text=st.text("abc", max_size=40))
def test_copying_is_brute_force(sample, text):
    runs = [
        max((n for n in range(len(sample) - i + 1) if sample[i : i + n] in text), default=0) for i in range(len(sample))
    ]
    found = copying(sample, text)
    assert (
        found.longest == max(runs)
        and found.mean == pytest.approx(np.mean(runs))
        and found.where in text
        and len(found.where) == found.longest
    )


@settings(max_examples=80, deadline=None)
@given(st.text("ab", max_size=14))
def test_the_longest_run_is_brute_force(text):
    best = min(1, len(text))
    for unit in range(1, len(text) // 2 + 1):
        for start in range(len(text) - 2 * unit + 1):
            end = start + unit
            while end < len(text) and text[end] == text[end - unit]:
                end += 1
            best = max(best, end - start if end - start >= 2 * unit else 0)
    assert longest_run(text) == best


def test_repetition_counts_pieces_that_stood_before():
    assert repetition("abcabcabc", 3) == 4 / 7 and repetition("abcdef", 3) == 0
    assert known_words("Ada zorp", "ada finds", np.random.default_rng(0), 100).value == 0.5
    with pytest.raises(ValueError):
        repetition("ab", 3)


def test_bands_are_relative():
    counts = {"1-gram": 4.0, "2-gram": 3.0, "3-gram": 2.0, "6-gram": 1.0}
    said = [bands(bits, counts, 0.5) for bits in (4.5, 3.5, 2.5, 1.5, 0.8, 0.54)]
    assert len(set(said)) == 6 and said[0] == "has not learned the letters" and "floor" in said[-1]


# A model, judged


@pytest.fixture(scope="module")
def judged():
    text = write(LANGUAGES["english"], 6000, np.random.default_rng(0))
    tokenizer = CharacterTokenizer.train([text])
    ids = np.array(tokenizer.encode(text), dtype=np.uint16)
    arch = TextArch(
        hidden_size=32,
        num_heads=2,
        H_layers=1,
        L_layers=1,
        H_cycles=1,
        L_cycles=2,
        expansion=2,
        halt_max_steps=1,
        gradient="full",
    )
    return (
        build(arch, tokenizer.size, 24, seeded(0)).eval(),
        tokenizer,
        Book("english", ids[:4000], ids[4000:], tokenizer),
    )


def test_an_untrained_model_pays_about_the_alphabet(judged):
    model, tokenizer, book = judged
    bits = surprise_of(model, tokenizer, book, 12)
    estimate = mean_bits(bits, np.random.default_rng(0), 300)
    assert len(bits) == len(book.held_out) - 1
    assert estimate.low < estimate.value < estimate.high and abs(estimate.value - math.log2(tokenizer.size)) < 1.5
    assert estimate.value == pytest.approx(bits[: len(bits) // 256 * 256].mean())
    with pytest.raises(DataError, match="two blocks"):
        mean_bits(bits[:400], np.random.default_rng(0))


def test_a_sample_is_judged_beside_its_book(judged):
    from hrm.core.generate import Sampling

    model, tokenizer, book = judged
    text = sample(model, tokenizer, book, 150, Sampling(temperature=1.0), seeded(2))
    assert len(text) == 150 and not re.search("|".join(map(re.escape, SPECIALS)), text)
    assert sample(model, tokenizer, book, 150, Sampling(temperature=1.0), seeded(2)) == text
    mine, real = (
        judge(one, book, np.random.default_rng(0), LANGUAGES["english"], 100)
        for one in (text, book.text()[:600].split("\n", 1)[1])
    )
    assert (
        real["in the grammar"].value == 1
        and real["longest copy"] > mine["longest copy"]
        and real["known words"].value > mine["known words"].value
    )


def test_diagnoses_name_one_cause_each():
    counts = {"1-gram": 4.1, "2-gram": 3.2, "3-gram": 2.4, "6-gram": 1.0}
    healthy = vars(Symptoms(0.5, 0.0, 0.1, 0.1, 0.8, 100, 100))
    assert diagnose(Symptoms(**healthy), counts, 0.48) == []
    for change, word in (
        ({"bits": 3.0}, "too little"),
        ({"bits": 0.1, "moved": 2.0}, "sees the future"),
        ({"bits": 0.1}, "below the floor"),
        ({"temperature": 2.0}, "unlikely"),
        ({"repetition": 0.9, "temperature": 0.0}, "repeats itself"),
        ({"length": 10}, "ended after 10"),
    ):
        ((cause, help_),) = diagnose(Symptoms(**healthy | change), counts, 0.48)
        assert word in cause and help_


def test_memory_of_a_step_grows_with_the_batch_alone(judged):
    model, tokenizer, book = judged
    one, two, four = (kept_bytes(model, rows, 24) for rows in (2, 4, 8))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)
    import torch

    rows = torch.as_tensor(book.train[: 4 * 25].astype(np.int64)).view(4, 25)
    assert largest_gradient_change(model, rows) < 1e-5
    assert zipf(5).sum() == pytest.approx(1)
