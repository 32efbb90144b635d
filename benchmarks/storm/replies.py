"""What the storm judge says: for each request and arrival one kind of reply, decided by hashes alone.

:func:`reply_for` is pure, so that a test can foretell what the server of :mod:`benchmarks.storm` does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

LIMITED = ("http_429_seconds", "http_429_fraction", "http_429_date", "http_429_ms", "http_429_bare")
ERRORS = ("http_500", "http_502", "http_503", "http_408", "http_409")
CONNECTION = ("reset_before", "reset_within", "hang", "cut_short")
BODY = ("half_json", "no_choices", "choices_missing", "null_content", "content_filter", "html")
TEXT = (
    "refusal", "wrong_letter", "repeated_letter", "too_many_letters", "prose", "foreign_prose", "two_lists",
    "torn_list",
)  # fmt: skip
DRESSED = (
    "quoted", "single_brackets", "bold", "code_fence", "greater_than", "prose_around", "crlf", "trailing_spaces",
    "lower_case", "answer_words", "same_list_twice", "json_around", "unicode_quotes", "pairs_quoted", "pairs_versus",
    "slow_drip",
)  # fmt: skip
KINDS = (*LIMITED, *ERRORS, *CONNECTION, *BODY, *TEXT, *DRESSED, "plain")
READABLE = frozenset((*TEXT, *DRESSED, "plain"))
"""Kinds that arrive as a whole chat completion with a text: a judge would be paid for them."""


class Planned(NamedTuple):
    """A reply: ``expected_ranking`` holds shown positions, best to worst; None where no ranking can be had."""

    kind: str
    status: int  # 0 where no whole answer comes
    text: str  # of the message; "" where there is none
    expected_ranking: tuple[int, ...] | None

    @property
    def finish_reason(self) -> str:
        """As the chat completion gives it."""
        return {"torn_list": "length", "content_filter": "content_filter"}.get(self.kind, "stop")


def content_of(messages: Sequence[Mapping[str, str]]) -> str:
    """The name under which a request is counted: a hash of its messages, whatever its other parameters."""
    text = "\0".join(f"{message['role']}\0{message['content']}" for message in messages)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def letters_of(messages: Sequence[Mapping[str, str]]) -> int:
    """How many answers a ranking prompt shows, by its fences; 0 where it is no such prompt."""
    mark = messages[0]["content"].partition("the mark ")[2][:16]
    text, k, at = messages[-1]["content"], 0, 0
    while k < 26 and (at := text.find(f"\n<answer {LETTERS[k]} {mark}>\n", at)) >= 0:
        k += 1
    return k


def ranking_of(content: str, k: int) -> tuple[int, ...]:
    """The storm's opinion: an order of ``k`` positions that the content alone decides."""
    digest = hashlib.sha512(content.encode()).digest()
    return tuple(sorted(range(k), key=lambda i: (digest[2 * i], digest[2 * i + 1], i)))


def kind_of(content: str, arrival: int, seed: int, rates: Mapping[str, float]) -> str:
    """Which kind strikes this arrival (from 1) of this content."""
    if not rates:
        return "plain"
    digest = hashlib.sha256(f"{seed}/{content}/{arrival}".encode()).digest()
    left = int.from_bytes(digest[:8], "little") / 2**64
    for kind in KINDS:
        left -= rates.get(kind, 0.0)
        if left < 0:
            return kind
    return "plain"


def check_rates(rates: Mapping[str, float]) -> None:
    """Raise ValueError for an unknown kind, a rate outside 0..1, or rates that sum to more than 1."""
    if unknown := sorted(set(rates) - set(KINDS)):
        raise ValueError(f"unknown kind {unknown[0]!r}: choose from {', '.join(KINDS)}")
    if any(not 0 <= rate <= 1 for rate in rates.values()) or sum(rates.values()) > 1 + 1e-9:
        raise ValueError("rates lie between 0 and 1 and sum to at most 1")


def reply_for(content_hash: str, arrival: int, seed: int, rates: Mapping[str, float], k: int) -> Planned:
    """What the server does when a request with ``k`` answers arrives for the ``arrival``-th time (from 1)."""
    kind = kind_of(content_hash, arrival, seed, rates)
    if kind.startswith("http_"):
        return Planned(kind, int(kind[5:8]), "", None)
    if kind in CONNECTION:
        return Planned(kind, 0, "", None)
    if kind in BODY and kind != "content_filter":
        return Planned(kind, 200, "", None)
    ranking = ranking_of(content_hash, k)
    places = {position: place for place, position in enumerate(ranking)}
    pairs = [(LETTERS[a], LETTERS[b], LETTERS[a if places[a] < places[b] else b]) for a, b in _couples(k)]
    text = _WORDS.get(kind, _plain)(pairs, [LETTERS[i] for i in ranking])
    return Planned(kind, 200, text, ranking if kind in DRESSED or kind == "plain" else None)


Pairs = list[tuple[str, str, str]]
Words = Callable[[Pairs, list[str]], str]
_couples_of: dict[int, list[tuple[int, int]]] = {}


def _couples(k: int) -> list[tuple[int, int]]:
    if k not in _couples_of:
        _couples_of[k] = list(itertools.combinations(range(k), 2))
    return _couples_of[k]


def _reply(pairs: Pairs, last: str, pair: str = "({}, {}): {}", first: str = "Conversation: good-natured") -> str:
    return "\n".join([first, *(pair.format(*each) for each in pairs), last])


def _listed(letters: Sequence[str], form: str = "Final ranking: [[{}]]", item: str = "{}", between: str = ", ") -> str:
    return form.format(between.join(item.format(letter) for letter in letters))


def _plain(pairs: Pairs, letters: list[str]) -> str:
    return _reply(pairs, _listed(letters))


def _with(**form: str) -> Words:
    return lambda pairs, letters: _reply(pairs, _listed(letters, **form))


def _only(text: str) -> Words:
    return lambda pairs, letters: text.format(best=letters[0], worst=letters[-1])


_WORDS: dict[str, Words] = {
    # no ranking to be had
    "content_filter": lambda pairs, letters: _plain(pairs, letters)[:80],
    "refusal": _only("I'm sorry, but I can't help with comparing these answers."),
    "wrong_letter": lambda pairs, letters: _plain(pairs, [*letters[:-1], LETTERS[len(letters) % 26]]),
    "repeated_letter": lambda pairs, letters: _plain(pairs, [*letters[:-1], letters[0]]),
    "too_many_letters": lambda pairs, letters: _plain(pairs, [*letters, LETTERS[len(letters) % 26]]),
    "prose": _only("Answer {best} is the most helpful, and answer {worst} the least. The others lie between."),
    "foreign_prose": _only(
        "Die Antwort {best} gefällt mir am besten, {worst} am wenigsten; der Rest liegt dazwischen."
    ),
    "two_lists": lambda pairs, letters: _plain(pairs, letters) + "\n\n" + _listed(letters[::-1], "Or rather: [[{}]]"),
    "torn_list": lambda pairs, letters: _plain(pairs, letters)[:-5],
    # correct ones
    "quoted": _with(item="'{}'"),
    "single_brackets": _with(form="Final ranking: [{}]"),
    "bold": _with(form="**Final ranking:** **[[{}]]**"),
    "code_fence": lambda pairs, letters: f"```\n{_plain(pairs, letters)}\n```",
    "greater_than": _with(between=" > "),
    "prose_around": lambda pairs, letters: (
        f"Let me look at the answers one by one.\n\n{_plain(pairs, letters)}\n\nI hope this helps! Ask if it does not."
    ),
    "crlf": lambda pairs, letters: _plain(pairs, letters).replace("\n", "\r\n"),
    "trailing_spaces": lambda pairs, letters: _plain(pairs, letters).replace("\n", "  \n") + "   \n\n",
    "lower_case": lambda pairs, letters: _reply(
        pairs, _listed(letters, "my final ranking is [[{}]]"), first="conversation: good-natured"
    ),
    "answer_words": _with(item="Answer {}"),
    "same_list_twice": lambda pairs, letters: _plain(pairs, letters) + "\n\n" + _listed(letters, "To repeat: [[{}]]"),
    "json_around": lambda pairs, letters: json.dumps({"conversation": "good-natured", "ranking": [letters]}, indent=1),
    "unicode_quotes": _with(item="“{}”"),
    "pairs_quoted": lambda pairs, letters: _reply(pairs, _listed(letters), pair="('{}', '{}'): {}"),
    "pairs_versus": lambda pairs, letters: _reply(pairs, _listed(letters), pair="{} vs {}: {}"),
}
