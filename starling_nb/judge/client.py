"""Asking a judge: many requests at once, each paid for once, none lost.

A stage says what to ask and how to read the reply (:class:`Request`); :class:`Judge` sends it to any server
that speaks the OpenAI chat-completions protocol, within a budget, and enters every reply in the ledger before
anyone reads it. A run that was stopped is continued by running it again.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from starling_nb.errors import StarlingError
from starling_nb.judge.ledger import Ledger, Record, key
from starling_nb.judge.wire import JudgeStopped, JudgeUnavailable, Unanswered, Wire

__all__ = ["Budget", "BudgetExceeded", "Judge", "JudgeStopped", "JudgeUnavailable", "Outcome", "Request"]

T = TypeVar("T")


@dataclass(frozen=True)
class Request(Generic[T]):
    """One thing to ask: ``parse`` turns the reply's text into a value or raises StarlingError or ValueError.

    ``params`` are chat-completions parameters such as ``temperature``, ``max_tokens`` and ``seed``.
    """

    id: str
    messages: list[dict[str, str]]
    params: dict[str, Any]
    parse: Callable[[str], T]


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


@dataclass(frozen=True)
class Budget:
    """The most a :class:`Judge` may spend in its life: requests, tokens (prompt and reply), or both."""

    requests: int | None = None
    tokens: int | None = None


class BudgetExceeded(JudgeStopped):
    """The next request would cost more than the budget has left."""


@dataclass
class _Spending:
    """What has been spent, and what the requests under way may still cost."""

    budget: Budget
    requests: int = 0
    tokens: int = 0
    reserved: int = 0

    async def reserve(self, tokens: int) -> None:
        """Set ``tokens`` and one request aside; where others' reservations are in the way, wait for them."""
        limit = self.budget.tokens
        while limit is not None and self.tokens + self.reserved + tokens > limit and self.reserved:
            await asyncio.sleep(0.01)
        over = limit is not None and self.tokens + tokens > limit
        if over or (self.budget.requests is not None and self.requests >= self.budget.requests):
            raise BudgetExceeded(
                f"the judge's budget is used up ({self.requests} requests and {self.tokens} tokens spent of "
                f"{self.budget}). What was paid for is in the ledger: raise the budget and run again."
            )
        self.requests += 1
        self.reserved += tokens

    def settle(self, reserved: int, usage: dict[str, int] | None) -> None:
        """Replace a reservation by what was really used; None where nothing was paid."""
        self.reserved -= reserved
        if usage is None:
            self.requests -= 1
        else:
            self.tokens += usage["total_tokens"]


class Judge:
    """A judge behind an OpenAI-compatible server.

    Args:
        model: the model's name on the server.
        base_url: the server, such as ``http://127.0.0.1:8000/v1``; None for ``OPENAI_BASE_URL`` or OpenAI
            itself.
        api_key: None for ``OPENAI_API_KEY``; a server on this machine needs none and is never sent that one.
        ledger: file of replies; None keeps them in memory.
        budget: the most this judge may spend; a number means requests.
        concurrency: requests under way at a time.
        seed: sent with each request that names none, plus the sample index.
        attempts: how many samples may be asked for until one can be read.
        retries: how often a request is sent again after rate limits, server errors and timeouts.
        timeout: seconds until one call is given up.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        ledger: Path | str | None = None,
        budget: Budget | int | None = None,
        concurrency: int = 8,
        seed: int = 0,
        attempts: int = 1,
        retries: int = 6,
        timeout: float = 120.0,
    ) -> None:
        if concurrency < 1 or attempts < 1 or retries < 0:
            raise StarlingError("a judge needs concurrency >= 1, attempts >= 1 and retries >= 0")
        self.model = model
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self.seed, self.attempts, self.concurrency = seed, attempts, concurrency
        self.ledger = Ledger(None if ledger is None else Path(ledger))
        self._spending = _Spending(Budget(budget) if isinstance(budget, int) else budget or Budget())
        self._wire_settings = (model, self.base_url, api_key, retries, timeout, seed)
        self._halt = threading.Event()

    @property
    def spent(self) -> dict[str, int]:
        """Requests and tokens paid for in this judge's life."""
        return {"requests": self._spending.requests, "tokens": self._spending.tokens}

    async def ask(self, requests: Iterable[Request[T]]) -> AsyncGenerator[tuple[Request[T], Outcome[T]], None]:
        """Yield each request with its outcome, in the order in which they are settled.

        Raises:
            BudgetExceeded: after the requests under way were settled, saved and yielded.
            JudgeUnavailable: the server cannot be reached, or refuses the key or the model; same order of
                events.
        """
        self.ledger.refresh()
        source = iter(requests)
        pending: set[asyncio.Task[tuple[Request[T], Outcome[T]]]] = set()
        stopped: JudgeStopped | None = None
        session = _Session(self, Wire(*self._wire_settings))
        try:
            while True:
                while stopped is None and not self._halt.is_set() and len(pending) < self.concurrency:
                    if (request := next(source, None)) is None:
                        break
                    pending.add(asyncio.create_task(session.settle(request)))
                if not pending:
                    break
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if isinstance(error := task.exception(), JudgeStopped):
                        stopped = stopped or error
                    else:
                        yield task.result()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            await session.wire.close()
        if stopped is not None:
            raise stopped

    def ask_all(
        self, requests: Iterable[Request[T]], each: Callable[[Outcome[T]], object] | None = None
    ) -> list[Outcome[T]]:
        """All outcomes, in the order of ``requests``; for scripts and for notebooks, whose loop is running.

        ``each`` is called with every outcome as it is settled, for a progress bar.

        Raises:
            BudgetExceeded, JudgeUnavailable: as :meth:`ask`; their ``outcomes`` holds what was settled.
        """
        asked = list(requests)
        found: dict[int, Outcome[T]] = {}

        async def collect() -> None:
            places = defaultdict(list)  # the same request may be asked twice
            for n, request in enumerate(asked):
                places[id(request)].append(n)
            async for request, outcome in self.ask(asked):
                found[places[id(request)].pop()] = outcome
                if each is not None:
                    each(outcome)

        try:
            self._run(collect)
        except JudgeStopped as error:
            error.outcomes = [found[n] for n in sorted(found)]
            raise
        return [found[n] for n in range(len(asked))]

    def _run(self, main: Callable[[], Any]) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(main())
            return
        with ThreadPoolExecutor(1) as pool:  # a loop is running here: work in another thread
            future = pool.submit(lambda: asyncio.run(main()))
            try:
                future.result()
            except KeyboardInterrupt:
                self._halt.set()  # settle what is under way, start nothing new
                future.exception()
                raise
            finally:
                self._halt.clear()


@dataclass
class _Session:
    """One call of :meth:`Judge.ask`: its connection, and the requests that are being asked just now."""

    judge: Judge
    wire: Wire
    locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def settle(self, request: Request[T]) -> tuple[Request[T], Outcome[T]]:
        reply, usage, cached, error = "", dict[str, int](), True, "StarlingError: nothing was asked"
        for sample in range(self.judge.attempts):
            try:
                record, old = await self._reply(request, sample)
            except Unanswered as failure:
                return request, Outcome(request.id, None, f"Unanswered: {failure}", reply, usage, cached)
            reply, cached = record["reply"], cached and old
            for name, count in record["usage"].items():
                usage[name] = usage.get(name, 0) + count
            try:
                return request, Outcome(request.id, request.parse(reply), None, reply, usage, cached)
            except (StarlingError, ValueError) as failure:
                error = f"{type(failure).__name__}: {failure}"
                if record["finish_reason"] == "length":
                    error += " (the reply was cut off: raise max_tokens)"
        return request, Outcome(request.id, None, error, reply, usage, cached)

    async def _reply(self, request: Request[Any], sample: int) -> tuple[Record, bool]:
        """The ledger's record of a sample, and whether it was there before."""
        params = dict(request.params)
        params["seed"] = params.get("seed", self.judge.seed) + sample
        try:
            name = key(self.judge.model, request.messages, params, sample)
        except (UnicodeError, TypeError) as error:
            raise Unanswered(f"the request cannot be written as JSON ({error}): clean its text") from error
        async with self.locks.setdefault(name, asyncio.Lock()):
            if (record := self.judge.ledger.get(name)) is not None:
                return record, True
            record = await self._pay(request.messages, params)
            self.judge.ledger.append(name, {"id": request.id, "sample": sample, **record})
        self.locks.pop(name, None)
        return record, False

    async def _pay(self, messages: Sequence[dict[str, str]], params: dict[str, Any]) -> Record:
        spending = self.judge._spending
        most = sum(len(message["content"]) for message in messages) // 3
        most += int(params.get("max_completion_tokens") or params.get("max_tokens") or 0)
        await spending.reserve(most)
        usage = None
        try:
            record = await self.wire.send(messages, params)
            usage = record["usage"]
        finally:
            spending.settle(most, usage)
        return {"model": self.judge.model, "params": params, **record}
