"""The prompt side of a Nectar, start to end: sources → filters → duplicates → decontamination → mixture → one file.

Rows that pass are kept in a temporary file beside the result; in memory only the duplicate index and a few numbers a
row grow with the prompts. What is removed for its overlap with an evaluation set is listed, with the overlapping words,
in ``<out>.contaminated.jsonl`` beside the result. The same settings and sources give the same bytes.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from starling_nb import files, progress
from starling_nb.chat import Message
from starling_nb.errors import StarlingError
from starling_nb.nectar import tables
from starling_nb.nectar.prompts import filters, mixture
from starling_nb.nectar.prompts.decontamination import EvaluationIndex
from starling_nb.nectar.prompts.duplicates import DuplicateIndex, same_question
from starling_nb.nectar.prompts.embedded import key
from starling_nb.nectar.prompts.settings import Settings, SourceSettings, own_benches
from starling_nb.nectar.prompts.shapes import RawPrompt, Skipped
from starling_nb.nectar.prompts.sources import read


@dataclass
class SourceReport:
    """What became of one source's rows: ``read`` is the sum of all that follows but ``short``."""

    read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # reason → rows: malformed rows and those filtered
    merged: int = 0  # duplicates; their origin and answers went to the row they repeat
    contaminated: int = 0
    left: int = 0  # good rows that the mixture did not draw
    kept: int = 0
    short: int = 0  # rows that the mixture wanted beyond those there were


@dataclass(frozen=True)
class Report:
    """What a build did."""

    sources: dict[str, SourceReport]
    contaminated: dict[str, int]  # evaluation set → prompts removed for it
    evaluation_texts: int
    exact: int  # duplicates of either kind
    near: int
    index_bytes: int
    index_bytes_per_row: float  # over the rows that are no duplicates
    seconds: float

    @property
    def kept(self) -> int:
        """Rows written."""
        return sum(source.kept for source in self.sources.values())

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "kept": self.kept}


def build(settings: Settings, out: Path) -> Report:
    """Build a prompt set and write it to ``out``: id, messages, source (list), answers ([{model, answer}]).

    Args:
        settings: sources, filters, evaluation sets, mixture; see :meth:`Settings.from_toml`.
        out: a .jsonl or .parquet file; its rows are shuffled by (seed, id), so that any beginning is a mixture too.

    Raises:
        StarlingError: a source or an evaluation file cannot be read, nothing is left, or ``out`` cannot be written.
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise StarlingError(f"{out}: choose a name that ends with .jsonl or .parquet")
    began = time.monotonic()
    streams = [(source, _stream(source)) for source in settings.sources]
    evaluations = EvaluationIndex(settings.decontamination)
    for evaluation in [*(own_benches() if settings.own_evaluations else []), *settings.evaluations]:
        evaluations.add_file(evaluation)
    removed = out.with_name(f"{out.name}.contaminated.jsonl")
    with (
        files.replacing(removed) as listed,
        listed.open("w", encoding="utf-8") as overlaps,
        tempfile.TemporaryFile(dir=out.parent) as spool,
    ):
        builder = _Builder(settings, evaluations, _Spool(spool), overlaps)
        for source, stream in streams:
            for item in progress.track(stream, f"reading {source.name}"):
                builder.take(source.name, item)
        chosen = builder.choose()
        if not len(chosen):
            counted = {name: one.dropped for name, one in builder.sources.items()}
            raise StarlingError(f"no prompt is left: loosen the filters or mend the sources; dropped were {counted}")
        _write(out, progress.track(builder.rows(chosen), f"writing {out.name}", len(chosen)))
    return builder.report(time.monotonic() - began)


def _stream(source: SourceSettings) -> Iterator[RawPrompt | Skipped]:
    path = Path(source.path) if source.path else None
    return read(source.name, path, like=source.like, whole=source.whole, limit=source.limit or None)


class _Spool:
    """Rows on disk, by number."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._starts = file, array("Q", [0])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def append(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False).encode()
        self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))

    def __getitem__(self, number: int) -> dict[str, Any]:
        self._file.flush()
        start, end = self._starts[number], self._starts[number + 1]
        row: dict[str, Any] = json.loads(os.pread(self._file.fileno(), end - start, start))
        return row


class _Builder:
    """The state of one build."""

    def __init__(self, settings: Settings, evaluations: EvaluationIndex, spool: _Spool, overlaps: IO[str]) -> None:
        self.settings, self.evaluations, self.spool, self.overlaps = settings, evaluations, spool, overlaps
        self.sources = {source.name: SourceReport() for source in settings.sources}
        self.contaminated: Counter[str] = Counter()
        self.index = DuplicateIndex(settings.duplicates, self._messages)
        self._good: dict[str, array[int]] = {name: array("Q") for name in self.sources}  # numbers of clean new rows
        self._draws: dict[str, array[int]] = {name: array("Q") for name in self.sources}
        self._orders: dict[str, array[int]] = {name: array("Q") for name in self.sources}
        self._repeats: dict[int, list[int]] = defaultdict(list)  # number → numbers of its duplicates

    def take(self, name: str, item: RawPrompt | Skipped) -> None:
        """Filter, merge, check and keep one row."""
        report = self.sources[name]
        report.read += 1
        if isinstance(item, Skipped) or (fault := filters.fault(item, self.settings.filters)):
            reason = item.reason if isinstance(item, Skipped) else str(fault)
            report.dropped[reason] = report.dropped.get(reason, 0) + 1
            return
        number = len(self.spool)
        same = self.index.add(item.messages, number)
        row: dict[str, Any] = {"source": item.source, "answers": [asdict(answer) for answer in item.answers]}
        if same is not None:
            report.merged += 1
            self._repeats[same.number].append(number)
            whole = same.near or same_question(self._messages(same.number), item.messages)
            if not whole or (same.near and not self.settings.duplicates.near_answers):
                row["answers"] = []
            self.spool.append(row)
            return
        row |= {"id": key(item.messages), "messages": item.messages}
        self.spool.append(row)
        if not self._overlaps(name, item, row["id"]):
            self._good[name].append(number)
            self._draws[name].append(mixture.draw(self.settings.seed, "draw", row["id"]))
            self._orders[name].append(mixture.draw(self.settings.seed, "order", row["id"]))

    def choose(self) -> np.ndarray:
        """Numbers of the rows of the mixture, in order."""
        available = {name: len(numbers) for name, numbers in self._good.items()}
        numbers, orders = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for name, quota in mixture.quotas(self.settings.sources, available, self.settings.rows).items():
            places = mixture.drawn(self._draws[name], quota.rows)
            numbers.append(np.asarray(self._good[name], np.uint64)[places])
            orders.append(np.asarray(self._orders[name], np.uint64)[places])
            report = self.sources[name]
            report.kept, report.left = len(places), available[name] - len(places)
            report.short = max(0, quota.wanted - available[name])
        return np.concatenate(numbers)[np.argsort(np.concatenate(orders), kind="stable")]

    def rows(self, numbers: Sequence[int] | np.ndarray) -> Iterator[dict[str, Any]]:
        """The rows of these numbers, each with the origins and answers that it takes over from its duplicates."""
        for number in map(int, numbers):
            row = self.spool[number]
            for other in self._repeats.get(number, ()):
                more = self.spool[other]
                row["source"] += [origin for origin in more["source"] if origin not in row["source"]]
                row["answers"] += [answer for answer in more["answers"] if answer not in row["answers"]]
            yield row

    def report(self, seconds: float) -> Report:
        """What was done."""
        new = max(1, len(self.spool) - self.index.exact - self.index.near)
        return Report(
            self.sources,
            dict(sorted(self.contaminated.items())),
            len(self.evaluations.items),
            self.index.exact,
            self.index.near,
            self.index.nbytes,
            self.index.nbytes / new,
            seconds,
        )

    def _overlaps(self, name: str, item: RawPrompt, id_: str) -> bool:
        overlap = self.evaluations.find(item.messages)
        if overlap:
            self.sources[name].contaminated += 1
            self.contaminated[overlap.evaluation] += 1
            found = {"id": id_, "source": name, "given_id": item.id, **asdict(overlap)}
            self.overlaps.write(json.dumps(found, ensure_ascii=False, sort_keys=True) + "\n")
        return overlap is not None

    def _messages(self, number: int) -> list[Message]:
        messages: list[Message] = self.spool[number]["messages"]
        return messages


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        files.write_jsonl(path, rows)
        return
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    answer = pa.struct([("model", pa.string()), ("answer", pa.string())])
    lists = {"messages": message, "source": pa.string(), "answers": answer}
    schema = pa.schema([("id", pa.string()), *((name, pa.list_(kind)) for name, kind in lists.items())])
    tables.write(rows, path, schema)
