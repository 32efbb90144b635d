"""Notebook 04, step by step: run the arms, measure them on held-out prompts, show samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from starling_nb import losses, progress
from starling_nb.blocks import first_trainable
from starling_nb.models import LM
from starling_nb.nectar import dataset
from starling_nb.nectar.prompts import Prompt
from starling_nb.policy import measure, tuning
from starling_nb.policy.dashboard import Dashboard
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.rollouts import Rollout
from starling_nb.policy.study.arms import direct
from starling_nb.reward import RewardModel
from starling_nb.reward.comparisons import of_rows

ONLINE: tuple[Literal["apa", "ppo", "p3o"], ...] = ("apa", "ppo", "p3o")


@dataclass
class Arms:
    """Tuned hydras by method, all their histories in one frame, and the largest step that was resumed from."""

    hydras: dict[str, Hydra]
    history: pd.DataFrame
    resumed: int


def apa_parabolas(advantage: float = 1.0, anchor: float = -2.0) -> pd.DataFrame:
    """APA's loss of one token over its log-probability for three λ: columns logprob, loss, lambda."""
    grid = torch.linspace(-6, 0, 25)
    rows = []
    for lam in (0.5, 1.0, 2.0):
        one = torch.ones(1, 1)
        for value in grid:
            loss = losses.apa(value * one, anchor * one, advantage * one, one, lam=lam)
            rows.append({"logprob": float(value), "loss": float(loss), "lambda": f"λ = {lam:g}"})
    return pd.DataFrame(rows)


def run_arms(
    lm: LM,
    reward: RewardModel,
    train: Sequence[Prompt],
    recipe: tuning.Recipe,
    short_steps: int,
    rows: Path,
    checkpoints: Path,
    offsets: Mapping[str, float],
    watched: Sequence[Prompt] = (),
) -> Arms:
    """APA at full length, PPO and P3O for ``short_steps``, DPO on as many sequences, each from the start model.

    DPO is left out where no ranked row is of a training prompt: where these are one's own. Each has a dashboard, on
    which its answers to the ``watched`` prompts are shown.
    """
    hydras: dict[str, Hydra] = {}
    frames, resumed, first = [], 0, first_trainable(recipe.trainable, len(lm.model.model.layers))
    steps = {method: recipe.steps if method == "apa" else short_steps for method in ONLINE}
    recipes = {method: replace(recipe, objective=method, steps=n) for method, n in steps.items() if n}
    for method, own in recipes.items():
        fresh = lm.from_block(first)
        tuned = tuning.tune(
            fresh,
            reward,
            train,
            own,
            offsets=offsets,
            checkpoint=checkpoints / f"{method}.pt",
            report=Dashboard(method.upper(), fresh, reward, watched, recipe.max_new_tokens),
        )
        hydras[method], resumed = tuned.hydra, max(resumed, tuned.resumed)
        frames.append(pd.DataFrame(tuned.history).assign(method=method))
    if short_steps:
        known = {dataset.key(prompt.messages) for prompt in train}
        ranked = [c for c in of_rows(dataset.load(rows)) if c.prompt_id in known and len(set(c.ranks)) > 1]
        fresh = lm.from_block(first)
        short = replace(recipe, steps=short_steps)
        if ranked:
            hydras["dpo"] = direct(fresh, ranked, short, checkpoints / "dpo.pt", progress.named)[0]
        else:
            print("DPO is left out: notebook 01 has ranked no answers to these prompts")
    return Arms(hydras, pd.concat(frames, ignore_index=True), resumed)


def before(lm: LM, reward: RewardModel, prompts: Sequence[Prompt], p: Any) -> list[Rollout]:
    """The start model's answers to held-out prompts, scored, under the parameters ``p`` of the stage."""
    start = first_trainable(p.trainable, len(lm.model.model.layers))
    return _answers(lm, reward, prompts, p, start, p.samples, "held-out answers")


def after(
    lm: LM, hydra: Hydra, reward: RewardModel, prompts: Sequence[Prompt], p: Any, samples: int, method: str
) -> list[Rollout]:
    """A tuned policy's answers to the same prompts with the same random numbers."""
    tuned = lm.from_block(hydra.start)
    hydra.top.write_into(tuned.model.model)
    return _answers(tuned, reward, prompts, p, hydra.start, samples, f"held-out answers after {method.upper()}")


def _answers(
    lm: LM, reward: RewardModel, prompts: Sequence[Prompt], p: Any, start: int, samples: int, desc: str
) -> list[Rollout]:
    how = {"samples": samples, "seed": p.seed, "max_new_tokens": p.max_new_tokens}
    return measure.scored(lm, reward, prompts, start, desc=desc, **how)


def compare_methods(before: Sequence[Rollout], after: Mapping[str, Sequence[Rollout]]) -> pd.DataFrame:
    """Change of rubric utility, reward and length by method: method, metric, value, low, high, n.

    A method with fewer samples a prompt than ``before`` is compared with the first ones, which share its random
    numbers.
    """
    rows = []
    for method, rollouts in after.items():
        every = len(before) // len(rollouts)
        fewer = [rollout for place, rollout in enumerate(before) if place % every < 1]
        start, tuned = (measure.grade(side).assign(reward=[r.score for r in side]) for side in (fewer, rollouts))
        for metric, column in {"rubric": "utility", "reward": "reward", "words": "words"}.items():
            rows.append({"method": method, "metric": metric, **vars(measure.gain(start, tuned, column))})
    return pd.DataFrame(rows)


def long_form(table: pd.DataFrame) -> pd.DataFrame:
    """The rubric's parts (0 to 1) as rows part, when, value, low, high for the before-after figure."""
    parts = table[~table.part.isin(["utility", "words"])]
    rows = []
    for row in parts.to_dict("records"):
        spread = (row["value"] - row["low"], row["high"] - row["value"])
        rows.append(
            {
                "part": row["part"],
                "when": "before",
                "value": row["before"],
                "low": row["before"],
                "high": row["before"],
            }
        )
        rows.append(
            {
                "part": row["part"],
                "when": "after",
                "value": row["after"],
                "low": row["after"] - spread[0],
                "high": row["after"] + spread[1],
            }
        )
    return pd.DataFrame(rows)


def side_by_side(
    before: Sequence[Rollout], tuned: Sequence[Rollout], grades: pd.DataFrame, start: pd.DataFrame, n: int = 6
) -> pd.DataFrame:
    """The ``n // 2`` largest gains and losses: prompt, answers and qualities before and after."""
    gap = grades.utility - start.utility
    order = gap.sort_values().index
    rows = []
    for i in [*order[::-1][: n // 2], *order[: n // 2]]:
        rows.append(
            {
                "prompt": before[i].prompt.messages[-1]["content"],
                "before": before[i].text,
                "after": tuned[i].text,
                "quality_before": round(start.utility[i], 1),
                "quality_after": round(grades.utility[i], 1),
            }
        )
    return pd.DataFrame(rows)
