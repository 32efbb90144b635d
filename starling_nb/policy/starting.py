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


def reward_model(p: Any, own: Path, dtype: torch.dtype) -> RewardModel:
    """The reward model that the parameters ``p`` of the stage name, else the one in the folder ``own``."""
    return RewardModel.from_pretrained(p.reward or own, dtype=dtype)


def training_prompts(path: Path | None, lm: LM, new_tokens: int) -> list[Any]:
    """The training split of a file that ``starling-nb prompts`` wrote, as far as ``lm`` can be asked it
    (:func:`askable`), or of the embedded prompts.

    Raises:
        StarlingError: the file is missing or damaged, or leaves no prompt to train on.
    """
    if path is None:
        return list(prompts.load(split="train"))
    found = [prompt for prompt in making.prompts(path) if prompts.split_of(prompt.messages) == "train"]
    found = askable(lm, found, new_tokens)
    if not found:
        raise StarlingError(f"{path} leaves no prompt to train on: give more prompts")
    return found


def askable(lm: LM, asked: Sequence[Any], new_tokens: int, say: Callable[[str], object] = print) -> list[Any]:
    """Prompts that a model can be asked: they can be written in its chat format, and leave room for an answer of
    ``new_tokens``. ``say`` is told of the others, which would stop a training in the step that meets them."""
    found, faults = [], []
    for prompt in asked:
        try:
            length = len(lm.chat.prompt_ids(prompt.messages))
        except ChatError as error:
            faults.append(f"{prompt.id}: {error}")
            continue
        if length + new_tokens <= lm.window:
            found.append(prompt)
        else:
            faults.append(f"{prompt.id}: {length} tokens and an answer are more than the window of {lm.window}")
    if faults:
        say(f"{len(faults)} of {len(asked)} prompts are left out, such as {'; '.join(faults[:3])}")
    return found
