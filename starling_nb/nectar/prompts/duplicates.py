"""Finding prompts that were met before: exactly, or nearly.

Exact duplicates have equal lower-cased letters and digits, the published rule. Near duplicates share at least
``threshold`` of their word shingles (Jaccard) and hold the same numbers: a sum with another figure is another sum. A
MinHash-LSH index (rensa) proposes earlier prompts, and the likeliest of them are compared in full. rensa was chosen by
measurement over datasketch 2.0: 200,000 prompts of 480 characters take 2.1 s and 1.7 kB a row against 58 s and 6.9 kB
(``benchmarks/prompt_scale.py``).
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from starling_nb.chat import Message
from starling_nb.nectar.prompts.settings import DuplicateSettings

SEED = 20231127
"""Of the hash functions."""
COMPARED = 8
"""At most so many proposed prompts are compared in full, the likeliest first."""
MARGIN = 0.12
"""Proposed prompts whose estimated similarity lies further below the threshold are not: three standard errors."""
BAND_BYTES, KEY_BYTES = 90, 190
"""Memory of one row in one band of rensa's index and in the table of exact keys, measured."""

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+")
_PUNCTUATION = re.compile(r"[\s;:!?'\"‘’“”„«»()…]|[.,](?!\d)")


@dataclass(frozen=True)
class Repeat:
    """The earlier prompt that a prompt repeats, and how."""

    number: int
    near: bool


def exact_key(messages: Sequence[Message]) -> bytes:
    """16 bytes that are equal for conversations with equal lower-cased letters and digits, turn by turn.

    A turn without any counts with its other characters, so that ``???`` and ``:-)`` stay two prompts.
    """
    turns = []
    for message in messages:
        lowered = message["content"].lower()
        turns.append("".join(filter(str.isalnum, lowered)) or " ".join(lowered.split()))
    return hashlib.blake2b("\n\n".join(turns).encode(), digest_size=16).digest()


def same_question(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Whether conversations of one :func:`exact_key` differ in case, space and punctuation alone, so that an answer to
    one answers the other; ``12 + 7`` and ``12 - 7`` do not, nor do C++ and C#, 1.5 and 15."""
    texts = [[_PUNCTUATION.sub("", message["content"].lower()) for message in turns] for turns in (one, other)]
    return texts[0] == texts[1]


def shingles(messages: Sequence[Message], words: int) -> set[str]:
    """All runs of so many words, lower-cased, over the turns in order; all words where there are fewer, if any."""
    found = _WORD.findall(" ".join(message["content"] for message in messages).lower())
    if not found:
        return set()
    return {" ".join(found[start : start + words]) for start in range(max(1, len(found) - words + 1))}


def numbers(messages: Sequence[Message]) -> Counter[str]:
    """Every run of digits, and how often it stands there."""
    return Counter(number for message in messages for number in _NUMBER.findall(message["content"]))


class DuplicateIndex:
    """The prompts met so far, by number.

    Args:
        settings: when two prompts are one.
        messages_of: gives the messages of an earlier number back; asked only for likely near duplicates.
    """

    def __init__(self, settings: DuplicateSettings, messages_of: Callable[[int], Sequence[Message]]) -> None:
        from rensa import RMinHash, RMinHashLSH

        self.settings, self.messages_of = settings, messages_of
        self.exact = self.near = 0  # duplicates found
        self._hashes = settings.bands * settings.band_rows
        self._minhash, self._lsh = RMinHash, RMinHashLSH(settings.threshold, self._hashes, settings.bands)
        self._keys: dict[bytes, int] = {}  # exact key → twice the number, one more where it is near
        self._numbers = array("Q")  # of the rows below
        self._digests = np.empty((1024, self._hashes), np.uint32)

    def add(self, messages: Sequence[Message], number: int) -> Repeat | None:
        """The earlier prompt that this one repeats; None where it is new and now known as ``number``.

        Near duplicates are compared with prompts that were new themselves, never with other duplicates; an exact copy
        of a near duplicate is a near duplicate.
        """
        name = exact_key(messages)
        coded = self._keys.get(name)
        if coded is None:
            earlier = self._add_near(messages, number) if self.settings.near else None
            self._keys[name] = 2 * number if earlier is None else 2 * earlier + 1
            if earlier is None:
                return None
        found = Repeat(self._keys[name] // 2, self._keys[name] % 2 == 1)
        self.exact, self.near = self.exact + (not found.near), self.near + found.near
        return found

    @property
    def nbytes(self) -> int:
        """Memory of the index: its own arrays exactly, keys and bands by the measured size of one."""
        bands = len(self._numbers) * self.settings.bands * BAND_BYTES
        return self._digests.nbytes + 8 * len(self._numbers) + len(self._keys) * KEY_BYTES + bands

    def _add_near(self, messages: Sequence[Message], number: int) -> int | None:
        own = shingles(messages, self.settings.words)
        if not own:
            return None
        minhash = self._minhash(self._hashes, SEED)
        minhash.update(list(own))
        digest = np.array(minhash.digest(), np.uint32)
        for place in self._likely(minhash, digest):
            earlier = int(self._numbers[place])
            other = self.messages_of(earlier)
            theirs = shingles(other, self.settings.words)
            same = len(own & theirs) >= self.settings.threshold * len(own | theirs)
            if same and numbers(messages) == numbers(other):
                return earlier
        self._insert(minhash, digest, number)
        return None

    def _likely(self, minhash: Any, digest: np.ndarray) -> list[int]:
        """Places of the earlier prompts that may be near, the likeliest first, the earliest first among equals."""
        proposed = np.sort(np.array(self._lsh.query(minhash), np.int64))
        if not len(proposed):
            return []
        similar = np.count_nonzero(self._digests[proposed] == digest, axis=1) / self._hashes
        order = np.argsort(-similar, kind="stable")[:COMPARED]
        kept: list[int] = proposed[order[similar[order] >= self.settings.threshold - MARGIN]].tolist()
        return kept

    def _insert(self, minhash: Any, digest: np.ndarray, number: int) -> None:
        place = len(self._numbers)
        if place == len(self._digests):
            grown = np.empty((place + place // 2, self._hashes), np.uint32)
            grown[:place] = self._digests
            self._digests = grown
        self._digests[place] = digest
        self._numbers.append(number)
        self._lsh.insert(place, minhash)
