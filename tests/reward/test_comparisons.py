"""From Nectar rows to comparisons that give no rank away, and the scoreboard that compares methods."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

import toy
from starling_nb import chat
from starling_nb.nectar import prompts
from starling_nb.reward import comparisons
from starling_nb.reward.metrics import pairs
from starling_nb.reward.training import Comparison
from starling_nb.stats import Interval

NAMES = ["smollm2-cool", "smollm2-brief", "writer-cut", "writer-reference"]


def row(question: str, best_first: list[str] = NAMES) -> dict[str, Any]:
    """A Nectar row whose answers stand in rank order; the answer's words are its place."""
    answers = [
        {"answer": " ".join(["word"] * (rank + 2)) + f" {name}", "model": name, "rank": float(rank)}
        for rank, name in enumerate(best_first, 1)
    ]
    prompt = chat.nectar_text(toy.user(question))
    return {"prompt": prompt, "answers": answers, "turns": 1, "num_responses": 4, "source": ["x"], "good_natured": True}


ROWS = [row(f"question {i}?", NAMES if i % 3 else NAMES[::-1]) for i in range(40)]


def test_the_order_of_answers_gives_no_rank_away() -> None:
    one, other = comparisons.of_rows([row("why?"), row("why?", NAMES[::-1])])
    assert one.responders == other.responders == sorted(NAMES)
    assert one.ranks == [2.0, 1.0, 3.0, 4.0]
    assert other.ranks == [3.0, 4.0, 2.0, 1.0]
    assert one.messages == toy.user("why?")
    assert one.prompt_id == prompts.key(toy.user("why?"))
    shuffled = row("why?") | {"answers": row("why?")["answers"][::-1]}
    assert comparisons.of_rows([shuffled]) == [one]


def test_without_some_responders_ranks_close_up() -> None:
    whole = comparisons.of_rows([row("why?")])[0]
    kept = comparisons.without(whole, ["smollm2-cool", "writer-cut"])
    assert kept.responders == ["smollm2-brief", "writer-reference"]
    assert kept.ranks == [1.0, 2.0]
    assert kept.answers == [whole.answers[whole.responders.index(name)] for name in kept.responders]


def test_splits_follow_the_prompt_and_training_never_sees_held_out_responders() -> None:
    parts = comparisons.split(ROWS, ["writer-cut"])
    assert sum(map(len, parts.values())) == len(ROWS)
    assert all(parts.values())
    for name, items in parts.items():
        for item in items:
            assert prompts.split_of(item.messages) == name
            assert ("writer-cut" in item.responders) == (name != "train")
            assert sorted(item.ranks) == [float(i + 1) for i in range(len(item.ranks))]


@pytest.fixture
def test_part() -> list[Comparison]:
    return comparisons.split(ROWS, ["writer-cut"])["test"]


def oracle(items: list[Comparison], sign: float = 1.0) -> list[list[float]]:
    return [[-sign * rank for rank in item.ranks] for item in items]


def test_kinds_of_pairs(test_part: list[Comparison]) -> None:
    table = pairs(test_part, oracle(test_part))
    found = comparisons.kinds(table, ["writer-cut"])
    assert len(found["all pairs"]) == 6 * len(test_part)
    assert len(found["held-out responders"]) == 3 * len(test_part)
    assert len(found["same model"]) == len(test_part)
    held = found["held-out responders"]
    assert ((held.responder_better == "writer-cut") | (held.responder_worse == "writer-cut")).all()


def test_the_scoreboard_and_its_cells(test_part: list[Comparison]) -> None:
    scores = {"right": oracle(test_part), "wrong": oracle(test_part, -1.0)}
    table = comparisons.scoreboard(test_part, scores, ["writer-cut"])
    assert comparisons.cell(table, "right", "all pairs") == Interval(1.0, 1.0, 1.0, len(test_part))
    assert comparisons.cell(table, "wrong", "held-out responders").value == 0.0
    assert comparisons.cell(table, "wrong", "kendall_tau").value == -1.0
    assert not table.duplicated(["method", "metric"]).any()


def test_a_lead_is_paired(test_part: list[Comparison]) -> None:
    scores = {"right": oracle(test_part), "wrong": oracle(test_part, -1.0)}
    gap = comparisons.lead(test_part, scores, "right", "wrong", "all pairs", [])
    assert (gap.value, gap.low, gap.high) == (1.0, 1.0, 1.0)
    same = comparisons.lead(test_part, scores, "right", "right", "same model", [])
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_baselines_score_every_answer(test_part: list[Comparison]) -> None:
    train = comparisons.split(ROWS, ["writer-cut"])["train"]
    found = comparisons.baselines(train, test_part)
    assert set(found) == {"longest", "surface"}
    for scores in found.values():
        assert [len(values) for values in scores] == [len(item.answers) for item in test_part]
    assert found["longest"][0] == [float(len(answer.split())) for answer in test_part[0].answers]


def test_relative_losses_start_at_one() -> None:
    history = pd.DataFrame({"method": ["a", "a", "b", "b"], "loss": [4.0, 1.0, 0.5, 0.25]})
    assert comparisons.relative_loss(history).loss.tolist() == [1.0, 0.25, 1.0, 0.5]


def test_offsets_are_the_mean_scores_of_each_prompt(test_part: list[Comparison]) -> None:
    scores = [[float(i + j) for j in range(len(c.answers))] for i, c in enumerate(test_part)]
    found = comparisons.offsets(test_part, scores)
    assert set(found) == {c.prompt_id for c in test_part}
    for i, comparison in enumerate(test_part):
        assert found[comparison.prompt_id] == pytest.approx(i + (len(comparison.answers) - 1) / 2)
