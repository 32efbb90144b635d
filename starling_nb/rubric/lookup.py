"""Which rubric belongs to a conversation: a look-up by what the user said, over every prompt of this project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from starling_nb.errors import StarlingError
from starling_nb.files import DATA, read_jsonl
from starling_nb.rubric.text import normalise

_SINGLE = ("prompts.jsonl", "bench_instructions.jsonl", "bench_safety.jsonl")
_TWO_TURN = "bench_two_turn.jsonl"


class UnknownPrompt(StarlingError):  # noqa: N818
    """A conversation that is not one of this project's prompts, so that nothing is known about good answers to it."""


def _key(turns: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(normalise(turn).split()) for turn in turns)


def _user_turns(messages: Sequence[Mapping[str, str]]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "user"]


@lru_cache(maxsize=1)
def _index() -> dict[tuple[str, ...], Mapping[str, Any]]:
    rows: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for name in _SINGLE:
        for row in read_jsonl(DATA / name):
            rows[_key(_user_turns(row["messages"]))] = MappingProxyType(row)
    for row in read_jsonl(DATA / _TWO_TURN):
        for last, rubric in enumerate(row["rubrics"]):
            shared = {"id": row["id"], "category": row["category"], "turn": last + 1, "rubric": rubric}
            references = row.get("references") or []
            extra = {"reference": references[last]} if last < len(references) and references[last] else {}
            rows[_key(row["turns"][: last + 1])] = MappingProxyType(shared | extra)
    return rows


def find_row(messages: Sequence[Mapping[str, str]]) -> Mapping[str, Any]:
    """The row (id, rubric, reference where there is one, …) of the prompt that a conversation asks.

    Conversations are told apart by their user turns: what an assistant said in between does not matter, nor do case,
    spacing and the shape of quotes.

    Raises:
        UnknownPrompt: no prompt of this project has these user turns.
    """
    turns = _user_turns(messages)
    row = _index().get(_key(turns))
    if row is None:
        said = turns[-1] if turns else ""
        raise UnknownPrompt(
            f"the prompt {said[:60]!r} has no rubric, so the simulated judge cannot judge it: use a real judge with "
            "--set judge=<model>@<base_url> and its key in OPENAI_API_KEY"
        )
    return row


def find(messages: Sequence[Mapping[str, str]]) -> Mapping[str, Any]:
    """The rubric of a conversation, with the writer's answer under ``reference`` where there is one.

    Raises:
        UnknownPrompt: as :func:`find_row`.
    """
    row = find_row(messages)
    rubric: Mapping[str, Any] = row["rubric"]
    return MappingProxyType({**rubric, "reference": row["reference"]} if "reference" in row else dict(rubric))
