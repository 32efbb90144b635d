"""What stops a run of tuning, each with its reason: faults that otherwise show only as a policy that does not learn.

A recipe that asks for an oddity of the published code gets a warning for it (:func:`quirks`) and all other guards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from starling_nb.models import LM
from starling_nb.policy.experience import Minibatch
from starling_nb.policy.recipe import Recipe, TuningError
from starling_nb.policy.rollouts import Rollout


def quirks(recipe: Recipe) -> list[str]:
    """Warnings for what the recipe does on purpose and a guard would stop otherwise."""
    told = {
        "hide_eos": "the end-of-turn token is outside every loss, so that stopping is learned only by its neighbours"
    }
    return [f"{name}: {told[name]}" for name in recipe.quirks]


def begins_once(rollouts: Sequence[Rollout], lm: LM) -> None:
    """Stop where the token that begins a text begins it twice, or stands between every prompt and its answer."""
    bos = lm.chat.tokenizer.bos_token_id
    if bos is None:
        return
    for rollout in rollouts:
        if rollout.sample.prompt[:2] == [bos, bos]:
            raise TuningError(
                f"prompt {rollout.prompt.id} begins with two BOS tokens: template and tokenizer add one each"
            )
    if all(rollout.sample.ids[:1] == [bos] for rollout in rollouts):
        raise TuningError(
            "a BOS token stands between every prompt and its answer: encode answers without special tokens"
        )


def masks_hold_the_answers(rollouts: Sequence[Rollout], parts: Sequence[Minibatch], eos: int) -> None:
    """Stop where a mask is not the answer's tokens, its end of turn included."""
    for part in parts:
        lengths = part.batch.mask.sum(1).tolist()
        targets = part.batch.unflatten(part.batch.targets)
        for row, place in enumerate(part.places):
            sample = rollouts[place].sample
            if lengths[row] != len(sample.ids) or targets[row, : lengths[row]].tolist() != sample.ids:
                raise TuningError(
                    f"the mask of an answer of {len(sample.ids)} tokens holds {lengths[row]}: make masks from lengths, "
                    "not from padding that may be the end-of-turn token"
                )
            if sample.finished and sample.ids[-1] != eos:
                raise TuningError("an answer counts as finished without its end-of-turn token: the score has no place")


def one_model(record: dict[str, float], parts: Sequence[Minibatch], lm: LM) -> None:
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


def still_ends(record: dict[str, float], history: Sequence[dict[str, float]], recipe: Recipe) -> None:
    """Stop where answers no longer end by themselves, though enough of them did at first to tell."""
    first = history[0]["eos_rate"] if history else 0.0
    if first * recipe.rollouts >= 16 and record["eos_rate"] < recipe.eos_floor * first:
        raise TuningError(
            f"answers have stopped ending: {record['eos_rate']:.0%} of them in step {record['step']:.0f}, {first:.0%} "
            "at first. Make missing_eos a larger penalty, or raise kl or max_new_tokens"
        )


def ratio_is_one(logprobs: Tensor, old: Tensor) -> None:
    """Stop where the first pass over fresh rollouts does not find the probabilities they were sampled with."""
    gap = float((logprobs.detach() - old).abs().max())
    if not gap <= 0.05:
        raise TuningError(f"fresh rollouts have a log-ratio of {gap:.3f}, not 0: two passes of one policy disagree")


def finite(loss: float, step: int) -> None:
    """Stop at a loss that is not a number."""
    if not math.isfinite(loss):
        raise TuningError(f"the loss is not a number at step {step}: lower lr")
