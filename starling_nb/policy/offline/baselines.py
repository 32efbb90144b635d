"""What a tuned policy has to be compared with.

The best of n answers of the start model, extrapolated weights, and the best answers of the data set: what is above
those was not imitated.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from starling_nb import rubric
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.nectar.prompts import Prompt, key
from starling_nb.reward.comparisons import Comparison
from starling_nb.stats import paired_difference


def best_of_n_kl(n: int) -> float:
    """Divergence of the best of ``n`` answers from one answer, nats: log n - (n - 1) / n.

    Exact where no two answers score alike, an upper bound otherwise (Beirami et al. 2024, arXiv 2401.01879).

    Raises:
        StarlingError: ``n`` below 1.
    """
    if n < 1:
        raise StarlingError(f"best of n = {n}: n is 1 or more")
    return math.log(n) - (n - 1) / n


def best_of_n(proxy: ArrayLike, gold: ArrayLike, n: int) -> float:
    """What the best of ``n`` answers by ``proxy`` earns in ``gold``, over all choices of n of the N answers.

    Unbiased, of least variance: in order of proxy the i-th of N is the best of ``C(i - 1, n - 1)`` of the ``C(N, n)``
    choices (Nakano et al. 2021, arXiv 2112.09332). Equal proxies share their places.

    Args:
        proxy: scores of one prompt's N answers by what chooses. gold: by what judges; the same to see proxy itself.
        n: answers chosen from, 1 to N.

    Raises:
        StarlingError: other shapes, a score that is not finite, or an ``n`` that N answers cannot give.
    """
    by, worth = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if by.shape != worth.shape or by.ndim != 1 or not (np.isfinite(by).all() and np.isfinite(worth).all()):
        raise StarlingError("best of n needs one finite proxy and one finite gold score for each answer of a prompt")
    total = len(by)
    if not 1 <= n <= total:
        raise StarlingError(f"best of n = {n} cannot be had from {total} answers: choose n from 1 to {total}")
    weights = np.array([math.comb(i, n - 1) / math.comb(total, n) for i in range(total)])
    order = np.argsort(by, kind="stable")
    places = np.split(weights, np.flatnonzero(np.diff(by[order])) + 1)
    shared = np.concatenate([np.full(len(place), place.mean()) for place in places])
    return float(shared @ worth[order])


@torch.no_grad()
def extrapolate(start: LM, tuned: LM, alpha: float) -> LM:
    """ExPO: a model as far beyond ``tuned`` as ``alpha`` times its way from ``start``.

    ``tuned + alpha * (tuned - start)``, weight by weight in float32 (Zheng et al. 2024, arXiv 2404.16792). 0 is the
    tuned model, -1 the start model.

    Raises:
        StarlingError: the models have other weights.
    """
    model: Any = copy.deepcopy(tuned.model)
    first, last, state = start.model.state_dict(), tuned.model.state_dict(), model.state_dict()
    if {name: value.shape for name, value in first.items()} != {name: value.shape for name, value in state.items()}:
        raise StarlingError(f"{tuned.name} was not tuned from {start.name}: their weights have other names or shapes")
    for name, value in state.items():
        if value.is_floating_point() and not torch.equal(last[name], first[name]):
            value.copy_(last[name].float() + alpha * (last[name].float() - first[name].float()))
    return LM(model, tuned.chat, tuned.name)


def mean_best_of_n(proxy: Sequence[ArrayLike], gold: Sequence[ArrayLike], n: int) -> float:
    """:func:`best_of_n`, mean over prompts."""
    return float(np.mean([best_of_n(by, worth, n) for by, worth in zip(proxy, gold, strict=True)]))


def best_demonstrations(
    prompts: Sequence[Prompt], comparisons: Sequence[Comparison], edit: Callable[[str], str] | None = None
) -> pd.DataFrame:
    """What the data set's own answers to (held-out) prompts are worth by rubric, 1 to 10.

    Args:
        prompts: with rubrics.
        comparisons: rows of the data set; those of other prompts are passed over.
        edit: changes the answers before they are graded, where the policy's are changed too.

    Returns:
        One row a prompt that the data set holds: prompt_id; by_rank, the utility of its first-ranked answer (the mean
        of those that share that rank); best, the highest utility of all its answers, which nobody who has to choose
        can count on; mean; answers, their number.

    Raises:
        StarlingError: the data set holds none of the prompts.
    """
    by_prompt = defaultdict(list)
    for comparison in comparisons:
        by_prompt[comparison.prompt_id].append(comparison)
    rows = []
    for prompt in prompts:
        ranked = []
        for comparison in by_prompt[key(prompt.messages)]:
            for answer, rank in zip(comparison.answers, comparison.ranks, strict=True):
                text = edit(answer) if edit else answer
                worth = rubric.grade(prompt.rubric, prompt.messages, text).utility
                ranked.append((rank == min(comparison.ranks), worth))
        if ranked:
            worths, firsts = [worth for _, worth in ranked], [worth for first, worth in ranked if first]
            means = {"by_rank": np.mean(firsts), "best": max(worths), "mean": np.mean(worths)}
            rows.append({"prompt_id": prompt.id, **means, "answers": len(ranked)})
    if not rows:
        raise StarlingError(
            f"the data set holds none of the {len(prompts)} prompts: give the rows that were made of them"
        )
    return pd.DataFrame(rows)


def against_demonstrations(graded: pd.DataFrame, demonstrations: pd.DataFrame) -> pd.DataFrame:
    """A policy beside the best demonstrations of the same prompts: imitation reaches them, learning may pass them.

    Args:
        graded: its answers after :func:`starling_nb.policy.measure.grade`, several a prompt or one.
        demonstrations: from :func:`best_demonstrations`; only the prompts in both are compared.

    Returns:
        Rows by_rank, best and mean: against, policy, demonstration (mean utilities over answers), value (the
        difference, paired by prompt), low, high, n.

    Raises:
        StarlingError: no prompt in common.
    """
    both = graded.merge(demonstrations, on="prompt_id")
    if both.empty:
        raise StarlingError(
            "the policy's answers and the demonstrations share no prompt: compare the same held-out set"
        )
    rows = []
    for name in ("by_rank", "best", "mean"):
        gap = paired_difference(both["utility"], both[name], clusters=both["prompt_id"])
        rows.append({"against": name, "policy": both.utility.mean(), "demonstration": both[name].mean(), **vars(gap)})
    return pd.DataFrame(rows)
