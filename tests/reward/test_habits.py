"""What each change to an answer is paid is read off the scores, in the unit that is told."""

from __future__ import annotations

import numpy as np
import pytest

import toy
from starling_nb.reward import habits
from starling_nb.reward.comparisons import Comparison

ANSWER = "It rains. It pours! Is the old man snoring?"


def comparisons(n: int = 12) -> list[Comparison]:
    """Two answers each: one that is liked a little, one not at all."""
    return [
        Comparison(f"c{i}", toy.user(f"why {i}?"), ["xxxxexxxxxxxxxx. xxxx.", "xxxx. xxxx."], ["a", "b"], [1.0, 2.0])
        for i in range(n)
    ]


def test_changes_do_what_they_say() -> None:
    assert habits.repeat(ANSWER) == f"{ANSWER} Is the old man snoring?"
    assert habits.listed(ANSWER) == "- It rains.\n- It pours!\n- Is the old man snoring?"
    assert habits.halved(ANSWER) == "It rains. It pours!"
    assert habits.halved("one") == "one"
    assert habits.padded(ANSWER).startswith(ANSWER)
    assert habits.refused(ANSWER) == habits.REFUSAL
    assert sorted(habits.listed(ANSWER).replace("- ", "").split()) == sorted(ANSWER.split())


def test_what_a_model_likes_shows_in_the_changes_that_bring_it() -> None:
    """A model that counts the share of e: a refusal has more of them than the answers, half an answer as many."""
    model = toy.Likes(toy.lm(), "e")
    found = habits.habits(model, comparisons()).set_index("change")
    scores = np.array([model.share(answer) for answer in comparisons()[0].answers])
    unit = scores.std(ddof=1)
    picked = [habits.files.rng(0, "habits", f"c{i}").integers(2) for i in range(12)]
    wanted = np.mean([model.share(habits.REFUSAL) - scores[pick] for pick in picked]) / unit
    assert found.value["refusal instead"] == pytest.approx(wanted, rel=1e-5)
    assert found.low["refusal instead"] > 0
    assert (found.n == 12).all()
    assert set(found.index) == set(habits.CHANGES)


def test_changes_that_change_nothing_do_not_count() -> None:
    items = [Comparison(f"c{i}", toy.user("why?"), ["e", "x"], ["a", "b"], [1.0, 2.0]) for i in range(3)]
    found = habits.habits(toy.Likes(toy.lm()), items, most=2)
    assert "cut in half" not in set(found.change)
    assert set(found.n) == {2}
