"""Intervals and tests against exact values, scipy and simulated coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from starling_nb import files, stats
from starling_nb.stats import StatsError, clustered
from starling_nb.stats import interval as intervals


def test_mean_interval_matches_the_normal_theory() -> None:
    x = np.random.default_rng(0).normal(3, 2, 400)
    interval = stats.mean_interval(x)
    half = 1.96 * x.std(ddof=1) / 20
    assert interval.value == pytest.approx(x.mean())
    assert interval.n == 400
    assert interval.low == pytest.approx(x.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(x.mean() + half, abs=0.15 * half)


def test_repeating_each_observation_does_not_narrow_a_clustered_interval() -> None:
    x = np.random.default_rng(1).normal(size=60)
    once = stats.mean_interval(x)
    fivefold = stats.mean_interval(np.repeat(x, 5), clusters=np.repeat([f"p{i:02d}" for i in range(60)], 5))
    naive = stats.mean_interval(np.repeat(x, 5))
    assert (fivefold.low, fivefold.high, fivefold.n) == pytest.approx((once.low, once.high, 60))
    assert naive.high - naive.low < 0.6 * (once.high - once.low)


def test_coverage_with_uneven_clusters() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for trial in range(300):
        sizes = generator.integers(1, 8, 40)
        ids = np.repeat(np.arange(40), sizes)
        x = generator.normal(size=40)[ids] + generator.normal(size=len(ids)) + 5
        interval = stats.mean_interval(x, ids, seed=trial, draws=400)
        hits += interval.low <= 5 <= interval.high
    assert 0.90 <= hits / 300 <= 0.985


def test_few_clusters_are_covered() -> None:
    """Two values a cluster; 800 samples of each size, within what chance does to 93 to 97 %."""
    generator = np.random.default_rng(7)
    low, high = scipy_stats.binom.ppf(0.0005, 800, 0.93), scipy_stats.binom.ppf(0.9995, 800, 0.97)
    for clusters in (3, 8, 20):
        ids, hits = np.repeat(np.arange(clusters), 2), 0
        for _ in range(800):
            x = generator.normal(size=clusters)[ids] + generator.normal(size=2 * clusters)
            interval = stats.mean_interval(x, ids, seed=generator, draws=300)
            hits += interval.low <= 0 <= interval.high
        assert low <= hits <= high, clusters


def test_a_handful_of_clusters_gets_students_interval() -> None:
    x = np.array([1.0, 2.0, 4.0, 4.5])
    interval = stats.mean_interval(np.repeat(x, 3), np.repeat(list("abcd"), 3))
    expected = scipy_stats.t.interval(0.95, 3, x.mean(), x.std(ddof=1) / 2)
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_bounds_of_shares_stay_shares() -> None:
    interval = stats.mean_interval([1.0] * 11 + [0.0])
    assert 0 < interval.low < interval.value < interval.high == 1


def test_uneven_clusters_are_worth_fewer_degrees_of_freedom() -> None:
    assert clustered.freedom(np.ones(9)) == pytest.approx(8)
    assert clustered.freedom([100, 1, 1, 1, 1, 1, 1, 1, 1]) < 2
    assert clustered.enough(np.full(8, 5.0))
    assert not clustered.enough(np.full(7, 5.0))
    assert clustered.tails(np.ones(100_000)) == pytest.approx((0.025, 0.975), abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=12))
def test_freedom_and_variance_equal_their_definition_by_matrices(sizes: list[int]) -> None:
    """Bell and McCaffrey's, written out for a regression on a constant."""
    ids, n = np.repeat(np.arange(len(sizes)), sizes), sum(sizes)
    leave = np.eye(n) - 1 / n
    weights = []
    for number, size in enumerate(sizes):
        here = ids == number
        values, vectors = np.linalg.eigh(leave[np.ix_(here, here)])
        root = vectors @ np.diag(1 / np.sqrt(values)) @ vectors.T
        weights.append(leave[:, here] @ root @ np.ones(size) / n)
    crossed = np.array(weights) @ np.array(weights).T
    assert clustered.freedom(sizes) == pytest.approx(np.trace(crossed) ** 2 / (crossed**2).sum())
    y = np.random.default_rng(n).normal(size=n)
    error = clustered.standard_error(np.bincount(ids, y), np.array(sizes, dtype=float))
    assert error**2 == pytest.approx(sum((w @ y) ** 2 for w in weights))


def test_equal_input_gives_equal_intervals_and_seeds_matter() -> None:
    x = np.random.default_rng(3).normal(size=50)
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    assert stats.mean_interval(x, seed=4) == stats.mean_interval(x, seed=4)
    assert stats.mean_interval(x, seed=4) != stats.mean_interval(x, seed=5)
    assert stats.mean_interval(x, seed=np.random.default_rng(1)) == stats.mean_interval(
        x, seed=np.random.default_rng(1)
    )
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]


def test_blocks_of_draws_are_all_used(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stats.mean_interval(np.arange(30.0), draws=500)
    monkeypatch.setattr(intervals, "BLOCK", 30 * 64)
    assert stats.mean_interval(np.arange(30.0), draws=500) == whole


def test_one_unit_has_no_interval() -> None:
    interval = stats.mean_interval([2.0, 4.0], clusters=["a", "a"])
    assert interval.value == 3
    assert math.isnan(interval.low)
    assert interval.as_dict() == {"value": 3.0, "low": None, "high": None, "n": 1}


def test_paired_difference_cancels_what_pairs_share() -> None:
    generator = np.random.default_rng(4)
    shared = generator.normal(0, 10, 200)
    a, b = shared + 0.5 + generator.normal(0, 0.5, 200), shared + generator.normal(0, 0.5, 200)
    interval = stats.paired_difference(a, b)
    assert interval.low < 0.5 < interval.high
    assert interval.high - interval.low < 0.4


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.99))
def test_wilson_equals_scipy(kn: tuple[int, int], level: float) -> None:
    k, n = kn
    ours = stats.proportion_interval(k, n, level)
    theirs = scipy_stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_chi_square_of_the_published_naive_counts() -> None:
    chi2, p = stats.chi_square_uniform([61, 60, 34, 19, 9, 6, 6])
    assert chi2 == pytest.approx(127.754, abs=1e-3)
    reference = scipy_stats.chisquare([61, 60, 34, 19, 9, 6, 6])
    assert (chi2, p) == pytest.approx((reference.statistic, reference.pvalue))


def test_permutation_tests_against_exact_enumeration() -> None:
    a, b = np.array([1.2, 3.4, 2.2, 5.0]), np.array([0.3, 2.9, 1.0, 2.5])
    both, observed = np.concatenate([a, b]), a.mean() - b.mean()
    splits = [np.isin(np.arange(8), chosen) for chosen in itertools.combinations(range(8), 4)]
    exact = np.mean([abs(both[s].mean() - both[~s].mean()) >= abs(observed) - 1e-9 for s in splits])
    assert stats.permutation_test(a, b, draws=20_000) == pytest.approx(exact, abs=0.012)
    d = a - b
    signs = np.array(list(itertools.product([-1, 1], repeat=4)))
    exact_paired = np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-9)
    assert stats.permutation_test(a, b, paired=True, draws=20_000) == pytest.approx(exact_paired, abs=0.012)


def test_permutation_p_values_are_uniform_under_no_difference() -> None:
    generator = np.random.default_rng(6)
    p = [stats.permutation_test(generator.normal(size=12), generator.normal(size=9), draws=300) for _ in range(200)]
    assert scipy_stats.kstest(p, "uniform").pvalue > 0.001
    ids = np.repeat(np.arange(15), 4)
    clustered = [
        stats.permutation_test(generator.normal(size=15)[ids], np.zeros(60), paired=True, clusters=ids, draws=300)
        for _ in range(200)
    ]
    assert scipy_stats.kstest(clustered, "uniform").pvalue > 0.001


def test_unequal_groups_with_a_difference_are_told_apart() -> None:
    generator = np.random.default_rng(8)
    assert stats.permutation_test(generator.normal(1.5, 1, 30), generator.normal(0, 1, 80), draws=999) == 0.001


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=8))
def test_tau_b_against_its_definition(pairs: list[tuple[int, int]]) -> None:
    a, b = zip(*pairs, strict=True)
    two = list(itertools.combinations(range(len(a)), 2))
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in two]
    norm = math.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))
    tau = stats.kendall_tau(a, b)
    if norm == 0:
        assert math.isnan(tau)
    else:
        assert tau == pytest.approx(sum(x * y for x, y in signs) / norm)


def test_shares_of_clusters_are_worth_what_they_are_worth() -> None:
    hits = np.array([1, 0, 1, 1, 0, 0, 0, 1, 0, 0], dtype=float)
    alone = stats.share_interval(hits, np.arange(10))
    assert (alone.low, alone.high) == pytest.approx(stats.wilson(0.4, 10))
    copied = stats.share_interval(np.repeat(hits, 7), np.repeat(np.arange(10), 7))
    assert (copied.value, copied.low, copied.high, copied.n) == pytest.approx((0.4, alone.low, alone.high, 10))
    balanced = stats.share_interval(np.tile([0.0, 1.0], 30), np.repeat(np.arange(30), 2))  # each cluster one hit of two
    assert (balanced.low, balanced.high) == pytest.approx(stats.wilson(0.5, 60))
    assert stats.share_interval(np.zeros(40), np.repeat(np.arange(10), 4)).high == pytest.approx(stats.wilson(0, 10)[1])
    assert np.isnan(stats.share_interval(hits, np.zeros(10)).low)
    with pytest.raises(StatsError, match="values are empty"):
        stats.share_interval([], [])


def test_the_interval_of_a_clustered_share_covers_the_truth_as_often_as_it_says() -> None:
    generator, covered = files.rng(2, "coverage"), 0
    for _ in range(400):
        chance = generator.beta(1.2, 2.8, size=60)  # of each cluster; 0.3 on average
        hits = generator.random((60, 5)) < chance[:, None]
        found = stats.share_interval(hits.ravel(), np.repeat(np.arange(60), 5))
        covered += found.low <= 0.3 <= found.high
    assert 0.91 < covered / 400 < 0.985


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.floats(0.5, 0.99))
def test_the_share_of_independent_outcomes_has_wilsons_interval(hits: list[bool], level: float) -> None:
    wilson = stats.proportion_interval(sum(hits), len(hits), level)
    found = stats.share_interval(hits, level=level)
    assert (found.value, found.low, found.high, found.n) == pytest.approx(tuple(vars(wilson).values()), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.integers(0, 5)), min_size=2, max_size=40).filter(
        lambda rows: len({cluster for _, cluster in rows}) > 1
    )
)
def test_a_share_turned_round_has_its_interval_turned_round(rows: list[tuple[float, int]]) -> None:
    values, clusters = map(np.array, zip(*rows, strict=True))
    won, lost = stats.share_interval(values, clusters), stats.share_interval(1 - values, clusters)
    assert (lost.low, lost.high) == pytest.approx((1 - won.high, 1 - won.low), abs=1e-9)
    assert 0 <= won.low <= won.value <= won.high <= 1
    assert won.high > won.low


def test_ties_make_a_share_surer_and_all_ties_leave_it_open() -> None:
    votes = np.repeat([0.0, 1.0], 20)
    half = np.where(np.arange(40) % 2, votes, 0.5)
    width = {name: np.ptp(bounds(stats.share_interval(x))) for name, x in {"votes": votes, "half": half}.items()}
    assert 0.65 < width["half"] / width["votes"] < 0.75
    assert bounds(stats.share_interval(np.full(40, 0.5))) == pytest.approx(stats.wilson(0.5, 40))
    assert bounds(stats.share_interval(np.full(40, 0.5), np.arange(40) % 4)) == pytest.approx(stats.wilson(0.5, 4))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-1, -0.5, 0, 0.5, 1]), st.integers(0, 5)), min_size=2, max_size=40).filter(
        lambda rows: len({cluster for _, cluster in rows}) > 1
    ),
    st.floats(0.3, 0.99),
)
def test_a_change_turned_round_has_its_interval_turned_round(rows: list[tuple[float, int]], level: float) -> None:
    changes, clusters = map(np.array, zip(*rows, strict=True))
    gain, loss = stats.share_change(changes, clusters, level), stats.share_change(-changes, clusters, level)
    assert (loss.value, loss.low, loss.high) == pytest.approx((-gain.value, -gain.high, -gain.low))
    assert -1 <= gain.low <= gain.value <= gain.high <= 1
    assert gain.low < gain.high


def test_changes_repeated_in_a_cluster_are_worth_one() -> None:
    changes = files.rng(4, "changes").choice([-1.0, 0.0, 1.0], 30)
    alone = stats.share_change(changes)
    twice = stats.share_change(np.repeat(changes, 5), np.repeat(np.arange(30), 5))
    assert (twice.low, twice.high, twice.n) == pytest.approx((alone.low, alone.high, 30))
    same = stats.share_change(np.zeros(60))
    assert 0.03 < same.high == -same.low < 0.05
    assert np.isnan(stats.share_change([1.0, 0.0], ["a", "a"]).low)


def test_rare_changes_are_covered_as_often_as_said() -> None:
    """The plain bootstrap of 60 such changes held the truth in 81 % of samples: they often show none on one side."""
    generator, covered = files.rng(5, "coverage"), {200: 0, 60: 0}
    for n in covered:
        for _ in range(600):
            draw = generator.random(n)
            found = stats.share_change(np.where(draw < 0.03, 1.0, np.where(draw > 0.98, -1.0, 0.0)))
            covered[n] += found.low <= 0.01 <= found.high
    assert 0.93 < covered[200] / 600 < 0.98
    assert covered[60] / 600 > 0.93


def bounds(interval: stats.Interval) -> tuple[float, float]:
    return interval.low, interval.high


def test_win_rates_near_the_edge_are_covered_as_often_as_said() -> None:
    """The bootstrap of the same votes held the truth in 92.3 % of 5,000 samples."""
    generator, covered = files.rng(3, "coverage"), 0
    for _ in range(1500):
        wins = generator.random(20) < 0.9
        found = stats.share_interval(np.where(generator.random(20) < 0.2, 0.5, wins))
        covered += found.low <= 0.82 <= found.high
    assert 0.93 < covered / 1500 < 0.97


def test_bad_input_is_refused_with_a_reason() -> None:
    for call, match in [
        (lambda: stats.mean_interval([]), "empty"),
        (lambda: stats.mean_interval([1.0, math.nan]), "not finite"),
        (lambda: stats.mean_interval([1.0, 2.0], clusters=["a"]), "cluster ids"),
        (lambda: stats.paired_difference([1.0], [1.0, 2.0]), "equal lengths"),
        (lambda: stats.proportion_interval(3, 2), "0 <= k <= n"),
        (lambda: stats.proportion_interval(0, 0), "n > 0"),
        (lambda: stats.chi_square_uniform([0, 0]), "some data"),
        (lambda: stats.chi_square_uniform([3]), "two cells"),
        (lambda: stats.permutation_test([1.0], [1.0, 2.0], paired=True), "equal lengths"),
        (lambda: stats.permutation_test([1.0], [2.0], clusters=["a"]), "paired=True"),
        (lambda: stats.kendall_tau([1, 2], [1, 2, 3]), "equal length"),
        (lambda: stats.share_interval([1, 0], ["a"]), "one id a value"),
        (lambda: stats.share_interval([1.0, 1.5]), "from 0 to 1"),
        (lambda: stats.share_change([0.0, -1.5]), "from -1 to 1, got -1.5"),
    ]:
        with pytest.raises(StatsError, match=match):
            call()


@pytest.mark.parametrize(("runs", "of_runs"), [(1, 0.0), (3, 0.0), (3, 0.5), (6, 0.2)])
def test_crossed_intervals_cover_units_and_runs(runs: int, of_runs: float) -> None:
    """1,500 tables of 40 units: 95 % but for what chance does to 1,500, and for a percent of approximation."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(1500):
        table = draw.normal(0, 1, (40, 1)) + draw.normal(0, of_runs, (1, runs)) + draw.normal(0, 1, (40, runs))
        interval = stats.crossed_interval(table)
        found.append(interval.low <= 0 <= interval.high)
    assert 0.925 < np.mean(found) < 0.98


def test_a_crossed_interval_is_students_with_one_run_and_refuses_no_table() -> None:
    values = np.array([[1.0], [2.0], [4.0]])
    interval = stats.crossed_interval(values)
    half = scipy_stats.t.ppf(0.975, 2) * values.std(ddof=1) / 3**0.5
    assert (interval.low, interval.high) == pytest.approx((7 / 3 - half, 7 / 3 + half))
    assert stats.crossed_interval(np.ones((3, 3))).low == 1.0
    for wrong, said in (
        (np.ones(3), "two axes|table"),
        (np.ones((1, 3)), "two units"),
        (np.full((3, 3), np.nan), "finite"),
    ):
        with pytest.raises(StatsError, match=said):
            stats.crossed_interval(wrong)
