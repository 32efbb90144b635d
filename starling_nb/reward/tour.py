"""What notebook 03 shows of packing and training, beside the work itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from starling_nb.blocks import trunk_states
from starling_nb.chat import ChatFormat
from starling_nb.models import LM
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import pack


def packing_saves(form: ChatFormat, comparisons: Sequence[Comparison]) -> float:
    """How many times more tokens one sequence an answer would take than packed comparisons do."""
    packed = separate = 0
    for comparison in comparisons:
        one = pack(form, comparison.messages, comparison.answers)
        packed += len(one.ids)
        separate += int((one.positions[one.layout.ends] + 1).sum())
    return separate / packed


@torch.no_grad()
def packing_check(lm: LM, comparison: Comparison, readout: str = "last_token") -> tuple[list[float], list[float]]:
    """Scores of one comparison, packed and one by one, under a fixed random head, float32."""
    transformer: Any = copy.deepcopy(lm.model.model).float()
    head = torch.randn(1, transformer.config.hidden_size, generator=torch.Generator().manual_seed(0)) / 24
    model = RewardModel(transformer, lm.chat, head, readout)
    one = pack(lm.chat, comparison.messages, comparison.answers)
    states = trunk_states(transformer, one.ids[None], one.positions[None], one.layout, len(transformer.layers))
    packed = model.v_head(one.readout(readout) @ transformer.norm(states)[0])[:, 0].tolist()
    conversations = [[*comparison.messages, {"role": "assistant", "content": answer}] for answer in comparison.answers]
    return packed, model.score(conversations)


def relative_loss(history: pd.DataFrame) -> pd.DataFrame:
    """Training losses divided by each method's first value, so that two losses fit one axis."""
    first = history.groupby("method").loss.transform("first")
    return history.assign(loss=history.loss / first)
