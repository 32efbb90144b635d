from __future__ import annotations

import ast
import operator
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling_nb import files
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.problems import gsm8k
from starling_nb.evaluation.problems.gsm8k import Problem

PROBLEM = Problem("1", "Two and two?", "2 + 2 = 4\n#### 4", Decimal(4))


@settings(deadline=None)
@given(st.integers(-(10**9), 10**9), st.text(alphabet="abc \n", max_size=20))
def test_a_marked_number_is_read_both_ways(n: int, before: str) -> None:
    for written in (f"{n}", f"{n:,}"):
        reply = f"{before}\n#### {written}"
        assert gsm8k.strict(reply) == gsm8k.flexible(reply) == n


@settings(deadline=None)
@given(st.text())
def test_no_reply_breaks_the_readers(reply: str) -> None:
    for found in (gsm8k.strict(reply), gsm8k.flexible(reply)):
        assert found is None or found.is_finite()


@pytest.mark.parametrize(
    ("reply", "strict", "flexible"),
    [
        ("so she has 12 left.", None, 12),
        ("It costs $1,250.50.", None, Decimal("1250.5")),
        ("#### 7\nBut 9 is nicer", 7, 9),
        ("####7", None, 7),
        ("#### -3", -3, -3),
        ("#### 4.", 4, 4),
        ("none", None, None),
        ("", None, None),
    ],
)
def test_strict_wants_the_mark_and_flexible_takes_the_last_number(
    reply: str, strict: Decimal | None, flexible: Decimal | None
) -> None:
    assert (gsm8k.strict(reply), gsm8k.flexible(reply)) == (strict, flexible)


def test_scores_count_each_reading_and_what_has_no_number() -> None:
    others = [Problem(id, "?", "#### 4", Decimal(4)) for id in ("2", "3")]
    scores = gsm8k.score([PROBLEM, *others], {"1": "#### 4.0", "2": "it is 4", "3": "no idea"})
    assert scores["strict"].tolist() == [True, False, False]
    assert scores["flexible"].tolist() == [True, True, False]
    assert scores["unread"].tolist() == [False, False, True]
    assert gsm8k.accuracy(scores)["flexible"].value == pytest.approx(2 / 3)
    with pytest.raises(EvaluationError, match="1 problems have no reply, 1 first"):
        gsm8k.score([PROBLEM], {})


def test_files_are_read_and_bad_rows_refused(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    files.write_jsonl(path, [{"question": PROBLEM.question, "answer": PROBLEM.solution}])
    assert gsm8k.load(path) == [PROBLEM]
    asked = gsm8k.conversation(PROBLEM, [PROBLEM])[0]["content"]
    assert asked == "Question: Two and two?\nAnswer: 2 + 2 = 4\n#### 4\n\nQuestion: Two and two?\nAnswer:"
    for bad, text in (({"question": "q"}, "'answer'"), ({"question": "q", "answer": "four"}, "no `#### n`")):
        files.write_jsonl(path, [bad])
        with pytest.raises(EvaluationError, match=text):
            gsm8k.load(path)


def test_a_model_at_the_floor_is_not_tested() -> None:
    def table(right: int) -> pd.DataFrame:
        hit = [n < right for n in range(60)]
        return pd.DataFrame({"id": range(60), "strict": False, "flexible": hit, "unread": False})

    assert gsm8k.compare(table(2), table(4)).verdict == "floor: not testable"
    found = gsm8k.compare(table(30), table(15))
    assert found.verdict == "measured"
    assert found.change["flexible"].value == -0.25
    assert found.change["flexible"].high < 0
    assert found.change["strict"].value == 0
    with pytest.raises(EvaluationError, match="same problems"):
        gsm8k.compare(table(2), table(3).iloc[:9])
    twice = pd.concat([table(2), table(2).iloc[:1]])
    with pytest.raises(EvaluationError, match="once each"):
        gsm8k.compare(twice, twice)


def test_a_start_that_solves_something_is_told_from_one_that_solves_next_to_nothing() -> None:
    def start(right: float, n: int = 60) -> float:
        return gsm8k.above_floor(pd.DataFrame({"flexible": [right / n] * n}))

    assert start(0) == 1
    assert start(3) > 0.05 > start(9) > start(10) > 0
    assert start(9.9) == start(9)


def test_accuracies_have_wilsons_interval_and_several_answers_a_problem_are_surer() -> None:
    once, often, never = np.tile([0.0, 1.0], 10), np.tile([0.25, 0.75], 10), np.zeros(20)
    found = [gsm8k.accuracy(pd.DataFrame(dict.fromkeys(gsm8k.READINGS, x)))["strict"] for x in (once, often, never)]
    assert (found[0].low, found[0].high) == pytest.approx((0.2993, 0.7007), abs=1e-4)  # 10 in 20
    assert found[0].low < found[1].low < found[1].value == 0.5
    assert found[2].low == 0 < found[2].high


def test_the_real_solutions_are_read_as_the_set_says(real_data: Path) -> None:
    rows = pd.read_parquet(real_data / "capability" / "gsm8k_test.parquet")
    assert [gsm8k.strict(text) for text in rows["answer"]] == [gsm8k.number(str(n)) for n in rows["final"]]


OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def computed(node: ast.expr) -> Fraction:
    """An arithmetic expression's value."""
    if isinstance(node, ast.BinOp):
        found = OPERATIONS[type(node.op)](computed(node.left), computed(node.right))
        return Fraction(found)
    assert isinstance(node, ast.Constant)
    return Fraction(node.value)


def test_the_embedded_problems_are_sixty_and_their_solutions_add_up() -> None:
    problems = gsm8k.load()
    assert len({problem.question for problem in problems}) == 60
    for problem in problems:
        written, marked = problem.solution.split("\n")
        left, right = written.replace("×", "*").replace("÷", "/").replace("−", "-").split(" = ")
        assert computed(ast.parse(left, mode="eval").body) == Fraction(right) == problem.answer
        assert marked == f"#### {right}"
        digits = set(re.findall(r"\d+", problem.question.replace(",", "")))
        assert len(digits & set(re.findall(r"\d+", left))) >= 1
