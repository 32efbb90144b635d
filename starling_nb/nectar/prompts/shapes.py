"""How one row of a data set becomes a prompt: one reader for each of the shapes in which published sets are written.

A reader gets the row's values under the names of their roles (``turns``, ``chosen``, ``instruction`` …; the table in
:mod:`starling_nb.nectar.prompts.sources` says which column that is) and returns the conversation up to the user's turn
that waits, and the answers that the set already holds. Answers without text are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starling_nb.chat import Message
from starling_nb.errors import StarlingError


@dataclass(frozen=True)
class Existing:
    """An answer that came with a prompt, and the model that wrote it."""

    model: str
    answer: str


@dataclass(frozen=True)
class RawPrompt:
    """A conversation that waits for an answer, not yet filtered: what every source is read into."""

    messages: list[Message]  # user, assistant, …, user
    source: list[str]  # the data sets that it comes from
    answers: list[Existing]
    language: str | None = None  # as its data set says, a name or a code
    id: str = ""  # as its data set says


@dataclass(frozen=True)
class Skipped:
    """A row that holds no usable prompt, and why."""

    reason: str


class MalformedRowError(StarlingError):
    """A row that cannot be read as its shape; the message is the reason that a report counts."""


Fields = Mapping[str, Any]
Reading = tuple[list[Message], list[Existing]]

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}
"""Role names of the published sets → ours."""

_MARK = re.compile(r"\n\n(Human|Assistant):")


def text(value: Any) -> str:
    """``value`` without outer white space.

    Raises:
        MalformedRowError: it is no text, or text that UTF-8 cannot hold.
    """
    if not isinstance(value, str):
        raise MalformedRowError(f"a {type(value).__name__} where text belongs")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MalformedRowError("text that is not valid Unicode") from error
    return value.strip()


def answers(pairs: Sequence[tuple[Any, Any]]) -> list[Existing]:
    """Model and answer pairs, each once, those without text left out.

    Raises:
        MalformedRowError: a model or an answer is no text.
    """
    found = [Existing(text(model), text(answer)) for model, answer in pairs if answer is not None]
    return list(dict.fromkeys(item for item in found if item.answer))


def waiting(messages: Sequence[Message]) -> list[Message]:
    """The conversation itself, checked: user and assistant in turn, the user last, no turn empty.

    Raises:
        MalformedRowError: it is none. A system turn is refused too: Nectar's prompt text has no place for one.
    """
    roles = [message["role"] for message in messages]
    if not roles:
        raise MalformedRowError("no turns")
    if "system" in roles:
        raise MalformedRowError("a system turn")
    if roles[0] != "user":
        raise MalformedRowError("the first turn is the assistant's")
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise MalformedRowError("turns do not alternate")
    if not all(message["content"] for message in messages):
        raise MalformedRowError("an empty turn")
    return list(messages)


def chat(fields: Fields, whole: bool) -> Reading:
    """``turns``: a list of {role, content} or {from, value}. The last reply is an answer by ``model``."""
    turns = fields["turns"]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise MalformedRowError("turns that are no list")
    messages = [_turn(turn) for turn in (turns if whole else turns[:2])]
    last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=-1)
    replies = [(fields.get("model") or "unknown", message["content"]) for message in messages[last + 1 : last + 2]]
    return waiting(messages[: last + 1] or messages), answers(replies)


def dialogues(fields: Fields, whole: bool) -> Reading:
    """``chosen`` and ``rejected``: two dialogues in ``\\n\\nHuman: …\\n\\nAssistant: …`` text with one beginning.

    The prompt is what they share, always whole; the answers are the two replies where they part.
    """
    first, second = turns_of(fields["chosen"]), turns_of(fields["rejected"])
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    if shared == len(first) == len(second):
        shared -= 1  # equal to the end: one reply
    if shared >= min(len(first), len(second)):
        raise MalformedRowError("one dialogue is the beginning of the other")
    replies = [first[shared], second[shared]]
    if any(reply["role"] != "assistant" for reply in replies):
        raise MalformedRowError("the dialogues part at a user's turn")
    found = answers([(fields.get("model") or "unknown", reply["content"]) for reply in replies])
    return waiting(first[:shared]), found


def turns_of(value: Any) -> list[Message]:
    """Turns of a text ``\\n\\nHuman: …\\n\\nAssistant: …``, outer white space of each removed.

    Raises:
        MalformedRowError: it is no text or does not begin with a turn.
    """
    checked = text(value)
    before, *rest = _MARK.split("\n\n" + checked)
    if before.strip() or not rest:
        raise MalformedRowError("text that does not begin with a turn")
    roles = ["user" if mark == "Human" else "assistant" for mark in rest[::2]]
    return [{"role": role, "content": said.strip()} for role, said in zip(roles, rest[1::2], strict=True)]


def completions(fields: Fields, whole: bool) -> Reading:
    """``instruction`` and ``completions``: a list of {model, response}, all of them answers."""
    items = fields["completions"]
    if not isinstance(items, Sequence) or not all(isinstance(item, Mapping) for item in items):
        raise MalformedRowError("completions that are no list of objects")
    found = answers([(item.get("model") or "unknown", item.get("response")) for item in items])
    return _single(fields["instruction"]), found


def instruction(fields: Fields, whole: bool) -> Reading:
    """``instruction`` and, where there is one, the ``output`` of ``model``."""
    return _single(fields["instruction"]), answers([(fields.get("model") or "unknown", fields.get("output"))])


def plain(fields: Fields, whole: bool) -> Reading:
    """``prompt`` (text) or ``messages`` ([{role, content}]), and ``answers`` ([{model, answer}]) where there are any.

    Messages are always taken whole.
    """
    given = fields.get("answers") or []
    if not isinstance(given, Sequence) or not all(isinstance(item, Mapping) for item in given):
        raise MalformedRowError("answers that are no list of objects")
    found = answers([(item.get("model") or "unknown", item.get("answer")) for item in given])
    if fields.get("prompt") is not None:
        return _single(fields["prompt"]), found
    messages, replies = chat({"turns": fields.get("messages"), "model": fields.get("model")}, True)
    return messages, list(dict.fromkeys([*found, *replies]))


SHAPES: dict[str, Callable[[Fields, bool], Reading]] = {
    "chat": chat,
    "dialogues": dialogues,
    "completions": completions,
    "instruction": instruction,
    "plain": plain,
}
"""Shape → reader ``(fields, whole)``; ``whole`` keeps every turn of a conversation instead of the first."""


def _single(value: Any) -> list[Message]:
    return waiting([{"role": "user", "content": text(value)}])


def _turn(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise MalformedRowError("a turn that is no object")
    name = turn.get("role", turn.get("from"))
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise MalformedRowError("a turn of an unknown role")
    return {"role": role, "content": text(turn.get("content", turn.get("value")))}
