"""Rollouts: answers sampled from the policy, their trunk states, and their scores under a reward model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from starling_nb.chat import Encoded, Message
from starling_nb.models import LM, Sample, sample
from starling_nb.nectar.prompts import Prompt
from starling_nb.reward.model import Reading, RewardModel
from starling_nb.reward.serving import Reward


@dataclass
class Rollout:
    """One sampled answer and its ``score``, raw reward units; ``by_rule`` is added to it in units of its spread.

    ``means`` is what the reward model reads in the unfinished answer (:class:`starling_nb.reward.model.Reading`); None
    where its tokens are not the policy's.
    """

    prompt: Prompt
    sample: Sample
    text: str
    score: float = 0.0
    means: Tensor | None = None
    by_rule: float = 0.0

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.sample.prompt) + len(self.sample.ids)

    @property
    def trunk(self) -> Tensor:
        """States that enter the highest captured block, the policy's first own, ``[at least length, width]``."""
        return self.sample.states[max(self.sample.states)]

    @property
    def here(self) -> bool:
        """Whether this process sampled it: the states of another's answers stay there."""
        return bool(self.sample.states)


class RewardOnTrunk:
    """Scores rollouts with a reward model; the blocks that it shares with the policy's frozen trunk are not run again.

    Args:
        reward: the reward model, here or served.
        lm: the policy's language model.
        start: the policy's first own block.

    ``shared`` counts the shared blocks; ``capture`` names the blocks whose entering states are to be kept while
    sampling: the policy's first own one, and the one from which the reward model goes its own way.
    """

    def __init__(self, reward: Reward, lm: LM, start: int) -> None:
        self.reward, self.eos = reward, lm.chat.eos_id
        self.beside = reward if isinstance(reward, RewardModel) and reward.chat.writes_like(lm.chat) else None
        self.shared = shared_blocks(self.beside.transformer, lm.model.model, start) if self.beside else 0
        self.capture = {start, self.shared or start}

    def __call__(self, rollouts: Sequence[Rollout], batch: int = 32) -> None:
        """Give every rollout its raw score and, where the tokens are the policy's, its ``means``.

        An answer cut by the token cap is scored as if it had ended there. A reward model that is served, or has other
        tokens, reads the text (:meth:`starling_nb.reward.RewardModel.score_sampled`).
        """
        if self.beside is None:
            texts: list[list[Message]] = [
                [*r.prompt.messages, {"role": "assistant", "content": r.text}] for r in rollouts
            ]
            for rollout, score in zip(rollouts, self.reward.score_sampled(texts, batch), strict=True):
                rollout.score = score
            return
        closed = [self._closed(rollout.sample) for rollout in rollouts]
        model = self.beside
        readings = self._on_trunk(model, rollouts, closed, batch) if self.shared else model.read_ids(closed, batch)
        for rollout, reading in zip(rollouts, readings, strict=True):
            rollout.score, rollout.means = reading.score, reading.means[: len(rollout.sample.ids)]

    def _closed(self, sample: Sample) -> Encoded:
        end = [] if sample.finished else [self.eos]
        return Encoded([*sample.prompt, *sample.ids, *end], len(sample.prompt))

    @torch.inference_mode()
    def _on_trunk(
        self, reward: RewardModel, rollouts: Sequence[Rollout], closed: Sequence[Encoded], batch: int
    ) -> list[Reading]:
        readings: dict[int, Reading] = {}
        order = sorted(range(len(rollouts)), key=lambda i: rollouts[i].length)
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            kept = [rollouts[i].sample.states[self.shared] for i in rows]
            states = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True)
            spans = [(closed[i].prompt_length, len(closed[i].ids)) for i in rows]
            readings |= zip(rows, reward.read(states, self.shared, spans), strict=True)
        return [readings[i] for i in range(len(rollouts))]


def collect(
    lm: LM,
    prompts: Sequence[Prompt],
    ids: Sequence[str],
    *,
    seed: int,
    max_new_tokens: int,
    capture: Collection[int] = (),
    temperature: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    sampler: Callable[..., list[Sample]] = sample,
) -> list[Rollout]:
    """Sample one answer for each prompt under the ids given (one name an answer, not a prompt).

    ``sampler`` is :func:`starling_nb.models.sample` or takes the same arguments
    (:class:`starling_nb.policy.rollouts.vllm.Sampler`).
    """
    samples = sampler(
        lm,
        [lm.chat.prompt_ids(prompt.messages) for prompt in prompts],
        ids,
        seed=seed,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        capture=capture,
        progress=progress,
    )
    return [Rollout(p, s, lm.chat.decode(s.ids)) for p, s in zip(prompts, samples, strict=True)]


def shared_blocks(one: Any, other: Any, most: int) -> int:
    """How many blocks from the bottom, at most ``most``, are the same in two decoders of one shape."""
    if one.config.hidden_size != other.config.hidden_size or not _equal(one.embed_tokens, other.embed_tokens):
        return 0
    pairs = list(zip(one.layers, other.layers, strict=False))[:most]
    return next((place for place, (ours, theirs) in enumerate(pairs) if not _equal(ours, theirs)), len(pairs))


def _equal(one: Any, other: Any) -> bool:
    """Whether two modules have the same weights in the same type on the same device."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in pairs)
