"""Texts set apart inside a judge's prompt, so that none can end its own block or pose as another.

Every block stands between marks that carry a code, drawn from the texts themselves: a text cannot contain
the code of a request that it is part of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from starling_nb.chat import Message
from starling_nb.files import rng


class Block(NamedTuple):
    """One fenced text and what it is: ``user``, ``assistant``, ``answer``, ``reference``, …"""

    kind: str
    text: str


def code(blocks: Sequence[Block], *ids: str | int) -> str:
    """Sixteen hex digits decided by the texts and ``ids``, found in none of the texts."""
    trial = 0
    while True:
        found = rng(trial, "fence", *ids, *(part for block in blocks for part in block)).bytes(8).hex()
        if not any(found in block.text for block in blocks):
            return found
        trial += 1


def write(blocks: Sequence[Block], code: str) -> str:
    """The blocks as text."""
    return "\n\n".join(f"<{kind} {code}>\n{text}\n</{kind} {code}>" for kind, text in blocks)


def messages(template: str, blocks: Sequence[Block], *ids: str | int) -> list[Message]:
    """A judge's two messages: ``template`` with the code in the place of ``{code}``, and the blocks under that code."""
    found = code(blocks, *ids)
    return [
        {"role": "system", "content": template.replace("{code}", found)},
        {"role": "user", "content": write(blocks, found)},
    ]


def parsed(messages: Sequence[Mapping[str, str]], template: str) -> list[Block] | None:
    """The blocks of a prompt that :func:`messages` made with ``template``; None for any other prompt."""
    if [message["role"] for message in messages] != ["system", "user"]:
        return None
    found = find_code(messages[0]["content"], template)
    return read(messages[1]["content"], found) if found else None


def read(text: str, code: str) -> list[Block] | None:
    """The blocks of a text made by :func:`write` with the same code; None where it is anything else."""
    pattern = re.compile(rf"<([a-z_]+) {code}>\n(.*?)\n</\1 {code}>", re.DOTALL)
    blocks = [Block(*match.groups()) for match in pattern.finditer(text)]
    return blocks if blocks and write(blocks, code) == text else None


def find_code(instructions: str, template: str) -> str | None:
    """The code in ``instructions`` if they are ``template``, which holds ``{code}``, word for word."""
    before, after = template.split("{code}")
    pattern = re.escape(before) + "([0-9a-f]{16})" + re.escape(after)
    match = re.fullmatch(pattern, instructions)
    return match[1] if match else None
