"""Intervals and tests. Every reported mean has an interval; answers to one prompt are resampled together.

Randomness comes from a seed (or a generator that is passed in), never from global state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from starling_nb import clustered
from starling_nb.errors import StarlingError
from starling_nb.files import rng

Floats = NDArray[np.float64]
BLOCK = 4_000_000


class StatsError(StarlingError, ValueError):
    """Data from which the asked figure cannot be computed."""


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval; ``n`` counts independent units (clusters where clusters are
    given).

    ``low`` and ``high`` are NaN where one unit alone cannot tell how sure it is.
    """

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """The four numbers, ready for JSON: what is not finite becomes None."""
        return {key: x if math.isfinite(x) else None for key, x in vars(self).items()}


def mean_interval(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    seed: int | np.random.Generator = 0,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean with an interval that resamples whole clusters (Cameron, Gelbach & Miller 2008).

    The bootstrap's quantiles are taken as far out as few clusters ask for (:func:`starling_nb.clustered.tails`), and
    stay within what the data can be. Where the clusters are worth fewer than 7 degrees of freedom they make too few
    different resamples: the interval is Student's t with a cluster-robust variance. ``benchmarks/interval_coverage.py``
    measures how often both hold the truth.

    Args:
        values: one number an observation. clusters: the id of each observation's cluster, for example its
        prompt; default every observation its own. seed: decides the resampling; equal input and seed give
        equal intervals. draws: bootstrap samples. level: coverage asked for.

    Raises:
        StatsError: no values, a value that is not finite, or ids that do not match the values.
    """
    x = _finite(values, "values")
    sums, counts = _cluster_sums(x, clusters)
    value = float(x.mean())
    if len(sums) == 1:
        return Interval(value, math.nan, math.nan, 1)
    if not clustered.enough(counts):
        half = clustered.quantile(counts, level) * clustered.standard_error(sums, counts)
        return Interval(value, value - half, value + half, len(sums))
    means = _resampled_means(sums, counts, draws, _generator(seed, "bootstrap"))
    low, high = np.quantile(means, clustered.tails(counts, level))
    return Interval(value, float(low), float(high), len(sums))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike | None = None,
    seed: int | np.random.Generator = 0,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean of ``a - b`` over paired observations, with the interval of :func:`mean_interval`.

    Raises:
        StatsError: different lengths, or as :func:`mean_interval`.
    """
    left, right = _finite(a, "a"), _finite(b, "b")
    if len(left) != len(right):
        raise StatsError(f"a paired difference needs equal lengths, got {len(left)} and {len(right)}: join them first")
    return mean_interval(left - right, clusters, seed, draws, level)


def crossed_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of a table ``[units, runs]`` in which every unit was measured in every run, say prompts and seeds.

    Units and runs are random, crossed effects: the variance of the mean is (MS units + MS runs - MS rest) / cells. Its
    two parts, of units and of runs, weigh the quantiles of Student's t with their degrees of freedom (Cochran & Cox
    1957, for the like problem of two samples). In simulations of 60 units this covers 94 to 96 % with 3 runs or more;
    2 runs that differ much are covered 91 %. One run alone leaves the interval over units. ``n`` counts units.

    Raises:
        StatsError: no table of two axes, a value that is not finite, or a single unit.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise StatsError("a crossed interval needs a table of units and runs")
    _finite(table, "values")
    units, runs = table.shape
    if units < 2:
        raise StatsError("a crossed interval needs two units or more")
    mean, rows, columns = table.mean(), table.mean(1), table.mean(0)
    by_unit, by_run = runs * rows.var(ddof=1), 0.0
    quantile = wide = scipy_stats.t.ppf((1 + level) / 2, units - 1)
    if runs > 1:
        rest = ((table - rows[:, None] - columns + mean) ** 2).sum() / ((units - 1) * (runs - 1))
        by_run = max(units * columns.var(ddof=1) - rest, 0.0)
        wide = scipy_stats.t.ppf((1 + level) / 2, runs - 1)
    if spread := by_unit + by_run:
        quantile = (by_unit * quantile + by_run * wide) / spread
    half = float(quantile * math.sqrt(spread / table.size))
    return Interval(float(mean), float(mean) - half, float(mean) + half, units)


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
    :func:`starling_nb.clustered.share_quantile` asks; outcomes that are independent get Wilson's own. Values that are
    all equal do not tell how they vary: they are worth one outcome a cluster. One cluster of several values has no
    interval (NaN). ``benchmarks/interval_coverage.py`` measures how often this holds the truth.

    Raises:
        StatsError: no values, one that is not finite or not in [0, 1], or not one cluster id a value.
    """
    x = _finite(values, "values")
    if x.min() < 0 or x.max() > 1:
        raise StatsError(f"a share is of values from 0 to 1, got some from {x.min():g} to {x.max():g}: rescale them")
    sums, sizes = _cluster_sums(x, clusters)
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


def chi_square_uniform(counts: ArrayLike) -> tuple[float, float]:
    """Pearson's chi-square of counts against equal shares, and its p-value (cells - 1 degrees of freedom).

    Raises:
        StatsError: fewer than two cells, a negative count, or nothing counted.
    """
    observed = _finite(counts, "counts")
    if len(observed) < 2 or (observed < 0).any() or not observed.sum():
        raise StatsError("a test of uniformity needs at least two cells, counts that are not negative, and some data")
    expected = observed.mean()
    chi2 = float(((observed - expected) ** 2 / expected).sum())
    return chi2, float(scipy_stats.chi2.sf(chi2, len(observed) - 1))


def permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    paired: bool = False,
    clusters: ArrayLike | None = None,
    seed: int | np.random.Generator = 0,
    draws: int = 10_000,
) -> float:
    """Two-sided p-value for a difference of means by random relabelling; never 0 (Phipson & Smyth 2010).

    Args:
        a, b: the two samples.
        paired: observations belong together pairwise; the signs of their differences are flipped at random.
        clusters: with ``paired``: pairs of one cluster are flipped together.
        seed, draws: decide and count the relabellings.

    Raises:
        StatsError: empty or non-finite samples, different lengths where paired, clusters without ``paired``.
    """
    left, right = _finite(a, "a"), _finite(b, "b")
    generator = _generator(seed, "permutation")
    if paired and len(left) != len(right):
        raise StatsError(f"a paired test needs equal lengths, got {len(left)} and {len(right)}: join them first")
    if clusters is not None and not paired:
        raise StatsError("clusters are only understood with paired=True")
    if paired:
        sums, _ = _cluster_sums(left - right, clusters)
        observed, null = sums.sum(), _sign_flips(sums, draws, generator)
    else:
        observed, null = _regroupings(left, right, draws, generator)
    extreme = np.abs(null) >= abs(observed) - 1e-12 * max(1.0, abs(observed))
    return float((1 + extreme.sum()) / (1 + draws))


def _sign_flips(sums: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Totals of ``sums`` under random signs."""
    return _blocks(draws, len(sums), lambda rows: (generator.integers(0, 2, (rows, len(sums))) * 2 - 1) @ sums)


def _regroupings(a: Floats, b: Floats, draws: int, generator: np.random.Generator) -> tuple[float, Floats]:
    """How far the total of ``a`` is from expectation: as observed, and after random exchanges with ``b``."""
    both = np.concatenate([a, b])
    expected = both.sum() * len(a) / len(both)

    def block(rows: int) -> Floats:
        return generator.permuted(np.tile(both, (rows, 1)), axis=1)[:, : len(a)].sum(1) - expected

    return a.sum() - expected, _blocks(draws, len(both), block)


def kendall_tau(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b between two lists of ranks or scores (not orders); NaN where one of them is constant.

    Raises:
        StatsError: different lengths, fewer than two items, or a value that is not finite.
    """
    left, right = _finite(a, "a"), _finite(b, "b")
    if len(left) != len(right) or len(left) < 2:
        raise StatsError(f"tau needs two lists of equal length, at least 2; got {len(left)} and {len(right)}")
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return math.nan
    return float(scipy_stats.kendalltau(left, right).statistic)


def _finite(values: ArrayLike, name: str) -> Floats:
    x = np.asarray(values, dtype=np.float64).ravel()
    if not len(x):
        raise StatsError(f"{name} are empty: there is nothing to compute")
    if not np.isfinite(x).all():
        raise StatsError(f"{name} hold {int((~np.isfinite(x)).sum())} numbers that are not finite: drop or mend them")
    return x


def _cluster_sums(x: Floats, clusters: ArrayLike | None) -> tuple[Floats, Floats]:
    """Sum and size of each cluster."""
    if clusters is None:
        return x, np.ones_like(x)
    ids = np.asarray(clusters)
    if ids.shape != x.shape:
        raise StatsError(f"{len(x)} values but {ids.size} cluster ids: give one id a value")
    _, index = np.unique(ids, return_inverse=True)
    return np.bincount(index, weights=x).astype(np.float64), np.bincount(index).astype(np.float64)


def _resampled_means(sums: Floats, counts: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Means of ``draws`` samples of whole clusters, drawn with replacement."""
    even = bool((counts == 1).all())

    def block(rows: int) -> Floats:
        drawn = generator.integers(len(sums), size=(rows, len(sums)), dtype=np.int32)
        return sums[drawn].sum(1) / (len(sums) if even else counts[drawn].sum(1))

    return _blocks(draws, len(sums), block)


def _blocks(draws: int, width: int, compute: Callable[[int], Floats]) -> Floats:
    """``compute(rows)`` for ``draws`` rows in all, in blocks of bounded memory."""
    size = max(1, BLOCK // width)
    return np.concatenate([compute(min(size, draws - start)) for start in range(0, draws, size)])


def _generator(seed: int | np.random.Generator, use: str) -> np.random.Generator:
    return seed if isinstance(seed, np.random.Generator) else rng(seed, use)
