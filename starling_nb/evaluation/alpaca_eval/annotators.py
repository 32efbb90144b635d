"""AlpacaEval's annotators: what the place of an answer does to them, and how far two of them agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.agreement import share
from starling_nb.evaluation.alpaca_eval import win_rate
from starling_nb.evaluation.tables import need, single
from starling_nb.judge import Outcome
from starling_nb.stats import Interval


@dataclass(frozen=True)
class Annotators:
    """Two annotators on the same answers of several models; ``n`` of the intervals counts prompts.

    Attributes:
        order: share of the pairs of models on one prompt that both separate and put in the same order.
        pairs: how many such pairs there are.
        same_winner: share of the comparisons with the baseline, decided by both, that have the same winner.
        comparisons: how many such comparisons there are.
        spearman: rank correlation of the models' mean preferences on the prompts that both have; ``models`` of them.
    """

    order: Interval
    pairs: int
    same_winner: Interval
    comparisons: int
    spearman: float
    models: int


def verdicts(outcomes: Iterable[Outcome[float]], generators: tuple[str, str]) -> pd.DataFrame:
    """A judge's replies to :func:`starling_nb.evaluation.alpaca_eval.requests`, each on a row of its own.

    Columns as :mod:`agreement` takes them: prompt_id, first and second (of ``generators``, baseline and model, as
    shown) and winner, None where the reply could not be read.
    """
    rows = []
    for outcome in outcomes:
        id, order = outcome.id.rsplit("/", 1)
        shown = generators if order == "12" else generators[::-1]
        first = 1.0 if order == "12" else 2.0
        winner = None if outcome.value is None else {first: "first", 1.5: "tie"}.get(outcome.value, "second")
        rows.append((id, *shown, winner))
    return pd.DataFrame(rows, columns=["prompt_id", "first", "second", "winner"]).astype({"winner": object})


def by_shown_order(annotations: pd.DataFrame, shown_first: str = "candidate_shown_first") -> pd.DataFrame:
    """A model's AlpacaEval win rate where its answer was shown first and where second, and that of the first slot.

    Args:
        annotations: as :func:`starling_nb.evaluation.alpaca_eval.win_rate` takes them, with a column of true and false.
        shown_first: that column's name.

    Returns:
        ``shown, win_rate, low, high, n`` in per cent, one row each for ``first``, ``second`` and ``slot``: the win rate
        of whatever was shown first, both halves weighing the same; 50 where the place does not matter.

    Raises:
        EvaluationError: no such column; one of the two orders has no preference; or as ``win_rate``.
    """
    need(annotations, [shown_first, "preference"])
    where = annotations[shown_first].astype(bool)
    one, other = (win_rate(annotations[half]) for half in (where, ~where))
    rate = (one.win_rate + 100 - other.win_rate) / 2
    half = 1.96 * np.hypot(one.standard_error, other.standard_error) / 2
    rows = [(name, r.win_rate, r.low, r.high, r.n) for name, r in (("first", one), ("second", other))]
    rows.append(("slot", rate, rate - half, rate + half, one.n + other.n))
    return pd.DataFrame(rows, columns=["shown", "win_rate", "low", "high", "n"])


def agreement(one: pd.DataFrame, other: pd.DataFrame, margin: float = 0.0) -> Annotators:
    """How far two AlpacaEval annotators agree about the same models' answers.

    Args:
        one, other: ``prompt_id, model, preference`` (1 to 2), one row an answer; their baselines may differ, but then
            ``same_winner`` means little.
        margin: pairs of models count where ``other`` separates them by more than this (and ``one`` at all).

    Raises:
        EvaluationError: a missing column, an answer judged twice, or nothing that both have judged.
    """
    wide = []
    for table in (one, other):
        need(table, ["prompt_id", "model", "preference"])
        single(table, ["prompt_id", "model"], "an answer has two preferences of one annotator")
        wide.append(table.pivot(index="prompt_id", columns="model", values="preference"))
    a, b = wide[0].align(wide[1], join="inner")
    both = a.notna() & b.notna()
    a, b = a.where(both), b.where(both)
    if not both.any(axis=None):
        raise EvaluationError("the annotators have judged no answer in common: name prompts and models alike")
    hits, clusters = [], []
    for x, y in combinations(a.columns, 2):
        left, right = a[x] - a[y], b[x] - b[y]
        apart = (left.abs() > 0) & (right.abs() > margin)
        hits.append((np.sign(left) == np.sign(right))[apart])
        clusters.append(a.index[apart])
    order = np.concatenate(hits) if hits else np.zeros(0)
    decided = both & (a != 1.5) & (b != 1.5)
    row, _ = np.nonzero(decided.to_numpy())
    same = ((a > 1.5) == (b > 1.5)).to_numpy()[decided.to_numpy()]
    return Annotators(
        share(order, np.concatenate(clusters) if clusters else order),
        len(order),
        share(same, a.index.to_numpy()[row]),
        len(same),
        float(a.mean().corr(b.mean(), method="spearman")),
        int(both.any().sum()),
    )
