"""Notebook 02, step by step: rankings beside the quality of what was ranked, and one cell of the table of cures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from starling_nb import rubric
from starling_nb.bias.tables import BiasError
from starling_nb.judge.simulation.perception import log_odds
from starling_nb.nectar.candidates import Candidates
from starling_nb.stats import Interval


def graded(rankings: pd.DataFrame, candidates: Sequence[Candidates]) -> pd.DataFrame:
    """Rankings with a column ``quality``: the rubric's utility of each answer as log-odds, in shown order.

    Args:
        rankings: of :func:`starling_nb.nectar.labelling.rank`: ``prompt_id`` and ``shown``.
        candidates: the answers that were ranked.

    Raises:
        BiasError: a ranking of a prompt that is not among the candidates.
    """
    by_id = {item.prompt.id: item for item in candidates}
    if missing := sorted(set(rankings["prompt_id"]) - set(by_id)):
        raise BiasError(
            f"{len(missing)} ranked prompts are no candidates, the first is {missing[0]}: give those ranked"
        )
    worth = {name: _qualities(by_id[name]) for name in rankings["prompt_id"].unique()}
    pairs = zip(rankings["prompt_id"], rankings["shown"], strict=True)
    return rankings.assign(quality=[worth[name][list(shown)].tolist() for name, shown in pairs])


def _qualities(item: Candidates) -> np.ndarray:
    grades = [rubric.grade(item.prompt.rubric, item.prompt.messages, answer).utility for answer in item.answers]
    return log_odds(np.array(grades, dtype=float))


def cell(table: pd.DataFrame, judge: str, cure: str, metric: str, n: int) -> Interval:
    """One figure of :func:`starling_nb.bias.cures.compare`, over ``n`` simulated worlds."""
    row = table.query("judge == @judge and cure == @cure and metric == @metric").iloc[0]
    return Interval(float(row["value"]), float(row["low"]), float(row["high"]), n)
