"""Rewards by rule, to be added to the reward model's: what an answer tells by itself, or to a judge, from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from starling_nb.chat import Message
from starling_nb.judge import Judge
from starling_nb.policy.recipe import TuningError
from starling_nb.policy.rewards.classifier import QUESTIONS, Asked
from starling_nb.policy.rollouts import Rollout
from starling_nb.rubric import form, refusal
from starling_nb.rubric.text import Text


@runtime_checkable
class BatchRule(Protocol):
    """A rule that looks at all answers of a step together, as one that asks a judge does."""

    def of_all(self, conversations: Sequence[Sequence[Message]], answers: Sequence[str]) -> Sequence[float]:
        """A number for each answer to its conversation."""


Rule = Callable[[Sequence[Message], str], float] | BatchRule
"""A number for an answer to a conversation, or for all of a step's at once."""


def declines(messages: Sequence[Message], answer: str) -> float:
    """How clearly the answer refuses; a negative weight works against refusing what is harmless."""
    return refusal.declines(Text(answer))


def repeats(messages: Sequence[Message], answer: str) -> float:
    """Share of the answer that says again what it has said."""
    return 1.0 - form.freshness(Text(answer))[0] if answer.strip() else 0.0


RULES: dict[str, Rule] = {"declines": declines, "repeats": repeats}


def weighted(texts: Sequence[str], judge: Judge | None = None) -> dict[str, tuple[float, Rule]]:
    """Rules by name with their weights, from ``name=weight``.

    Names are those of :data:`RULES`, of the questions that ``judge`` is asked about every answer
    (:data:`starling_nb.policy.rewards.classifier.QUESTIONS`), or ``ask:`` and a question of one's own.

    Raises:
        TuningError: an unknown rule, a question without a judge, or a weight that is no number.
    """
    found: dict[str, tuple[float, Rule]] = {}
    for text in texts:
        name, _, weight = text.rpartition("=") if "=" in text else (text, "", "")
        told, rule = _named(name.strip(), judge)
        try:
            found[told] = (float(weight), rule)
        except ValueError as error:
            raise TuningError(f"rule {text!r}: write a weight in units of the reward's spread, {name}=-0.5") from error
    return found


def _named(name: str, judge: Judge | None) -> tuple[str, Rule]:
    """A rule, and its name within a run: that of a question holds the judge's too, whose verdicts are its own."""
    if name in RULES:
        return name, RULES[name]
    question = QUESTIONS.get(name, name[4:].strip() if name.startswith("ask:") else "")
    if not question:
        raise TuningError(f"unknown rule {name!r}: there are {', '.join([*RULES, *QUESTIONS])}, and ask:<a question>")
    if judge is None:
        raise TuningError(f"rule {name!r} asks a judge: say which one (--judge simulated, or a model's name)")
    return f"{name} ({judge.model})", Asked(judge, question)


def added(rules: Mapping[str, tuple[float, Rule]], rollouts: Sequence[Rollout]) -> None:
    """Give every rollout what all rules together add to its reward, ``by_rule``.

    Raises:
        StarlingError: as :meth:`starling_nb.policy.rewards.classifier.Asked.of_all`.
    """
    conversations, answers = [r.prompt.messages for r in rollouts], [r.text for r in rollouts]
    sums = [0.0] * len(rollouts)
    for weight, rule in rules.values():
        if isinstance(rule, BatchRule):
            worth = rule.of_all(conversations, answers)
        else:
            worth = [rule(*one) for one in zip(conversations, answers, strict=True)]
        sums = [so_far + weight * one for so_far, one in zip(sums, worth, strict=True)]
    for rollout, total in zip(rollouts, sums, strict=True):
        rollout.by_rule = total
