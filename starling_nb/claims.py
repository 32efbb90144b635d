"""Claims as data: what a notebook says, the numbers behind it, and whether they bear it out.

A rule is a small sentence about three numbers, the estimate (``value``) and the ends of its confidence
interval (``low``, ``high``)::

    rule  = term { "and" term }
    term  = [ "value" | "low" | "high" ] ( ">" | ">=" | "<" | "<=" ) number
          | [ "value" | "low" | "high" ] "between" number number          (both ends included)

Without a subject a term speaks of ``value``: ``">0.5"``, ``"low>0"``, ``"high<10"``, ``"between 0.65 0.75"``,
``"value>0.6 and low>0.5"``. The verdict is one of three:

* ``too small``: the claim states the least sample it needs (``min_n``) and ``n`` is below it. Nothing else is
  looked at: an interval from too few items is as little to be trusted as its middle.
* ``holds``: every term is true.
* ``fails``: some term is false. An interval that straddles the bound fails ``low>…``: it has not been shown.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from starling_nb.errors import StarlingError

Verdict = Literal["holds", "fails", "too small"]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TERM = re.compile(
    rf"\s*(?P<subject>value|low|high)?\s*"
    rf"(?:(?P<sign>>=|<=|>|<)\s*(?P<bound>{_NUMBER})|between\s+(?P<least>{_NUMBER})\s+(?P<most>{_NUMBER}))\s*"
)


class ClaimError(StarlingError):
    """A claim whose rule or numbers cannot be judged."""


@dataclass(frozen=True)
class Condition:
    """One comparison, ``subject sign bound``."""

    subject: str
    sign: str
    bound: float

    def met(self, number: float) -> bool:
        """Whether ``number`` satisfies the comparison."""
        if self.sign == ">":
            return number > self.bound
        if self.sign == ">=":
            return number >= self.bound
        return number < self.bound if self.sign == "<" else number <= self.bound


@dataclass(frozen=True)
class Claim:
    """A recorded claim: ``low`` and ``high`` bound the value's interval, ``n`` counts independent items."""

    id: str
    text: str
    rule: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    verdict: Verdict

    def row(self) -> dict[str, Any]:
        """The claim as it stands in ``metrics.json``, under ``claim.<id>``."""
        return {name: value for name, value in asdict(self).items() if name != "id"}


def parse(rule: str) -> tuple[Condition, ...]:
    """Read a rule.

    Raises:
        ClaimError: the rule is not in the language above.
    """
    conditions: list[Condition] = []
    for term in re.split(r"\band\b", rule):
        match = _TERM.fullmatch(term)
        if match is None:
            raise ClaimError(f"rule {rule!r}: cannot read {term.strip()!r}; write e.g. 'low>0' or 'between 0.65 0.75'")
        subject = match["subject"] or "value"
        if match["sign"]:
            conditions.append(Condition(subject, match["sign"], float(match["bound"])))
        else:
            conditions.append(Condition(subject, ">=", float(match["least"])))
            conditions.append(Condition(subject, "<=", float(match["most"])))
    return tuple(conditions)


def judge(
    rule: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
    min_n: int = 0,
) -> Verdict:
    """Hold the numbers against the rule (definition at the top of this module).

    Raises:
        ClaimError: the rule cannot be read, or a number that it or ``min_n`` needs is missing or not finite.
    """
    numbers = {"value": value, "low": low, "high": high}
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            raise ClaimError(f"rule {rule!r}: {name} is {number}; look at what was measured")
    if low is not None and high is not None and not low <= high:
        raise ClaimError(f"rule {rule!r}: the interval [{low}, {high}] is upside down")
    met = []
    for condition in parse(rule):
        number = numbers[condition.subject]
        if number is None:
            raise ClaimError(f"rule {rule!r} speaks of {condition.subject!r}, which was not given")
        met.append(condition.met(number))
    if min_n and n is None:
        raise ClaimError(f"rule {rule!r} asks for at least {min_n} items, but n was not given")
    if n is not None and n < min_n:
        return "too small"
    return "holds" if all(met) else "fails"


_ledger: dict[str, Claim] = {}


def record(
    id: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    n: int | None = None,
    rule: str = ">0",
    text: str = "",
    min_n: int = 0,
) -> Claim:
    """Judge a claim and keep it for the stage's ``metrics.json``; the same id recorded again replaces the
    first.

    Raises:
        ClaimError: as :func:`judge`.
    """
    numbers = [None if number is None else float(number) for number in (value, low, high)]
    count = None if n is None else int(n)
    verdict = judge(rule, float(value), numbers[1], numbers[2], count, min_n)
    claim = Claim(id, text, rule, float(value), numbers[1], numbers[2], count, verdict)
    _ledger[id] = claim
    return claim


def recorded() -> list[Claim]:
    """The claims recorded in this process since :func:`clear`, by id."""
    return [_ledger[id] for id in sorted(_ledger)]


def clear() -> None:
    """Forget all recorded claims; entering a stage does."""
    _ledger.clear()
