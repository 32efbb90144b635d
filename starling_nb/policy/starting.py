"""What a run of tuning starts from, where it is not the embedded default: a reward model and prompts of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from starling_nb.errors import StarlingError
from starling_nb.nectar import prompts
from starling_nb.nectar.responses import making
from starling_nb.reward import RewardModel


def reward_model(p: Any, own: Path, dtype: torch.dtype) -> RewardModel:
    """The reward model that the parameters ``p`` of the stage name, else the one in the folder ``own``."""
    return RewardModel.from_pretrained(p.reward or own, dtype=dtype)


def training_prompts(path: Path | None) -> list[Any]:
    """The training split of a file that ``starling-nb prompts`` wrote, or of the embedded prompts.

    Raises:
        StarlingError: the file is missing or damaged, or none of its prompts falls into the training split.
    """
    if path is None:
        return list(prompts.load(split="train"))
    found = [prompt for prompt in making.prompts(path) if prompts.split_of(prompt.messages) == "train"]
    if not found:
        raise StarlingError(f"{path} leaves no prompt to train on: give more prompts")
    return found
