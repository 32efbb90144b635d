from __future__ import annotations

import ast
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from starling_nb import files
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.problems import coding, gsm8k
from starling_nb.evaluation.problems.coding import Problem
from starling_nb.evaluation.problems.sandbox import Call

SEVEN = Problem("7", "easy", "Write seven().", "seven", (Call("seven()", 7),), "def seven():\n    return 7\n")
EIGHT = Problem("8", "easy", "Write eight().", "eight", (Call("eight()", 8),), "def eight():\n    return 8\n")
PROSE = st.lists(
    st.sampled_from(["Here you are:", "It counts.", "", "Note: fast (and short", "1. Try it!"]), max_size=3
)
CODE = st.sampled_from([problem.solution for problem in coding.load()]).map(
    lambda code: code.replace("\n\n\n", "\n\n")  # prose may end where a blank line does
)


def named(code: str) -> str:
    """The last function that a program defines at its left edge."""
    return [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)][-1]


@settings(deadline=None, max_examples=60)
@given(PROSE, CODE, PROSE, st.sampled_from(["", "python", "Python", "py"]), st.sampled_from(["```", "~~~", "````"]))
def test_a_fenced_program_is_found_whole(before: list[str], code: str, after: list[str], tag: str, fence: str) -> None:
    reply = "\n".join([*before, f"{fence}{tag}", code + fence, *after])
    assert coding.strict(reply, named(code)) == coding.flexible(reply, named(code)) == code
    assert coding.strict("\n".join([*before, f"{fence}{tag}", code]), named(code)) == code  # cut off
    assert coding.strict(reply, "another") is None


@settings(deadline=None, max_examples=60)
@given(PROSE, CODE, PROSE)
def test_a_bare_program_is_found_among_prose(before: list[str], code: str, after: list[str]) -> None:
    found = coding.flexible("\n".join([*before, code, *after]), named(code))
    assert found is not None
    assert ast.dump(ast.parse(found)) == ast.dump(ast.parse(code))
    assert coding.strict("\n".join([*before, code, *after]), named(code)) is None


PIECES = st.sampled_from(
    ["def f(x):", "    return x", "```", "```python", "f = 1", "import os", "f(", '"""', "text", "\0"]
)


@settings(deadline=None, max_examples=200)
@given(st.text() | st.lists(PIECES).map("\n".join))
def test_whatever_is_said_what_is_read_defines_the_function(reply: str) -> None:
    strict, flexible = coding.strict(reply, "f"), coding.flexible(reply, "f")
    assert strict is None or flexible == strict
    for found in (strict, flexible):
        assert found is None or any(line.startswith(("def f", "f =")) for line in found.split("\n"))


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (
            "```python\ndef f():\n    return 1\n```\nBetter:\n```\ndef f():\n    return 2\n```\n",
            "def f():\n    return 2\n",
        ),
        ("```python\ndef f():\n    return 1\n```\nUse it:\n```python\nprint(f())\n```", "def f():\n    return 1\n"),
        ("```js\nf = 1\n```", "f = 1"),
        ("1. So:\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1\n"),
        ("```python\nf = lambda: 3\n```", "f = lambda: 3\n"),
        ("import math\n\ndef f():\n    return math.pi\n\nThis works.", "import math\n\ndef f():\n    return math.pi\n"),
        ("from this one sees\ndef f():\n    return 1", "def f():\n    return 1"),
        ("def f(:\n    return 1", "def f(:\n    return 1"),
        ("def g():\n    def f(): pass", None),
        ("the function f returns 1", None),
        ("", None),
    ],
)
def test_the_last_program_that_defines_the_function_counts(reply: str, found: str | None) -> None:
    assert coding.flexible(reply, "f") == found


def test_long_replies_take_no_long_time() -> None:
    assert coding.flexible("a = 1\n" * 3000 + "and so\ndef f():\n    return 1", "f") == "def f():\n    return 1"
    assert coding.flexible("```\n" * 9000, "f") is None
    assert coding.flexible(" " * 10**6 + "```" * 10**5, "f") is None


def test_answers_are_counted_by_what_became_of_them() -> None:
    fenced = "Sure.\n```python\ndef seven():\n    return 7\n```"
    replies = {
        "7": [fenced, SEVEN.solution, "no", "def seven():\n    return 1 / 0", "def seven():\n    return 6"],
        "8": "",
    }
    scores = coding.score([SEVEN, EIGHT], replies)
    assert scores.iloc[0].to_dict() == {
        "id": "7",
        "strict": 0.2,
        "flexible": 0.4,
        "unread": 0.2,
        "samples": 5,
        "passed": 2,
        "wrong": 1,
        "error": 1,
        "timeout": 0,
        "died": 0,
        "no code": 1,
    }
    assert scores.iloc[1][["flexible", "unread", "samples", "no code"]].tolist() == [0, 1, 1, 1]
    counted = coding.outcomes(scores).set_index("outcome")
    assert counted["answers"].to_dict() == {"passed": 2, "wrong": 1, "error": 1, "timeout": 0, "died": 0, "no code": 2}
    assert counted["share"].sum() == pytest.approx(1)
    for missing in ({"7": fenced}, {"7": fenced, "8": []}):
        with pytest.raises(EvaluationError, match="1 problems have no reply, 8 first"):
            coding.score([SEVEN, EIGHT], missing)


def table(passed: list[int], samples: int) -> pd.DataFrame:
    """A table of scores in which every program stood in a fenced block."""
    shares = [n / samples for n in passed]
    columns = {"id": range(len(passed)), "strict": shares, "flexible": shares, "unread": 0.0, "samples": samples}
    wrong = [samples - n for n in passed]
    return pd.DataFrame(columns | {"passed": passed, "wrong": wrong} | dict.fromkeys(coding.FAILURES[1:], 0))


def test_pass_at_k_is_the_mean_over_all_choices_of_k_answers() -> None:
    scores = table([0, 1, 3, 4], 4)
    assert coding.pass_at(scores, 1).value == pytest.approx(0.5) == coding.accuracy(scores)["flexible"].value
    assert coding.pass_at(scores, 2).value == pytest.approx((0 + 1 / 2 + 1 + 1) / 4)  # of 6 pairs, 3 hold the one
    assert coding.pass_at(scores, 4).value == pytest.approx(3 / 4)
    assert coding.pass_at(scores, 2).n == 4
    for k in (0, 5):
        with pytest.raises(EvaluationError, match=f"pass@{k} needs 1 to 4"):
            coding.pass_at(scores, k)


def test_changes_are_paired_by_problem_beside_those_of_word_problems() -> None:
    before, after = table([3, 2, 1, 0] * 8, 3), table([3, 3, 1, 1] * 8, 3)
    found = coding.compare(before, after.iloc[::-1])
    assert isinstance(found, gsm8k.Comparison)
    assert found.verdict == "measured"
    assert found.change["flexible"].value == pytest.approx(1 / 6)
    assert 0 < found.change["flexible"].low < 1 / 6
    assert found.before["flexible"].n == found.change["strict"].n == 32
    assert coding.compare(table([0] * 32, 3), table([0] * 32, 3)).verdict == "floor: not testable"
    assert coding.accuracy(table([0] * 32, 3))["flexible"].high > 0.05
    with pytest.raises(EvaluationError, match="same problems"):
        coding.compare(pd.concat([before, before.iloc[:1]]), pd.concat([after, after.iloc[:1]]))


def test_files_are_read_and_bad_rows_refused(tmp_path: Path) -> None:
    path = tmp_path / "coding.jsonl"
    row = {"prompt": "p", "function": "f", "tests": ["assert sorted(f([2, 1])) == [1, 2]"], "solution": "f = list"}
    files.write_jsonl(path, [row, row | {"id": "b"}])
    first, second = coding.load(path)
    assert (first.id, second.id, first.calls) == ("1", "b", (Call("sorted(f([2, 1]))", [1, 2]),))
    for bad, text in (
        ({"tests": []}, "has no tests"),
        ({"tests": None}, "no usable"),
        ({"tests": ["assert f(1)"]}, "does not compare"),
        ({"tests": ["assert g(1) == 1"]}, "does not compare a call of f"),
        ({"tests": ["assert f(1) == g"]}, "malformed"),
        ({"tests": ["assert f(1) =="]}, "invalid syntax"),
        ({"tests": ["assert f(1) == 1; import os"]}, "does not compare"),
    ):
        files.write_jsonl(path, [row | bad])
        with pytest.raises(EvaluationError, match=text):
            coding.load(path)
    files.write_jsonl(path, [row | {"id": "b"}] * 2)
    with pytest.raises(EvaluationError, match="same id"):
        coding.load(path)


def test_a_model_is_asked_once_a_sample_with_randomness_of_its_own() -> None:
    lm = toy.lm()
    told = coding.answers(lm, [SEVEN, EIGHT], samples=3, temperature=1.0, max_new_tokens=8, seed=3)
    assert list(told) == ["7", "8"]
    assert len(set(told["7"])) == 3
    assert coding.answers(lm, [EIGHT], samples=2, temperature=1.0, max_new_tokens=8, seed=3)["8"] == told["8"][:2]
    assert coding.conversation(EIGHT, [SEVEN]) == [
        {"role": "user", "content": "Write seven()."},
        {"role": "assistant", "content": "```python\ndef seven():\n    return 7\n```"},
        {"role": "user", "content": "Write eight()."},
    ]
    with pytest.raises(EvaluationError, match="one or more"):
        coding.answers(lm, [SEVEN], samples=0)


def test_the_embedded_solutions_pass_and_stubs_fail() -> None:
    problems = coding.load()
    assert len({problem.question for problem in problems}) == 32
    assert pd.Series([problem.level for problem in problems]).value_counts().to_dict() == {
        "easy": 10,
        "medium": 13,
        "hard": 9,
    }
    stub = "def {}(first, *rest):\n    return first"
    replies = {one.id: [f"```python\n{one.solution}```", stub.format(one.function)] for one in problems}
    graded = coding.grade(problems, replies)
    assert graded.loc[graded["sample"] == 0, "outcome"].unique().tolist() == ["passed"]
    assert graded.loc[graded["sample"] == 1, "outcome"].isin(["wrong", "error"]).all()
    for one in problems:
        expected = [call.expected for call in one.calls]
        assert len(expected) >= 3
        assert any(value != expected[0] for value in expected), "a constant would pass"
        assert one.function in one.question
