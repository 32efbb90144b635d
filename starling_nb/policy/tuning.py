"""One loop for the online objectives: APA, PPO and P3O.

Sample from the policy, score with the reward model, then a few passes over the kept trunk states. The objectives
differ only in the loss; everything else is shared, so a comparison between them compares the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from starling_nb import files, losses
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.nectar.prompts import Prompt
from starling_nb.policy.hydra import Batch, Comparison, Hydra, collate
from starling_nb.policy.rollouts import RewardOnTrunk, Rollout, collect
from starling_nb.reward.model import RewardModel

Report = Callable[[int, int, dict[str, float]], None]


class TuningError(StarlingError):
    """A guard stopped the run; the message says why."""


@dataclass(frozen=True)
class Recipe:
    """How a policy is tuned online.

    The defaults are the *corrected* recipe at the embedded scale; :func:`published` gives the switches of the
    released Starling code (facts in ``docs`` of the project's README).
    """

    objective: Literal["apa", "ppo", "p3o"] = "apa"
    steps: int = 20
    rollouts: int = 64
    epochs: int = 1
    minibatch: int = 16
    lr: float = 5e-5
    value_lr: float = 1e-3
    lam: float = 1.0
    anchor: Literal["initial", "rollout"] = "initial"
    whiten: bool = True
    centre: bool = True
    kl: float = 0.02
    gae_lambda: float = 0.95
    clip: float = 0.2
    score_clip: float = 4.0
    missing_eos: float = -1.0
    critic_warmup: int = 2
    critic_gate: bool = False
    max_new_tokens: int = 80
    trainable: str = "last:4"
    seed: int = 0


@dataclass
class Tuned:
    """A finished run: the hydra with the tuned top, one record a step, and the step it was resumed from."""

    hydra: Hydra
    history: list[dict[str, float]]
    resumed: int


@dataclass
class _Minibatch:
    batch: Batch
    old: Comparison
    advantages: Tensor
    returns: Tensor
    scores: Tensor


@dataclass
class _Loop:
    """Everything that a checkpoint has to hold, beside the weights."""

    history: list[dict[str, float]] = field(default_factory=list)
    mean: float = 0.0
    std: float = 1.0


def tune(
    lm: LM,
    reward: RewardModel,
    prompts: Sequence[Prompt],
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> Tuned:
    """Tune ``lm`` online; its top blocks are overwritten with the policy's as it learns.

    One record a step: reward (raw score), kl (nats a sequence, exact, summed over tokens), length (tokens),
    eos_rate, entropy (nats a token), value_loss, policy_loss, explained (share of the return's variance that the
    critic explains).

    Raises:
        TuningError: a guard stopped the run (constant reward, policy unequal to reference at the start, ratio not
            one on fresh rollouts, not a number).
    """
    torch.manual_seed(recipe.seed)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision="bf16" if lm.dtype == torch.bfloat16 else "no"
    )
    hydra: Any = Hydra(lm, recipe.trainable)
    optimizer: Any = torch.optim.AdamW(
        [
            {"params": list(hydra.top.parameters()), "lr": recipe.lr},
            {"params": list(hydra.value_head.parameters()), "lr": recipe.value_lr},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=1e-6,
    )
    hydra, optimizer = accelerator.prepare(hydra, optimizer)
    plain: Hydra = accelerator.unwrap_model(hydra)
    score = RewardOnTrunk(reward, lm, plain.start)
    loop = _Loop()
    resumed = _restore(checkpoint, plain, optimizer, loop)
    plain.top.write_into(lm.model.model)
    for step in range(resumed, recipe.steps):
        chosen, ids = _step_prompts(prompts, recipe, step)
        rollouts = collect(
            lm,
            chosen,
            ids,
            seed=recipe.seed,
            max_new_tokens=recipe.max_new_tokens,
            capture=plain.start,
        )
        for rollout, value in zip(rollouts, score(rollouts), strict=True):
            rollout.score = value
        with accelerator.autocast():
            minibatches = _experience(plain, rollouts, recipe, loop, step)
            metrics = _learn(accelerator, hydra, optimizer, minibatches, recipe, step)
        plain.top.write_into(lm.model.model)
        loop.history.append({"step": float(step), **_summary(rollouts, minibatches, lm), **metrics})
        if report is not None:
            report(step + 1, recipe.steps, loop.history[-1])
        if checkpoint is not None and ((step + 1) % 2 == 0 or step + 1 == recipe.steps):
            _save(checkpoint, plain, optimizer, loop)
    return Tuned(plain, loop.history, resumed)


def _step_prompts(prompts: Sequence[Prompt], recipe: Recipe, step: int) -> tuple[list[Prompt], list[str]]:
    """Prompts of one step, each prompt twice for P3O, and one id an answer."""
    copies = 2 if recipe.objective == "p3o" else 1
    n = recipe.rollouts // copies
    first = step * n
    chosen = []
    for place in range(first, first + n):
        epoch, offset = divmod(place, len(prompts))
        order = files.rng(recipe.seed, "prompts", epoch).permutation(len(prompts))
        chosen.append(prompts[int(order[offset])])
    doubled = [prompt for prompt in chosen for _ in range(copies)]
    return doubled, [f"{step}/{place}/{prompt.id}" for place, prompt in enumerate(doubled)]


def _experience(
    hydra: Hydra, rollouts: list[Rollout], recipe: Recipe, loop: _Loop, step: int
) -> list[_Minibatch]:
    """Old and reference log-probabilities, advantages and returns, in minibatches of similar length."""
    raw = torch.tensor([r.score for r in rollouts])
    if not bool(torch.isfinite(raw).all()):
        raise TuningError("the reward model returned a score that is not a number: retrain it (notebook 03)")
    if float(raw.std()) < 1e-6:
        raise TuningError("the reward is constant over a whole step: the reward model has learned nothing")
    if step == 0:
        loop.mean, loop.std = float(raw.mean()), float(raw.std())
    shaped = (raw - (loop.mean if recipe.centre else 0.0)) / loop.std
    shaped = shaped.clamp(-recipe.score_clip, recipe.score_clip)
    shaped = shaped + recipe.missing_eos * torch.tensor([float(not r.sample.finished) for r in rollouts])
    minibatches = []
    for rows in _similar_lengths(rollouts, recipe):
        part = [rollouts[i] for i in rows]
        batch = collate(
            [r.trunk for r in part], [len(r.sample.prompt) for r in part], [r.sample.ids for r in part]
        )
        old = hydra.compare(batch)
        if step == 0 and float(old.kl.max()) > 1e-4:
            raise TuningError(
                f"policy and reference differ before any step (KL {float(old.kl.max()):.2g} nats)"
            )
        rewards = batch.unflatten(-recipe.kl * (old.logprobs - old.reference))
        ends = batch.mask.sum(1) - 1
        rewards[torch.arange(len(part)), ends] += shaped[torch.tensor(rows)]
        advantages, returns = losses.gae(
            rewards, batch.unflatten(old.values), batch.mask.float(), gamma=1.0, lam=recipe.gae_lambda
        )
        minibatches.append(_Minibatch(batch, old, advantages, returns, shaped[torch.tensor(rows)]))
    if recipe.whiten:
        every = torch.cat([m.advantages[m.batch.mask] for m in minibatches])
        for m in minibatches:
            m.advantages = (m.advantages - every.mean()) / (every.std() + 1e-6) * m.batch.mask
    return minibatches


def _similar_lengths(rollouts: list[Rollout], recipe: Recipe) -> list[list[int]]:
    """Row indices of each minibatch; the two answers of one P3O prompt stay side by side."""
    unit = 2 if recipe.objective == "p3o" else 1
    groups = [list(range(i, i + unit)) for i in range(0, len(rollouts), unit)]
    groups.sort(key=lambda g: max(len(rollouts[i].trunk) for i in g))
    per = max(1, recipe.minibatch // unit)
    return [[i for group in groups[s : s + per] for i in group] for s in range(0, len(groups), per)]


def _learn(
    accelerator: Accelerator,
    hydra: Any,
    optimizer: Any,
    minibatches: list[_Minibatch],
    recipe: Recipe,
    step: int,
) -> dict[str, float]:
    """Passes over the step's minibatches in a keyed order, one optimiser step each."""
    totals = {"policy_loss": 0.0, "value_loss": 0.0}
    count = 0
    for epoch in range(recipe.epochs):
        order = files.rng(recipe.seed, "minibatches", step, epoch).permutation(len(minibatches))
        for place, index in enumerate(order.tolist()):
            item = minibatches[index]
            logprobs, values = hydra(item.batch)
            if epoch == 0 and place == 0:
                _check_ratio(logprobs, item.old.logprobs)
            padded, mask = item.batch.unflatten(logprobs), item.batch.mask.float()
            policy_loss = _policy_loss(padded, item, mask, recipe)
            value_loss = losses.value(
                item.batch.unflatten(values),
                item.batch.unflatten(item.old.values),
                item.returns,
                mask,
                clip=None,
            )
            warming = step < recipe.critic_warmup or (recipe.critic_gate and float(value_loss) > 1)
            loss = value_loss if warming else policy_loss + value_loss
            if not math.isfinite(float(loss)):
                raise TuningError(f"the loss is not a number at step {step}: lower lr")
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(hydra.parameters(), 1.0)
            if warming:
                for parameter in accelerator.unwrap_model(hydra).top.parameters():
                    parameter.grad = None
            optimizer.step()
            optimizer.zero_grad()
            totals["policy_loss"] += float(policy_loss.detach())
            totals["value_loss"] += float(value_loss.detach())
            count += 1
    return {key: value / count for key, value in totals.items()}


def _policy_loss(logprobs: Tensor, item: _Minibatch, mask: Tensor, recipe: Recipe) -> Tensor:
    old, reference = item.batch.unflatten(item.old.logprobs), item.batch.unflatten(item.old.reference)
    if recipe.objective == "apa":
        anchor = reference if recipe.anchor == "initial" else old
        return losses.apa(logprobs, anchor, item.advantages, mask, lam=recipe.lam)
    if recipe.objective == "ppo":
        return losses.ppo(logprobs, old, item.advantages, mask, clip=recipe.clip)
    ratio = ((logprobs - reference) * mask).sum(1).view(-1, 2)
    before = ((old - reference) * mask).sum(1).view(-1, 2)
    return losses.p3o(ratio, before, item.scores.view(-1, 2), kl_coef=recipe.kl, clip=recipe.clip)


def _check_ratio(logprobs: Tensor, old: Tensor) -> None:
    gap = float((logprobs.detach() - old).abs().max())
    if gap > 0.05:
        raise TuningError(
            f"fresh rollouts have a log-ratio of {gap:.3f}, not 0: sampler and trainer disagree"
        )


def _summary(rollouts: list[Rollout], minibatches: list[_Minibatch], lm: LM) -> dict[str, float]:
    n, tokens = len(rollouts), sum(len(r.sample.ids) for r in rollouts)
    returns = torch.cat([m.returns[m.batch.mask] for m in minibatches])
    values = torch.cat([m.old.values for m in minibatches])
    return {
        "reward": sum(r.score for r in rollouts) / n,
        "kl": float(sum(m.old.kl.sum() for m in minibatches)) / n,
        "length": tokens / n,
        "eos_rate": sum(r.sample.finished for r in rollouts) / n,
        "entropy": float(sum(m.old.entropy.sum() for m in minibatches)) / tokens,
        "explained": 1.0 - float((returns - values).var() / (returns.var() + 1e-9)),
    }


def _save(path: Path, hydra: Hydra, optimizer: Any, loop: _Loop) -> None:
    state = {
        "top": hydra.top.state_dict(),
        "value_head": hydra.value_head.state_dict(),
        "optimizer": optimizer.state_dict(),
        "loop": {"history": loop.history, "mean": loop.mean, "std": loop.std},
    }
    with files.replacing(path) as part:
        torch.save(state, part)


def _restore(path: Path | None, hydra: Hydra, optimizer: Any, loop: _Loop) -> int:
    if path is None or not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    hydra.top.load_state_dict(state["top"])
    hydra.value_head.load_state_dict(state["value_head"])
    optimizer.load_state_dict(state["optimizer"])
    loop.history, loop.mean, loop.std = state["loop"]["history"], state["loop"]["mean"], state["loop"]["std"]
    return len(loop.history)
