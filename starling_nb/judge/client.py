"""Asking a judge: many requests at once, each paid for once, none lost.

A stage says what to ask and how to read the reply (:class:`Request`); :class:`Judge` sends it to any server
that speaks the OpenAI chat-completions protocol, within a budget, and enters every reply in the ledger before
anyone reads it. A run that was stopped is continued by running it again.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from starling_nb.errors import StarlingError
from starling_nb.judge.asking import Outcome, Request
from starling_nb.judge.ledger import Ledger
from starling_nb.judge.session import Session, known
from starling_nb.judge.spending import PRICES, Budget, Forecast, JudgeStopped, Price, Spending
from starling_nb.judge.wire import Wire

if TYPE_CHECKING:
    from starling_nb.judge.batch import Batches

T = TypeVar("T")


class Judge:
    """A judge behind an OpenAI-compatible server.

    Args:
        model: the model's name on the server.
        base_url: the server, such as ``http://127.0.0.1:8000/v1``; None for ``OPENAI_BASE_URL`` or OpenAI
            itself.
        api_key: None for ``OPENAI_API_KEY``; a server on this machine needs none and is never sent that one.
        ledger: file of attempts; None keeps them in memory.
        budget: the most this judge may spend; a number means requests.
        concurrency: requests under way at a time.
        seed: sent with each request that names none, plus the sample index.
        attempts: how many samples may be asked for until one can be read.
        retries: how often a request is sent again after server errors, timeouts and cut connections; refusals for
            the server's rate are borne three times as often.
        timeout: seconds until one call is given up.
        price: dollars for a million tokens; None for the list price where :data:`PRICES` has the model.
        batch: ask through the server's Batch API (half the price, within a day); needs a ledger file.
        replay: answer from the ledger alone and never open a connection.
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
        price: Price | None = None,
        batch: Batches | None = None,
        replay: bool = False,
    ) -> None:
        if concurrency < 1 or attempts < 1 or retries < 0:
            raise StarlingError("a judge needs concurrency >= 1, attempts >= 1 and retries >= 0")
        if replay and (ledger is None or not Path(ledger).exists()):
            raise StarlingError(
                f"replay answers from a ledger alone, and {ledger} is none: give the file of a past run"
            )
        if batch and ledger is None:
            raise StarlingError("batches take hours and must outlive this process: give a ledger file")
        self.model = model
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self.seed, self.attempts, self.concurrency = seed, attempts, concurrency
        self.batch, self.replay = batch, replay
        self.ledger = Ledger(None if ledger is None else Path(ledger))
        self.price = price or PRICES.get(model)
        if batch and self.price:
            self.price = self.price.in_batches()
        self.spending = Spending(Budget(budget) if isinstance(budget, int) else budget or Budget(), self.price)
        self._wire_settings = (model, self.base_url, api_key, retries, timeout, seed)

    @property
    def spent(self) -> dict[str, float]:
        """Requests, tokens and dollars (0 where no price is known) paid for in this judge's life."""
        return {name: getattr(self.spending, name) for name in ("requests", "tokens", "dollars")}

    def wire(self) -> Wire:
        """A connection of its own to the server, not yet opened."""
        return Wire(*self._wire_settings)

    async def ask(self, requests: Iterable[Request[T]]) -> AsyncGenerator[tuple[Request[T], Outcome[T]], None]:
        """Yield each request with its outcome, in the order in which they are settled.

        ``requests`` is drawn from as they are asked, so that it may be longer than memory; with ``batch`` it is gone
        through several times, and is kept in memory where it is an iterator. Who leaves early (by ``aclose``, an
        exception or an interrupt) waits for the replies under way, which are saved, and for no pause.

        Raises:
            BudgetExceeded: after the requests under way were settled, saved and yielded.
            JudgeUnavailable: the server cannot be reached, or refuses the key or the model; same order of events.
        """
        if self.batch is not None and not self.replay:
            requests = list(requests) if iter(requests) is requests else requests
            await self.batch.fill(self, requests)
        session = Session(self, sealed=self.replay or self.batch is not None)
        source, stopped = iter(requests), None
        pending: set[asyncio.Task[tuple[Request[T], Outcome[T]]]] = set()
        try:
            while True:
                while stopped is None and len(pending) < self.concurrency:
                    if (request := next(source, None)) is None:
                        break
                    if (outcome := session.known(request)) is not None:
                        yield request, outcome
                        await session.breathe()
                    else:
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
            await session.close(pending)
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
        places = defaultdict(list)  # the same request may be asked twice
        for n, request in enumerate(asked):
            places[id(request)].append(n)
        found: dict[int, Outcome[T]] = {}

        def keep(request: Request[T], outcome: Outcome[T]) -> None:
            found[places[id(request)].pop()] = outcome
            if each is not None:
                each(outcome)

        try:
            self.run(asked, keep)
        except JudgeStopped as error:
            error.outcomes = [found[n] for n in sorted(found)]
            raise
        return [found[n] for n in range(len(asked))]

    def run(self, requests: Iterable[Request[T]], each: Callable[[Request[T], Outcome[T]], object]) -> None:
        """Call ``each`` with every request and its outcome as they are settled; nothing else is kept in memory.

        Raises:
            BudgetExceeded, JudgeUnavailable: as :meth:`ask`.
        """
        begun: SimpleQueue[tuple[asyncio.AbstractEventLoop, Any]] = SimpleQueue()

        async def main() -> None:
            begun.put((asyncio.get_running_loop(), asyncio.current_task()))
            async with aclosing(self.ask(requests)) as settled:
                async for request, outcome in settled:
                    each(request, outcome)

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
                loop, task = begun.get()
                with suppress(RuntimeError):  # it has just ended by itself
                    loop.call_soon_threadsafe(task.cancel)
                raise

    def settled(self, requests: Iterable[Request[T]]) -> Iterator[Outcome[T]]:
        """What the ledger says of each request, in their order; nothing is asked, a missing reply is an error."""
        for request in requests:
            yield known(self, request)

    def forecast(self, requests: Iterable[Request[Any]], total: int, sample: int = 200) -> Forecast:
        """What ``total`` such requests will cost, from the first ``sample`` of them.

        A quarter of the prompt's characters and, until the ledger holds replies of this model, half the longest
        reply allowed are taken for the tokens of a request.
        """
        seen = list(islice(requests, sample))
        if not seen or total < 1:
            return Forecast(0, 0.0, 0.0 if self.price else None)
        known = self.ledger.mean_tokens(self.model)
        prompt = sum(request.characters for request in seen) / 4 / len(seen)
        reply = known[1] if known else 0.5 * sum(request.most["completion_tokens"] for request in seen) / len(seen)
        usage = {"prompt_tokens": round(prompt * total), "completion_tokens": round(reply * total)}
        return Forecast(total, sum(usage.values()), self.price.of(usage) if self.price else None)

    def close(self) -> None:
        """Close the ledger's file."""
        self.ledger.close()
