"""One benchmark item, generic enough for pairs, triplets and style matrices."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

from starling_nb.chat import Message
from starling_nb.errors import StarlingError

Rule = Literal["pair", "truth", "styles"]


class BenchmarkError(StarlingError):
    """A benchmark file or scores that cannot be used; the message names what and what to do."""


@dataclass(frozen=True)
class Item:
    """One prompt with its answers, and what counts as right.

    Attributes:
        id: unique within the benchmark. subset: its part of the benchmark. cluster: id of the prompt.
        messages: the context, ending with a user message. answers: texts.
        rule: ``"pair"`` (answer ``right`` beats the rest), ``"truth"`` (a true, b false, c the best true answer) or
            ``"styles"`` (three chosen, then three rejected: short, detailed, detailed with markdown).
        right: place of the right answer, for ``"pair"``. stored: scores that came with the file, one an answer.
    """

    id: str
    subset: str
    cluster: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    rule: Rule = "pair"
    right: int = 0
    stored: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        wanted = {"pair": None, "truth": 3, "styles": 6}[self.rule]
        if (
            len(self.answers) < 2
            or (wanted and len(self.answers) != wanted)
            or self.right not in range(len(self.answers))
        ):
            raise BenchmarkError(
                f"item {self.id}: {len(self.answers)} answers, right={self.right} do not fit rule {self.rule!r}: "
                "mend the file"
            )

    def conversations(self) -> list[list[Message]]:
        """The context with each answer, in the order of the answers."""
        return [[*self.messages, {"role": "assistant", "content": answer}] for answer in self.answers]


@dataclass(frozen=True)
class Benchmark:
    """Items of one benchmark, and how many rows were left out for which reason."""

    name: str
    items: tuple[Item, ...]
    skipped: dict[str, int] = field(default_factory=dict)


def unique_ids(items: list[Item]) -> tuple[Item, ...]:
    """Items whose ids differ: the second of one id gets ``#2``."""
    seen: Counter[str] = Counter()
    kept = []
    for item in items:
        seen[item.id] += 1
        kept.append(item if seen[item.id] == 1 else replace(item, id=f"{item.id}#{seen[item.id]}"))
    return tuple(kept)
