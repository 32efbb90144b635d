"""Ranked prompts as the judge saw them: conversation, answers in shown order, ranks of every pass, its raw replies."""

from __future__ import annotations

import html
from dataclasses import dataclass
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
    """The rows of a run's stage 01, from its folder.

    Answers of an author who stands twice in a row cannot be told apart: such rows are left out.

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
    known = dataset.candidates_of(dataset.load(folder / "nectar.parquet"), prompts.load())
    return [
        Row(c.prompt.id, c.prompt.messages, list(c.models), list(c.answers), [_pass(c.models, r) for r in found])
        for c in known
        if (found := by_prompt.get(c.prompt.id)) and len(set(c.models)) == len(c.models)
    ]


def _pass(models: Any, record: dict[str, Any]) -> Pass:
    """A ranking's places and ranks, in the order of ``models``."""
    named, shown = list(record["models"]), list(record["shown"])
    places = [shown.index(named.index(model)) for model in models]
    said = record["reply"] if isinstance(record["reply"], str) else str(record["error"])
    if not hasattr(record["ranking"], "__len__"):
        return Pass(places, None, said)
    order = [int(place) for place in record["ranking"]]
    return Pass(places, [order.index(place) + 1 for place in places], said)


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
