"""One loop for the online objectives: APA, PPO and P3O.

Sample from the policy, score with the reward model, then a few passes over the kept trunk states. The objectives
differ only in the loss; everything else is shared, so a comparison between them compares the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from starling_nb import files, losses, progress
from starling_nb.models import LM
from starling_nb.nectar.prompts import Prompt, key
from starling_nb.policy.experience import Minibatch, Scale, TuningError, minibatches, scale_of, summary
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.rollouts import RewardOnTrunk, collect
from starling_nb.reward.model import RewardModel

__all__ = ["Recipe", "Tuned", "TuningError", "tune"]

Report = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """How a policy is tuned online; the defaults are the *corrected* recipe at the embedded scale.

    ``rollouts`` answers a step are ``answers`` to each of ``rollouts // answers`` prompts; P3O compares them in pairs.

    Raises:
        TuningError: ``rollouts`` is not a multiple of ``answers``, or P3O has an odd number of them.
    """

    objective: Literal["apa", "ppo", "p3o"] = "apa"
    steps: int = 20
    rollouts: int = 64
    answers: int = 4
    epochs: int = 1
    minibatch: int = 16
    lr: float = 5e-5
    value_lr: float = 1e-3
    lam: float = 1.0
    anchor: Literal["initial", "rollout"] = "initial"
    whiten: bool = True
    centre: bool = True
    kl: float = 0.02
    gae_lambda: float = 0.9
    clip: float = 0.2
    score_clip: float = 4.0
    missing_eos: float = -1.0
    critic_warmup: int = 2
    critic_gate: bool = False
    max_new_tokens: int = 80
    trainable: str = "last:4"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.answers < 1 or self.rollouts < self.answers or self.rollouts % self.answers:
            raise TuningError(f"rollouts = {self.rollouts} must be a multiple of answers = {self.answers} a prompt")
        if self.objective == "p3o" and self.answers % 2:
            raise TuningError(f"P3O compares answers in pairs: answers = {self.answers} must be even")


@dataclass
class Tuned:
    """A finished run: the hydra with the tuned top, one record a step, and the step it was resumed from."""

    hydra: Hydra
    history: list[dict[str, float]]
    resumed: int


@dataclass
class _Loop:
    """What a run holds: all but the accelerator is written into its checkpoints."""

    accelerator: Accelerator
    hydra: Any
    optimizer: Any
    history: list[dict[str, float]] = field(default_factory=list)
    scale: Scale | None = None

    @property
    def plain(self) -> Hydra:
        """The hydra without the accelerator's wrapping."""
        hydra: Hydra = self.accelerator.unwrap_model(self.hydra)
        return hydra


def tune(
    lm: LM,
    reward: RewardModel,
    prompts: Sequence[Prompt],
    recipe: Recipe,
    *,
    offsets: Mapping[str, float] | None = None,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> Tuned:
    """Tune ``lm`` online; its top blocks are overwritten with the policy's as it learns.

    ``offsets`` holds, by prompt key, what is taken off every score of a prompt: a K-wise loss leaves a constant per
    prompt undecided, and that constant would only be noise here (:func:`starling_nb.reward.comparisons.offsets`).

    One record a step: reward (raw score), kl (nats a sequence, exact, summed over tokens), length (tokens),
    eos_rate, entropy (nats a token), value_loss, policy_loss, explained (share of the return's variance that the
    critic explains), sampler_gap (nats a token between the sampler's log-probabilities and the trainer's).

    Raises:
        TuningError: a guard stopped the run (constant reward, policy unequal to reference at the start, sampler
            unequal to trainer, ratio not one on fresh rollouts, not a number).
    """
    torch.manual_seed(recipe.seed)
    loop = _start(lm, recipe)
    resumed = _restore(checkpoint, loop)
    plain = loop.plain
    score = RewardOnTrunk(reward, lm, plain.start)
    plain.top.write_into(lm.model.model)
    for step in range(resumed, recipe.steps):
        chosen, ids = _step_prompts(prompts, recipe, step)
        rollouts = collect(
            lm,
            chosen,
            ids,
            seed=recipe.seed,
            max_new_tokens=recipe.max_new_tokens,
            capture=score.capture,
            progress=progress.sampling(len(ids), f"{recipe.objective.upper()} step {step + 1}, rollouts"),
        )
        score(rollouts)
        for rollout in rollouts:
            rollout.score -= (offsets or {}).get(key(rollout.prompt.messages), 0.0)
        loop.scale = loop.scale or scale_of(rollouts)
        # The context ends before the first optimiser step: it remembers weights cast to bfloat16.
        with loop.accelerator.autocast():
            parts = minibatches(plain, rollouts, recipe, loop.scale)
        record = {"step": float(step), **summary(rollouts, parts, recipe)}
        _check(record, parts, lm)
        loop.history.append(record | _learn(loop, parts, recipe, step))
        plain.top.write_into(lm.model.model)
        if report is not None:
            report(step + 1, recipe.steps, loop.history[-1])
        if checkpoint is not None and ((step + 1) % 2 == 0 or step + 1 == recipe.steps):
            _save(checkpoint, loop)
    return Tuned(plain, loop.history, resumed)


def _start(lm: LM, recipe: Recipe) -> _Loop:
    accelerator = lm.accelerator()
    hydra = Hydra(lm, recipe.trainable)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(hydra.top.parameters()), "lr": recipe.lr},
            {"params": list(hydra.value_head.parameters()), "lr": recipe.value_lr},
        ],
        betas=(0.9, 0.95),
        weight_decay=1e-6,
        fused=True,
    )
    return _Loop(accelerator, *accelerator.prepare(hydra, optimizer))


def _step_prompts(prompts: Sequence[Prompt], recipe: Recipe, step: int) -> tuple[list[Prompt], list[str]]:
    """Prompts of one step, each ``answers`` times in a row, and one id an answer."""
    n = recipe.rollouts // recipe.answers
    first = step * n
    chosen = []
    for place in range(first, first + n):
        epoch, offset = divmod(place, len(prompts))
        order = files.rng(recipe.seed, "prompts", epoch).permutation(len(prompts))
        chosen.append(prompts[int(order[offset])])
    repeated = [prompt for prompt in chosen for _ in range(recipe.answers)]
    return repeated, [f"{step}/{place}/{prompt.id}" for place, prompt in enumerate(repeated)]


def _check(record: dict[str, float], parts: Sequence[Minibatch], lm: LM) -> None:
    """Stop where policy and reference differ before any step, or the sampler is not the model that is trained."""
    first = max(float(part.old.kl.max()) for part in parts)
    if record["step"] == 0 and not first < 1e-4:
        raise TuningError(f"policy and reference differ before any step (KL {first:.2g} nats)")
    allowed = 0.2 if lm.dtype == torch.bfloat16 else 1e-3
    if not record["sampler_gap"] < allowed:
        raise TuningError(
            f"sampler and trainer disagree by {record['sampler_gap']:.2g} nats a token, at most {allowed:g} are "
            "rounding: has the language model been changed, or does a checkpoint of another model lie here?"
        )


def _learn(loop: _Loop, parts: Sequence[Minibatch], recipe: Recipe, step: int) -> dict[str, float]:
    """Passes over the step's minibatches in a keyed order, one optimiser step each."""
    totals = {"policy_loss": 0.0, "value_loss": 0.0}
    for epoch in range(recipe.epochs):
        order = files.rng(recipe.seed, "minibatches", step, epoch).permutation(len(parts))
        for place, index in enumerate(order.tolist()):
            item = parts[index]
            logprobs, values = loop.hydra(item.batch)
            if epoch == 0 and place == 0:
                _check_ratio(logprobs, item.old.logprobs)
            policy_loss = _policy_loss(item.batch.unflatten(logprobs), item, recipe)
            value_loss = _value_loss(item.batch.unflatten(values), item)
            warming = step < recipe.critic_warmup or (recipe.critic_gate and float(value_loss.detach()) > 1)
            loss = value_loss if warming else policy_loss + value_loss
            if not math.isfinite(float(loss.detach())):
                raise TuningError(f"the loss is not a number at step {step}: lower lr")
            loop.accelerator.backward(loss)
            loop.accelerator.clip_grad_norm_(loop.hydra.parameters(), 1.0)
            if warming:
                for parameter in loop.plain.top.parameters():
                    parameter.grad = None
            loop.optimizer.step()
            loop.optimizer.zero_grad()
            totals["policy_loss"] += float(policy_loss.detach())
            totals["value_loss"] += float(value_loss.detach())
    return {key: value / (recipe.epochs * len(parts)) for key, value in totals.items()}


def _policy_loss(logprobs: Tensor, item: Minibatch, recipe: Recipe) -> Tensor:
    mask = item.batch.mask.float()
    old, reference = item.batch.unflatten(item.old.logprobs), item.batch.unflatten(item.old.reference)
    if recipe.objective == "apa":
        anchor = reference if recipe.anchor == "initial" else old
        return losses.apa(logprobs, anchor, item.advantages, mask, lam=recipe.lam)
    if recipe.objective == "ppo":
        return losses.ppo(logprobs, old, item.advantages, mask, clip=recipe.clip)
    ratio = ((logprobs - reference) * mask).sum(1).view(-1, 2)
    before = ((old - reference) * mask).sum(1).view(-1, 2)
    return losses.p3o(ratio, before, item.scores.view(-1, 2), kl_coef=recipe.kl, clip=recipe.clip)


def _value_loss(values: Tensor, item: Minibatch) -> Tensor:
    old = item.batch.unflatten(item.old.values)
    known = item.foreseen
    return losses.value(values + known, old + known, item.returns, item.batch.mask.float(), clip=None)


def _check_ratio(logprobs: Tensor, old: Tensor) -> None:
    gap = float((logprobs.detach() - old).abs().max())
    if not gap <= 0.05:
        raise TuningError(f"fresh rollouts have a log-ratio of {gap:.3f}, not 0: two passes of one policy disagree")


def _save(path: Path, loop: _Loop) -> None:
    assert loop.scale is not None
    state = {
        "top": loop.plain.top.state_dict(),
        "value_head": loop.plain.value_head.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "loop": {"history": loop.history, "mean": loop.scale.mean, "std": loop.scale.std},
    }
    with files.replacing(path) as part:
        torch.save(state, part)


def _restore(path: Path | None, loop: _Loop) -> int:
    if path is None or not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    loop.plain.top.load_state_dict(state["top"])
    loop.plain.value_head.load_state_dict(state["value_head"])
    loop.optimizer.load_state_dict(state["optimizer"])
    loop.history, loop.scale = state["loop"]["history"], Scale(state["loop"]["mean"], state["loop"]["std"])
    return len(loop.history)
