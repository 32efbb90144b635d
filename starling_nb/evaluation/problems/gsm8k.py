"""GSM8K: grade-school word problems with a number as answer (Cobbe et al. 2021, arXiv 2110.14168).

Answers are read in two ways, as the task ``gsm8k`` of lm-evaluation-harness does: *strict* wants ``#### n``, as the
data set's own solutions end; *flexible* takes the last number. Both are reported, because a chat model that was shown
no solved example seldom writes the mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

import pandas as pd
from scipy.stats import binomtest

from starling_nb import files
from starling_nb.chat import Message
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.tables import same_items
from starling_nb.stats import Interval, share_change, share_interval

Verdict = Literal["measured", "floor: not testable"]
FLOOR = 0.05
"""Where the lower bounds of both models' accuracies are under this, no change can be told."""
READINGS = ("strict", "flexible")

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


@dataclass(frozen=True)
class Problem:
    """A word problem, a worked solution that ends with ``#### n``, and the number ``n``."""

    id: str
    question: str
    solution: str
    answer: Decimal


@dataclass(frozen=True)
class Comparison:
    """Accuracies before and after by reading, and their paired change, each 0..1."""

    verdict: Verdict
    before: dict[str, Interval]
    after: dict[str, Interval]
    change: dict[str, Interval]


def load(path: Path | None = None) -> list[Problem]:
    """Read problems: the embedded ones by default, or rows of question and answer as GSM8K has them, ids optional.

    An answer is a solution that ends with ``#### n``. The embedded problems, of one to three steps, are easier.

    Raises:
        EvaluationError: a row lacks a field or its solution ends with no number, or an id occurs twice.
    """
    path = path or files.DATA / "bench_word_problems.jsonl"
    problems = []
    for number, row in enumerate(files.read_jsonl(path), 1):
        try:
            question, solution = row["question"], row["answer"]
            right = strict(solution)
        except (KeyError, TypeError) as error:
            raise EvaluationError(
                f"{path}, row {number} has no usable {error}: it needs question and answer"
            ) from error
        if right is None:
            raise EvaluationError(f"{path}, row {number}: the answer has no `#### n` with a number: mend the row")
        problems.append(Problem(str(row.get("id", number)), question, solution, right))
    if len({problem.id for problem in problems}) != len(problems):
        raise EvaluationError(f"{path}: two problems have the same id: give each its own")
    return problems


def conversation(problem: Problem, examples: Sequence[Problem] = ()) -> list[Message]:
    """The problem as a user's turn; solved ``examples`` come first, as the harness writes them."""
    solved = [f"Question: {one.question}\nAnswer: {one.solution}" for one in examples]
    return [{"role": "user", "content": "\n\n".join([*solved, f"Question: {problem.question}\nAnswer:"])}]


def strict(reply: str) -> Decimal | None:
    """The number after the first ``####``; None where there is none."""
    match = _STRICT.search(reply)
    return number(match[1]) if match else None


def flexible(reply: str) -> Decimal | None:
    """The last number of a reply; None where there is none."""
    found = _FLEXIBLE.findall(reply)
    return number(found[-1]) if found else None


def number(text: str) -> Decimal | None:
    """A number without thousands commas, dollar signs and a full stop at its end; None for what is none."""
    plain = text.replace(",", "").replace("$", "").removesuffix(".")
    try:
        return Decimal(plain) if plain.isascii() else None
    except InvalidOperation:
        return None


def score(problems: Sequence[Problem], replies: Mapping[str, str]) -> pd.DataFrame:
    """One row a problem: id, strict and flexible (right or not), unread (no number at all).

    Raises:
        EvaluationError: a problem has no reply.
    """
    if missing := [problem.id for problem in problems if problem.id not in replies]:
        raise EvaluationError(f"{len(missing)} problems have no reply, {missing[0]} first: answer all of them")
    rows = []
    for problem in problems:
        marked, last = strict(replies[problem.id]), flexible(replies[problem.id])
        rows.append((problem.id, marked == problem.answer, last == problem.answer, last is None))
    return pd.DataFrame(rows, columns=["id", *READINGS, "unread"])


def accuracy(scores: pd.DataFrame) -> dict[str, Interval]:
    """Share of right answers by reading, 0..1, with intervals over problems."""
    return {name: share_interval(scores[name]) for name in READINGS}


def above_floor(scores: pd.DataFrame) -> float:
    """One-sided binomial p-value that more than :data:`FLOOR` of the problems are solved, by the flexible reading.

    Shares of several answers are summed and rounded down, which keeps the p-value on the safe side.
    """
    right = int(scores["flexible"].astype(float).sum() + 1e-9)
    return float(binomtest(right, len(scores), FLOOR, alternative="greater").pvalue)


def compare(before: pd.DataFrame, after: pd.DataFrame) -> Comparison:
    """Accuracies and their change, paired by problem.

    Where neither model can be told from :data:`FLOOR` by the flexible reading, the verdict says so: no change could
    be seen there, whatever it is.

    Raises:
        EvaluationError: the two hold different problems, or none.
    """
    both = same_items(before, after, "problems")
    change = {name: share_change(both[f"{name}_after"].astype(float) - both[f"{name}_before"]) for name in READINGS}
    old, new = accuracy(before), accuracy(after)
    floor = max(old["flexible"].low, new["flexible"].low) < FLOOR
    return Comparison("floor: not testable" if floor else "measured", old, new, change)
