"""Ranked prompts as the judge saw them: conversation, answers in shown order, ranks of every pass, its raw replies."""

from __future__ import annotations

import html
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from starling_nb.chat import Message
from starling_nb.errors import StarlingError
from starling_nb.explore.pages import Pages, escaped
from starling_nb.nectar import dataset, prompts


@dataclass(frozen=True)
class Pass:
    """One ranking: for each answer the place where it was shown and its rank (1 is best; none where it failed), and the
    judge's words."""

    places: list[int]
    ranks: list[int] | None
    said: str


@dataclass(frozen=True)
class Row:
    """A prompt, its answers with their authors, and every pass over them."""

    prompt_id: str
    messages: list[Message]
    models: list[str]
    answers: list[str]
    passes: list[Pass]


def read(folder: Path, variant: str = "final") -> list[Row]:
    """The rows of a run's stage 01, from its folder; answers in the order of the candidates.

    A row whose rankings do not tell which answer is whose is left out (see :func:`_named`).

    Raises:
        StarlingError: the folder lacks the rows or the rankings, or none has that variant.
    """
    for name in ("nectar.parquet", "rankings.parquet"):
        if not (folder / name).exists():
            raise StarlingError(f"{folder} has no {name}: name the folder of stage 01 (outputs/laptop/01_…)")
    rankings = pd.read_parquet(folder / "rankings.parquet")
    own = rankings[rankings.variant == variant]
    if own.empty:
        raise StarlingError(
            f"no ranking has the variant {variant!r}: choose from {', '.join(rankings.variant.unique())}"
        )
    by_prompt = {str(id): rows.to_dict("records") for id, rows in own.groupby("prompt_id", sort=False)}
    ranked = dataset.load(folder / "nectar.parquet")
    found = []
    for row, item in zip(ranked, dataset.candidates_of(ranked, prompts.load()), strict=True):
        records = by_prompt.get(item.prompt.id, [])
        if known := _named(row["answers"], records):
            models, answers = map(list, zip(*known, strict=True))
            found.append(Row(item.prompt.id, item.prompt.messages, models, answers, [_pass(r) for r in records]))
    return found


def _named(answers: list[dict[str, Any]], records: list[dict[str, Any]]) -> list[tuple[str, str]] | None:
    """Author and text of every candidate, or None where that cannot be told.

    Rankings name candidates by number, rows hold texts in the merged order of their rankings: so an author who stands
    twice is told apart too. Rankings that contradict themselves may have been kept out of a row; where both readings
    fit the authors and differ, neither is shown.
    """
    best_first = sorted(answers, key=lambda answer: float(answer["rank"]))
    valid = [record for record in records if _ranked(record)]
    told = []
    for used in (valid, [record for record in valid if not (record.get("contradictions") or 0) > 0]):
        order = dataset.merged_order([dataset.ranks(record) for record in used]) if used else []
        if len(order) != len(best_first):
            continue
        named = [
            (one["model"], one["answer"]) for _, one in sorted(zip(order, best_first, strict=True), key=itemgetter(0))
        ]
        if all([named[i][0] for i in record["shown"]] == list(record["models"]) for record in records):
            told.append(named)
    return told[0] if told and told[0] == told[-1] else None


def _ranked(record: dict[str, Any]) -> bool:
    return hasattr(record["ranking"], "__len__")


def _pass(record: dict[str, Any]) -> Pass:
    """A ranking's places and ranks, in the order of the candidates."""
    shown = [int(number) for number in record["shown"]]
    said = record["reply"] if isinstance(record["reply"], str) else str(record["error"])
    ranks = [rank + 1 for rank in dataset.ranks(record)] if _ranked(record) else None
    return Pass([shown.index(number) for number in range(len(shown))], ranks, said)


def pages(rows: list[Row]) -> Pages[Row]:
    """The rows to page through; a search looks into prompt, answers and authors."""
    return Pages(rows, drawn, lambda row: "\n".join([row.prompt_id, _asked(row), *row.answers, *row.models]))


def drawn(row: Row) -> str:
    """A row as HTML: answers as the first pass showed them."""
    heads = ["shown", "author", "answer", *(f"rank, pass {n}" for n, _ in enumerate(row.passes, 1))]
    order = sorted(range(len(row.answers)), key=lambda i: row.passes[0].places[i])
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _cells(row, i))}</tr>" for i in order)
    said = "".join(
        f"<details><summary>the judge's words, pass {n}</summary><pre>{html.escape(one.said)}</pre></details>"
        for n, one in enumerate(row.passes, 1)
    )
    top = "".join(f"<th>{head}</th>" for head in heads)
    return f"<p><b>{escaped(_asked(row))}</b></p><table><tr>{top}</tr>{body}</table>{said}"


def _asked(row: Row) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in row.messages)


def _cells(row: Row, i: int) -> list[str]:
    letters = ", ".join(chr(ord("A") + one.places[i]) for one in row.passes)
    ranks = [str(one.ranks[i]) if one.ranks else "no ranking" for one in row.passes]
    return [letters, html.escape(row.models[i]), escaped(row.answers[i]), *ranks]
