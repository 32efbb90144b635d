"""The rows of the data set: made from rankings, read from anywhere, and turned back into candidates.

A run hands over two files joined by ``prompt_id``: ``nectar.parquet`` (exactly Nectar's schema) and
``rankings.parquet`` (shown order, raw reply and everything else that a row has no place for).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from starling_nb import chat
from starling_nb.errors import StarlingError
from starling_nb.nectar import schema
from starling_nb.nectar.candidates import Candidates
from starling_nb.nectar.prompts import Prompt, key
from starling_nb.nectar.summary import (
    Agreement,
    agreement,
    compare_answers,
    flat,
    mean_ranks,
    show_request,
    statistics,
)

__all__ = [
    "Agreement",
    "Candidates",
    "agreement",
    "candidates_of",
    "compare_answers",
    "flat",
    "key",
    "load",
    "mean_ranks",
    "merged_order",
    "nectar_row",
    "ranks",
    "show_request",
    "statistics",
    "to_rows",
    "valid",
]


def valid(rankings: pd.DataFrame) -> pd.DataFrame:
    """The rankings whose reply held a permutation."""
    return rankings[rankings.ranking.notna()]


def to_rows(candidates: Sequence[Candidates], rankings: pd.DataFrame) -> list[dict[str, Any]]:
    """Nectar rows of the validly ranked prompts, in the order of the candidates."""
    by_prompt = {id: part.to_dict("records") for id, part in valid(rankings).groupby("prompt_id", sort=False)}
    made = [nectar_row(item, by_prompt.get(item.prompt.id, [])) for item in candidates]
    return [row for row in made if row is not None]


def nectar_row(item: Candidates, rankings: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The row of one prompt, answers in rank order (1.0 is best); None where there is no ranking.

    Several rankings are merged: answers in order of their mean rank (Borda), equal ones as the first ranking has
    them, the verdict on the conversation by majority.
    """
    if not rankings:
        return None
    order = merged_order([ranks(record) for record in rankings])
    good = [record["good_natured"] for record in rankings if record["good_natured"] is not None]
    return {
        "prompt": chat.nectar_text(item.prompt.messages),
        "answers": [
            {"answer": item.answers[i], "model": item.models[i], "rank": float(rank)} for rank, i in enumerate(order, 1)
        ],
        "turns": chat.user_turns(item.prompt.messages),
        "num_responses": len(order),
        "source": list(item.prompt.source),
        "good_natured": bool(good) and float(np.mean(good)) >= 0.5,
    }


def merged_order(ranks: Sequence[Sequence[int]]) -> list[int]:
    """Items from best to worst by mean rank; equal ones in the order of the first list of ranks."""
    means = np.mean(ranks, axis=0)
    return sorted(range(len(means)), key=lambda i: (means[i], ranks[0][i]))


def ranks(record: Mapping[str, Any]) -> list[int]:
    """Rank of every answer, by its place in the candidates; 0 is best."""
    order = [record["shown"][position] for position in record["ranking"]]
    return [order.index(i) for i in range(len(order))]


def candidates_of(rows: Sequence[Mapping[str, Any]], prompts: Sequence[Prompt]) -> list[Candidates]:
    """The answers of existing rows, to be ranked again; in an order that does not give the ranks away.

    Raises:
        StarlingError: a row's prompt is not among ``prompts``.
    """
    known = {key(prompt.messages): prompt for prompt in prompts}
    found = []
    for row in rows:
        prompt = known.get(key(chat.from_nectar_text(row["prompt"])))
        if prompt is None:
            raise StarlingError(f"no such prompt here: {row['prompt'][:80]!r}; use the prompts that made the rows")
        answers = sorted(row["answers"], key=lambda a: (a["model"], a["answer"]))
        found.append(Candidates(prompt, [a["model"] for a in answers], [a["answer"] for a in answers]))
    return found


def load(source: str | Path) -> list[dict[str, Any]]:
    """Nectar rows from a parquet file, a folder in the hub's layout, or a hub id such as berkeley-nest/Nectar.

    Raises:
        StarlingError: the source cannot be read or its rows are not Nectar's.
    """
    path = Path(source)
    if path.suffix == ".parquet":
        return schema.read(path)
    import datasets

    try:
        table = datasets.load_dataset(str(source), split="train")
    except Exception as error:
        raise StarlingError(
            f"{source} cannot be loaded as a data set ({type(error).__name__}): give a parquet file, a folder "
            "with parquet files, or a hub id while the hub can be reached"
        ) from error
    rows = [dict(row) for row in table]
    schema.validate(rows, k=None)
    return rows
