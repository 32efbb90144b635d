"""Notebook 00, step by step: the whole chain on a handful of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from starling_nb import files, rubric
from starling_nb.models import LM, sample
from starling_nb.nectar.dataset import Candidates
from starling_nb.reward import RewardModel, scoring, training
from starling_nb.reward.comparisons import of_rows


def examples(candidates: Sequence[Candidates], n: int, seed: int) -> list[Candidates]:
    """A few good-natured single-turn prompts, chosen by seed."""
    simple = [c for c in candidates if c.prompt.turns == 1 and c.prompt.good_natured]
    order = files.rng(seed, "tour").permutation(len(simple))[:n]
    return [simple[i] for i in sorted(order.tolist())]


def show_answers(item: Candidates) -> pd.DataFrame:
    """One prompt's answers as a table: responder, answer, words."""
    print(item.prompt.messages[-1]["content"])
    words = [len(answer.split()) for answer in item.answers]
    return pd.DataFrame({"responder": item.models, "answer": item.answers, "words": words})


def learn(lm: LM, rows: Sequence[Mapping[str, Any]], seed: int) -> tuple[RewardModel, list[float]]:
    """Train the last block and a score head on a few rankings; the reward model and its losses."""
    recipe = training.Recipe(trainable="last:1", epochs=6, batch=len(rows), lr=3e-4, head_lr=3e-3, seed=seed)
    prepared = scoring.prepare(lm, of_rows(rows), recipe.trainable)
    trained, history, _ = training.train(lm, prepared, recipe)
    return scoring.assemble(lm, trained), [record["loss"] for record in history]


def best_answers(
    lm: LM, reward: RewardModel, candidates: Sequence[Candidates], n: int, seed: int, max_new_tokens: int
) -> pd.DataFrame:
    """Sample ``n`` answers a prompt and choose by reward; quality is the rubric's, 1 to 10.

    Columns: prompt, first_answer, chosen_answer, first_quality, chosen_quality.
    """
    prompts = [item.prompt for item in candidates for _ in range(n)]
    ids = [f"best-of/{prompt.id}/{i % n}" for i, prompt in enumerate(prompts)]
    samples = sample(
        lm, [lm.chat.prompt_ids(x.messages) for x in prompts], ids, seed=seed, max_new_tokens=max_new_tokens
    )
    texts = [lm.chat.decode(item.ids) or "…" for item in samples]
    scores = reward.score(
        [[*p.messages, {"role": "assistant", "content": t}] for p, t in zip(prompts, texts, strict=True)]
    )
    rows = []
    for start, item in zip(range(0, len(texts), n), candidates, strict=True):
        best = max(range(start, start + n), key=scores.__getitem__)
        worth = {i: rubric.grade(item.prompt.rubric, item.prompt.messages, texts[i]).utility for i in (start, best)}
        rows.append(
            {
                "prompt": item.prompt.messages[-1]["content"],
                "first_answer": texts[start],
                "chosen_answer": texts[best],
                "first_quality": worth[start],
                "chosen_quality": worth[best],
            }
        )
    return pd.DataFrame(rows)
