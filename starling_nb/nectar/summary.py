"""What a data set looks like, and how like another build of it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from starling_nb import chat
from starling_nb.errors import StarlingError
from starling_nb.nectar import ranking
from starling_nb.nectar.prompts import key
from starling_nb.stats import Interval, kendall_tau, mean_interval

if TYPE_CHECKING:
    from starling_nb.nectar.candidates import Candidates


def statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Numbers by which two builds of the data set are compared: sizes, lengths, mean ranks, share of pairs that the
    longer answer wins."""
    frame = flat(rows)
    wins, total = 0.0, 0
    for row in rows:
        words = [len(a["answer"].split()) for a in sorted(row["answers"], key=lambda a: a["rank"])]
        upper = np.triu_indices(len(words), 1)
        gap = np.subtract.outer(words, words)[upper]
        wins, total = wins + float((gap > 0).sum() + 0.5 * (gap == 0).sum()), total + len(gap)
    means = frame.groupby("model")["rank"].mean()
    return {
        "rows": float(len(rows)),
        "answers_per_row": len(frame) / len(rows),
        "words_per_answer": float(frame.words.mean()),
        "good_natured": float(np.mean([row["good_natured"] for row in rows])),
        "longer_wins": wins / total,
        **{f"mean_rank.{name}": float(value) for name, value in means.items()},
    }


def flat(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row an answer: prompt_id, source, turns, good_natured, model, rank, words."""
    return pd.DataFrame(
        {
            "prompt_id": key(chat.from_nectar_text(row["prompt"])),
            "source": row["source"][0],
            "turns": row["turns"],
            "good_natured": row["good_natured"],
            "model": answer["model"],
            "rank": answer["rank"],
            "words": len(answer["answer"].split()),
        }
        for row in rows
        for answer in row["answers"]
    )


def mean_ranks(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Mean rank by responder with an interval over prompts: model, mean_rank, low, high, n."""
    table = []
    for model, part in flat(rows).groupby("model"):
        found = mean_interval(part["rank"].to_numpy(), part.prompt_id.to_numpy())
        table.append({"model": model, "mean_rank": found.value, "low": found.low, "high": found.high, "n": len(part)})
    return pd.DataFrame(table)


def show_request(rankings: pd.DataFrame, candidates: Sequence[Candidates], place: int = 0) -> pd.DataFrame:
    """One ranking as the judge saw it: letter, responder, place on the list, answer; prints the reply."""
    record, item = rankings.iloc[place], candidates[place]
    print(item.prompt.messages[-1]["content"], record.reply, sep="\n\n")
    ranks = {} if record.ranking is None else {position: rank for rank, position in enumerate(record.ranking, 1)}
    return pd.DataFrame(
        {
            "letter": [ranking.LETTERS[i] for i in range(len(record.shown))],
            "responder": record.models,
            "rank": [ranks.get(i) for i in range(len(record.shown))],
            "answer": [item.answers[i] for i in record.shown],
        }
    )


def compare_answers(fresh: Sequence[Candidates], committed: Sequence[Candidates]) -> dict[str, float]:
    """How two builds of the same rows' answers differ: shares of equal responders and answers, ratio of words.

    Raises:
        StarlingError: the two builds have no prompt in common, so that nothing was compared.
    """
    by_id = {item.prompt.id: item for item in committed}
    pairs = [(item, by_id[item.prompt.id]) for item in fresh if item.prompt.id in by_id]
    if not pairs:
        raise StarlingError("the two builds have no prompt in common: compare at least one (n_live = 1 or more)")
    same = [set(a.models) == set(b.models) for a, b in pairs]
    equal = [answer in b.answers for a, b in pairs for answer in a.answers]
    words = [sum(len(t.split()) for item in side for t in item.answers) for side in zip(*pairs, strict=True)]
    return {
        "same_responders": float(np.mean(same)),
        "identical_answers": float(np.mean(equal)),
        "words_ratio": words[0] / words[1],
    }


@dataclass(frozen=True)
class Agreement:
    """Two rankings of the same answers: share of identical rankings, mean Kendall tau, rows compared."""

    identical: float
    tau: Interval
    n: int


def agreement(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> Agreement:
    """Compare the ranks that two builds give to the same answers of the same prompts.

    Raises:
        StarlingError: the two have no row with the same prompt and answers.
    """
    known = {row["prompt"]: {a["answer"]: a["rank"] for a in row["answers"]} for row in others}
    pairs = []
    for row in rows:
        ours = {a["answer"]: a["rank"] for a in row["answers"]}
        theirs = known.get(row["prompt"], {})
        if ours.keys() == theirs.keys():
            pairs.append(([ours[text] for text in ours], [theirs[text] for text in ours]))
    if not pairs:
        raise StarlingError("the two data sets rank no answers in common: compare builds of the same answers")
    taus = [kendall_tau(a, b) for a, b in pairs]
    return Agreement(float(np.mean([a == b for a, b in pairs])), mean_interval(taus), len(pairs))
