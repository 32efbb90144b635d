"""Tests by counting and by relabelling, and agreement of two orders."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from starling_nb.stats.interval import Floats, StatsError, blocks, cluster_sums, finite, generator_of


def chi_square_uniform(counts: ArrayLike) -> tuple[float, float]:
    """Pearson's chi-square of counts against equal shares, and its p-value (cells - 1 degrees of freedom).

    Raises:
        StatsError: fewer than two cells, a negative count, or nothing counted.
    """
    observed = finite(counts, "counts")
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
    left, right = finite(a, "a"), finite(b, "b")
    generator = generator_of(seed, "permutation")
    if paired and len(left) != len(right):
        raise StatsError(f"a paired test needs equal lengths, got {len(left)} and {len(right)}: join them first")
    if clusters is not None and not paired:
        raise StatsError("clusters are only understood with paired=True")
    if paired:
        sums, _ = cluster_sums(left - right, clusters)
        observed, null = sums.sum(), _sign_flips(sums, draws, generator)
    else:
        observed, null = _regroupings(left, right, draws, generator)
    extreme = np.abs(null) >= abs(observed) - 1e-12 * max(1.0, abs(observed))
    return float((1 + extreme.sum()) / (1 + draws))


def _sign_flips(sums: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Totals of ``sums`` under random signs."""
    return blocks(draws, len(sums), lambda rows: (generator.integers(0, 2, (rows, len(sums))) * 2 - 1) @ sums)


def _regroupings(a: Floats, b: Floats, draws: int, generator: np.random.Generator) -> tuple[float, Floats]:
    """How far the total of ``a`` is from expectation: as observed, and after random exchanges with ``b``."""
    both = np.concatenate([a, b])
    expected = both.sum() * len(a) / len(both)

    def block(rows: int) -> Floats:
        return generator.permuted(np.tile(both, (rows, 1)), axis=1)[:, : len(a)].sum(1) - expected

    return a.sum() - expected, blocks(draws, len(both), block)


def kendall_tau(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b between two lists of ranks or scores (not orders); NaN where one of them is constant.

    Raises:
        StatsError: different lengths, fewer than two items, or a value that is not finite.
    """
    left, right = finite(a, "a"), finite(b, "b")
    if len(left) != len(right) or len(left) < 2:
        raise StatsError(f"tau needs two lists of equal length, at least 2; got {len(left)} and {len(right)}")
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return math.nan
    return float(scipy_stats.kendalltau(left, right).statistic)
