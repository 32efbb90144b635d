"""The monitor finds planted peaks within their interval and stays silent where none is, counted over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.overoptimization import fits as goodhart_fits
from starling_nb.evaluation.overoptimization import goodhart
from starling_nb.evaluation.overoptimization.fits import Form
from starling_nb.policy.offline.baselines import best_of_n_kl

D = np.sqrt([best_of_n_kl(n) for n in (2, 4, 8, 16, 32, 64)])
FORMS = ("best_of_n", "rl")


def gains(form: Form, alpha: float, beta: float, prompts: int = 30, noise: float = 0.0) -> np.ndarray:
    """Gains of prompts about a planted curve."""
    steps = np.random.default_rng(0).normal(size=(prompts, len(D)))
    curve: np.ndarray = goodhart_fits.basis(form, D) @ np.array([alpha, beta]) + noise * steps
    return curve


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("alpha", "beta"), [(1.6, 0.8), (0.4, -0.2), (-1.0, 0.5), (1.2, 0.9)])
def test_without_noise_the_planted_numbers_come_back(form: Form, alpha: float, beta: float) -> None:
    found = goodhart_fits.fit(form, D, gains(form, alpha, beta))
    assert (found.alpha.value, found.beta.value) == (pytest.approx(alpha), pytest.approx(beta))
    assert found.at(D) == pytest.approx(gains(form, alpha, beta)[0])
    assert found.alpha.low == pytest.approx(alpha)
    assert (found.seen, found.alpha.n) == (D[-1], 30)


@given(st.sampled_from(FORMS), st.floats(-3, 3), st.floats(-3, 3), st.floats(0.3, 4))
def test_the_peak_is_the_highest_place_of_a_fine_grid(form: Form, alpha: float, beta: float, seen: float) -> None:
    grid = np.linspace(1e-9, seen, 4001)
    heights = goodhart_fits.basis(form, grid) @ np.array([alpha, beta])
    peak = float(goodhart_fits.peaks(form, alpha, beta, seen))
    top = float((goodhart_fits.basis(form, [max(peak, 1e-9)]) @ np.array([alpha, beta]))[0])
    assert 0 <= peak <= seen
    assert top >= heights.max() - 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_inner_peaks_are_the_published_ones_and_the_slope_is_the_derivative(form: Form) -> None:
    due = 1.6 / 1.6 if form == "best_of_n" else math.exp(1.6 / 0.8 - 1)
    assert float(goodhart_fits.peaks(form, 1.6, 0.8, 10.0)) == pytest.approx(due)
    step = 1e-6
    low, high = (goodhart_fits.basis(form, [d]) @ np.array([1.6, 0.8]) for d in (1.3 - step, 1.3 + step))
    assert float(goodhart_fits.slopes(form, 1.6, 0.8, 1.3)) == pytest.approx(
        float((high - low)[0]) / (2 * step), abs=1e-6
    )


def test_a_turn_needs_a_slope_and_a_measured_fall() -> None:
    turned = goodhart_fits.stop("best_of_n", D, gains("best_of_n", 1.6, 0.8, noise=0.3))
    assert turned.verdict == "turned"
    assert turned.point is not None
    assert turned.point.low <= 1.0 <= turned.point.high
    assert str(turned).startswith("stop at √KL = 1.0")
    rising = goodhart_fits.stop("best_of_n", D, gains("best_of_n", 0.5, 0.0, noise=0.3))
    assert (rising.verdict, rising.point, str(rising)) == ("none", None, f"none up to √KL = {D[-1]:.2f}")
    # A curve that levels off bends every parabola down, and yet nothing was ever lost.
    level = np.minimum(D, 0.6) + 0.02 * np.random.default_rng(1).normal(size=(60, len(D)))
    flat = goodhart_fits.stop("best_of_n", D, level)
    assert flat.fit.slope.high < 0
    assert flat.verdict == "none"


def test_falling_from_the_start_stops_at_the_start() -> None:
    found = goodhart_fits.stop("best_of_n", D, gains("best_of_n", -0.5, 0.1, noise=0.2))
    assert found.verdict == "turned"
    assert found.fit.peak.value == 0.0
    assert found.fall.value < -0.5


def test_few_prompts_say_nothing() -> None:
    found = goodhart_fits.stop("best_of_n", D, gains("best_of_n", 1.6, 0.8, prompts=goodhart_fits.LEAST - 1))
    assert (found.verdict, found.point, str(found)) == ("too few prompts", None, "too few prompts: 19 of 20")


def test_planted_worlds_are_told_apart() -> None:
    """Of 300 worlds without a peak at most 5 % are called turned, and the interval covers the peak of the others."""
    found = goodhart.planted(50, prompts=40)
    assert goodhart.false_alarms(found).n == 300
    assert goodhart.false_alarms(found).value < 0.05
    assert goodhart.coverage(found).value > 0.9
    peaked = found[found["shape"] == "peak"]
    assert (peaked.alarms > 0.9).all()
    assert goodhart.false_alarms(found).low < 0.025  # the nominal rate at the edge, where nothing has any effect


@pytest.mark.parametrize(
    ("d", "shape", "message"),
    [
        ([1.0], (5, 1), "two of each"),
        ([1.0, 2.0], (1, 2), "two of each"),
        ([1.0, 2.0], (5, 3), "prompts × points"),
        ([0.0, 2.0], (5, 2), "leave the start itself out"),
        ([2.0, 1.0], (5, 2), "has to grow"),
        ([1.0, math.nan], (5, 2), "has to grow"),
    ],
)
def test_points_that_make_no_curve_are_refused(d: list[float], shape: tuple[int, int], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        goodhart_fits.fit("rl", d, np.ones(shape))
    with pytest.raises(EvaluationError, match="no numbers"):
        goodhart_fits.fit("rl", [1.0, 2.0], [[1.0, math.nan], [1.0, 2.0]])
    with pytest.raises(EvaluationError, match="choose one of"):
        goodhart_fits.fit("sft", [1.0, 2.0], np.ones((3, 2)))  # type: ignore[arg-type]
