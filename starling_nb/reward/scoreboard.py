"""The scoreboard: every method on every kind of pair, beside baselines that know nothing of content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from starling_nb.reward import metrics
from starling_nb.reward.comparisons import Comparison
from starling_nb.stats import Interval, paired_difference

Scores = Sequence[Sequence[float]]


def baselines(train: Sequence[Comparison], test: Sequence[Comparison]) -> dict[str, Scores]:
    """Scores of the test comparisons by methods that know nothing of content."""
    surface = metrics.fit_surface(train)
    return {"longest": [metrics.longest(c) for c in test], "surface": [surface(c) for c in test]}


def kinds(pairs: pd.DataFrame, held_out: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Pairs by kind: all, those with a held-out responder, and two samples of the embedded model of like length."""
    better, worse = pairs.responder_better, pairs.responder_worse
    held = pairs[better.isin(held_out) | worse.isin(held_out)]
    same = pairs[better.str.startswith("smollm2") & worse.str.startswith("smollm2")]
    return {
        "all pairs": pairs,
        "held-out responders": held,
        "same model": same,
        "same model, same length": metrics.length_matched(same),
    }


def table(test: Sequence[Comparison], scores: Mapping[str, Scores], held_out: Sequence[str]) -> pd.DataFrame:
    """Every method on every kind of pair and on whole rankings: method, metric, value, low, high, n."""
    rows = []
    for method, values in scores.items():
        for kind, part in kinds(metrics.pairs(test, values), held_out).items():
            if len(part):
                found = metrics.mean_interval(part.right, part.prompt_id)
                rows.append({"method": method, "metric": kind, **vars(found)})
        for metric, found in metrics.evaluate(test, values).items():
            if metric != "pairwise_accuracy":
                rows.append({"method": method, "metric": metric, **vars(found)})
    board = pd.DataFrame(rows)
    board["metric"] = board.metric.replace(NAMES)
    return board


NAMES = {
    "all pairs": "pairwise_accuracy",
    "held-out responders": "held_out_responders",
    "same model": "same_model",
    "same model, same length": "same_model_same_length",
}


def of_pairs(board: pd.DataFrame) -> pd.DataFrame:
    """The scoreboard's accuracies on the kinds of pairs, without the figures of whole rankings."""
    return board[board.metric.isin(list(NAMES.values()))]


def cell(board: pd.DataFrame, method: str, kind: str) -> Interval:
    """One cell of the scoreboard."""
    row = board[(board.method == method) & (board.metric == NAMES.get(kind, kind))].iloc[0]
    return Interval(float(row.value), float(row.low), float(row.high), int(row.n))


def lead(
    test: Sequence[Comparison],
    scores: Mapping[str, Scores],
    ours: str,
    rival: str,
    kind: str,
    held: Sequence[str],
) -> Interval:
    """Accuracy of one method minus another's on one kind of pair, paired, interval over prompts."""
    mine = kinds(metrics.pairs(test, scores[ours]), held)[kind]
    theirs = kinds(metrics.pairs(test, scores[rival]), held)[kind]
    return paired_difference(mine.right, theirs.right, clusters=mine.prompt_id)


def leads(
    test: Sequence[Comparison], scores: Mapping[str, Scores], held: Sequence[str]
) -> list[tuple[str, str, Interval]]:
    """The K-wise model's lead over each baseline on each kind of pair that is claimed: name, text, interval."""
    found = []
    for kind in ("all pairs", "held-out responders", "same model, same length"):
        for rival in ("longest", "surface"):
            gap = lead(test, scores, "k_wise", rival, kind, held)
            found.append((f"beats_{rival}.{NAMES[kind]}", f"K-wise reward - {rival} baseline, accuracy, {kind}", gap))
    return found
