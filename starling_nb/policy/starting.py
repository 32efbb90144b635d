"""What a run of tuning starts from, where it is not the embedded default: a reward model and prompts of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from starling_nb.chat import ChatError
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.nectar import prompts
from starling_nb.nectar.responses import making
from starling_nb.reward import RewardModel
from starling_nb.reward.serving import Reward


def reward_model(p: Any, own: Path, dtype: torch.dtype) -> RewardModel:
    """The reward model that the parameters ``p`` of the stage name, else the one in the folder ``own``."""
    return RewardModel.from_pretrained(p.reward or own, dtype=dtype)


def training_prompts(path: Path | None, lm: LM, reward: Reward, p: Any) -> list[Any]:
    """The training split of a file that ``starling-nb prompts`` wrote, as far as it suits both models and
    the stage's parameters ``p`` (:func:`askable`), or of the embedded prompts.

    Raises:
        StarlingError: the file is missing or damaged, or leaves no prompt to train on.
    """
    if path is None:
        return list(prompts.load(split="train"))
    found = [prompt for prompt in making.prompts(path) if prompts.split_of(prompt.messages) == "train"]
    found = askable(lm, reward, found, p.max_new_tokens, p.prompt_tokens)
    if not found:
        raise StarlingError(f"{path} leaves no prompt to train on: give more prompts")
    return found


def askable(
    lm: LM,
    reward: Reward,
    asked: Sequence[Any],
    new_tokens: int,
    prompt_tokens: int = 0,
    say: Callable[[str], object] = print,
) -> list[Any]:
    """Prompts that a model can be asked, and whose answers the reward model can score: they can be written in the chat
    formats of both, leave room for an answer of ``new_tokens``, and are no longer than ``prompt_tokens``, if any.
    ``say`` is told of the others, which would stop a training in the step that meets them."""
    found, told = [], []
    longest = min(prompt_tokens or lm.window, lm.window - new_tokens)
    for prompt, unread in zip(asked, reward.faults([prompt.messages for prompt in asked]), strict=True):
        fault = unread and f"the reward model: {unread}"
        try:
            length = len(lm.chat.prompt_ids(prompt.messages))
            if length > longest:
                fault = f"{length} tokens; {longest} is the most beside an answer in a window of {lm.window}"
        except ChatError as error:
            fault = str(error)
        if fault:
            told.append(f"{prompt.id}: {fault}")
        else:
            found.append(prompt)
    if told:
        say(f"{len(told)} of {len(asked)} prompts are left out, such as {'; '.join(told[:3])}")
    return found
