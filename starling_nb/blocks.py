"""The decoder of a language model, cut at a block: a frozen trunk below, a trainable top above.

The trunk's output never changes while only the top trains, so it is computed once and kept. Positions are always
explicit. Works unchanged for the Llama, Mistral and Qwen families, whose blocks share one calling convention.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn

from starling_nb.errors import StarlingError


def first_trainable(trainable: str, n_blocks: int) -> int:
    """Index of the lowest trainable block for ``"last:4"``.

    Raises:
        StarlingError: the text is not of that form or asks for more blocks than there are.
    """
    match = re.fullmatch(r"last:(\d+)", trainable)
    if match is None or not 1 <= int(match[1]) <= n_blocks:
        raise StarlingError(f"trainable={trainable!r}: write last:k with k from 1 to {n_blocks}, for example last:4")
    return n_blocks - int(match[1])


def run_blocks(decoder: Any, hidden: Tensor, positions: Tensor, mask: Tensor | None, start: int, stop: int) -> Tensor:
    """Run blocks ``start`` to ``stop - 1``.

    Args:
        decoder: the decoder part of a Hugging Face causal LM (its ``.model``).
        hidden: ``[rows, tokens, width]``, the states that enter block ``start``.
        positions: ``[rows, tokens]``.
        mask: ``[rows or 1, 1, tokens, tokens]``, True where a query may look; None means causal.
        start: first block.
        stop: one past the last block.
    """
    rotary = decoder.rotary_emb(hidden, positions)
    for block in decoder.layers[start:stop]:
        out = block(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


@torch.inference_mode()
def trunk_states(decoder: Any, ids: Tensor, positions: Tensor, mask: Tensor | None, stop: int) -> Tensor:
    """States that enter block ``stop``, ``[rows, tokens, width]``, for token ids ``[rows, tokens]``."""
    hidden = decoder.embed_tokens(ids.to(decoder.embed_tokens.weight.device))
    mask = None if mask is None else mask.to(hidden.device)
    return run_blocks(decoder, hidden, positions.to(hidden.device), mask, 0, stop)


class Top(nn.Module):
    """A float32 copy of the blocks from ``start`` up and of the final norm.

    Called with trunk states it returns the post-norm hidden states, ``[rows, tokens, width]``.
    """

    def __init__(self, decoder: Any, start: int) -> None:
        super().__init__()
        self.start = start
        self.layers = nn.ModuleList(copy.deepcopy(block) for block in decoder.layers[start:]).float()
        self.norm = copy.deepcopy(decoder.norm).float()
        self.rotary_emb = copy.deepcopy(decoder.rotary_emb)
        self.requires_grad_(True)

    def forward(self, hidden: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Post-norm hidden states of trunk states ``hidden``; arguments as for :func:`run_blocks`."""
        hidden = hidden.float()
        hidden = run_blocks(self, hidden, positions, mask, 0, len(self.layers))
        normed: Tensor = self.norm(hidden)
        return normed

    @torch.no_grad()
    def write_into(self, decoder: Any) -> None:
        """Copy the weights back into the blocks they came from, in the decoder's own type."""
        for ours, theirs in zip(self.layers, decoder.layers[self.start :], strict=True):
            for source, target in zip(ours.parameters(), theirs.parameters(), strict=True):
                target.copy_(source)
        decoder.norm.weight.copy_(self.norm.weight)
