"""One call of :meth:`~starling_nb.judge.Judge.ask`: its connection, its clerk, and the requests under way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from starling_nb.errors import StarlingError
from starling_nb.judge.asking import Outcome, Request
from starling_nb.judge.ledger import Attempt, Clerk, key
from starling_nb.judge.wire import Unanswered

if TYPE_CHECKING:
    from starling_nb.judge.client import Judge

T = TypeVar("T")
BREATH = 100  # replies served from the ledger in a row before others get a turn


@dataclass(frozen=True)
class Gap:
    """A reply that is not in the ledger yet; what :func:`read` found must be asked for."""

    name: str
    sample: int
    params: dict[str, Any]

    def attempt(self, request: Request[Any], model: str, outcome: str, **found: Any) -> Attempt:
        """What the ledger enters for a try to fill it."""
        return Attempt(self.name, request.id, model, self.sample, self.params, outcome, **found)


def read(judge: Judge, request: Request[T]) -> Outcome[T] | Gap:
    """What the ledger says of a request: its outcome, or the first reply that is missing for one.

    A reply that cannot be read is followed by the next sample, up to the judge's ``attempts``.

    Raises:
        Unanswered: the request cannot be written as JSON.
    """
    usage: dict[str, int] = {}
    reply = error = ""
    for sample in range(judge.attempts):
        params = {**request.params, "seed": request.params.get("seed", judge.seed) + sample}
        try:
            name = key(judge.model, request.messages, params, sample)
        except (UnicodeError, TypeError) as failure:
            raise Unanswered(f"the request cannot be written as JSON ({failure}): clean its text") from failure
        record = judge.ledger.get(name)
        if record is None:
            return Gap(name, sample, params)
        reply = record.reply or ""
        for kind, count in record.usage.items():
            usage[kind] = usage.get(kind, 0) + count
        cut = record.finish_reason == "length"
        try:
            value = request.parse(reply)
            if not (cut and request.whole):
                return Outcome(request.id, value, None, reply, usage, True)
            error = "TruncatedReply: the token limit ended the reply"
        except (StarlingError, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        error += " (the reply was cut off: raise max_tokens)" * cut
    return Outcome(request.id, None, error, reply, usage, True)


def known(judge: Judge, request: Request[T]) -> Outcome[T]:
    """The outcome as far as the ledger knows it: a missing reply is told with the last failure to get one."""
    try:
        found = read(judge, request)
    except Unanswered as error:
        return _unanswered(request, str(error))
    if not isinstance(found, Gap):
        return found
    failures = judge.ledger.failures(found.name)
    return _unanswered(request, str(failures[-1].error) if failures else "it was never asked")


class Session:
    """Settles requests; a ``sealed`` one asks nothing and tells what the ledger knows."""

    def __init__(self, judge: Judge, sealed: bool = False) -> None:
        self.judge, self.sealed = judge, sealed
        self.wire, self.clerk = judge.wire(), Clerk(judge.ledger)
        self._locks: dict[str, asyncio.Lock] = {}
        self._served = 0

    def known(self, request: Request[T]) -> Outcome[T] | None:
        """The outcome, if nothing need or may be asked for it."""
        if self.sealed:
            return known(self.judge, request)
        try:
            found = read(self.judge, request)
        except Unanswered as error:
            return _unanswered(request, str(error))
        return None if isinstance(found, Gap) else found

    async def breathe(self) -> None:
        """Let the requests under way move on, now and then."""
        self._served += 1
        if self._served % BREATH == 0:
            await asyncio.sleep(0)

    async def settle(self, request: Request[T]) -> tuple[Request[T], Outcome[T]]:
        """Ask until the request has an outcome; what was paid for is on the disk before it is told."""
        paid = False
        try:
            while isinstance(found := read(self.judge, request), Gap):
                paid |= await self._fill(request, found)
        except Unanswered as error:
            return request, _unanswered(request, str(error))
        return request, replace(found, cached=not paid)

    async def _fill(self, request: Request[Any], gap: Gap) -> bool:
        """Get the missing reply and enter it; False where another request has just done so."""
        async with self._locks.setdefault(gap.name, asyncio.Lock()):
            if gap.name in self.judge.ledger:
                return False
            record = await self._pay(request, gap)
            await self.clerk.note(gap.attempt(request, self.judge.model, "reply", **record))
        self._locks.pop(gap.name, None)
        return True

    async def _pay(self, request: Request[Any], gap: Gap) -> dict[str, Any]:
        most, spending = request.most, self.judge.spending
        await spending.reserve(most)
        usage = None

        def note(name: str, told: str, cost: Mapping[str, int]) -> object:
            return self.clerk.note(gap.attempt(request, self.judge.model, name, error=told, usage=cost))

        try:
            record = await self.wire.send(request.messages, gap.params, sum(most.values()), note)
            usage = record["usage"]
        except Unanswered as error:
            usage = error.usage or None
            raise
        finally:
            spending.settle(most, usage)
        return record

    async def close(self, pending: Iterable[asyncio.Task[Any]]) -> None:
        """Let what was sent come to its end, wait for no pause, send nothing again, enter everything, and hang up."""
        self.wire.leave()
        try:
            await asyncio.gather(*pending, return_exceptions=True)
        finally:
            await self.clerk.close()
            await self.wire.close()


def _unanswered(request: Request[T], told: str) -> Outcome[T]:
    return Outcome(request.id, None, f"Unanswered: {told}", "", {}, True)
