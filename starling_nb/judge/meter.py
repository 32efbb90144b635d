"""How a long run of judging goes: labels a second, dollars a thousand, and the share that could not be read."""

from __future__ import annotations

import time
from typing import Any

from starling_nb import progress
from starling_nb.judge.asking import Outcome
from starling_nb.judge.spending import Price


class Meter:
    """Counts outcomes and reports them; call it with each as it is settled. As a context it ends its bar early, too.

    Args:
        total: outcomes expected.
        desc: what is being done.
        price: of a million tokens; no dollars are shown without one.
    """

    def __init__(self, total: int, desc: str, price: Price | None = None) -> None:
        self.total, self.desc, self.price = total, desc, price
        self.done = self.paid = self.invalid = 0
        self.dollars = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exception: object) -> None:
        progress.abandon(self.desc)

    def __call__(self, outcome: Outcome[Any]) -> None:
        """Count one outcome."""
        self.done += 1
        self.invalid += outcome.value is None
        if not outcome.cached:
            self.paid += 1
            self.dollars += self.price.of(outcome.usage) if self.price else 0.0
        progress.report(self.done, self.total, self.desc, **self.rates())

    def rates(self) -> dict[str, float]:
        """Labels a second, dollars for a thousand labels (where there is a price), share of invalid ones."""
        rates = {"labels_per_s": self.done / max(1e-3, time.monotonic() - self._began)}
        if self.price is not None and self.paid:
            rates["$_per_1k"] = 1000 * self.dollars / self.paid
        return rates | {"invalid": self.invalid / max(1, self.done)}
