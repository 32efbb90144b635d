"""FastChat's ``llm_judge`` files, in and out: answers and single grades (arXiv 2306.05685; facts of the format:
``fastchat/llm_judge/{gen_model_answer,gen_judgment}.py``).

A score of -1 marks a reply without a grade, ``$ERROR$`` a judge that could not be reached, and the answer ``ERROR`` a
generation that failed. Pairwise files are in ``mt_bench_pairs``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from starling_nb import files
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.mt_bench import Question
from starling_nb.judge import Outcome, Request

UNREADABLE = -1
JUDGE_FAILED = "$ERROR$"
ANSWER_FAILED = "ERROR"
OWN_PROMPT = "starling-nb-single"
COLUMNS = ["model", "question_id", "category", "turn", "repeat", "score"]


@dataclass(frozen=True)
class Answers:
    """Answers by question id, one for each turn. ``failed`` names questions whose generation failed, ``duplicated``
    those with a second row; the first row stands."""

    turns: dict[str, list[str]]
    failed: tuple[str, ...]
    duplicated: tuple[str, ...]


def file_id(id: str) -> int | str:
    """FastChat's question ids are whole numbers in files."""
    return int(id) if id.isascii() and id.isdigit() and str(int(id)) == id else id


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write ``question.jsonl``: question_id, category, turns and, where there is one, reference."""
    rows = []
    for question in questions:
        row = {"question_id": file_id(question.id), "category": question.category, "turns": list(question.turns)}
        rows.append(row | ({"reference": list(question.references)} if question.references else {}))
    files.write_jsonl(path, rows)


def read_answers(path: Path) -> Answers:
    """Read ``model_answer/MODEL.jsonl``; the first choice of each question counts.

    Raises:
        EvaluationError: a row lacks question_id or choices[0].turns.
    """
    turns: dict[str, list[str]] = {}
    failed, duplicated = [], []
    for number, row in enumerate(files.read_jsonl(path), 1):
        try:
            id, said = str(row["question_id"]), [str(text) for text in row["choices"][0]["turns"]]
        except (KeyError, IndexError, TypeError) as error:
            raise EvaluationError(
                f"{path}, row {number} lacks question_id or choices[0].turns: mend the row"
            ) from error
        if id in turns or id in failed:
            duplicated.append(id)
        elif any(text.strip() == ANSWER_FAILED for text in said):
            failed.append(id)
        else:
            turns[id] = said
    return Answers(turns, tuple(failed), tuple(duplicated))


def write_answers(path: Path, answers: Mapping[str, Sequence[str]], *, model: str, tstamp: float = 0.0) -> None:
    """Write ``model_answer/MODEL.jsonl``, sorted by question; ``tstamp`` in seconds since 1970."""
    rows = []
    for id, turns in sorted(answers.items(), key=lambda item: (str(type(file_id(item[0]))), file_id(item[0]))):
        choices = [{"index": 0, "turns": list(turns)}]
        own = files.hash_value([model, id, choices])[:22]
        row = {"question_id": file_id(id), "answer_id": own, "model_id": model, "choices": choices, "tstamp": tstamp}
        rows.append(row)
    files.write_jsonl(path, rows)


def write_judgments(
    path: Path,
    requests: Iterable[Request[float]],
    outcomes: Iterable[Outcome[float]],
    *,
    model: str,
    judge: str,
    prompt: str = OWN_PROMPT,
    tstamp: float = 0.0,
) -> None:
    """Write one model's ``model_judgment/JUDGE_single.jsonl``, see :func:`judged`.

    Raises:
        EvaluationError: an outcome belongs to no request.
    """
    files.write_jsonl(path, judged(requests, outcomes, model=model, judge=judge, prompt=prompt, tstamp=tstamp))


def judged(
    requests: Iterable[Request[float]],
    outcomes: Iterable[Outcome[float]],
    *,
    model: str,
    judge: str,
    prompt: str = OWN_PROMPT,
    tstamp: float = 0.0,
) -> list[dict[str, Any]]:
    """The rows of a ``model_judgment`` file; our ``repeat`` is a further field, which FastChat passes over.

    Raises:
        EvaluationError: an outcome belongs to no request.
    """
    asked = {request.id: request for request in requests}
    rows = []
    for outcome in outcomes:
        if outcome.id not in asked:
            raise EvaluationError(f"the judgment {outcome.id} belongs to no request: give the requests that were asked")
        id, turn, repeat = outcome.id.rsplit("/", 2)
        text = outcome.reply or (JUDGE_FAILED if outcome.value is None else "")
        score = UNREADABLE if outcome.value is None else outcome.value
        row: dict[str, Any] = {"question_id": file_id(id), "model": model, "judge": [judge, prompt], "turn": int(turn)}
        row |= {"user_prompt": asked[outcome.id].messages[-1]["content"], "judgment": text, "score": score}
        rows.append(row | {"repeat": int(repeat), "tstamp": tstamp})
    return rows


def read_judgments(path: Path, questions: Iterable[Question]) -> pd.DataFrame:
    """Read ``model_judgment/JUDGE_single.jsonl``: model, question_id, category, turn, repeat, score.

    Scores come as they stand in the file, and an unknown question has the category None:
    :func:`starling_nb.evaluation.mt_bench.summarize` takes one model's rows and excludes what cannot count.

    Raises:
        EvaluationError: a row lacks question_id, model, turn or score.
    """
    categories = {question.id: question.category for question in questions}
    rows: list[tuple[Any, ...]] = []
    for number, row in enumerate(files.read_jsonl(path), 1):
        try:
            id, model, turn, score = str(row["question_id"]), str(row["model"]), int(row["turn"]), row["score"]
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"{path}, row {number} has no usable {error}: mend the row") from error
        spoiled = str(row.get("judgment", "")).strip() == JUDGE_FAILED
        found = UNREADABLE if spoiled or score is None else score
        rows.append((model, id, categories.get(id), turn, int(row.get("repeat", 1)), found))
    return pd.DataFrame(rows, columns=COLUMNS)
