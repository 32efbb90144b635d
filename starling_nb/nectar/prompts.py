"""The prompts: six source families, each prompt with a rubric a program can check.

``data/prompts.jsonl`` was written for this project. Splits are decided by hash of the id, so that adding a prompt
never moves another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_nb import files
from starling_nb.chat import Message
from starling_nb.errors import StarlingError

FAMILIES = (
    "real_user_chat",
    "shared_conversations",
    "helpful_harmless",
    "instruction_mixture",
    "evolved_instructions",
    "task_collections",
)


@dataclass(frozen=True)
class Prompt:
    """One conversation that waits for an answer, and what is known about good answers.

    ``reference`` is a good answer and ``flawed`` a fluent wrong one, both written by hand.
    """

    id: str
    family: str
    messages: list[Message]
    good_natured: bool
    looks_harmful: bool
    rubric: Mapping[str, Any]
    reference: str
    flawed: str

    @property
    def split(self) -> str:
        """``train``, ``validation`` or ``test``."""
        return files.split_of(self.id)

    @property
    def turns(self) -> int:
        """Number of user turns."""
        return sum(message["role"] == "user" for message in self.messages)


def load(path: Path | None = None, *, split: str | None = None, limit: int | None = None) -> list[Prompt]:
    """Read the prompts in file order.

    Args:
        path: a jsonl file; the embedded ``data/prompts.jsonl`` by default.
        split: keep only one split.
        limit: keep at most this many, spread over the families by hash of the id.

    Raises:
        StarlingError: the file is missing or a row lacks a field.
    """
    path = path or files.DATA / "prompts.jsonl"
    rows = files.read_jsonl(path)
    try:
        prompts = [Prompt(**row) for row in rows]
    except TypeError as error:
        raise StarlingError(f"{path} holds a row with missing or unknown fields ({error})") from error
    chosen = [prompt for prompt in prompts if split in (None, prompt.split)]
    if limit is not None and limit < len(chosen):
        kept = {p.id for p in sorted(chosen, key=lambda p: files.hash_value(p.id))[:limit]}
        chosen = [prompt for prompt in chosen if prompt.id in kept]
    return chosen
