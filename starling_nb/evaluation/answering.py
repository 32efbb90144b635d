"""Answers of a model to bench conversations, batched, each with randomness of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from starling_nb import files, progress
from starling_nb.chat import Message

if TYPE_CHECKING:
    from starling_nb.models import LM

Pair = Mapping[str, "LM"]
"""The start model and the tuned model, under ``start`` and ``tuned``."""
Item = TypeVar("Item", bound=Any)
"""A question with an ``id``."""


def some(items: Sequence[Item], n: int) -> list[Item]:
    """At most ``n`` items (0: all), chosen by hash of their id, in their own order: fewer are always some of more."""
    if not n:
        return list(items)
    kept = {item.id for item in sorted(items, key=lambda item: files.hash_value(item.id))[:n]}
    return [item for item in items if item.id in kept]


def answer(
    lm: LM,
    conversations: Mapping[str, Sequence[Message]],
    *,
    seed: int = 0,
    temperature: float | Mapping[str, float] = 0.7,
    max_new_tokens: int = 256,
    batch: int = 128,
    desc: str = "answers",
) -> dict[str, str]:
    """Answer every conversation once.

    Args:
        lm: the model.
        conversations: messages that end with the user's turn, by item id.
        seed: decides, together with the item id, what is sampled.
        temperature: one for all, or by item id; 0 is greedy; AlpacaEval's configuration of Starling uses 0.7.
        max_new_tokens: cap on answer tokens.
        batch: sequences in flight.
        desc: name of the work in progress reports.

    Returns:
        Answer texts by item id, in the order of ``conversations``; a model that says nothing gives "".
    """
    if not conversations:
        return {}
    from starling_nb import models

    heats = temperature if isinstance(temperature, Mapping) else dict.fromkeys(conversations, temperature)
    samples = models.sample(
        lm,
        [lm.chat.prompt_ids(messages) for messages in conversations.values()],
        list(conversations),
        seed=seed,
        temperature=[heats[id] for id in conversations],
        max_new_tokens=max_new_tokens,
        batch=batch,
        progress=progress.sampling(len(conversations), desc),
    )
    return {id: lm.chat.decode(sample.ids) for id, sample in zip(conversations, samples, strict=True)}
