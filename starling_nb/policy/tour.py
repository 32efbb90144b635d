"""Notebook 04, step by step: run the arms, measure them on held-out prompts, show samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from starling_nb import losses
from starling_nb.models import LM
from starling_nb.nectar import dataset
from starling_nb.nectar.prompts import Prompt
from starling_nb.policy import measure, offline, tuning
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.rollouts import Rollout
from starling_nb.reward import RewardModel
from starling_nb.reward.comparisons import of_rows
from starling_nb.reward.training import prepare
from starling_nb.stats import paired_difference

Named = Callable[[str], Callable[[int, int, dict[str, float]], None]]
ONLINE: tuple[Literal["apa", "ppo", "p3o"], ...] = ("apa", "ppo", "p3o")


@dataclass
class Arms:
    """Tuned hydras by method, all their histories in one frame, and the largest step that was resumed from."""

    hydras: dict[str, Hydra]
    history: pd.DataFrame
    resumed: int


def apa_parabolas(advantage: float = 1.0, anchor: float = -2.0) -> pd.DataFrame:
    """APA's loss of one token over its log-probability for three λ: columns logprob, loss, lambda."""
    grid = torch.linspace(-6, 2, 161)
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
    named: Named,
    offsets: Mapping[str, float],
) -> Arms:
    """APA at full length, PPO and P3O for ``short_steps``, DPO on as many sequences, each from the start model."""
    hydras: dict[str, Hydra] = {}
    frames, resumed = [], 0
    for method in ONLINE:
        steps = recipe.steps if method == "apa" else short_steps
        own = replace(recipe, objective=method, steps=steps)
        fresh = LM(copy.deepcopy(lm.model), lm.chat, lm.name)
        tuned = tuning.tune(
            fresh,
            reward,
            train,
            own,
            offsets=offsets,
            checkpoint=checkpoints / f"{method}.pt",
            report=named(method.upper()),
        )
        hydras[method], resumed = tuned.hydra, max(resumed, tuned.resumed)
        frames.append(pd.DataFrame(tuned.history).assign(method=method))
    if short_steps:
        hydras["dpo"] = _dpo(lm, train, recipe, short_steps, rows, checkpoints, named)
    return Arms(hydras, pd.concat(frames, ignore_index=True), resumed)


def _dpo(
    lm: LM,
    train: Sequence[Prompt],
    recipe: tuning.Recipe,
    steps: int,
    rows: Path,
    checkpoints: Path,
    named: Named,
) -> Hydra:
    """DPO on pairs of the data set's training rows, two sequences a pair, as many sequences as a short arm."""
    n = steps * recipe.rollouts * recipe.epochs // 2
    known = {dataset.key(prompt.messages) for prompt in train}
    comparisons = [c for c in of_rows(dataset.load(rows)) if c.prompt_id in known][: max(8, n)]
    fresh = LM(copy.deepcopy(lm.model), lm.chat, lm.name)
    prepared = prepare(fresh, comparisons, recipe.trainable, named("trunk for DPO"))
    own = offline.Recipe(
        pairs=n, batch=recipe.minibatch // 2, lr=recipe.lr, trainable=recipe.trainable, seed=recipe.seed
    )
    return offline.tune(fresh, prepared, own, checkpoint=checkpoints / "dpo.pt", report=named("DPO"))[0]


def after(lm: LM, hydra: Hydra, prompts: Sequence[Prompt], p: Any, samples: int, method: str) -> list[Rollout]:
    """Held-out answers of a tuned policy, trunk states kept, under the parameters ``p`` of the stage."""
    tuned = LM(copy.deepcopy(lm.model), lm.chat, lm.name)
    hydra.top.write_into(tuned.model.model)
    return measure.held_out(
        tuned,
        prompts,
        samples=samples,
        seed=p.seed,
        max_new_tokens=p.max_new_tokens,
        capture=hydra.start,
        desc=f"held-out answers after {method.upper()}",
    )


def compare_methods(
    before: Sequence[Rollout], answers: Mapping[str, Sequence[Rollout]], reward: RewardModel
) -> pd.DataFrame:
    """Change of rubric utility, reward and length by method: method, metric, value, low, high, n.

    A method with fewer samples a prompt than ``before`` is compared with the first ones, which share its random
    numbers; the reward is that of each prompt's first answer.
    """
    rows = []
    base, start = np.array(_scores(reward, _firsts(before))), measure.grade(before)
    for method, rollouts in answers.items():
        every = len(before) // len(rollouts)
        graded, same = measure.grade(rollouts), start[::every].reset_index(drop=True)
        gaps = {
            "rubric": paired_difference(graded.utility, same.utility, clusters=same.prompt_id),
            "reward": paired_difference(np.array(_scores(reward, _firsts(rollouts))), base),
            "words": paired_difference(graded.words, same.words, clusters=same.prompt_id),
        }
        rows += [{"method": method, "metric": metric, **vars(gap)} for metric, gap in gaps.items()]
    return pd.DataFrame(rows)


def _firsts(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The first answer to each prompt."""
    return list({rollout.prompt.id: rollout for rollout in reversed(rollouts)}.values())[::-1]


def _scores(reward: RewardModel, rollouts: Sequence[Rollout]) -> list[float]:
    """Rewards of answer texts, by the whole reward model (no shared trunk)."""
    conversations = [[*r.prompt.messages, {"role": "assistant", "content": r.text or " "}] for r in rollouts]
    return reward.score(conversations)


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
