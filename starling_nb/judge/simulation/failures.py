"""The ways in which a real judge fails, on request: for tests, and for showing that nothing is lost.

Each failure strikes a request by a draw that is keyed by its content, so that the same requests fail in every
run. A failure of the text goes away with another ``seed`` parameter; a failure of the server, of a batch or
of a line of a batch is drawn anew with each arrival.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Mapping

from starling_nb.errors import StarlingError
from starling_nb.files import rng

SERVER = ("http_429", "http_500")
TEXT = ("not_permutation", "missing_list", "two_lists", "refusal", "truncated")
BATCH = ("batch_failed", "batch_expired")  # the whole batch
LINE = ("batch_line",)  # one request of a batch
NAMES = (*SERVER, *TEXT, *BATCH, *LINE, "slow")

REFUSAL = "I'm sorry, but I can't help with comparing these answers."
_LIST = re.compile(r"\[\[([^\[\]]*)\]\]")


class Failures:
    """Draws failures at the given rates.

    Args:
        rates: name → share of requests (0..1); names are in :data:`NAMES`.
        seed: decides which requests are struck.

    Raises:
        StarlingError: an unknown name, a rate outside 0..1, or rates of one kind that sum to more than 1.
    """

    def __init__(self, rates: Mapping[str, float], seed: int) -> None:
        if unknown := set(rates) - set(NAMES):
            raise StarlingError(f"unknown failure {sorted(unknown)[0]!r}: choose from {', '.join(NAMES)}")
        sums = [sum(rates.get(name, 0) for name in kind) for kind in (SERVER, TEXT, BATCH)]
        if any(not 0 <= rate <= 1 for rate in rates.values()) or max(sums) > 1 + 1e-9:
            raise StarlingError("failure rates lie between 0 and 1, and those of one kind sum to at most 1")
        self.rates, self.seed = dict(rates), seed
        self._arrivals: Counter[tuple[tuple[str, ...], str]] = Counter()
        self._lock = threading.Lock()

    def server(self, content: str) -> str | None:
        """The server failure that strikes this arrival of ``content``, if any."""
        return self._next(SERVER, content)

    def batch(self, content: str) -> str | None:
        """The failure that strikes this arrival of a batch with the input ``content``, if any."""
        return self._next(BATCH, content)

    def line(self, content: str) -> bool:
        """Whether this arrival of ``content`` in a batch fails."""
        return self._next(LINE, content) is not None

    def slow(self, content: str) -> bool:
        """Whether the reply to ``content`` takes its time."""
        return self._draw(("slow",), content, 0) is not None

    def spoil(self, reply: str, content: str, call_seed: int) -> tuple[str, str]:
        """The reply as it is sent, and its finish reason."""
        name = self._draw(TEXT, content, call_seed)
        if name == "refusal":
            return REFUSAL, "stop"
        if name == "truncated":
            return reply[: len(reply) - max(3, len(reply) // 5)], "length"
        if name is not None and (lists := list(_LIST.finditer(reply))):
            last = lists[-1]
            return reply[: last.start()] + _spoilt(last[0], name) + reply[last.end() :], "stop"
        return reply, "stop"

    def _next(self, names: tuple[str, ...], content: str) -> str | None:
        """The failure that strikes the next arrival of ``content``."""
        if not any(name in self.rates for name in names):
            return None
        with self._lock:
            self._arrivals[names, content] += 1
            arrival = self._arrivals[names, content]
        return self._draw(names, content, arrival)

    def _draw(self, names: tuple[str, ...], content: str, number: int) -> str | None:
        if not any(name in self.rates for name in names):
            return None
        left = rng(self.seed, "failure", *names, content, number).random()
        for name in names:
            left -= self.rates.get(name, 0)
            if left < 0:
                return name
        return None


def _spoilt(text: str, name: str) -> str:
    items = [item.strip() for item in text.strip("[]").split(",")]
    if name == "missing_list":
        return "(left to the reader)"
    if name == "not_permutation":
        return f"[[{', '.join([*items[:-1], items[0]])}]]"
    return f"{text}\n\nOn second thoughts: [[{', '.join(reversed(items))}]]"
