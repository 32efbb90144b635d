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


def training_prompts(path: Path | None, lm: LM, reward: Reward, new_tokens: int) -> list[Any]:
    """The training split of a file that ``starling-nb prompts`` wrote, as far as it suits both models
    (:func:`askable`), or of the embedded prompts.

    Raises:
        StarlingError: the file is missing or damaged, or leaves no prompt to train on.
    """
    if path is None:
        return list(prompts.load(split="train"))
    found = [prompt for prompt in making.prompts(path) if prompts.split_of(prompt.messages) == "train"]
    found = askable(lm, reward, found, new_tokens)
    if not found:
        raise StarlingError(f"{path} leaves no prompt to train on: give more prompts")
    return found


def askable(
    lm: LM, reward: Reward, asked: Sequence[Any], new_tokens: int, say: Callable[[str], object] = print
) -> list[Any]:
    """Prompts that a model can be asked, and whose answers the reward model can score: they can be written in the chat
    formats of both, and leave room for an answer of ``new_tokens``. ``say`` is told of the others, which would stop a
    training in the step that meets them."""

    found, told = [], []
    for prompt, unread in zip(asked, reward.faults([prompt.messages for prompt in asked]), strict=True):
        fault = unread and f"the reward model: {unread}"
        try:
            length = len(lm.chat.prompt_ids(prompt.messages))
            if length + new_tokens > lm.window:
                fault = f"{length} tokens and an answer are more than the window of {lm.window}"
        except ChatError as error:
            fault = str(error)
        if fault:
            told.append(f"{prompt.id}: {fault}")
        else:
            found.append(prompt)
    if told:
        say(f"{len(told)} of {len(asked)} prompts are left out, such as {'; '.join(told[:3])}")
    return found
