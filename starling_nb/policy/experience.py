"""From scored rollouts to minibatches of advantages: what every online objective learns from.

Masks come from lengths; the end-of-turn token is inside the mask, and the score sits on the last answer token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from starling_nb import losses
from starling_nb.policy.hydra import Batch, Comparison, Hydra, collate
from starling_nb.policy.parallel.sharing import ALONE, Team
from starling_nb.policy.recipe import Recipe, TuningError
from starling_nb.policy.rollouts import Rollout


@dataclass(frozen=True)
class Scale:
    """Mean and spread of ``count`` raw scores, by which scores are measured."""

    mean: float
    std: float
    count: int = 0

    def joined(self, other: Scale) -> Scale:
        """Mean and spread of both sets of scores together."""
        count, gap = self.count + other.count, other.mean - self.mean
        mean = self.mean + gap * other.count / count
        squares = sum((one.count - 1) * one.std**2 for one in (self, other)) + gap**2 * self.count * other.count / count
        return Scale(mean, math.sqrt(squares / (count - 1)), count)


@dataclass
class Minibatch:
    """Some sequences with what is fixed before the first pass over them.

    ``places`` are those of its rows among the rollouts, ``tokens`` and ``rows`` its parts of the whole minibatch's
    learned tokens and rows: 1, or less where several processes share it. A process that has none of them passes a few
    others through the policy, because all must take part: ``places`` is empty then and both parts are 0.

    ``old`` is the policy that sampled beside the reference; ``foreseen`` (what the reward model alone says of the
    return), ``advantages`` and ``returns``, ``[rows, longest answer]`` each, are zero outside the mask; ``scores``
    ``[rows]`` are the shaped rewards of whole answers, ``kl`` the weight of the log-ratio.
    """

    batch: Batch
    old: Comparison
    foreseen: Tensor
    advantages: Tensor
    returns: Tensor
    scores: Tensor
    kl: float
    places: Sequence[int] = ()
    tokens: float = 1.0
    rows: float = 1.0


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
    return Scale(float(raw.mean()), float(raw.std()), len(raw))


def shape_scores(rollouts: Sequence[Rollout], recipe: Recipe, scale: Scale) -> Tensor:
    """Rewards of whole answers, ``[rollouts]``.

    Raw scores in units of the scale's spread and clipped (``scale="running"`` clips first and leaves the mean where it
    is), what its length and the rules are worth, the penalty where an answer never ended, and less the mean of the
    prompt's answers where it has several. That mean is the baseline of RLOO (Ahmadian et al. 2024, arXiv 2402.14740)
    but for a factor: it takes off what belongs to the prompt, the constant that a ranking loss leaves open among it.
    """
    raw, clip = raw_scores(rollouts), recipe.score_clip
    if recipe.scale == "running":
        shaped = raw.clamp(-clip, clip) / scale.std
    else:
        shaped = ((raw - (scale.mean if recipe.centre else 0.0)) / scale.std).clamp(-clip, clip)
    unfinished = torch.tensor([float(not rollout.sample.finished) for rollout in rollouts])
    lengths = torch.tensor([float(len(rollout.sample.ids)) for rollout in rollouts])
    by_rule = torch.tensor([rollout.by_rule for rollout in rollouts])
    shaped = shaped + recipe.missing_eos * unfinished + recipe.length * lengths + by_rule
    return centred(shaped[:, None], rollouts)[:, 0] if recipe.centre else shaped


def centred(table: Tensor, rollouts: Sequence[Rollout]) -> Tensor:
    """``table`` ``[rollouts, columns]`` less the mean of each prompt's rows, column by column; NaN is left out.

    A prompt with one answer keeps its row: there is nothing to compare it with.
    """
    found = table.clone()
    by_prompt: dict[str, list[int]] = {}
    for place, rollout in enumerate(rollouts):
        by_prompt.setdefault(rollout.prompt.id, []).append(place)
    for rows in by_prompt.values():
        if len(rows) > 1:
            found[rows] -= table[rows].nanmean(0)
    return found


def foresee(rollouts: Sequence[Rollout], shaped: Tensor, window: int = 3) -> list[Tensor]:
    """What the reward model, read in the unfinished answer, says of its return before each token ``[answer tokens]``.

    The critic of InstructGPT starts as a copy of the reward model (Ouyang et al. 2022, arXiv 2203.02155). Here it stays
    one: before token t the value is the mean reading of the t tokens so far, measured against the prompt's other
    answers, times the least-squares slope of the rewards over readings within ``window`` tokens of t. The learned value
    head adds what is missing. Zero for a prompt with one answer, and where there are no readings.
    """
    lengths = [len(rollout.sample.ids) for rollout in rollouts]
    if any(rollout.means is None for rollout in rollouts):
        return [torch.zeros(length) for length in lengths]
    table = torch.full((len(rollouts), max(lengths)), torch.nan)
    several = {r.prompt.id for r in rollouts if sum(o.prompt is r.prompt for o in rollouts) > 1}
    for row, rollout in enumerate(rollouts):
        assert rollout.means is not None
        if rollout.prompt.id in several:
            table[row, 1 : lengths[row]] = rollout.means[: lengths[row] - 1]
    table = centred(table, rollouts)
    known = (~table.isnan()).float()
    table = table.nan_to_num()
    shared = ((table * shaped[:, None]).sum(0), (table.square() * known).sum(0))
    kernel = torch.ones(1, 1, 2 * window + 1)
    over, under = (torch.nn.functional.conv1d(x[None, None], kernel, padding=window)[0, 0] for x in shared)
    values = table * (over / under.clamp(min=1e-6))
    return [row[:length] for row, length in zip(values, lengths, strict=True)]


def minibatches(
    hydra: Hydra,
    rollouts: Sequence[Rollout],
    recipe: Recipe,
    scale: Scale,
    kl: float | None = None,
    team: Team = ALONE,
) -> list[Minibatch]:
    """Old and reference log-probabilities, advantages and returns, minibatch by minibatch.

    ``kl`` is the weight of the log-ratio where it is not the recipe's. ``rollouts`` are those of the whole ``team``;
    of each minibatch a process gets the rows that it sampled.

    Raises:
        TuningError: a minibatch holds no token to learn from, or as :func:`raw_scores`.
    """
    shaped = shape_scores(rollouts, recipe, scale)
    ahead = foresee(rollouts, shaped) if recipe.foresee else [torch.zeros(len(r.sample.ids)) for r in rollouts]
    learned = [len(r.sample.ids) - (recipe.hide_eos and r.sample.finished) for r in rollouts]
    whole = neighbours(len(rollouts), recipe)
    ours = [[i for i in rows if rollouts[i].here] for rows in whole]
    others = next(rows for rows in ours if rows)
    parts = []
    with team.together():
        for rows, own in zip(whole, ours, strict=True):
            if not (tokens := sum(learned[i] for i in rows)):
                raise TuningError("a minibatch holds no token to learn from: set hide_eos=false, or enlarge minibatch")
            taken = own or others
            part = _minibatch(hydra, [rollouts[i] for i in taken], shaped[taken], [ahead[i] for i in taken], recipe, kl)
            part.places, part.rows = own, len(own) / len(rows)
            part.tokens = sum(learned[i] for i in own) / tokens
            parts.append(part)
    if recipe.whiten:
        every = team.joined(torch.cat([part.advantages[part.batch.mask] for part in parts if part.places]))
        for part in parts:
            part.advantages = (part.advantages - every.mean()) / (every.std() + 1e-6) * part.batch.mask
    return parts


def _minibatch(
    hydra: Hydra, rollouts: Sequence[Rollout], shaped: Tensor, ahead: Sequence[Tensor], recipe: Recipe, kl: float | None
) -> Minibatch:
    """Some rows, as if they were all of it."""
    kl = recipe.kl if kl is None else kl
    batch = collate_rollouts(rollouts)
    old, scores = hydra.compare(batch), shaped.to(batch.states.device)
    foreseen = torch.nn.utils.rnn.pad_sequence(list(ahead), batch_first=True).to(scores.device)
    rewards = batch.unflatten(-kl * (old.logprobs - old.reference))
    ends = batch.mask.sum(1) - 1
    rewards[torch.arange(len(rollouts), device=ends.device), ends] += scores
    values = batch.unflatten(old.values) + foreseen
    advantages, returns = losses.gae(rewards, values, batch.mask.float(), gamma=1.0, lam=recipe.gae_lambda)
    return Minibatch(batch, old, foreseen, advantages, returns, scores, kl)


def neighbours(n: int, recipe: Recipe) -> list[list[int]]:
    """Places of each minibatch among ``n`` rollouts, in their order: answers to a prompt stay together where they fit,
    and two that P3O compares, or all that RLOO does, always."""
    unit = {"p3o": 2, "rloo": recipe.answers}.get(recipe.objective, 1)
    size = max(1, recipe.minibatch // unit) * unit
    return [list(range(first, min(first + size, n))) for first in range(0, n, size)]


def collate_rollouts(rollouts: Sequence[Rollout]) -> Batch:
    """Rollouts in one row on their kept trunk states; answers to a prompt share it."""
    prompts = [tuple(r.sample.prompt) for r in rollouts]
    return collate([r.trunk for r in rollouts], [len(p) for p in prompts], [r.sample.ids for r in rollouts], prompts)


def sampler_gap(rollouts: Sequence[Rollout], parts: Sequence[Minibatch], team: Team = ALONE) -> float:
    """Mean distance, nats a token, between the sampler's log-probabilities and the trainer's of the same tokens.

    Rounding in bfloat16 explains a few hundredths; more means that the two do not run the same model.
    """
    apart = 0.0
    for part in parts:
        if part.places:
            sampled = torch.tensor([value for i in part.places for value in rollouts[i].sample.logprobs])
            apart += float((part.old.logprobs.cpu() - sampled).abs().sum())
    return _total(team, apart) / sum(len(r.sample.ids) for r in rollouts)


def summary(rollouts: Sequence[Rollout], parts: Sequence[Minibatch], team: Team = ALONE) -> dict[str, float]:
    """What one step's rollouts were like, before anything is learned from them; names as in a run's record."""
    n, tokens = len(rollouts), sum(len(r.sample.ids) for r in rollouts)
    own = [part for part in parts if part.places]
    returns = team.joined(torch.cat([m.returns[m.batch.mask] for m in own]))
    values = team.joined(torch.cat([m.old.values + m.foreseen[m.batch.mask] for m in own]))
    return {
        "reward": sum(r.score for r in rollouts) / n,
        "kl": _total(team, float(sum(m.old.kl.sum() for m in own))) / n,
        "length": tokens / n,
        "eos_rate": sum(r.sample.finished for r in rollouts) / n,
        "entropy": _total(team, float(sum(m.old.entropy.sum() for m in own))) / tokens,
        "explained": 1.0 - float((returns - values).var() / (returns.var() + 1e-9)),
        "sampler_gap": sampler_gap(rollouts, parts, team),
    }


def _total(team: Team, number: float) -> float:
    return sum(team.every(number))
