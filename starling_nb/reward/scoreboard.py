"""The scoreboard: every method on every kind of pair, with what knows nothing of content and what labels allow at best.

The longest-answer baseline and the ceiling are in every table, so that no accuracy stands alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from starling_nb.reward import metrics
from starling_nb.reward.metrics import MetricError
from starling_nb.stats import Interval, share_change, share_interval

if TYPE_CHECKING:
    from starling_nb.reward.comparisons import Comparison

Scores = Sequence[Sequence[float]]
NAMES = {
    "all pairs": "pairwise_accuracy",
    "held-out responders": "held_out_responders",
    "same model": "same_model",
    "same model, same length": "same_model_same_length",
}
UNKNOWN_CEILING = Interval(1.0, 0.5, 1.0, 0)
"""What is known of the ceiling while nothing was ranked twice: it lies between a half and one."""


def baselines(train: Sequence[Comparison], test: Sequence[Comparison]) -> dict[str, Scores]:
    """Scores of the test comparisons by methods that know nothing of content."""
    surface = metrics.fit_surface(train)
    return {"longest": [metrics.longest(c) for c in test], "surface": [surface(c) for c in test]}


def kinds(pairs: pd.DataFrame, held_out: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Pairs by kind: all, those with a held-out responder, and two samples of the embedded model of like length."""
    better, worse = pairs.responder_better, pairs.responder_worse
    held = pairs[better.isin(held_out) | worse.isin(held_out)]
    embedded = [side.astype(str).str.startswith("smollm2") for side in (better, worse)]
    same = pairs[embedded[0] & embedded[1]]
    return {
        "all pairs": pairs,
        "held-out responders": held,
        "same model": same,
        "same model, same length": metrics.length_matched(same),
    }


def table(
    test: Sequence[Comparison],
    scores: Mapping[str, Scores],
    held_out: Sequence[str],
    ceiling: Interval | None = None,
) -> pd.DataFrame:
    """Every method on every kind of pair and on whole rankings: method, metric, value, low, high, n.

    Beside accuracies and :func:`metrics.evaluate` there are ``length_controlled`` accuracy and ``length_slope``, each
    where the pairs allow it: a kind without pairs, and a figure that needs other lengths, have no row.

    Args:
        test: ranked comparisons.
        scores: of each method, one list a comparison. The longest-answer baseline is added if it is not there.
        held_out: responders that training never saw.
        ceiling: accuracy on all pairs that one ranking of the judge allows (merged ones allow more), see
            :class:`starling_nb.reward.calibration.Ceiling`; unknown, its row says that it lies between 0.5 and 1, with
            n = 0.

    Raises:
        MetricError: as :func:`metrics.evaluate`.
    """
    longest = {} if "longest" in scores else {"longest": [metrics.longest(c) for c in test]}
    rows = []
    for method, values in {**scores, **longest}.items():
        rows += [{"method": method, "metric": name, **vars(x)} for name, x in _figures(test, values, held_out).items()]
    rows.append({"method": "ceiling", "metric": NAMES["all pairs"], **vars(ceiling or UNKNOWN_CEILING)})
    return pd.DataFrame(rows)


def _figures(test: Sequence[Comparison], values: Scores, held_out: Sequence[str]) -> dict[str, Interval]:
    """One method's figures by metric."""
    every = metrics.pairs(test, values)
    parts = {NAMES[kind]: part for kind, part in kinds(every, held_out).items() if len(part)}
    found = {name: share_interval(part.right, part.prompt_id) for name, part in parts.items()}
    found |= {name: x for name, x in metrics.evaluate(test, values).items() if name not in found}
    with suppress(MetricError):
        found["length_controlled"] = metrics.length_controlled(every)
    with suppress(MetricError):
        found["length_slope"] = metrics.length_drift(test, values)["slope"]
    return found


def of_pairs(board: pd.DataFrame) -> pd.DataFrame:
    """The scoreboard's accuracies on the kinds of pairs, without the figures of whole rankings."""
    return board[board.metric.isin(list(NAMES.values()))]


def cell(board: pd.DataFrame, method: str, kind: str) -> Interval:
    """One cell of the scoreboard, by kind of pair or by metric.

    Raises:
        MetricError: the scoreboard has no such cell.
    """
    rows = board[(board.method == method) & (board.metric == NAMES.get(kind, kind))]
    if rows.empty:
        raise MetricError(f"the scoreboard has no {kind!r} of {method!r}: there were no such pairs, or no such method")
    row = rows.iloc[0]
    return Interval(float(row.value), float(row.low), float(row.high), int(row.n))


def lead(
    test: Sequence[Comparison],
    scores: Mapping[str, Scores],
    ours: str,
    rival: str,
    kind: str,
    held: Sequence[str],
) -> Interval:
    """Accuracy of one method minus another's on one kind of pair, paired, interval over prompts.

    Raises:
        MetricError: there is no pair of the kind.
    """
    gap, prompts = _paired(test, scores, ours, rival, kind, held)
    return share_change(gap, prompts)


def leads(
    test: Sequence[Comparison], scores: Mapping[str, Scores], held: Sequence[str]
) -> list[tuple[str, str, Interval]]:
    """The K-wise model's lead over each baseline on each claimed kind of pair that there is: name, text, interval."""
    found = []
    there = kinds(metrics.pairs(test, scores["k_wise"]), held)
    for kind in ("all pairs", "held-out responders", "same model, same length"):
        for rival in ("longest", "surface") if len(there[kind]) else ():
            gap = lead(test, scores, "k_wise", rival, kind, held)
            found.append((f"beats_{rival}.{NAMES[kind]}", f"K-wise reward - {rival} baseline, accuracy, {kind}", gap))
    return found


def smallest_lead(
    test: Sequence[Comparison],
    scores: Mapping[str, Scores],
    ours: str,
    rival: str,
    kind: str,
    held: Sequence[str],
) -> float:
    """The true lead that this many prompts would show four times in five, see :func:`smallest_difference`.

    Raises:
        MetricError: there is no pair of the kind, or one prompt alone.
    """
    return smallest_difference(*_paired(test, scores, ours, rival, kind, held))


def smallest_difference(differences: ArrayLike, clusters: ArrayLike, power: float = 0.8, level: float = 0.95) -> float:
    """Smallest detectable mean difference: its standard error, clustered, times 2.8 (normal quantiles, two-sided).

    Args:
        differences: one number a pair, for example right by one method less right by the other.
        clusters: the prompt of each.
        power: the chance of seeing it. level: of the interval that has to exclude 0.

    Raises:
        MetricError: fewer than two clusters, or lengths that differ.
    """
    x, names = np.asarray(differences, dtype=np.float64), np.asarray(clusters)
    if x.shape != names.shape or len(set(names.tolist())) < 2:
        raise MetricError("the smallest detectable difference needs differences of two prompts or more, with their ids")
    sums = np.bincount(np.unique(names, return_inverse=True)[1], weights=x - x.mean())
    error = math.sqrt(np.sum(sums**2) * len(sums) / (len(sums) - 1)) / len(x)
    return float(scipy_stats.norm.ppf((1 + level) / 2) + scipy_stats.norm.ppf(power)) * error


def flat_scores(scores: Scores, least: float = 1e-3) -> str | None:
    """A warning if scores hardly differ within prompts: pooled standard deviation below ``least`` logits."""
    every = [np.asarray(values, dtype=np.float64) for values in scores if len(values) > 1]
    if any(not np.isfinite(values).all() for values in every):
        return "some scores are not finite: the reward model has diverged"
    if not every:
        return "no prompt has two scores: nothing tells whether the reward model ranks"
    spread = math.sqrt(sum(float(((v - v.mean()) ** 2).sum()) for v in every) / sum(len(v) - 1 for v in every))
    if spread >= least:
        return None
    return (
        f"scores of one prompt's answers differ by {spread:.1g} (standard deviation): the reward model learned nothing"
    )


def at_chance(accuracy: Interval) -> str | None:
    """A warning if an accuracy is not shown to be above a coin's: its interval begins below 0.5, or there is none."""
    if not math.isfinite(accuracy.low) or not math.isfinite(accuracy.high):
        return (
            f"the accuracy of {accuracy.value:.3f} has no interval: {accuracy.n} prompt(s) cannot tell it from chance"
        )
    if accuracy.low > 0.5:
        return None
    span = f"{accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}]"
    if accuracy.high < 0.5:
        return f"the accuracy of {span} is worse than chance (0.5): is rank 1 the best answer in these data?"
    return f"the accuracy of {span} may be chance (0.5): train longer, or test on more prompts"


def warnings_of(board: pd.DataFrame, scores: Mapping[str, Scores], methods: Sequence[str]) -> list[str]:
    """What is wrong with trained methods at first sight: flat scores, or accuracy at chance; each names its method."""
    found = []
    for method in methods:
        told = (flat_scores(scores[method]), at_chance(cell(board, method, "all pairs")))
        found += [f"{method}: {text}" for text in told if text]
    return found


def _paired(
    test: Sequence[Comparison], scores: Mapping[str, Scores], ours: str, rival: str, kind: str, held: Sequence[str]
) -> tuple[metrics.Floats, pd.Series]:
    """Right by one method less right by the other on each pair of a kind, and the pairs' prompts."""
    mine, theirs = (kinds(metrics.pairs(test, scores[name]), held)[kind] for name in (ours, rival))
    if mine.empty:
        raise MetricError(f"there is no pair of the kind {kind!r}: nothing can lead on it")
    return mine.right.to_numpy() - theirs.right.to_numpy(), mine.prompt_id
