from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling_nb import files
from starling_nb.evaluation import EvaluationError, mt_bench
from starling_nb.evaluation.mt_bench import Question
from starling_nb.evaluation.mt_bench import checks as mt_bench_checks
from starling_nb.evaluation.mt_bench import formats as mt_bench_files
from starling_nb.judge import Outcome

BENCH = [
    Question("81", "writing", ("Write a line.", "Shorten it.")),
    Question("111", "math", ("Add 1 and 2.", "Double it."), ("3", "6")),
]
SAID = {"81": ["one", "two"], "111": ["three", "six"]}


def rows(*cells: tuple[str, int, Any]) -> pd.DataFrame:
    table = pd.DataFrame(cells, columns=["question_id", "turn", "score"])
    return table.assign(repeat=1, category="math")


def test_questions_and_answers_come_back_from_fastchats_files(tmp_path: Path) -> None:
    mt_bench_files.write_questions(tmp_path / "question.jsonl", BENCH)
    assert mt_bench.load(tmp_path / "question.jsonl") == BENCH
    mt_bench_files.write_answers(tmp_path / "m.jsonl", SAID, model="m")
    assert mt_bench_files.read_answers(tmp_path / "m.jsonl").turns == SAID
    first = files.read_jsonl(tmp_path / "m.jsonl")[0]
    assert set(first) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert first["question_id"] == 81
    assert first["choices"] == [{"index": 0, "turns": ["one", "two"]}]


def test_failed_generations_and_second_rows_are_named_and_not_used(tmp_path: Path) -> None:
    said = [(1, ["ERROR", "x"]), (2, ["ERROR is a word", "fine"]), (2, ["other", "other"]), (1, ["late", "late"])]
    files.write_jsonl(tmp_path / "m.jsonl", [{"question_id": i, "choices": [{"turns": t}]} for i, t in said])
    found = mt_bench_files.read_answers(tmp_path / "m.jsonl")
    assert found == mt_bench_files.Answers({"2": ["ERROR is a word", "fine"]}, ("1",), ("2", "1"))
    files.write_jsonl(tmp_path / "m.jsonl", [{"question_id": 1, "choices": []}])
    with pytest.raises(EvaluationError, match="row 1 lacks"):
        mt_bench_files.read_answers(tmp_path / "m.jsonl")


def test_judgments_come_back_with_minus_one_for_what_cannot_be_read(tmp_path: Path) -> None:
    asked = mt_bench.requests(BENCH, SAID)
    replies = ["[[8]]", "no grade", "", "[[2]]"]
    values = [8.0, None, None, 2.0]
    outcomes = [
        Outcome(one.id, value, None if value else "ScoreError: none", reply, {}, False)
        for one, value, reply in zip(asked, values, replies, strict=True)
    ]
    path = tmp_path / "gpt-4_single.jsonl"
    mt_bench_files.write_judgments(path, asked, outcomes, model="m", judge="gpt-4")
    stored = files.read_jsonl(path)
    assert [row["score"] for row in stored] == [8.0, -1, -1, 2.0]
    assert [row["judgment"] for row in stored] == ["[[8]]", "no grade", "$ERROR$", "[[2]]"]
    assert stored[0]["user_prompt"] == asked[0].messages[-1]["content"]
    table = mt_bench_files.read_judgments(path, BENCH)
    summary = mt_bench.summarize(table, BENCH)
    assert summary.overall.value == 5.0
    assert summary.excluded == mt_bench_checks.Excluded(unreadable=2)
    with pytest.raises(EvaluationError, match="no request"):
        mt_bench_files.write_judgments(path, asked[1:], outcomes, model="m", judge="gpt-4")


def test_a_judge_failure_counts_as_unreadable_whatever_its_score(tmp_path: Path) -> None:
    base = {"question_id": 81, "model": "m", "turn": 1}
    lines = [base | {"judgment": "$ERROR$", "score": 5}, base | {"turn": 2, "judgment": "[[4]]", "score": 4}]
    files.write_jsonl(tmp_path / "j.jsonl", lines)
    summary = mt_bench.summarize(mt_bench_files.read_judgments(tmp_path / "j.jsonl", BENCH))
    assert (summary.overall.value, summary.failed) == (4.0, 1)
    files.write_jsonl(tmp_path / "j.jsonl", [{"question_id": 81, "turn": 1, "score": 3}])
    with pytest.raises(EvaluationError, match="row 1 has no usable 'model'"):
        mt_bench_files.read_judgments(tmp_path / "j.jsonl", BENCH)


def test_every_kind_of_bad_row_is_counted_and_in_no_mean() -> None:
    table = rows(("81", 1, 6), ("81", 1, 10), ("81", 2, -1), ("111", 1, 0), ("111", 2, 11), ("999", 1, 9), ("81", 3, 9))
    kept, excluded = mt_bench_checks.check(table, BENCH)
    assert kept["score"].tolist() == [6.0]
    assert excluded == mt_bench_checks.Excluded(unreadable=1, out_of_range=2, duplicated=1, unknown=2)
    assert str(excluded) == "1 unreadable, 2 out of range, 1 duplicated, 2 unknown"
    _, excluded = mt_bench_checks.check(rows(("81", 1, math.nan), ("81", 2, math.inf)), BENCH)
    assert excluded == mt_bench_checks.Excluded(unreadable=1, out_of_range=1, missing=2)
    assert str(mt_bench_checks.Excluded()) == "nothing excluded"
    with pytest.raises(EvaluationError, match="no column repeat in the judgments"):
        mt_bench_checks.check(table.drop(columns="repeat"))


SCORES = st.one_of(st.none(), st.sampled_from([-1, 0, 11, math.nan, math.inf, 10.5]), st.integers(1, 10))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["81", "111", "7"]), st.integers(1, 3), SCORES), max_size=20))
def test_every_row_is_kept_or_counted_once(cells: list[tuple[str, int, Any]]) -> None:
    kept, excluded = mt_bench_checks.check(rows(*cells), BENCH)
    lost = vars(excluded) | {"missing": 0}
    assert len(kept) + sum(lost.values()) == len(cells)
    assert kept["score"].between(1, 10).all()
    seen = {(id, turn) for id, turn, _ in cells if id != "7" and turn < 3}
    assert excluded.missing == 4 - len(seen)


def test_turns_graded_on_one_side_only_are_told() -> None:
    before = rows(("81", 1, 4), ("81", 2, 5), ("111", 1, 3))
    after = rows(("81", 1, 6), ("81", 2, -1), ("111", 2, 9), ("81", 1, 1))
    found = mt_bench_checks.change(before, after)
    assert found.difference.value == 2.0
    assert found.difference.n == 1
    assert found.one_sided == 3
    assert found.after == mt_bench_checks.Excluded(unreadable=1, duplicated=1)
    assert mt_bench.paired(before, after).value == 2.0


def test_stored_gpt4_grades_give_the_official_means(real_data: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(real_data / "mt_bench" / "single_scores_gpt4.parquet")
    bench = pd.read_parquet(real_data / "mt_bench" / "questions.parquet")
    questions = [Question(str(q.question_id), q.category, (q.turn_1, q.turn_2)) for q in bench.itertuples()]
    published = {
        ("gpt-4-1106-preview", 0): 9.23,
        ("Mixtral-8x7B-Instruct-v0.1", 0): 8.34,
        ("phi-3-dpo", 0): 8.20,
        ("mistral-orpo", 0): 5.39,
        ("mistral-orpo", 1): 6.33,
    }
    assert len(table.groupby(["model", "run"])) == 10
    for (model, run), part in table.groupby(["model", "run"]):
        path = tmp_path / "gpt-4_single.jsonl"
        rows = part[["question_id", "model", "turn", "judgment", "score"]].to_dict("records")
        files.write_jsonl(path, [row | {"score": -1 if math.isnan(row["score"]) else row["score"]} for row in rows])
        summary = mt_bench.summarize(mt_bench_files.read_judgments(path, questions), questions)
        valid = [row["score"] for row in rows if not math.isnan(row["score"])]
        assert summary.overall.value == pytest.approx(sum(valid) / len(valid), abs=1e-12)
        assert summary.failed == len(rows) - len(valid)
        assert summary.overall.n == len({row["question_id"] for row in rows})
        assert summary.excluded.missing == 160 - len(rows)
        assert summary.by_category["score"].size == 8
        second = [row["score"] for row in rows if row["turn"] == 2]
        assert summary.by_turn.set_index("turn")["score"][2] == pytest.approx(np.nanmean(second), abs=1e-12)
        if due := published.get((str(model), int(run))):  # of the whole set; here are three questions in four
            assert summary.overall.low < due < summary.overall.high
