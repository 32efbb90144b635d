"""How well scores order answers, beside baselines that know nothing of content.

Every figure has an interval that resamples prompts, because the pairs of one prompt are not independent. Comparisons
in which all answers have one rank, or there is one answer, say nothing and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import optimize

from starling_nb import losses
from starling_nb.errors import StarlingError
from starling_nb.files import rng
from starling_nb.stats import Interval, kendall_tau, mean_interval, share_interval

if TYPE_CHECKING:
    from starling_nb.reward.comparisons import Comparison

Floats = NDArray[np.float64]
REFUSAL = re.compile(r"\b(can(?:no|')t help|cannot|can't|won't|unable to|not able to|sorry)\b", re.IGNORECASE)
LENGTH_STEPS = (0.25, 0.5, 1.0, 2.0)
"""Pairs are compared with pairs of like length difference; its classes end here (powers of two)."""


class MetricError(StarlingError, ValueError):
    """Scores or pairs from which a figure cannot be computed."""


def pairs(comparisons: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> pd.DataFrame:
    """All answer pairs with a strict preference, one row a pair.

    Columns: prompt_id, better and worse (places in the comparison), responder_better, responder_worse,
    length_better and length_worse (words), adjacent (no rank lies between), right (1, or 0.5 for equal scores), gap
    (score of the better less that of the worse) and gap_words. Answers of rank +inf are unranked: worse than every
    ranked one, in no pair with each other.

    Raises:
        MetricError: as many scores as answers are not given, or a score or a rank is NaN, or a score infinite.
    """
    columns: list[tuple[Any, ...]] = []
    for comparison, values in zip(comparisons, _read(comparisons, scores), strict=True):
        order = np.argsort(comparison.ranks, kind="stable")
        level = np.unique(np.asarray(comparison.ranks)[order], return_inverse=True)[1]
        first, second = np.triu_indices(len(order), 1)
        strict = level[first] < level[second]
        first, second = first[strict], second[strict]
        better, worse = order[first], order[second]
        words = np.array([len(answer.split()) for answer in comparison.answers], dtype=np.int64)
        names = np.array(comparison.responders, dtype=object)
        who, adjacent = np.full(len(better), comparison.prompt_id, dtype=object), level[second] - level[first] == 1
        gap, long, short = values[better] - values[worse], words[better], words[worse]
        right = 0.5 * (np.sign(gap) + 1)
        columns.append((who, better, worse, names[better], names[worse], long, short, adjacent, right, gap))
    names_ = "prompt_id better worse responder_better responder_worse length_better length_worse adjacent right gap"
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)] or [np.array([])] * 10
    table = pd.DataFrame(dict(zip(names_.split(), joined, strict=True)))
    return table.assign(gap_words=table.length_better - table.length_worse)


def evaluate(comparisons: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> dict[str, Interval]:
    """Pairwise accuracy (all pairs and adjacent ones), top-1 accuracy, Kendall tau and PL negative log-likelihood.

    Equal scores count half in a pair, by their share of the best in top-1, and constant ones as a tau of 0. Equal
    ranks enter the likelihood by Efron's rule.

    Raises:
        MetricError: as :func:`pairs`, or no comparison prefers an answer.
    """
    table = pairs(comparisons, scores)
    if table.empty:
        raise MetricError("no comparison prefers one answer to another: there is nothing to measure")
    adjacent = table[table.adjacent]
    ranked = [(c, np.asarray(s)) for c, s in zip(comparisons, scores, strict=True) if len(set(c.ranks)) > 1]
    told, asked = [(s, np.asarray(c.ranks)) for c, s in ranked], [c.prompt_id for c, _ in ranked]
    return {
        "pairwise_accuracy": share_interval(table.right, table.prompt_id),
        "adjacent_accuracy": share_interval(adjacent.right, adjacent.prompt_id),
        "top1": share_interval([float((ranks[s == s.max()] == ranks.min()).mean()) for s, ranks in told], asked),
        "kendall_tau": mean_interval([_tau(s, ranks) for s, ranks in told], asked),
        "pl_nll": mean_interval([_pl_nll(s, ranks) for s, ranks in told], asked),
    }


def _read(comparisons: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> list[Floats]:
    """Scores as arrays, one a comparison."""
    if len(comparisons) != len(scores):
        raise MetricError(f"{len(comparisons)} comparisons but {len(scores)} lists of scores: give one list each")
    found = [np.asarray(values, dtype=np.float64) for values in scores]
    for comparison, values in zip(comparisons, found, strict=True):
        if values.shape != (len(comparison.ranks),):
            raise MetricError(f"{comparison.prompt_id}: {len(comparison.ranks)} answers but scores of {values.shape}")
        if not np.isfinite(values).all() or np.isnan(comparison.ranks).any():
            raise MetricError(f"{comparison.prompt_id}: a score is not finite or a rank is NaN: score it again")
    return found


def _tau(scores: Floats, ranks: Floats) -> float:
    """Kendall's tau-b of scores and places; constant scores know nothing: 0."""
    return float(np.nan_to_num(kendall_tau(scores, -np.unique(ranks, return_inverse=True)[1])))


def _pl_nll(scores: Sequence[float] | Floats, ranks: Sequence[float] | Floats) -> float:
    """Plackett-Luce negative log-likelihood of the ranking, nats a ranking."""
    s, places = (torch.as_tensor(np.asarray(x, dtype=np.float64))[None] for x in (scores, ranks))
    return float(losses.plackett_luce_nll(s, ranks=places, ties="efron"))


def length_drift(comparisons: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> dict[str, Interval]:
    """How scores move with length among answers to one prompt.

    ``slope``: standard deviations of the score (within prompts, pooled) for each doubling of the words;
    ``correlation``: of score and log words, within prompts. Constant scores do not move: 0.

    Raises:
        MetricError: as :func:`pairs`, or no prompt has answers of different length.
    """
    sums: dict[str, Floats] = {}
    for comparison, values in zip(comparisons, _read(comparisons, scores), strict=True):
        words = np.log2([max(1, len(answer.split())) for answer in comparison.answers])
        x, z = words - words.mean(), values - values.mean()
        own = np.array([x @ x, x @ z, z @ z if np.ptp(values) else 0.0, len(x)])
        sums[comparison.prompt_id] = sums.get(comparison.prompt_id, 0.0) + own
    every = np.array(list(sums.values())).reshape(-1, 4)
    if not every[:, 0].sum():
        raise MetricError("all answers to each prompt have one length: drift with length cannot be measured")

    def slope(s: Floats) -> Floats:
        return _ratio(s[:, 1] * np.sqrt(s[:, 3]), s[:, 0] * np.sqrt(s[:, 2]))

    def correlation(s: Floats) -> Floats:
        return _ratio(s[:, 1], np.sqrt(s[:, 0] * s[:, 2]))

    return {"slope": _resampled(every, slope), "correlation": _resampled(every, correlation)}


def length_controlled(table: pd.DataFrame) -> Interval:
    """Accuracy on pairs weighted so that length tells nothing: the longer answer is the better one in half of them.

    Pairs are classed by how far apart their lengths are (``LENGTH_STEPS``). In each class the accuracy is the mean of
    that where the longer answer is better and that where the shorter one is; a class with n and m such pairs weighs
    nm / (n + m), as matching would (Li, Morgan & Zaslavsky 2018). Pairs of equal length are balanced as they are.
    Whatever a scorer knows of length alone gets exactly 0.5.

    Raises:
        MetricError: no class has both kinds of pairs, so that length and label cannot be told apart.
    """
    side = np.sign(table.gap_words.to_numpy(dtype=float)).astype(int)
    far = np.abs(np.log2(1.0 + table.length_better) - np.log2(1.0 + table.length_worse))
    step = np.where(side == 0, 0, 1 + np.searchsorted(LENGTH_STEPS, far))
    cells = 2 * (len(LENGTH_STEPS) + 2)
    names, prompt = np.unique(table.prompt_id, return_inverse=True)
    place, size = prompt * cells + 2 * step + (side > 0), len(names) * cells
    count = np.bincount(place, minlength=size).reshape(-1, cells)
    right = np.bincount(place, weights=table.right, minlength=size).reshape(-1, cells)

    def accuracy(sums: Floats) -> Floats:
        n, won = sums[:, :cells].reshape(-1, cells // 2, 2), sums[:, cells:].reshape(-1, cells // 2, 2)
        weight = _ratio(n[..., 0] * n[..., 1], n.sum(2))
        weight[:, 0] = n[:, 0, 0] / 4
        share = _ratio(won, n).mean(2)
        share[:, 0] *= 2
        return _ratio((weight * share).sum(1), weight.sum(1), np.nan)

    both = np.concatenate([count, right], axis=1).astype(np.float64)
    if not len(both) or np.isnan(accuracy(both.sum(0, keepdims=True))[0]):
        raise MetricError(
            "the longer answer is always the better one, or always the worse: length cannot be held fixed"
        )
    return _resampled(both, accuracy)


def _resampled(sums: Floats, figure: Callable[[Floats], Floats], draws: int = 2000) -> Interval:
    """A figure of summed columns ``[prompts, columns]``, with the percentile interval over resampled prompts."""
    value, n = float(figure(sums.sum(0, keepdims=True))[0]), len(sums)
    if n == 1:
        return Interval(value, float("nan"), float("nan"), 1)
    counts = rng(0, "bootstrap").multinomial(n, np.full(n, 1 / n), size=draws)
    found = figure(counts @ sums)
    low, high = np.quantile(found[np.isfinite(found)], [0.025, 0.975])
    return Interval(value, float(low), float(high), n)


def _ratio(over: Floats, under: Floats, empty: float = 0.0) -> Floats:
    """``over / under``, ``empty`` where ``under`` is 0."""
    return np.divide(over, under, out=np.full_like(over, empty, dtype=np.float64), where=under > 0)


def length_matched(table: pd.DataFrame, ratio: float = 1.25) -> pd.DataFrame:
    """Pairs whose answers differ in length by less than ``ratio``."""
    longer = table[["length_better", "length_worse"]].max(axis=1)
    shorter = table[["length_better", "length_worse"]].min(axis=1)
    return table[longer <= ratio * shorter.clip(lower=1)]


def longest(comparison: Comparison) -> list[float]:
    """The longest-answer baseline: words."""
    return [float(len(answer.split())) for answer in comparison.answers]


def surface(comparison: Comparison) -> Floats:
    """Content-free features ``[K, 5]``: log words, refusal words, list or code marks, overlap with prompt, ending."""
    prompt = set(" ".join(m["content"] for m in comparison.messages).lower().split())
    rows = []
    for answer in comparison.answers:
        words = answer.lower().split()
        overlap = sum(word in prompt for word in words) / max(1, len(words))
        marks = len(re.findall(r"^\s*(?:[-*•]|\d+[.)])\s|```", answer, re.MULTILINE))
        ended = answer.rstrip().endswith((".", "!", "?", "```"))
        refusal = REFUSAL.search(answer) is not None
        rows.append([np.log1p(len(words)), float(refusal), np.log1p(marks), overlap, float(ended)])
    return np.array(rows)


def fit_surface(train: Sequence[Comparison], ridge: float = 1e-3) -> Callable[[Comparison], list[float]]:
    """A logistic regression on pairs of :func:`surface` features; returns a scorer.

    Raises:
        MetricError: no training comparison prefers an answer.
    """
    differences = []
    for comparison in train:
        features = surface(comparison)
        for i, j in combinations(range(len(features)), 2):
            if comparison.ranks[i] != comparison.ranks[j]:
                sign = 1.0 if comparison.ranks[i] < comparison.ranks[j] else -1.0
                differences.append(sign * (features[i] - features[j]))
    if not differences:
        raise MetricError("no training comparison prefers one answer to another: the baseline cannot be fitted")
    matrix = np.array(differences)
    scale = matrix.std(axis=0) + 1e-9

    def objective(weights: Floats) -> tuple[float, Floats]:
        logits = matrix / scale @ weights
        loss = np.logaddexp(0, -logits).mean() + ridge * weights @ weights
        slope = -(1 / (1 + np.exp(logits)))[:, None] * (matrix / scale)
        return float(loss), slope.mean(axis=0) + 2 * ridge * weights

    weights = optimize.minimize(objective, np.zeros(matrix.shape[1]), jac=True, method="L-BFGS-B").x / scale
    return lambda comparison: (surface(comparison) @ weights).tolist()
