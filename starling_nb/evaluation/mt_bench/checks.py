"""What can be wrong with MT-Bench judgments, by rule: excluded, counted, and told; never averaged in silently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.tables import need
from starling_nb.stats import Interval, paired_difference

if TYPE_CHECKING:
    from starling_nb.evaluation.mt_bench import Question

KEYS = ["question_id", "turn", "repeat"]


@dataclass(frozen=True)
class Excluded:
    """Counts of judgments that are in no mean.

    ``unreadable``: NaN, or FastChat's -1. ``out_of_range``: other scores outside 1..10. ``duplicated``: further rows
    of one question, turn and repeat, of which the first stands. ``unknown``: rows of questions or turns that the bench
    does not have. ``missing``: turns of the bench without any row. The last two are 0 where no bench is given.
    """

    unreadable: int = 0
    out_of_range: int = 0
    duplicated: int = 0
    unknown: int = 0
    missing: int = 0

    def __str__(self) -> str:
        told = [f"{count} {name.replace('_', ' ')}" for name, count in vars(self).items() if count]
        return ", ".join(told) or "nothing excluded"


@dataclass(frozen=True)
class Change:
    """Mean change of the grade, after minus before; ``one_sided`` counts turns graded on one side only."""

    difference: Interval
    one_sided: int
    before: Excluded
    after: Excluded


def check(judgments: pd.DataFrame, questions: Sequence[Question] | None = None) -> tuple[pd.DataFrame, Excluded]:
    """The rows that count, and how many of the others there are by kind; a row is counted once.

    Args:
        judgments: columns question_id, turn, repeat and score, of one model.
        questions: the bench; with it, unknown and missing turns are found too.

    Raises:
        EvaluationError: a column is missing.
    """
    need(judgments, [*KEYS, "score"], "the judgments")
    rows, unknown, missing = judgments, 0, 0
    if questions is not None:
        due = {(question.id, turn + 1) for question in questions for turn in range(len(question.turns))}
        there = list(zip(rows["question_id"].astype(str), rows["turn"].astype(int), strict=True))
        on_bench = pd.Series([key in due for key in there], index=rows.index, dtype=bool)
        unknown, missing = int((~on_bench).sum()), len(due - set(there))
        rows = rows[on_bench]
    duplicated = rows.duplicated(KEYS)
    rows = rows[~duplicated]
    score = pd.to_numeric(rows["score"], errors="coerce").astype(float)
    unreadable = score.isna() | (score == -1)
    outside = ~unreadable & ~score.between(1, 10)
    kept = rows[~unreadable & ~outside].assign(score=score[~unreadable & ~outside])
    return kept, Excluded(int(unreadable.sum()), int(outside.sum()), int(duplicated.sum()), unknown, missing)


def change(before: pd.DataFrame, after: pd.DataFrame, *, seed: int = 0) -> Change:
    """Compare two models over the turns that are graded on both sides, clustered by question.

    Raises:
        EvaluationError: the two have no graded turn in common, or lack a column.
    """
    (old, old_excluded), (new, new_excluded) = check(before), check(after)
    both = old.merge(new, on=KEYS, suffixes=("_before", "_after"), validate="one_to_one")
    if both.empty:
        raise EvaluationError("before and after share no graded turn: grade the same questions on both sides")
    difference = paired_difference(
        both["score_after"].to_numpy(),
        both["score_before"].to_numpy(),
        clusters=both["question_id"].to_numpy(),
        seed=seed,
    )
    return Change(difference, len(old) + len(new) - 2 * len(both), old_excluded, new_excluded)
