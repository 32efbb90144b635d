"""Accuracies by hand, and baselines that know nothing of content."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from starling_nb.files import rng
from starling_nb.reward import metrics
from starling_nb.reward.comparisons import Comparison


def comparison(ranks: list[float], words: list[int], prompt: str = "c") -> Comparison:
    """Answers of so many words; the responder's name tells the place."""
    answers = [" ".join(["word"] * n) for n in words]
    return Comparison(prompt, toy.user("why?"), answers, [f"m{i}" for i in range(len(ranks))], ranks)


def test_pairs_by_hand() -> None:
    table = metrics.pairs([comparison([2.0, 1.0, 3.0], [5, 2, 9])], [[0.5, 0.1, 0.5]])
    found = {(row.better, row.worse): (row.right, bool(row.adjacent)) for row in table.itertuples()}
    assert found == {(1, 0): (0.0, True), (1, 2): (0.0, False), (0, 2): (0.5, True)}
    first = table[(table.better == 1) & (table.worse == 2)].iloc[0]
    assert (first.responder_better, first.responder_worse) == ("m1", "m2")
    assert (first.length_better, first.length_worse) == (2, 9)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(-2, 2), st.integers(0, 5)), min_size=1, max_size=6))
def test_pairs_are_those_of_the_plain_loop(answers: list[tuple[int, int, int]]) -> None:
    ranks, scores, words = (list(column) for column in zip(*answers, strict=True))
    table = metrics.pairs([comparison([float(r) for r in ranks], words)], [[float(s) for s in scores]])
    expected = {}
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] != ranks[j]:
            b, w = (i, j) if ranks[i] < ranks[j] else (j, i)
            near = not any(ranks[b] < rank < ranks[w] for rank in ranks)
            right = 1.0 if scores[b] > scores[w] else 0.5 if scores[b] == scores[w] else 0.0
            expected[b, w] = (near, right, scores[b] - scores[w], words[b], words[w], words[b] - words[w])
    columns = table[["adjacent", "right", "gap", "length_better", "length_worse", "gap_words"]]
    places = zip(table.better, table.worse, strict=True)
    assert dict(zip(places, columns.itertuples(index=False, name=None), strict=True)) == expected


def test_unranked_answers_lose_and_are_no_pair_of_their_own() -> None:
    item = comparison([math.inf, 1.0, math.inf, 2.0], [1, 1, 1, 1])
    table = metrics.pairs([item], [[1.0, 2.0, 3.0, 4.0]])
    assert sorted(zip(table.better, table.worse, strict=True)) == [(1, 0), (1, 2), (1, 3), (3, 0), (3, 2)]
    found = metrics.evaluate([item], [[0.0, 2.0, 0.0, 1.0]])
    assert found["pl_nll"].value == pytest.approx(math.log(math.e**2 + math.e + 2) - 2 + math.log(math.e + 2) - 1)
    assert (found["pairwise_accuracy"].value, found["top1"].value, found["kendall_tau"].value) == (1.0, 1.0, 1.0)


def test_equal_ranks_are_no_pair() -> None:
    table = metrics.pairs([comparison([1.0, 1.0, 2.0], [1, 1, 1])], [[1.0, 2.0, 3.0]])
    assert sorted(zip(table.better, table.worse, strict=True)) == [(0, 2), (1, 2)]


def test_a_perfect_scorer_and_its_opposite() -> None:
    comparisons = [comparison([2.0, 1.0, 3.0], [5, 2, 9], "a"), comparison([1.0, 2.0], [1, 2], "b")]
    right = metrics.evaluate(comparisons, [[2.0, 3.0, 1.0], [5.0, 4.0]])
    wrong = metrics.evaluate(comparisons, [[-2.0, -3.0, -1.0], [-5.0, -4.0]])
    for name in ("pairwise_accuracy", "adjacent_accuracy", "top1", "kendall_tau"):
        assert right[name].value == 1.0
        assert wrong[name].value == (-1.0 if name == "kendall_tau" else 0.0)
    assert right["pairwise_accuracy"].n == 2  # prompts, not pairs
    three = math.log1p(math.exp(-1) + math.exp(-2)) + math.log1p(math.exp(-1))
    assert right["pl_nll"].value == pytest.approx((three + math.log1p(math.exp(-1))) / 2)


def test_every_interval_counts_prompts_and_not_their_rows() -> None:
    told = [comparison([1, 2, 3], [4, 5, 6], prompt=f"p{i % 10}") for i in range(40)]
    found = metrics.evaluate(told, [[3.0, 2.0, 1.0 + i % 4] for i in range(40)])
    drift = metrics.length_drift(told, [[3.0, 2.0, 1.0 + i % 4] for i in range(40)])
    assert {name: figure.n for name, figure in (found | drift).items()} == dict.fromkeys([*found, *drift], 10)


def test_constant_scores_are_a_coin_and_a_tau_of_zero() -> None:
    found = metrics.evaluate([comparison([2.0, 1.0, 3.0, 4.0], [5, 2, 9, 9])], [[0.7] * 4])
    assert (found["pairwise_accuracy"].value, found["adjacent_accuracy"].value) == (0.5, 0.5)
    assert (found["top1"].value, found["kendall_tau"].value) == (0.25, 0.0)
    assert found["pl_nll"].value == pytest.approx(math.log(24))


def test_equal_ranks_enter_the_likelihood_by_efrons_rule_in_any_order() -> None:
    found = [
        metrics.evaluate([comparison(ranks, [1, 1, 1])], [scores])["pl_nll"].value
        for ranks, scores in (([1.0, 1.0, 2.0], [0.5, -0.3, 0.1]), ([2.0, 1.0, 1.0], [0.1, -0.3, 0.5]))
    ]
    tied, rest = math.exp(0.5) + math.exp(-0.3), math.exp(0.1)
    assert found == pytest.approx([math.log(tied + rest) + math.log(tied / 2 + rest) - 0.2] * 2)


def test_comparisons_that_prefer_nothing_are_left_out() -> None:
    told, tied, single = (
        comparison([1.0, 2.0], [1, 2], "a"),
        comparison([1.0, 1.0], [1, 2], "b"),
        comparison([1.0], [3]),
    )
    found = metrics.evaluate([tied, told, single], [[1.0, 2.0], [2.0, 1.0], [0.0]])
    assert found == metrics.evaluate([told], [[2.0, 1.0]])
    with pytest.raises(metrics.MetricError, match="nothing to measure"):
        metrics.evaluate([tied, single], [[1.0, 2.0], [0.0]])
    with pytest.raises(metrics.MetricError, match="cannot be fitted"):
        metrics.fit_surface([tied])
    empty = metrics.pairs([tied], [[1.0, 2.0]])
    assert list(empty.columns) == list(metrics.pairs([told], [[1.0, 2.0]]).columns)
    assert empty.empty
    assert metrics.length_matched(metrics.pairs([], [])).empty


@pytest.mark.parametrize(
    ("ranks", "scores", "match"),
    [
        ([1.0, 2.0], [[1.0, math.nan]], "c: a score is not finite"),
        ([1.0, 2.0], [[1.0, math.inf]], "c: a score is not finite"),
        ([1.0, math.nan], [[1.0, 2.0]], "a rank is NaN"),
        ([1.0, 2.0], [[1.0, 2.0, 3.0]], "2 answers but scores"),
        ([1.0, 2.0], [], "1 comparisons but 0 lists"),
    ],
)
def test_scores_that_cannot_be_read_are_refused(ranks: list[float], scores: list[list[float]], match: str) -> None:
    item = comparison(ranks, [1, 2])
    for figure in (metrics.pairs, metrics.evaluate, metrics.length_drift):
        with pytest.raises(metrics.MetricError, match=match):
            figure([item], scores)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=7))
def test_likelihoods_of_all_rankings_sum_to_one_for_two_and_are_shift_free(scores: list[float]) -> None:
    ranks = list(range(1, len(scores) + 1))
    nll = metrics._pl_nll(scores, ranks)
    assert nll >= -1e-9
    assert metrics._pl_nll([s + 7 for s in scores], ranks) == pytest.approx(nll, abs=1e-6)
    two = [metrics._pl_nll(scores[:2], order) for order in ([1, 2], [2, 1])]
    assert sum(math.exp(-x) for x in two) == pytest.approx(1.0)


def test_length_matched_pairs_are_of_like_length() -> None:
    table = metrics.pairs([comparison([1.0, 2.0, 3.0, 4.0], [10, 12, 13, 0])], [[4.0, 3.0, 2.0, 1.0]])
    kept = metrics.length_matched(table)
    assert sorted(zip(kept.better, kept.worse, strict=True)) == [(0, 1), (1, 2)]


def test_the_longest_answer_baseline() -> None:
    item = comparison([1.0, 2.0], [3, 8])
    assert metrics.longest(item) == [3.0, 8.0]
    assert metrics.evaluate([item], [metrics.longest(item)])["pairwise_accuracy"].value == 0.0


def test_surface_features_see_form_and_not_content() -> None:
    texts = ["I'm sorry, I can't help.", "- one\n- two", "why not", "Tea is nice."]
    item = Comparison("c", toy.user("why tea"), texts, ["a", "b", "c", "d"], [1.0, 2.0, 3.0, 4.0])
    found = metrics.surface(item)
    assert found.shape == (4, 5)
    assert found[:, 0] == pytest.approx(np.log1p([5, 4, 2, 3]))
    assert found[:, 1].tolist() == [1, 0, 0, 0]
    assert found[:, 2] == pytest.approx(np.log1p([0, 2, 0, 0]))
    assert found[:, 3] == pytest.approx([0, 0, 0.5, 1 / 3])
    assert found[:, 4].tolist() == [1, 0, 0, 1]


def test_the_surface_baseline_learns_what_form_tells_and_no_more() -> None:
    longer_wins = [comparison([2.0, 1.0, 3.0], [5 + n, 9 + n, 2 + n], f"c{n}") for n in range(8)]
    scorer = metrics.fit_surface(longer_wins)
    test = [comparison([1.0, 2.0], [30, 4], "t"), comparison([2.0, 1.0], [6, 7], "u")]
    assert metrics.evaluate(test, [scorer(c) for c in test])["pairwise_accuracy"].value == 1.0
    blind = scorer(comparison([1.0, 2.0], [5, 5]))
    assert blind[0] == pytest.approx(blind[1])


def world(prompts: int = 150, k: int = 7, taste: float = 0.0) -> tuple[list[Comparison], np.ndarray, np.ndarray]:
    """A Plackett-Luce judge of quality that also likes length by ``taste`` a doubling; qualities, log-2 words."""
    draw = rng(5, "test")
    quality, size = draw.normal(size=(prompts, k)), draw.normal(6, 1, size=(prompts, k)).round(1)
    words = np.round(2**size).astype(int)
    noisy = quality + taste * np.log2(words) + draw.gumbel(size=quality.shape)
    ranks = 1.0 + np.argsort(np.argsort(-noisy, axis=1), axis=1)
    items = [comparison(r.tolist(), w.tolist(), f"c{n}") for n, (r, w) in enumerate(zip(ranks, words, strict=True))]
    return items, quality, np.log2(words)


def test_drift_by_hand() -> None:
    items = [comparison([1.0, 2.0, 3.0], [2, 4, 8], "a"), comparison([1.0, 2.0], [16, 2], "b")]
    found = metrics.length_drift(items, [[1.0, 2.0, 6.0], [9.0, 8.0]])
    x, z = np.array([-1, 0, 1, 1.5, -1.5]), np.array([-2, -1, 3, 0.5, -0.5])
    assert found["slope"].value == pytest.approx((x @ z) / (x @ x) / z.std())
    assert found["correlation"].value == pytest.approx((x @ z) / math.sqrt((x @ x) * (z @ z)))
    assert found["slope"].n == 2


@pytest.mark.parametrize("planted", [0.0, 0.3, -0.6])
def test_a_planted_drift_is_found(planted: float) -> None:
    items, quality, size = world()
    found = metrics.length_drift(items, (quality + planted * size + 100).tolist())
    spread = math.sqrt(1 + planted**2)
    assert found["slope"].low < planted / spread < found["slope"].high
    assert found["correlation"].low < planted / spread < found["correlation"].high
    assert found["slope"].high - found["slope"].low < 0.2
    if planted:
        assert found["slope"].low * found["slope"].high > 0


def test_drift_of_constant_scores_and_of_equal_lengths() -> None:
    items = [comparison([1.0, 2.0], [3, 8], "a"), comparison([1.0, 2.0], [5, 5], "b"), comparison([1.0], [4], "d")]
    flat = metrics.length_drift(items, [[0.1, 0.1], [0.3, 0.3], [2.0]])
    assert [vars(x) for x in flat.values()] == [{"value": 0.0, "low": 0.0, "high": 0.0, "n": 3}] * 2
    with pytest.raises(metrics.MetricError, match="one length"):
        metrics.length_drift(items[1:], [[0.3, 0.4], [2.0]])


def test_length_alone_is_worth_a_half_and_quality_keeps_its_accuracy() -> None:
    items, quality, size = world(taste=1.0)
    raw = {}
    for name, scores in (("long", size), ("short", -size), ("cubed", size**3), ("steps", np.floor(size / 2))):
        table = metrics.pairs(items, scores.tolist())
        raw[name] = table.right.mean()
        found = metrics.length_controlled(table)
        if name == "steps":  # says something in some pairs only, and more often where lengths are far apart
            assert abs(found.value - 0.5) < 0.02
        else:
            assert found.value == found.low == found.high == 0.5
    assert raw["long"] > 0.65
    assert raw["short"] < 0.35
    items, quality, _ = world()
    table = metrics.pairs(items, quality.tolist())
    found = metrics.length_controlled(table)
    assert table.right.mean() > 0.7
    assert found.low < table.right.mean() < found.high
    assert abs(found.value - table.right.mean()) < 0.01


def test_length_control_takes_off_what_length_added() -> None:
    items, quality, size = world(taste=1.0)
    knows, mixed = (metrics.pairs(items, s.tolist()) for s in (quality, quality + size))
    assert mixed.right.mean() > knows.right.mean() + 0.05
    gap = metrics.length_controlled(mixed).value - metrics.length_controlled(knows).value
    assert gap < 0.5 * (mixed.right.mean() - knows.right.mean())


def test_length_control_by_hand() -> None:
    items = [
        comparison([1.0, 2.0], [40, 10], "a"),  # far, longer better
        comparison([1.0, 2.0], [44, 11], "b"),
        comparison([1.0, 2.0], [10, 40], "d"),  # far, shorter better
        comparison([1.0, 2.0], [7, 7], "e"),  # equal
        comparison([1.0, 2.0], [10, 11], "f"),  # near, but nothing to match it
    ]
    scores = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    found = metrics.length_controlled(metrics.pairs(items, scores))
    assert found.value == pytest.approx((2 / 3 * 0.75 + 1 / 4 * 0.0) / (2 / 3 + 1 / 4))
    assert found.n == 5
    for hopeless in (items[:2], items[2:3], []):
        with pytest.raises(metrics.MetricError, match="length cannot be held fixed"):
            metrics.length_controlled(metrics.pairs(hopeless, scores[: len(hopeless)]))


def test_thirty_answers_a_prompt_are_read_at_once() -> None:
    items, quality, _ = world(prompts=100, k=30)
    table = metrics.pairs(items, quality.tolist())
    assert len(table) == 100 * 435
    assert table.groupby("prompt_id").adjacent.sum().eq(29).all()
