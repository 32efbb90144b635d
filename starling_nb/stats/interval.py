"""What every figure here has: an interval, input that is checked, clusters, and randomness from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def finite(values: ArrayLike, name: str) -> Floats:
    """The values as one row of floats.

    Raises:
        StatsError: there are none, or one is not finite; the message calls them ``name``.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    if not len(x):
        raise StatsError(f"{name} are empty: there is nothing to compute")
    if not np.isfinite(x).all():
        raise StatsError(f"{name} hold {int((~np.isfinite(x)).sum())} numbers that are not finite: drop or mend them")
    return x


def cluster_sums(x: Floats, clusters: ArrayLike | None) -> tuple[Floats, Floats]:
    """Sum and size of each cluster."""
    if clusters is None:
        return x, np.ones_like(x)
    ids = np.asarray(clusters)
    if ids.shape != x.shape:
        raise StatsError(f"{len(x)} values but {ids.size} cluster ids: give one id a value")
    _, index = np.unique(ids, return_inverse=True)
    return np.bincount(index, weights=x).astype(np.float64), np.bincount(index).astype(np.float64)


def blocks(draws: int, width: int, compute: Callable[[int], Floats]) -> Floats:
    """``compute(rows)`` for ``draws`` rows in all, in blocks of bounded memory."""
    size = max(1, BLOCK // width)
    return np.concatenate([compute(min(size, draws - start)) for start in range(0, draws, size)])


def generator_of(seed: int | np.random.Generator, use: str) -> np.random.Generator:
    """The generator itself, or one for this use of the seed."""
    return seed if isinstance(seed, np.random.Generator) else rng(seed, use)
