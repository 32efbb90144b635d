"""Paired logistic regressions, many at once: one design, one column of weights for each resample."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from starling_nb.evaluation import EvaluationError

Floats = NDArray[np.float64]
RIDGE = 1e-6
"""Keeps estimates finite where resampled votes let a model win everything; it moves no other by 0.001 points."""
STEPS = 100
CLOSE = 1e-12
"""Nats that a further Newton step would gain, per vote at most."""


@dataclass(frozen=True)
class Design:
    """Comparisons of ``first`` with ``second`` (``[rows]``, numbers of models): ``share`` of the win that goes to
    ``first``, ``count`` of votes, ``features [rows, k]`` of first less second.

    The logit of a row is ``theta[first] - theta[second] + features @ theta[models:]``.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    share: Floats
    count: Floats
    features: Floats
    models: int
    rows: sparse.csr_matrix = field(init=False, repr=False)
    squares: sparse.csr_matrix = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n, k = self.features.shape
        slopes = np.broadcast_to(np.arange(self.models, self.size), (n, k))
        columns = np.concatenate([self.first[:, None], self.second[:, None], slopes], axis=1)
        values = np.concatenate([np.ones((n, 1)), -np.ones((n, 1)), self.features], axis=1)
        crossed = (columns[:, :, None] * self.size + columns[:, None, :]).reshape(n, -1)
        squared = (values[:, :, None] * values[:, None, :]).reshape(n, -1)
        object.__setattr__(self, "rows", _sparse(columns, values, self.size))
        object.__setattr__(self, "squares", _sparse(crossed, squared, self.size**2))

    @property
    def size(self) -> int:
        """Number of estimates: models, then features."""
        return self.models + self.features.shape[1]


def _sparse(columns: NDArray[np.int64], values: Floats, width: int) -> sparse.csr_matrix:
    """As many entries in every row."""
    ends = np.arange(0, columns.size + 1, columns.shape[1])
    return sparse.csr_matrix((values.ravel(), columns.ravel(), ends), shape=(len(columns), width))


def fit(design: Design, weights: Floats, start: Floats | None = None) -> Floats:
    """Maximum likelihood by Newton's method; models' estimates sum to zero.

    A step changes no logit by more than one, which the logistic loss' self-concordance turns into an ascent
    (Bach 2010, Electronic Journal of Statistics 4).

    Args:
        design: the comparisons.
        weights: ``[rows, draws]``, votes, >= 0.
        start: ``[size]`` where to begin, default zero.

    Returns:
        ``[size, draws]``, logits.

    Raises:
        EvaluationError: no convergence.
    """
    draws = weights.shape[1]
    theta = np.zeros((design.size, draws)) if start is None else np.repeat(start[:, None], draws, axis=1)
    todo = np.arange(draws)
    for _ in range(STEPS):
        at, weight = theta[:, todo], weights[:, todo]
        chance = expit(design.rows @ at)
        gradient = design.rows.T @ (weight * (design.share[:, None] - chance)) - RIDGE * at
        step = np.linalg.solve(_information(design, weight * chance * (1 - chance)), gradient.T[:, :, None])[:, :, 0].T
        reach = np.abs(design.rows @ step).max(axis=0)
        theta[:, todo] += step / np.maximum(reach, 1.0)
        todo = todo[(gradient * step).sum(axis=0) > CLOSE * weight.sum(axis=0)]
        if not len(todo):
            return theta
    raise EvaluationError(f"the ratings did not converge in {STEPS} Newton steps: check the battles for errors")


def _information(design: Design, curved: Floats) -> Floats:
    """``[draws, size, size]``; a shift of all models, of which votes say nothing, counts as much as any other."""
    found = (design.squares.T @ curved).T.reshape(-1, design.size, design.size) + RIDGE * np.eye(design.size)
    found[:, : design.models, : design.models] += curved.sum(axis=0)[:, None, None] / design.models**2
    return found
