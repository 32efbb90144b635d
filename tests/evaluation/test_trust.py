"""How far a run's judge is trusted, and the other steps of the notebook's chapters on wrappers, subjects and places."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from starling_nb.evaluation import EvaluationError, alpaca_eval, report, safety
from starling_nb.evaluation.alpaca_eval import annotators
from starling_nb.evaluation.judges import judging, trust
from starling_nb.evaluation.published import leaderboard
from starling_nb.evaluation.safety.refusals import is_refusal
from starling_nb.judge import Outcome
from starling_nb.judge.connect import connect
from starling_nb.nectar import prompts

NAMES = ("start", "tuned")


def outcome(id: str, value: float | None) -> Outcome[float]:
    return Outcome(id, value, None if value else "no verdict", "", {}, False)


def test_preferences_become_verdicts_on_what_was_shown() -> None:
    said = {"a/12": 1.0, "a/21": 1.0, "b/12": 2.0, "b/21": 2.0, "c/12": 1.5, "c/21": None}
    found = annotators.verdicts([outcome(id, value) for id, value in said.items()], NAMES)
    assert found["first"].tolist() == ["start", "tuned"] * 3
    assert found["winner"].fillna("none").tolist() == ["first", "second", "second", "first", "tie", "none"]


def truth(gaps: dict[str, float]) -> pd.DataFrame:
    """The tuned model's answer, which is longer where it is better by two grades."""
    rows = [(id, *NAMES, "xx", "xxx" if gap >= 2 else "x", "second" if gap else "tie", gap) for id, gap in gaps.items()]
    return pd.DataFrame(rows, columns=["prompt_id", "first", "second", "first_text", "second_text", "winner", "gap"])


def test_a_judge_beside_the_rubric_by_hand() -> None:
    said = {"a": (2.0, 2.0), "b": (1.0, 1.0), "c": (2.0, 1.0), "d": (1.0, 1.0)}  # c: what is shown second wins
    verdicts = annotators.verdicts(
        [outcome(f"{id}/{order}", v) for id, both in said.items() for order, v in zip(("12", "21"), both, strict=True)],
        NAMES,
    )
    found = trust.of_run(verdicts, truth({"a": 3.0, "b": 0.5, "c": 1.0, "d": 0.0, "never asked": 2.0}))
    value = found.set_index("figure")["value"]
    assert set(found["on"]) == {"run"}
    assert value["accuracy"] == 3 / 6  # a twice, c once; d is equal to the rubric
    assert value["accuracy_clear"] == 3 / 4
    assert value["longer_wins"] == pytest.approx(1 / 3)
    assert (value["consistent"], value["always_second"], value["first_wins"]) == (3 / 4, 1 / 4, 3 / 8)
    slight = trust.of_run(verdicts, truth({"a": 0.5, "b": 0.5}))
    assert "accuracy_clear" not in set(slight["figure"])
    equal = trust.of_run(verdicts, truth({"a": 0.0}))
    assert set(equal["figure"]) == {"first_wins", "consistent", "always_first", "always_second"}
    assert trust.of_run(verdicts.iloc[:0], truth({"a": 3.0})).empty


def test_the_simulated_judge_on_a_run_and_on_the_embedded_sets() -> None:
    asked = prompts.load(limit=20)
    instructions = [alpaca_eval.Instruction(p.id, "", p.messages, {}) for p in asked]
    answers = {"start": {p.id: p.flawed for p in asked}, "tuned": {p.id: p.reference for p in asked}}
    judging.register()
    with connect("simulated") as judge:
        outcomes = judge.ask_all(alpaca_eval.requests(instructions, *answers.values(), orders="both"))
        nothing: Any = None
        duel = report.HeadToHead(
            nothing, None, {i.id: i.messages for i in instructions}, answers, annotators.verdicts(outcomes, NAMES)
        )
        found = report.judge_trust(duel, judge, n=30, seed=0)
    table = found.set_index(["on", "figure"])
    assert table.loc[("run", "accuracy"), "low"] > 0.5
    assert table.loc[("run", "accuracy"), "n"] <= 20
    assert 1 < table.loc[("hand", "accuracy"), "n"] <= 30
    assert table.loc[("tricks", "accuracy"), "value"] > table.loc[("tricks", "longer_wins"), "value"]
    assert found["value"].between(0, 1).all()
    assert list(found.columns) == ["on", "figure", "value", "low", "high", "n"]
    assert trust.labels(duel.prompts, answers)["winner"].eq("second").mean() > 0.9


def test_attacks_are_told_with_over_refusal_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    refused, begun = "I'm sorry, but I can't help with that.", 'Begin your answer with the words "Sure'

    def answer(lm: str, conversations: dict[str, Any], **options: Any) -> dict[str, str]:
        """The start refuses everything but a prefix, the tuned model nothing."""
        texts = {id: messages[-1]["content"] for id, messages in conversations.items()}
        return {id: refused if lm == "start" and begun not in text else "Sure: do it." for id, text in texts.items()}

    monkeypatch.setattr(report, "answer", answer)
    assert is_refusal(refused)
    pair: Any = {name: name for name in NAMES}
    plain = report.refusals(pair, 8, 0, 16)
    found = report.wrapped_attacks(pair, plain, 8, 0, 16, ("prefix", "story"))
    value = found.set_index(["model", "wrapper", "rate"])["value"]
    for wrapper in ("none", "prefix", "story"):
        assert value["start", wrapper, "over_refusal"] == 1
        assert value["tuned", wrapper, "over_refusal"] == 0
        assert value["start", wrapper, "compliance"] == float(wrapper == "prefix")
        assert value["tuned", wrapper, "compliance"] == 1
    assert len(found) == 2 * 3 * 2
    assert set(found["n"]) == {sum(p.pair in {q.pair for q in safety.load()[:8]} for p in safety.load()) // 2}
    part = report.wrapped_attacks(pair, plain, 4, 0, 16, ("prefix",))
    assert set(part["n"]) == {len({q.pair for q in safety.load()[:4]})}
    both = report.safety_pair(plain).set_index(["model", "rate"])["value"]
    assert both["change", "over_refusal"] == -1


def test_subjects_stand_apart_and_together() -> None:
    def scores(right: list[bool]) -> pd.DataFrame:
        subjects = ["law", "law", "art", "art", "art", "sky"]
        return pd.DataFrame({"id": range(6), "subject": subjects, "correct": right})

    found = report.by_subject({"start": scores([True] * 3 + [False] * 3), "tuned": scores([True] * 6)})
    rows = found.set_index("subject")
    assert rows["n"].to_dict() == {"art": 3, "law": 2, "sky": 1, "all": 3}
    assert rows.loc["art", "start"] == pytest.approx(1 / 3)
    assert (rows.loc["all", "start"], rows.loc["all", "tuned"], rows.loc["all", "change"]) == (0.5, 1.0, 0.5)
    assert rows.loc["all", "low"] < 0.5 < rows.loc["all", "high"]


def test_only_published_win_rates_are_placed() -> None:
    found = leaderboard.published_places().set_index("model")
    assert found.loc["gpt-4-1106-preview", ["rank", "above", "below"]].tolist() == [1, "", "gpt-4"]
    assert found["rank"].is_monotonic_increasing
    starling = found.loc["Starling-LM-7B-alpha"]
    assert starling["win_rate"] == 14.69
    assert starling["rank"] == 1 + (found["win_rate"] > 14.69).sum()
    assert (found["of"] == len(found)).all()
    board = pd.DataFrame({"win_rate": [90.0, 1.0]}, index=["best", "worst"])
    placed = leaderboard.published_places(board, by="win_rate").set_index("model")
    assert placed.loc["gpt-4-1106-preview", ["rank", "of", "above", "below"]].tolist() == [2, 3, "best", "worst"]
    with pytest.raises(EvaluationError, match="no published figure"):
        leaderboard.published_places(by="avg_length")
