"""Accuracies by hand, and baselines that know nothing of content."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
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
