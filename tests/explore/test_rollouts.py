"""Answers side by side: the largest gain first, every token with what it adds, nothing that could run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import toy
from starling_nb.explore import rollouts
from starling_nb.models import LM
from starling_nb.policy.rollouts import Rollout, collect


@pytest.fixture(scope="module")
def lm() -> LM:
    return toy.lm(seed=3)


@pytest.fixture(scope="module")
def rolled(lm: LM) -> list[Rollout]:
    return collect(lm, toy.prompts(toy.QUESTIONS)[:3], ["a", "b", "c"], seed=0, max_new_tokens=12)


def test_pairs_stand_by_gain_and_their_tokens_make_the_answers(lm: LM, rolled: list[Rollout]) -> None:
    start, tuned = pd.DataFrame({"utility": [5.0, 2.0, 3.0]}), pd.DataFrame({"utility": [4.0, 6.0, 3.5]})
    found = rollouts.pairs(lm, rolled, rolled[::-1], start, tuned)
    assert [pair.prompt for pair in found] == [rolled[i].prompt.messages[-1]["content"] for i in (1, 2, 0)]
    assert [pair.after.quality - pair.before.quality for pair in found] == [4.0, 0.5, -1.0]
    assert found[0].before.text == rolled[1].text
    assert found[1].after.text == rolled[0].text
    pages = rollouts.pages(found)
    assert pages.search(rolled[1].prompt.messages[-1]["content"]) == 1


def test_a_token_is_coloured_by_what_it_adds_to_the_reading(lm: LM, rolled: list[Rollout]) -> None:
    n = len(rolled[0].sample.ids)
    readings = torch.arange(n).float().square()
    told = rollouts._told(lm, replace(rolled[0], means=readings, score=1.5), 7.0)
    assert [step for _, step in told.tokens] == [0.0, *[2.0 * i + 1 for i in range(n - 1)]]
    falling = replace(told, tokens=[("good ", 0.5), ("<bad>", -1.0)])
    text = rollouts.drawn(rollouts.Pair("What <now>?", told, falling))
    assert "What &lt;now&gt;?" in text
    assert "&lt;bad&gt;" in text
    assert "before: quality 7.0, reward +1.50" in text
    assert f'rgba({rollouts.LOWERS}, {rollouts.STRONGEST / (2 * n - 3):.2f})" title="-1.000"' in text


def test_a_character_of_several_tokens_is_said_by_the_last(lm: LM, rolled: list[Rollout]) -> None:
    parts = {1: "a", 2: "a\ufffd", 3: "a\ufffd", 4: "a日", 5: "a日b"}
    ids = rolled[0].sample.ids[:5]
    chat = SimpleNamespace(decode=lambda ids: parts[len(ids)])
    told = rollouts._told(replace(lm, chat=chat), replace(rolled[0], sample=replace(rolled[0].sample, ids=ids)), 1.0)  # type: ignore[arg-type]
    assert [token for token, _ in told.tokens] == ["a", "", "", "日", "b"]
    assert told.text == "a日b"


def test_answers_without_readings_are_shown_plain(lm: LM, rolled: list[Rollout]) -> None:
    told = rollouts._told(lm, rolled[0], 5.0)
    assert {step for _, step in told.tokens} == {0.0}
    assert ", 0.00)" in rollouts.drawn(rollouts.Pair("What?", told, told))
