"""What is asked of a judge, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
FRAME = 8
"""Tokens around each message, rather more than there are."""
_WORDS = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*")


@dataclass(frozen=True)
class Request(Generic[T]):
    """One thing to ask: ``parse`` turns the reply's text into a value or raises StarlingError or ValueError.

    ``params`` are chat-completions parameters such as ``temperature``, ``max_tokens`` and ``seed``. Where ``whole`` is
    set, a reply that its token limit cut off counts as unreadable.
    """

    id: str
    messages: list[dict[str, str]]
    params: dict[str, Any]
    parse: Callable[[str], T]
    whole: bool = False

    @property
    def most(self) -> dict[str, int]:
        """Tokens that it may cost at most: the longest reply; and of the prompt one for two characters of plain words,
        one for any other byte (even Chinese and columns of numbers stay below), and some for each message's frame."""
        reply = int(self.params.get("max_completion_tokens") or self.params.get("max_tokens") or 0)
        text = "".join(message["content"] for message in self.messages)
        others = _WORDS.sub("", text)
        prompt = (len(text) - len(others) + 1) // 2 + len(others.encode()) + FRAME * len(self.messages)
        return {"prompt_tokens": prompt, "completion_tokens": reply}

    @property
    def characters(self) -> int:
        """Length of the prompt."""
        return sum(len(message["content"]) for message in self.messages)


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of a request: a value, or an error text that begins with the error's type.

    ``reply`` is the last raw reply ("" where none came); ``usage`` sums tokens over the samples that were
    asked, those from the ledger included; ``cached`` says that nothing new was paid.
    """

    id: str
    value: T | None
    error: str | None
    reply: str
    usage: dict[str, int]
    cached: bool


def last_line(reply: str) -> str:
    """The last line of a reply that holds anything, where verdicts are due; "" where none does."""
    return next((line.strip() for line in reversed(reply.splitlines()) if line.strip()), "")
