"""Scores of benchmark items: by a scorer, stored with the file, saved and reread; and what they get right."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from starling_nb import files
from starling_nb.chat import Message
from starling_nb.reward.benchmarks.items import BenchmarkError, Item
from starling_nb.reward.benchmarks.sources import checked, read_rows

Scorer = Callable[[list[list[Message]]], Sequence[float]]
Scores = list[tuple[float, ...]]
STYLES = ("short", "detailed", "markdown")


def score(scorer: Scorer, items: Sequence[Item]) -> Scores:
    """Scores ``[items][answers]``; each distinct conversation is scored once, all in one call.

    Raises:
        BenchmarkError: the scorer gives another number of scores, or one that is NaN (the item is named).
    """
    conversations = [item.conversations() for item in items]
    keys = [[json.dumps(c, sort_keys=True) for c in group] for group in conversations]
    distinct = {k: c for ks, group in zip(keys, conversations, strict=True) for k, c in zip(ks, group, strict=True)}
    values = list(scorer(list(distinct.values())))
    if len(values) != len(distinct):
        raise BenchmarkError(f"the scorer gave {len(values)} scores for {len(distinct)} conversations: give one each")
    known = dict(zip(distinct, (float(v) for v in values), strict=True))
    return check(items, [tuple(known[k] for k in ks) for ks in keys])


def stored(items: Sequence[Item]) -> Scores:
    """The scores that came with the file.

    Raises:
        BenchmarkError: an item has none, or one that is NaN.
    """
    found = []
    for item in items:
        if item.stored is None:
            raise BenchmarkError(f"item {item.id} has no stored scores: score the items with a reward model")
        if any(math.isnan(value) for value in item.stored):
            raise BenchmarkError(f"item {item.id}: a stored score is NaN or missing: mend the file, or score it again")
        found.append(item.stored)
    return check(items, found)


def longest(items: Sequence[Item]) -> Scores:
    """The longest-answer baseline: words."""
    return [tuple(float(len(answer.split())) for answer in item.answers) for item in items]


def check(items: Sequence[Item], scores: Scores) -> Scores:
    """The scores, if there is one number for each answer and none is NaN.

    Raises:
        BenchmarkError: otherwise; the message names the item.
    """
    if len(items) != len(scores):
        raise BenchmarkError(f"{len(scores)} rows of scores for {len(items)} items: score the same items")
    for item, row in zip(items, scores, strict=True):
        if len(row) != len(item.answers):
            raise BenchmarkError(f"item {item.id}: {len(row)} scores for {len(item.answers)} answers: score it again")
        if any(math.isnan(value) for value in row):
            raise BenchmarkError(f"item {item.id}: the score is NaN: check the model's weights and precision")
    return scores


def outcomes(item: Item, scores: Sequence[float]) -> dict[str, float]:
    """What the scores get right, in [0, 1]. A tie loses everywhere, but for truth's c>=a, rounded to two places.

    ``styles``: ``easy`` pairs a chosen answer with a rejected one of plainer style, ``hard`` with one of richer style,
    ``normal`` with one of the same style (RM-Bench); ``accuracy`` is the mean of all nine.
    """
    if item.rule == "truth":
        a, b, c = scores
        checks = {"a>b": float(a > b), "c>b": float(c > b), "c>=a": float(round(c, 2) >= round(a, 2))}
        return {"accuracy": sum(checks.values()) / 3, **checks}
    if item.rule == "pair":
        rest = [value for i, value in enumerate(scores) if i != item.right]
        return {"accuracy": float(scores[item.right] > max(rest))}
    cells = {(i, j): float(scores[i] > scores[3 + j]) for i in range(3) for j in range(3)}
    return {
        "accuracy": sum(cells.values()) / 9,
        "easy": sum(v for (i, j), v in cells.items() if i > j) / 3,
        "normal": sum(v for (i, j), v in cells.items() if i == j) / 3,
        "hard": sum(v for (i, j), v in cells.items() if i < j) / 3,
        **{f"{STYLES[i]}>{STYLES[j]}": v for (i, j), v in cells.items()},
    }


def check_ending(path: Path) -> None:
    """Refuse a file of scores whose ending is neither ``.parquet`` nor ``.jsonl``.

    Raises:
        BenchmarkError: another ending.
    """
    if path.suffix not in (".parquet", ".jsonl"):
        raise BenchmarkError(f"{path}: scores are saved as .parquet or .jsonl: choose one of these endings")


def save_scores(path: Path, items: Sequence[Item], scores: Scores) -> None:
    """Write id, hash of the conversations and scores of each item to ``.parquet`` or ``.jsonl``, atomically.

    Raises:
        BenchmarkError: another ending, or scores that do not fit. StarlingError: the file cannot be written.
    """
    check_ending(path)
    rows = [
        {"id": item.id, "sha256": files.hash_value(item.conversations()), "scores": [float(v) for v in row]}
        for item, row in zip(items, check(items, scores), strict=True)
    ]
    if path.suffix == ".jsonl":
        files.write_jsonl(path, rows)
        return
    with files.replacing(path) as temporary:
        pd.DataFrame(rows, columns=["id", "sha256", "scores"]).to_parquet(temporary)


def load_scores(path: Path, items: Sequence[Item]) -> Scores:
    """Scores saved by :func:`save_scores`, in the order of ``items``.

    Raises:
        BenchmarkError: the file is missing, broken or of another kind, lacks an item, or its texts have changed since.
    """
    check_ending(path)
    if not path.exists():
        raise BenchmarkError(f"{path} is missing: score the items first")
    rows = checked(read_rows(path), str(path), ("id", "sha256", "scores"))
    try:
        known = {(str(r["id"]), r["sha256"]): tuple(float(v) for v in r["scores"]) for r in rows}
    except (TypeError, ValueError) as error:
        raise BenchmarkError(f"{path}: column scores holds no lists of numbers: delete it and score again") from error
    keys = [(item.id, files.hash_value(item.conversations())) for item in items]
    for key in keys:
        if key not in known:
            raise BenchmarkError(f"{path} has no scores of item {key[0]} with these texts: delete it and score again")
    return check(items, [known[key] for key in keys])
