"""AlpacaEval's files, ``model_outputs.json`` and ``annotations.json``, and which of their rows count.

Both are lists of records in the layout of ``tatsu-lab/alpaca_eval`` (Li et al. 2023); what is written here, the
official package reads. ``output_1`` is the baseline's answer, ``preference`` runs from 1 (baseline better) to 2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from starling_nb import files
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.tables import need

OUTPUTS = ("dataset", "instruction", "output", "generator")
COLUMNS = (
    *("instruction", "output_1", "generator_1", "output_2", "generator_2"),
    *("dataset", "annotator", "preference", "raw_completion"),
)
CONTENT = ("instruction", "output_1", "output_2", "preference")
"""What a row says; rows that are equal in these are copies of one row."""


@dataclass(frozen=True)
class Checked:
    """Annotations of one model against one baseline by one annotator, one row an instruction.

    Attributes:
        rows: those that stay, in their order; ``preference`` is a number from 1 to 2, or NaN where a row has none that
            can be used.
        excluded: how many rows do not count, by reason: ``other generator``, ``other baseline``, ``other annotator``,
            ``copy of a row``, ``judged twice with different results`` are no longer in ``rows``; ``no preference``,
            ``preference is no number`` and ``preference outside 1 to 2`` are, with NaN.
    """

    rows: pd.DataFrame
    excluded: dict[str, int]


def check(
    annotations: pd.DataFrame,
    *,
    generator: str | None = None,
    baseline: str | None = None,
    annotator: str | None = None,
) -> Checked:
    """Take the rows that count and say how many do not, and why.

    A row that stands there twice counts once; an instruction judged twice with different results does not count at
    all. As in the official code a preference of 0 is a tie (1.5).

    Args:
        annotations: needs ``preference``. The other official columns are checked where they are there.
        generator, baseline, annotator: names in ``generator_2``, ``generator_1`` and ``annotator``; rows of others
            are left out. Not needed where a column holds one name.

    Raises:
        EvaluationError: there is no ``preference``; a column holds several names and none was asked for, or not the
            one that was.
    """
    need(annotations, ["preference"], "annotations")
    excluded: Counter[str] = Counter()
    rows = annotations
    asked = {"generator_2": generator, "generator_1": baseline, "annotator": annotator}
    for (column, name), argument in zip(asked.items(), ("generator", "baseline", "annotator"), strict=True):
        kept = _of_one(rows, column, name, argument)
        excluded[f"other {argument}"] += len(rows) - len(kept)
        rows = kept
    if "instruction" in rows:
        once = rows.drop_duplicates([column for column in CONTENT if column in rows])
        alone = once[~once.duplicated("instruction", keep=False)]
        excluded["copy of a row"] += len(rows) - len(once)
        excluded["judged twice with different results"] += len(once) - len(alone)
        rows = alone
    rows = rows.assign(preference=_numbers(rows["preference"], excluded))
    return Checked(rows, {reason: count for reason, count in excluded.items() if count})


def _of_one(rows: pd.DataFrame, column: str, name: str | None, argument: str) -> pd.DataFrame:
    """Rows with ``name`` in ``column``; all of them where the column is not there or holds one name."""
    if column not in rows:
        if name is not None:
            raise EvaluationError(f"{argument}={name!r} cannot be found: the annotations have no column {column}")
        return rows
    names = sorted(map(str, rows[column].dropna().unique()))
    if name is None and len(names) > 1:
        raise EvaluationError(f"{column} holds {len(names)} names ({', '.join(names[:3])} …): choose by {argument}=")
    if name is not None and name not in names:
        raise EvaluationError(f"{argument}={name!r} is not in the column {column}, which holds {', '.join(names[:3])}")
    return rows if name is None else rows[rows[column] == name]


def _numbers(preference: pd.Series, excluded: Counter[str]) -> pd.Series:
    """Preferences as numbers from 1 to 2, NaN where there is none; what is wrong is counted."""
    given = preference.notna()
    number = pd.to_numeric(preference, errors="coerce").astype(float).replace(0.0, 1.5)
    inside = number.between(1, 2)
    excluded["no preference"] += int((~given).sum())
    excluded["preference is no number"] += int((given & number.isna()).sum())
    excluded["preference outside 1 to 2"] += int((number.notna() & ~inside).sum())
    return number.where(inside)


def in_order(annotations: pd.DataFrame, instructions: Sequence[str]) -> pd.DataFrame:
    """The rows in the order of ``instructions``, as the length-controlled win rate needs them.

    Raises:
        EvaluationError: an instruction has no row or several, or a row is about another instruction.
    """
    if "instruction" not in annotations:
        raise EvaluationError("the rows have no column instruction, by which they could be put in order")
    place = {text: number for number, text in enumerate(instructions)}
    found = annotations["instruction"].map(place)
    missing = len(place) - found.nunique()
    if found.isna().any() or found.duplicated().any() or missing:
        raise EvaluationError(
            f"{int(found.isna().sum())} rows are about other instructions, {int(found.dropna().duplicated().sum())} "
            f"stand there again and {missing} instructions have no row: give one row an instruction"
        )
    return annotations.iloc[found.argsort()].reset_index(drop=True)


def weighted_preference(logprobs: Mapping[str, float], first: str = "m", second: str = "M") -> float:
    """Preference from the log-probabilities of a judge's single token: 2 - p(first) / (p(first) + p(second)).

    Args:
        logprobs: natural log-probabilities by token, for example the five most probable ones.
        first, second: tokens that name ``output_1`` and ``output_2``. The official judge shows the outputs in a random
            order: swap the tokens where ``output_2`` was shown first.

    Returns:
        From 1 to 2; a token that is not there has probability 0, and without both the preference is NaN.
    """
    one, other = (logprobs.get(token, -math.inf) for token in (first, second))
    if max(one, other) == -math.inf:
        return math.nan
    return 2 - 1 / (1 + math.exp(min(other - one, 700.0)))


def write_annotations(path: Path, annotations: pd.DataFrame) -> None:
    """Write the official ``annotations.json``; a missing preference becomes ``null``.

    Raises:
        EvaluationError: an official column is missing.
    """
    need(annotations, COLUMNS, "annotations")
    table = annotations.astype(object).where(annotations.notna(), None)
    files.write_json(path, table.to_dict(orient="records"))


def read_annotations(path: Path) -> pd.DataFrame:
    """Read an ``annotations.json`` as it stands; :func:`check` says which rows count.

    Raises:
        EvaluationError: it is no list of records, or they lack a column that a win rate needs.
    """
    return need(_records(path), ("instruction", "output_1", "output_2", "preference"), str(path))


def write_outputs(
    path: Path, instructions: Iterable[str], outputs: Iterable[str], *, generator: str, dataset: str = "starling_nb"
) -> None:
    """Write the official ``model_outputs.json``: dataset, instruction, output and generator of every answer."""
    rows = [
        dict(zip(OUTPUTS, (dataset, instruction, output, generator), strict=True))
        for instruction, output in zip(instructions, outputs, strict=True)
    ]
    files.write_json(path, rows)


def read_outputs(path: Path, instructions: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a ``model_outputs.json``: instruction, output and what else is there; with ``instructions`` in their order.

    Raises:
        EvaluationError: it is no list of records with texts in ``instruction`` and ``output``; it holds answers of
            several models; or, with ``instructions``, one of them is missing or another is there.
    """
    table = need(_records(path), ("instruction", "output"), str(path))
    for column in ("instruction", "output"):
        if wrong := sum(not isinstance(value, str) for value in table[column]):
            raise EvaluationError(f"{path}: {wrong} rows have no text in {column}: write '' for an empty answer")
    if "generator" in table and table["generator"].nunique() > 1:
        raise EvaluationError(f"{path} holds answers of {table['generator'].nunique()} models: write one file a model")
    return table if instructions is None else in_order(table, instructions)


def _records(path: Path) -> pd.DataFrame:
    rows: Any = files.read_json(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{path} must be a list of records, as the official package writes it")
    return pd.DataFrame(rows)
