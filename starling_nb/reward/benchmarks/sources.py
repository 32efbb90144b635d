"""Where rows come from: a local file, a folder of files, or a data set of the Hugging Face hub."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.reward.benchmarks.items import BenchmarkError

Row = dict[str, Any]
SUFFIXES = (".parquet", ".json", ".jsonl", ".jsonl.gz")
ENDINGS = ", ".join(SUFFIXES)


def rows_of(
    source: str | Path, columns: Sequence[str], main: Sequence[str], split: str, cache_dir: Path | None
) -> list[Row]:
    """Rows of a file, a folder or a hub id; each also says where it is from (``_file``).

    Args:
        source: a local file or folder comes first, else a hub id. Of a folder are read: the files named in ``main``;
            else those of the split (``filtered-00000-of-00001.parquet``, ``test.jsonl.gz``); else all.
        columns: what every row must have.
        main: names of files without ending.
        split: of the hub's data set, or of a folder in its layout.
        cache_dir: where the hub's files are kept.

    Raises:
        BenchmarkError: nothing there, an unreadable or empty file, or a missing column.
    """
    path = Path(source)
    if path.is_dir():
        paths = _in_folder(path, main, split)
    elif path.exists() or path.name.endswith(SUFFIXES):
        paths = [path]
    else:
        return checked(from_hub(str(source), split, cache_dir), str(source), columns)
    return [row for p in paths for row in checked(read_rows(p), str(p), columns)]


def _in_folder(folder: Path, main: Sequence[str], split: str) -> list[Path]:
    seen = sorted(p for p in folder.rglob("*") if p.name.endswith(SUFFIXES))
    found = [p for p in seen if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    stems = {p: p.name.split(".")[0] for p in found}
    paths = [p for p in found if stems[p] in main]
    paths = paths or [p for p in found if stems[p] == split or stems[p].startswith(f"{split}-")] or found
    if not paths:
        raise BenchmarkError(f"{folder} holds no {ENDINGS}: give a folder with the benchmark's files")
    return paths


def from_hub(name: str, split: str, cache_dir: Path | None = None) -> list[Row]:
    """Rows of a hub data set, or of a local folder in the hub's layout.

    The message tells only the kind of a failure: the hub's own text may hold the request, and with it the token.

    Raises:
        BenchmarkError: the data set cannot be loaded.
    """
    from datasets import load_dataset

    try:
        return [dict(row) for row in load_dataset(name, split=split, cache_dir=cache_dir and str(cache_dir))]
    except Exception as error:
        failure = type(error).__name__
    raise BenchmarkError(
        f"{name}: there is no such file or folder here, and split {split!r} cannot be loaded from the hub ({failure}): "
        "check the name, the split and the network, or give a local file"
    )


def read_rows(path: Path) -> list[Row]:
    """Rows of a parquet, JSON or JSON-lines file; what is missing in a parquet file is None.

    Raises:
        BenchmarkError: a missing, broken or other file.
    """
    if not path.name.endswith(SUFFIXES):
        raise BenchmarkError(f"{path} is none of {ENDINGS}: give the benchmark's own file")
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
            return frame.astype(object).where(frame.notna(), None).to_dict("records")
        rows = files.read_json(path) if path.suffix == ".json" else files.read_jsonl(path)
    except StarlingError as error:
        what = str(error).rsplit(": ", 1)[0]  # its own remedy is for files that a stage made
        raise BenchmarkError(f"{what}: give the benchmark's own file") from error
    except (OSError, ValueError, TypeError, pa.ArrowException, zlib.error) as error:
        raise BenchmarkError(f"{path} cannot be read ({error}): give the benchmark's own file") from error
    if not isinstance(rows, list) or any(not isinstance(row, dict) for row in rows):
        raise BenchmarkError(f"{path} is not a list of objects: give the benchmark's own file")
    return rows


def checked(rows: Sequence[Row], name: str, columns: Sequence[str]) -> list[Row]:
    """The rows with their origin, if there are any and all have the columns.

    Raises:
        BenchmarkError: otherwise; the message names file, row and column.
    """
    if not rows:
        raise BenchmarkError(f"{name} is empty: give a file with rows")
    for number, row in enumerate(rows):
        if lacking := [column for column in columns if column not in row]:
            raise BenchmarkError(
                f"{name}, row {number}: column {', '.join(lacking)} is missing (it has {', '.join(row)}): "
                f"rename the columns to {', '.join(columns)}"
            )
    return [{**row, "_file": name} for row in rows]
