"""Keeping evaluation sets out of the prompts, by overlap of word n-grams.

A prompt is contaminated by an evaluation item when n-grams that both hold cover at least ``share`` of the item's words
(n = 8 and one half, as in Tulu 3, arXiv 2411.15124; n = 13 and share = 0 is GPT-3's rule, arXiv 2005.14165). An item of
fewer than n words has to stand whole inside one of the user's turns and make up at least half of it: "what is it?"
inside a long request is chance. Words are compared lower-cased, without punctuation, in the user's turns only.

Evaluation texts are read from files at run time; nothing of them is kept.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_nb import files
from starling_nb.chat import Message
from starling_nb.errors import StarlingError
from starling_nb.nectar.prompts.settings import DecontaminationSettings, EvaluationSettings

TEXTS = ("messages", "turns", "turn_1", "turn_2", "question", "instruction", "prompt", "inputs", "text")
"""Usual names of the columns that hold what a model is asked."""
IDS = ("id", "question_id", "prompt_id", "idx")
"""Usual names of the column that names an item; its number otherwise."""
SHORT_SHARE = 0.5
"""Least share of a user's turn that a short item has to make up."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """Why a prompt is contaminated."""

    evaluation: str
    item: str
    words: str  # the longest run of words that both hold
    share: float  # of the item's words that lie in shared n-grams


@dataclass(frozen=True)
class _Item:
    evaluation: str
    name: str
    words: tuple[str, ...]


def split(text: str) -> list[str]:
    """Lower-cased words."""
    return _WORD.findall(text.lower())


class EvaluationIndex:
    """The n-grams of evaluation items; :meth:`find` says which item a prompt holds.

    Grams are kept as 64-bit hashes, about 200 bytes each; a hit is always compared word by word.
    """

    def __init__(self, settings: DecontaminationSettings) -> None:
        self.settings = settings
        self.items: list[_Item] = []
        self._grams: dict[int, list[int]] = defaultdict(list)  # hash of n words → items
        self._short: dict[int, dict[tuple[str, ...], int]] = defaultdict(dict)  # length → words → item

    def add(self, evaluation: str, name: str, text: str) -> None:
        """Add one text of an evaluation item; a text without words is passed over."""
        words = tuple(split(text))
        if not words:
            return
        place = len(self.items)
        self.items.append(_Item(evaluation, name, words))
        if len(words) < self.settings.words:
            self._short[len(words)].setdefault(words, place)
        for gram in set(map(hash, self._grams_of(words))):
            self._grams[gram].append(place)

    def add_file(self, evaluation: EvaluationSettings) -> int:
        """Add every text of a .jsonl or .parquet file; returns how many.

        A column may hold texts, lists of texts, or lists of messages, of which the user's count.

        Raises:
            StarlingError: the file cannot be read, or has none of the columns.
        """
        before, path = len(self.items), Path(evaluation.path)
        for number, row in enumerate(_rows(path)):
            columns = evaluation.columns or [name for name in TEXTS if row.get(name)]
            name = next((str(row[name]) for name in IDS if row.get(name) is not None), str(number))
            for column in columns:
                for text in _texts(row.get(column)):
                    self.add(evaluation.name, name, text)
        if len(self.items) == before:
            wanted = ", ".join(evaluation.columns or TEXTS)
            raise StarlingError(f'{path} has no texts in {wanted}: name its columns (columns = ["…"])')
        return len(self.items) - before

    def find(self, messages: Sequence[Message]) -> Overlap | None:
        """The item that overlaps the prompt most, the first among equals, or None."""
        best: Overlap | None = None
        for message in messages:
            if message["role"] == "user":
                words = split(message["content"])
                for found in (self._whole(words), self._shared(words)):
                    if found and (best is None or found.share > best.share):
                        best = found
        return best

    def _grams_of(self, words: Sequence[str]) -> Iterator[tuple[str, ...]]:
        return zip(*(words[start:] for start in range(self.settings.words)), strict=False)

    def _whole(self, words: list[str]) -> Overlap | None:
        """The longest short item inside a user's turn of which it makes up enough."""
        for length in sorted(self._short, reverse=True):
            if SHORT_SHARE * len(words) <= length <= len(words):
                for start in range(len(words) - length + 1):
                    place = self._short[length].get(tuple(words[start : start + length]))
                    if place is not None:
                        item = self.items[place]
                        return Overlap(item.evaluation, item.name, " ".join(item.words), 1.0)
        return None

    def _shared(self, words: list[str]) -> Overlap | None:
        if self._grams.keys().isdisjoint(map(hash, self._grams_of(words))):
            return None
        own = set(self._grams_of(words))
        places = sorted({place for gram in own for place in self._grams.get(hash(gram), ())})
        found = [overlap for place in places if (overlap := self._overlap(self.items[place], own))]
        return max(found, key=lambda overlap: overlap.share, default=None)

    def _overlap(self, item: _Item, own: set[tuple[str, ...]]) -> Overlap | None:
        """How much of an item the n-grams of a prompt cover, where that is enough."""
        n, covered, longest, run = self.settings.words, 0, 0, 0
        end = best = 0  # the word after the last covered one; the end of the longest run
        for start, gram in enumerate(self._grams_of(item.words)):
            if gram in own:
                fresh = min(n, start + n - end)
                run = run + fresh if start <= end and run else n
                covered, end = covered + fresh, start + n
                if run > longest:
                    longest, best = run, end
        share = covered / len(item.words)
        if not covered or share < self.settings.share:
            return None
        return Overlap(item.evaluation, item.name, " ".join(item.words[best - longest : best]), share)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            found: list[Any] = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise StarlingError(f"{path} cannot be read as parquet ({error}): mend the path or fetch it") from error
    elif path.suffix == ".jsonl":
        found = files.read_jsonl(path)
    else:
        raise StarlingError(f"{path}: an evaluation set has to be a .jsonl or .parquet file")
    yield from (row for row in found if isinstance(row, Mapping))


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return _texts(value.get("content")) if value.get("role") == "user" else []
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []
