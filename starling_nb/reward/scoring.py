"""The part of a reward model that learns: top blocks and a head, over trunk states that are computed once.

``prepare`` packs comparisons and runs the frozen trunk over them; ``Scorer`` turns what it left into scores;
``assemble`` makes a whole reward model of trunk, top and head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from starling_nb.blocks import Top, Trainable, trunk_states
from starling_nb.chat import ChatFormat
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.reward import layout
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import Packed, pack, rows, together

Report = Callable[[int, int, dict[str, float]], None]


class Scorer(nn.Module):
    """The trainable part: top blocks and the head, from a packed row to its scores.

    Args:
        top: the blocks above the trunk.
        readout: where a score is read, see :meth:`starling_nb.reward.packing.Packed.readout`.
    """

    def __init__(self, top: Top, readout: str = "last_token") -> None:
        super().__init__()
        self.top, self.readout = top, readout
        self.v_head = nn.Linear(top.norm.weight.shape[0], 1, bias=False)
        nn.init.zeros_(self.v_head.weight)

    def forward(self, hidden: Tensor, packed: Packed) -> Tensor:
        """Scores ``[answers]`` of a row of T tokens.

        ``hidden`` are its trunk states ``[T, width]``, or its token ids ``[T]`` where the embeddings learn.
        """
        device = self.v_head.weight.device
        states = self.top(hidden.to(device)[None], packed.positions.to(device)[None], packed.layout)[0].float()
        with torch.autocast(device.type, enabled=False):  # a score of 16 bits ties with its neighbours
            scores: Tensor = self.v_head(packed.readout(self.readout).to(device) @ states)[:, 0]
        return scores


def fresh(lm: LM, trainable: str, readout: str, checkpointing: bool = False) -> Scorer:
    """An untrained scorer on a language model's top: every score is 0.

    Raises:
        StarlingError: the language model writes a class of answers into its prompts, or is of a family that no reward
            model is read from.
    """
    if not ChatFormat(lm.chat.tokenizer, lm.chat.template).writes_like(lm.chat):
        raise StarlingError("a reward model reads conversations without a class: train it on lm.chat.conditioned('')")
    layout.check_family(lm.model.config, lm.name)
    decoder: Any = lm.model.model
    part = Trainable.parse(trainable, len(decoder.layers))
    return Scorer(Top(decoder, part, checkpointing), readout).to(lm.device)


@dataclass
class Prepared:
    """A comparison after the frozen trunk: states ``[T, width]`` (or ids ``[T]``), its packing, its ranks ``[K]``."""

    states: Tensor
    packed: Packed
    ranks: Tensor


def prepare(
    lm: LM,
    comparisons: Sequence[Comparison],
    trainable: str,
    report: Report | None = None,
    *,
    limit: int = 2048,
    row_tokens: int = 2048,
) -> list[Prepared]:
    """Pack every comparison and run the frozen trunk over it, once for all losses and epochs.

    Args:
        lm: the backbone.
        comparisons: what to prepare, in this order.
        trainable: what will learn; without blocks below it nothing is computed here but token ids.
        report: called with (comparisons done, comparisons, {"tokens": of the last row}).
        limit: positions a prompt with an answer may take; see :func:`starling_nb.reward.packing.pack`.
        row_tokens: comparisons share rows of so many tokens.

    Raises:
        RewardError: the backbone is of a family that no reward model is read from.
    """
    layout.check_family(lm.model.config, lm.name)
    packs = [pack(lm.chat, one.messages, one.answers, limit) for one in comparisons]
    ranks = [torch.tensor(one.ranks, dtype=torch.float64) for one in comparisons]
    decoder: Any = lm.model.model
    part = Trainable.parse(trainable, len(decoder.layers))
    if part.embeddings:
        return [Prepared(one.ids, one, rank) for one, rank in zip(packs, ranks, strict=True)]
    states: dict[int, Tensor] = {}
    for group in rows([len(one.ids) for one in packs], row_tokens):
        row = together([packs[i] for i in group])
        found = trunk_states(decoder, row.ids[None], row.positions[None], row.layout, part.start)[0]
        parts = found.split([len(packs[i].ids) for i in group])
        states |= {i: own.clone() for i, own in zip(group, parts, strict=True)}
        if report is not None:
            report(len(states), len(packs), {"tokens": float(len(row.ids))})
    return [Prepared(states[i], packs[i], ranks[i]) for i in range(len(packs))]


def score_row(scorer: Any, items: Sequence[Prepared]) -> list[Tensor]:
    """Scores ``[K]`` of each of some prepared comparisons, computed as one row."""
    row = together([item.packed for item in items])
    scores: Tensor = scorer(torch.cat([item.states for item in items]), row)
    return list(scores.split(row.layout.counts))


@torch.no_grad()
def predict(
    scorer: Scorer, prepared: Sequence[Prepared], dtype: torch.dtype, row_tokens: int = 2048
) -> list[list[float]]:
    """Scores of every comparison, K numbers each, computed in ``dtype`` as in training."""
    device = scorer.v_head.weight.device.type
    found: dict[int, list[float]] = {}
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        for group in rows([len(item.packed.ids) for item in prepared], row_tokens):
            scores = score_row(scorer, [prepared[i] for i in group])
            found |= {i: own.tolist() for i, own in zip(group, scores, strict=True)}
    return [found[i] for i in range(len(prepared))]


def assemble(lm: LM, scorer: Scorer) -> RewardModel:
    """A whole reward model: the language model's frozen trunk, the trained top and head."""
    transformer: Any = copy.deepcopy(lm.model.model)
    scorer.top.write_into(transformer)
    chat = ChatFormat(lm.chat.tokenizer, lm.chat.template)
    return RewardModel(transformer, chat, scorer.v_head.weight, scorer.readout).eval()
