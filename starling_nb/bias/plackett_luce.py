"""A Plackett-Luce regression: rankings explained by factors and covariates of the ranked answers.

The log-likelihood of a ranking is ``sum_i [u_i - logsumexp(u of i and all worse)]`` with ``u = design @ theta``
(Luce 1959, Plackett 1975); with one stage it is the conditional logit of the first choice (McFadden 1974). It is
strictly concave up to directions in which the data say nothing, which a very weak ridge closes. Work goes in blocks of
rows, so that memory hardly grows with the number of rankings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from starling_nb.bias.tables import BiasError, Floats, Ints

RIDGE = 1e-3
BLOCK = 300_000
"""Numbers in a block of the design: few enough for a core's cache."""
ONE_THREAD = ThreadpoolController().wrap(limits=1, user_api="blas")
"""Threads that wait for one another over products this small cost ten times what they save on a busy machine."""
SAMPLE = 10_000
"""Rankings on which a large fit begins."""


def contrast(size: int) -> Floats:
    """``[size, size - 1]``: free parameters to effects that sum to zero."""
    return np.vstack([np.eye(size - 1), -np.ones(size - 1)])


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
    _contrasts: list[Floats] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_contrasts", [contrast(levels) for _, levels in self.factors])

    @property
    def size(self) -> int:
        """Number of parameters: factors in order, then covariates."""
        return sum(levels - 1 for _, levels in self.factors) + sum(
            1 if values.ndim == 2 else values.shape[2] for values in self.covariates
        )

    def columns(self, rows: slice) -> Floats:
        """Regressors ``[rows, K, size]``, zero where a row has no answer."""
        mask = self.mask[rows]
        parts = [
            table[np.where(mask, index[rows], 0)]
            for (index, _), table in zip(self.factors, self._contrasts, strict=True)
        ]
        parts += [np.reshape(values[rows], (*mask.shape, -1)) for values in self.covariates]
        return np.where(mask[:, :, None], np.concatenate(parts, axis=2), 0.0)

    def utilities(self, theta: Floats, rows: slice) -> Floats:
        """``[rows, K]`` utility of every answer, minus infinity where a row has none."""
        mask = self.mask[rows]
        total, at = np.where(mask, 0.0, -np.inf), 0
        for (index, levels), table in zip(self.factors, self._contrasts, strict=True):
            total += (table @ theta[at : at + levels - 1])[np.where(mask, index[rows], 0)]
            at += levels - 1
        for values in self.covariates:
            width = 1 if values.ndim == 2 else values.shape[2]
            total += np.reshape(values[rows], (*mask.shape, width)) @ theta[at : at + width]
            at += width
        return total

    def sample(self) -> Design | None:
        """Rankings spread over the table, fewer by far; None where there are few already."""
        if len(self.mask) <= 2 * SAMPLE:
            return None
        every = slice(None, None, len(self.mask) // SAMPLE)
        factors = [(index[every], levels) for index, levels in self.factors]
        return Design(self.mask[every], factors, [values[every] for values in self.covariates], self.stages)

    def blocks(self) -> Iterator[slice]:
        """Rows, in pieces of bounded memory."""
        n = len(self.mask)
        step = max(1, BLOCK // max(1, self.size * self.mask.shape[1]))
        return (slice(start, min(start + step, n)) for start in range(0, n, step))

    def counted(self, rows: slice) -> NDArray[np.bool_]:
        """``[rows, K]``: true for the choices that count; the last answer left over is no choice."""
        mask = self.mask[rows]
        chosen = np.zeros_like(mask)
        chosen[:, :-1] = mask[:, 1:]
        if self.stages is not None:
            chosen[:, self.stages :] = False
        return chosen


@dataclass(frozen=True)
class Fit:
    """Estimates ``theta [size]``, their ``information [size, size]`` (ridge included), each ranking's
    ``scores [n, size]`` and the ``log_likelihood``, nats."""

    theta: Floats
    information: Floats
    scores: Floats
    log_likelihood: float

    def influence(self, groups: Ints) -> Floats:
        """``[groups, size]``: how far each group of rankings has moved the estimates, to first order."""
        summed = np.zeros((int(groups.max()) + 1, len(self.theta)))
        np.add.at(summed, groups, self.scores)
        return summed @ np.linalg.inv(self.information)


@ONE_THREAD
def fit(design: Design, weights: Floats | None = None, start: Floats | None = None, steps: int = 100) -> Fit:
    """Maximise the penalised log-likelihood by Newton's method; a step is halved until it helps.

    Args:
        design: the regressors.
        weights: one number >= 0 a ranking, default all one.
        start: where to begin, default zero.
        steps: Newton steps at most.

    Raises:
        BiasError: no convergence.
    """
    if start is None and (sample := design.sample()) is not None:
        start = fit(sample).theta
    theta = np.zeros(design.size) if start is None else start.copy()
    now = log_likelihood(theta, design, weights)
    for _ in range(steps):
        scores, information = derivatives(theta, design, weights)
        gradient = scores.sum(0) - RIDGE * theta
        step = np.linalg.solve(information, gradient)
        if gradient @ step < 1e-9:
            return Fit(theta, information, scores, now + RIDGE / 2 * float(theta @ theta))
        scale = 1.0
        slack = 1e-12 * abs(now)
        while (then := log_likelihood(theta + scale * step, design, weights)) < now - slack and scale > 1e-8:
            scale /= 2
        theta, now = theta + scale * step, then
    raise BiasError(f"the position model did not converge in {steps} Newton steps: check the rankings for errors")


def log_likelihood(theta: Floats, design: Design, weights: Floats | None = None) -> float:
    """Penalised log-likelihood, nats."""
    total = -RIDGE / 2 * float(theta @ theta)
    for rows in design.blocks():
        chosen = design.counted(rows)
        utility = design.utilities(theta, rows)
        below = np.logaddexp.accumulate(utility[:, ::-1], axis=1)[:, ::-1]
        each = np.where(chosen, utility, 0.0).sum(1) - np.where(chosen, below, 0.0).sum(1)
        total += float(each.sum() if weights is None else weights[rows] @ each)
    return total


def derivatives(theta: Floats, design: Design, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Gradient of each ranking's log-likelihood ``[n, size]``, and the information ``[size, size]``, ridge included."""
    scores = np.zeros((len(design.mask), design.size))
    information = RIDGE * np.eye(design.size)
    for rows in design.blocks():
        columns, chosen, utility = design.columns(rows), design.counted(rows), design.utilities(theta, rows)
        worth = np.exp(utility - utility.max(1, keepdims=True))
        left = np.where(chosen, np.cumsum(worth[:, ::-1], axis=1)[:, ::-1], np.inf)
        expected = worth[:, :, None] * columns
        for place in range(expected.shape[1] - 2, -1, -1):
            expected[:, place] += expected[:, place + 1]
        expected /= left[:, :, None]
        scale = np.ones(len(chosen)) if weights is None else weights[rows]
        each = np.einsum("nkd,nk->nd", columns, chosen.astype(float)) - expected.sum(1)
        scores[rows] = each * scale[:, None]
        share = worth * np.cumsum(1 / left, axis=1) * scale[:, None]  # chance of being chosen, summed over stages
        if weights is not None:
            expected *= np.sqrt(scale)[:, None, None]
        flat, mean = columns.reshape(-1, design.size), expected.reshape(-1, design.size)
        information += (flat * share.reshape(-1, 1)).T @ flat - mean.T @ mean
    return scores, information
