"""A Plackett-Luce regression: rankings explained by factors and covariates of the ranked answers.

The log-likelihood of a ranking is ``sum_i [u_i - logsumexp(u of i and all worse)]``, where an answer's utility ``u`` is
the sum of its factors' effects and its covariates' slopes (Luce 1959, Plackett 1975); with one stage it is the
conditional logit of the first choice (McFadden 1974). It is strictly concave up to directions in which the data say
nothing, which a very weak ridge closes. Derivatives are taken by the K utilities of a ranking and then added up by
level, so that a model of forty models costs no more than one of four.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from starling_nb.bias.tables import BiasError, Floats, Ints

RIDGE = 1e-3
BLOCK = 500_000
"""Numbers in a block of second derivatives."""
SAMPLE = 10_000
"""Rankings on which a large fit begins."""
ONE_THREAD = ThreadpoolController().wrap(limits=1, user_api="blas")
"""Threads that wait for one another over products this small cost ten times what they save on a busy machine."""


@lru_cache(maxsize=64)
def contrast(size: int) -> Floats:
    """``[size, size - 1]``: free parameters to effects that sum to zero; read only."""
    found = np.vstack([np.eye(size - 1), -np.ones(size - 1)])
    found.setflags(write=False)
    return found


@dataclass(frozen=True)
class Design:
    """What is known of every ranked answer, best to worst.

    Attributes:
        mask: ``[n, K]``, true for answers; answers come first in a row.
        factors: each a pair of ``[n, K]`` levels and the number of levels; effects sum to zero.
        covariates: each ``[n, K]`` or ``[n, K, q]`` numbers.
        stages: choices that count from the best down, None for the whole ranking.
    """

    mask: NDArray[np.bool_]
    factors: Sequence[tuple[Ints, int]] = ()
    covariates: Sequence[Floats] = ()
    stages: int | None = None
    _levels: list[Ints] = field(init=False, repr=False)
    _numbers: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        levels = [np.where(self.mask, index, 0) for index, _ in self.factors]
        numbers = [np.reshape(values, (*self.mask.shape, -1)) for values in self.covariates]
        joined = np.concatenate(numbers, axis=2) if numbers else np.zeros((*self.mask.shape, 0))
        object.__setattr__(self, "_levels", levels)
        object.__setattr__(self, "_numbers", np.where(self.mask[:, :, None], joined, 0.0))

    @property
    def size(self) -> int:
        """Number of parameters: factors in order, then covariates."""
        return sum(levels - 1 for _, levels in self.factors) + self._numbers.shape[2]

    @property
    def blocks(self) -> Iterator[slice]:
        """Rows, in pieces of bounded memory."""
        n, k = self.mask.shape
        step = max(1, BLOCK // k**2)
        return (slice(start, min(start + step, n)) for start in range(0, n, step))

    def sample(self) -> Design | None:
        """Rankings spread over the table, fewer by far; None where there are few already."""
        if len(self.mask) <= 2 * SAMPLE:
            return None
        every = slice(None, None, len(self.mask) // SAMPLE)
        factors = [(index[every], levels) for index, levels in self.factors]
        return Design(self.mask[every], factors, [values[every] for values in self.covariates], self.stages)

    def chosen(self, rows: slice) -> NDArray[np.bool_]:
        """``[rows, K]``: true for the choices that count; the last answer left over is no choice."""
        mask = self.mask[rows]
        found = np.zeros_like(mask)
        found[:, :-1] = mask[:, 1:]
        if self.stages is not None:
            found[:, self.stages :] = False
        return found

    def utilities(self, theta: Floats, rows: slice) -> Floats:
        """``[rows, K]`` utility of every answer, minus infinity where a row has none."""
        total, at = self._numbers[rows] @ theta[len(theta) - self._numbers.shape[2] :], 0
        for index, (_, levels) in zip(self._levels, self.factors, strict=True):
            total += (contrast(levels) @ theta[at : at + levels - 1])[index[rows]]
            at += levels - 1
        return np.where(self.mask[rows], total, -np.inf)

    def totals(self, values: Floats, rows: slice, groups: Ints | None = None) -> Floats:
        """Values ``[rows, K]`` times regressors, added up over each group of rows ``[groups, size]``."""
        group = np.zeros(len(values), dtype=np.intp) if groups is None else groups
        count, parts = int(group.max()) + 1, []
        for index, (_, levels) in zip(self._levels, self.factors, strict=True):
            cell = group[:, None] * levels + index[rows]
            added = np.bincount(cell.ravel(), values.ravel(), count * levels)
            parts.append(added.reshape(count, levels) @ contrast(levels))
        each = np.einsum("nk,nkq->nq", values, self._numbers[rows])
        slopes = np.zeros((count, each.shape[1]))
        np.add.at(slopes, group, each)
        return np.concatenate([*parts, slopes], axis=1)

    def products(self, values: Floats, rows: slice) -> Floats:
        """Regressors times values ``[rows, K, K]`` times regressors, added up over rows ``[size, size]``."""
        numbers = self._numbers[rows]
        weighted = values @ numbers
        grid: list[list[Floats]] = []
        for i, (index, (_, levels)) in enumerate(zip(self._levels, self.factors, strict=True)):
            row = [grid[j][i].T for j in range(i)]
            for other, (_, others) in zip(self._levels[i:], self.factors[i:], strict=True):
                cell = index[rows][:, :, None] * others + other[rows][:, None, :]
                added = np.bincount(cell.ravel(), values.ravel(), levels * others).reshape(levels, others)
                row.append(contrast(levels).T @ added @ contrast(others))
            mixed = np.zeros((levels, numbers.shape[2]))
            for column in range(numbers.shape[2]):
                mixed[:, column] = np.bincount(index[rows].ravel(), weighted[:, :, column].ravel(), levels)
            row.append(contrast(levels).T @ mixed)
            grid.append(row)
        last = [row[-1].T for row in grid]
        grid.append([*last, np.tensordot(numbers, weighted, ((0, 1), (0, 1)))])
        return np.block(grid)


@dataclass(frozen=True)
class Fit:
    """Estimates ``theta [size]``, their ``information [size, size]`` (ridge included), the ``residuals [n, K]``
    (choices less expected ones, weights included) and the ``log_likelihood``, nats."""

    theta: Floats
    information: Floats
    residuals: Floats
    log_likelihood: float
    design: Design = field(repr=False)

    def influence(self, groups: Ints) -> Floats:
        """``[groups, size]``: how far each group of rankings has moved the estimates, to first order."""
        return self.design.totals(self.residuals, slice(None), groups) @ np.linalg.inv(self.information)


@ONE_THREAD
def fit(design: Design, weights: Floats | None = None, start: Floats | None = None, steps: int = 100) -> Fit:
    """Maximise the penalised log-likelihood by Newton's method; a step is halved until it helps.

    Args:
        design: the regressors.
        weights: one number >= 0 a ranking, default all one.
        start: where to begin, default zero; a large fit begins where a sample of its rankings ends.
        steps: Newton steps at most.

    Raises:
        BiasError: no convergence.
    """
    if start is None and (sample := design.sample()) is not None:
        start = fit(sample).theta
    theta = np.zeros(design.size) if start is None else start.copy()
    now = log_likelihood(theta, design, weights)
    for _ in range(steps):
        residuals, gradient, information = derivatives(theta, design, weights)
        step = np.linalg.solve(information, gradient)
        if gradient @ step < 1e-9:
            return Fit(theta, information, residuals, now + RIDGE / 2 * float(theta @ theta), design)
        scale = 1.0
        slack = 1e-12 * abs(now)
        while (then := log_likelihood(theta + scale * step, design, weights)) < now - slack and scale > 1e-8:
            scale /= 2
        theta, now = theta + scale * step, then
    raise BiasError(f"the position model did not converge in {steps} Newton steps: check the rankings for errors")


def log_likelihood(theta: Floats, design: Design, weights: Floats | None = None) -> float:
    """Penalised log-likelihood, nats."""
    total = -RIDGE / 2 * float(theta @ theta)
    for rows in design.blocks:
        chosen, utility = design.chosen(rows), design.utilities(theta, rows)
        below = np.logaddexp.accumulate(utility[:, ::-1], axis=1)[:, ::-1]
        each = np.where(chosen, utility, 0.0).sum(1) - np.where(chosen, below, 0.0).sum(1)
        total += float(each.sum() if weights is None else weights[rows] @ each)
    return total


def derivatives(theta: Floats, design: Design, weights: Floats | None = None) -> tuple[Floats, Floats, Floats]:
    """Residuals ``[n, K]``, gradient ``[size]`` and information ``[size, size]`` of the penalised log-likelihood."""
    residuals = np.zeros(design.mask.shape)
    gradient, information = -RIDGE * theta, RIDGE * np.eye(design.size)
    place = np.arange(design.mask.shape[1])
    for rows in design.blocks:
        chosen, utility = design.chosen(rows), design.utilities(theta, rows)
        worth = np.exp(np.maximum(utility - utility.max(1, keepdims=True), -300.0)) * design.mask[rows]
        left = np.where(chosen, np.cumsum(worth[:, ::-1], axis=1)[:, ::-1], np.inf)
        expected = worth * np.cumsum(1 / left, axis=1)  # choices, summed over the stages
        curved = -np.cumsum(1 / left**2, axis=1)[:, np.minimum.outer(place, place)]
        curved *= worth[:, :, None]
        curved *= worth[:, None, :]
        curved[:, place, place] += expected
        residuals[rows] = chosen - expected
        if weights is not None:
            residuals[rows] *= weights[rows, None]
            curved *= weights[rows, None, None]
        gradient += design.totals(residuals[rows], rows)[0]
        information += design.products(curved, rows)
    return residuals, gradient, information
