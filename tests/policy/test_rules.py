"""Rules tell what they say they tell, and their weights are read from text."""

from __future__ import annotations

import pytest

import toy
from starling_nb.policy import rules
from starling_nb.policy.recipe import TuningError


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
    refused = "I'm sorry, but I can't help with that."
    assert rules.added(found, toy.user("why?"), refused) == pytest.approx(
        -0.5 * rules.declines([], refused) - rules.repeats([], refused)
    )
    assert rules.added({}, toy.user("why?"), refused) == 0.0


@pytest.mark.parametrize(
    ("text", "told"), [("polite=1", "there are declines, repeats"), ("repeats=much", "write a weight")]
)
def test_what_is_no_rule_is_refused(text: str, told: str) -> None:
    with pytest.raises(TuningError, match=told):
        rules.weighted([text])
