"""Readers: rows of a benchmark become a :class:`Benchmark`; both the public and our converted layouts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from starling_nb import files
from starling_nb.chat import ChatError, Message, from_nectar_text
from starling_nb.reward.benchmarks.items import Benchmark, BenchmarkError, Item, Rule, unique_ids
from starling_nb.reward.benchmarks.scoring import Scores, check
from starling_nb.reward.benchmarks.sources import SUFFIXES, Row, checked, read_rows, rows_of

IDS = ("id", "question_id", "pair_id", "idx")
STORED = "starling_rm_34b_score_"


class SkipRow(Exception):  # noqa: N818
    """A row that is left out and counted."""


class Reader(NamedTuple):
    """How one benchmark is read.

    Attributes:
        columns: every row has them. main: its file in a folder. item: what one row becomes. split: on the hub.
    """

    columns: tuple[str, ...]
    main: tuple[str, ...]
    item: Callable[[Row], Item]
    split: str = "train"


def _text(row: Row, column: str, kind: str) -> str:
    """Text of a cell; an empty one leaves the row out, another type is an error."""
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise BenchmarkError(
            f"{row['_file']}: column {column} holds a {type(value).__name__}, not text: mend the column, "
            "or give the file of this benchmark"
        )
    if value is None or not value.strip():
        raise SkipRow(f"empty {kind}")
    return value


def _answers(row: Row, *columns: str) -> list[str]:
    return [_text(row, column, "answer") for column in columns]


def _prompt(row: Row, column: str = "prompt") -> list[Message]:
    return [{"role": "user", "content": _text(row, column, "prompt")}]


def _number(row: Row, column: str) -> float:
    """A stored score; what is missing is NaN."""
    try:
        return math.nan if row[column] is None else float(row[column])
    except (TypeError, ValueError) as error:
        raise BenchmarkError(
            f"{row['_file']}: column {column} holds {row[column]!r}, not a number: mend the file"
        ) from error


def _make(
    row: Row, messages: Sequence[Message], answers: list[str], subset: str, right: int = 0, rule: Rule = "pair"
) -> Item:
    names = [f"{STORED}{letter}" for letter in "abc"[: len(answers)]]
    stored = tuple(_number(row, name) for name in names) if all(name in row for name in names) else None
    cluster = str(row.get("prompt_id") or files.hash_value(messages)[:16])
    name = next((str(row[key]) for key in IDS if row.get(key) is not None), cluster)
    return Item(name, subset, cluster, tuple(messages), tuple(answers), rule, right, stored)


def _choice(row: Row, column: str, values: dict[Any, int]) -> int:
    found = next((place for value, place in values.items() if row[column] == value), None)
    if found is None:
        raise BenchmarkError(
            f"{row['_file']}: column {column} holds {row[column]!r}, not one of {list(values)}: mend the file"
        )
    return found


def _human(row: Row) -> Item:
    right = _choice(row, "winner", {"model_a": 0, "model_b": 1})
    return _make(row, _prompt(row), _answers(row, "response_a", "response_b"), "human", right)


def _safety(row: Row) -> Item:
    right = _choice(row, "safer_response_id", {0: 0, 1: 1})
    return _make(row, _prompt(row), _answers(row, "response_a", "response_b"), "safety", right)


def _truth(row: Row) -> Item:
    answers = _answers(row, "response_a", "response_b", "response_c")
    return _make(row, _prompt(row), answers, "truth", rule="truth")


def _verbose(row: Row) -> Item:
    return _make(row, _prompt(row), _answers(row, "response_a", "response_b"), "verbose", 1)


def _rm_bench(row: Row) -> Item:
    """Three chosen and three rejected answers: concise, detailed, detailed with markdown (arXiv 2410.16184)."""
    answers = []
    for side in ("chosen", "rejected"):
        texts = [] if row[side] is None or isinstance(row[side], str) else list(row[side])
        if len(texts) != 3:
            raise BenchmarkError(
                f"{row['_file']}: item {row['id']} does not have three {side} answers, one a style: "
                f"mend the column {side}"
            )
        own = {"_file": row["_file"], **{f"{side}[{i}]": text for i, text in enumerate(texts)}}
        answers += _answers(own, *list(own)[1:])
    return _make(row, _prompt(row), answers, str(row["domain"]), rule="styles")


def _judge_bench(row: Row) -> Item:
    right = _choice(row, "label", {"A>B": 0, "B>A": 1})
    return _make(row, _prompt(row, "question"), _answers(row, "response_A", "response_B"), str(row["source"]), right)


def _llm_bar(row: Row) -> Item:
    """Public layout: the subset is the name of the file's folder, after ``Adversarial/`` for four of the five."""
    folder = Path(row["_file"]).parent if row["_file"].endswith(SUFFIXES) else Path()
    above = "Adversarial/" if folder.parent.name == "Adversarial" else ""
    subset = str(row.get("subset") or f"{above}{folder.name}" or "all")
    right = _choice(row, "label", {1: 0, 2: 1})
    return _make(row, _prompt(row, "input"), _answers(row, "output_1", "output_2"), subset, right)


def _reward_bench(row: Row) -> Item:
    return _make(row, _prompt(row), _answers(row, "chosen", "rejected"), str(row["subset"]))


def _hhh(row: Row) -> Item:
    """A prompt of several turns is a dialogue without its first mark."""
    text = _text(row, "prompt", "prompt")
    messages = _dialogue(f"\n\nHuman: {text}") if "\n\nHuman:" in text else _prompt(row)
    return _make(row, messages, _answers(row, "chosen", "rejected"), str(row.get("source") or "all"))


def _hh(row: Row) -> Item:
    """Public layout: two whole dialogues. Converted layout: context, chosen, rejected."""
    if row.get("prompt") is not None:
        if row.get("same_context") is False:
            raise SkipRow("contexts differ")
        return _make(row, _dialogue(str(row["prompt"])), _answers(row, "chosen", "rejected"), "all")
    parts = [text.rpartition("\n\nAssistant:") for text in _answers(row, "chosen", "rejected")]
    if parts[0][0] != parts[1][0]:
        raise SkipRow("contexts differ")
    own = {"_file": row["_file"], "chosen": parts[0][2].strip(), "rejected": parts[1][2].strip()}
    return _make(row, _dialogue(parts[0][0]), _answers(own, "chosen", "rejected"), "all")


def _dialogue(text: str) -> list[Message]:
    body = text.rstrip().removesuffix("\n\nAssistant:")
    try:
        messages = from_nectar_text(body + "\n\nAssistant: ")
    except ChatError as error:
        raise SkipRow("not a dialogue") from error
    turns = [message["role"] for message in messages]
    wanted = [("user", "assistant")[i % 2] for i in range(len(turns))]
    if len(turns) % 2 == 0 or turns != wanted or any(not m["content"].strip() for m in messages):
        raise SkipRow("not a dialogue")
    return messages


PAIR = ("prompt", "response_a", "response_b")
READERS: dict[str, Reader] = {
    "human": Reader((*PAIR, "winner"), ("human_preference",), _human),
    "safety": Reader((*PAIR, "safer_response_id"), ("pku_safety",), _safety),
    "truth": Reader((*PAIR, "response_c"), ("truthful_triplets",), _truth),
    "verbose": Reader(PAIR, ("verbosity",), _verbose),
    "rm_bench": Reader(("id", "prompt", "chosen", "rejected", "domain"), ("triples", "total_dataset"), _rm_bench),
    "judge_bench": Reader(
        ("pair_id", "source", "question", "response_A", "response_B", "label"), ("pairs",), _judge_bench, "gpt"
    ),
    "llm_bar": Reader(("input", "output_1", "output_2", "label"), ("pairs",), _llm_bar),
    "reward_bench": Reader(
        ("prompt", "chosen", "rejected", "subset", "id"), ("reward_bench",), _reward_bench, "filtered"
    ),
    "hh": Reader(("chosen", "rejected"), ("hh_harmless_base_test",), _hh, "test"),
    "hhh": Reader(("prompt", "chosen", "rejected"), ("pairs",), _hhh),
}


def read(name: str, source: str | Path, split: str | None = None, cache_dir: Path | None = None) -> Benchmark:
    """Read a benchmark of :data:`READERS` from a local file, a folder of files or a hub id.

    Rows with an empty prompt or answer, and dialogues that differ before the last answer or whose turns do not
    alternate (hh, hhh), are left out and counted in ``skipped``. ``split`` is by default the one that is reported
    (RewardBench: ``filtered``, JudgeBench: ``gpt``, hh: ``test``); it and ``cache_dir`` matter for a hub id, and the
    split for a folder in the hub's layout.

    Raises:
        BenchmarkError: unknown name, missing, empty or unreadable file, missing column, value that is not allowed.
    """
    if name not in READERS:
        raise BenchmarkError(f"no benchmark {name!r}: choose one of {', '.join(READERS)}")
    reader, items, skipped = READERS[name], [], Counter[str]()
    for row in rows_of(source, reader.columns, reader.main, split or reader.split, cache_dir):
        try:
            items.append(reader.item(row))
        except SkipRow as reason:
            skipped[str(reason)] += 1
    if not items:
        raise BenchmarkError(f"{source}: no row can be used ({dict(skipped)}): give another file")
    return Benchmark(name, unique_ids(items), dict(skipped))


def read_pair_scores(path: Path, benchmark: Benchmark, judge: str) -> tuple[Benchmark, Scores]:
    """JudgeBench's stored scores of one reward model, and the items that have them; the others count as skipped.

    Raises:
        BenchmarkError: a column is missing, no item has scores of ``judge``, or one of its scores is NaN.
    """
    rows = checked(read_rows(path), str(path), ("pair_id", "judge", "score_A", "score_B"))
    scored = [row for row in rows if row["score_A"] is not None or row["score_B"] is not None]
    own = {str(r["pair_id"]): (_number(r, "score_A"), _number(r, "score_B")) for r in scored if r["judge"] == judge}
    kept = tuple(item for item in benchmark.items if item.id in own)
    if not kept:
        judges = sorted({str(row["judge"]) for row in scored})
        raise BenchmarkError(f"{path}: no scores by judge {judge!r} of these items: choose one of {judges}")
    skipped = {**benchmark.skipped, "no stored score": len(benchmark.items) - len(kept)}
    return Benchmark(benchmark.name, kept, skipped), check(kept, [own[item.id] for item in kept])
