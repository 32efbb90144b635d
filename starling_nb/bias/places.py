"""What stands where, without a model: first places, mean ranks and placements by shown position.

Where answers are shown in an order drawn at random these figures are fair to every model, and a permutation test needs
no assumption but that draw: had the judge not looked at positions, any other order would have given the same ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from starling_nb import files, stats
from starling_nb.bias.effects import hotelling_p
from starling_nb.bias.tables import BiasError, Floats, Ints, Rankings, named_answers, read
from starling_nb.stats import share_interval

LARGE = 5_000
"""Rankings from which on a p-value is read off the large-sample distribution."""
RESAMPLED = 400_000_000
"""Numbers that a bootstrap may draw."""
PIECE = 2_000_000
"""Numbers in a piece of the permutations."""


@dataclass(frozen=True)
class OrderTest:
    """p-values of "the judge does not look at positions", over random orders.

    Attributes:
        mean_rank, first_place: chi-square-like distances of the mean ranks and of the first places from fair, and their
            p-values. For one ranking a prompt and equal K they are Friedman's and Pearson's chi-square.
        method: ``permutation`` (with the number of draws) or ``large sample``.
    """

    mean_rank: tuple[float, float]
    first_place: tuple[float, float]
    method: str


def first_place_share(rankings: pd.DataFrame | Rankings, level: float = 0.95) -> pd.DataFrame:
    """How often each shown position is ranked best.

    Returns:
        ``position`` (from 0), ``share``, ``low``, ``high`` (Wilson), ``n`` (rankings that show this position).

    Raises:
        BiasError: a table that :func:`starling_nb.bias.tables.read` refuses.
    """
    table = read(rankings)
    return _shares(np.bincount(table.order[:, 0], minlength=table.width), table.mask.sum(0), level)


def share_from_counts(counts: ArrayLike, level: float = 0.95) -> pd.DataFrame:
    """:func:`first_place_share` from first places counted a position, or from a table position x rank.

    Raises:
        BiasError: nothing counted.
    """
    table = np.asarray(counts, dtype=int)
    wins, shown = (table, np.full(len(table), table.sum())) if table.ndim == 1 else (table[:, 0], table.sum(1))
    return _shares(wins, shown, level)


def first_place_test(rankings: pd.DataFrame | Rankings) -> tuple[float, float]:
    """Chi-square against a judge whose best answer stands anywhere with equal chance, and its p-value.

    For rankings of one length this is Pearson's test; otherwise first places are compared with what each row's length
    predicts. Rows count as independent: give it one verdict a prompt, or take :func:`order_test`.

    Raises:
        BiasError: as :func:`first_place_share`.
    """
    table = read(rankings)
    gap, covariance = _first_places(table)
    chi2 = float(gap @ np.linalg.pinv(covariance, hermitian=True) @ gap)
    return chi2, float(scipy_stats.chi2.sf(chi2, table.width - 1))


def mean_rank(rankings: pd.DataFrame | Rankings, seed: int = 0, draws: int = 2000, level: float = 0.95) -> pd.DataFrame:
    """Mean rank (0 is best) of the answers shown at each position; (K - 1) / 2 is fair.

    Returns:
        ``position``, ``mean_rank``, ``low``, ``high`` (bootstrap over prompts, fewer draws for large tables), ``n``.

    Raises:
        BiasError: as :func:`first_place_share`.
    """
    table = read(rankings, "prompt_id")
    draws = max(200, min(draws, RESAMPLED // table.order.size))
    rows = []
    for position in range(table.width):
        here = table.length > position
        interval = stats.mean_interval(table.ranks[here, position], table.prompt[here], seed, draws, level)
        rows.append((position, interval.value, interval.low, interval.high, int(here.sum())))
    return pd.DataFrame(rows, columns=["position", "mean_rank", "low", "high", "n"])


def mean_rank_from_counts(counts: ArrayLike, level: float = 0.95) -> tuple[pd.DataFrame, float, float]:
    """:func:`mean_rank` from a table position x rank of one ranking a prompt, all of K answers.

    Returns:
        The table (Student's intervals), and Friedman's chi-square of fair mean ranks with its p-value.

    Raises:
        BiasError: a table that is not square, or whose rows and columns do not all add up to the same number.
    """
    table = np.asarray(counts, dtype=int)
    if (
        table.ndim != 2
        or len(table) < 2
        or len({*table.sum(0), *table.sum(1)}) != 1
        or not (n := int(table[0].sum())) > 1
    ):
        raise BiasError("counts of positions by ranks are a square table with equal sums: each ranking fills each once")
    k = len(table)
    rank = np.arange(k)
    mean = table @ rank / n
    half = scipy_stats.t.ppf((1 + level) / 2, n - 1) * np.sqrt((table @ rank**2 / n - mean**2) / (n - 1))
    found = pd.DataFrame({"position": rank, "mean_rank": mean, "low": mean - half, "high": mean + half, "n": n})
    friedman = float(12 * n / (k * (k + 1)) * ((mean - (k - 1) / 2) ** 2).sum())
    return found, friedman, float(scipy_stats.chi2.sf(friedman, k - 1))


def position_by_rank(rankings: pd.DataFrame | Rankings) -> pd.DataFrame:
    """Counts: the answer shown at ``position`` (index) came out at ``rank`` (columns), both from 0.

    Raises:
        BiasError: as :func:`first_place_share`.
    """
    table = read(rankings)
    counts = np.zeros((table.width, table.width), dtype=int)
    rows, ranks = np.nonzero(table.mask)
    np.add.at(counts, (table.order[rows, ranks], ranks), 1)
    places = pd.RangeIndex(table.width)
    return pd.DataFrame(counts, index=places.rename("position"), columns=places.rename("rank"))


def placements(rankings: pd.DataFrame | Rankings, level: float = 0.95) -> pd.DataFrame:
    """How likely each rank is at each shown position; 1 / K is fair.

    Returns:
        ``position``, ``rank`` (both from 0), ``share``, ``low``, ``high``, ``n``. The intervals are Wilson's, with n
        cut to what it is worth where rankings of one prompt resemble each other (Kish's design effect).

    Raises:
        BiasError: as :func:`first_place_share`.
    """
    table = read(rankings, "prompt_id")
    ranks, rows = table.ranks, []
    for position in range(table.width):
        here = table.length > position
        for rank in range(table.width):
            share = share_interval(ranks[here, position] == rank, table.prompt[here], level)
            rows.append((position, rank, share.value, share.low, share.high, int(here.sum())))
    return pd.DataFrame(rows, columns=["position", "rank", "share", "low", "high", "n"])


def order_test(rankings: pd.DataFrame | Rankings, seed: int = 0, draws: int = 9_999) -> OrderTest:
    """Test that ranks do not depend on positions, by the random draw of the shown orders alone.

    A draw gives the answers of each prompt other places, the same exchange in all rankings of one prompt. That is valid
    whenever the answers were shuffled, whether a prompt was ranked once, in several orders drawn apart, in rotations or
    in an order and its mirror.

    Args:
        rankings: needs ``prompt_id``, and ``models`` (or ``shown``) where prompts are ranked more than once.
        seed, draws: of the permutations. From 5,000 rankings on the large-sample distribution is used.

    Raises:
        BiasError: as :func:`first_place_share`; or answers of a prompt that is ranked twice cannot be told apart.
    """
    table = read(rankings, "prompt_id")
    (rank, rank_covariance), (first, first_covariance) = _rank_sums(table), _first_places(table)
    weights = [np.linalg.pinv(found, hermitian=True) for found in (rank_covariance, first_covariance)]
    seen = [float(gap @ weight @ gap) for gap, weight in zip((rank, first), weights, strict=True)]
    if len(table) > LARGE:
        fair = np.where(table.mask, 1 / table.length[:, None], 0.0)
        p = [_large_sample(rows, table.prompt) for rows in (_centred(table), _winners(table) - fair)]
        return OrderTest((seen[0], p[0]), (seen[1], p[1]), "large sample")
    more, fair = np.zeros(2), _winners(table).sum(0) - first
    for ranks, wins in _permuted(rankings, table, draws, files.rng(seed, "order test")):
        for which, gaps in enumerate((ranks, wins - fair)):
            distance = np.einsum("dk,kl,dl->d", gaps, weights[which], gaps)
            more[which] += (distance >= seen[which] - 1e-9).sum()
    chance = ((1 + more) / (1 + draws)).tolist()
    return OrderTest((seen[0], chance[0]), (seen[1], chance[1]), f"permutation, {draws} draws")


def _shares(wins: ArrayLike, shown: ArrayLike, level: float) -> pd.DataFrame:
    rows = []
    for position, (k, n) in enumerate(zip(np.asarray(wins), np.asarray(shown), strict=True)):
        if n == 0:
            raise BiasError(f"position {position} was never shown: there is no share to compute")
        interval = stats.proportion_interval(int(k), int(n), level)
        rows.append((position, interval.value, interval.low, interval.high, interval.n))
    return pd.DataFrame(rows, columns=["position", "share", "low", "high", "n"])


def _first_places(table: Rankings) -> tuple[Floats, Floats]:
    """First places by position less what is fair ``[K]``, and their covariance if rows are independent ``[K, K]``."""
    width = table.width
    gap, covariance = np.bincount(table.order[:, 0], minlength=width).astype(float), np.zeros((width, width))
    for k, rows in Counter(table.length.tolist()).items():
        chance = (np.arange(width) < k) / k
        gap -= rows * chance
        covariance += rows * (np.diag(chance) - np.outer(chance, chance))
    return gap, covariance


def _rank_sums(table: Rankings) -> tuple[Floats, Floats]:
    """Ranks by position less what is fair, summed ``[K]``, and their covariance if rows are independent ``[K, K]``."""
    width = table.width
    covariance = np.zeros((width, width))
    for k, rows in Counter(table.length.tolist()).items():
        covariance[:k, :k] += rows * (k + 1) / 12 * (k * np.eye(k) - 1)
    return _centred(table).sum(0), covariance


def _centred(table: Rankings) -> Floats:
    """``[n, K]`` rank at each shown position less the row's mean rank; 0 where a row has no answer."""
    return np.where(table.mask, table.ranks - (table.length[:, None] - 1) / 2, 0.0)


def _winners(table: Rankings) -> Floats:
    """``[n, K]`` 1 at the shown position that was ranked best."""
    return (table.ranks == 0).astype(float)


def _permuted(
    rankings: pd.DataFrame | Rankings, table: Rankings, draws: int, generator: np.random.Generator
) -> Iterator[tuple[Floats, Floats]]:
    """Rank sums and first places by position ``[draws, K]`` after answers have changed places, in pieces."""
    places = np.arange(table.width)
    if isinstance(rankings, Rankings):
        answer, block = np.broadcast_to(places, table.order.shape), np.arange(len(table))
    else:
        answer, block = named_answers(rankings, table)
    answer = np.where(table.mask, answer, places)
    by_answer = np.argsort(answer, axis=1)
    values = [np.take_along_axis(found, by_answer, axis=1) for found in (_centred(table), _winners(table))]
    blocks, length = int(block.max()) + 1, np.zeros(int(block.max()) + 1, dtype=np.intp)
    length[block] = table.length
    outside = places >= length[:, None]
    size = max(1, PIECE // table.order.size)
    rows = np.arange(len(table))[None, :, None]
    for start in range(0, draws, size):
        keys = np.where(outside, 1.0 + places, generator.random((min(size, draws - start), blocks, table.width)))
        exchange = np.argsort(keys, axis=2)[:, block]
        moved = np.take_along_axis(exchange, np.broadcast_to(answer, exchange.shape), axis=2)
        yield values[0][rows, moved].sum(1), values[1][rows, moved].sum(1)


def _large_sample(sums: Floats, prompt: Ints) -> float:
    """p-value of per-row vectors ``[n, K]`` that sum to zero in each row having mean zero, clustered by prompt."""
    grouped = np.zeros((int(prompt.max()) + 1, sums.shape[1]))
    np.add.at(grouped, prompt, sums)
    total = grouped.sum(0)
    wald = float(total @ np.linalg.pinv(grouped.T @ grouped, hermitian=True) @ total)
    return hotelling_p(wald, sums.shape[1] - 1, len(grouped))
