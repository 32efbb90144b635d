"""The prompts: six source families, each prompt with a rubric a program can check.

``data/prompts.jsonl`` was written for this project. Splits are decided by hash of the text, so that adding a prompt
never moves another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starling_nb import files
from starling_nb.chat import Message, user_turns
from starling_nb.errors import StarlingError

if TYPE_CHECKING:
    import pandas as pd

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
        """``train``, ``validation`` or ``test``, see :func:`split_of`."""
        return split_of(self.messages)

    @property
    def source(self) -> list[str]:
        """The data sets that it comes from: its family."""
        return [self.family]

    @property
    def turns(self) -> int:
        """Number of user turns."""
        return user_turns(self.messages)


def key(messages: Sequence[Message]) -> str:
    """A name for a conversation that survives every change of white space and case: 16 hex digits."""
    return files.hash_value([" ".join(message["content"].lower().split()) for message in messages])[:16]


def split_of(messages: Sequence[Message]) -> str:
    """The split that a conversation falls into, wherever it is met: by hash of its text."""
    return files.split_of(key(messages))


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


def composition(prompts: Sequence[Prompt]) -> pd.DataFrame:
    """Counts for a figure: kind (source family, turns, nature, split), name, count."""
    import pandas as pd

    nature = {
        prompt.id: "not good-natured"
        if not prompt.good_natured
        else "harmless, sounds harmful"
        if prompt.looks_harmful
        else "good-natured"
        for prompt in prompts
    }
    described = [
        {
            "source family": prompt.family.replace("_", " "),
            "turns": str(prompt.turns),
            "nature": nature[prompt.id],
            "split": prompt.split,
        }
        for prompt in prompts
    ]
    table = pd.DataFrame(described).melt(var_name="kind", value_name="name")
    return table.groupby(["kind", "name"], sort=False).size().reset_index(name="count")
