"""Rollouts: answers sampled from the policy, their trunk states, and their scores under a reward model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from starling_nb.blocks import run_blocks
from starling_nb.models import LM, Sample, sample
from starling_nb.nectar.prompts import Prompt
from starling_nb.reward.model import RewardModel


@dataclass
class Rollout:
    """One sampled answer: ``trunk`` ``[prompt + answer + end-of-turn tokens, width]``, ``score`` raw reward units."""

    prompt: Prompt
    sample: Sample
    text: str
    score: float = 0.0

    @property
    def trunk(self) -> Tensor:
        """Trunk states kept while sampling."""
        assert self.sample.trunk is not None
        return self.sample.trunk


class RewardOnTrunk:
    """Scores rollouts with a reward model; where it stands on the policy's own frozen trunk, that is not run again.

    Args:
        reward: the reward model.
        lm: the policy's language model.
        start: first block above the shared trunk.
    """

    def __init__(self, reward: RewardModel, lm: LM, start: int) -> None:
        self.reward, self.start = reward, start
        self.shared = reward.chat.template == lm.chat.template and _same_trunk(
            reward.transformer, lm.model.model, start
        )

    @torch.inference_mode()
    def __call__(self, rollouts: Sequence[Rollout], batch: int = 32) -> list[float]:
        """Raw scores, one a rollout; an answer cut by the token cap is scored as if it had ended there."""
        if not self.shared:
            return self.reward.score(
                [[*r.prompt.messages, {"role": "assistant", "content": r.text}] for r in rollouts], batch
            )
        scores = [0.0] * len(rollouts)
        order = sorted(range(len(rollouts)), key=lambda i: len(rollouts[i].trunk))
        model: Any = self.reward.transformer
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            states = torch.nn.utils.rnn.pad_sequence([rollouts[i].trunk for i in rows], batch_first=True)
            positions = torch.arange(states.shape[1], device=states.device).expand(len(rows), -1)
            hidden = run_blocks(model, states, positions, None, self.start, len(model.layers))
            starts = [len(rollouts[i].sample.prompt) for i in rows]
            values = self.reward.read(hidden, starts, [len(rollouts[i].trunk) for i in rows])
            for row, value in zip(rows, values.tolist(), strict=True):
                scores[row] = value
        return scores


def collect(
    lm: LM,
    prompts: Sequence[Prompt],
    ids: Sequence[str],
    *,
    seed: int,
    max_new_tokens: int,
    capture: int | None,
    temperature: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Rollout]:
    """Sample one answer for each prompt under the ids given (one name an answer, not a prompt)."""
    samples = sample(
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


def _same_trunk(one: Any, other: Any, stop: int) -> bool:
    if one.config.hidden_size != other.config.hidden_size or len(one.layers) != len(other.layers):
        return False
    pairs = [(one.embed_tokens.weight, other.embed_tokens.weight)]
    for ours, theirs in zip(one.layers[:stop], other.layers[:stop], strict=True):
        pairs += zip(ours.parameters(), theirs.parameters(), strict=True)
    return all(a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in pairs)
