"""Planted judges: what scores claim comes true, and the label-noise ceiling covers the truth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from starling_nb.files import rng
from starling_nb.reward import calibration, metrics
from starling_nb.reward.comparisons import Comparison
from starling_nb.stats import Interval, wilson


def ranked(quality: np.ndarray, draw: np.random.Generator) -> list[Comparison]:
    """One Plackett-Luce ranking of each prompt's answers."""
    noisy = quality + draw.gumbel(size=quality.shape)
    ranks = 1.0 + np.argsort(np.argsort(-noisy, axis=1), axis=1)
    names = [f"m{i}" for i in range(quality.shape[1])]
    return [Comparison(f"c{n}", toy.user("why?"), names, names, row.tolist()) for n, row in enumerate(ranks)]


def table_of(gaps: list[float], prompts: list[str] | None = None) -> pd.DataFrame:
    right = 0.5 * (np.sign(gaps) + 1)
    return pd.DataFrame({"prompt_id": prompts or [str(n) for n in range(len(gaps))], "right": right, "gap": gaps})


def test_calibration_by_hand() -> None:
    low, high = math.log(0.7 / 0.3), math.log(9)  # claims of 0.7 and 0.9
    claim = 0.7
    found = calibration.calibration(table_of([low] * 3 + [-low, high, -high]), bins=2)
    assert found.bins[["start", "end"]].to_numpy().tolist() == [[0.5, 0.75], [0.75, 1.0]]
    assert found.bins.predicted.tolist() == pytest.approx([claim, 0.9])
    assert found.bins.value.tolist() == [0.75, 0.5]
    assert found.bins.pairs.tolist() == [4, 2]
    assert found.error == pytest.approx((4 * (0.75 - claim) + 2 * 0.4) / 6)


def test_the_slope_is_the_logistic_fit() -> None:
    gaps = [1.0, 1.0, 1.0, -1.0]  # right three times in four: sigmoid(slope) = 3/4
    slope = calibration.calibration(table_of(gaps)).slope
    assert slope is not None
    assert slope.value == pytest.approx(math.log(3))
    assert (slope.low + slope.high) / 2 == pytest.approx(slope.value)
    error = math.sqrt(4 / 3 * (3 * (1 / 4) ** 2 + (3 / 4) ** 2)) / (4 * 3 / 16)
    assert slope.high - slope.value == pytest.approx(1.959964 * error)
    twice = calibration.calibration(table_of(gaps * 2, [*"abcd"] * 2)).slope
    assert twice is not None
    assert (twice.value, twice.low, twice.n) == (pytest.approx(slope.value), pytest.approx(slope.low), 4)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_a_planted_scale_is_found(scale: float) -> None:
    covered, right_bins, errors = 0, [], []
    for seed in range(20):
        draw = rng(seed, "test")
        quality = draw.normal(0, 1.5, size=(150, 5))
        found = calibration.calibration(metrics.pairs(ranked(quality, draw), (scale * quality + 7).tolist()))
        assert found.slope is not None
        assert found.slope.high - found.slope.low < 0.4 / scale
        covered += found.slope.low < 1 / scale < found.slope.high
        right_bins += ((found.bins.low <= found.bins.predicted) & (found.bins.predicted <= found.bins.high)).tolist()
        errors.append(found.error)
    assert covered >= 17
    if scale == 1.0:
        assert np.mean(right_bins) > 0.85
        assert np.mean(errors) < 0.03
    else:
        assert np.mean(right_bins) < 0.6
        assert np.mean(errors) > 0.05


@pytest.mark.parametrize("gaps", [[0.0, 0.0], [1.0, 2.0], [-1.0, 0.0], [0.0, 3.0]])
def test_no_slope_where_none_fits(gaps: list[float]) -> None:
    found = calibration.calibration(table_of(gaps))
    assert found.slope is None
    assert not found.bins.isna().any().any()
    assert (found.bins.low <= wilson(1.0, 1)[0]).all() or gaps == [0.0, 0.0]  # one prompt in a bin says little
    assert 0 <= found.error <= 1


def test_calibration_of_nothing_is_refused() -> None:
    with pytest.raises(metrics.MetricError, match="at least one pair"):
        calibration.calibration(metrics.pairs([], []))
    with pytest.raises(metrics.MetricError, match="one bin"):
        calibration.calibration(table_of([1.0]), bins=0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_the_ceiling_lies_within_its_bounds(chances: list[float]) -> None:
    p = np.array(chances)
    agreement, best = float(np.mean(p**2 + (1 - p) ** 2)), float(np.mean(np.maximum(p, 1 - p)))
    found = calibration.ceiling(Interval(agreement, agreement, agreement, 1))
    assert found.least - 1e-9 <= best <= found.most + 1e-9
    assert found.least - 1e-9 <= found.value.value <= found.most + 1e-9


def test_the_bounds_are_reached() -> None:
    mixed = calibration.ceiling(Interval(0.8, 0.8, 0.8, 1))  # 3 in 5 pairs are certain, the others coin flips
    assert mixed.least == pytest.approx(3 / 5 + 2 / 5 / 2)
    p = 0.9
    even = calibration.ceiling(Interval(p**2 + (1 - p) ** 2, 0.5, 1.0, 1))
    assert even.most == pytest.approx(p)
    assert (even.value.low, even.value.high) == (0.5, pytest.approx(1.0))
    for agreement, best in ((0.5, 0.5), (0.3, 0.5), (1.0, 1.0)):
        found = calibration.ceiling(Interval(agreement, agreement, agreement, 1))
        assert [found.least, found.most, found.value.value] == pytest.approx([best] * 3)


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_the_estimate_covers_the_truth_of_a_planted_judge(spread: float) -> None:
    covered, widths, misses = 0, [], []
    for seed in range(20):
        draw = rng(seed, "test")
        quality = draw.normal(0, spread, size=(200, 5))
        truth = calibration.plackett_luce_ceiling(quality.tolist())
        found = calibration.ceiling(calibration.self_agreement([ranked(quality, draw), ranked(quality, draw)]))
        covered += found.value.low <= truth <= found.value.high
        widths.append(found.value.high - found.value.low)
        misses.append(found.value.value - truth)
    assert covered >= 17
    assert abs(np.mean(misses)) < 0.02
    assert np.mean(widths) < (0.15 if spread < 1 else 0.06)


def test_the_exact_ceiling_is_what_the_true_qualities_score() -> None:
    draw = rng(0, "test")
    quality = draw.normal(size=(400, 5))
    found = metrics.evaluate(ranked(quality, draw), quality.tolist())["pairwise_accuracy"]
    assert found.low < calibration.plackett_luce_ceiling(quality.tolist()) < found.high
    worse = metrics.evaluate(ranked(quality, draw), (quality + draw.normal(size=quality.shape)).tolist())
    assert worse["pairwise_accuracy"].high < calibration.plackett_luce_ceiling(quality.tolist())
    assert calibration.plackett_luce_ceiling([[0.0, math.log(3)], [5.0]]) == pytest.approx(0.75)


def test_self_agreement_by_hand() -> None:
    one = [Comparison("c", toy.user("why?"), ["x", "y", "z"], ["a", "b", "c"], [1.0, 2.0, 3.0])]
    turned, tied = [replace(one[0], ranks=[2.0, 1.0, 3.0])], [replace(one[0], ranks=[1.0, 1.0, 2.0])]
    assert calibration.self_agreement([one, turned]).value == pytest.approx(2 / 3)
    assert calibration.self_agreement([one, tied]).value == pytest.approx(2.5 / 3)
    assert calibration.self_agreement([tied, one]).value == 1.0
    assert calibration.self_agreement([one, turned, turned]).value == pytest.approx(5 / 6)


def test_labels_that_do_not_belong_together_are_refused() -> None:
    one = [Comparison("c", toy.user("why?"), ["x", "y"], ["a", "b"], [1.0, 2.0])]
    for rankings in ([one, [replace(one[0], answers=["y", "x"])]], [one, []]):
        with pytest.raises(metrics.MetricError, match="different answers"):
            calibration.self_agreement(rankings)
    for rankings in ([one], [], [[replace(one[0], ranks=[1.0, 1.0])], one]):
        with pytest.raises(metrics.MetricError, match="two labellings"):
            calibration.self_agreement(rankings)
    for qualities in ([], [[1.0]], [[1.0, math.nan]]):
        with pytest.raises(metrics.MetricError, match="two answers"):
            calibration.plackett_luce_ceiling(qualities)
    with pytest.raises(metrics.MetricError, match="between 0 and 1"):
        calibration.ceiling(Interval(1.4, 1.3, 1.5, 9))


@pytest.mark.parametrize("place", [0, 1])
def test_an_unranked_answer_is_refused_in_either_labelling(place: int) -> None:
    whole = toy.comparisons((3,))
    lacking = [replace(whole[0], ranks=[1.0, float("inf"), 2.0])]
    both = [whole, whole]
    both[place] = lacking
    with pytest.raises(metrics.MetricError, match="unranked"):
        calibration.self_agreement(both)
