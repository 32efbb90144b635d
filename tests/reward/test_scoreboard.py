"""The scoreboard compares methods on the kinds of pairs that are claimed."""

from __future__ import annotations

import pandas as pd
import pytest

from starling_nb.reward import comparisons, scoreboard, tour
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.metrics import pairs
from starling_nb.stats import Interval
from toy import ROWS


@pytest.fixture
def test_part() -> list[Comparison]:
    return comparisons.split(ROWS, ["writer-cut"])["test"]


def oracle(items: list[Comparison], sign: float = 1.0) -> list[list[float]]:
    return [[-sign * rank for rank in item.ranks] for item in items]


def test_kinds_of_pairs(test_part: list[Comparison]) -> None:
    table = pairs(test_part, oracle(test_part))
    found = scoreboard.kinds(table, ["writer-cut"])
    assert len(found["all pairs"]) == 6 * len(test_part)
    assert len(found["held-out responders"]) == 3 * len(test_part)
    assert len(found["same model"]) == len(test_part)
    held = found["held-out responders"]
    assert ((held.responder_better == "writer-cut") | (held.responder_worse == "writer-cut")).all()


def test_the_scoreboard_and_its_cells(test_part: list[Comparison]) -> None:
    scores = {"right": oracle(test_part), "wrong": oracle(test_part, -1.0)}
    table = scoreboard.table(test_part, scores, ["writer-cut"])
    assert scoreboard.cell(table, "right", "all pairs") == Interval(1.0, 1.0, 1.0, len(test_part))
    assert scoreboard.cell(table, "wrong", "held-out responders").value == 0.0
    assert scoreboard.cell(table, "wrong", "kendall_tau").value == -1.0
    assert not table.duplicated(["method", "metric"]).any()


def test_a_lead_is_paired(test_part: list[Comparison]) -> None:
    scores = {"right": oracle(test_part), "wrong": oracle(test_part, -1.0)}
    gap = scoreboard.lead(test_part, scores, "right", "wrong", "all pairs", [])
    assert (gap.value, gap.low, gap.high) == (1.0, 1.0, 1.0)
    same = scoreboard.lead(test_part, scores, "right", "right", "same model", [])
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_baselines_score_every_answer(test_part: list[Comparison]) -> None:
    train = comparisons.split(ROWS, ["writer-cut"])["train"]
    found = scoreboard.baselines(train, test_part)
    assert set(found) == {"longest", "surface"}
    for scores in found.values():
        assert [len(values) for values in scores] == [len(item.answers) for item in test_part]
    assert found["longest"][0] == [float(len(answer.split())) for answer in test_part[0].answers]


def test_relative_losses_start_at_one() -> None:
    history = pd.DataFrame({"method": ["a", "a", "b", "b"], "loss": [4.0, 1.0, 0.5, 0.25]})
    assert tour.relative_loss(history).loss.tolist() == [1.0, 0.25, 1.0, 0.5]
