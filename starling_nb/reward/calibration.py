"""How far scores may be believed: whether their differences mean what they claim, and what noisy labels allow at best.

A judge that ranks the same answers twice does not agree with itself, so no scorer can be right on all of its labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special
from scipy import stats as scipy_stats

from starling_nb.reward.metrics import MetricError, pairs
from starling_nb.stats import Interval, share_interval

if TYPE_CHECKING:
    from starling_nb.reward.comparisons import Comparison

Floats = NDArray[np.float64]
WIDEST = 60.0
"""Spread of qualities, in logits, that counts as a judge without noise."""


@dataclass(frozen=True)
class Calibration:
    """What a score difference of ``gap`` claims, sigmoid(gap) for the higher-scored answer, against what came true.

    Attributes:
        bins: one row a filled bin: ``start, end, predicted`` (mean claim), ``value, low, high`` (share right;
            0 to 1 where one prompt fills the bin), ``pairs`` and ``n`` (prompts).
        error: expected calibration error, mean |share right - predicted| over pairs (Naeini et al. 2015); it cannot
            be negative, so that few pairs make it read high.
        slope: of a logistic fit of the labels on the score differences, without intercept: 1 is calibrated, below 1
            too sure. None where no finite slope fits: all pairs are right, all wrong, or all scores equal.
    """

    bins: pd.DataFrame
    error: float
    slope: Interval | None


def calibration(table: pd.DataFrame, bins: int = 5) -> Calibration:
    """Calibration of the pairs of :func:`pairs`, in ``bins`` of equal width from 0.5 to 1.

    Raises:
        MetricError: no pairs, or fewer than one bin.
    """
    if table.empty or bins < 1:
        raise MetricError("calibration needs at least one pair and one bin")
    claim = special.expit(table.gap.abs())
    index = np.minimum(((claim - 0.5) * 2 * bins).astype(int), bins - 1)
    rows = []
    for number, part in table.groupby(index):
        share, edge = share_interval(part.right, part.prompt_id), 0.5 + number / (2 * bins)
        predicted = float(claim[part.index].mean())
        span = {"start": edge, "end": edge + 0.5 / bins, "predicted": predicted}
        rows.append({**span, **vars(share), "pairs": len(part)})
    found = pd.DataFrame(rows).fillna({"low": 0.0, "high": 1.0})
    error = float(((found.value - found.predicted).abs() * found.pairs).sum() / found.pairs.sum())
    return Calibration(found, error, _logistic_slope(table.gap.to_numpy(), table.prompt_id))


def _logistic_slope(gap: Floats, prompt: pd.Series[Any]) -> Interval | None:
    """Maximum likelihood of ``right ~ sigmoid(slope * gap)``, with a normal interval clustered by prompt (sandwich)."""
    if gap.min() >= 0 or gap.max() <= 0:
        return None
    unit = float(np.sqrt(np.mean(gap**2)))
    x, bound = gap / unit, 8.0

    def pull(slope: float) -> float:
        return float(np.sum(x * special.expit(-slope * x)))

    while pull(bound) > 0 or pull(-bound) < 0:
        bound *= 2
    slope = float(optimize.brentq(pull, -bound, bound, xtol=1e-10))
    sums = np.bincount(np.unique(prompt, return_inverse=True)[1], weights=x * special.expit(-slope * x))
    if len(sums) == 1:
        return Interval(slope / unit, float("nan"), float("nan"), 1)
    curve = np.sum(x**2 * special.expit(slope * x) * special.expit(-slope * x))
    half = scipy_stats.norm.ppf(0.975) * np.sqrt(np.sum(sums**2) * len(sums) / (len(sums) - 1)) / curve
    return Interval(slope / unit, float(slope - half) / unit, float(slope + half) / unit, len(sums))


@dataclass(frozen=True)
class Ceiling:
    """The accuracy on one ranking's pairs that the best possible scorer reaches, from how often two rankings agree.

    Let p be the chance that a ranking puts answer i above j, independently in each ranking. Two rankings agree with
    probability E[p² + (1-p)²] = E[1 + d²] / 2, where d = |2p - 1|; a scorer that always names the likelier order is
    right with E[max(p, 1-p)] = E[1 + d] / 2. As 0 <= d <= 1, E[d²] <= E[d] <= sqrt(E[d²]), and E[d²] = 2a - 1.

    Attributes:
        agreement: a, the share of pairs on which two rankings agree.
        least: a. The ceiling if every pair is either certain or a coin flip.
        most: (1 + sqrt(2a - 1)) / 2. The ceiling if all pairs are equally noisy.
        value: the ceiling if the judge is a Plackett-Luce one whose qualities are normal within a prompt, with the
            same spread for all prompts; its interval is that of the agreement, carried over.
    """

    agreement: Interval
    least: float
    most: float
    value: Interval


def self_agreement(rankings: Sequence[Sequence[Comparison]]) -> Interval:
    """Share of pairs on which two independent rankings of the same answers agree, interval over prompts.

    Args:
        rankings: two or more labellings of the same comparisons, each in one order of answers. Of every labelling and
            the next, pairs that the first ties are left out, and those that the second ties count half.

    Raises:
        MetricError: fewer than two labellings, different answers, an unranked answer, or no strict pair.
    """
    found = []
    for one, other in pairwise(rankings):
        if [(c.prompt_id, c.answers) for c in one] != [(c.prompt_id, c.answers) for c in other]:
            raise MetricError("the labellings rank different answers, or list them in another order: align them first")
        if not all(math.isfinite(rank) for c in (*one, *other) for rank in c.ranks):
            raise MetricError("a labelling leaves an answer unranked: leave that comparison out")
        found.append(pairs(one, [[-rank for rank in c.ranks] for c in other]))
    if not found or (table := pd.concat(found)).empty:
        raise MetricError("self-agreement needs two labellings that prefer some answers to others")
    return share_interval(table.right, table.prompt_id)


def ceiling(agreement: Interval) -> Ceiling:
    """The label-noise ceiling of a judge, see :class:`Ceiling`.

    Args:
        agreement: share of pairs on which two rankings agree, from :func:`self_agreement`; or, without ties, (1 + tau)
            / 2 with the tau of :func:`starling_nb.bias.reliability.agreement`. Below a half counts as a half.

    Raises:
        MetricError: an agreement outside [0, 1].
    """
    if not 0 <= agreement.value <= 1:
        raise MetricError(f"an agreement lies between 0 and 1, got {agreement.value}: of a tau t, take (1 + t) / 2")
    noise_free = max(0.0, 2 * agreement.value - 1)
    value, low, high = (_normal_ceiling(x) for x in (agreement.value, agreement.low, agreement.high))
    point = Interval(value, low, high, agreement.n)
    return Ceiling(agreement, (1 + noise_free) / 2, (1 + math.sqrt(noise_free)) / 2, point)


def plackett_luce_ceiling(qualities: Sequence[Sequence[float]]) -> float:
    """The exact ceiling of a simulated Plackett-Luce judge: the chance that a label of a pair follows its qualities.

    In such a judge's ranking i precedes j with probability sigmoid(quality_i - quality_j), whatever else is ranked.

    Args:
        qualities: of the answers to each prompt, logits; every pair counts once.

    Raises:
        MetricError: a quality that is not finite, or no prompt with two answers.
    """
    gaps = [np.subtract.outer(q, q)[np.triu_indices(len(q), 1)] for q in map(np.asarray, qualities)]
    every = np.concatenate(gaps) if gaps else np.array([])
    if not len(every) or not np.isfinite(every).all():
        raise MetricError("the ceiling needs two answers to a prompt, and finite qualities")
    return float(special.expit(np.abs(every)).mean())


def _normal_ceiling(agreement: float) -> float:
    """The ceiling of a Plackett-Luce judge whose quality differences are normal, by its agreement with itself."""
    if math.isnan(agreement):
        return agreement
    if agreement <= 0.5:
        return 0.5

    def expected(spread: float, power: int) -> float:
        return float((1 + _WEIGHTS @ np.tanh(spread * _NODES / 2) ** power) / 2)

    if agreement >= expected(WIDEST, 2):
        return (1 + math.sqrt(2 * agreement - 1)) / 2
    spread = optimize.brentq(lambda x: expected(x, 2) - agreement, 0.0, WIDEST)
    return expected(spread, 1)


_NODES = np.linspace(0.0, 8.0, 8001)
_WEIGHTS = np.exp(-(_NODES**2) / 2) * np.where(_NODES == 0, 0.5, 1.0)
_WEIGHTS /= _WEIGHTS.sum()
"""Half of a normal distribution, |difference| in units of its spread, by the trapezoidal rule."""
