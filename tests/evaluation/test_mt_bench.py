from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evaluation import small
from hypothesis import given
from hypothesis import strategies as st

from starling_nb.chat import Message
from starling_nb.evaluation import EvaluationError, mt_bench
from starling_nb.evaluation.mt_bench import Question, ScoreError
from starling_nb.judge import Outcome

QUESTIONS = [
    Question("q1", "writing", ("Write a line.", "Shorten it."), ("one line", "line")),
    Question("q2", "math", ("Add 1 and 2.", "Double it."), ("It is 3", "It is 6")),
    Question("q3", "stem", ("What is ice?", "And steam?")),
]


def frame(scores: dict[tuple[str, int], float], repeat: int = 1) -> pd.DataFrame:
    rows = [(id, "math", turn, repeat, score) for (id, turn), score in scores.items()]
    return pd.DataFrame(rows, columns=["question_id", "category", "turn", "repeat", "score"])


def test_embedded_questions_have_two_turns_references_and_rubrics() -> None:
    questions = mt_bench.load()
    assert len(questions) == 36
    assert len({question.category for question in questions}) == 8
    assert all(len(q.turns) == len(q.references) == len(q.rubrics) == 2 for q in questions)


def test_fastchat_files_are_read_with_their_reference_answers(tmp_path: Path) -> None:
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
        {"question_id": 111, "category": "math", "turns": ["c", "d"], "reference": ["old", "old"]},
    ]
    answers = [{"question_id": 111, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["new", "newer"]}]}]
    questions, references = tmp_path / "question.jsonl", tmp_path / "gpt-4.jsonl"
    questions.write_text("\n".join(map(json.dumps, rows)))
    references.write_text("\n".join(map(json.dumps, answers)))
    assert [q.references for q in mt_bench.load(questions)] == [(), ("old", "old")]
    assert [q.references for q in mt_bench.load(questions, references)] == [(), ("new", "newer")]
    assert [q.id for q in mt_bench.load(questions)] == ["81", "111"]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"question_id": 1, "turns": ["a"]}], "category"),
        ([{"id": "x", "category": "math", "turns": ["a"]}] * 2, "same id"),
        ([{"id": "x", "category": "math", "turns": ["a", "b"], "reference": ["r"]}], "one reference"),
    ],
)
def test_bad_question_files_are_refused(tmp_path: Path, rows: list[dict[str, object]], text: str) -> None:
    path = tmp_path / "question.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(EvaluationError, match=text):
        mt_bench.load(path)


def test_temperatures_are_those_of_fastchat() -> None:
    hot = {c: mt_bench.temperature(c) for c in ("writing", "roleplay", "stem", "humanities", "math", "coding")}
    assert hot == {
        "writing": 0.7,
        "roleplay": 0.7,
        "stem": 0.1,
        "humanities": 0.1,
        "math": 0.0,
        "coding": 0.0,
    }
    assert mt_bench.temperature("extraction") == mt_bench.temperature("reasoning") == 0.0


@given(st.floats(1, 10).map(lambda x: round(x, 1)), st.text(), st.sampled_from(["", "\n", "\n \n"]))
def test_a_grade_on_the_last_line_is_read_whatever_comes_before(score: float, reasons: str, end: str) -> None:
    assert mt_bench.parse(f"{reasons}\n[[{score:g}]]{end}") == score


@given(st.text())
def test_anything_else_is_an_error_and_never_a_guess(reply: str) -> None:
    with suppress(ScoreError):
        assert 1 <= mt_bench.parse(reply) <= 10


@pytest.mark.parametrize(
    "reply",
    ["", "7", "[7]", "[[]]", "[[0]]", "[[11]]", "[[10.01]]", "[[-3]]", "[[7/10]]", "[[٧]]", "[[7]] or [[8]]",
     "[[7]]\nbut then again", "I cannot grade this."],
)  # fmt: skip
def test_replies_without_exactly_one_grade_are_refused(reply: str) -> None:
    with pytest.raises(ScoreError):
        mt_bench.parse(reply)


def test_brackets_in_the_reasons_do_not_confuse_the_parser() -> None:
    assert mt_bench.parse("The matrix [[1]] is wrong, [[10]] is due.\n\nGrade: [[3.5]]\n") == 3.5


def test_second_turns_are_answered_after_the_models_own_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[dict[str, list[Message]], dict[str, float]]] = []

    def stub(lm: object, conversations: dict[str, list[Message]], **options: Any) -> dict[str, str]:
        seen.append((conversations, options["temperature"]))
        return {id: "" if id == "q3/1" else f"said {id}" for id in conversations}

    monkeypatch.setattr(mt_bench, "answer_all", stub)
    answers = mt_bench.answer(None, QUESTIONS, seed=3)  # type: ignore[arg-type]
    assert answers == {
        "q1": ["said q1/1", "said q1/2"],
        "q2": ["said q2/1", "said q2/2"],
        "q3": ["", "said q3/2"],
    }
    assert [heats for _, heats in seen] == [{f"q1/{n}": 0.7, f"q2/{n}": 0.0, f"q3/{n}": 0.1} for n in (1, 2)]
    second = seen[1][0]
    assert [message["content"] for message in second["q1/2"]] == ["Write a line.", "said q1/1", "Shorten it."]
    assert second["q3/2"][1]["content"] == mt_bench.NO_ANSWER


def test_a_model_answers_every_turn_the_same_way_twice() -> None:
    lm = small.lm(text for question in QUESTIONS for text in (*question.turns, mt_bench.NO_ANSWER))
    first = mt_bench.answer(lm, QUESTIONS, seed=1, max_new_tokens=5)
    assert {id: len(turns) for id, turns in first.items()} == {"q1": 2, "q2": 2, "q3": 2}
    assert any(text for turns in first.values() for text in turns)
    assert mt_bench.answer(lm, QUESTIONS[::-1], seed=1, max_new_tokens=5) == first


def test_requests_show_references_only_where_the_category_has_them() -> None:
    answers = {q.id: [f"first of {q.id}", f"second of {q.id}"] for q in QUESTIONS}
    asked = {request.id: request for request in mt_bench.requests(QUESTIONS, answers, repeats=2, seed=5)}
    assert sorted(asked) == sorted(f"{q.id}/{t}/{r}" for q in QUESTIONS for t in (1, 2) for r in (1, 2))
    math, writing = asked["q2/2/1"].messages[1]["content"], asked["q1/2/1"].messages[1]["content"]
    assert "It is 6" in math
    assert "It is 3" not in math
    assert "one line" not in writing
    assert math.count("second of q2") == 1
    assert "first of q2" in math
    assert "second" not in asked["q2/1/1"].messages[1]["content"]
    assert asked["q1/1/1"].params["seed"] == 5 != asked["q1/1/2"].params["seed"]
    assert asked["q1/1/1"].messages == asked["q1/1/2"].messages


def test_a_missing_answer_is_refused() -> None:
    with pytest.raises(EvaluationError, match="q1 needs 2 answers, got 1"):
        mt_bench.requests(QUESTIONS, {"q1": ["only one"]})


def test_summary_is_the_plain_mean_of_readable_grades_and_counts_the_others() -> None:
    outcomes = [
        Outcome("q1/1/1", 8.0, None, "", {}, False),
        Outcome("q1/2/1", 6.0, None, "", {}, False),
        Outcome("q2/1/1", 2.0, None, "", {}, False),
        Outcome[float]("q2/2/1", None, "ScoreError: none", "", {}, False),
        Outcome("q3/1/1", 5.0, None, "", {}, False),
    ]
    table = mt_bench.judgments(QUESTIONS, outcomes)
    assert table["category"].tolist() == ["writing", "writing", "math", "math", "stem"]
    summary = mt_bench.summarize(table)
    assert summary.overall.value == pytest.approx((8 + 6 + 2 + 5) / 4)
    assert summary.overall.n == 3
    assert summary.failed == 1
    assert summary.overall.low <= summary.overall.value <= summary.overall.high
    by_category = summary.by_category.set_index("category")["score"]
    assert by_category.to_dict() == {"math": 2.0, "stem": 5.0, "writing": 7.0}
    assert summary.by_turn.set_index("turn")["score"].to_dict() == {1: 5.0, 2: 6.0}


def test_intervals_are_clustered_by_question() -> None:
    generator = np.random.default_rng(0)
    levels = {f"q{n}": generator.uniform(2, 9) for n in range(20)}
    once = pd.concat([frame({(id, 1): level for id, level in levels.items()}, repeat=1)])
    often = pd.concat([frame({(id, 1): level for id, level in levels.items()}, repeat=r) for r in range(10)])
    narrow, wide = mt_bench.summarize(often).overall, mt_bench.summarize(once).overall
    assert narrow.high - narrow.low == pytest.approx(wide.high - wide.low, rel=0.1)


def test_change_is_after_minus_before_over_turns_graded_twice() -> None:
    before = frame({("a", 1): 4.0, ("a", 2): 5.0, ("b", 1): 6.0, ("c", 1): 1.0})
    after = frame({("a", 1): 6.0, ("a", 2): 5.0, ("b", 1): math.nan, ("d", 1): 9.0})
    change = mt_bench.paired(before, after)
    assert change.value == pytest.approx(1.0)
    assert change.n == 1
    with pytest.raises(EvaluationError, match="share no graded turn"):
        mt_bench.paired(before, frame({("z", 1): 3.0}))
    with pytest.raises(EvaluationError, match="no reply"):
        mt_bench.summarize(frame({("a", 1): math.nan}))


def test_real_gpt4_replies_are_read_as_fastchat_reads_them(real_data: Path) -> None:
    rows = pd.read_parquet(real_data / "mt_bench" / "single_scores_gpt4.parquet")
    graded = rows.dropna(subset=["score"])
    assert [mt_bench.parse(reply) for reply in graded["judgment"]] == graded["score"].tolist()
    for reply in rows[rows["score"].isna()]["judgment"]:
        with pytest.raises(ScoreError):
            mt_bench.parse(reply)
