"""What the place of an answer in a list does to its rank.

A table of rankings has one row a verdict: ``prompt_id``; ``models``, the answering models in the order the
judge was shown them; ``ranking``, the shown positions (from 0) from best to worst. Rows may differ in their
number of answers.

The first place can look fair while the whole ranking, from which a K-wise loss learns, is not:
:func:`position_effects` reads all of it, and separates the place from the model that stood there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from starling_nb import stats
from starling_nb.errors import StarlingError

RARE = 5
RIDGE = 1e-3
Floats = NDArray[np.float64]


class BiasError(StarlingError, ValueError):
    """Rankings from which position bias cannot be computed."""


@dataclass(frozen=True)
class PositionEffects:
    """Effects of the shown position on an answer's chances, in logits, centred at zero over positions.

    Attributes:
        effects: columns ``position`` (from 0), ``effect``, ``se``, ``low``, ``high`` (95 %).
        wald: chi-square of "no position has an effect", on ``df`` degrees of freedom, and its p-value ``p``.
        spread: largest minus smallest effect. It is not zero for a fair judge: noise spreads estimates too.
        n: rankings used.
    """

    effects: pd.DataFrame
    wald: float
    df: int
    p: float
    spread: float
    n: int


def first_place_share(rankings: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """How often each shown position is ranked best.

    Returns:
        ``position`` (from 0), ``share``, ``low``, ``high`` (Wilson), ``n`` (rankings that show this
        position).

    Raises:
        BiasError: no rankings, a missing column, or a row that is not a permutation of its positions.
    """
    orders = _orders(rankings)
    wins, shown = _first_places(orders)
    return _shares(wins, shown, level)


def share_from_counts(counts: ArrayLike, level: float = 0.95) -> pd.DataFrame:
    """:func:`first_place_share` from first places counted a position, or from a table position x rank.

    Raises:
        BiasError: nothing counted.
    """
    table = np.asarray(counts, dtype=int)
    wins, shown = (table, np.full(len(table), table.sum())) if table.ndim == 1 else (table[:, 0], table.sum(1))
    return _shares(wins, shown, level)


def first_place_test(rankings: pd.DataFrame) -> tuple[float, float]:
    """Chi-square against a judge whose best answer stands anywhere with equal chance, and its p-value.

    For rankings of one length this is Pearson's test; otherwise first places are compared with what each
    row's length predicts. Rows count as independent: give it one verdict a prompt.

    Raises:
        BiasError: as :func:`first_place_share`.
    """
    orders = _orders(rankings)
    wins, _ = _first_places(orders)
    width = len(wins)
    expected, covariance = np.zeros(width), np.zeros((width, width))
    for k, rows in Counter(len(order) for order in orders).items():
        chance = (np.arange(width) < k) / k
        expected += rows * chance
        covariance += rows * (np.diag(chance) - np.outer(chance, chance))
    gap = wins - expected
    chi2 = float(gap @ np.linalg.pinv(covariance) @ gap)
    return chi2, float(scipy_stats.chi2.sf(chi2, width - 1))


def mean_rank(rankings: pd.DataFrame, seed: int = 0, draws: int = 2000, level: float = 0.95) -> pd.DataFrame:
    """Mean rank (0 is best) of the answers shown at each position; (K - 1) / 2 is fair.

    Returns:
        ``position``, ``mean_rank``, ``low``, ``high`` (bootstrap over prompts), ``n``.

    Raises:
        BiasError: as :func:`first_place_share`.
    """
    orders = _orders(rankings, "prompt_id")
    prompts = rankings["prompt_id"].to_numpy()
    ranks = [np.argsort(order) for order in orders]
    rows = []
    for position in range(max(map(len, orders))):
        here = [i for i, row in enumerate(ranks) if position < len(row)]
        interval = stats.mean_interval([ranks[i][position] for i in here], prompts[here], seed, draws, level)
        rows.append((position, interval.value, interval.low, interval.high, len(here)))
    return pd.DataFrame(rows, columns=["position", "mean_rank", "low", "high", "n"])


def position_by_rank(rankings: pd.DataFrame) -> pd.DataFrame:
    """Counts: the answer shown at ``position`` (index) came out at ``rank`` (columns), both from 0.

    Raises:
        BiasError: as :func:`first_place_share`.
    """
    orders = _orders(rankings)
    width = max(map(len, orders))
    table = np.zeros((width, width), dtype=int)
    for order in orders:
        np.add.at(table, (order, np.arange(len(order))), 1)
    places = pd.RangeIndex(width)
    return pd.DataFrame(table, index=places.rename("position"), columns=places.rename("rank"))


def position_effects(rankings: pd.DataFrame, level: float = 0.95) -> PositionEffects:
    """Fit a Plackett-Luce model with one effect a shown position and one an answering model.

    The log-likelihood of a ranking is ``sum_i [u_i - logsumexp(u of i and all worse)]`` with ``u = position
    effect + model effect`` (Plackett 1975; Luce 1959). Newton's method; standard errors are the sandwich of
    White (1982) over prompts, so they hold where verdicts on one prompt resemble each other and where the
    choice model is only a good approximation. Models seen in fewer than 5 rankings share one effect. A very
    weak ridge keeps effects finite where one position always wins.

    Args:
        rankings: needs ``prompt_id``, ``models`` and ``ranking``.
        level: coverage of the intervals.

    Raises:
        BiasError: as :func:`first_place_share`; fewer than two prompts; or models that always stand at the
            same positions, so that the two cannot be told apart.
    """
    orders = _orders(rankings, "prompt_id", "models")
    design, mask, width = _design(orders, list(rankings["models"]))
    _check_separable(design, mask, width)
    theta = _newton(design, mask)
    free = _sandwich(theta, design, mask, rankings["prompt_id"].to_numpy())[: width - 1, : width - 1]
    contrast = _contrast(width)
    effect = contrast @ theta[: width - 1]
    se = np.sqrt(np.diag(contrast @ free @ contrast.T))
    z = float(scipy_stats.norm.ppf((1 + level) / 2))
    wald = float(theta[: width - 1] @ np.linalg.pinv(free, hermitian=True) @ theta[: width - 1])
    table = pd.DataFrame({"position": range(width), "effect": effect, "se": se})
    table = table.assign(low=effect - z * se, high=effect + z * se)
    p = float(scipy_stats.chi2.sf(wald, width - 1))
    return PositionEffects(table, wald, width - 1, p, float(np.ptp(effect)), len(orders))


def _orders(rankings: pd.DataFrame, *columns: str) -> list[NDArray[np.intp]]:
    """Every row's ranking as an array, checked to be a permutation."""
    missing = [name for name in ("ranking", *columns) if name not in rankings.columns]
    if missing:
        raise BiasError(f"the rankings lack {', '.join(missing)}: they need prompt_id, models and ranking")
    if rankings.empty:
        raise BiasError("there are no rankings: nothing can be said about positions")
    orders = []
    for row, ranking in enumerate(rankings["ranking"]):
        order = np.asarray(ranking)
        if order.ndim != 1 or len(order) < 2 or (np.sort(order) != np.arange(len(order))).any():
            raise BiasError(f"row {row}: {list(order.flat)} is not a ranking of the positions 0 to K - 1")
        if "models" in columns and len(rankings["models"].iloc[row]) != len(order):
            raise BiasError(
                f"row {row} ranks {len(order)} answers but names {len(rankings['models'].iloc[row])} models"
            )
        orders.append(order.astype(np.intp))
    return orders


def _first_places(orders: list[NDArray[np.intp]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First places of each position, and how many rankings show it."""
    lengths = np.array([len(order) for order in orders])
    wins = np.bincount([order[0] for order in orders], minlength=lengths.max())
    return wins, (lengths[:, None] > np.arange(lengths.max())).sum(0)


def _shares(wins: ArrayLike, shown: ArrayLike, level: float) -> pd.DataFrame:
    rows = []
    for position, (k, n) in enumerate(zip(np.asarray(wins), np.asarray(shown), strict=True)):
        if n == 0:
            raise BiasError(f"position {position} was never shown: there is no share to compute")
        interval = stats.proportion_interval(int(k), int(n), level)
        rows.append((position, interval.value, interval.low, interval.high, interval.n))
    return pd.DataFrame(rows, columns=["position", "share", "low", "high", "n"])


def _contrast(size: int) -> Floats:
    """``[size, size - 1]``: free parameters to effects that sum to zero."""
    return np.vstack([np.eye(size - 1), -np.ones(size - 1)])


def _design(orders: list[NDArray[np.intp]], models: Sequence[Sequence[Any]]) -> tuple[Floats, NDArray[np.bool_], int]:
    """Regressors ``[ranking, answer best to worst, parameter]``, mask of answers, number of positions."""
    seen = Counter(str(name) for row in models for name in set(map(str, row)))
    common = sorted(name for name, rows in seen.items() if rows >= RARE)
    groups = {name: i for i, name in enumerate(common)}
    levels = len(common) + (len(common) < len(seen))
    width = max(map(len, orders))
    place, answerer = _contrast(width), _contrast(levels)
    design = np.zeros((len(orders), width, width - 1 + levels - 1))
    mask = np.zeros((len(orders), width), dtype=bool)
    for row, (order, names) in enumerate(zip(orders, models, strict=True)):
        k = len(order)
        design[row, :k, : width - 1] = place[order]
        design[row, :k, width - 1 :] = answerer[[groups.get(str(names[i]), len(common)) for i in order]]
        mask[row, :k] = True
    return design, mask, width


def _log_likelihood(theta: Floats, design: Floats, mask: NDArray[np.bool_]) -> float:
    utility = np.where(mask, design @ theta, -np.inf)
    below = np.logaddexp.accumulate(utility[:, ::-1], axis=1)[:, ::-1]
    return float((utility[mask] - below[mask]).sum() - RIDGE / 2 * theta @ theta)


def _derivatives(theta: Floats, design: Floats, mask: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Gradient of each ranking's log-likelihood ``[ranking, parameter]``, and the information matrix."""
    utility = np.where(mask, design @ theta, -np.inf)
    weight = np.exp(utility - utility.max(1, keepdims=True))
    scores = np.where(mask[:, :, None], design, 0.0).sum(1)
    information = np.zeros((design.shape[2],) * 2)
    for stage in range(design.shape[1]):
        rows = mask[:, stage]
        left = design[rows, stage:]
        chance = weight[rows, stage:] / weight[rows, stage:].sum(1, keepdims=True)
        mean = np.einsum("nk,nkd->nd", chance, left)
        scores[rows] -= mean
        flat = (left * np.sqrt(chance)[:, :, None]).reshape(-1, left.shape[2])
        information += flat.T @ flat - mean.T @ mean
    return scores, information


def _newton(design: Floats, mask: NDArray[np.bool_], steps: int = 100) -> Floats:
    """Maximise the penalised log-likelihood (strictly concave); a step is halved until it helps."""
    theta = np.zeros(design.shape[2])
    now = _log_likelihood(theta, design, mask)
    for _ in range(steps):
        scores, information = _derivatives(theta, design, mask)
        gradient = scores.sum(0) - RIDGE * theta
        step = np.linalg.solve(information + RIDGE * np.eye(len(theta)), gradient)
        if gradient @ step < 1e-10:
            return theta
        scale = 1.0
        while (then := _log_likelihood(theta + scale * step, design, mask)) < now and scale > 1e-8:
            scale /= 2
        theta, now = theta + scale * step, then
    raise BiasError(f"the position model did not converge in {steps} Newton steps: check the rankings for errors")


def _sandwich(theta: Floats, design: Floats, mask: NDArray[np.bool_], prompts: ArrayLike) -> Floats:
    """Covariance of the estimates that allows for rankings of one prompt to resemble each other."""
    scores, information = _derivatives(theta, design, mask)
    names, cluster = np.unique(np.asarray(prompts).astype(str), return_inverse=True)
    if len(names) < 2:
        raise BiasError("position effects need rankings of at least two prompts")
    summed = np.zeros((len(names), len(theta)))
    np.add.at(summed, cluster, scores)
    bread = np.linalg.inv(information + RIDGE * np.eye(len(theta)))
    covariance: Floats = bread @ (summed.T @ summed) @ bread * len(names) / (len(names) - 1)
    return covariance


def _check_separable(design: Floats, mask: NDArray[np.bool_], width: int) -> None:
    """Refuse designs in which position effects can be exchanged for model effects."""
    _, information = _derivatives(np.zeros(design.shape[2]), design, mask)
    values, vectors = np.linalg.eigh(information)
    flat = vectors[: width - 1, values < 1e-9 * max(values.max(), 1.0)]
    if np.abs(flat).max(initial=0.0) > 1e-6:
        raise BiasError(
            "positions and models cannot be told apart: the same models always stand at the same positions. "
            "Shuffle the answers before they are shown"
        )
