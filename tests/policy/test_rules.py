"""Rules tell what they say they tell, and their weights are read from text."""

from __future__ import annotations

import pytest

import toy
from starling_nb.models import Sample
from starling_nb.policy.recipe import TuningError
from starling_nb.policy.rewards import rules
from starling_nb.policy.rollouts import Rollout


def test_refusals_and_repetitions_are_told() -> None:
    asked = toy.user("How do I bake bread?")
    assert rules.declines(asked, "I'm sorry, but I can't help with that.") > 0.8
    assert rules.declines(asked, "Mix flour, water and yeast, wait, and bake.") < 0.2
    assert rules.repeats(asked, "Mix the flour with the water. " * 6) > 0.5
    assert rules.repeats(asked, "Mix flour, water and yeast, wait, and bake.") < 0.1
    assert rules.repeats(asked, " ") == 0.0


def test_weights_are_read_and_add_up() -> None:
    found = rules.weighted(["declines=-0.5", "repeats=-1"])
    assert {name: weight for name, (weight, _) in found.items()} == {"declines": -0.5, "repeats": -1.0}
    texts = "I'm sorry, but I can't help with that.", "Mix the flour with the water. " * 6
    rollouts = [Rollout(prompt, Sample([]), text) for prompt, text in zip(toy.prompts("ab"), texts, strict=True)]
    rules.added(found, rollouts)
    for rollout in rollouts:
        due = -0.5 * rules.declines([], rollout.text) - rules.repeats([], rollout.text)
        assert rollout.by_rule == pytest.approx(due)
        assert due < -0.4
    rules.added({}, rollouts)
    assert [rollout.by_rule for rollout in rollouts] == [0.0, 0.0]


def test_a_rule_may_look_at_all_answers_together() -> None:
    class Longest:
        def of_all(self, conversations: object, answers: list[str]) -> list[float]:
            return [float(len(answer) == max(map(len, answers))) for answer in answers]

    rollouts = [Rollout(prompt, Sample([]), prompt.messages[0]["content"]) for prompt in toy.prompts(toy.QUESTIONS)]
    rules.added({"longest": (2.0, Longest()), "one by one": (1.0, lambda _, text: text.count("w") / 10)}, rollouts)
    assert [rollout.by_rule for rollout in rollouts] == pytest.approx([0.1, 0.1, 0.1, 0.1, 2.0, 0.1])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("polite=1", "there are declines, repeats, refuses_harmless, helps_harm, and ask:"),
        ("ask: =1", "unknown rule"),
        ("task:why?=1", "unknown rule"),
        ("repeats=much", "write a weight"),
        ("repeats", "write a weight"),
        ("helps_harm=-1", "asks a judge: say which one"),
        ("ask:Is it polite?=1", "asks a judge: say which one"),
    ],
)
def test_what_is_no_rule_is_refused(text: str, told: str) -> None:
    with pytest.raises(TuningError, match=told):
        rules.weighted([text])
