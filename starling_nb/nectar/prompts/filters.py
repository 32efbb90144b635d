"""Which prompts are dropped, and the reason that is counted: their length and their language.

As published for Nectar: longer than 40 characters, at most 7,500 tokens (characters / 4), English among the three
likeliest languages. The published run used langid; py3langid is its maintained successor and knows more languages.
"""

from __future__ import annotations

from starling_nb.chat import ChatError, nectar_text
from starling_nb.errors import StarlingError
from starling_nb.nectar.prompts.settings import FilterSettings
from starling_nb.nectar.prompts.shapes import RawPrompt

READ = 2000
"""Characters that the language model reads; more change nothing."""

NAMES = {
    "ar": "arabic",
    "de": "german",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "it": "italian",
    "ja": "japanese",
    "ko": "korean",
    "pt": "portuguese",
    "ru": "russian",
    "zh": "chinese",
}
"""Names by which data sets call the common languages; others call them by their code."""


def fault(prompt: RawPrompt, settings: FilterSettings) -> str | None:
    """Why a prompt is dropped (``role marks inside``, ``too short``, ``too long``, ``not en``), or None.

    Where its data set says its language, that is believed; otherwise py3langid reads the user's turns.

    Raises:
        StarlingError: the language asked for is not one that py3langid knows.
    """
    try:
        nectar_text(prompt.messages)
    except ChatError:
        return "role marks inside"
    length = sum(len(message["content"]) for message in prompt.messages)
    if length <= settings.shortest:
        return "too short"
    if length > 4 * settings.longest:
        return "too long"
    wanted = settings.language
    if not wanted:
        return None
    said = (prompt.language or "").strip().lower()
    if said and said != "unknown":
        return None if said in (wanted, NAMES.get(wanted)) else f"not {wanted}"
    asked = " ".join(message["content"] for message in prompt.messages if message["role"] == "user")
    return None if wanted in likeliest(asked[:READ], settings.top, wanted) else f"not {wanted}"


def likeliest(text: str, top: int, wanted: str = "en") -> list[str]:
    """Codes of the ``top`` likeliest languages of a text, likeliest first.

    Raises:
        StarlingError: ``wanted`` is not among the languages known.
    """
    import py3langid

    ranked = [language for language, _ in py3langid.rank(text)]
    if wanted not in ranked:
        raise StarlingError(
            f"no language {wanted!r}: give an ISO 639-1 code such as en, or none to keep every language"
        )
    return ranked[:top]
