"""The Nectar row: its parquet schema, its prompt text, and checks at the door.

The published data set (``berkeley-nest/Nectar``, one split of 182,954 rows, K = 7) loads with :func:`read`
unchanged, and what :func:`write` writes loads there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from starling_nb.chat import Message, from_nectar_text, nectar_text, user_turns
from starling_nb.errors import StarlingError
from starling_nb.files import replacing

Row = dict[str, Any]

ANSWER = pa.struct([("answer", pa.string()), ("model", pa.string()), ("rank", pa.float64())])
SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),  # "\n\nHuman: …\n\nAssistant: "
        ("answers", pa.list_(ANSWER)),  # rank 1.0 is the best
        ("turns", pa.int64()),  # the user's turns
        ("num_responses", pa.int64()),
        ("source", pa.list_(pa.string())),  # the data sets that the prompt comes from
        ("good_natured", pa.bool_()),  # the judge's word on the conversation
    ]
)
_TYPES: dict[str, type] = {"prompt": str, "answers": list, "turns": int, "num_responses": int, "source": list}


class SchemaError(StarlingError):
    """Rows or text that are not Nectar's; the message names the row and the field."""


def to_prompt_text(messages: Sequence[Message]) -> str:
    """Nectar's prompt text of a conversation that waits for the assistant.

    Raises:
        StarlingError: turns do not alternate from user to user, or a text holds one of the role marks.
    """
    roles = [message["role"] for message in messages]
    if len(roles) % 2 == 0 or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise SchemaError(f"a Nectar prompt alternates user, assistant, …, user; got {roles}: rewrite it")
    text = nectar_text(messages)
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    if from_nectar_text(text) != plain:
        raise SchemaError("the conversation cannot be read back from Nectar's text: remove the role marks in it")
    return text


def from_prompt_text(prompt: str) -> list[Message]:
    """The conversation of a Nectar prompt: the inverse of :func:`to_prompt_text`.

    Raises:
        StarlingError: the text does not begin with a human turn or does not end with an open assistant turn.
    """
    return from_nectar_text(prompt)


def validate(rows: Iterable[Mapping[str, Any]], k: int | None = 7, distinct: bool = False) -> int:
    """Check rows against the schema and against themselves; returns how many there are.

    Args:
        rows: Nectar rows.
        k: answers that every row must have; None for any number from 2.
        distinct: whether two equal answers in one row are an error (9 % of the published rows hold some).

    Raises:
        SchemaError: naming the first row and field that are wrong.
    """
    number = -1
    for number, row in enumerate(rows):
        if fault := _fault(row, k, distinct):
            raise SchemaError(f"row {number}: {fault}")
    return number + 1


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows to a parquet file, atomically.

    Raises:
        StarlingError: a row is not valid, or the file cannot be written.
    """
    validate(rows, k=None)
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read(path: Path) -> list[Row]:
    """Rows of a parquet file, as :func:`read_table`."""
    rows: list[Row] = read_table(path).to_pylist()
    return rows


def read_table(path: Path) -> pa.Table:
    """A parquet file of Nectar rows as a table with exactly :data:`SCHEMA`; further columns are left out.

    Raises:
        SchemaError: the file is missing or damaged, lacks a column, or holds one of another type.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError as error:
        raise SchemaError(f"{path} is missing: run the notebook that makes it, or mend the path") from error
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path} is not a readable parquet file ({error}): make or fetch it again") from error
    if absent := [name for name in SCHEMA.names if name not in table.column_names]:
        raise SchemaError(f"{path} has no column {', '.join(absent)}: it is not a Nectar file")
    try:
        return table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise SchemaError(f"{path} has columns of other types than Nectar's ({error})") from error


def _fault(row: Mapping[str, Any], k: int | None, distinct: bool) -> str | None:
    """What is wrong with a row, or None."""
    if set(row) != set(SCHEMA.names):
        return f"its fields are {sorted(row)}, not {sorted(SCHEMA.names)}"
    for name, kind in _TYPES.items():
        if type(row[name]) is not kind:
            return f"{name} must be {kind.__name__}, not {type(row[name]).__name__}"
    if not isinstance(row["good_natured"], bool):
        return "good_natured must be true or false"
    if not row["source"] or not all(isinstance(name, str) for name in row["source"]):
        return "source must be a list of at least one name"
    return _prompt_fault(row) or _answers_fault(row["answers"], row["num_responses"], k, distinct)


def _prompt_fault(row: Mapping[str, Any]) -> str | None:
    try:
        turns = user_turns(from_prompt_text(row["prompt"]))
    except StarlingError as error:
        return f"prompt: {error}"
    return None if turns == row["turns"] else f"turns is {row['turns']}, but the prompt has {turns}"


def _answers_fault(answers: list[Any], count: int, k: int | None, distinct: bool) -> str | None:
    if len(answers) != count or len(answers) < 2 or (k is not None and len(answers) != k):
        return f"{len(answers)} answers where num_responses says {count}" + (f" and K is {k}" if k else "")
    for answer in answers:
        if not isinstance(answer, Mapping) or set(answer) != {"answer", "model", "rank"}:
            return "an answer must have the fields answer, model and rank"
        if not isinstance(answer["answer"], str) or not isinstance(answer["model"], str):
            return "answer and model must be texts"
    ranks = [answer["rank"] for answer in answers]
    if any(type(rank) is not float for rank in ranks) or sorted(ranks) != list(range(1, len(ranks) + 1)):
        return f"ranks must be the floats 1.0 to {len(ranks)}.0, each once; got {ranks}"
    if distinct and len({answer["answer"] for answer in answers}) < len(answers):
        return "two of its answers are equal"
    return None
