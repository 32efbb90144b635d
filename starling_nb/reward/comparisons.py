"""Ranked comparisons, as reward training reads them: from Nectar rows, split by prompt, faulty answers left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from starling_nb import chat, files
from starling_nb.chat import ChatError, ChatFormat, Message
from starling_nb.errors import StarlingError
from starling_nb.nectar import prompts


class ComparisonError(StarlingError):
    """Rankings from which nothing can be learned."""


@dataclass(frozen=True)
class Comparison:
    """One prompt with K answers and their ranks (1.0 best, equal for ties), as a Nectar row holds them."""

    prompt_id: str
    messages: list[Message]
    answers: list[str]
    responders: list[str]
    ranks: list[float]


def of_rows(rows: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Nectar rows as comparisons, answers in an order that does not give the ranks away."""
    found = []
    for row in rows:
        messages = chat.from_nectar_text(row["prompt"])
        answers = sorted(row["answers"], key=lambda a: (a["model"], a["answer"]))
        found.append(
            Comparison(
                prompts.key(messages),
                messages,
                [a["answer"] for a in answers],
                [a["model"] for a in answers],
                [a["rank"] for a in answers],
            )
        )
    return found


def load(path: Path, first: int | None = None) -> list[Comparison]:
    """Comparisons of a file in Nectar's schema (parquet, or JSON lines that may be gzipped), K as it comes.

    Of every answer ``answer``, ``model`` and ``rank`` are read; ranks may tie. ``first`` takes so many rows alone.

    Raises:
        ComparisonError: no such file, another format, or a row that lacks a field; the message says which.
    """
    if not path.is_file():
        raise ComparisonError(f"{path} does not exist: give a file in Nectar's schema (parquet or JSON lines)")
    rows = _read(path, first)
    for number, row in enumerate(rows):
        if fault := _fault(row):
            raise ComparisonError(f"{path}, row {number}: {fault}")
    if not rows:
        raise ComparisonError(f"{path} holds no rows: there is nothing to compare")
    return of_rows(rows)


def _read(path: Path, first: int | None) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = []
        try:
            for part in pq.ParquetFile(path).iter_batches(batch_size=1000):
                rows += part.to_pylist()
                if first is not None and len(rows) >= first:
                    break
        except Exception as error:
            raise ComparisonError(f"{path} is no readable parquet file: {error}") from error
        return rows[:first]
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return files.read_jsonl(path)[:first]
    raise ComparisonError(f"{path.name}: give .parquet, .jsonl or .jsonl.gz")


def _fault(row: object) -> str | None:
    """What a row lacks to be a comparison."""
    if not isinstance(row, Mapping):
        return "it is no JSON object"
    prompt, answers = row.get("prompt"), row.get("answers")
    if not isinstance(prompt, str) or not isinstance(answers, list):
        return "it needs a prompt (text) and answers (a list of answer, model, rank)"
    try:
        chat.from_nectar_text(prompt)
    except ChatError as error:
        return str(error)
    for answer in answers:
        rank = answer.get("rank") if isinstance(answer, Mapping) else None
        if not isinstance(rank, int | float) or isinstance(rank, bool) or not math.isfinite(rank):
            return "every answer needs a rank that is a finite number"
        if not isinstance(answer.get("answer"), str) or not isinstance(answer.get("model"), str):
            return "every answer needs its text (answer) and who gave it (model)"
    return None


def only(comparison: Comparison, kept: Sequence[int]) -> Comparison:
    """A comparison with some of its answers (places); the other ranks close up, ties stay ties."""
    ranks = [comparison.ranks[i] for i in kept]
    return replace(
        comparison,
        answers=[comparison.answers[i] for i in kept],
        responders=[comparison.responders[i] for i in kept],
        ranks=[1.0 + sum(other < rank for other in ranks) for rank in ranks],
    )


def without(comparison: Comparison, responders: Sequence[str]) -> Comparison:
    """A comparison less the answers of some responders."""
    return only(comparison, [i for i, name in enumerate(comparison.responders) if name not in responders])


def usable(
    comparisons: Sequence[Comparison], form: ChatFormat, limit: int = 2048
) -> tuple[list[Comparison], dict[str, int]]:
    """Leave out what nothing can be learned from, and count it.

    Answers go when they are empty, repeat an earlier answer to the same prompt, cannot be written as a conversation (a
    control token in the text) or leave no room for a prompt within ``limit`` tokens; comparisons when their prompt
    cannot be written, or fewer than two answers of different rank remain.

    Args:
        comparisons: as read.
        form: how the reward model reads conversations.
        limit: positions a prompt with an answer may take.

    Returns:
        What is left, and the number left out by reason.

    Raises:
        ComparisonError: nothing is left.
    """
    found, dropped = [], Counter[str]()
    for comparison in comparisons:
        try:
            form.prompt_ids(comparison.messages)
        except ChatError:
            dropped["prompt that cannot be written"] += 1
            continue
        kept: list[int] = []
        for place, answer in enumerate(comparison.answers):
            earlier = [comparison.answers[i].strip() for i in kept]
            fault = _answer_fault(form, comparison.messages, answer, earlier, limit)
            if fault:
                dropped[fault] += 1
            else:
                kept.append(place)
        left = comparison if len(kept) == len(comparison.answers) else only(comparison, kept)
        if len(set(left.ranks)) < 2:
            dropped["fewer than two answers of different rank"] += 1
        else:
            found.append(left)
    if not found:
        told = ", ".join(f"{count} × {reason}" for reason, count in dropped.items()) or "none were given"
        raise ComparisonError(f"no comparison can be used ({told}): look at the data, or raise the limit of {limit}")
    return found, dict(dropped)


def _answer_fault(
    form: ChatFormat, messages: Sequence[Message], answer: str, earlier: Sequence[str], limit: int
) -> str | None:
    if not answer.strip():
        return "empty answer"
    if answer.strip() in earlier:
        return "repeated answer"
    try:
        encoded = form.encode(messages, answer)
    except ChatError:
        return "answer with a control token"
    return "answer longer than the window" if encoded.answer_length + 2 > limit else None


def by_split(comparisons: Sequence[Comparison], held_out: Sequence[str] = ()) -> dict[str, list[Comparison]]:
    """Comparisons by split of their prompt; ``train`` holds no answer of the held-out responders.

    What that leaves without two answers of different rank is not in ``train``.
    """
    parts: dict[str, list[Comparison]] = {"train": [], "validation": [], "test": []}
    for comparison in comparisons:
        parts[prompts.split_of(comparison.messages)].append(comparison)
    left = [without(comparison, held_out) for comparison in parts["train"]]
    parts["train"] = [comparison for comparison in left if len(set(comparison.ranks)) > 1]
    return parts


def read(
    path: Path,
    form: ChatFormat,
    held_out: Sequence[str] = (),
    limit: int = 2048,
    first: int | None = None,
    needed: Sequence[str] = ("train", "test"),
) -> tuple[dict[str, list[Comparison]], dict[str, int]]:
    """The usable comparisons of a file by split, and what was left out by reason.

    Raises:
        ComparisonError: as :func:`load` and :func:`usable`, or nothing is left in one of the ``needed`` splits.
    """
    every, dropped = usable(load(path, first), form, limit)
    parts = by_split(every, held_out)
    for name in needed:
        if not parts[name]:
            raise ComparisonError(
                f"{path} leaves no comparison in the {name} split: give more prompts, or hold out fewer"
            )
    return parts, dropped


def offsets(comparisons: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean score of the data set's answers to each prompt, of all its rows, by prompt key.

    The K-wise likelihood is the same for scores shifted by any constant per prompt; taking this mean off makes scores
    of different prompts comparable.
    """
    every: dict[str, list[float]] = {}
    for comparison, values in zip(comparisons, scores, strict=True):
        every.setdefault(comparison.prompt_id, []).extend(values)
    return {prompt: float(np.mean(values)) for prompt, values in every.items()}
