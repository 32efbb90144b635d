"""How fast a server may be asked, learnt from what it says: rate-limit headers, ``Retry-After``, plain refusals.

OpenAI and the servers that follow it name their limits in ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``.
Each pair becomes a token bucket. A server that only refuses is asked at a pace that falls with each refusal and
slowly rises again.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

LONGEST_OBEYED = 600.0  # seconds a server may ask us to wait
MINUTE = 60.0
SLOWEST = 0.2  # requests a second: the pace never falls below
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass
class Bucket:
    """Holds at most ``size`` units and gains ``rate`` a second; what is taken must be there first."""

    size: float
    rate: float
    level: float
    seen: float

    def refill(self, now: float) -> None:
        """Add what has come in since it was last looked at."""
        self.level = min(self.size, self.level + self.rate * (now - self.seen))
        self.seen = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` (or all it can hold) is there."""
        self.refill(now)
        return max(0.0, (min(amount, self.size) - self.level) / self.rate)


class RateLimit:
    """One server's limits, shared by all requests of a session."""

    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}
        self.quiet_until = 0.0
        self._turn = asyncio.Lock()
        self._answers, self._first = 0, 0.0
        self._since = time.monotonic()

    async def acquire(self, tokens: int) -> None:
        """Wait until one request of ``tokens`` tokens may be sent; first come, first served."""
        if not self.buckets and time.monotonic() >= self.quiet_until:
            return
        amounts = {"requests": 1.0, "tokens": float(tokens), "pace": 1.0}
        async with self._turn:
            while (left := self._left(amounts)) > 0:
                await asyncio.sleep(left)
            for name, bucket in self.buckets.items():
                bucket.level -= min(amounts[name], bucket.size)

    def _left(self, amounts: Mapping[str, float]) -> float:
        now = time.monotonic()
        return max([self.quiet_until - now, *(b.wait(amounts[name], now) for name, b in self.buckets.items())])

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take limits from the headers of an answer."""
        now = time.monotonic()
        for name in ("requests", "tokens"):
            size = _number(headers.get(f"x-ratelimit-limit-{name}"))
            left = _number(headers.get(f"x-ratelimit-remaining-{name}"))
            if not size or left is None or left > size:
                continue
            reset = seconds(headers.get(f"x-ratelimit-reset-{name}", ""))
            rate = (size - left) / reset if reset and left < size else size / MINUTE
            bucket = self.buckets.setdefault(name, Bucket(size, rate, left, now))
            bucket.refill(now)
            bucket.size, bucket.rate, bucket.level = size, rate, min(bucket.level, left)

    def answered(self) -> None:
        """A request was answered: a pace that was learnt from refusals rises by a hundredth."""
        self._answers += 1
        if pace := self.buckets.get("pace"):
            pace.rate *= 1.01

    def refused(self, headers: Mapping[str, str], for_rate: bool = True) -> float:
        """A request was refused: seconds that the server asks for; they hold for the whole session.

        A server that refuses for the rate and says no more is asked more slowly from now on.
        """
        self.learn(headers)
        asked, now = retry_after(headers), time.monotonic()
        if asked:
            self.quiet_until = max(self.quiet_until, now + asked)
        elif for_rate and not {"requests", "tokens"} & set(self.buckets):
            self._slow_down(now)
        return asked

    def _slow_down(self, now: float) -> None:
        """Ask at seven tenths of the pace; once a second at most, for refusals come in crowds.

        The first pace is the rate at which answers came. One refusal costs what 36 answers give back, and all of them
        no more than nine tenths of that rate: a server which refuses now and then, however slowly it is asked, does not
        bring the run to a halt.
        """
        if now - self._since < 1.0:
            return
        known = self.buckets.get("pace")
        if known is None:
            self._first = max(1.0, self._answers / (now - self._since))
        rate = max(SLOWEST, self._first / 10, 0.7 * (known.rate if known else self._first))
        self.buckets["pace"] = Bucket(max(1.0, rate), rate, 0.0, now)
        self._since = now


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds in ``Retry-After-Ms`` or ``Retry-After`` (a number or an HTTP date), 0 where there is none."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        wait = milliseconds / 1000
    elif (plain := _number(headers.get("retry-after"))) is not None:
        wait = plain
    else:
        date = email.utils.parsedate_tz(headers.get("retry-after", ""))
        wait = email.utils.mktime_tz(date) - time.time() if date else 0.0
    return min(wait, LONGEST_OBEYED) if wait > 0 else 0.0


def seconds(text: str) -> float | None:
    """A time span as servers write it (``20ms``, ``1s``, ``6m0s``, or a bare number of seconds); None for others."""
    if (plain := _number(text)) is not None:
        return plain
    parts = _SPAN.findall(text)
    if not parts or "".join(a + b for a, b in parts) != text.strip():
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 1e15 else None
