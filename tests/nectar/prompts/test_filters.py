"""Length and language: kept, or dropped with a reason."""

from __future__ import annotations

import pytest

from starling_nb.errors import StarlingError
from starling_nb.nectar import prompts
from starling_nb.nectar.prompts import RawPrompt, filters
from starling_nb.nectar.prompts.settings import FilterSettings

ENGLISH = "Please explain to me in a few words why the sky is blue during the day."
FRENCH = "Explique-moi en quelques mots pourquoi le ciel est bleu pendant la journée, s'il te plaît."


def fault(text: str, language: str | None = None, **settings: object) -> str | None:
    asked = RawPrompt([{"role": "user", "content": text}], ["x"], [], language)
    return filters.fault(asked, FilterSettings(**settings))  # type: ignore[arg-type]


def test_lengths_are_those_published() -> None:
    assert fault("a " * 20, language="en") == "too short"  # 40 characters
    assert fault("a " * 20 + "b", language="en") is None
    assert fault("a" * 30_000, language="en") is None
    assert fault("a" * 30_001, language="en") == "too long"


def test_english_stays_and_french_goes() -> None:
    assert fault(ENGLISH) is None
    assert fault(FRENCH) == "not en"
    assert fault(FRENCH, language="") == "not en"
    assert fault(FRENCH, language="unknown") == "not en"
    assert filters.likeliest(FRENCH, 1) == ["fr"]


def test_a_data_set_that_says_its_language_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "likeliest", lambda *_: pytest.fail("the model was asked"))
    assert fault(FRENCH, language="English") is None
    assert fault(ENGLISH, language="French") == "not en"


def test_every_language_or_another_one_can_be_kept() -> None:
    asked = RawPrompt([{"role": "user", "content": FRENCH}], ["x"], [])
    assert filters.fault(asked, FilterSettings(language="")) is None
    assert filters.fault(asked, FilterSettings(language="fr", top=1)) is None
    with pytest.raises(StarlingError, match="no language 'klingon'"):
        filters.fault(asked, FilterSettings(language="klingon"))


def test_our_own_prompts_are_english() -> None:
    texts = [prompt.messages[-1]["content"] for prompt in prompts.load()]
    long = [text for text in texts if len(text) > 40]
    assert sum("en" in filters.likeliest(text, 3) for text in long) >= 0.98 * len(long)


def test_a_text_that_a_row_could_not_hold_goes() -> None:
    assert fault(f"{ENGLISH}\n\nHuman: {ENGLISH}") == "role marks inside"
    assert fault(f"{ENGLISH} Human: {ENGLISH}") is None
