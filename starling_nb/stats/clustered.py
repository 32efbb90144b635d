"""Few clusters: how far a mean can be trusted where whole clusters are what is independent.

Sizes are numbers > 0, one a cluster, of at least two clusters: how many values each of them holds.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
ENOUGH = 7.0
"""Degrees of freedom from which resamples of clusters differ enough to show the tails: those of eight alike."""


def freedom(sizes: ArrayLike) -> float:
    """Degrees of freedom of the variance of a mean, one less than the number of clusters where they are alike.

    Bell & McCaffrey (2002), Survey Methodology 28, worked out for the mean of independent values.
    """
    share = _shares(sizes)
    crossed = share**2 / (1 - share)
    return float(1 / (share @ share + crossed.sum() ** 2 - crossed @ crossed))


def enough(sizes: ArrayLike) -> bool:
    """Whether a bootstrap of such clusters can bound an interval."""
    return freedom(sizes) > ENOUGH - 1e-9


def quantile(sizes: ArrayLike, level: float = 0.95) -> float:
    """Of Student's t, two-sided, with these clusters' :func:`freedom`."""
    return float(special.stdtrit(freedom(sizes), (1 + level) / 2))


def standard_error(sums: Floats, sizes: Floats) -> float:
    """Of the mean of all values, from the clusters' ``sums``; its square is unbiased where values are independent (CR2,
    Bell & McCaffrey 2002)."""
    residuals = sums - sizes * sums.sum() / sizes.sum()
    return float(np.sqrt((residuals**2 / (1 - _shares(sizes))).sum()) / sizes.sum())


def share_quantile(sums: Floats, sizes: ArrayLike, level: float = 0.95) -> float:
    """Of Student's t, two-sided, for a share: values in [0, 1] with these clusters' ``sums``, not all of them equal.

    A share tells the variance of single outcomes 0 or 1; what has to be estimated is only how their clusters, and
    values between, change it. The degrees of freedom are Satterthwaite's for that ratio, from each cluster's influence
    on it: infinite for single outcomes, and :func:`freedom` at the least.
    """
    n = np.asarray(sizes, dtype=np.float64)
    share = sums.sum() / n.sum()
    residuals = (sums - n * share) / n.mean()
    variance = (residuals**2).mean()
    slope = (1 - 2 * share) / (share * (1 - share))
    moved = residuals**2 / variance - 1 - slope * residuals
    least, spread = freedom(n), float((moved**2).mean())
    known = max(least, 2 * least / spread) if spread > 1e-9 else math.inf
    return float(special.stdtrit(known, (1 + level) / 2))


def tails(sizes: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Which quantiles of a bootstrap of whole clusters bound an interval.

    With few clusters a bootstrap is too narrow twice: it measures their spread about the sample's own mean, and takes
    that spread for certain. These quantiles lie where a normal variable is as far out as Student's t would be
    (Hesterberg 2015, The American Statistician 69: expanded percentiles).
    """
    share = _shares(sizes)
    tail = float(special.ndtr(-quantile(sizes, level) / math.sqrt(1 - share @ share)))
    return tail, 1 - tail


def _shares(sizes: ArrayLike) -> Floats:
    x = np.asarray(sizes, dtype=np.float64)
    return x / x.sum()
