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
from starling_nb.nectar.verdict import Verdict
from starling_nb.stats import Interval, kendall_tau, mean_interval

if TYPE_CHECKING:
    from starling_nb.models import LM

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
                f"prompt {prompt.id} has {len(chosen)} distinct answers, {k} are needed: add responders or "
                "lower k"
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
    asked = [
        ranking.build(c.prompt.messages, c.answers, variant, seed, request_id=c.prompt.id) for c in candidates
    ]
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
    """Nectar rows of the validly ranked prompts, answers in rank order (1.0 is best)."""
    by_id = {item.prompt.id: item for item in candidates}
    rows = []
    for record in valid(rankings).to_dict("records"):
        item = by_id[record["prompt_id"]]
        order = [record["shown"][position] for position in record["ranking"]]
        answers = [
            {"answer": item.answers[i], "model": item.models[i], "rank": float(rank)}
            for rank, i in enumerate(order, 1)
        ]
        rows.append(
            {
                "prompt": chat.nectar_text(item.prompt.messages),
                "answers": answers,
                "turns": item.prompt.turns,
                "num_responses": len(answers),
                "source": [item.prompt.family],
                "good_natured": bool(record["good_natured"]),
            }
        )
    return rows


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
            raise StarlingError(
                f"no such prompt here: {row['prompt'][:80]!r}; use the prompts that made the rows"
            )
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


def save(rows: Sequence[Mapping[str, Any]], rankings: pd.DataFrame, folder: Path) -> None:
    """Write ``nectar.parquet`` and ``rankings.parquet`` into ``folder``, atomically each."""
    schema.validate(rows)
    schema.write(rows, folder / "nectar.parquet")
    with files.replacing(folder / "rankings.parquet") as part:
        rankings.to_parquet(part, index=False)


def mean_ranks(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Mean rank by responder with an interval over prompts: model, mean_rank, low, high, n."""
    table = []
    for model, part in flat(rows).groupby("model"):
        found = mean_interval(part["rank"].to_numpy(), part.prompt_id.to_numpy())
        table.append(
            {"model": model, "mean_rank": found.value, "low": found.low, "high": found.high, "n": len(part)}
        )
    return pd.DataFrame(table)


def show_request(rankings: pd.DataFrame, candidates: Sequence[Candidates], place: int = 0) -> pd.DataFrame:
    """One ranking as the judge saw it: letter, responder, place on the list, answer; prints the reply."""
    record, item = rankings.iloc[place], candidates[place]
    print(item.prompt.messages[-1]["content"], record.reply, sep="\n\n")
    ranks = (
        {} if record.ranking is None else {position: rank for rank, position in enumerate(record.ranking, 1)}
    )
    return pd.DataFrame(
        {
            "letter": [ranking.LETTERS[i] for i in range(len(record.shown))],
            "responder": record.models,
            "rank": [ranks.get(i) for i in range(len(record.shown))],
            "answer": [item.answers[i] for i in record.shown],
        }
    )


def compare_answers(fresh: Sequence[Candidates], committed: Sequence[Candidates]) -> dict[str, float]:
    """How two builds of the same rows' answers differ: shares of equal responders and answers, ratio of words."""
    by_id = {item.prompt.id: item for item in committed}
    pairs = [(item, by_id[item.prompt.id]) for item in fresh if item.prompt.id in by_id]
    if not pairs:
        return {"same_responders": 1.0, "identical_answers": 1.0, "words_ratio": 1.0}
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
