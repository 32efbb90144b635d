"""Made-up prompts with seven made-up answers each, as many as wanted, the same in every process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from starling_nb import files
from starling_nb.nectar.candidates import Candidates, Conversation

MODELS = tuple(f"model-{letter}" for letter in "abcdefghij")
PARAGRAPHS, WORDS = 997, 60
_SYLLABLES = ["ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "zu"]


def paragraphs() -> list[str]:
    """Texts of sixty made-up words."""
    draws = files.rng(0, "paragraphs").integers(len(_SYLLABLES), size=(PARAGRAPHS, WORDS, 3))
    return [" ".join("".join(_SYLLABLES[i] for i in word) for word in text) for text in draws]


@dataclass(frozen=True)
class Many:
    """``n`` candidates, made anew each time they are gone through."""

    n: int
    k: int = 7

    def __iter__(self) -> Iterator[Candidates]:
        texts = paragraphs()
        for i in range(self.n):
            question = {"role": "user", "content": f"{i}: {texts[i % PARAGRAPHS]}?"}
            prompt = Conversation(f"p{i:06}", [question], ["made up"])
            places = [(i * 31 + j * 101) % PARAGRAPHS for j in range(self.k)]
            answers = [f"{texts[place]}, {i}/{j}" for j, place in enumerate(places)]
            models = [MODELS[(i + j) % len(MODELS)] for j in range(self.k)]
            yield Candidates(prompt, models, answers)

    def __len__(self) -> int:
        return self.n
