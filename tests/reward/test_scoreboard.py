"""The scoreboard compares methods on the kinds of pairs that are claimed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import toy
from starling_nb.files import rng
from starling_nb.reward import comparisons, scoreboard, tour
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.metrics import MetricError, pairs
from starling_nb.stats import Interval, wilson
from toy import ROWS


@pytest.fixture
def test_part() -> list[Comparison]:
    return comparisons.by_split(comparisons.of_rows(ROWS), ["writer-cut"])["test"]


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
    n = len(test_part)
    assert scoreboard.cell(table, "right", "all pairs") == Interval(1.0, *wilson(1.0, n), n)
    assert scoreboard.cell(table, "wrong", "held-out responders").value == 0.0
    assert scoreboard.cell(table, "wrong", "kendall_tau").value == -1.0
    assert not table.duplicated(["method", "metric"]).any()
    assert not table.isna().any().any()
    with pytest.raises(MetricError, match="no 'top5' of 'right'"):
        scoreboard.cell(table, "right", "top5")


def test_the_longest_answer_and_the_ceiling_are_always_there(test_part: list[Comparison]) -> None:
    alone = scoreboard.table(test_part, {"flat": [[0.0] * len(c.ranks) for c in test_part]}, ["writer-cut"])
    longest = scoreboard.baselines(test_part, test_part)["longest"]
    given = scoreboard.table(test_part, {"longest": longest}, ["writer-cut"], ceiling=Interval(0.9, 0.8, 0.95, 7))
    pd.testing.assert_frame_equal(
        alone[alone.method == "longest"].reset_index(drop=True), given[given.method == "longest"].reset_index(drop=True)
    )
    assert scoreboard.cell(given, "ceiling", "all pairs") == Interval(0.9, 0.8, 0.95, 7)
    assert scoreboard.cell(alone, "ceiling", "all pairs") == Interval(1.0, 0.5, 1.0, 0)
    assert set(scoreboard.of_pairs(alone).method) == {"flat", "longest", "ceiling"}
    assert scoreboard.cell(alone, "flat", "kendall_tau").value == 0.0
    assert scoreboard.cell(alone, "flat", "length_slope").value == 0.0


def test_length_control_stands_beside_the_raw_accuracy() -> None:
    texts, names = ["a a a a", "b"], ["x", "y"]
    orders = [[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]]
    items = [Comparison(f"c{n}", toy.user("why?"), texts, names, ranks) for n, ranks in enumerate(orders)]
    board = scoreboard.table(items, {"right": oracle(items)}, [])
    assert scoreboard.cell(board, "longest", "all pairs").value == pytest.approx(2 / 3)
    assert scoreboard.cell(board, "longest", "length_controlled").value == 0.5
    assert scoreboard.cell(board, "right", "length_controlled").value == 1.0


def test_figures_that_the_pairs_cannot_give_have_no_row() -> None:
    item = Comparison("c", toy.user("why?"), ["a a", "b"], ["x", "y"], [1.0, 2.0])
    board = scoreboard.table([item], {"m": [[1.0, 0.0]]}, ["z"])
    assert "length_controlled" not in set(board.metric)
    assert "held_out_responders" not in set(board.metric)
    with pytest.raises(MetricError, match="no pair of the kind"):
        scoreboard.lead([item], {"m": [[1.0, 0.0]]}, "m", "m", "held-out responders", ["z"])


def test_a_lead_is_paired(test_part: list[Comparison]) -> None:
    scores = {"right": oracle(test_part), "wrong": oracle(test_part, -1.0)}
    gap = scoreboard.lead(test_part, scores, "right", "wrong", "all pairs", [])
    assert 0.5 < gap.low < gap.value == gap.high == 1.0
    same = scoreboard.lead(test_part, scores, "right", "right", "same model", [])
    assert -0.5 < same.low < same.value == 0.0 < same.high == -same.low


def test_leads_are_on_the_kinds_of_pairs_that_there_are(test_part: list[Comparison]) -> None:
    wrong = oracle(test_part, -1.0)
    scores = {"k_wise": oracle(test_part), "longest": wrong, "surface": oracle(test_part)}
    found = {name: gap for name, _, gap in scoreboard.leads(test_part, scores, ["writer-cut"])}
    kinds = ("pairwise_accuracy", "held_out_responders", "same_model_same_length")
    assert set(found) == {f"beats_{rival}.{kind}" for rival in ("longest", "surface") for kind in kinds}
    assert {name: gap.value for name, gap in found.items()} == {name: float("longest" in name) for name in found}
    elsewhere = [replace(one, responders=[f"model {i}" for i in range(4)]) for one in test_part]
    found = {name: gap for name, _, gap in scoreboard.leads(elsewhere, scores, ["writer-cut"])}
    assert set(found) == {"beats_longest.pairwise_accuracy", "beats_surface.pairwise_accuracy"}


def test_baselines_score_every_answer(test_part: list[Comparison]) -> None:
    train = comparisons.by_split(comparisons.of_rows(ROWS), ["writer-cut"])["train"]
    found = scoreboard.baselines(train, test_part)
    assert set(found) == {"longest", "surface"}
    for scores in found.values():
        assert [len(values) for values in scores] == [len(item.answers) for item in test_part]
    assert found["longest"][0] == [float(len(answer.split())) for answer in test_part[0].answers]


def test_relative_losses_start_at_one() -> None:
    history = pd.DataFrame({"method": ["a", "a", "b", "b"], "loss": [4.0, 1.0, 0.5, 0.25]})
    assert tour.relative_loss(history).loss.tolist() == [1.0, 0.25, 1.0, 0.5]


def test_the_smallest_difference_is_found_four_times_in_five() -> None:
    draw, prompts, size = rng(1, "test"), 60, 5
    names = np.repeat(np.arange(prompts), size)

    def sample() -> np.ndarray:
        return np.repeat(draw.normal(0, 0.3, prompts), size) + draw.normal(0, 0.2, prompts * size)

    errors = [scoreboard.smallest_difference(sample(), names) / 2.8016 for _ in range(200)]
    truth = math.sqrt((0.3**2 + 0.2**2 / size) / prompts)
    assert np.mean(errors) == pytest.approx(truth, rel=0.03)
    seen = [abs(np.mean(sample()) + 2.8016 * truth) > 1.96 * truth for _ in range(600)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.05)
    single = scoreboard.smallest_difference([0.0, 1.0, 1.0, 0.0], [*"abcd"])
    assert single == pytest.approx(2.8016 * math.sqrt(1 / 3) / 2, rel=1e-4)


def test_the_smallest_lead_is_that_of_the_paired_pairs(test_part: list[Comparison]) -> None:
    first_wrong = [[-1.0 if n == 0 else 1.0 for _ in c.ranks] for n, c in enumerate(test_part)]
    mixed = [
        [-sign * r for sign, r in zip(s, c.ranks, strict=True)] for s, c in zip(first_wrong, test_part, strict=True)
    ]
    scores = {"right": oracle(test_part), "mixed": [[-x for x in row] for row in mixed]}
    found = scoreboard.smallest_lead(test_part, scores, "right", "mixed", "all pairs", [])
    gap = np.array([0.0] * 6 + [1.0] * 6 * (len(test_part) - 1))
    clusters = np.repeat(np.arange(len(test_part)), 6)
    assert found == pytest.approx(scoreboard.smallest_difference(gap, clusters))
    assert found > 0
    assert scoreboard.smallest_lead(test_part, scores, "right", "right", "all pairs", []) == 0.0
    for arguments in (([1.0, 2.0], ["a", "a"]), ([1.0], ["a", "b"]), ([], [])):
        with pytest.raises(MetricError, match="two prompts or more"):
            scoreboard.smallest_difference(*arguments)


def test_warnings_of_flat_scores() -> None:
    assert scoreboard.flat_scores([[1.0, 1.01], [5.0, 5.0]]) is None
    for scores, told in [
        ([[1.0, 1.0, 1.0], [9.0, 9.0]], "learned nothing"),
        ([[1.0, 1.0005], [9.0, 9.0]], "learned nothing"),
        ([[1.0, math.nan]], "not finite"),
        ([[1.0], [2.0]], "no prompt has two scores"),
        ([], "no prompt has two scores"),
    ]:
        warning = scoreboard.flat_scores(scores)
        assert warning is not None
        assert told in warning


def test_warnings_of_an_accuracy_at_chance() -> None:
    assert scoreboard.at_chance(Interval(0.6, 0.51, 0.7, 90)) is None
    assert "worse than chance" in (scoreboard.at_chance(Interval(0.4, 0.3, 0.49, 90)) or "")
    chance = scoreboard.at_chance(Interval(0.52, 0.48, 0.56, 90))
    assert chance is not None
    assert "0.520 [0.480, 0.560] may be chance" in chance
    single = scoreboard.at_chance(Interval(1.0, math.nan, math.nan, 1))
    assert single is not None
    assert "no interval" in single


def test_warnings_name_the_method_that_learned_nothing(test_part: list[Comparison]) -> None:
    flat = [[1.0 + 1e-6 * i for i, _ in enumerate(item.answers)] for item in test_part]
    coin = [[(i * 7 + n) % 4 * 1.0 for i, _ in enumerate(item.answers)] for n, item in enumerate(test_part)]
    scores = {"fine": oracle(test_part), "flat": flat, "coin": coin}
    board = scoreboard.table(test_part, scores, [])
    told = scoreboard.warnings_of(board, scores, list(scores))
    assert not any(text.startswith("fine") for text in told)
    assert any(text.startswith("flat: scores of one prompt") for text in told)
    assert any(text.startswith("coin: the accuracy of") for text in told)
