"""An answer as the rubric reads it: normalised text, words with their places, and sentences."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

_CURLY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": ";", "\u00a0": " ", "\u202f": " "})
_WORD = re.compile(r"[^\W_]+(?:['.,:/-][^\W_]+)*")
_ITEM = re.compile(r"^\s*(?:[-*•–]|\d{1,2}[.)])\s+")
_BREAK = re.compile(
    r"(?<!\bmr)(?<!\bms)(?<!\bdr)(?<!\bmrs)(?<!\bst)(?<!\be\.g)(?<!\bi\.e)(?<!\b[ap]\.m)(?<!\bvs)(?<!^\d)(?<!\n\d"
    r")"
    r"[.!?…]+[\"')\]*]*(?=\s)|\n+"
)

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those it its it's he she they them we us you i me him his her hers their
    theirs our your yours my mine is are was were be been being am do does did doing have has had having
    can could will would shall should may might must to of in on at by for with from into onto over
    under between through during before after about against as than then so if when while because since
    until unless although though but not no nor isn't aren't wasn't don't doesn't didn't can't cannot
    won't i'm i'll i'd you're you'll they're that's there's there here what which who whom whose how why
    where up out off down away too very just only also more most less such each every some any all both
    either neither few much many own same other another let let's there's he's she's we're it'll who's
    what's one's
    """.split()  # noqa: SIM905
)
STOP_WORDS = FUNCTION_WORDS | frozenset(
    """
    and or please give tell say get make one two three four five sentence sentences word words bullet
    bullets point points list numbered exactly short write explain way ways thing things like want need
    know good best help answer question using use used
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Word:
    """One lower-case word and its span ``[start, end)`` in the normalised text."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Segment:
    """A sentence or line: its span in the normalised text and the indices ``[first, last)`` of its words."""

    start: int
    end: int
    first: int
    last: int
    is_item: bool


def normalise(text: str) -> str:
    """Lower-case text with straight quotes and single spaces; line ends stay."""
    lines = (" ".join(line.split()) for line in text.translate(_CURLY).lower().splitlines())
    return "\n".join(line for line in lines if line)


def stem(word: str) -> str:
    """The beginning of a word, long enough to tell topics apart and short enough to join its forms."""
    return word[:5]


class Text:
    """A normalised text with words and segments, each computed once."""

    def __init__(self, raw: str) -> None:
        self.raw = raw.strip()
        self.norm = normalise(raw)
        self.words = [Word(m[0], m.start(), m.end()) for m in _WORD.finditer(self.norm)]
        self.tokens = [word.text for word in self.words]

    @cached_property
    def segments(self) -> list[Segment]:
        """Sentences and lines that contain at least one word, in order."""
        starts = [word.start for word in self.words]
        ends = [match.end() for match in _BREAK.finditer(self.norm)] + [len(self.norm)]
        found, start, first = [], 0, 0
        for end in ends:
            last = bisect_right(starts, end - 1, lo=first)
            if last > first:
                is_item = bool(_ITEM.match(self.norm[start:end]))
                found.append(Segment(start, end, first, last, is_item))
                start, first = end, last
        return found

    def segment_at(self, place: int) -> Segment | None:
        """The segment that holds a character offset; None between segments."""
        return next((s for s in self.segments if s.start <= place < s.end), None)

    def word_range(self, start: int, end: int) -> range:
        """Indices of the words that overlap ``[start, end)``."""
        return range(
            next((i for i, word in enumerate(self.words) if word.end > start), len(self.words)),
            next((i for i, word in enumerate(self.words) if word.start >= end), len(self.words)),
        )


def content_stems(words: list[str]) -> set[str]:
    """Stems of the words that carry a topic: not a stop word, and at least three letters or a digit."""
    return {stem(w) for w in words if w not in STOP_WORDS and (len(w) > 2 or w.isdigit())}
