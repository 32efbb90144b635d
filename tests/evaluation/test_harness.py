from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from evaluation import small

from starling_nb.evaluation import EvaluationError, mmlu
from starling_nb.evaluation.mmlu import Question, harness
from starling_nb.evaluation.mmlu import sets as mmlu_sets
from starling_nb.evaluation.mmlu.harness import Run
from starling_nb.models import LM

SUBJECTS = ("old_rivers", "stars")
WORDS = ["which", "of", "these", "is", "the", "largest", "oldest", "river", "star", "city", "law", "number"]
OPTIONS = [f"{letter}. {{{{choices[{n}]}}}}" for n, letter in enumerate("ABCD")]
WHY = "needs lm-evaluation-harness: pip install -c constraints.txt -e '.[harness]'"


def made(n: int, subject: str, seed: int) -> list[Question]:
    generator = np.random.default_rng(seed)

    def text(k: int) -> str:
        return " ".join(generator.choice(WORDS, k))

    choices = [tuple(text(2) for _ in range(4)) for _ in range(n)]
    return [Question(f"{subject}{seed}-{i}", subject, text(9) + "?", four, i % 4) for i, four in enumerate(choices)]


EXAMPLES = [question for seed, subject in enumerate(SUBJECTS) for question in made(5, subject, seed)]
ASKED = made(9, SUBJECTS[0], 8) + made(6, SUBJECTS[1], 9)


def write(folder: Path) -> Path:
    """A group of two tasks as the harness has MMLU, over local files."""
    for subject in SUBJECTS:
        parts = {}
        for part, questions in (("test", ASKED), ("dev", EXAMPLES)):
            rows = [
                {"question": q.question, "choices": q.choices, "answer": q.answer}
                for q in questions
                if q.subject == subject
            ]
            parts[part] = str(folder / f"{subject}-{part}.jsonl")
            Path(parts[part]).write_text("\n".join(json.dumps(row) for row in rows))
        task = {
            "task": f"local_{subject}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": parts, "cache_dir": str(folder / "cache")},
            "test_split": "test",
            "fewshot_split": "dev",
            "fewshot_config": {"sampler": "first_n"},
            "output_type": "multiple_choice",
            "description": mmlu.prompt(ASKED[0], []).split(" about ")[0] + f" about {subject.replace('_', ' ')}.\n\n",
            "doc_to_text": "{{question}}\n" + "\n".join(OPTIONS) + "\nAnswer:",
            "doc_to_choice": list("ABCD"),
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        (folder / f"{subject}.yaml").write_text(yaml.safe_dump(task))
    said = {
        "task": "local_saying",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": parts["test"]}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]}
            for name, pattern in (("first", r"(\w+)"), ("all", "(.*)"))
        ],
    }
    (folder / "saying.yaml").write_text(yaml.safe_dump(said))
    group = {
        "group": "local_mmlu",
        "task": [f"local_{subject}" for subject in SUBJECTS],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (folder / "group.yaml").write_text(yaml.safe_dump(group))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lm_eval", reason=WHY)
    return write(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def lm() -> LM:
    texts = [mmlu.prompt(question, EXAMPLES) for question in ASKED]
    return small.lm([*texts, "A B C D", "A", "B", "C", "D"], seed=1)


@pytest.fixture(scope="module")
def five_shot(lm: LM, folder: Path) -> Run:
    return harness.run(lm, ["local_mmlu"], folders=[folder], shots=5)


def test_the_harness_and_our_own_protocol_agree_question_by_question(lm: LM, five_shot: Run) -> None:
    theirs, ours = harness.scores(five_shot), mmlu.score(lm, ASKED, EXAMPLES)
    assert theirs["subject"].tolist() == [f"local_{question.subject}" for question in ASKED]
    assert theirs["id"].str.split("-").str[0].tolist()[:2] == ["local_old_rivers/0", "local_old_rivers/1"]
    same = ["choice", "correct", "margin", "mean_margin"]
    pd.testing.assert_frame_equal(theirs[same], ours[same], atol=1e-4, rtol=0)
    assert 0 < ours["correct"].mean() < 1
    assert five_shot.cut == 0


def test_its_own_figures_are_ours(five_shot: Run) -> None:
    official = five_shot.official.set_index("task")
    table = harness.scores(five_shot)
    assert official.loc["local_mmlu", "value"] == pytest.approx(mmlu_sets.accuracy(table).value, abs=1e-12)
    parts = mmlu_sets.by_subject(table).set_index("subject")
    for name in parts.index:
        assert official.loc[name, "value"] == pytest.approx(parts.loc[name, "accuracy"], abs=1e-12)
        assert (official.loc[name, "n"], official.loc[name, "shots"]) == (parts.loc[name, "n"], 5)


def test_change_is_paired_and_nothing_of_the_model_is_left_changed(lm: LM, folder: Path, five_shot: Run) -> None:
    other = small.lm([mmlu.prompt(question, EXAMPLES) for question in ASKED], seed=2)
    assert lm.chat.tokenizer.pad_token is None
    before, after = (
        harness.scores(five_shot),
        harness.scores(harness.run(other, ["local_mmlu"], folders=[folder], shots=5)),
    )
    change = mmlu_sets.change(before, after.iloc[::-1], clusters="question")
    assert change.value == pytest.approx(after["correct"].mean() - before["correct"].mean())
    assert change.n == len(ASKED)
    assert mmlu.compare(before, after).difference.value == pytest.approx(
        after["mean_margin"].mean() - before["mean_margin"].mean()
    )


def test_with_chat_the_conversation_is_ours_or_refused(lm: LM, folder: Path) -> None:
    found = harness.scores(harness.run(lm, ["local_stars"], folders=[folder], shots=2, limit=4, chat=True))
    assert len(found) == 4
    plain = harness.scores(harness.run(lm, ["local_stars"], folders=[folder], shots=2, limit=4))
    assert not np.allclose(found["margin"], plain["margin"])
    asked = LM(lm.model, lm.chat.conditioned("A star"), lm.name)
    with pytest.raises(EvaluationError, match="would not write a conversation"):
        harness.run(asked, ["local_stars"], folders=[folder], limit=1, chat=True)


def test_what_is_said_is_read_by_one_filter_at_a_time(lm: LM, folder: Path) -> None:
    found = harness.run(lm, ["local_saying"], folders=[folder])
    with pytest.raises(EvaluationError, match="filters all, first"):
        harness.scores(found, "exact_match")
    table = harness.scores(found, "exact_match", filter="first")
    assert len(table) == 6
    assert table["margin"].isna().all()
    assert len(found.samples) == 12


def test_a_prompt_that_is_too_long_is_counted(lm: LM, folder: Path) -> None:
    wrapped = harness.wrap(lm)
    wrapped._max_length = 8
    tokens = list(range(2, 22))
    wrapped._loglikelihood_tokens([(("a", "b"), tokens, [3]), (("a", "b"), tokens[:4], [3])], disable_tqdm=True)
    assert wrapped.cut == 1


def test_what_cannot_be_asked_is_said(lm: LM, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    # Looking through the harness's own thousands of files takes longer than a test may.
    only_folders = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", only_folders)
    with pytest.raises(EvaluationError, match="no task nothing_such"):
        harness.run(lm, ["nothing_such"], folders=[folder])
    with pytest.raises(EvaluationError, match="no folder"):
        harness.run(lm, ["local_stars"], folders=[tmp_path / "none"])
    with pytest.raises(EvaluationError, match="limit = 0"):
        harness.run(lm, ["local_stars"], folders=[folder], limit=0)
    with pytest.raises(EvaluationError, match="no tasks"):
        harness.run(lm, [], folders=[folder])
    text = (folder / "stars.yaml").read_text().replace("stars-test.jsonl", "gone.jsonl")
    (tmp_path / "gone.yaml").write_text(text.replace("local_stars", "local_gone"))
    with pytest.raises(EvaluationError, match="local_gone cannot be loaded"):
        harness.run(lm, ["local_gone"], folders=[tmp_path])


def test_without_the_harness_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(EvaluationError, match=r"\.\[harness\]"):
        harness.run(small.lm(["a"]), ["mmlu"])


def found(**columns: Any) -> Run:
    """What the harness might have found on two questions."""
    plain = {"task": "t", "id": ["t/0", "t/1"], "filter": "none", "metric": "acc", "value": [1, 0]}
    rest = {"choice": "A", "margin": 0.5, "mean_margin": 0.5}
    official = pd.DataFrame([("t", "acc", "none", 0.5, 5, 2)], columns=list(harness.OFFICIAL))
    return Run(pd.DataFrame(plain | rest | columns)[list(harness.SAMPLES)], official, 0)


def test_only_what_is_right_or_wrong_once_a_question_is_a_score() -> None:
    assert harness.scores(found())["correct"].tolist() == [True, False]
    for bad in ({"value": [1, 0.5]}, {"value": [1, None]}, {"value": [1, "x"]}, {"id": "t/0"}):
        with pytest.raises(EvaluationError, match="once a question"):
            harness.scores(found(**bad))
    with pytest.raises(EvaluationError, match="not the harness's own"):
        harness.scores(found(value=[1, 1]))
    with pytest.raises(EvaluationError, match="choose one of acc"):
        harness.scores(found(), "f1")
    with pytest.raises(EvaluationError, match="filters none"):
        harness.scores(found(), filter="strict")
    assert len(harness.scores(replace(found(), cut=3))) == 2


def sample(target: Any, logps: list[float]) -> dict[str, Any]:
    """A logged sample of a question with two choices."""
    letters = [("q", f" {letter}") for letter in "AB"]
    return {"filtered_resps": [(one, False) for one in logps], "arguments": letters, "target": target}


def test_margins_are_read_from_log_likelihoods() -> None:
    assert harness._chosen(sample(1, [-3.0, -1.0]), "q") == ("B", 2.0, 2.0)
    assert harness._chosen(sample("A", [-3.0, -1.0]), "q") == ("B", -2.0, -2.0)
    assert np.isnan(harness._chosen(sample("C", [-3.0, -1.0]), "q")[1])
    with pytest.raises(EvaluationError, match="question q has log-likelihoods"):
        harness._chosen(sample(0, [float("nan"), -1.0]), "q")
