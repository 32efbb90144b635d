from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_nb import fetch
from starling_nb.evaluation import EvaluationError, alpaca_eval
from starling_nb.evaluation.alpaca_eval import Instruction, PreferenceError
from starling_nb.evaluation.alpaca_eval import formats as alpaca_files
from starling_nb.evaluation.published import leaderboard
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


@pytest.mark.parametrize("bad", [table(2.5), table(-1.0), table(), table(math.nan), pd.DataFrame({"score": [1.0]})])
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


def test_a_win_rate_says_what_it_left_out() -> None:
    rows = alpaca_eval.annotate(INSTRUCTIONS[:4], OLD, NEW, [outcome(f"i{n}/12", 1.0 + n / 4) for n in range(4)])
    clean = alpaca_eval.win_rate(rows)
    assert (clean.excluded, clean.dropped, clean.wins, clean.losses, clean.ties) == ({}, 0, 1, 2, 1)
    assert clean.discrete_win_rate == 37.5
    other = rows.assign(generator_2="another", preference=2.0)
    base = rows.assign(generator_1="another", preference=2.0)
    broken = rows.assign(instruction=[f"n{n}" for n in range(4)], preference=[None, 3.0, "yes", math.nan])
    twice = pd.concat([rows.iloc[:1].assign(instruction="t", preference=p) for p in (1.0, 2.0)])
    parts = [rows, other, base, broken, rows.iloc[:2], twice]
    mixed = pd.concat([part.astype({"preference": object}) for part in parts]).sample(frac=1.0, random_state=1)
    with pytest.raises(EvaluationError, match=r"generator_2 holds 2 names .* choose by generator="):
        alpaca_eval.win_rate(mixed)
    with pytest.raises(EvaluationError, match="choose by baseline="):
        alpaca_eval.win_rate(mixed, generator="model")
    with pytest.raises(EvaluationError, match="generator='nobody' is not in the column generator_2"):
        alpaca_eval.win_rate(mixed, generator="nobody")
    found = alpaca_eval.win_rate(mixed, generator="model", baseline="baseline")
    assert (found.win_rate, found.n) == (clean.win_rate, 4)
    assert found.excluded == {
        "other generator": 4,
        "other baseline": 4,
        "copy of a row": 2,
        "judged twice with different results": 2,
        "no preference": 2,
        "preference is no number": 1,
        "preference outside 1 to 2": 1,
    }
    assert found.dropped == len(mixed) - 4
    with pytest.raises(EvaluationError, match="no preference: 4"):
        alpaca_eval.win_rate(rows.assign(preference=math.nan))


def test_annotations_and_outputs_survive_their_files(tmp_path: Path) -> None:
    rows = alpaca_eval.annotate(INSTRUCTIONS[:2], OLD, NEW, [outcome("i0/12", 1.25), outcome("i1/12", None)])
    alpaca_files.write_annotations(tmp_path / "annotations.json", rows)
    assert json.loads((tmp_path / "annotations.json").read_text())[1]["preference"] is None
    back = alpaca_files.read_annotations(tmp_path / "annotations.json")
    pd.testing.assert_frame_equal(back[list(rows.columns)], rows)
    with pytest.raises(EvaluationError, match="no column annotator in annotations"):
        alpaca_files.write_annotations(tmp_path / "x.json", rows.drop(columns="annotator"))
    (tmp_path / "x.json").write_text(json.dumps([{"instruction": "a", "preference": 1.0}]))
    with pytest.raises(EvaluationError, match="no column output_1, output_2"):
        alpaca_files.read_annotations(tmp_path / "x.json")
    path = tmp_path / "model_outputs.json"
    alpaca_eval.write_model_outputs(path, INSTRUCTIONS[:3], NEW, generator="m")
    order = ["Say 2.", "Say 0.", "Say 1."]
    assert alpaca_files.read_outputs(path, order)["output"].tolist() == [NEW["i2"], NEW["i0"], NEW["i1"]]
    with pytest.raises(EvaluationError, match="1 rows are about other instructions, 0 stand there again and 0"):
        alpaca_files.read_outputs(path, order[:2])
    with pytest.raises(EvaluationError, match="1 instructions have no row"):
        alpaca_files.read_outputs(path, [*order, "Say more."])
    path.write_text(json.dumps([{"instruction": "a", "output": None}]))
    with pytest.raises(EvaluationError, match="1 rows have no text in output"):
        alpaca_files.read_outputs(path)
    path.write_text(json.dumps([{"instruction": "a", "output": "x", "generator": g} for g in "ab"]))
    with pytest.raises(EvaluationError, match="answers of 2 models"):
        alpaca_files.read_outputs(path)
    path.write_text("{}")
    with pytest.raises(EvaluationError, match="list of records"):
        alpaca_files.read_outputs(path)


def test_weighted_preference() -> None:
    assert alpaca_files.weighted_preference({"m": -0.1, "M": -2.5}) == pytest.approx(1.083173, abs=5e-7)
    assert alpaca_files.weighted_preference({"m": -3.0, "M": -0.05, "The": -9.0}) == pytest.approx(1.950263, abs=5e-7)
    assert alpaca_files.weighted_preference({"m": -3.0}) == 1.0
    assert alpaca_files.weighted_preference({"M": -3.0}) == pytest.approx(2.0)
    assert math.isnan(alpaca_files.weighted_preference({"Both": -0.1}))
    assert alpaca_files.weighted_preference({"m": -0.1, "M": -2.5}, "M", "m") == pytest.approx(3 - 1.083173, abs=5e-7)


def test_a_model_is_placed_on_the_leaderboard_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "alpaca_eval-0-py3-none-any.whl"
    board = ",win_rate,length_controlled_winrate\na,90,60\nb,80,\nc,70,40\nd,60,40\ne,50,20\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("alpaca_eval/leaderboards/" + leaderboard.BOARDS["alpaca_eval_2"], board)
        archive.writestr("alpaca_eval/leaderboards/" + leaderboard.BOARDS["alpaca_eval_1"], ",rate\na,1\n")
    monkeypatch.setattr(fetch, "wheel", lambda name: {"alpaca_eval": wheel}[name])
    monkeypatch.setattr(leaderboard, "_installed", lambda board: None)
    table = leaderboard.load()
    found = leaderboard.place(table, 40, 15, 55, neighbours=1)
    assert (found.rank, found.best, found.worst, found.of) == (2, 2, 5, 5)
    assert (found.above.to_dict(), found.below.to_dict()) == ({"a": 60}, {"c": 40})
    own = leaderboard.place(table, 70, by="win_rate", name="c")
    assert (own.rank, own.of) == (3, 5)
    with pytest.raises(EvaluationError, match="is no leaderboard"):
        leaderboard.load(wheel, "alpaca_eval_1")
    with pytest.raises(EvaluationError, match="no column 'elo'"):
        leaderboard.place(table, 40, by="elo")
    with pytest.raises(EvaluationError, match="low <= value"):
        leaderboard.place(table, 40, 50, 60)
    assert fetch.find("alpaca_eval").name == "alpaca-eval"


def test_every_stored_annotation_set_gives_its_count(real_data: Path) -> None:
    judged = pd.read_parquet(real_data / "alpaca_eval" / "judgments.parquet")
    seen = 0
    for _, rows in judged.groupby(["annotator", "model"]):
        found = alpaca_eval.win_rate(rows)
        values = [value - 1 for value in rows["preference"].tolist() if value == value]
        assert found.win_rate == pytest.approx(100 * math.fsum(values) / len(values), abs=1e-9)
        assert (found.n, found.dropped) == (len(values), len(rows) - len(values))
        assert found.wins == sum(value > 0.5 for value in values)
        seen += 1
    assert seen == 98
