"""What a gain is made of: length, and what only the measure that was trained on sees.

Tables hold one row an answer (prompt_id, words, a column a measure), of the start model and of the tuned one on the
same prompts. Intervals (95 %) resample prompts, start and tuned together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.overoptimization import spread, whole
from starling_nb.files import rng
from starling_nb.stats import Interval, mean_interval, paired_difference

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Length:
    """A gain and its part from length.

    Attributes:
        gain: tuned − start, mean over prompts, in the measure's unit.
        growth: change of the logarithm of words.
        slope: what one unit of log words is paid between answers of one model to one prompt.
        at_equal_length: the gain less slope · growth.
        share: slope · growth as a share of the gain; None where the gain's interval holds 0.
    """

    gain: Interval
    growth: Interval
    slope: Interval
    at_equal_length: Interval
    share: Interval | None


def length(start: pd.DataFrame, tuned: pd.DataFrame, measure: str, seed: int = 0, draws: int = 2000) -> Length:
    """How much of a gain the growth of answers explains, at the rate at which the measure pays length by itself.

    The rate comes from answers of one model to one prompt, so that neither harder prompts nor the tuning itself are
    taken for an effect of length. It is an association: longer answers may be better ones.

    Raises:
        EvaluationError: the two sides hold different prompts, or no prompt has two answers of different length.
    """
    sums = _sums(start, tuned, measure)
    n = len(sums)
    weights = np.vstack([np.ones(n), rng(seed, "length").multinomial(n, np.full(n, 1 / n), draws)])
    totals = weights @ sums
    if (totals[0, 1] == 0) or n < 2:
        raise EvaluationError("no rate of length can be had: give several answers a prompt, and several prompts")
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = totals[:, 0] / totals[:, 1]
        gain, growth = totals[:, 2] / n, totals[:, 3] / n
        found = [_ends(x, n) for x in (gain, growth, slope, gain - slope * growth, slope * growth / gain)]
    known = found[0].low > 0 or found[0].high < 0
    return Length(found[0], found[1], found[2], found[3], found[4] if known else None)


def length_row(start: pd.DataFrame, tuned: pd.DataFrame, measure: str) -> dict[str, object]:
    """:func:`length` and :func:`at_matched_lengths` as one row of a table; NaN where a share means nothing.

    Columns: measure, and value, low and high of gain, at_equal_length, share and matched; matched_n, n.
    """
    found, nothing = length(start, tuned, measure), Interval(float("nan"), float("nan"), float("nan"), 0)
    try:
        matched = at_matched_lengths(start, tuned, measure)
    except EvaluationError:  # few answers, none alike: the other columns still say something
        matched = nothing
    parts = {"gain": found.gain, "at_equal_length": found.at_equal_length, "share": found.share or nothing}
    row: dict[str, object] = {"measure": measure}
    for name, value in {**parts, "matched": matched}.items():
        row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    return row | {"matched_n": matched.n, "n": found.gain.n}


def at_matched_lengths(start: pd.DataFrame, tuned: pd.DataFrame, measure: str, within: float = 0.1) -> Interval:
    """The gain between answers to one prompt whose numbers of words differ by at most ``within`` of the longer.

    Mean over the prompts that have such a pair; ``n`` counts them. It drops the prompts on which length moved most.

    Raises:
        EvaluationError: no prompt has such a pair.
    """
    gaps = []
    for before, after in _by_prompt(start, tuned, measure):
        words = np.maximum(before["words"].to_numpy()[:, None], after["words"].to_numpy()[None])
        apart = np.abs(before["words"].to_numpy()[:, None] - after["words"].to_numpy()[None])
        alike = apart <= within * words
        if alike.any():
            gap = after[measure].to_numpy()[None] - before[measure].to_numpy()[:, None]
            gaps.append(gap[alike].mean())
    if not gaps:
        raise EvaluationError(f"no two answers to a prompt are within {within:.0%} of each other: sample more")
    return mean_interval(gaps)


def private_gain(start: pd.DataFrame, tuned: pd.DataFrame, trained: str, others: Sequence[str]) -> pd.DataFrame:
    """The part of a gain that only the trained-on measure sees, each in SD of the start's answers to one prompt.

    Rows: ``trained``, each of ``others``, and ``only <trained>``: its gain less the mean gain of the others, paired by
    prompt. Columns: measure, value, low, high, n. A judge that pays its own taste, and a reward model that was gamed,
    show there; so does mere insensitivity of the others, whose gains therefore stand beside it.

    Raises:
        EvaluationError: no others, or as :func:`starling_nb.evaluation.overoptimization.spread`.
    """
    if not others:
        raise EvaluationError("a private gain needs another measure than the one trained on")
    names = [trained, *others]
    units = spread(start, names)
    before, after = (whole(side, names)[0].groupby("prompt_id")[names].mean() for side in (start, tuned))
    shared = before.index.intersection(after.index)
    gains = {name: ((after - before).loc[shared, name] / units[name]).to_numpy() for name in names}
    rows = [{"measure": name, **vars(mean_interval(gain))} for name, gain in gains.items()]
    rest = np.mean([gains[name] for name in others], axis=0)
    return pd.DataFrame([*rows, {"measure": f"only {trained}", **vars(paired_difference(gains[trained], rest))}])


def _by_prompt(start: pd.DataFrame, tuned: pd.DataFrame, measure: str) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    sides = [whole(side, [measure, "words"])[0] for side in (start, tuned)]
    if set(start.prompt_id) != set(tuned.prompt_id):
        raise EvaluationError("start and tuned answered other prompts: measure both on the same ones")
    before, after = (dict(iter(side.groupby("prompt_id", sort=True))) for side in sides)
    return [(before[id], after[id]) for id in before if id in after]


def _sums(start: pd.DataFrame, tuned: pd.DataFrame, measure: str) -> Floats:
    """A row a prompt: Σ xy, Σ xx of log words and measure about each model's own means, gain, growth."""
    rows = []
    for sides in _by_prompt(start, tuned, measure):
        x, y = ([f(side) for side in sides] for f in (lambda s: np.log1p(s["words"]), lambda s: s[measure]))
        xy = sum(float(((a - a.mean()) * (b - b.mean())).sum()) for a, b in zip(x, y, strict=True))
        xx = sum(float(((a - a.mean()) ** 2).sum()) for a in x)
        rows.append([xy, xx, y[1].mean() - y[0].mean(), x[1].mean() - x[0].mean()])
    return np.array(rows, dtype=np.float64)


def _ends(values: Floats, n: int) -> Interval:
    """The first as the value, the rest as its bootstrap."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high), n)
