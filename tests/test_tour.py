"""The whole chain on a handful of prompts: learn a reward from rankings, choose the best of a few answers."""

from __future__ import annotations

from typing import Any

import pytest

import toy
from starling_nb import chat, rubric, tour
from starling_nb.nectar import prompts
from starling_nb.nectar.dataset import Candidates

PROMPTS = [prompt for prompt in prompts.load() if prompt.split == "train"][:30]
CANDIDATES = [Candidates(p, ["writer-reference", "writer-flawed"], [p.reference, p.flawed]) for p in PROMPTS]


def test_examples_are_simple_and_chosen_by_seed() -> None:
    found = tour.examples(CANDIDATES, 4, seed=0)
    assert len(found) == 4
    assert all(item.prompt.turns == 1 and item.prompt.good_natured for item in found)
    assert found == tour.examples(CANDIDATES, 4, seed=0)
    assert found != tour.examples(CANDIDATES, 4, seed=1)
    assert [CANDIDATES.index(item) for item in found] == sorted(CANDIDATES.index(item) for item in found)


def test_answers_are_shown_with_their_responders(capsys: pytest.CaptureFixture[str]) -> None:
    table = tour.show_answers(CANDIDATES[0])
    assert table.responder.tolist() == ["writer-reference", "writer-flawed"]
    assert table.words.tolist() == [len(answer.split()) for answer in CANDIDATES[0].answers]
    assert PROMPTS[0].messages[-1]["content"] in capsys.readouterr().out


def row(item: Candidates) -> dict[str, Any]:
    answers = [
        {"answer": a, "model": m, "rank": n + 1.0}
        for n, (a, m) in enumerate(zip(item.answers, item.models, strict=True))
    ]
    return {"prompt": chat.nectar_text(item.prompt.messages), "answers": answers}


def test_a_reward_is_learned_from_a_few_rankings() -> None:
    few = tour.examples(CANDIDATES, 4, seed=0)
    reward, losses = tour.learn(toy.lm(), [row(item) for item in few], seed=0)
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    scores = reward.score([[*few[0].prompt.messages, {"role": "assistant", "content": a}] for a in few[0].answers])
    assert scores[0] != scores[1]


def test_the_best_answer_is_the_one_with_the_highest_reward() -> None:
    lm = toy.lm(seed=3)
    few = tour.examples(CANDIDATES, 3, seed=0)
    table = tour.best_answers(lm, toy.Likes(lm, "aeiou"), few, n=5, seed=0, max_new_tokens=12)
    assert table.prompt.tolist() == [item.prompt.messages[-1]["content"] for item in few]
    likes = toy.Likes(lm, "aeiou")
    for record, item in zip(table.to_dict("records"), few, strict=True):
        first, chosen = (likes.share(record[f"{which}_answer"]) for which in ("first", "chosen"))
        assert chosen >= first
        grade = rubric.grade(item.prompt.rubric, item.prompt.messages, record["chosen_answer"])
        assert record["chosen_quality"] == grade.utility
    again = tour.best_answers(lm, likes, few[1:2], n=5, seed=0, max_new_tokens=12)
    assert again.to_dict("records") == table[1:2].to_dict("records")
    assert (table.first_answer != table.chosen_answer).any()
