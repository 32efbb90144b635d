"""One loop for the online objectives: APA, PPO, P3O and RLOO.

Sample from the policy, score with the reward model, then a few passes over the kept trunk states. The objectives
differ only in the loss; everything else is shared, so a comparison between them compares the loss. Several processes
share every step (:mod:`starling_nb.policy.parallel.sharing`) and end with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from starling_nb import files, progress
from starling_nb.models import LM, Sample, sample
from starling_nb.nectar.prompts import Prompt, key
from starling_nb.policy import guards, objectives
from starling_nb.policy.experience import Minibatch, Scale, minibatches, scale_of, summary
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.parallel import sharded
from starling_nb.policy.parallel.sharing import Team, everybodys
from starling_nb.policy.recipe import Recipe, TuningError
from starling_nb.policy.rewards.rules import Rule, added
from starling_nb.policy.rollouts import RewardOnTrunk, Rollout, collect
from starling_nb.reward.serving import Reward

__all__ = ["Recipe", "Tuned", "TuningError", "tune"]

Report = Callable[[int, int, dict[str, float]], None]


@dataclass
class Tuned:
    """A finished run.

    Attributes:
        hydra: with the tuned top.
        history: one record a step.
        resumed: the step it was resumed from.
        warnings: oddities that the recipe asked for.
    """

    hydra: Hydra
    history: list[dict[str, float]]
    resumed: int
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Loop:
    """What a run holds: all but the accelerator is written into its checkpoints."""

    accelerator: Accelerator
    kl: float
    hydra: Any
    optimizer: Any
    team: Team
    sampler: Callable[..., list[Sample]]
    history: list[dict[str, float]] = field(default_factory=list)
    scale: Scale | None = None

    @property
    def plain(self) -> Hydra:
        """The hydra without the accelerator's wrapping."""
        hydra: Hydra = self.accelerator.unwrap_model(self.hydra)
        return hydra


def tune(
    lm: LM,
    reward: Reward,
    prompts: Sequence[Prompt],
    recipe: Recipe,
    *,
    offsets: Mapping[str, float] | None = None,
    rules: Mapping[str, tuple[float, Rule]] | None = None,
    checkpoint: Path | None = None,
    report: Report | None = None,
    sampler: Callable[..., list[Sample]] = sample,
) -> Tuned:
    """Tune ``lm`` online; its top blocks are overwritten with the policy's as it learns.

    ``offsets`` holds, by prompt key, what is taken off every score of a prompt: a K-wise loss leaves a constant per
    prompt undecided, and that constant would only be noise here (:func:`starling_nb.reward.comparisons.offsets`).
    ``rules`` are added to the reward with their weights, in units of the score's spread. ``sampler`` takes the place of
    :func:`starling_nb.models.sample` (:mod:`starling_nb.policy.rollouts.vllm`).

    One record a step: reward (raw score), kl (nats a sequence, exact, summed over tokens), length (tokens),
    eos_rate, entropy (nats a token), value_loss, policy_loss, explained (share of the return's variance that the
    critic explains), sampler_gap (nats a token between the sampler's log-probabilities and the trainer's), kl_weight
    where it is steered.

    Raises:
        TuningError: a guard stopped the run (:mod:`starling_nb.policy.guards`), or the reward is constant or no number.
    """
    torch.manual_seed(recipe.seed)
    loop = _start(lm, recipe, sampler)
    own = _name(lm, reward, prompts, recipe, offsets or {}, rules or {})
    resumed = _restore(checkpoint, loop, own)
    if resumed > recipe.steps:
        raise TuningError(f"{checkpoint} is at step {resumed} of this run: ask for as many steps, or delete it")
    plain, team = loop.plain, loop.team
    score = RewardOnTrunk(reward, lm, plain.start)
    plain.top.write_into(lm.model.model)
    for step in range(resumed, recipe.steps):
        rollouts = _rollouts(loop, lm, score, prompts, recipe, step, offsets or {}, rules or {})
        loop.scale = _scale(loop.scale, rollouts, recipe)
        # The context ends before the first optimiser step: it remembers weights cast to bfloat16.
        with loop.accelerator.autocast():
            parts = minibatches(plain, rollouts, recipe, loop.scale, loop.kl, team)
        for rollout in rollouts:
            rollout.sample.states.clear()  # the minibatches hold them now
        with team.together():
            guards.masks_hold_the_answers(rollouts, parts, lm.chat.eos_id)
        record = {"step": float(step), **summary(rollouts, parts, team)}
        record |= {"kl_weight": loop.kl} if recipe.kl_target is not None else {}
        with team.together():
            guards.one_model(record, parts, lm)
            guards.still_ends(record, loop.history, recipe)
        loop.history.append(record | _learn(loop, parts, recipe, step, lm.chat.eos_id))
        loop.kl = steered(loop.kl, record["kl"], recipe)
        plain.top.write_into(lm.model.model)
        due = checkpoint is not None and ((step + 1) % 2 == 0 or step + 1 == recipe.steps)
        state = _state(loop, own) if due else None
        with team.together():
            if report is not None and team.main:
                report(step + 1, recipe.steps, loop.history[-1])
            if checkpoint is not None and state is not None and team.main:
                with files.replacing(checkpoint) as part:
                    torch.save(state, part)
    hydra = sharded.unsharded(plain, lambda: Hydra(lm, recipe.trainable, recipe.value))
    return Tuned(hydra, loop.history, resumed, guards.quirks(recipe))


def steered(weight: float, kl: float, recipe: Recipe) -> float:
    """The weight of the log-ratio after a step at divergence ``kl``, nats an answer; the same without a target.

    Proportional control in log-space, Ziegler et al. 2019 (arXiv 1909.08593).
    """
    if recipe.kl_target is None:
        return weight
    error = min(max(kl / recipe.kl_target - 1, -0.2), 0.2)
    return weight * (1 + error * recipe.rollouts / recipe.kl_horizon)


def _scale(before: Scale | None, rollouts: Sequence[Rollout], recipe: Recipe) -> Scale:
    if before is None:
        return scale_of(rollouts)
    return before.joined(scale_of(rollouts)) if recipe.scale == "running" else before


def _start(lm: LM, recipe: Recipe, sampler: Callable[..., list[Sample]] = sample) -> _Loop:
    accelerator = lm.accelerator()
    team = Team(accelerator)
    if recipe.rollouts // recipe.answers < team.size:
        raise TuningError(
            f"{team.size} processes cannot share {recipe.rollouts // recipe.answers} prompts a step: raise rollouts"
        )
    hydra = Hydra(lm, recipe.trainable, recipe.value)
    policy, critic = hydra.learning()
    optimizer = torch.optim.AdamW(
        [{"params": policy, "lr": recipe.lr}, {"params": critic, "lr": recipe.value_lr}],
        betas=(0.9, 0.95),
        weight_decay=1e-6,
        fused=True,
    )
    return _Loop(accelerator, recipe.kl, *sharded.prepared(accelerator, hydra, optimizer), team, sampler)


def _rollouts(
    loop: _Loop,
    lm: LM,
    score: RewardOnTrunk,
    prompts: Sequence[Prompt],
    recipe: Recipe,
    step: int,
    offsets: Mapping[str, float],
    rules: Mapping[str, tuple[float, Rule]],
) -> list[Rollout]:
    """Scored answers to one step's prompts, of which each process samples and scores its share."""
    chosen, ids = _step_prompts(prompts, recipe, step)
    places = loop.team.own(len(ids), recipe.answers)
    said = progress.sampling(len(places), f"{recipe.objective.upper()} step {step + 1}, rollouts")
    with loop.team.together():
        own = collect(
            lm,
            [chosen[i] for i in places],
            [ids[i] for i in places],
            seed=recipe.seed,
            max_new_tokens=recipe.max_new_tokens,
            capture=score.capture,
            progress=said if loop.team.main else None,
            sampler=loop.sampler,
        )
        guards.begins_once(own, lm)
        score(own)
        for rollout in own:
            rollout.score -= offsets.get(key(rollout.prompt.messages), 0.0)
        added(rules, own)
    return everybodys(own, places, chosen, loop.team)


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


def _learn(loop: _Loop, parts: Sequence[Minibatch], recipe: Recipe, step: int, eos: int) -> dict[str, float]:
    """Passes over the step's minibatches in a keyed order, one optimiser step each."""
    totals = {"policy_loss": 0.0, "value_loss": 0.0}
    for epoch in range(recipe.epochs):
        order = files.rng(recipe.seed, "minibatches", step, epoch).permutation(len(parts))
        for place, index in enumerate(order.tolist()):
            item = parts[index]
            logprobs, values = loop.hydra(item.batch)
            if epoch == 0 and place == 0:
                with loop.team.together():
                    guards.ratio_is_one(logprobs, item.old.logprobs)
            policy_loss, value_loss = objectives.own_part(logprobs, values, item, recipe, eos)
            whole = loop.team.total(torch.stack([policy_loss, value_loss]).detach()).tolist()
            found = dict(zip(totals, whole, strict=True))
            warming = step < recipe.critic_warmup or (recipe.critic_gate and found["value_loss"] > 1)
            guards.finite(found["value_loss"] if warming else sum(found.values()), step)
            loss = value_loss if warming else policy_loss + value_loss
            if warming and loop.team.size > 1:
                loss = loss + 0.0 * policy_loss  # all wait until every weight has a gradient
            loop.accelerator.backward(loop.team.size * loss)  # gradients are averaged over the processes
            loop.accelerator.clip_grad_norm_(loop.hydra.parameters(), 1.0)
            if step < recipe.critic_warmup:
                for weight in loop.plain.learning()[0]:
                    weight.grad = None
            loop.optimizer.step()
            loop.optimizer.zero_grad()
            totals = {name: totals[name] + value for name, value in found.items()}
    return {key: value / (recipe.epochs * len(parts)) for key, value in totals.items()}


def _name(
    lm: LM,
    reward: Reward,
    prompts: Sequence[Prompt],
    recipe: Recipe,
    offsets: Mapping[str, float],
    rules: Mapping[str, tuple[float, Rule]],
) -> str:
    """Names the run that a checkpoint belongs to, of whatever length: both models' weights and all that is asked."""
    weights = {name: weight for name, (weight, _) in rules.items()}
    models = [lm.name, lm.fingerprint(), reward.fingerprint()]
    asked = [key(prompt.messages) for prompt in prompts]
    return files.hash_value([models, str(replace(recipe, steps=1)), asked, dict(offsets), weights])


def _state(loop: _Loop, run: str) -> dict[str, Any]:
    """What a run is gone on from."""
    assert loop.scale is not None
    return {
        "run": run,
        "hydra": sharded.gathered(loop.plain.own_state()),
        "optimizer": sharded.gathered(loop.optimizer.state_dict()),
        "loop": {"history": loop.history, "kl": loop.kl, "scale": asdict(loop.scale)},
    }


def _restore(path: Path | None, loop: _Loop, run: str) -> int:
    with loop.team.together():
        if path is not None and path.exists():
            _load(path, loop, run)
    return loop.team.agreed(len(loop.history), path)


def _load(path: Path, loop: _Loop, run: str) -> None:
    state = torch.load(path, map_location="cpu", weights_only=True)  # not all ranks onto the card of the first
    if state.get("run") != run:
        raise TuningError(
            f"{path} belongs to another run (start model, reward model, prompts, recipe or rules): delete it, or go "
            "back to that one"
        )
    loop.plain.load_own_state(sharded.weights_for(loop.plain, state["hydra"]))
    loop.optimizer.load_state_dict(sharded.moments_for(loop.optimizer, state["optimizer"]))
    kept = state["loop"]
    loop.history, loop.kl, loop.scale = kept["history"], kept["kl"], Scale(**kept["scale"])
