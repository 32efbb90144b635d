"""Sets of two answers with a label, a right answer or what people chose, in one shape; and a judge asked about them.

JudgeBench (Tan et al. 2024, arXiv 2410.12784), LLMBar (Zeng et al. 2023, arXiv 2310.07641), PandaLM (Wang et al. 2023,
arXiv 2306.05087) and Auto-J's pairs (Li et al. 2023, arXiv 2310.05470) are read from files, folders or the hub and are
no part of this repository. ``hand`` and ``tricks`` are: only on these has the simulated judge anything to say.

A set is a table that :mod:`agreement` takes for labels, one row a pair: ``prompt_id``, ``pair_id``, ``subset``,
``messages``, ``first`` and ``second`` (:data:`NAMES`) with their texts in ``first_text`` and ``second_text``, and
``winner``, None where people were divided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from starling_nb import files
from starling_nb.chat import Message
from starling_nb.evaluation import EvaluationError, agreement, alpaca_eval
from starling_nb.evaluation.mt_bench import Question
from starling_nb.evaluation.mt_bench import pairs as mt_bench_pairs
from starling_nb.evaluation.mt_bench.official import Template
from starling_nb.evaluation.tables import single
from starling_nb.judge import Judge, Request
from starling_nb.nectar import prompts as embedded
from starling_nb.reward import benchmarks
from starling_nb.reward.benchmarks.sources import Row, rows_of
from starling_nb.stats import Interval

ON = ("prompt_id", "pair_id")
NAMES = ("1", "2")
COLUMNS = [*ON, "subset", "messages", "first", "second", "first_text", "second_text", "winner"]
Write = Callable[[Sequence[Message], str, str], list[Message]]
Pairs = list[tuple[Any, ...]]


def _reward(name: str) -> Callable[[str | Path, str | None], Pairs]:
    """Sets that reward models are measured on too."""

    def read(source: str | Path, split: str | None) -> Pairs:
        items = benchmarks.read(name, source, split).items
        # LLMBar counts anew in each subset, and its reader tells equal numbers apart by a mark.
        ids = [f"{item.subset}/{item.id.partition('#')[0]}" for item in items]
        seen = Counter(ids)
        found = []
        for item, id in zip(items, ids, strict=True):
            own = id if seen[id] == 1 else f"{item.subset}/{item.id}"
            one, other = item.answers
            found.append(_pair(item.cluster, own, item.subset, item.messages, one, other, item.right))
        return found

    return read


def _pandalm(source: str | Path, split: str | None) -> Pairs:
    columns, found = ("idx", "instruction", "input", "response1", "response2"), []
    for row in rows_of(source, columns, ("testset", "testset-v1"), split or "test", None):
        votes = row["human"] if "human" in row else [row.get(f"annotator{n}") for n in (1, 2, 3)]
        (label, most), *rest = Counter(_vote(vote) for vote in votes).most_common()
        text = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
        answers = row["response1"], row["response2"]
        even = bool(rest) and rest[0][1] == most
        found.append(_single(row, row["idx"], "", text, *answers, None if even else label))
    return found


def _vote(said: Any) -> int | None:
    """Place of the answer that a person preferred, or -1 for a tie."""
    votes = {"1": 0, "2": 1, "0": -1}
    if str(said) not in votes:
        raise EvaluationError(f"{said!r} is no vote: 1, 2 or 0 for a tie are due")
    return votes[str(said)]


def _auto_j(source: str | Path, split: str | None) -> Pairs:
    columns = ("scenario", "label", "prompt", "response 1", "response 2")
    rows = rows_of(source, columns, ("testset", "testdata_pairwise"), split or "test", None)
    labels = {0: 0, 1: 1, 2: -1}
    return [
        _single(r, n, r["scenario"], r["prompt"], r["response 1"], r["response 2"], labels.get(r["label"]))
        for n, r in enumerate(rows)
    ]


def _hand(source: str | Path, split: str | None) -> Pairs:
    found = []
    for row in files.read_jsonl(Path(source or files.DATA / "hand_rankings.jsonl")):
        place = {answer: rank for rank, tied in enumerate(row["order"]) for answer in tied}
        for i, j in combinations(range(len(row["answers"])), 2):
            right = -1 if place[i] == place[j] else int(place[j] < place[i])
            texts = row["answers"][i], row["answers"][j]
            found.append(_pair(row["prompt_id"], f"{row['prompt_id']}/{i}-{j}", "", row["messages"], *texts, right))
    return found


def _tricks(source: str | Path, split: str | None) -> Pairs:
    known = {prompt.id: prompt.messages for prompt in embedded.load()}
    rows = files.read_jsonl(Path(source or files.DATA / "rubric_pairs.jsonl"))
    return [_pair(r["prompt_id"], r["id"], r["kind"], known[r["prompt_id"]], r["better"], r["worse"], 0) for r in rows]


def _single(row: Row, id: Any, subset: str, text: str, one: str, other: str, right: int | None) -> tuple[Any, ...]:
    messages = [{"role": "user", "content": text}]
    return _pair(row.get("prompt_id") or embedded.key(messages), id, subset, messages, one, other, right)


def _pair(
    prompt: str, id: Any, subset: str, messages: Sequence[Message], one: str, other: str, right: int | None
) -> tuple[Any, ...]:
    winner = None if right is None else ("first", "second", "tie")[right]
    return prompt, str(id), subset, list(messages), *NAMES, one, other, winner


class Set(NamedTuple):
    """A set's own protocol: how a judge's verdicts become right or wrong.

    Everywhere a reply without a verdict says nothing, and is wrong. JudgeBench's rule is that of its paper; unverified,
    recalled from their scripts: what the others do with such replies, and that Auto-J wants both orders right.
    """

    rule: agreement.Rule
    read: Callable[[str | Path, str | None], Pairs]


SETS = {
    "judge_bench": Set("net", _reward("judge_bench")),
    "llm_bar": Set("each", _reward("llm_bar")),
    "pandalm": Set("each", _pandalm),
    "auto_j": Set("both", _auto_j),
    "hand": Set("both", _hand),
    "tricks": Set("both", _tricks),
}


def read(name: str, source: str | Path = "", split: str | None = None) -> pd.DataFrame:
    """Read a set of :data:`SETS`.

    Args:
        name: which one.
        source: a file, a folder or a hub id; of ``hand`` and ``tricks`` a file, by default the embedded one.
        split: of a hub id, say JudgeBench's ``gpt`` (default) or ``claude``.

    Raises:
        EvaluationError: an unknown set, a vote that is none, or two pairs with one id.
        BenchmarkError: the source cannot be read, or its rows are not those of the set.
    """
    if name not in SETS:
        raise EvaluationError(f"no set of pairs {name!r}: choose one of {', '.join(SETS)}")
    table = pd.DataFrame(SETS[name].read(source, split), columns=COLUMNS).astype({"winner": object})
    single(table, list(ON), "two pairs have one id")
    return table


def ask(
    judge: Judge,
    pairs: pd.DataFrame,
    *,
    write: Write = alpaca_eval.build,
    read: Callable[[str], str] | None = None,
    seed: int = 0,
    max_tokens: int = 512,
) -> pd.DataFrame:
    """A judge's verdicts on every pair in both orders, as :mod:`agreement` takes them; None where none can be read.

    ``write`` and ``read`` replace our instructions and how their replies are read, see :func:`fastchat`.

    Raises:
        JudgeStopped: the budget is used up, or the judge cannot be reached.
    """
    asked, rows = [], []
    for pair in pairs.itertuples():
        sides = (pair.first, pair.first_text), (pair.second, pair.second_text)
        for order, ((one, text), (other, second)) in (("12", sides), ("21", sides[::-1])):
            params = {"temperature": 0.0, "max_tokens": max_tokens, "seed": seed}
            messages = write(pair.messages, text, second)
            asked.append(Request(f"{pair.pair_id}/{order}", messages, params, read or _read))
            rows.append((pair.prompt_id, pair.pair_id, one, other))
    verdicts = pd.DataFrame(rows, columns=[*ON, "first", "second"])
    said = [outcome.value for outcome in judge.ask_all(asked)]
    return verdicts.assign(winner=pd.Series(said, dtype=object))


def _read(reply: str) -> str:
    return {0.0: "first", 1.0: "second", 0.5: "tie"}[alpaca_eval.parse(reply)]


def fastchat(prompts: Mapping[str, Template]) -> tuple[Write, Callable[[str], str]]:
    """``write`` and ``read`` of :func:`ask` for FastChat's prompt ``pair-v2``; conversations of one turn only."""
    official = mt_bench_pairs.official(prompts)

    def write(messages: Sequence[Message], first: str, second: str) -> list[Message]:
        if len(messages) != 1:
            raise EvaluationError("FastChat's prompt for pairs takes one user turn here: leave longer ones out")
        return official(Question("", "", (messages[0]["content"],)), 1, [first], [second])

    def read(reply: str) -> str:
        return {"A": "first", "B": "second", "tie": "tie"}[mt_bench_pairs.parse(reply)]

    return write, read


def figures(name: str, verdicts: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """How far a judge can be trusted on a set: figure, value, low, high, n (prompts).

    ``accuracy`` by the set's own protocol and ``accuracy_readable`` (the same rule, what cannot be read left out) of
    the pairs that were asked about, ``longer_wins`` the accuracy of the longer answer on them; with both orders also
    what :func:`order_figures` gives. ``attrs`` holds how much ``counted``, was ``unreadable``, or ``unlabelled``.

    Raises:
        EvaluationError: as :func:`agreement.accuracy`.
    """
    rule = SETS[name].rule
    official = agreement.accuracy(verdicts, pairs, ON, rule, "wrong")
    asked = pairs.merge(verdicts[list(ON)].drop_duplicates())
    found = {"accuracy": official.accuracy}
    if official.unreadable < official.counted:
        found["accuracy_readable"] = agreement.accuracy(verdicts, pairs, ON, rule).accuracy
    found["longer_wins"] = agreement.accuracy(agreement.longer_wins(asked, ON), asked, ON).accuracy
    if official.unreadable < official.counted and set(verdicts["first"]) == set(NAMES):
        found |= order_figures(agreement.both_orders(verdicts, ON))
    table = pd.DataFrame([{"figure": figure, **vars(value)} for figure, value in found.items()])
    table.attrs |= {key: getattr(official, key) for key in ("counted", "unreadable", "unlabelled")}
    return table


def order_figures(both: agreement.BothOrders) -> dict[str, Interval]:
    """Shares by name: ``consistent``, ``first_wins``, ``always_first``, ``always_second``."""
    return {name: value for name, value in vars(both).items() if isinstance(value, Interval)}
