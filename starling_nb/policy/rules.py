"""Rewards by rule, to be added to the reward model's: what an answer's text alone can tell, each from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from starling_nb.chat import Message
from starling_nb.policy.recipe import TuningError
from starling_nb.rubric import form, refusal
from starling_nb.rubric.text import Text

Rule = Callable[[Sequence[Message], str], float]
"""A number for an answer to a conversation; a judge asked as a classifier is one too."""


def declines(messages: Sequence[Message], answer: str) -> float:
    """How clearly the answer refuses; a negative weight works against refusing what is harmless."""
    return refusal.declines(Text(answer))


def repeats(messages: Sequence[Message], answer: str) -> float:
    """Share of the answer that says again what it has said."""
    return 1.0 - form.freshness(Text(answer))[0] if answer.strip() else 0.0


RULES: dict[str, Rule] = {"declines": declines, "repeats": repeats}


def weighted(texts: Sequence[str]) -> dict[str, tuple[float, Rule]]:
    """Rules by name with their weights, from ``name=weight``.

    Raises:
        TuningError: an unknown rule, or a weight that is no number.
    """
    found: dict[str, tuple[float, Rule]] = {}
    for text in texts:
        name, _, weight = text.partition("=")
        if name not in RULES:
            raise TuningError(f"unknown rule {name!r}: there are {', '.join(RULES)}")
        try:
            found[name] = (float(weight), RULES[name])
        except ValueError as error:
            raise TuningError(f"rule {text!r}: write a weight in units of the reward's spread, {name}=-0.5") from error
    return found


def added(rules: Mapping[str, tuple[float, Rule]], messages: Sequence[Message], answer: str) -> float:
    """What all rules together add to the reward of an answer."""
    return sum(weight * rule(messages, answer) for weight, rule in rules.values())
