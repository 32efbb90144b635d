"""The ranking prompts: K answers shown in a random order, ranked by a judge in one reply.

:func:`build` draws the orders and writes the prompt in one of eight variants
(:mod:`starling_nb.nectar.wording`); :func:`read_request` reads a prompt back from its text alone; replies
are read by :mod:`starling_nb.nectar.verdict`, strictly.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from starling_nb.chat import ROLES, Message
from starling_nb.errors import StarlingError
from starling_nb.files import hash_value, rng
from starling_nb.nectar.verdict import (
    MissingListError,
    NotAPermutationError,
    PairWinner,
    RankingError,
    RefusalError,
    SeveralListsError,
    TruncatedError,
    Verdict,
    parse,
    read_verdict,
)
from starling_nb.nectar.wording import LETTERS, SYSTEM, VARIANTS, Variant, task

__all__ = [
    "LETTERS",
    "VARIANTS",
    "MissingListError",
    "NotAPermutationError",
    "PairWinner",
    "RankingError",
    "RankingRequest",
    "RefusalError",
    "SeveralListsError",
    "ShownRequest",
    "TruncatedError",
    "Variant",
    "Verdict",
    "build",
    "parse",
    "random_order",
    "read_request",
    "read_verdict",
]

Pair = tuple[int, int]


@dataclass(frozen=True)
class RankingRequest:
    """A ranking prompt and the exact order in which everything in it is shown.

    ``shown[p]`` is the index of the answer at shown position ``p``; ``pairs`` holds shown positions, in
    listed order; ``tie_order`` holds shown positions, the one that wins ties first.
    """

    messages: list[Message]
    variant: str
    shown: list[int]
    pairs: list[Pair] | None
    tie_order: list[int] | None

    @property
    def k(self) -> int:
        """Number of answers."""
        return len(self.shown)

    def to_answers(self, ranking: Sequence[int]) -> list[int]:
        """A ranking of shown positions as indices into the answers that were given, best to worst."""
        return [self.shown[position] for position in ranking]

    def describe(self) -> dict[str, Any]:
        """Variant and orders as plain lists, for a parquet row."""
        pairs = None if self.pairs is None else [list(pair) for pair in self.pairs]
        return {"variant": self.variant, "shown": self.shown, "pairs": pairs, "tie_order": self.tie_order}


@dataclass(frozen=True)
class ShownRequest:
    """What a ranking prompt's text says: answers in shown order, pairs and ties as shown positions."""

    variant: str
    conversation: list[Message]
    answers: list[str]
    pairs: list[Pair] | None
    tie_order: list[int] | None


def build(
    messages: Sequence[Mapping[str, str]],
    answers: Sequence[str],
    variant: str,
    seed: int,
    request_id: str = "",
    shown: Sequence[int] | None = None,
) -> RankingRequest:
    """The prompt that asks a judge to rank ``answers`` to a conversation.

    Orders are drawn by ``seed`` and ``request_id`` (by the content where the id is empty) and do not depend
    on the variant, so that variants are compared on the same orders.

    Args:
        messages: the conversation, ending with the user's turn.
        answers: 2 to 26 texts.
        variant: a name in :data:`VARIANTS`.
        seed: of the answers' permutation, the pairs' permutation, the tie order and the fence's mark.
        request_id: the prompt's id.
        shown: the index of the answer at each shown position (:mod:`starling_nb.nectar.orders`); None draws it.

    Raises:
        StarlingError: an unknown variant, too few or too many answers, a conversation without a user's turn, a
            message or answer that is no text, or a shown order that is no permutation.
    """
    conversation = [{"role": message.get("role", ""), "content": message.get("content", "")} for message in messages]
    check(conversation, answers, variant)
    name, k = request_id or hash_value([conversation, list(answers)]), len(answers)
    order = random_order(seed, name, k) if shown is None else _order(shown, k)
    kind, pairs, tie_order = VARIANTS[variant], None, None
    if kind.pair_order:
        pairs = list(itertools.combinations(range(k), 2))
    if pairs is not None and kind.pair_order == "random":
        pairs = [pairs[i] for i in rng(seed, "pairs", name).permutation(len(pairs))]
    if kind.ties == "standing":
        tie_order = standing_order(k)
    elif kind.ties == "drawn":
        tie_order = rng(seed, "ties", name).permutation(k).tolist()
    content = ShownRequest(variant, conversation, [answers[i] for i in order], pairs, tie_order)
    return RankingRequest(_render(content, _mark(seed, content)), variant, order, pairs, tie_order)


def read_request(messages: Sequence[Mapping[str, str]]) -> ShownRequest | None:
    """What a ranking prompt shows, read from its text alone; None where it is not exactly such a prompt."""
    if [message.get("role") for message in messages] != ["system", "user"]:
        return None
    if not all(isinstance(message.get("content"), str) for message in messages):
        return None
    marked = re.search(r"the mark ([0-9a-f]{16})\.", messages[0]["content"])
    if marked is None:
        return None
    text, mark = messages[1]["content"], marked[1]
    blocks = re.findall(rf"<(answer [A-Z]|user|assistant|system) {mark}>\n(.*?)\n</\1 {mark}>", text, re.DOTALL)
    conversation = [{"role": name, "content": inner} for name, inner in blocks if name in ROLES]
    answers = [inner for name, inner in blocks if name not in ROLES]
    told = text.rpartition(f" {mark}>\n")[2]
    pairs = [(_place(a), _place(b)) for a, b in re.findall(r"^\(([A-Z]), ([A-Z])\)$", told, re.MULTILINE)]
    order = re.search(r"[A-Z](?: > [A-Z])+", told)
    ties = [_place(letter) for letter in order[0].split(" > ")] if order else None
    for variant in VARIANTS:
        found = ShownRequest(variant, conversation, answers, pairs or None, ties)
        if _render(found, mark) == [dict(message) for message in messages]:
            return found if _complete(found) else None
    return None


def _complete(content: ShownRequest) -> bool:
    """Whether the lists of pairs and ties, where there are any, name everything once."""
    places = range(len(content.answers))
    every = list(itertools.combinations(places, 2))
    whole = content.pairs is None or sorted(content.pairs) == every
    return whole and (content.tie_order is None or sorted(content.tie_order) == list(places))


def random_order(seed: int, name: str, k: int) -> list[int]:
    """The order in which K answers are shown where none is given: a permutation drawn by seed and prompt id."""
    drawn: list[int] = rng(seed, "shown", name).permutation(k).tolist()
    return drawn


def _order(shown: Sequence[int], k: int) -> list[int]:
    order = [int(place) if isinstance(place, Integral) else -1 for place in shown]
    if sorted(order) != list(range(k)):
        raise StarlingError(f"shown = {list(shown)[:30]} is no permutation of 0 to {k - 1}: name each answer once")
    return order


def standing_order(k: int) -> list[int]:
    """The order that settles ties in ``static_tie_break``: shown positions, the winner of ties first."""
    return [2, 6, 4, 5, 1, 3, 0] if k == 7 else rng(0, "standing tie order", k).permutation(k).tolist()


def _render(content: ShownRequest, mark: str) -> list[Message]:
    turns = "\n".join(_fenced(turn["role"], turn["content"], mark) for turn in content.conversation)
    answers = zip(LETTERS, content.answers, strict=False)
    shown = "\n\n".join(_fenced(f"answer {letter}", answer, mark) for letter, answer in answers)
    told = task(content.variant, len(content.answers), content.pairs, content.tie_order)
    text = f"The conversation so far:\n\n{turns}\n\nThe answers to its last turn:\n\n{shown}\n{told}"
    return [{"role": "system", "content": SYSTEM.format(mark=mark)}, {"role": "user", "content": text}]


def _fenced(name: str, text: str, mark: str) -> str:
    return f"<{name} {mark}>\n{text}\n</{name} {mark}>"


def _mark(seed: int, content: ShownRequest) -> str:
    """Sixteen hex digits that no text of the request contains."""
    texts = [turn["content"] for turn in content.conversation] + content.answers
    marks = (hash_value([seed, attempt, texts])[:16] for attempt in itertools.count())
    return next(mark for mark in marks if not any(mark in text for text in texts))


def _place(letter: str) -> int:
    return LETTERS.index(letter)


def check(conversation: Sequence[Mapping[str, str]], answers: Sequence[str], variant: str) -> None:
    """Refuse what :func:`build` cannot show.

    Raises:
        StarlingError: as :func:`build`.
    """
    if variant not in VARIANTS:
        raise StarlingError(f"unknown ranking variant {variant!r}: choose from {', '.join(VARIANTS)}")
    if isinstance(answers, str) or not all(isinstance(answer, str) for answer in answers):
        raise StarlingError("answers to rank must be a list of texts: leave out those that are missing")
    if not 2 <= len(answers) <= len(LETTERS):
        raise StarlingError(f"a ranking needs 2 to {len(LETTERS)} answers, not {len(answers)}")
    roles = [message["role"] for message in conversation]
    if not roles or roles[-1] != "user" or not set(roles) <= set(ROLES):
        raise StarlingError(f"a conversation to judge has the roles {', '.join(ROLES)} and ends with user: got {roles}")
    if not all(isinstance(message["content"], str) for message in conversation):
        raise StarlingError("a conversation to judge holds texts only: turn lists of parts into one text")
    try:
        "".join([*answers, *(message["content"] for message in conversation)]).encode()
    except UnicodeEncodeError as error:
        raise StarlingError(f"a text holds half a character ({error}): clean it before it is judged") from error
