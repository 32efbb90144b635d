"""Notebook 05, where answers can be checked: both models on word problems and on small programs.

The blog says that mathematics and coding stay as they were or slip. A model that solves nothing cannot slip: so the
start model is held against a floor first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from starling_nb.evaluation.answering import Pair, answer, some
from starling_nb.evaluation.problems import coding, gsm8k


def word_problems(pair: Pair, n: int, seed: int, max_new_tokens: int) -> dict[str, pd.DataFrame]:
    """Both models on ``n`` word problems, greedily, one row a problem (:func:`gsm8k.score`), under start and tuned."""
    asked = some(gsm8k.load(), n)
    turns = {one.id: gsm8k.conversation(one) for one in asked}
    how: dict[str, Any] = {"seed": seed, "temperature": 0.0, "max_new_tokens": max_new_tokens}
    return {
        name: gsm8k.score(asked, answer(lm, turns, desc=f"word problems, {name}", **how)) for name, lm in pair.items()
    }


def programs(pair: Pair, n: int, seed: int, max_new_tokens: int) -> dict[str, pd.DataFrame]:
    """Both models on ``n`` small programs, greedily, run in confined processes (:func:`coding.score`)."""
    asked, found = some(coding.load(), n), {}
    for name, lm in pair.items():
        told = coding.answers(
            lm, asked, seed=seed, temperature=0.0, max_new_tokens=max_new_tokens, desc=f"programs, {name}"
        )
        found[name] = coding.score(asked, told)
    return found


def record(stage: Any, kind: str, scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Record shares solved by the flexible reading, their paired change, and how far the start is above the floor.

    Returns:
        model (start, tuned, change), reading, value, low, high, n (problems).
    """
    found, start = gsm8k.compare(scores["start"], scores["tuned"]), scores["start"]
    parts = {"start": found.before, "tuned": found.after, "change": found.change}
    for name, by in parts.items():
        stage.record(f"{kind}.{name}", by["flexible"])
    stage.record(f"{kind}.start_above_floor_p", gsm8k.above_floor(start), n=len(start))
    if found.verdict != "measured":
        print(f"{kind}: {found.verdict}, the models solve too little for a change to be seen")
    rows = [
        {"problems": kind, "model": name, "reading": reading, **vars(value)}
        for name, by in parts.items()
        for reading, value in by.items()
    ]
    return pd.DataFrame(rows)
