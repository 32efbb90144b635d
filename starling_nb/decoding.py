"""A key-value cache written in place and attention that never repeats its key heads.

Both only change speed, not the logits. Keys are written in place and read as views, never copied; most of what is left
are the matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import sdpa_mask

from starling_nb.errors import StarlingError


class SlabLayer(DynamicLayer):
    """Keys and values of one block in a slab of fixed length, filled from the left.

    Keys lie transposed, ``[rows, heads, width, length]``, as the product with the queries reads them.
    """

    def __init__(self, rows: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.aim(slice(0, rows), 0)
        self.rows = rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the slab when the first keys show its shape; what is never filled stays zero."""
        _, heads, _, width = key_states.shape
        self._keys = key_states.new_zeros(self.rows, heads, width, self.length)
        self._values = value_states.new_zeros(self.rows, heads, self.length, value_states.shape[-1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def aim(self, part: slice, start: int) -> None:
        """Let the next passes be about the rows ``part`` and write from position ``start`` on."""
        self.part, self.start, self.used = part, start, start

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append ``[rows, heads, new, width]`` and return views of all that is filled."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.used + key_states.shape[2]
        keys, values = self._keys[self.part], self._values[self.part]
        keys[..., self.used : end] = key_states.transpose(2, 3)
        values[:, :, self.used : end] = value_states
        self.used = end
        self.keys, self.values = keys[..., self.start : end].transpose(2, 3), values[:, :, self.start : end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Filled positions of the rows aimed at."""
        return self.used - self.start

    def keep(self, rows: Tensor) -> None:
        """Keep only the given batch rows."""
        self._keys, self._values = self._keys[rows], self._values[rows]
        self.part = slice(0, len(rows))

    def join(self, other: SlabLayer, first: int, room: int) -> None:
        """Put another slab's rows below these, both filled up to one edge.

        Positions before ``first`` are dropped here, and ``room`` more fit behind the edge.
        """
        n, edge = len(self._keys), max(self.used - first, other.used)
        rows, heads, width, _ = self._keys.shape
        keys = self._keys.new_zeros(rows + len(other._keys), heads, width, edge + room)
        values = self._values.new_zeros(len(keys), heads, edge + room, self._values.shape[-1])
        for part, layer, begin in ((slice(0, n), self, first), (slice(n, None), other, 0)):
            start = edge - (layer.used - begin)
            keys[part, ..., start:edge] = layer._keys[..., begin : layer.used]
            values[part, :, start:edge] = layer._values[:, :, begin : layer.used]
        self._keys, self._values = keys, values
        self.aim(slice(0, len(keys)), 0)
        self.used = edge


def grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of one new token: the query heads that share a key head become rows of one small product.

    Shapes: query ``[rows, heads, new, width]``, key and value ``[rows, key heads, past, width]``. The softmax is taken
    in float32.
    """
    rows, heads, new, width = query.shape
    groups, past = key.shape[1], key.shape[2]
    scale = kwargs.get("scaling") or width**-0.5
    if new > 1:
        causal = attention_mask is None
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, is_causal=causal, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None
    folded = query.reshape(rows * groups, heads // groups, width)
    scores = torch.bmm(folded, key.transpose(2, 3).reshape(rows * groups, width, past)).float() * scale
    if attention_mask is not None:
        hidden = ~attention_mask.expand(rows, groups, 1, past).reshape(rows * groups, 1, past)
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = torch.softmax(scores, -1).to(value.dtype)
    out = torch.bmm(weights, value.reshape(rows * groups, past, width))
    return out.view(rows, 1, heads, width), None


AttentionInterface.register("grouped", grouped_attention)
AttentionMaskInterface.register("grouped", sdpa_mask)


def slab_cache(model: Any, rows: int, length: int) -> Any:
    """A cache of ``rows`` by ``length`` positions for ``model``, to be read by :func:`folded` attention."""
    return Cache(layers=[SlabLayer(rows, length) for _ in range(model.config.num_hidden_layers)])


@contextmanager
def folded(model: Any, longest: int) -> Iterator[None]:
    """``model`` attends by :func:`grouped_attention` within; no sequence takes more than ``longest`` positions.

    Raises:
        StarlingError: the model looks back over a window shorter than that, which a slab does not do.
    """
    config = model.config
    window = getattr(config, "sliding_window", None)
    if window is not None and window < longest:
        raise StarlingError(
            f"a prompt and its answer take up to {longest} tokens, more than the sliding window of {window}: shorten "
            "the prompts or lower max_new_tokens"
        )
    before = config._attn_implementation
    config._attn_implementation = "grouped"
    try:
        yield
    finally:
        config._attn_implementation = before
