"""The decoder of a language model, cut at a block: a frozen trunk below, a trainable top above.

The trunk's output never changes while only the top trains, so it is computed once and kept. Positions are always
explicit. Works unchanged for the Llama, Mistral and Qwen families, whose blocks share one calling convention.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from starling_nb.errors import StarlingError
from starling_nb.shared_prompt import Layout, attending


@dataclass(frozen=True)
class Trainable:
    """Which part of a decoder learns: blocks ``start`` to ``stop - 1``; the trunk is whatever lies below.

    ``rank`` > 0 puts LoRA adapters (Hu et al. 2021, arXiv 2106.09685) of that rank beside the frozen weights;
    ``embeddings`` makes the token embeddings learn too.
    """

    start: int
    stop: int
    rank: int = 0
    embeddings: bool = False

    @classmethod
    def parse(cls, text: str, n_blocks: int) -> Trainable:
        """Read ``last:k``, ``blocks:a-b`` (from 0, both ends learn), ``lora:r`` (all blocks), ``full`` or ``head``.

        ``head`` leaves the whole decoder as it is: what is put on top of it learns alone.

        Raises:
            StarlingError: another form, or blocks that the model does not have.
        """
        match = re.fullmatch(r"(last|lora):(\d+)|blocks:(\d+)-(\d+)|(full)|(head)", text)
        if match is not None:
            kind, number = match[1], int(match[2] or 0)
            if match[5] or match[6]:
                return cls(0, n_blocks, embeddings=True) if match[5] else cls(n_blocks, n_blocks)
            if kind == "last" and 1 <= number <= n_blocks:
                return cls(n_blocks - number, n_blocks)
            if kind == "lora" and number >= 1:
                return cls(0, n_blocks, rank=number)
            if match[3] and int(match[3]) <= int(match[4]) < n_blocks:
                return cls(int(match[3]), int(match[4]) + 1)
        raise StarlingError(
            f"trainable={text!r}: write last:k with k from 1 to {n_blocks} (last:4), blocks:a-b with blocks from 0 to "
            f"{n_blocks - 1} (blocks:8-11), lora:r (lora:16), full, or head"
        )


def first_trainable(trainable: str, n_blocks: int) -> int:
    """Index of the lowest block that learns; see :meth:`Trainable.parse`."""
    return Trainable.parse(trainable, n_blocks).start


def run_blocks(
    decoder: Any,
    hidden: Tensor,
    positions: Tensor,
    mask: Tensor | Layout | None,
    start: int,
    stop: int,
    checkpointing: bool = False,
) -> Tensor:
    """Run blocks ``start`` to ``stop - 1``.

    Args:
        decoder: the decoder part of a Hugging Face causal LM (its ``.model``).
        hidden: ``[rows, tokens, width]``, the states that enter block ``start``.
        positions: ``[rows, tokens]``.
        mask: ``[rows or 1, 1, tokens, tokens]``, True where a query may look; a layout of one row in which answers
            share prompts; None means causal.
        start: first block.
        stop: one past the last block.
        checkpointing: compute a block's inner states again in the backward pass instead of keeping them.
    """
    rotary = decoder.rotary_emb(hidden, positions)
    for block in decoder.layers[start:stop]:
        if checkpointing and torch.is_grad_enabled():
            hidden = checkpoint(_run_block, block, hidden, positions, mask, rotary, use_reentrant=False)
        else:
            hidden = _run_block(block, hidden, positions, mask, rotary)
    return hidden


def _run_block(block: Any, hidden: Tensor, positions: Tensor, mask: Any, rotary: tuple[Tensor, Tensor]) -> Tensor:
    with attending(block) if isinstance(mask, Layout) else nullcontext():
        out = block(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


@torch.inference_mode()
def trunk_states(decoder: Any, ids: Tensor, positions: Tensor, mask: Tensor | Layout | None, stop: int) -> Tensor:
    """States that enter block ``stop``, ``[rows, tokens, width]``, for token ids ``[rows, tokens]``."""
    hidden = decoder.embed_tokens(ids.to(decoder.embed_tokens.weight.device))
    mask = mask.to(hidden.device) if isinstance(mask, Tensor) else mask
    return run_blocks(decoder, hidden, positions.to(hidden.device), mask, 0, stop)


def whole(value: Tensor) -> Tensor:
    """``value``; where FSDP2 holds a shard of it in every process, which all must call this, the whole of it."""
    found: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return found


class Top(nn.Module):
    """A float32 copy of the blocks above the trunk and of the final norm, with what learns in them.

    Called with trunk states it returns the post-norm hidden states, ``[rows, tokens, width]``; where the embeddings
    learn (``full``) it is called with token ids ``[rows, tokens]`` instead.

    Args:
        decoder: the decoder part of a Hugging Face causal LM.
        trainable: what learns; a number means all blocks from there.
        checkpointing: see :func:`run_blocks`.
    """

    def __init__(self, decoder: Any, trainable: Trainable | int, checkpointing: bool = False) -> None:
        super().__init__()
        if isinstance(trainable, int):
            trainable = Trainable(trainable, len(decoder.layers))
        self.trainable, self.start, self.checkpointing = trainable, trainable.start, checkpointing
        self.layers = nn.ModuleList(copy.deepcopy(block) for block in decoder.layers[self.start :]).float()
        self.norm = copy.deepcopy(decoder.norm).float()
        self.rotary_emb = copy.deepcopy(decoder.rotary_emb)
        self.requires_grad_(trainable.rank == 0 and trainable.stop > trainable.start)
        for block in self.layers[trainable.stop - self.start :]:
            block.requires_grad_(False)
        if trainable.embeddings:
            self.embed_tokens = copy.deepcopy(decoder.embed_tokens).float().requires_grad_(True)
        if trainable.rank:
            _adapt(self, trainable.rank)

    def forward(self, hidden: Tensor, positions: Tensor, mask: Tensor | Layout | None = None) -> Tensor:
        """Post-norm hidden states of trunk states ``hidden``; arguments as for :func:`run_blocks`."""
        hidden = self.embed_tokens(hidden) if self.trainable.embeddings else hidden.float()
        hidden = run_blocks(self, hidden, positions, mask, 0, len(self.layers), self.checkpointing)
        normed: Tensor = self.norm(hidden)
        return normed

    def at(self, hidden: Tensor, layout: Layout, places: Tensor) -> Tensor:
        """Post-norm hidden states at some ``places`` only of one row ``[1, tokens, width]``, ``[places, width]``.

        What the last block's feed-forward part would make of the other places is never looked at, and not computed.
        """
        once, back = places.unique(return_inverse=True)
        positions = layout.positions[None].to(hidden.device)
        # Checkpointing computes the block again after the hooks are gone.
        with nullcontext() if self.checkpointing else _fed_forward_at(self.layers[-1], once):
            found: Tensor = self(hidden, positions, layout)[0, once]
        return found[back]

    @torch.no_grad()
    def plain(self) -> nn.ModuleList:
        """The blocks as they were before adapters came, with the adapters added into the weights."""
        return _merged(self.layers) if self.trainable.rank else self.layers

    @torch.no_grad()
    def write_into(self, decoder: Any) -> None:
        """Copy the weights back into the blocks they came from, in the decoder's own type; adapters are merged.

        Where FSDP2 shards them, all processes must call this.
        """
        layers = self.plain()
        for ours, theirs in zip(layers, decoder.layers[self.start :], strict=True):
            for source, target in zip(ours.parameters(), theirs.parameters(), strict=True):
                target.copy_(whole(source))
        decoder.norm.weight.copy_(whole(self.norm.weight))
        if self.trainable.embeddings:
            decoder.embed_tokens.weight.copy_(whole(self.embed_tokens.weight))


@contextmanager
def _fed_forward_at(block: Any, places: Tensor) -> Iterator[None]:
    """A block's feed-forward part runs within at ``places`` of its one row, all different; it gives zeros at others."""

    shape = torch.Size()

    def pick(_: Any, given: tuple[Tensor, ...]) -> Tensor:
        nonlocal shape
        shape = given[0].shape
        return given[0][:, places]

    def put_back(_: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out.new_zeros(shape).index_copy(1, places, out)

    hooks = [block.mlp.register_forward_pre_hook(pick), block.mlp.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adapt(top: Top, rank: int) -> None:
    """Put LoRA adapters on every linear layer of the blocks; they start as no change at all."""
    peft = _peft()
    linear = sorted({name.split(".")[-1] for name, part in top.layers.named_modules() if isinstance(part, nn.Linear)})
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear)
    peft.inject_adapter_in_model(config, top.layers)


def _merged(layers: nn.ModuleList) -> nn.ModuleList:
    """A copy of adapted blocks with the adapters added into the weights."""
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(layers)
    for name, part in list(plain.named_modules()):
        if isinstance(part, LoraLayer):
            part.merge()
            above, _, last = name.rpartition(".")
            setattr(plain.get_submodule(above), last, part.get_base_layer())
    return plain


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise StarlingError("trainable=lora:r needs the package peft: pip install 'starling_nb[lora]'") from error
    return peft
