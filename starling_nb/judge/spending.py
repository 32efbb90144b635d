"""What judging costs: prices, budgets that stop in time, and a forecast before anything is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from starling_nb.errors import StarlingError

BATCH_SHARE = 0.5  # of the price, where a vendor's Batch API is used (OpenAI's price list)


class JudgeStopped(StarlingError):  # noqa: N818
    """Asking came to an early end; ``outcomes`` holds what :meth:`Judge.ask_all` had settled until then."""

    outcomes: object = ()


class BudgetExceeded(JudgeStopped):
    """The next request would cost more than the budget has left."""


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens of prompt and of reply."""

    prompt: float
    reply: float

    def of(self, usage: Mapping[str, int]) -> float:
        """Dollars for ``prompt_tokens`` and ``completion_tokens``."""
        return (self.prompt * usage.get("prompt_tokens", 0) + self.reply * usage.get("completion_tokens", 0)) / 1e6

    def in_batches(self) -> Price:
        """The price by way of the Batch API."""
        return Price(self.prompt * BATCH_SHARE, self.reply * BATCH_SHARE)


PRICES = {  # OpenAI's list prices; check them before a large run, and give a Price of your own where they have changed
    "gpt-4-0613": Price(30, 60),
    "gpt-4": Price(30, 60),
    "gpt-4-turbo": Price(10, 30),
    "gpt-4o": Price(2.5, 10),
    "gpt-4o-mini": Price(0.15, 0.6),
    "gpt-4.1": Price(2, 8),
    "gpt-4.1-mini": Price(0.4, 1.6),
    "gpt-4.1-nano": Price(0.1, 0.4),
    "gpt-3.5-turbo": Price(0.5, 1.5),
}


@dataclass(frozen=True)
class Budget:
    """The most a :class:`~starling_nb.judge.Judge` may spend in its life: requests, tokens (prompt and reply),
    dollars, or several of these.

    Raises:
        StarlingError: an amount below 0, without end, or no number.
    """

    requests: int | None = None
    tokens: int | None = None
    dollars: float | None = None
    before: float = 0.0
    """Of the dollars, those that earlier runs have spent."""

    def __post_init__(self) -> None:
        for name, most in vars(self).items():
            if most is not None and not 0 <= most < float("inf"):
                raise StarlingError(f"{name} = {most}: write how many may be spent at most, 0 or more, or leave it out")

    def split(self, processes: int) -> Budget:
        """What each of several processes may spend, so that together they keep to this.

        Raises:
            StarlingError: too few requests or tokens for all of them.
        """
        requests, tokens = (None if whole is None else whole // processes for whole in (self.requests, self.tokens))
        if (self.requests and not requests) or (self.tokens and not tokens):
            raise StarlingError(f"a budget for {processes} processes needs as many requests: give more, or none")
        left = None if self.dollars is None else self.before + max(0.0, self.dollars - self.before) / processes
        return Budget(requests, tokens, left, self.before)

    def told(self, requests: int, tokens: int, dollars: float) -> str:
        """What is spent of what may be, for a message."""
        spent = {"requests": requests, "tokens": tokens}
        parts = [f"{n} of {getattr(self, name)} {name}" for name, n in spent.items() if getattr(self, name) is not None]
        if self.dollars is not None:
            earlier = f", ${self.before:.2f} of them in earlier runs" if self.before else ""
            parts.append(f"${self.before + dollars:.2f} of ${self.dollars:.2f}{earlier}")
        return "; ".join(parts)


@dataclass
class Spending:
    """What has been spent, and what the requests under way may still cost."""

    budget: Budget
    price: Price | None = None
    requests: int = 0
    tokens: int = 0
    dollars: float = 0.0
    reserved_tokens: int = 0
    reserved_dollars: float = 0.0

    def __post_init__(self) -> None:
        if self.budget.dollars is not None and self.price is None:
            raise StarlingError("a budget in dollars needs the judge's price: give price=Price(prompt, reply)")

    async def reserve(self, most: Mapping[str, int]) -> None:
        """Set one request and ``most`` of its tokens aside; where others' reservations are in the way, wait.

        Raises:
            BudgetExceeded: it would not fit even when all requests under way have been settled.
        """
        while self.reserved_tokens and not self._fits(most, self.reserved_tokens, self.reserved_dollars):
            await asyncio.sleep(0.01)
        self.reserve_now(most)

    def reserve_now(self, most: Mapping[str, int]) -> None:
        """Set one request and ``most`` of its tokens aside.

        Raises:
            BudgetExceeded: it would not fit beside what is spent and set aside.
        """
        over = self.budget.requests is not None and self.requests >= self.budget.requests
        if over or not self._fits(most, self.reserved_tokens, self.reserved_dollars):
            paid = self.budget.told(self.requests, self.tokens, self.dollars)
            raise BudgetExceeded(
                f"the judge's budget is used up for all that the next request may cost (spent: {paid}). What was paid "
                "for is in the ledger: raise the budget and run again."
            )
        self.requests += 1
        self.reserved_tokens += sum(most.values())
        self.reserved_dollars += self.price.of(most) if self.price else 0.0

    def _fits(self, most: Mapping[str, int], tokens: int, dollars: float) -> bool:
        """Whether ``most`` fits into the budget beside what is spent and the given reservations."""
        limit, price = self.budget, self.price.of(most) if self.price else 0.0
        return (limit.tokens is None or self.tokens + tokens + sum(most.values()) <= limit.tokens) and (
            limit.dollars is None or limit.before + self.dollars + dollars + price <= limit.dollars + 1e-9
        )

    def settle(self, most: Mapping[str, int], usage: Mapping[str, int] | None) -> None:
        """Replace a reservation by what was really used; None where nothing was paid."""
        self.requests -= 1
        self.reserved_tokens -= sum(most.values())
        self.reserved_dollars -= self.price.of(most) if self.price else 0.0
        self.collect(None, usage)

    def collect(self, most: Mapping[str, int] | None, usage: Mapping[str, int] | None) -> None:
        """Count what was used for a request, whether or not ``most`` was set aside for it."""
        if most is not None:
            self.settle(most, usage)
        elif usage is not None:
            self.requests += 1
            self.tokens += usage["total_tokens"]
            self.dollars += self.price.of(usage) if self.price else 0.0


@dataclass(frozen=True)
class Forecast:
    """What a run will need, told before it begins; dollars are None where no price is known."""

    requests: int
    tokens: float
    dollars: float | None

    def __str__(self) -> str:
        price = "price unknown" if self.dollars is None else f"${self.dollars:,.2f}"
        return f"{self.requests:,} requests, about {self.tokens / 1e6:,.2f} million tokens, {price}"
