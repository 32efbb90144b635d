"""In which order the answers of each prompt are shown to the judge: the designs, by name.

A judge looks at the place as well as at the answer. Chance spreads places evenly in the long run only; the other
designs do so over the data set (``balanced``) or within each prompt (``cyclic``, ``two_pass``), as the Latin square
does in field trials (Fisher 1935).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from starling_nb.errors import StarlingError
from starling_nb.files import rng
from starling_nb.nectar.ranking import random_order

Row = tuple[str, Sequence[str]]
"""A prompt's id, as in ``ranking.build(request_id=…)``, and the model behind each of its K answers."""

DESIGNS: dict[str, str] = {
    "random": "each pass draws an order",
    "balanced": "every model stands in every position equally often over the data set",
    "cyclic": "rotations of one random order: with K passes every answer stands in every position once",
    "two_pass": "a random order, then its mirror image",
}


def orders(design: str, rows: Iterable[Row], seed: int, passes: int = 1) -> Iterator[list[list[int]]]:
    """The shown orders of each prompt: ``passes`` lists of K, place ``p`` holding the index of the answer shown there.

    Rows are read one at a time and the past never changes: the orders of a row depend on the seed, on the row and, in
    ``balanced``, on the rows before it. The first pass of every design but ``balanced`` is the order that
    ``ranking.build`` draws by itself; pass ``n`` of ``random`` is what it draws for :func:`pass_seed`.

    Args:
        design: a name in :data:`DESIGNS`.
        rows: prompt id and models of each prompt, K from 2.
        seed: of every draw and of the tie-breaks.
        passes: rankings a prompt: any number from 1 for ``random``, 1 to K for ``balanced``, 2 to K for ``cyclic``, 2
            for ``two_pass``.

    Raises:
        StarlingError: an unknown design, or a number of passes that it does not have.
    """
    check(design, passes)
    return _balanced(rows, seed, passes) if design == "balanced" else _within(design, rows, seed, passes)


def pass_seed(seed: int, number: int) -> int:
    """The seed of pass ``number`` (from 0), for what is drawn anew in each pass, such as the order of the pairs."""
    return seed + 1000 * number


def check(design: str, passes: int, k: int | None = None) -> None:
    """Refuse what cannot be shown to ``k`` answers, or (None) to any number of them.

    Raises:
        StarlingError: an unknown design, or a number of passes that it does not have.
    """
    if design not in DESIGNS:
        raise StarlingError(f"unknown order design {design!r}: choose from {', '.join(DESIGNS)}")
    least = 2 if design in ("cyclic", "two_pass") else 1
    most = {"random": None, "two_pass": 2}.get(design, k)
    if passes < least or (most is not None and passes > most):
        allowed = {"random": "at least 1", "balanced": "1 to K", "cyclic": "2 to K", "two_pass": "exactly 2"}[design]
        where = "" if k is None else f" (here K = {k})"
        raise StarlingError(f"passes = {passes}: the order design {design!r} has {allowed}{where}")


def _within(design: str, rows: Iterable[Row], seed: int, passes: int) -> Iterator[list[list[int]]]:
    """The designs that look at one prompt at a time."""
    for name, models in rows:
        k = len(models)
        check(design, passes, k)
        first = random_order(seed, name, k)
        if design == "random":
            yield [random_order(pass_seed(seed, number), name, k) for number in range(passes)]
        elif design == "two_pass":
            yield [first, first[::-1]]
        else:
            starts = [number * k // passes for number in range(passes)]
            yield [first[start:] + first[:start] for start in starts]


def _balanced(rows: Iterable[Row], seed: int, passes: int) -> Iterator[list[list[int]]]:
    """The order that keeps the model × position table flattest, row after row.

    Putting a model where it has stood ``c`` times raises the table's sum of squares by ``2 c + 1``: the assignment of
    least total count is the best next order. Rows of different K have tables of their own. Within a prompt no answer
    stands in the same position twice.
    """
    tables: dict[tuple[int, str], NDArray[np.int64]] = {}
    for name, models in rows:
        k = len(models)
        check("balanced", passes, k)
        counts = [tables.setdefault((k, model), np.zeros(k, dtype=np.int64)) for model in models]
        stood = np.zeros((k, k), dtype=bool)  # answer × position
        found = []
        for number in range(passes):
            places = _assign(np.stack(counts), stood, rng(seed, "balanced", name, number))
            for answer, place in enumerate(places):
                counts[answer][place] += 1
                stood[answer, place] = True
            found.append(np.argsort(places).tolist())
        yield found


def _assign(counts: NDArray[np.int64], stood: NDArray[np.bool_], draw: np.random.Generator) -> NDArray[np.int64]:
    """Each answer's position: least total count among those not yet taken, equal totals settled by ``draw``."""
    k = len(counts)
    excess = counts - counts.min(axis=1, keepdims=True)  # a constant in a row changes no choice
    chance = draw.random((k, k)) / k  # less than 1 in all: it never outweighs a count
    return np.asarray(linear_sum_assignment(excess + chance + stood * float(k * (excess.max() + 1)))[1])
