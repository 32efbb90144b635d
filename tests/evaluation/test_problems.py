"""Notebook 05's chapter on answers that can be checked: both models, one set, what is recorded of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from starling_nb.evaluation import problems
from starling_nb.evaluation.answering import some
from starling_nb.evaluation.problems import coding, gsm8k


class Noted(SimpleNamespace):
    """A stage that keeps what it is told to record."""

    def record(self, id: str, value: Any, n: int | None = None) -> None:
        self.__dict__[id] = value


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The start solves every word problem and program, the tuned model none; both greedily."""
    words = {one.question: one.solution for one in gsm8k.load()}
    codes = {one.question: f"```python\n{one.solution}```" for one in coding.load()}
    known = {f"Question: {question}\nAnswer:": said for question, said in words.items()} | codes

    def answer(lm: str, turns: dict[str, Any], *, temperature: float, **how: Any) -> dict[str, str]:
        assert temperature == 0
        return {id: known[said[-1]["content"]] if lm == "start" else "I pass." for id, said in turns.items()}

    monkeypatch.setattr(problems, "answer", answer)
    monkeypatch.setattr(coding, "answer", answer)
    return {"start": "start", "tuned": "tuned"}


@pytest.mark.parametrize("ask", [problems.word_problems, problems.programs])
def test_what_was_lost_is_recorded_with_its_interval(pair: Any, ask: Any) -> None:
    stage = Noted()
    table = problems.record(stage, "kind", ask(pair, 8, 0, 16)).set_index(["model", "reading"])
    assert table["n"].unique().tolist() == [8]
    assert table["value"].unstack().loc[["start", "tuned", "change"], "flexible"].tolist() == [1.0, 0.0, -1.0]
    change = vars(stage)["kind.change"]
    assert (change.value, change.n) == (-1.0, 8)
    assert vars(stage)["kind.start_above_floor_p"] < 0.001


def test_where_nothing_is_solved_nothing_can_slip(pair: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Noted()
    problems.record(stage, "kind", problems.word_problems({"start": "tuned", "tuned": "tuned"}, 8, 0, 16))
    assert vars(stage)["kind.start_above_floor_p"] == 1
    assert "kind: floor: not testable" in capsys.readouterr().out


def test_fewer_are_some_of_more() -> None:
    every = gsm8k.load()
    assert {one.id for one in some(every, 5)} < {one.id for one in some(every, 9)}
    assert some(every, 1000) == every
