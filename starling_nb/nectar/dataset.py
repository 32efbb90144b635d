"""From prompts to Nectar rows: seven distinct answers each, ranked by a judge, nothing lost on the way.

A run hands over two files joined by ``prompt_id``: ``nectar.parquet`` (exactly Nectar's schema) and
``rankings.parquet`` (shown order, raw reply and everything else that a row has no place for).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from starling_nb import chat, files
from starling_nb.errors import StarlingError
from starling_nb.judge import Judge, Outcome
from starling_nb.nectar import judging, ranking, responses, schema
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
from starling_nb.nectar.verdict import Verdict

if TYPE_CHECKING:
    from starling_nb.models import LM

__all__ = [
    "Agreement",
    "Answers",
    "Candidates",
    "agreement",
    "assemble",
    "candidates_of",
    "compare_answers",
    "flat",
    "gather",
    "key",
    "load",
    "mean_ranks",
    "rank",
    "rank_with",
    "save",
    "show_request",
    "statistics",
    "to_rows",
    "valid",
]

Answers = Mapping[str, Mapping[str, str]]
"""Answer by responder by prompt id."""


@dataclass(frozen=True)
class Candidates:
    """One prompt with its K distinct answers and who wrote each."""

    prompt: Prompt
    models: list[str]
    answers: list[str]


def gather(
    lm: LM,
    prompts: Sequence[Prompt],
    k: int = 7,
    seed: int = 0,
    report: Callable[[int, int, str], None] | None = None,
) -> dict[str, dict[str, str]]:
    """Ask the picked responders, then the spare ones where a prompt still lacks distinct answers.

    ``report`` is called with (answers so far, answers wanted, responder).
    """
    pool: dict[str, dict[str, str]] = {responder.name: {} for responder in responses.RESPONDERS}
    picked = {prompt.id: responses.pick(prompt.id, k, seed) for prompt in prompts}
    for spare in (False, True):
        for responder in responses.RESPONDERS:
            if spare:
                asked = [prompt for prompt in prompts if len(_chosen(prompt, pool, k, seed)) < k]
                asked = [prompt for prompt in asked if prompt.id not in pool[responder.name]]
            else:
                asked = [prompt for prompt in prompts if responder in picked[prompt.id]]
            if asked:
                pool[responder.name] |= responses.respond(lm, asked, responder, others=prompts, seed=seed)
                if report is not None:
                    report(sum(map(len, pool.values())), k * len(prompts), responder.name)
    return pool


def assemble(prompts: Sequence[Prompt], pool: Answers, k: int = 7, seed: int = 0) -> list[Candidates]:
    """Exactly K distinct answers for each prompt, by the responders picked for it, topped up from the others.

    Args:
        prompts: the prompts.
        pool: ``pool[responder][prompt id]``, the answers there are.
        k: answers a prompt.
        seed: of the choice.

    Raises:
        StarlingError: a prompt has fewer than K distinct usable answers in the pool.
    """
    rows = []
    for prompt in prompts:
        chosen = _chosen(prompt, pool, k, seed)
        if len(chosen) < k:
            raise StarlingError(
                f"prompt {prompt.id} has {len(chosen)} distinct answers, {k} are needed: add responders or lower k"
            )
        rows.append(Candidates(prompt, list(chosen), list(chosen.values())))
    return rows


def _chosen(prompt: Prompt, pool: Answers, k: int, seed: int) -> dict[str, str]:
    """At most K distinct usable answers of one prompt by responder, the picked responders first."""
    picked = responses.pick(prompt.id, k, seed)
    spare = [responder for responder in responses.RESPONDERS if responder not in picked]
    chosen: dict[str, str] = {}
    for responder in [*picked, *spare]:
        answer = pool.get(responder.name, {}).get(prompt.id, "")
        if len(chosen) < k and responses.usable(answer) and answer not in chosen.values():
            chosen[responder.name] = answer
    return chosen


def rank(
    judge: Judge,
    candidates: Sequence[Candidates],
    variant: str = "final",
    *,
    seed: int = 0,
    repeat: int = 0,
    each: Callable[[Outcome[Verdict]], object] | None = None,
) -> pd.DataFrame:
    """Ask the judge for one ranking a prompt.

    ``seed`` decides the shown orders; ``repeat`` asks the same question again (same order, another sample).

    Returns:
        One row a prompt: prompt_id, variant, models (in shown order), shown (places in the candidates' answers),
        ranking (shown positions, best to worst; None where the reply had none), good_natured, error, reply,
        request.
    """
    asked = [ranking.build(c.prompt.messages, c.answers, variant, seed, request_id=c.prompt.id) for c in candidates]
    params = judging.PUBLISHED | ({"seed": repeat} if repeat else {})
    outcomes = judge.ask_all(
        [judging.to_request(a, c.prompt.id, params) for a, c in zip(asked, candidates, strict=True)], each
    )
    rows = []
    for request, item, outcome in zip(asked, candidates, outcomes, strict=True):
        verdict = outcome.value
        rows.append(
            {
                "prompt_id": item.prompt.id,
                "variant": variant,
                "models": [item.models[i] for i in request.shown],
                "shown": list(request.shown),
                "ranking": None if verdict is None else list(verdict.ranking),
                "good_natured": None if verdict is None else verdict.good_natured,
                "error": outcome.error,
                "reply": outcome.reply,
                "request": json.dumps(request.describe(), sort_keys=True),
            }
        )
    return pd.DataFrame(rows)


def rank_passes(
    judge: Judge,
    candidates: Sequence[Candidates],
    variant: str,
    passes: int,
    seed: int,
    each: Callable[[Outcome[Verdict]], object] | None = None,
) -> pd.DataFrame:
    """Rank every prompt ``passes`` times, each time in another shown order; one row a ranking."""
    if passes < 1:
        raise StarlingError(f"passes = {passes}: at least one ranking a prompt is needed")
    orders = [rank(judge, candidates, variant, seed=seed + 1000 * number, each=each) for number in range(passes)]
    return pd.concat([table.assign(order=number) for number, table in enumerate(orders)], ignore_index=True)


def rank_with(
    judge: Judge,
    candidates: Sequence[Candidates],
    variants: Sequence[str],
    seed: int,
    counter: Callable[[int, str], Callable[[object], None]],
) -> dict[str, pd.DataFrame]:
    """Valid rankings by prompt variant, all variants on the same answers in the same shown orders."""
    n = len(candidates)
    return {name: valid(rank(judge, candidates, name, seed=seed, each=counter(n, name))) for name in variants}


def valid(rankings: pd.DataFrame) -> pd.DataFrame:
    """The rankings whose reply held a permutation."""
    return rankings[rankings.ranking.notna()]


def to_rows(candidates: Sequence[Candidates], rankings: pd.DataFrame) -> list[dict[str, Any]]:
    """Nectar rows of the validly ranked prompts, answers in rank order (1.0 is best).

    Several rankings of one prompt are merged: answers in order of their mean rank (Borda), equal ones as the first
    ranking has them, the verdict on the conversation by majority.
    """
    by_prompt = dict(list(valid(rankings).groupby("prompt_id", sort=False)))
    rows = []
    for item in candidates:
        if item.prompt.id not in by_prompt:
            continue
        records = by_prompt[item.prompt.id]
        order = merged_order([_ranks(record) for record in records.to_dict("records")])
        answers = [
            {"answer": item.answers[i], "model": item.models[i], "rank": float(rank)} for rank, i in enumerate(order, 1)
        ]
        rows.append(
            {
                "prompt": chat.nectar_text(item.prompt.messages),
                "answers": answers,
                "turns": item.prompt.turns,
                "num_responses": len(answers),
                "source": [item.prompt.family],
                "good_natured": bool(records.good_natured.astype(float).mean() >= 0.5),
            }
        )
    return rows


def merged_order(ranks: Sequence[Sequence[int]]) -> list[int]:
    """Items from best to worst by mean rank; equal ones in the order of the first list of ranks."""
    means = np.mean(ranks, axis=0)
    return sorted(range(len(means)), key=lambda i: (means[i], ranks[0][i]))


def _ranks(record: Mapping[str, Any]) -> list[int]:
    """Rank of every answer, by its place in the candidates."""
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


def save(rows: Sequence[Mapping[str, Any]], rankings: pd.DataFrame, folder: Path) -> None:
    """Write ``nectar.parquet`` and ``rankings.parquet`` into ``folder``, atomically each."""
    schema.validate(rows)
    schema.write(rows, folder / "nectar.parquet")
    with files.replacing(folder / "rankings.parquet") as part:
        rankings.to_parquet(part, index=False)
