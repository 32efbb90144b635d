"""Refusals on both sides: harmless prompts that must be answered, harmful ones that must not.

The two rates are always given together, as XSTest does (Röttger et al. 2023, arXiv 2308.01263): refusing
everything makes one of them perfect. Refusals are recognised by rules, which see what an answer says and
not what it does: an evasive answer without a refusal counts as compliance. Use the rates for change, not as
absolute safety.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from starling_nb import files
from starling_nb.chat import Message
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.safety.refusals import is_refusal
from starling_nb.evaluation.tables import same_items
from starling_nb.stats import Interval, paired_difference, proportion_interval, share_change

LABELS = ("benign", "harmful")


@dataclass(frozen=True)
class Prompt:
    """One prompt of a contrast pair; ``pair`` names both."""

    id: str
    pair: str
    label: Literal["benign", "harmful"]
    messages: list[Message]
    rubric: Mapping[str, Any]


@dataclass(frozen=True)
class Rates:
    """Shares of benign prompts refused and of harmful ones complied with, 0..1, Wilson intervals."""

    over_refusal: Interval
    compliance: Interval


@dataclass(frozen=True)
class Change:
    """How the two rates change, after minus before, paired by prompt; below zero is better in both."""

    over_refusal: Interval
    compliance: Interval


def load(path: Path | None = None) -> list[Prompt]:
    """Read contrast prompts: rows with id, pair, label (benign or harmful) and messages.

    Raises:
        EvaluationError: a row lacks a field or has another label.
    """
    path = path or files.DATA / "bench_safety.jsonl"
    try:
        prompts = [
            Prompt(row["id"], row["pair"], row["label"], row["messages"], row.get("rubric") or {})
            for row in files.read_jsonl(path)
        ]
    except (KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: a row lacks {error}; it needs id, pair, label and messages") from error
    for prompt in prompts:
        if prompt.label not in LABELS:
            raise EvaluationError(f"{path}: prompt {prompt.id} has the label {prompt.label!r}: use benign or harmful")
    return prompts


def label(prompts: Sequence[Prompt], answers: Mapping[str, str]) -> pd.DataFrame:
    """One row a prompt: id, pair, label, refused.

    Raises:
        EvaluationError: a prompt has no answer.
    """
    if missing := [prompt.id for prompt in prompts if prompt.id not in answers]:
        raise EvaluationError(f"{len(missing)} prompts have no answer, {missing[0]} first: answer all of them")
    rows = [(prompt.id, prompt.pair, prompt.label, is_refusal(answers[prompt.id])) for prompt in prompts]
    return pd.DataFrame(rows, columns=["id", "pair", "label", "refused"])


def rates(rows: pd.DataFrame) -> Rates:
    """Over-refusal and compliance of rows with ``label`` (benign or harmful) and ``refused``.

    Raises:
        EvaluationError: one of the two labels has no rows; the rates are given together or not at all.
    """
    benign, harmful = (rows.loc[rows["label"] == label, "refused"].astype(bool) for label in LABELS)
    if benign.empty or harmful.empty:
        raise EvaluationError("both rates or none: rows need benign and harmful prompts")
    return Rates(
        over_refusal=proportion_interval(int(benign.sum()), len(benign)),
        compliance=proportion_interval(int((~harmful).sum()), len(harmful)),
    )


def paired(before: pd.DataFrame, after: pd.DataFrame) -> Change:
    """Change of both rates over the prompts that ``before`` and ``after`` share (columns id, label, refused).

    Raises:
        EvaluationError: the two hold different prompts, or only one label.
    """
    both = same_items(before, after[["id", "refused"]], "prompts")

    def change(label: str, sign: int) -> Interval:
        rows = both[both["label"] == label]
        if rows.empty:
            raise EvaluationError(f"there are no {label} prompts: the two rates are given together")
        return share_change(sign * (rows["refused_after"].astype(float) - rows["refused_before"].astype(float)))

    return Change(over_refusal=change("benign", 1), compliance=change("harmful", -1))


def verbosity(before: Mapping[str, str], after: Mapping[str, str], *, seed: int = 0) -> Interval:
    """Change of the logarithm of an answer's words, after − before, paired by prompt: 0.1 is about a tenth longer.

    It belongs beside the two rates: a model that says less also harms less.

    Raises:
        EvaluationError: the two answer different prompts.
    """
    if set(before) != set(after) or not before:
        raise EvaluationError("before and after must answer the same prompts: answer one set with both models")
    new, old = ([math.log1p(len(side[id].split())) for id in before] for side in (after, before))
    return paired_difference(new, old, seed=seed)
