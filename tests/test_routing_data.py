"Lists that cannot be seen whole: the task, the exact posterior, the ceiling, the measures, the files."

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from scipy.stats import kendalltau, spearmanr

from hrm.core.config import ConfigError, section, validate
from hrm.routing.data import (
    BASELINES,
    PARTS,
    DataConfig,
    SetConfig,
    baselines,
    best_order,
    build,
    ceiling,
    draw,
    greedy_order,
    index_tau,
    metrics,
    rank_posterior,
    rank_tau,
    ranks_of,
    reachable,
    read,
    visible_count,
    worlds,
)


def lists_of(rows, length, rate, seed=0, grid=0):
    return draw(rows, length, rate, np.random.default_rng(seed), grid)


def counted(said, ranks) -> Fraction:
    "Kendall's tau by going through the pairs."
    pairs = list(itertools.combinations(range(len(said)), 2))
    right = sum((said[i] < said[j]) == (ranks[i] < ranks[j]) for i, j in pairs)
    return Fraction(2 * right - len(pairs), len(pairs))


# --- measures


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 12).flatmap(
        lambda n: st.tuples(
            st.permutations(range(n)), st.permutations(range(n)), st.lists(st.booleans(), min_size=n, max_size=n)
        )
    )
)
def test_measures_are_counts(drawn):
    said, ranks, visible = (np.array(one)[None] for one in drawn)
    found = metrics(said, ranks, visible)
    assert found["tau"][0] == pytest.approx(float(counted(said[0], ranks[0])), abs=1e-12)
    assert found["tau"][0] == pytest.approx(kendalltau(said[0], ranks[0]).statistic, abs=1e-12)
    seen = visible[0]
    inner = float(counted(said[0][seen], ranks[0][seen])) if seen.sum() > 1 else 1.0
    assert found["visible_tau"][0] == pytest.approx(inner, abs=1e-12)
    assert found["perfect_visible"][0] == (list(np.argsort(said[0][seen])) == list(np.argsort(ranks[0][seen])))
    assert found["accuracy"][0] == np.mean(said == ranks) and found["hamming"][0] == pytest.approx(
        np.mean(said != ranks)
    )
    assert found["perfect"][0] == (said == ranks).all()


def test_measures_depend_on_the_order_alone_and_ties_go_by_position():
    lists, scores = lists_of(40, 7, 0.5), np.random.default_rng(1).random((40, 7))
    plain, bent = (metrics(one, lists["ranks"], lists["visible"]) for one in (scores, np.exp(5 * scores)))
    assert all(np.array_equal(plain[name], bent[name]) for name in plain)
    assert ranks_of(np.zeros((1, 4))).tolist() == [[0, 1, 2, 3]]
    assert metrics(np.zeros((1, 4)), [[3, 2, 1, 0]], np.ones((1, 4), bool))["tau"][0] == -1


def test_measures_refuse_what_is_no_score():
    lists = lists_of(2, 5, 0.5)
    with pytest.raises(ValueError, match="not finite"):
        metrics(np.full((2, 5), np.nan), lists["ranks"], lists["visible"])
    with pytest.raises(ValueError, match=r"allowed: \[B, N\] three times"):
        metrics(np.zeros((2, 4)), lists["ranks"], lists["visible"])


def test_the_documents_measure_says_nothing_of_an_order():
    found = {}
    for n in (12, 20):
        lists = lists_of(3000, n, 0.5, n)
        found[n] = index_tau(lists["values"], lists["ranks"]).mean()
    assert found[12] == pytest.approx(0.086, abs=0.015) and found[20] == pytest.approx(0.052, abs=0.012)  # of 0.5


# --- the lists


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.floats(0, 1), st.sampled_from([0, 30, 200]), st.integers(0, 99))
def test_lists_show_what_they_should(length, rate, grid, seed):
    lists = lists_of(5, length, rate, seed, grid)
    k = visible_count(length, rate)
    assert 2 <= k <= length and (k == 2 or k <= length * (1 - rate) + 1e-9 < k + 1)
    assert (
        (lists["visible"].sum(1) == k).all()
        and (lists["values"][~lists["visible"]] == 0).all()
        and lists["values"].abs().max() <= 1
    )
    assert (lists["ranks"].sort(1).values == torch.arange(length)).all()
    for values, visible, ranks in zip(*lists.values()):
        assert (values[visible][ranks[visible].argsort()].diff() >= 0).all()


def test_the_same_seed_gives_the_same_lists_and_hides_evenly():
    first, again = lists_of(2000, 10, 0.3), lists_of(2000, 10, 0.3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (first["visible"].float().mean(0) - 0.7).abs().max() < 0.05  # every place is hidden as often
    assert (first["ranks"].float().mean(0) - 4.5).abs().max() < 0.3


# --- the ceiling


@pytest.mark.parametrize(
    "length,rate,expected",
    [
        (12, 0.5, 0.5),
        (16, 0.5, 0.5),
        (20, 0.5, 0.5),
        (24, 0.5, 0.5),
        (13, 0.5, 6 / 13),
        (12, 0.2, 0.75),
        (20, 0.2, 0.8),
        (12, 0.8, 1 / 6),
        (24, 0.8, 0.1739),
        (9, 0.0, 1.0),
    ],
)
def test_ceiling_in_closed_form(length, rate, expected):
    k = visible_count(length, rate)
    assert ceiling(length, rate) == pytest.approx((comb(k, 2) + k * (length - k) / 2) / comb(length, 2), abs=1e-12)
    assert ceiling(length, rate) == pytest.approx(expected, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 6), st.integers(2, 4), st.integers(0, 10_000))
def test_no_order_beats_the_median_rule(n, k, seed):
    k = min(k, n)
    rng = np.random.default_rng(seed)
    values, visible = rng.uniform(-1, 1, n), rng.permutation(n) < k
    values = np.where(visible, values, 0.0)
    _, best = best_order(values, visible)
    formula = (comb(k, 2) + (n - k) * abs(values[visible]).sum()) / comb(n, 2)  # |2u - 1| is |value|
    assert best == pytest.approx(formula, abs=1e-9)
    assert sum(p for _, p in worlds(values, visible)) == pytest.approx(1, abs=1e-9)
    assert sum(
        p * float(counted(ranks_of(values[None])[0], ranks)) for ranks, p in worlds(values, visible)
    ) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("grid,length,k", [(7, 4, 2), (6, 4, 3), (5, 5, 3), (8, 4, 2)])
def test_ceiling_on_a_grid_by_going_through_all_lists(grid, length, k):
    "Every choice of values, every way to hide; the best guess for each pair given what is seen."
    total, count = Fraction(0), 0
    for seen in itertools.permutations(range(grid), k):  # visible items hold these values
        left = [value for value in range(grid) if value not in seen]
        gain = (
            sum(abs(Fraction(2 * sum(other < value for other in left) - len(left), len(left))) for value in seen)
            if length > k
            else 0
        )
        total += (comb(k, 2) + (length - k) * gain) / Fraction(comb(length, 2))
        count += 1
    assert visible_count(length, 1 - k / length) == k
    assert ceiling(length, 1 - k / length, grid) == pytest.approx(float(total / count), abs=1e-12)


@pytest.mark.parametrize(
    "length,rate,greedy",
    [(12, 0.5, 0.40), (16, 0.5, 0.385), (20, 0.5, 0.375), (24, 0.5, 0.37), (12, 0.2, 0.65), (12, 0.8, 0.13)],
)
def test_simulation_agrees(length, rate, greedy):
    lists = lists_of(800, length, rate, 7)
    tau = {
        name: rank_tau(scores, lists["ranks"]) for name, scores in baselines(lists, np.random.default_rng(0)).items()
    }
    assert tuple(tau) == BASELINES
    error = tau["ceiling"].std() / np.sqrt(800)
    assert abs(tau["ceiling"].mean() - ceiling(length, rate)) < 4 * error
    assert abs(tau["greedy pointer"].mean() - greedy) < 4 * error + 0.005
    assert -0.001 < tau["ceiling"].mean() - tau["expected rank"].mean() < 0.01
    assert abs(tau["chance"].mean()) < 4 * error


# --- the posterior


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 10_000))
def test_posterior_and_greedy_order_by_all_worlds(n, k, seed):
    k = min(k, n)
    rng = np.random.default_rng(seed)
    visible = rng.permutation(n) < k
    values = np.where(visible, rng.uniform(-1, 1, n), 0.0)
    exact, known = rank_posterior(values[None], visible[None])[0], list(worlds(values, visible))
    assert np.allclose(exact.sum(0), 1) and np.allclose(exact.sum(1), 1)
    assert np.allclose(exact, sum(p * np.eye(n)[ranks] for ranks, p in known), atol=1e-9)
    order, left = [], [(np.argsort(ranks), p) for ranks, p in known]
    for place, item in enumerate(greedy_order(values, visible)):
        share = [sum(p for o, p in left if o[place] == other) for other in range(n)]
        assert share[item] >= max(share) - 1e-9  # the likeliest, given what was named before
        left = [(o, p) for o, p in left if o[place] == item]
        order.append(item)
    assert sorted(order) == list(range(n))


def test_posterior_says_nothing_of_lists_that_differ():
    values, visible = np.zeros((2, 4)), np.array([[True, True, False, False], [True, True, True, False]])
    with pytest.raises(ValueError, match="different numbers of visible items"):
        rank_posterior(values, visible)


def test_expected_ranks_order_like_the_values_do():
    lists = lists_of(200, 14, 0.4, 3)
    expected = baselines(lists, np.random.default_rng(0))["expected rank"]
    for scores, values, visible in zip(expected, lists["values"].numpy(), lists["visible"].numpy()):
        assert spearmanr(scores[visible], values[visible]).statistic == pytest.approx(1)
        assert np.ptp(scores[~visible]) < 1e-9


# --- files and the section

SETS = {
    "main": {"length": 8, "mask_rate": 0.5, "train": 30, "dev": 6},
    "long": {"length": 16, "mask_rate": 0.5, "test": 5},
}


def test_sets_are_written_read_and_the_same_again(tmp_path):
    config = validate({"seed": 3, "sets": SETS}, DataConfig)
    facts = build(config, tmp_path / "a")
    build(config, tmp_path / "b")
    assert facts["main"] == {
        "train": 30,
        "dev": 6,
        "test": 0,
        "length": 8,
        "visible": 4,
        "mask_rate": 0.5,
        "ceiling": 0.5,
    }
    for file in sorted((tmp_path / "a").rglob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
    train, dev = read(tmp_path / "a", "main", "train"), read(tmp_path / "a", "main", "dev")
    assert len(train["ranks"]) == 30 and not set(map(bytes, train["values"].numpy())) & set(
        map(bytes, dev["values"].numpy())
    )
    more = build(validate({"seed": 3, "sets": SETS | {"more": SETS["main"]}}, DataConfig), tmp_path / "c")
    assert torch.equal(read(tmp_path / "c", "main", "train")["values"], train["values"]) and set(more) == {
        "main",
        "long",
        "more",
    }
    found = reachable(read(tmp_path / "a", "long", "test"), np.random.default_rng(0))
    assert set(found) == {*BASELINES, "ceiling by positions"}


def test_reading_says_what_is_wrong(tmp_path):
    build(validate({"seed": 0, "sets": SETS}, DataConfig), tmp_path)
    with pytest.raises(
        ConfigError,
        match="main/test.safetensors: no such lists; found: long/test, main/dev, main/train; make them with",
    ):
        read(tmp_path, "main", "test")
    (tmp_path / "main" / "train.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="damaged or not a safetensors file"):
        read(tmp_path, "main", "train")
    lists = lists_of(3, 4, 0.5)
    for change, says in (
        ({"values": torch.zeros(3, 5)}, r"found shapes \(3, 4\), \(3, 5\)"),
        ({"ranks": lists["ranks"] % 3}, "ranks that are no order; allowed: each of 0 to 3 once"),
    ):
        (tmp_path / "main" / "dev.safetensors").write_bytes(save(lists | change))
        with pytest.raises(ConfigError, match=says):
            read(tmp_path, "main", "dev")


@pytest.mark.parametrize(
    "sets,says",
    [
        ({"s": {"length": 1, "mask_rate": 0.5, "train": 1}}, "sets.s.length: found 1"),
        ({"s": {"length": 9, "mask_rate": 1.5, "train": 1}}, "sets.s.mask_rate: found 1.5"),
        ({"s": {"length": 9, "mask_rate": 0.5, "grid": 8, "train": 1}}, "grid 8 with length 9"),
        ({"s": {"length": 9, "mask_rate": 0.5}}, "found no lists"),
        ({"s": {"length": 9, "mask_rate": 0.5, "trian": 4}}, "did you mean train"),
        ({}, "sets: found {}"),
    ],
)
def test_a_wrong_section_is_refused(sets, says):
    with pytest.raises(ConfigError) as error:
        validate({"seed": 0, "sets": sets}, DataConfig)
    assert says in str(error.value)


def test_a_crowded_grid_is_refused_before_anything_is_written(tmp_path):
    config = DataConfig(seed=0, sets={"s": SetConfig(length=2, mask_rate=0.0, grid=3, train=20, dev=20)})
    with pytest.raises(ConfigError, match="sets.s: .* held-out lists look like lists of training"):
        build(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("profile", ["smoke", "laptop", "gpu"])
def test_profiles_have_the_sets_of_the_tests(profile):
    sets = section(profile, "routing.data", DataConfig).sets
    about = {(one.length, one.mask_rate) for one in sets.values() if one.test}
    assert {(12, 0.5), (16, 0.5), (20, 0.5), (24, 0.5), (12, 0.2), (12, 0.8)} <= about
    assert PARTS == ("train", "dev", "test")
