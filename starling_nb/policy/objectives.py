"""The losses of one minibatch: in nothing else do the online objectives differ."""

from __future__ import annotations

import torch
from torch import Tensor

from starling_nb import losses
from starling_nb.policy.experience import Minibatch
from starling_nb.policy.recipe import Recipe


def own_part(logprobs: Tensor, values: Tensor, item: Minibatch, recipe: Recipe, eos: int) -> tuple[Tensor, Tensor]:
    """What this process's rows add to the policy's and the critic's loss of the whole minibatch.

    The losses are means over tokens, or over answers (P3O, RLOO), so that the rows here count by their part of these;
    the sum over all processes is the loss of the whole minibatch in one.

    Args:
        logprobs: of the answer tokens under the policy, ``[answer tokens]``, nats.
        values: of the value head, ``[answer tokens]``.
        item: the rows, and their part of the whole.
        recipe: names the objective.
        eos: the end-of-turn token.
    """
    mask, nothing = _mask(item, recipe, eos), 0.0 * (logprobs.sum() + values.sum())
    part = item.rows if recipe.objective in ("p3o", "rloo") else item.tokens
    policy = part * _policy_loss(item.batch.unflatten(logprobs), item, mask, recipe) if part else nothing
    critic = item.tokens * _value_loss(item.batch.unflatten(values), item, mask, recipe) if item.tokens else nothing
    return policy, critic


def _mask(item: Minibatch, recipe: Recipe, eos: int) -> Tensor:
    """The tokens that are learned from, ``[rows, longest answer]``, 0 or 1."""
    if not recipe.hide_eos:
        return item.batch.mask.float()
    return (item.batch.mask & (item.batch.unflatten(item.batch.targets) != eos)).float()


def _policy_loss(logprobs: Tensor, item: Minibatch, mask: Tensor, recipe: Recipe) -> Tensor:
    old, reference = item.batch.unflatten(item.old.logprobs), item.batch.unflatten(item.old.reference)
    if recipe.objective == "apa":
        anchor = reference if recipe.anchor == "initial" else old
        return losses.apa(logprobs, anchor, item.advantages, mask, lam=recipe.lam)
    if recipe.objective == "ppo":
        return losses.ppo(logprobs, old, item.advantages, mask, clip=recipe.clip)
    before = ((old - reference) * mask).sum(1)
    if recipe.objective == "rloo":
        rewards = (item.scores - item.kl * before).view(-1, recipe.answers)
        moved = ((logprobs - old) * mask).sum(1).view_as(rewards)
        return losses.rloo(moved, torch.zeros_like(moved), rewards, clip=recipe.clip)
    pairs = [x.view(-1, 2) for x in (((logprobs - reference) * mask).sum(1), before, item.scores)]
    return losses.p3o(*pairs, kl_coef=item.kl, clip=recipe.clip, clipping=recipe.clipping)


def _value_loss(values: Tensor, item: Minibatch, mask: Tensor, recipe: Recipe) -> Tensor:
    old, known = item.batch.unflatten(item.old.values), item.foreseen
    return losses.value(values + known, old + known, item.returns, mask, clip=recipe.value_clip)
