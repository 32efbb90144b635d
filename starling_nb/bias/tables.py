"""Rankings as arrays: the table that a user has, checked once, for everything that is computed from it.

A table of rankings has one row a verdict: ``prompt_id``; ``models``, the answering models in the order the judge was
shown them; ``ranking``, the shown positions (from 0) from best to worst. Rows may differ in their number of answers K.
A column ``shown`` (or ``answers``) names each answer, in shown order: it is needed only where a prompt is ranked more
than once and one model gave several of its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from starling_nb.errors import StarlingError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
ANSWERS = ("answers", "shown")
"""Columns that name the answers, the first that is there."""


class BiasError(StarlingError, ValueError):
    """Rankings from which position bias cannot be computed."""


@dataclass(frozen=True)
class Rankings:
    """n rankings of at most K answers; what a shorter row lacks is -1.

    Attributes:
        order: ``[n, K]`` shown positions, best to worst.
        length: ``[n]`` answers ranked.
        prompt: ``[n]`` number of the prompt; prompts are what is independent.
        model: ``[n, K]`` number of the model at each shown position, or None.
        models: the models' names.
        prompts: the prompts' ids, where they are known.
    """

    order: Ints
    length: Ints
    prompt: Ints
    model: Ints | None = None
    models: Sequence[str] = ()
    prompts: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.order)

    @property
    def width(self) -> int:
        """The largest number of answers."""
        return self.order.shape[1]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """``[n, K]``: true where a row has an answer, in shown order and in ranked order alike."""
        return np.arange(self.width) < self.length[:, None]

    @property
    def ranks(self) -> Ints:
        """``[n, K]`` rank (0 is best) of the answer at each shown position."""
        ranks = np.full_like(self.order, -1)
        rows, places = np.nonzero(self.mask)
        ranks[rows, self.order[rows, places]] = places
        return ranks

    def best_to_worst(self, shown: NDArray[Any]) -> NDArray[Any]:
        """Values ``[n, K, …]`` in shown order, put in ranked order; what a row lacks is arbitrary."""
        return shown[np.arange(len(self))[:, None], np.maximum(self.order, 0)]


def read(rankings: pd.DataFrame | Rankings, *columns: str) -> Rankings:
    """Check a table; ``columns`` are those needed beside ``ranking``: ``prompt_id``, ``models``.

    Raises:
        BiasError: no rows, a missing column, a row without a ranking (see :func:`valid`), or one that is not a
            permutation of its positions or names another number of models than it ranks.
    """
    if isinstance(rankings, Rankings):
        return rankings
    missing = [name for name in ("ranking", *columns) if name not in rankings.columns]
    if missing:
        raise BiasError(f"the rankings lack {', '.join(missing)}: they need prompt_id, models and ranking")
    if rankings.empty:
        raise BiasError("there are no rankings: nothing can be said about positions")
    order, length = _orders(rankings["ranking"].tolist())
    prompt, prompts = np.arange(len(order)), np.arange(len(order))
    if "prompt_id" in columns:
        if rankings["prompt_id"].isna().any():
            raise BiasError("some rows have no prompt_id: give each row the id of its prompt")
        prompt, prompts = pd.factorize(rankings["prompt_id"], sort=True)
    model, names = _models(rankings["models"].tolist(), length) if "models" in columns else (None, [])
    return Rankings(order, length, prompt, model, names, list(prompts))


def valid(rankings: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a ranking; a failed verdict has None, NaN or an empty list there.

    Raises:
        BiasError: there is no column ``ranking``.
    """
    if "ranking" not in rankings.columns:
        raise BiasError("the rankings lack ranking: they need prompt_id, models and ranking")
    return rankings[[isinstance(row, Sequence | np.ndarray) and len(row) > 0 for row in rankings["ranking"]]]


def named_answers(rankings: pd.DataFrame, table: Rankings) -> tuple[Ints, Ints]:
    """Which answer stands where, so that rows that rank the same answers can be compared.

    Returns:
        ``[n, K]`` number of the answer at each shown position (0 to K - 1 within its row), and ``[n]`` number of the
        set of answers: rows with equal numbers rank the same answers of the same prompt.

    Raises:
        BiasError: rows of one prompt rank the same models, one of them twice, and no column names the answers.
    """
    column = next((name for name in ANSWERS if name in rankings.columns), "models")
    if column not in rankings.columns:
        raise BiasError("the rankings lack models: they need prompt_id, models and ranking")
    code, _ = _models(rankings[column].tolist(), table.length)
    code = np.where(table.mask, code, code.max() + 1 + np.arange(table.width))
    answer = np.argsort(np.argsort(code, axis=1, kind="stable"), axis=1, kind="stable")
    names = np.sort(code, axis=1)
    _, block = np.unique(np.column_stack([table.prompt, names]), axis=0, return_inverse=True)
    twice = (names[:, 1:] == names[:, :-1]).any(1)
    if (np.bincount(block)[block][twice] > 1).any():
        raise BiasError(
            f"a prompt is ranked more than once and its {column} name an answer twice, so that answers cannot be told "
            "apart: add a column `shown` with the number of each answer, in shown order"
        )
    return np.where(table.mask, answer, -1), block.ravel()


def _orders(rows: list[Any]) -> tuple[Ints, Ints]:
    """Rankings padded to ``[n, K]``, and their lengths; each is checked to be a permutation."""
    length = np.array([len(row) if isinstance(row, Sequence | np.ndarray) else 0 for row in rows], dtype=np.intp)
    if len(empty := np.flatnonzero(length == 0)):
        raise BiasError(
            f"{len(empty)} of {len(rows)} rows (the first is row {empty[0]}) have no ranking: leave them out with "
            "bias.valid(rankings), and say how many there were"
        )
    order = np.full((len(rows), length.max()), -1, dtype=np.intp)
    for k in np.unique(length):
        here = np.flatnonzero(length == k)
        try:
            block = np.array([rows[i] for i in here], dtype=np.float64).reshape(len(here), -1)
        except (TypeError, ValueError):
            block = np.full((len(here), k), np.nan)
        wrong = (np.sort(block, axis=1) != np.arange(k)).any(1) if block.shape[1] == k > 1 else np.ones(len(here), bool)
        if wrong.any():
            row = int(here[np.flatnonzero(wrong)[0]])
            raise BiasError(f"row {row}: {np.asarray(rows[row]).tolist()} is not a ranking of the positions 0 to K - 1")
        order[here, :k] = block.astype(np.intp)
    return order, length


def _models(rows: list[Any], length: Ints) -> tuple[Ints, list[str]]:
    """Names ``[n, K]`` as numbers, and the names."""
    for row, (names, k) in enumerate(zip(rows, length, strict=True)):
        named = len(names) if isinstance(names, Sequence | np.ndarray) and not isinstance(names, str) else 0
        if named != k:
            raise BiasError(f"row {row} ranks {k} answers but names {named} models")
    flat = pd.Series([name for names in rows for name in names])
    if flat.isna().any():
        raise BiasError(f"{int(flat.isna().sum())} answers have no model: give each one a name, 'unknown' if need be")
    code, names = pd.factorize(flat.astype(str), sort=True)
    model = np.full((len(rows), length.max()), -1, dtype=np.intp)
    model[np.arange(length.max()) < length[:, None]] = code
    return model, list(names)
