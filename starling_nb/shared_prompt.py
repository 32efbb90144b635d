"""K answers that share one prompt, in one row: which token may look at which, and an attention that pays for no more.

A row holds one comparison or several: each its prompt once, then its answers. A prompt token sees its own prompt, an
answer's token the prompt and its own answer, both up to itself. Attention runs answer by answer over the prompt's keys
and its own, so that what is masked costs nothing; on a GPU FlexAttention skips the same blocks. Blocks of the Llama,
Mistral and Qwen families take it unchanged, in the place of their mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from starling_nb.errors import StarlingError

NAME = "starling_nb_shared_prompt"


@dataclass(frozen=True)
class Tree:
    """One comparison in a row: tokens of its prompt and of each answer."""

    prompt: int
    answers: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its tokens in the row."""
        return self.prompt + sum(self.answers)


@dataclass(frozen=True)
class Layout:
    """How the T tokens of a row belong together; stands where a mask would stand."""

    trees: tuple[Tree, ...]
    _masks: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def size(self) -> int:
        """T."""
        return sum(tree.size for tree in self.trees)

    @cached_property
    def segments(self) -> Tensor:
        """``[T]``: 0 in a prompt; answers count from 1 through the whole row."""
        parts, number = [], 0
        for tree in self.trees:
            parts.append(torch.zeros(tree.prompt, dtype=torch.long))
            for length in tree.answers:
                number += 1
                parts.append(torch.full((length,), number))
        return torch.cat(parts)

    @cached_property
    def owners(self) -> Tensor:
        """``[T]``: the number of the comparison, from 0."""
        return torch.repeat_interleave(torch.arange(len(self.trees)), torch.tensor([tree.size for tree in self.trees]))

    @cached_property
    def positions(self) -> Tensor:
        """``[T]``: places from 0 in a prompt, going on after it in every answer alike."""
        parts = []
        for tree in self.trees:
            parts.append(torch.arange(tree.prompt))
            parts += [torch.arange(tree.prompt, tree.prompt + length) for length in tree.answers]
        return torch.cat(parts)

    @cached_property
    def ends(self) -> Tensor:
        """``[answers]``: places of the last tokens of the answers, in the order of the row."""
        found, start = [], 0
        for tree in self.trees:
            start += tree.prompt
            for length in tree.answers:
                start += length
                found.append(start - 1)
        return torch.tensor(found, dtype=torch.long)

    @property
    def counts(self) -> list[int]:
        """Answers of each comparison."""
        return [len(tree.answers) for tree in self.trees]

    def mask(self) -> Tensor:
        """``[1, 1, T, T]``: True where the row token may look at the column token; for reading and for tests."""
        places = torch.arange(self.size)
        return self._sees(places[:, None], places[None, :])[None, None]

    def _sees(self, query: Tensor, key: Tensor) -> Tensor:
        segments, owners = self._on(query.device)
        same = (segments[key] == 0) | (segments[key] == segments[query])
        return same & (owners[key] == owners[query]) & (key <= query)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        key = ("on", str(device))
        if key not in self._masks:
            self._masks[key] = (self.segments.to(device), self.owners.to(device))
        return self._masks[key]

    def bias(self, prompt: int, answer: int, like: Tensor) -> Tensor:
        """``[answer, prompt + answer]``: 0 where an answer's token may look, else minus infinity."""
        key = (prompt, answer, like.dtype, str(like.device))
        if key not in self._masks:
            with torch.inference_mode(False):  # kept for the backward pass of a later call
                hidden = torch.full((answer, prompt + answer), -torch.inf, dtype=like.dtype, device=like.device)
                self._masks[key] = hidden.triu(prompt + 1)
        return self._masks[key]

    def block_mask(self, device: torch.device) -> Any:
        """The same as a FlexAttention block mask, made once a device."""
        from torch.nn.attention.flex_attention import create_block_mask

        key = ("blocks", str(device))
        if key not in self._masks:

            def sees(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return self._sees(query, key)

            self._masks[key] = create_block_mask(sees, None, None, self.size, self.size, device=str(device))
        return self._masks[key]


def join(layouts: list[Layout]) -> Layout:
    """Several rows behind one another as one row."""
    return Layout(tuple(tree for layout in layouts for tree in layout.trees))


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None = None) -> Tensor:
    """Attention of one row ``[1, heads, T, width]``, exact, computed only where the layout lets a token look."""
    # Split once: its backward pass is one concatenation, that of many slices would be as many full-sized sums.
    lengths = [length for tree in layout.trees for length in (tree.prompt, *tree.answers)]
    pieces = zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True)
    parts = []
    for tree in layout.trees:
        asked, keys, values = next(pieces)
        parts.append(F.scaled_dot_product_attention(asked, keys, values, is_causal=True, scale=scale))
        for length in tree.answers:
            mine, own_keys, own_values = next(pieces)
            seen = torch.cat([keys, own_keys], 2), torch.cat([values, own_values], 2)
            bias = layout.bias(tree.prompt, length, query)
            parts.append(F.scaled_dot_product_attention(mine, *seen, attn_mask=bias, scale=scale))
    return torch.cat(parts, 2)


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None = None) -> Tensor:
    """:func:`attend` by FlexAttention, which skips hidden blocks on a GPU."""
    from torch.nn.attention.flex_attention import flex_attention

    # Rotary embeddings leave queries and keys in float32 under autocast; older FlexAttention wants one type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    flex: Any = _compiled(flex_attention) if query.is_cuda else flex_attention
    found: Tensor = flex(query, key, value, block_mask=layout.block_mask(query.device), scale=scale)
    return found


_COMPILED: list[Any] = []


def _compiled(function: Any) -> Any:
    if not _COMPILED:
        _COMPILED.append(torch.compile(function, dynamic=True))
    return _COMPILED[0]


def _interface(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **given: Any
) -> tuple[Tensor, None]:
    """What a block calls in the place of its own attention."""
    if not isinstance(attention_mask, Layout):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    if given.get("dropout"):
        raise StarlingError("dropout of attention is left on: set the blocks to eval()")
    window = given.get("sliding_window")
    if window is not None and int(attention_mask.positions.max()) >= window:
        raise StarlingError(f"a prompt with an answer is longer than the model's sliding window of {window} tokens")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    how = attend_in_blocks if query.is_cuda else attend
    return how(query, key, value, attention_mask, given.get("scaling")).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _interface)


@contextmanager
def attending(block: Any) -> Iterator[None]:
    """A block takes a :class:`Layout` for its mask within."""
    config = block.self_attn.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
