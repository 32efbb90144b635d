"""Texts of unequal length made ready to be read together, at their own tokens or at the last column of padding.

The card of Starling-RM-7B-alpha pads every text on the right to 2048 tokens with id 0. It reads a score before the
first padding token, for which it takes the BOS, found in column 0; the column before that is the last one. There stands
a padding token, which attends to the text and not to padding, itself included. One token, not 2048, gives the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from starling_nb.chat import Encoded

PUBLISHED = ("last_column",)
"""The readout of that card, for scoring; nothing is trained so here."""
COLUMN = 2048
PADDING = 0
"""The id of the unknown token, with which that card pads."""
BUDGET = 16384
"""Tokens, padding included, that are computed at a time."""


class Values(NamedTuple):
    """What the head says at the tokens of an answer ``[answer tokens]``, and at the last column (NaN if not read)."""

    answer: Tensor
    column: float


class Padded(NamedTuple):
    """Texts padded on the right: ``ids`` and ``positions`` ``[rows, tokens]``.

    ``mask`` is ``[rows, 1, tokens, tokens]``, True where a token may look, None if causal; ``last`` holds for each row
    where its last column stands.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor | None
    last: list[int]


def padded(items: Sequence[Encoded], column: int | None = None) -> Padded:
    """Texts side by side; with ``column`` each is followed by the one padding token that stands in that column.

    A text of ``column`` tokens has none: its last token is the last column. None may be longer.
    """
    extra = [column is not None and len(item.ids) < column for item in items]
    rows = [torch.tensor(item.ids + [PADDING] * more) for item, more in zip(items, extra, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    positions = torch.arange(ids.shape[1]).repeat(len(items), 1)
    last = [len(row) - 1 for row in rows]
    if column is None:
        return Padded(ids, positions, None, last)
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril().repeat(len(items), 1, 1, 1)
    for row, (place, more) in enumerate(zip(last, extra, strict=True)):
        if more:
            positions[row, place] = column - 1
            mask[row, 0, place, place] = False
    return Padded(ids, positions, mask, last)


def cut(item: Encoded, limit: int, bos: int | None) -> Encoded:
    """The last ``limit`` tokens, a leading BOS among them; the answer loses tokens only if it alone is too long."""
    gone = len(item.ids) - limit
    if gone <= 0:
        return item
    start = item.ids[:1] if item.ids[0] == bos else []
    return Encoded(start + item.ids[gone + len(start) :], max(len(start), item.prompt_length - gone))


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of texts, shortest first, in batches of at most ``most`` texts and :data:`BUDGET` tokens with padding."""
    rows: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if rows and (len(rows) == most or (len(rows) + 1) * lengths[place] > BUDGET):
            yield rows
            rows = []
        rows.append(place)
    if rows:
        yield rows
