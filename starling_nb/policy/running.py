"""The command ``tune``: from prompts and a reward model to a tuned policy, measured on prompts it never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from accelerate import PartialState

from starling_nb import files, models
from starling_nb.blocks import first_trainable
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.nectar.prompts import split_of
from starling_nb.nectar.responses import making
from starling_nb.policy import checkpoint, measure, starting, tuning
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.recipe import Recipe
from starling_nb.policy.rewards.rules import Rule
from starling_nb.policy.rollouts import Rollout
from starling_nb.policy.rollouts import vllm as vllm_rollouts
from starling_nb.progress import named
from starling_nb.reward import serving
from starling_nb.reward.serving import Reward
from starling_nb.stats import paired_difference


@dataclass(frozen=True)
class Plan:
    """What ``tune`` is told."""

    data: Path
    """Prompts, as ``starling-nb prompts`` writes them."""
    reward: str
    """The reward model: a folder, a hub id, or the address of a served one."""
    out: Path
    """Folder for the policy, its evaluation and the checkpoint."""
    base: str = models.EMBEDDED
    """The start model: the embedded one, a folder or a hub id."""
    dtype: str = "auto"
    """Of the start model and the reward model."""
    template: str = "own"
    """How the start model writes conversations, see :class:`starling_nb.chat.ChatFormat`."""
    held_out: int = 100
    """Prompts of the test split that are answered before and after, at most."""
    prompt_tokens: int = 0
    """Longer prompts are left out; 0: as the window allows."""
    recipe: Recipe = field(default_factory=Recipe)
    """How it is tuned."""
    rules: Mapping[str, tuple[float, Rule]] = field(default_factory=dict)
    """Rules added to the reward, with their weights."""
    sampler: Literal["own", "vllm"] = "own"
    """Who samples the rollouts: this package, or vLLM on the same GPU."""


@dataclass(frozen=True)
class Done:
    """What came of it; the table has metric, before, after, value (the change), low, high, n on the test prompts."""

    policy: Path
    table: pd.DataFrame
    warnings: list[str]


def run(plan: Plan) -> Done | None:
    """Tune on the training prompts of a file, measure on its test prompts, write ``<out>/policy``.

    Under ``accelerate launch`` or ``torchrun`` the processes share the tuning; the main one measures and writes, the
    others return None.

    A broken-off run goes on from ``<out>/tuning.pt`` when it is started again. ``<out>/policy`` is a whole model for
    ``transformers``, ``<out>/policy.safetensors`` the tuned blocks alone, ``<out>/curve.csv`` one row a step and
    ``<out>/evaluation.csv`` the table.

    Raises:
        StarlingError: the file leaves nothing to train or to test on, or as :func:`starling_nb.policy.tuning.tune`.
    """
    processes = PartialState(cpu=models.device() == "cpu")
    with processes.main_process_first():  # it may have to fetch and convert the model
        lm = models.load(plan.base, dtype=plan.dtype, template=plan.template)
    reward = serving.load(plan.reward, dtype=lm.dtype)
    parts: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
    say = print if processes.is_main_process else lambda _: None
    longest = (plan.recipe.max_new_tokens, plan.prompt_tokens)
    for prompt in starting.askable(lm, reward, list(making.prompts(plan.data)), *longest, say):
        parts[split_of(prompt.messages)].append(prompt)
    for part in ("train", "test"):
        if not parts[part]:
            raise StarlingError(f"{plan.data} leaves no prompt to {part} on: give more prompts")
    test = parts["test"][: plan.held_out]
    sampler = _sampler(plan, lm, parts["train"])
    # Now, while it is the start model: to keep a copy until the end would take as much memory as the policy.
    answers = _answers(lm, reward, test, plan.recipe, "before") if processes.is_main_process else []
    before = [_measured(rollout) for rollout in answers]
    del answers  # with their trunk states
    said = named(plan.recipe.objective.upper())
    kept = plan.out / "tuning.pt"
    tuned = tuning.tune(
        lm,
        reward,
        parts["train"],
        plan.recipe,
        rules=plan.rules,
        checkpoint=kept,
        report=said,
        sampler=sampler,
    )
    if not processes.is_main_process:
        return None
    table = _table(tuned.hydra, before, _answers(lm, reward, test, plan.recipe, "after"), lm.dtype)
    checkpoint.save(tuned.hydra, plan.out / "policy.safetensors", lm.name)
    lm.model.save_pretrained(plan.out / "policy")
    lm.chat.tokenizer.save_pretrained(plan.out / "policy")
    files.write_text(plan.out / "curve.csv", pd.DataFrame(tuned.history).to_csv(index=False))
    files.write_text(plan.out / "evaluation.csv", table.to_csv(index=False))
    return Done(plan.out / "policy", table, tuned.warnings)


def _sampler(plan: Plan, lm: LM, prompts: Sequence[Any]) -> Callable[..., list[models.Sample]]:
    """The sampler by its name; vLLM with room for the longest prompt and an answer."""
    if plan.sampler == "own":
        return models.sample
    if plan.sampler != "vllm":
        raise StarlingError(f"unknown sampler {plan.sampler!r}: choose own or vllm")
    longest = max(len(lm.chat.prompt_ids(prompt.messages)) for prompt in prompts)
    return vllm_rollouts.start(lm, plan.out / "vllm", max_model_len=longest + plan.recipe.max_new_tokens)


def _answers(lm: LM, reward: Reward, prompts: Sequence[Any], recipe: Recipe, when: str) -> list[Rollout]:
    """Scored answers to the test prompts, with the same random numbers before and after."""
    start = first_trainable(recipe.trainable, len(lm.model.model.layers))
    how = {"samples": 1, "seed": recipe.seed, "max_new_tokens": recipe.max_new_tokens}
    return measure.scored(lm, reward, prompts, start, desc=f"test prompts, {when}", **how)


def _table(
    hydra: Hydra, before: Sequence[Mapping[str, float]], answers: Sequence[Rollout], dtype: torch.dtype
) -> pd.DataFrame:
    """Reward, tokens, share of answers that end, before and after; the divergence."""
    ids = [rollout.prompt.id for rollout in answers]
    sides = {"before": before, "after": [_measured(rollout) for rollout in answers]}
    rows = []
    for metric in ("reward", "tokens", "ended"):
        first, last = ([one[metric] for one in side] for side in sides.values())
        gap = paired_difference(last, first, clusters=ids)
        rows.append({"metric": metric, "before": _mean(first), "after": _mean(last), **vars(gap)})
    kl = measure.divergence(hydra, answers, dtype)
    return pd.DataFrame([*rows, {"metric": "kl", "before": 0.0, "after": kl.value, **vars(kl)}])


def _measured(rollout: Rollout) -> dict[str, float]:
    sample = rollout.sample
    return {"reward": rollout.score, "tokens": float(len(sample.ids)), "ended": float(sample.finished)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
