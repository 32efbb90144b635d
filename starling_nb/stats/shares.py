"""Shares: values in [0, 1] such as wins and right answers, and how they change from one model to another."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from starling_nb.stats import clustered
from starling_nb.stats.interval import Interval, StatsError, cluster_sums, finite


def proportion_interval(k: int, n: int, level: float = 0.95) -> Interval:
    """Share ``k / n`` with Wilson's score interval (Wilson 1927), which stays inside [0, 1] for small ``n``.

    Raises:
        StatsError: not 0 <= k <= n, or n is 0.
    """
    if n <= 0 or not 0 <= k <= n:
        raise StatsError(f"a share needs 0 <= k <= n and n > 0, got k={k}, n={n}")
    return Interval(k / n, *wilson(k / n, n, float(scipy_stats.norm.ppf((1 + level) / 2))), n)


def wilson(share: float, n: float, z: float = float(scipy_stats.norm.ppf(0.975))) -> tuple[float, float]:
    """Wilson's interval for a share of ``n`` independent outcomes, which may be an effective, broken number; ``z`` is
    the quantile that decides the coverage."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half


def share_interval(values: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95) -> Interval:
    """Mean of values in [0, 1], such as wins with ties as halves, with Wilson's interval for what they are worth.

    Their worth is the number of outcomes 0 or 1 whose share would vary as much: less than their number where a
    cluster's values resemble each other, more where many are ties; clusters never make values worth more than if each
    stood alone. It is itself estimated, so that the interval is as wide as
    :func:`.stats.clustered.share_quantile` asks; outcomes that are independent get Wilson's own. Values that are
    all equal do not tell how they vary: they are worth one outcome a cluster. One cluster of several values has no
    interval (NaN). ``benchmarks/interval_coverage.py`` measures how often this holds the truth.

    Raises:
        StatsError: no values, one that is not finite or not in [0, 1], or not one cluster id a value.
    """
    x = finite(values, "values")
    if x.min() < 0 or x.max() > 1:
        raise StatsError(f"a share is of values from 0 to 1, got some from {x.min():g} to {x.max():g}: rescale them")
    sums, sizes = cluster_sums(x, clusters)
    share, groups = float(x.mean()), len(sums)
    if groups == 1 and (len(x) > 1 or 0 < share < 1):
        return Interval(share, math.nan, math.nan, 1)
    if np.ptp(x) < 1e-12:
        return Interval(share, *wilson(share, groups, float(scipy_stats.norm.ppf((1 + level) / 2))), groups)
    alone, together = clustered.standard_error(x, np.ones_like(x)), clustered.standard_error(sums, sizes)
    if alone > together:
        sums, sizes = x, np.ones_like(x)
    worth = share * (1 - share) / max(alone, together) ** 2 + 1
    return Interval(share, *wilson(share, worth, clustered.share_quantile(sums, sizes, level)), groups)


def share_change(changes: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95) -> Interval:
    """Mean change of paired values in [0, 1], such as right answers after minus before; the changes are in [-1, 1].

    Where few pairs change, resamples hardly vary and leave the truth out. Here two imagined pairs stand beside those
    seen: one that stays, and halves of one that rises and one that falls (Agresti & Min 2005, Statistics in Medicine
    24); pairs that resemble the others of their cluster count for what they are worth, and the quantile is Student's.
    One cluster of several changes has no interval (NaN).

    Raises:
        StatsError: no changes, one that is not finite or not in [-1, 1], or not one cluster id a change.
    """
    x = finite(changes, "changes")
    if np.abs(x).max() > 1:
        raise StatsError(f"a change of shares lies from -1 to 1, got {x[np.abs(x).argmax()]:g}: rescale the values")
    sums, sizes = cluster_sums(x, clusters)
    value, groups = float(x.mean()), len(sums)
    if groups == 1:
        return Interval(value, math.nan, math.nan, 1)
    worth: float = groups
    if np.ptp(x) > 1e-12:
        variance = clustered.standard_error(sums, sizes) ** 2
        worth = min(float(len(x)), x.var() / max(variance, 1e-12) + 1)
    centre = value * worth / (worth + 2)
    spread = (float((x**2).mean()) * worth + 1) / (worth + 2) - centre**2
    half = clustered.quantile(sizes, level) * math.sqrt(spread / (worth + 2))
    return Interval(value, max(-1.0, min(value, centre - half)), min(1.0, max(value, centre + half)), groups)
