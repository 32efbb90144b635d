"""Small Python problems with unit tests, beside the word problems of :mod:`~.problems.gsm8k`.

A model is asked as a chat user would ask, its code is run against tests (:mod:`~.problems.sandbox`, which
says what that confines and what not), and an answer is right where every test passes. Answers are read in two ways:
*strict* wants the function inside a fenced block, *flexible* takes it from bare text too. The tables are those of the
word problems, so that :func:`accuracy` and :func:`compare` are theirs.
"""

from __future__ import annotations

import ast
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from starling_nb import files
from starling_nb.chat import Message
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.answering import answer
from starling_nb.evaluation.problems.gsm8k import READINGS, Comparison, accuracy, compare
from starling_nb.evaluation.problems.sandbox import Call, Job, Limits, run_all
from starling_nb.stats import Interval, share_interval

if TYPE_CHECKING:
    from starling_nb.models import LM

__all__ = ["READINGS", "Comparison", "Limits", "Problem", "accuracy", "answers", "compare", "conversation", "flexible"]
__all__ += ["grade", "load", "outcomes", "pass_at", "score", "strict"]

FAILURES = ("wrong", "error", "timeout", "died", "no code")
"""Why an answer is not right: a value is wrong, the program raises, takes too long, ends before its last test, or there
is no program."""
LONGEST = 20_000  # characters of an answer that are read
_FENCE = re.compile(r"^([ \t]*)(```+|~~~+)[ \t]*([\w+.-]*)[^\n]*\n(.*?)(?:^[ \t]*\2|\Z)", re.MULTILINE | re.DOTALL)
_TAGS = ("", "python", "python3", "py")
_BEGINS = re.compile(r"^(?:def |async def |class |import |from \w|@\w|\w+ *=)", re.MULTILINE)


@dataclass(frozen=True)
class Problem:
    """What a user asks for, the name of the function, its tests and a program that passes them."""

    id: str
    level: str
    question: str
    function: str
    calls: tuple[Call, ...]
    solution: str


def load(path: Path | None = None) -> list[Problem]:
    """Read problems: the embedded ones by default, or rows of prompt, function, tests and solution; ids optional.

    A test is ``assert expression == literal``: what stands on the left is evaluated where the program runs, what stands
    on the right stays here.

    Raises:
        EvaluationError: a row lacks a field, has no test or one of another form, or an id occurs twice.
    """
    path = path or files.DATA / "bench_coding.jsonl"
    problems = []
    for number, row in enumerate(files.read_jsonl(path), 1):
        try:
            id, level = str(row.get("id", number)), str(row.get("level", ""))
            calls = tuple(_call(test, row["function"]) for test in row["tests"])
            problem = Problem(id, level, row["prompt"], row["function"], calls, row["solution"])
        except (KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(
                f"{path}, row {number} has no usable {error}: it needs prompt, function, tests and solution"
            ) from error
        except (ValueError, SyntaxError) as error:
            raise EvaluationError(
                f"{path}, row {number}: {error}: write tests as `assert {row['function']}(…) == value`"
            ) from error
        if not calls:
            raise EvaluationError(f"{path}, row {number} has no tests: give it some")
        problems.append(problem)
    if len({problem.id for problem in problems}) != len(problems):
        raise EvaluationError(f"{path}: two problems have the same id: give each its own")
    return problems


def _call(test: str, function: str) -> Call:
    """``assert f(1) == 2`` as a call and the value it should have."""
    match ast.parse(test).body:
        case [ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]), msg=None)]:
            if function in {node.id for node in ast.walk(left) if isinstance(node, ast.Name)}:
                return Call(ast.unparse(left), ast.literal_eval(right))
    raise ValueError(f"the test {test!r} does not compare a call of {function} with a value")


def conversation(problem: Problem, examples: Sequence[Problem] = ()) -> list[Message]:
    """The problem as a user's turn; solved ``examples`` come first, as turns of their own."""
    turns: list[Message] = []
    for one in examples:
        turns += [
            {"role": "user", "content": one.question},
            {"role": "assistant", "content": f"```python\n{one.solution}```"},
        ]
    return [*turns, {"role": "user", "content": problem.question}]


def answers(
    lm: LM,
    problems: Sequence[Problem],
    *,
    samples: int = 1,
    seed: int = 0,
    temperature: float = 0.7,
    max_new_tokens: int = 512,
    examples: Sequence[Problem] = (),
    desc: str = "coding",
) -> dict[str, list[str]]:
    """``samples`` answers to every problem, by its id, each with randomness of its own.

    Args:
        lm: the model.
        problems, examples: see :func:`conversation`.
        samples: answers a problem; more than one makes no sense at temperature 0.
        seed, temperature, max_new_tokens, desc: as :func:`starling_nb.evaluation.answering.answer`.

    Raises:
        EvaluationError: ``samples`` is below 1.
    """
    if samples < 1:
        raise EvaluationError(f"{samples} answers a problem: ask for one or more")
    asked = {f"{one.id} #{n}": conversation(one, examples) for one in problems for n in range(samples)}
    told = answer(lm, asked, seed=seed, temperature=temperature, max_new_tokens=max_new_tokens, desc=desc)
    return {one.id: [told[f"{one.id} #{n}"] for n in range(samples)] for one in problems}


def strict(reply: str, function: str) -> str | None:
    """The last fenced Python block that defines the function at its left edge; None where there is none.

    A block that is never closed ends with the reply, as one that was cut off does.
    """
    found = None
    for indent, _, tag, body in _FENCE.findall(reply[:LONGEST]):
        code = textwrap.dedent(body) if indent else body
        if tag.lower() in _TAGS and _defines(function).search(code):
            found = code
    return found


def flexible(reply: str, function: str) -> str | None:
    """As :func:`strict`, else from the reply's bare text; None where nothing defines the function.

    Of bare text that is the first stretch of whole lines that parses and defines the function; where none parses, the
    rest from the definition on, whose mistake is then the model's.
    """
    if (fenced := strict(reply, function)) is not None:
        return fenced
    text = reply[:LONGEST]
    definition = _defines(function).search(text)
    if definition is None:
        return None
    read = 0
    for begin in _BEGINS.finditer(text, 0, definition.end()):
        if begin.start() >= read:  # what a stretch from further up could not get past, none from within it can
            code = _parsing(text[begin.start() :])
            if _defines(function).search(code):
                return code
            read = begin.start() + len(code)
    return text[definition.start() :]


def _defines(function: str) -> re.Pattern[str]:
    return re.compile(rf"^(?:(?:async )?def {re.escape(function)}\b|{re.escape(function)} *=)", re.MULTILINE)


def _parsing(text: str) -> str:
    """The longest beginning, in whole lines, that ends before each line the parser stumbles over."""
    lines = text.split("\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while lines:
            try:
                ast.parse("\n".join(lines))
            except SyntaxError as error:
                lines = lines[: min(error.lineno or 1, len(lines)) - 1]
            except (ValueError, MemoryError, RecursionError):
                return ""
            else:
                break
    return "\n".join(lines)


def grade(
    problems: Sequence[Problem],
    replies: Mapping[str, str | Sequence[str]],
    *,
    limits: Limits | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Run every answer: one row an answer, with id, sample (from 0), outcome (``passed`` or one of :data:`FAILURES`),
    fenced (whether the strict reading finds the program) and detail (of the first test that failed).

    Args:
        problems: see :func:`load`.
        replies: one answer, or several, by problem id.
        limits: of one answer.
        workers: answers that run at the same time, default one a core.
        progress: called with (answers done, answers), of those that hold a program.

    Raises:
        EvaluationError: a problem has no reply, or no child process can be started.
    """
    if missing := [problem.id for problem in problems if replies.get(problem.id, []) == []]:
        raise EvaluationError(f"{len(missing)} problems have no reply, {missing[0]} first: answer all of them")
    rows: list[dict[str, Any]] = []
    jobs: dict[int, Job] = {}
    for problem in problems:
        told = replies[problem.id]
        for sample, reply in enumerate([told] if isinstance(told, str) else told):
            program = flexible(reply, problem.function)
            if program is not None:
                jobs[len(rows)] = Job(program, problem.function, problem.calls)
            fenced = strict(reply, problem.function) is not None
            rows.append({"id": problem.id, "sample": sample, "outcome": "no code", "fenced": fenced, "detail": ""})
    for row, result in zip(jobs, run_all(list(jobs.values()), limits, workers=workers, progress=progress), strict=True):
        rows[row] |= {"outcome": result.outcome, "detail": result.detail}
    return pd.DataFrame(rows, columns=["id", "sample", "outcome", "fenced", "detail"])


def score(problems: Sequence[Problem], replies: Mapping[str, str | Sequence[str]], **how: Any) -> pd.DataFrame:
    """One row a problem: id, strict, flexible and unread as :func:`gsm8k.score` has them, here shares of the problem's
    answers, 0..1; then samples, passed, and how many answers failed by each of :data:`FAILURES`.

    Args:
        problems, replies: as :func:`grade`, and so are its other arguments.

    Raises:
        EvaluationError: as :func:`grade`.
    """
    graded = grade(problems, replies, **how)
    right = graded["outcome"] == "passed"
    marks = {"strict": right & graded["fenced"], "flexible": right, "unread": graded["outcome"] == "no code"}
    counts = {"samples": right | True, "passed": right} | {name: graded["outcome"] == name for name in FAILURES}
    shares = pd.DataFrame(marks).astype(float).groupby(graded["id"], sort=False).mean()
    return shares.join(pd.DataFrame(counts).astype(int).groupby(graded["id"], sort=False).sum()).reset_index()


def pass_at(scores: pd.DataFrame, k: int) -> Interval:
    """Chance that one of ``k`` answers is right, 0..1, from ``samples`` ≥ k answers a problem, with an interval over
    problems: 1 − C(n − c, k) / C(n, k), unbiased (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Raises:
        EvaluationError: ``k`` is below 1, or a problem has fewer answers than that.
    """
    least = int(scores["samples"].min())
    if not 1 <= k <= least:
        raise EvaluationError(f"pass@{k} needs 1 to {least} of the {least} answers a problem: sample more, or lower k")
    pairs = zip(scores["samples"], scores["passed"], strict=True)
    return share_interval([1 - math.comb(int(n - c), k) / math.comb(int(n), k) for n, c in pairs])


def outcomes(scores: pd.DataFrame) -> pd.DataFrame:
    """How many answers passed and how many failed in which way: outcome, answers, share."""
    counts = scores[["passed", *FAILURES]].sum()
    return pd.DataFrame(
        {"outcome": counts.index, "answers": counts.to_numpy(), "share": (counts / counts.sum()).values}
    )
