"""How well scores order answers, beside baselines that know nothing of content.

Every figure has an interval that resamples prompts, because the pairs of one prompt are not independent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import optimize, stats

from starling_nb.reward.comparisons import Comparison
from starling_nb.stats import Interval, mean_interval

REFUSAL = re.compile(r"\b(can(?:no|')t help|cannot|can't|won't|unable to|not able to|sorry)\b", re.IGNORECASE)


def pairs(comparisons: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> pd.DataFrame:
    """All answer pairs with a strict preference, one row a pair.

    Columns: prompt_id, better and worse (places in the comparison), responder_better, responder_worse,
    length_better and length_worse (words), adjacent (ranks differ by one), right (1, or 0.5 for equal scores).
    """
    rows = []
    for comparison, values in zip(comparisons, scores, strict=True):
        words = [len(answer.split()) for answer in comparison.answers]
        by_rank = sorted(range(len(values)), key=lambda i: comparison.ranks[i])
        for i, j in combinations(by_rank, 2):
            if comparison.ranks[i] == comparison.ranks[j]:
                continue
            rows.append(
                {
                    "prompt_id": comparison.prompt_id,
                    "better": i,
                    "worse": j,
                    "responder_better": comparison.responders[i],
                    "responder_worse": comparison.responders[j],
                    "length_better": words[i],
                    "length_worse": words[j],
                    "adjacent": by_rank.index(j) - by_rank.index(i) == 1,
                    "right": 0.5 * (np.sign(values[i] - values[j]) + 1),
                }
            )
    return pd.DataFrame(rows)


def evaluate(comparisons: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> dict[str, Interval]:
    """Pairwise accuracy (all pairs and adjacent ones), top-1 accuracy, Kendall tau and PL negative log-likelihood."""
    table = pairs(comparisons, scores)
    adjacent = table[table.adjacent]
    top = [float(np.argmax(s) == np.argmin(c.ranks)) for c, s in zip(comparisons, scores, strict=True)]
    tau = [float(stats.kendalltau(s, [-r for r in c.ranks])[0]) for c, s in zip(comparisons, scores, strict=True)]
    nll = [_pl_nll(s, c.ranks) for c, s in zip(comparisons, scores, strict=True)]
    return {
        "pairwise_accuracy": mean_interval(table.right, table.prompt_id),
        "adjacent_accuracy": mean_interval(adjacent.right, adjacent.prompt_id),
        "top1": mean_interval(top),
        "kendall_tau": mean_interval(np.nan_to_num(tau)),
        "pl_nll": mean_interval(nll),
    }


def _pl_nll(scores: Sequence[float], ranks: Sequence[float]) -> float:
    """Plackett-Luce negative log-likelihood of the ranking, nats a ranking."""
    ordered = np.asarray(scores)[np.argsort(ranks)]
    tails = np.logaddexp.accumulate(ordered[::-1])[::-1]
    return float(np.sum(tails - ordered))


def length_matched(table: pd.DataFrame, ratio: float = 1.25) -> pd.DataFrame:
    """Pairs whose answers differ in length by less than ``ratio``."""
    longer = table[["length_better", "length_worse"]].max(axis=1)
    shorter = table[["length_better", "length_worse"]].min(axis=1)
    return table[longer <= ratio * shorter.clip(lower=1)]


def longest(comparison: Comparison) -> list[float]:
    """The longest-answer baseline: words."""
    return [float(len(answer.split())) for answer in comparison.answers]


def surface(comparison: Comparison) -> np.ndarray:
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
    """A logistic regression on pairs of :func:`surface` features; returns a scorer."""
    differences = []
    for comparison in train:
        features = surface(comparison)
        for i, j in combinations(range(len(features)), 2):
            if comparison.ranks[i] != comparison.ranks[j]:
                sign = 1.0 if comparison.ranks[i] < comparison.ranks[j] else -1.0
                differences.append(sign * (features[i] - features[j]))
    matrix = np.array(differences)
    scale = matrix.std(axis=0) + 1e-9

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = matrix / scale @ weights
        loss = np.logaddexp(0, -logits).mean() + ridge * weights @ weights
        slope = -(1 / (1 + np.exp(logits)))[:, None] * (matrix / scale)
        return float(loss), slope.mean(axis=0) + 2 * ridge * weights

    weights = optimize.minimize(objective, np.zeros(matrix.shape[1]), jac=True, method="L-BFGS-B").x / scale
    return lambda comparison: (surface(comparison) @ weights).tolist()
