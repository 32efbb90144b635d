"""How many rows each source gives to a mixture, and which.

Every choice is a draw from the hash of (seed, prompt key): a prompt has the same luck in whatever order or company it
is read, and a prompt set that grows keeps most of what it held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from starling_nb.nectar.prompts.settings import SourceSettings


@dataclass(frozen=True)
class Quota:
    """Rows that one source gives, and rows that were wanted from it."""

    rows: int
    wanted: int


def draw(seed: int, purpose: str, key: str) -> int:
    """A number of 64 bits, uniform over keys."""
    digest = hashlib.blake2b(f"{purpose} {seed} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def quotas(sources: Sequence[SourceSettings], available: Mapping[str, int], rows: int) -> dict[str, Quota]:
    """Rows that each source gives.

    A source with a count gives that many; the weighted ones share ``rows`` less all counts by weight; one with neither
    gives all it has. A source that has too few gives all, and the other weighted ones fill its place by their weights.
    With ``rows`` 0, the weighted ones give the largest mixture in which the weights hold exactly.
    """
    found = {}
    for source in sources:
        if not source.weight:
            wanted = source.count or available[source.name]
            found[source.name] = Quota(min(wanted, available[source.name]), wanted)
    weights = {source.name: source.weight for source in sources if source.weight}
    if weights:
        whole = sum(weights.values())
        total = rows - sum(source.count for source in sources)
        if not rows:
            total = int(min(available[name] * whole / weight for name, weight in weights.items()) + 1e-9)
        ideal = split(total, weights)
        given = fill(total, weights, available)
        found |= {name: Quota(given[name], ideal[name]) for name in weights}
    return {source.name: found[source.name] for source in sources}


def split(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """``total`` in whole parts by weight, by largest remainder; the first among equals gets more."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    parts = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(weights, key=lambda name: parts[name] - exact[name])
    for name in by_rest[: total - sum(parts.values())]:
        parts[name] += 1
    return parts


def fill(total: int, weights: Mapping[str, float], available: Mapping[str, int]) -> dict[str, int]:
    """:func:`split`, where no part may be larger than what is available; others fill the gap by their weights."""
    open_, left = dict(weights), total
    parts: dict[str, int] = {}
    while open_:
        ideal = split(left, open_)
        short = [name for name in open_ if available[name] <= ideal[name]]
        if not short:
            return parts | ideal
        for name in short:
            parts[name] = available[name]
            left -= available[name]
            del open_[name]
    return parts


def drawn(draws: Sequence[int], rows: int) -> np.ndarray:
    """Places of the ``rows`` smallest draws, in order of place."""
    return np.sort(np.argsort(np.asarray(draws, np.uint64), kind="stable")[:rows])
