"""What every table of answers, verdicts or scores has to hold before anything is computed from it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from starling_nb.evaluation import EvaluationError


def need(table: pd.DataFrame, columns: Sequence[str], what: str = "the table") -> pd.DataFrame:
    """The table, if it has these columns; ``what`` names it.

    Raises:
        EvaluationError: it lacks one.
    """
    if missing := [column for column in columns if column not in table]:
        raise EvaluationError(f"no column {', '.join(missing)} in {what}: it needs {', '.join(columns)}")
    return table


def single(table: pd.DataFrame, keys: list[str], what: str) -> None:
    """Refuse a table with two rows of the same keys; ``what`` says what that would mean.

    Raises:
        EvaluationError: there are two.
    """
    if len(again := table[table.duplicated(keys)]):
        names = " ".join(str(again[key].iloc[0]) for key in keys)
        raise EvaluationError(f"{what} ({names}): keep one, or tell them apart by a column of their own in `on`")


def same_items(before: pd.DataFrame, after: pd.DataFrame, what: str) -> pd.DataFrame:
    """Two tables of the same items, joined by ``id``; columns of both end in ``_before`` and ``_after``.

    Raises:
        EvaluationError: they hold different items (``what`` names them), one twice, or none.
    """
    if set(before["id"]) != set(after["id"]) or before["id"].duplicated().any() or len(before) != len(after):
        raise EvaluationError(f"before and after must hold the same {what}, once each: measure both models on one set")
    if before.empty:
        raise EvaluationError(f"before and after hold no {what}: measure both models on some")
    return before.merge(after, on="id", suffixes=("_before", "_after"), validate="one_to_one")
