"""Parquet files larger than memory: written and read a few rows at a time, never half-written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starling_nb import files
from starling_nb.errors import StarlingError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1000
"""Rows that are held in memory at a time."""
Write = Callable[[Sequence[Mapping[str, Any]]], None]


@contextmanager
def writing(path: Path, columns: pa.Schema) -> Iterator[Write]:
    """A function that appends rows to a new file, which takes its place when the block ends without an error.

    Raises:
        StarlingError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.replacing(path) as part, pq.ParquetWriter(part, columns, compression="zstd") as writer:

        def write(rows: Sequence[Mapping[str, Any]]) -> None:
            if rows:
                writer.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=columns))

        yield write


def write(rows: Iterable[Mapping[str, Any]], path: Path, columns: pa.Schema) -> int:
    """Write rows as they come; returns how many.

    Raises:
        StarlingError: the file cannot be written.
    """
    number = 0
    with writing(path, columns) as append:
        for group in grouped(rows, ROWS):
            append(group)
            number += len(group)
    return number


def read(path: Path, names: Sequence[str] | None, remedy: str) -> Iterator[dict[str, Any]]:
    """Rows of a file, with the named columns, or (None) with all.

    Raises:
        StarlingError: the file is missing or damaged, or lacks a column; ``remedy`` is part of the message.
    """
    import pyarrow.parquet as pq

    with _told(path, remedy), pq.ParquetFile(path) as file:
        if absent := [name for name in names or () if name not in file.schema_arrow.names]:
            raise StarlingError(f"{path} has no column {', '.join(absent)}: {remedy}")
        for group in range(file.num_row_groups):  # one at a time: a reader over all keeps what it has read
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=names and list(names)):
                yield from batch.to_pylist()


def count(path: Path, remedy: str) -> int:
    """How many rows a file has.

    Raises:
        StarlingError: as :func:`read`.
    """
    import pyarrow.parquet as pq

    with _told(path, remedy), pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _told(path: Path, remedy: str) -> Iterator[None]:
    import pyarrow as pa

    if not path.exists():
        raise StarlingError(f"{path} is missing: {remedy}")
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise StarlingError(f"{path} is no readable parquet file ({error}): {remedy}") from error


def grouped(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most ``size`` items, in order."""
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
