"""Anybody's rankings from a file: parquet, JSON, JSON Lines or CSV, checked before anything is computed.

Every row is one verdict: ``prompt_id``; ``ranking``, the shown positions (from 0) from best to worst, empty where
there was no valid verdict; and, for what needs them, ``models`` and ``shown`` or ``answers``, in shown order. Only the
columns that the report reads are kept: a labelling run's replies stay on the disk.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from starling_nb.bias.tables import ANSWERS, BiasError, read, valid

NEEDED = ("prompt_id", "ranking")
LISTS = ("ranking", "models", *ANSWERS)
"""Columns that hold one value an answer."""
NUMBERS = ("pair_agreement", "contradictions", "cyclic", "order")
"""Columns that hold one number (or true and false) a row."""
OTHERS = ("error", "design", "variant")


def load(path: Path, by: str | None = None, quality: str | None = None) -> pd.DataFrame:
    """Read rankings; rows without one stay, with None there.

    Args:
        path: a ``.parquet``, ``.json`` (a list of objects), ``.jsonl`` (one object a line) or ``.csv`` file; lists in a
            CSV file are written as JSON.
        by: a further column to keep, by which rankings are grouped.
        quality: a column with one number an answer, in shown order.

    Raises:
        BiasError: no such file, a folder, an unknown suffix, no rows, a missing column, a cell that cannot be
            understood, or a ranking that is none.
    """
    lists = (*LISTS, quality) if quality else LISTS
    wanted = dict.fromkeys((*NEEDED, *lists, *NUMBERS, *OTHERS, *([by] if by else [])))
    table = _reader(path)(path, list(wanted))
    needed = dict.fromkeys((*NEEDED, *([quality] if quality else []), *([by] if by else [])))
    if missing := [name for name in needed if name not in table.columns]:
        found = ", ".join(table.attrs["columns"]) or "nothing"
        hint = "; rankings.parquet stands beside it" if "answers" in table.attrs["columns"] and by is None else ""
        raise BiasError(f"{path} lacks {', '.join(missing)}: rankings need prompt_id and ranking; it has {found}{hint}")
    if table.empty:
        raise BiasError(f"{path} has no rows: there is nothing to measure")
    for name in [name for name in lists if name in table.columns]:
        table[name] = pd.Series([_list(value, name, row) for row, value in enumerate(table[name])], dtype=object)
    for name in [name for name in NUMBERS if name in table.columns]:
        table[name] = _numbers(table[name], name)
    absent = table["prompt_id"].isna() | (table["prompt_id"].astype(str).str.strip() == "")
    table["prompt_id"] = table["prompt_id"].astype(str).where(~absent, None)
    _check(table, quality)
    return table


def _reader(path: Path) -> Callable[[Path, Sequence[str]], pd.DataFrame]:
    """What reads a file of this kind, after looking whether there is one."""
    readers = {".parquet": _parquet, ".json": _json, ".jsonl": _jsonl, ".csv": _csv}
    if path.is_dir():
        inside = sorted(item.name for item in path.iterdir() if item.suffix in readers)
        likely = ["rankings.parquet"] if "rankings.parquet" in inside else inside[:5]
        raise BiasError(f"{path} is a folder: give a file, {' or '.join(likely) or 'of rankings'}, in it")
    if path.suffix not in readers:
        raise BiasError(f"{path}: rankings are read from {', '.join(readers)}, not from {path.suffix or 'no suffix'!r}")
    if not path.exists():
        raise BiasError(f"{path} is missing: give a file of rankings; starling-nb judge writes rankings.parquet")
    if path.stat().st_size == 0:
        raise BiasError(f"{path} is empty: there is nothing to measure")
    return readers[path.suffix]


def _parquet(path: Path, wanted: Sequence[str]) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in wanted if name in columns]).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise BiasError(f"{path} is no readable parquet file ({_line(error)}): write it again") from error
    table.attrs["columns"] = columns
    return table.reset_index(drop=True)


def _json(path: Path, wanted: Sequence[str]) -> pd.DataFrame:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BiasError(f"{path} is not JSON ({_line(error)}): write a list of objects, one a ranking") from error
    return _records(path, rows, wanted)


def _jsonl(path: Path, wanted: Sequence[str]) -> pd.DataFrame:
    rows, number = [], 0
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            number += 1
            rows += [json.loads(line)] if line.strip() else []
    except ValueError as error:
        raise BiasError(f"{path}, line {number}, is not JSON ({_line(error)}): write one object a line") from error
    return _records(path, rows, wanted)


def _records(path: Path, rows: Any, wanted: Sequence[str]) -> pd.DataFrame:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BiasError(f"{path} does not hold objects, one a ranking, with the names prompt_id and ranking in each")
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})
    table = table[[name for name in wanted if name in names]]
    table.attrs["columns"] = names
    return table


def _csv(path: Path, wanted: Sequence[str]) -> pd.DataFrame:
    before = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, strict=True)
            table = [{name: row.get(name) or None for name in wanted if name in row} for row in rows]
            names = [name for name in rows.fieldnames or [] if name]
    except (csv.Error, UnicodeDecodeError) as error:
        raise BiasError(f"{path} is no readable CSV file ({_line(error)}): write it again, in UTF-8") from error
    finally:
        csv.field_size_limit(before)
    found = pd.DataFrame(table, columns=[name for name in wanted if name in names], dtype=object)
    found.attrs["columns"] = names
    return found


def _list(value: Any, name: str, row: int) -> list[Any] | None:
    """A cell with one value an answer; None where it is empty."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            text = value if len(value) < 60 else value[:57] + "..."
            raise BiasError(
                f'row {row}: {name} is no list in JSON: {text}. Write ["gpt-4", "llama"] or [2, 0, 1]'
            ) from error
    if not isinstance(value, list | tuple | np.ndarray):
        raise BiasError(f"row {row}: {name} is {value!r}, not a list with one value an answer")
    return list(value)


def _numbers(column: pd.Series, name: str) -> pd.Series:
    """One number a row, NaN where there is none; true is 1."""
    words = {True: 1.0, False: 0.0, "true": 1.0, "false": 0.0, "True": 1.0, "False": 0.0}
    try:
        known = [words.get(value, value) if isinstance(value, str | bool | np.bool_) else value for value in column]
        return pd.to_numeric(pd.Series(known, column.index, dtype=object)).astype(float)
    except (ValueError, TypeError) as error:
        raise BiasError(
            f"{name} holds something that is no number ({_line(error)}): mend it or leave it out"
        ) from error


def _check(table: pd.DataFrame, quality: str | None) -> None:
    """Refuse rows that contradict themselves; rows are counted from 0, those without a ranking too."""
    ranked = valid(table)
    if ranked.empty:
        return
    try:
        found = read(ranked, "prompt_id", *(["models"] if "models" in table.columns else []))
    except BiasError as error:
        raise BiasError(re.sub(r"^row (\d+)", lambda m: f"row {ranked.index[int(m[1])]}", str(error))) from error
    for row, values, k in zip(ranked.index, ranked[quality] if quality else (), found.length, strict=False):
        try:
            fine = len(values) == k and bool(np.isfinite(np.asarray(values, dtype=np.float64)).all())
        except (TypeError, ValueError):
            fine = False
        if not fine:
            raise BiasError(f"row {row}: {quality} should hold {k} numbers, one an answer as shown, and is {values}")


def _line(error: Exception) -> str:
    """The first line of a message."""
    return str(error).split("\n")[0][:200]
