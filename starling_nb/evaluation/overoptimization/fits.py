"""The published curves of a gold score over divergence: fitted by least squares, with the place where they turn.

With d = √KL(policy ‖ start), in √nats, the gain over the start is d(α − βd) for the best of n answers and
d(α − β log d) for reinforcement learning (Gao, Schulman & Hilton 2023, arXiv 2210.10760). Both are linear in α and β:
the fit to the mean over prompts is the mean of the fits prompt by prompt, and a bootstrap over prompts only has to
average those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from scipy.stats import t as student

from starling_nb.evaluation import EvaluationError
from starling_nb.files import rng
from starling_nb.stats import Interval

Form = Literal["best_of_n", "rl"]
Floats = NDArray[np.float64]
FORMULAS = {"best_of_n": "d(α − βd)", "rl": "d(α − β log d)"}
LEAST = 20
"""Prompts below which nothing is said about a turn."""
RULE = (
    "turned: the fitted slope at the last point lies below 0 with its whole interval, and so does the measured change "
    "from the point next to the fitted peak to the last point"
)


@dataclass(frozen=True)
class Fit:
    """A fitted curve up to ``seen``, the largest d that was measured; intervals (95 %) over prompts.

    ``peak`` is the d between 0 and ``seen`` at which the curve is highest, ``slope`` its slope at ``seen``.
    """

    form: Form
    alpha: Interval
    beta: Interval
    peak: Interval
    slope: Interval
    seen: float

    def at(self, d: ArrayLike) -> Floats:
        """The fitted gain at d > 0."""
        found: Floats = basis(self.form, d) @ np.array([self.alpha.value, self.beta.value])
        return found


@dataclass(frozen=True)
class Stop:
    """What is said of a gold curve: fit, measured ``fall`` from the point next to the peak to the last, verdict.

    ``verdict`` is ``turned``, ``none`` or ``too few prompts``, by :data:`RULE` and :data:`LEAST`.
    """

    fit: Fit
    fall: Interval
    verdict: Literal["turned", "none", "too few prompts"]

    @property
    def point(self) -> Interval | None:
        """The stop point d*, √nats; None where nothing turned."""
        return self.fit.peak if self.verdict == "turned" else None

    def __str__(self) -> str:
        if self.verdict == "turned":
            d = self.fit.peak
            return f"stop at √KL = {d.value:.2f} [{d.low:.2f}, {d.high:.2f}]"
        if self.verdict == "none":
            return f"none up to √KL = {self.fit.seen:.2f}"
        return f"too few prompts: {self.fall.n} of {LEAST}"


def basis(form: Form, d: ArrayLike) -> Floats:
    """What α and β are multiplied with, ``[points, 2]``: d and −d², or d and −d log d."""
    x = np.asarray(d, dtype=np.float64)
    return np.stack([x, -x * (x if form == "best_of_n" else np.log(x))], axis=-1)


def fit(form: Form, d: ArrayLike, gains: ArrayLike, seed: int = 0, draws: int = 2000) -> Fit:
    """Fit a curve to gains over the start.

    Args:
        form: which curve.
        d: √KL of the points, √nats, growing, above 0 ``[points]``; the start itself, at 0, is not among them.
        gains: what each prompt gains over the start at each point ``[prompts, points]``.
        seed, draws: of the bootstrap over prompts.

    Raises:
        EvaluationError: fewer than two points or prompts, other shapes, a d that does not grow, or a gain that is no
            number.
    """
    x, y = _checked(form, d, gains)
    own = y @ np.linalg.pinv(basis(form, x)).T
    drawn = _resampled(own, seed, draws)
    seen = float(x[-1])
    alpha, beta = own.mean(0)
    return Fit(
        form,
        _interval(alpha, drawn[:, 0], len(y)),
        _interval(beta, drawn[:, 1], len(y)),
        _interval(peaks(form, alpha, beta, seen), peaks(form, drawn[:, 0], drawn[:, 1], seen), len(y)),
        _interval(slopes(form, alpha, beta, seen), slopes(form, drawn[:, 0], drawn[:, 1], seen), len(y)),
        seen,
    )


def stop(form: Form, d: ArrayLike, gains: ArrayLike, seed: int = 0, draws: int = 2000) -> Stop:
    """Whether a gold curve turned within what was measured, by :data:`RULE`; arguments and errors as :func:`fit`.

    The slope alone would call every curve that levels off a turn, because neither form can level off; the measured fall
    alone would be taken from the best of several noisy points. A curve that rises to the end fails the second test, one
    without any effect the first, each but for one time in forty.
    """
    found = fit(form, d, gains, seed, draws)
    x, y = _checked(form, d, gains)
    at = np.concatenate([[0.0], x[:-1]])
    before = np.concatenate([np.zeros((len(y), 1)), y[:, :-1]], axis=1)
    nearest = int(np.abs(at - found.peak.value).argmin())
    lost = y[:, -1:] - before[:, nearest : nearest + 1]
    fall = _interval(lost.mean(), _resampled(lost, seed, draws)[:, 0], len(y))
    if len(y) < LEAST:
        return Stop(found, fall, "too few prompts")
    return Stop(found, fall, "turned" if found.slope.high < 0 and fall.high < 0 else "none")


def peaks(form: Form, alpha: ArrayLike, beta: ArrayLike, seen: float) -> Floats:
    """Where the curve is highest between 0 and ``seen``: α / 2β, or exp(α / β − 1), or one of the ends.

    A curve that falls from the start on is highest at 0, one that still rises at ``seen``.
    """
    a, b = np.atleast_1d(np.asarray(alpha, dtype=np.float64)), np.atleast_1d(np.asarray(beta, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(b > 0, a / np.where(b > 0, b, 1.0), 0.0)
    inner = ratio / 2 if form == "best_of_n" else np.exp(np.minimum(ratio - 1, 700.0))
    inner = np.where(b > 0, np.clip(inner, 0.0, seen), seen)
    places = np.stack([np.zeros_like(inner), inner, np.full_like(inner, seen)])
    parts = basis(form, np.maximum(places, 1e-300))
    heights = parts[..., 0] * a + parts[..., 1] * b
    found: Floats = np.take_along_axis(places, heights.argmax(0)[None], 0)[0]
    return found if np.ndim(alpha) else found[0]


def slopes(form: Form, alpha: ArrayLike, beta: ArrayLike, d: float) -> Floats:
    """Slope of the curve at d: α − 2βd, or α − β (log d + 1)."""
    a, b = np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64)
    found: Floats = a - b * (2 * d if form == "best_of_n" else math.log(d) + 1)
    return found


def _checked(form: Form, d: ArrayLike, gains: ArrayLike) -> tuple[Floats, Floats]:
    if form not in FORMULAS:
        raise EvaluationError(f"form = {form!r}: choose one of {', '.join(FORMULAS)}")
    x, y = np.asarray(d, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    if x.ndim != 1 or y.ndim != 2 or y.shape[1] != len(x):
        raise EvaluationError(f"gains need the shape prompts × points, got {y.shape} for {x.size} points")
    if len(x) < 2 or len(y) < 2:
        raise EvaluationError(f"{len(x)} points and {len(y)} prompts: a curve needs two of each, or more")
    if not (np.isfinite(x).all() and x[0] > 0 and (np.diff(x) > 0).all()):
        raise EvaluationError("√KL has to grow from point to point, and begin above 0: leave the start itself out")
    if not np.isfinite(y).all():
        raise EvaluationError(f"{int((~np.isfinite(y)).sum())} gains are no numbers: leave those prompts out")
    return x, y


def _resampled(own: Floats, seed: int, draws: int) -> Floats:
    """Means of numbers of each prompt ``[prompts, k]`` over ``draws`` samples of prompts, with Student's width.

    A plain percentile bootstrap covers 92 % with twenty prompts: its spread lacks the factor √(n / (n − 1)), and its
    quantiles are the normal's.
    """
    n = len(own)
    counts = rng(seed, "curve").multinomial(n, np.full(n, 1 / n), draws) / n
    wide = math.sqrt(n / (n - 1)) * student.ppf(0.975, n - 1) / norm.ppf(0.975)
    found: Floats = own.mean(0) + wide * (counts @ own - own.mean(0))
    return found


def _interval(value: ArrayLike, drawn: Floats, n: int) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(value), float(low), float(high), n)  # type: ignore[arg-type]
