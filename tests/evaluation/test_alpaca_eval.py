from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_nb.evaluation import EvaluationError, alpaca_eval
from starling_nb.evaluation.alpaca_eval import Instruction, PreferenceError
from starling_nb.judge import Outcome

INSTRUCTIONS = [Instruction(f"i{n}", "chat", [{"role": "user", "content": f"Say {n}."}], {}) for n in range(40)]
OLD = {i.id: f"old {i.id}" for i in INSTRUCTIONS}
NEW = {i.id: f"new answer {i.id}" for i in INSTRUCTIONS}


def outcome(id: str, value: float | None, reply: str = "") -> Outcome[float]:
    return Outcome(id, value, None if value is not None else "PreferenceError: none", reply, {}, False)


def table(*preferences: float) -> pd.DataFrame:
    return pd.DataFrame({"preference": preferences})


def test_embedded_instructions_and_the_official_file(tmp_path: Path) -> None:
    assert len(alpaca_eval.load()) == 88
    official = tmp_path / "alpaca_eval.json"
    official.write_text(json.dumps([{"instruction": "Hi?", "output": "x", "dataset": "koala"}] * 2))
    first, second = alpaca_eval.load(official)
    assert (first.text, first.family) == ("Hi?", "koala")
    assert first.id != second.id
    official.write_text(json.dumps([{"question": "Hi?"}]))
    with pytest.raises(EvaluationError, match="instruction"):
        alpaca_eval.load(official)


def test_win_rate_is_the_official_one() -> None:
    rate = alpaca_eval.win_rate(table(2.0, 1.0, 1.5, 2.0, math.nan, 0.0, 1.083173))
    shares = [1.0, 0.0, 0.5, 1.0, 0.5, 0.083173]  # 0 is a tie; the missing one is left out
    assert rate.win_rate == pytest.approx(100 * np.mean(shares))
    assert rate.standard_error == pytest.approx(100 * pd.Series(shares).sem())
    assert (rate.n, rate.dropped) == (6, 1)
    assert rate.low < rate.win_rate < rate.high
    assert math.isnan(rate.length)
    assert math.isnan(rate.baseline_length)


@pytest.mark.parametrize("bad", [table(2.5), table(1.0, -1.0), table(math.nan), pd.DataFrame({"score": [1.0]})])
def test_annotations_without_usable_preferences_are_refused(bad: pd.DataFrame) -> None:
    with pytest.raises(EvaluationError, match="preference"):
        alpaca_eval.win_rate(bad)


def test_leaderboard_rows_are_met_from_the_official_annotations(real_data: Path) -> None:
    judged = pd.read_parquet(real_data / "alpaca_eval" / "judgments.parquet")
    board = pd.read_parquet(real_data / "alpaca_eval" / "leaderboard_v2_weighted_gpt4_turbo.parquet")
    judged = judged[judged["annotator"] == "gpt4_turbo_weighted"]
    seen = 0
    for model, rows in judged.groupby("model"):
        official = board.loc[board["model"] == model, "win_rate"]
        if len(rows) > 500 and len(official):
            rate = alpaca_eval.win_rate(rows)  # the rows at hand are three quarters of the official ones
            assert abs(rate.win_rate - float(official.iloc[0])) < 4 * rate.standard_error * math.sqrt(1 / 3) + 0.05
            seen += 1
    assert seen >= 20


@given(st.text(), st.sampled_from([("[[A]]", 0.0), ("[[B]]", 1.0), ("[[tie]]", 0.5)]))
def test_a_verdict_on_the_last_line_is_read(reasons: str, verdict: tuple[str, float]) -> None:
    assert alpaca_eval.parse(f"{reasons}\n{verdict[0]}\n") == verdict[1]


@pytest.mark.parametrize("reply", ["", "A", "[[C]]", "[[A]] or [[B]]", "[[A]]\nNo, wait.", "[[a]]", "[[A, B]]"])
def test_other_replies_are_refused(reply: str) -> None:
    with pytest.raises(PreferenceError):
        alpaca_eval.parse(reply)


def test_orders_are_drawn_by_item_recorded_and_mapped_back() -> None:
    asked = alpaca_eval.requests(INSTRUCTIONS, OLD, NEW, seed=1)
    again = alpaca_eval.requests(INSTRUCTIONS[::-1], OLD, NEW, seed=1)[::-1]
    assert [request.id for request in asked] == [request.id for request in again]
    orders = [request.id[-2:] for request in asked]
    assert 8 < orders.count("12") < 32
    for request in asked:
        text = request.messages[1]["content"]
        model_first = text.index("new answer") < text.index("old ")
        assert model_first == request.id.endswith("/21")
        assert request.parse("[[A]]") == (2.0 if model_first else 1.0)
        assert request.parse("[[B]]") == (1.0 if model_first else 2.0)
        assert request.parse("[[tie]]") == 1.5


def test_both_orders_average_and_need_each_other() -> None:
    three = INSTRUCTIONS[:3]
    asked = alpaca_eval.requests(three, OLD, NEW, orders="both")
    assert [r.id for r in asked] == [f"i{n}/{order}" for n in range(3) for order in ("12", "21")]
    outcomes = [
        *[outcome("i0/12", 2.0, "x"), outcome("i0/21", 1.0, "y")],
        *[outcome("i1/12", 2.0), outcome("i1/21", None)],
        outcome("i2/12", 2.0),  # the other order was never asked
    ]
    rows = alpaca_eval.annotate(three, OLD, NEW, outcomes)
    assert rows["preference"].iloc[0] == 1.5
    assert rows["preference"].isna().tolist() == [False, True, True]
    assert rows["raw_completion"].iloc[0] == "x\n\ny"


def test_annotations_have_the_official_columns_and_keep_the_order() -> None:
    three = INSTRUCTIONS[:3]
    same = NEW | {"i1": OLD["i1"]}
    assert [r.id[:2] for r in alpaca_eval.requests(three, OLD, same)] == [
        "i0",
        "i2",
    ]  # equal answers: no question
    outcomes = [outcome("i2/21", 2.0, "b"), outcome("i0/12", 1.0, "a")]
    rows = alpaca_eval.annotate(three, OLD, same, outcomes, generators=("start", "tuned"), annotator="judge")
    assert list(rows.columns) == [
        *["instruction", "output_1", "generator_1", "output_2", "generator_2"],
        *["dataset", "annotator", "preference", "raw_completion"],
    ]
    assert rows["instruction"].tolist() == ["Say 0.", "Say 1.", "Say 2."]
    assert rows["preference"].tolist() == [1.0, 1.5, 2.0]
    assert rows["output_1"].tolist() == [OLD[f"i{n}"] for n in range(3)]
    assert set(rows["generator_1"]) == {"start"}
    assert set(rows["generator_2"]) == {"tuned"}
    rate = alpaca_eval.win_rate(rows)
    assert (rate.baseline_length, rate.length) == (6.0, pytest.approx((13 + 6 + 13) / 3))
    with pytest.raises(EvaluationError, match="i0 has no verdict"):
        alpaca_eval.annotate(three, OLD, NEW, outcomes[:1])


def test_missing_answers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="i0 lacks an answer"):
        alpaca_eval.requests(INSTRUCTIONS, {}, NEW)
    with pytest.raises(EvaluationError, match="i0 has no answer"):
        alpaca_eval.write_model_outputs(tmp_path / "x.json", INSTRUCTIONS, {}, generator="m")
    assert not list(tmp_path.iterdir())


def test_model_outputs_have_the_official_form(tmp_path: Path) -> None:
    path = tmp_path / "model_outputs.json"
    alpaca_eval.write_model_outputs(path, INSTRUCTIONS[:2], NEW, generator="tuned", dataset="own")
    assert json.loads(path.read_text()) == [
        {"dataset": "own", "instruction": f"Say {n}.", "output": f"new answer i{n}", "generator": "tuned"}
        for n in range(2)
    ]
