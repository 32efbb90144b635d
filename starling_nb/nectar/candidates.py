"""A prompt with its K answers, waiting to be ranked; and the file in which many of them wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from starling_nb.chat import Message
from starling_nb.errors import StarlingError
from starling_nb.nectar import tables

if TYPE_CHECKING:
    import pyarrow as pa

_REMEDY = "make it with starling-nb respond"


class Waiting(Protocol):
    """What is known of every prompt, ours or another's."""

    @property
    def id(self) -> str: ...
    @property
    def messages(self) -> list[Message]: ...
    @property
    def source(self) -> list[str]: ...


@dataclass(frozen=True)
class Conversation:
    """A prompt of whose good answers nothing is known; ``existing`` are answers (model, text) that came with it."""

    id: str
    messages: list[Message]
    source: list[str]
    existing: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Candidates:
    """One prompt with its K distinct answers and who wrote each."""

    prompt: Any  # a Waiting; the embedded prompts know more of themselves
    models: list[str]
    answers: list[str]


@dataclass(frozen=True)
class File:
    """Candidates in a parquet file (prompt_id, messages, source, models, answers), read anew each time it is gone
    through and never whole.

    Raises:
        StarlingError: (when read) the file is missing or damaged, or is no such file.
    """

    path: Path

    def __iter__(self) -> Iterator[Candidates]:
        for row in tables.read(self.path, schema().names, _REMEDY):
            prompt = Conversation(row["prompt_id"], row["messages"], row["source"])
            if len(row["models"]) != len(row["answers"]):
                raise StarlingError(f"{self.path}: prompt {prompt.id} has not one model an answer: {_REMEDY}")
            yield Candidates(prompt, row["models"], row["answers"])

    def __len__(self) -> int:
        return tables.count(self.path, _REMEDY)


def write(rows: Iterable[Candidates], path: Path) -> int:
    """Write candidates as they come, atomically; returns how many.

    Raises:
        StarlingError: the file cannot be written.
    """
    return tables.write(map(_row, rows), path, schema())


def schema() -> pa.Schema:
    """Columns of a file of candidates."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    lists = [(name, pa.list_(pa.string())) for name in ("source", "models", "answers")]
    return pa.schema([("prompt_id", pa.string()), ("messages", pa.list_(message)), *lists])


def _row(item: Candidates) -> dict[str, Any]:
    return {
        "prompt_id": item.prompt.id,
        "messages": [{"role": m["role"], "content": m["content"]} for m in item.prompt.messages],
        "source": list(item.prompt.source),
        "models": item.models,
        "answers": item.answers,
    }
