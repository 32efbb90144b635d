"""The outside of an answer: format, length, a finished end, loops, and how much is copied from the prompt."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from starling_nb.rubric.text import FUNCTION_WORDS, Text

_BULLET = re.compile(r"^\s*[-*•–]\s+\S")
_NUMBER = re.compile(r"^\s*\d{1,2}[.)]\s+\S")
_FENCE = re.compile(r"```[^\n`]*\n(.*?)\n?```", re.DOTALL)
_CODE_LIKE = re.compile(r"^\s*(?:def |class |import |select |for |if |<\w+|\w+\s*=|return |=\w+\()", re.I | re.M)
_CLOSED = re.compile(r"(?:[.!?…]|```|\}|\])[\"'”’)\]*_]*\s*$")
_MAY_END = frozenset(
    ["it", "them", "you", "me", "him", "her", "us", "up", "out", "off", "down", "away", "there", "here", "all", "both"]
)
_OPEN_ENDS = (FUNCTION_WORDS - _MAY_END) | {"and", "or"}
ECHO_SPAN = 5


def closeness(have: int, wanted: int) -> float:
    """1 where two counts agree, falling to 0 as they part."""
    return max(0.0, 1 - abs(have - wanted) / max(have, wanted, 1))


def format_score(wanted: Mapping[str, Any], answer: Text) -> float:
    """How well an answer keeps the format that the prompt asks for, 0 to 1."""
    kind, raw = wanted["kind"], answer.raw
    lines = [line for line in raw.splitlines() if line.strip()]
    if kind == "any":
        return 1.0
    if kind in ("bullets", "numbered"):
        bullets, numbers = (sum(bool(mark.match(line)) for line in lines) for mark in (_BULLET, _NUMBER))
        right, swapped = (bullets, numbers) if kind == "bullets" else (numbers, bullets)
        fit = max(closeness(right, wanted["count"]), 0.5 * closeness(swapped, wanted["count"]))
        return fit * (1.0 if len(lines) - bullets - numbers <= 1 else 0.8)
    if kind == "sentences":
        return closeness(len(answer.segments), wanted["count"])
    if kind == "lines":
        return closeness(len(lines), wanted["count"])
    if kind == "words":
        return min(1.0, wanted["count"] / max(1, len(raw.split())))
    if kind == "code":
        return 1.0 if _FENCE.search(raw) else 0.5 if "```" in raw else 0.3 if _CODE_LIKE.search(raw) else 0.0
    if kind == "json":
        return _json_score(wanted["keys"], raw)
    return _letters_score(kind, str(wanted.get("text", "")), raw)


def _json_score(keys: list[str], raw: str) -> float:
    fenced = _FENCE.fullmatch(raw)
    text = fenced[1] if fenced else raw
    whole = 1.0
    if not (text.startswith("{") and text.endswith("}")):
        inner = re.search(r"\{[^{}]*\}", text)
        if inner is None:
            return 0.0
        text, whole = inner[0], 0.6
    try:
        found = set(json.loads(text))
    except ValueError:
        return 0.2
    return whole * len(found & set(keys)) / len(found | set(keys))


def _letters_score(kind: str, text: str, raw: str) -> float:
    if kind in ("uppercase", "lowercase"):
        words = [word for word in raw.split() if any(c.isalpha() for c in word)]
        kept = sum(word == (word.upper() if kind == "uppercase" else word.lower()) for word in words)
        return 1.0 if kept == len(words) else 0.6 * kept / len(words)
    bare = raw.strip("\"'*“” \n")
    test = {"starts": str.startswith, "ends": str.endswith, "contains": str.__contains__}[kind]
    if test(bare, text) or test(raw, text):
        return 1.0
    return 0.7 if test(bare.lower(), text.lower().strip(" .!")) else 0.0


def length_score(low: int, high: int, answer: Text, fresh: int) -> float:
    """1 inside the length band (words), a soft fall below it, a halving per further band length above it.

    Args:
        low: fewest words of a good answer.
        high: most words of a good answer.
        answer: the answer.
        fresh: words that are no repetition; only these can lift a short answer.
    """
    count = len(answer.raw.split())
    slack = 10
    over = max(0.0, (count + slack) / (high + slack) - 1)
    under = min(1.0, min(count, fresh) / low)
    return float(under**0.7 * 2.0 ** (-1.2 * over))


def finished_score(answer: Text, *, listed: bool, terse: bool) -> float:
    """1 for an answer that ends where it should; else the share of its words in finished sentences, times 0.7.

    A list item, a verse or a few bare words may end without a full stop, but not on a linking word or a comma.
    """
    if not answer.words:
        return 0.0
    dangling = answer.tokens[-1] in _OPEN_ENDS
    loose = answer.norm.endswith((",", ":", "-", ";")) or answer.raw.count("```") % 2 == 1
    if _CLOSED.search(answer.raw) and not loose:
        return 1.0
    last = answer.segments[-1]
    bare = (terse and len(answer.words) <= 12) or (
        listed and not answer.norm[: last.start].rstrip().endswith((".", "!"))
    )
    if bare and not dangling and not loose:
        return 1.0
    return 0.7 * (1 - (last.last - last.first) / len(answer.words))


def loops(tokens: list[str], longest: int = 12) -> list[bool]:
    """Which words belong to a unit of up to ``longest`` words said three times in a row (four times for one word).

    Numbers count as alike, so that "1 metre, 2 metres, 3 metres" is a loop as well.
    """
    looped = [False] * len(tokens)
    alike = ["#" if token.isdigit() else token for token in tokens]
    for period in range(1, min(longest, len(tokens) // 3) + 1):
        run = 0
        for i in range(period, len(tokens)):
            same = alike[i] == alike[i - period] and (period > 1 or alike[i] != "#")
            run = run + 1 if same else 0
            if run >= max(2 * period, 3):
                start = i - run - period + 1
                looped[start : i + 1] = [True] * (i + 1 - start)
    return looped


def repeats(tokens: list[str], sentences: list[tuple[str, ...]]) -> list[bool]:
    """Which words stand in a run of four words, or in a sentence of two or more, that the answer has said before."""
    again = [False] * len(tokens)
    seen: set[tuple[str, ...]] = set()
    for i in range(len(tokens) - 3):
        gram = tuple(tokens[i : i + 4])
        if gram in seen:
            again[i : i + 4] = [True] * 4
        seen.add(gram)
    place = 0
    said: set[tuple[str, ...]] = set()
    for sentence in sentences:
        if len(sentence) >= 2 and sentence in said:
            again[place : place + len(sentence)] = [True] * len(sentence)
        said.add(sentence)
        place += len(sentence)
    return again


def freshness(answer: Text) -> tuple[float, list[bool], Counter[tuple[str, ...]]]:
    """A score (1: nothing repeated, 0: a loop), which words are stale, and how often each sentence is said.

    A loop costs 0.45 at once; four words that merely recur are free.
    """
    sentences = [tuple(answer.tokens[s.first : s.last]) for s in answer.segments]
    looped = loops(answer.tokens)
    stale = [a or b for a, b in zip(looped, repeats(answer.tokens, sentences), strict=True)]
    free = 0 if any(looped) else 4
    share = max(0, sum(stale) - free) / max(1, len(stale))
    return max(0.0, 1 - 0.45 * any(looped) - 2.2 * share), stale, Counter(sentences)


def echoed(answer: list[str], grams: frozenset[tuple[str, ...]]) -> list[bool]:
    """Which words of an answer stand in a run of five or more words copied from the prompt."""
    copied = [False] * len(answer)
    for i in range(len(answer) - ECHO_SPAN + 1):
        if tuple(answer[i : i + ECHO_SPAN]) in grams:
            copied[i : i + ECHO_SPAN] = [True] * ECHO_SPAN
    return copied


def grams_of(tokens: list[str]) -> frozenset[tuple[str, ...]]:
    """All runs of five words of a prompt; a prompt shorter than that has one, the whole."""
    return frozenset(tuple(tokens[i : i + ECHO_SPAN]) for i in range(max(1, len(tokens) - ECHO_SPAN + 1)))
