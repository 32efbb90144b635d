"""Answers of a model to bench conversations, batched, each with randomness of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starling_nb import files, progress
from starling_nb.chat import Message

if TYPE_CHECKING:
    from starling_nb.models import LM

Pair = Mapping[str, "LM"]
"""The start model and the tuned model, under ``start`` and ``tuned``."""
Item = TypeVar("Item", bound=Any)
"""A question with an ``id``."""
Asked = tuple[str, Sequence[int], float]
"""Id, prompt as tokens, temperature."""
ROUNDS = 4
"""Batches of answers that are written together, where they are kept."""
_FOLDER: ContextVar[Path | None] = ContextVar("folder of kept answers", default=None)


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Within, answers are written below ``folder``, :data:`ROUNDS` batches at a time, and what is there is read.

    Each is told apart by the model's weights, its conversation as tokens, and all else that decides what is sampled.
    """
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


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
    heats = temperature if isinstance(temperature, Mapping) else dict.fromkeys(conversations, temperature)
    asked = [(id, lm.chat.prompt_ids(messages), heats[id]) for id, messages in conversations.items()]
    how: dict[str, Any] = {"seed": seed, "max_new_tokens": max_new_tokens}
    folder = _FOLDER.get()
    if folder is None:
        return _sampled(lm, asked, batch, desc, how)
    path = folder / f"{files.hash_value([lm.fingerprint(), how])}.json"
    said: dict[str, str] = files.read_json(path) if path.exists() else {}
    named = {one[0]: files.hash_value(one) for one in asked}
    missing = [one for one in asked if named[one[0]] not in said]
    for first in range(0, len(missing), ROUNDS * batch):
        found = _sampled(lm, missing[first : first + ROUNDS * batch], batch, desc, how)
        said |= {named[id]: text for id, text in found.items()}
        files.write_json(path, said)
    return {id: said[name] for id, name in named.items()}


def _sampled(lm: LM, asked: Sequence[Asked], batch: int, desc: str, how: Mapping[str, Any]) -> dict[str, str]:
    from starling_nb import models

    if not asked:
        return {}
    ids, prompts, heats = (list(column) for column in zip(*asked, strict=True))
    said = progress.sampling(len(ids), desc)
    samples = models.sample(lm, prompts, ids, temperature=heats, batch=batch, progress=said, **how)
    return {id: lm.chat.decode(sample.ids) for id, sample in zip(ids, samples, strict=True)}
