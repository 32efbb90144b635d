"""From scored rollouts to minibatches of advantages: what every online objective learns from.

Masks come from lengths; the end-of-turn token is inside the mask, and the score sits on the last answer token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from starling_nb import losses
from starling_nb.errors import StarlingError
from starling_nb.policy.hydra import Batch, Comparison, Hydra, collate
from starling_nb.policy.rollouts import Rollout

if TYPE_CHECKING:
    from starling_nb.policy.tuning import Recipe


class TuningError(StarlingError):
    """A guard stopped the run; the message says why."""


@dataclass(frozen=True)
class Scale:
    """Mean and spread of the first step's raw scores, by which the scores of all steps are measured."""

    mean: float
    std: float


@dataclass
class Minibatch:
    """Sequences of like length with what is fixed before the first pass over them.

    ``old`` is the policy that sampled beside the reference; ``advantages`` and ``returns`` ``[rows, longest answer]``
    are zero outside the mask; ``scores`` ``[rows]`` are the shaped rewards of whole answers.
    """

    batch: Batch
    old: Comparison
    advantages: Tensor
    returns: Tensor
    scores: Tensor


def raw_scores(rollouts: Sequence[Rollout]) -> Tensor:
    """Scores as the reward model gave them, ``[rollouts]``.

    Raises:
        TuningError: a score is not a finite number, or all are the same.
    """
    raw = torch.tensor([rollout.score for rollout in rollouts])
    if not bool(torch.isfinite(raw).all()):
        raise TuningError("the reward model returned a score that is not a number: retrain it (notebook 03)")
    if len(raw) < 2 or float(raw.std()) < 1e-6:
        raise TuningError("the reward is constant over a whole step: the reward model has learned nothing")
    return raw


def scale_of(rollouts: Sequence[Rollout]) -> Scale:
    """Mean and standard deviation of the raw scores."""
    raw = raw_scores(rollouts)
    return Scale(float(raw.mean()), float(raw.std()))


def shape_scores(rollouts: Sequence[Rollout], recipe: Recipe, scale: Scale) -> Tensor:
    """Rewards of whole answers, ``[rollouts]``: raw scores in units of the first step's spread, clipped, and the
    penalty where an answer never ended."""
    shaped = (raw_scores(rollouts) - (scale.mean if recipe.centre else 0.0)) / scale.std
    unfinished = torch.tensor([float(not rollout.sample.finished) for rollout in rollouts])
    return shaped.clamp(-recipe.score_clip, recipe.score_clip) + recipe.missing_eos * unfinished


def minibatches(hydra: Hydra, rollouts: Sequence[Rollout], recipe: Recipe, scale: Scale) -> list[Minibatch]:
    """Old and reference log-probabilities, advantages and returns, in minibatches of similar length.

    Raises:
        TuningError: as :func:`raw_scores`.
    """
    shaped = shape_scores(rollouts, recipe, scale)
    parts = []
    for rows in similar_lengths(rollouts, recipe):
        batch = collate_rollouts([rollouts[i] for i in rows])
        old, scores = hydra.compare(batch), shaped[rows].to(batch.states.device)
        rewards = batch.unflatten(-recipe.kl * (old.logprobs - old.reference))
        ends = batch.mask.sum(1) - 1
        rewards[torch.arange(len(rows), device=ends.device), ends] += scores
        advantages, returns = losses.gae(
            rewards, batch.unflatten(old.values), batch.mask.float(), gamma=1.0, lam=recipe.gae_lambda
        )
        parts.append(Minibatch(batch, old, advantages, returns, scores))
    if recipe.whiten:
        every = torch.cat([part.advantages[part.batch.mask] for part in parts])
        for part in parts:
            part.advantages = (part.advantages - every.mean()) / (every.std() + 1e-6) * part.batch.mask
    return parts


def similar_lengths(rollouts: Sequence[Rollout], recipe: Recipe) -> list[list[int]]:
    """Row indices of each minibatch; the two answers of one P3O prompt stay side by side."""
    unit = 2 if recipe.objective == "p3o" else 1
    groups = [list(range(i, i + unit)) for i in range(0, len(rollouts), unit)]
    groups.sort(key=lambda g: max(len(rollouts[i].trunk) for i in g))
    per = max(1, recipe.minibatch // unit)
    return [[i for group in groups[s : s + per] for i in group] for s in range(0, len(groups), per)]


def collate_rollouts(rollouts: Sequence[Rollout]) -> Batch:
    """Rollouts side by side on their kept trunk states."""
    return collate(
        [r.trunk for r in rollouts], [len(r.sample.prompt) for r in rollouts], [r.sample.ids for r in rollouts]
    )


def sampler_gap(rollouts: Sequence[Rollout], parts: Sequence[Minibatch], recipe: Recipe) -> float:
    """Mean distance, nats a token, between the sampler's log-probabilities and the trainer's of the same tokens.

    Rounding in bfloat16 explains a few hundredths; more means that the two do not run the same model.
    """
    apart, tokens = 0.0, 0
    for rows, part in zip(similar_lengths(rollouts, recipe), parts, strict=True):
        sampled = torch.tensor([value for i in rows for value in rollouts[i].sample.logprobs])
        apart += float((part.old.logprobs.cpu() - sampled).abs().sum())
        tokens += len(sampled)
    return apart / tokens


def summary(rollouts: Sequence[Rollout], parts: Sequence[Minibatch], recipe: Recipe) -> dict[str, float]:
    """What one step's rollouts were like, before anything is learned from them; names as in a run's record."""
    n, tokens = len(rollouts), sum(len(r.sample.ids) for r in rollouts)
    returns = torch.cat([m.returns[m.batch.mask] for m in parts])
    values = torch.cat([m.old.values for m in parts])
    return {
        "reward": sum(r.score for r in rollouts) / n,
        "kl": float(sum(m.old.kl.sum() for m in parts)) / n,
        "length": tokens / n,
        "eos_rate": sum(r.sample.finished for r in rollouts) / n,
        "entropy": float(sum(m.old.entropy.sum() for m in parts)) / tokens,
        "explained": 1.0 - float((returns - values).var() / (returns.var() + 1e-9)),
        "sampler_gap": sampler_gap(rollouts, parts, recipe),
    }
