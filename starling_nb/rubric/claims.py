"""What an answer asserts: phrases on whole words, outside negations, inside something that reads as a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starling_nb.rubric.text import FUNCTION_WORDS, Segment, Text, normalise

LIST_FORMATS = frozenset({"bullets", "numbered", "lines"})
BARE_FORMATS = frozenset({"words", "json", "code"})

_HARMLESS = re.compile(
    r"\bnot (?:only|just|merely|to mention|necessarily)\b|\bno (?:doubt|wonder|matter|problem|worries"
    r"|later than)\b"
    r"|\b(?:don't|do not|never) (?:forget|hesitate|worry|be afraid)\b|\bcan(?:'t|not) wait\b"
    r"|\bwhy (?:don't|not)\b"
    r"|\bno,|\bnot (?:really|quite|at all|exactly|yet)[,;]"
)
_NEGATOR = re.compile(
    r"\b(?:not|never|no|none|nobody|cannot|neither|nor|without|hardly|barely|unlike|avoid(?:s|ed|ing)?"
    r"|rather than|instead of|far from|myths?|misconceptions?|false|untrue|wrong(?:ly)?|mistake[ns]?"
    r"|mistakenly"
    r"|misbelie\w+|contrary to|nothing to do with|stop(?:s|ped)? \w+ing|refus(?:e|es|ed|ing)|forbid\w*"
    r"|against)\b|n't\b"
)
_REFUSING = re.compile(r"\bi(?:'m| am)?(?: \w+)? (?:can't|cannot|can not|won't|will not|not able|couldn't|not)\b")
_SCOPE_END = re.compile(
    r"[.;:!?()\n](?!\d)|\b(?:but|because|since|so|however|although|though|whereas|while|therefore|which"
    r"|instead(?! of)"
    r"|if|then|until)\b|\band (?=(?:it|they|he|she|you|we|i|that|this|is|are|can|could|may|will)\b)"
)
_DENIED_AFTER = re.compile(
    r"[\"']?,? (?:is|are|was|were|would be)(?:n't| not| never| a (?:common )?(?:myth|misconception|mistake)"
    r"| false| untrue| wrong| incorrect)\b"
    r"|(?: \w+){0,3}? (?:(?:has|have|had|makes?|plays?) no\b|(?:do|does|did|will|would)(?:n't"
    r"| not) (?:matter|help|work"
    r"|affect|count|exist|change|make|play)\b)"
)
_FABLE = re.compile(
    r"\b(?:myths?|misconceptions?|mistakenly|wrongly|contrary to|people (?:often |sometimes )?(?:think"
    r"|believe|say)"
    r"|it is (?:false|untrue|wrong|not true)|it's (?:false|untrue|wrong|not true)|no evidence|old wives)\b"
)
_OFFER = re.compile(
    r"\b(?:could|might|may|either|maybe|perhaps|possibly|probably)\b[^\n]*, [^\n]*\bor\b"
    r"|(?:[^,;]{1,30}, ){2,}(?:or|maybe|perhaps)\b"
)
_VERBS = frozenset(
    """
    add allow apply ask avoid bake be become begin boil break breathe bring build buy call carry cause
    change check choose clean close come contact cook cool cost count cover create cut decide describe
    disappear do drain draw drink drive drop eat empty end enjoy expand explain fall feel fill find
    finish fix flow follow form get give go grow happen have heat help hold include increase keep know
    lay lead learn leave let lie lift like listen live lock look lose love lower make mean meet melt mix
    move name need offer open pay pick place plan play point pour practice practise press prevent
    protect pull push put raise reach read reduce release remove repeat replace rest return rinse rise
    roll run say scrape see seem sell send set shake share show shut sing sink sit sleep slow smile soak
    speak spend spread stand start stay stir stop store stretch suggest support switch take talk teach
    tell test thank think throw tie tighten touch travel try turn use visit wait wake walk want warm
    wash watch water wear weigh wipe wish work write
    """.split()  # noqa: SIM905
)


def phrase_pattern(aliases: Sequence[str]) -> re.Pattern[str]:
    """A pattern for any of the aliases on whole words; ``*`` stands for any ending, a space for any gap.

    Numbers stand alone: ``9`` is found neither in ``4.9`` nor in ``9.50`` nor in ``9:30``, but in ``9.00``.
    """
    parts = []
    for alias in sorted({normalise(alias) for alias in aliases}, key=len, reverse=True):
        body = re.escape(alias).replace(r"\*", r"[\w'-]*").replace(r"\ ", r"\s+")
        before = r"(?<![^\W_])" + (r"(?<!\d[.,:])" if alias[0].isdigit() else "")
        after = r"(?![^\W_])" + (r"(?!\.(?!0+\b)\d|[,:]\d)" if alias[-1].isdigit() else "")
        parts.append(before + body + after)
    return re.compile("|".join(parts))


def negated(text: Text, start: int, end: int, *, refusing: bool = False) -> bool:
    """Whether the phrase at ``[start, end)`` is denied within its clause.

    Args:
        text: the answer.
        start: where the phrase begins in ``text.norm``.
        end: where it ends.
        refusing: the answer ought to refuse, so that "I can't help you cheat" still names cheating.
    """
    segment = text.segment_at(start)
    clause = text.norm[segment.start if segment else 0 : start]
    clause = _HARMLESS.sub(" ", clause)
    if refusing:
        clause = _REFUSING.sub(" ", clause)
    tail = _SCOPE_END.split(clause)[-1]
    following = text.norm[end : end + 60]
    listed = re.match(r"[^.;:!?\n]{0,30}?\b(?:or|nor)\b", following) or tail.rstrip().endswith((" or", " nor"))
    if not listed:
        tail = tail.rsplit(",", 1)[-1]
    return bool(_NEGATOR.search(" ".join(tail.split()[-9:])) or _DENIED_AFTER.match(following))


def only_offered(text: Text, segment: Segment) -> bool:
    """Whether a sentence lists possible answers ("it could be 3, 4 or 7") and so asserts none of them."""
    return bool(_OFFER.search(text.norm[segment.start : segment.end]))


def reported_as_error(text: Text, start: int) -> bool:
    """Whether the sentence so far marks what follows as a belief that is not shared."""
    segment = text.segment_at(start)
    return bool(_FABLE.search(text.norm[segment.start if segment else 0 : start]))


def _verb(word: str) -> bool:
    """Whether a word is a form of a common verb or ends like a past or a progressive form."""
    bases = (word, word[:-1], word[:-2], word[:-3], word[:-3] + "y")
    return any(base in _VERBS for base in bases) or (len(word) > 5 and word.endswith(("ing", "ed")))


def reads_as_prose(text: Text, segment: Segment, *, listed: bool, terse: bool) -> bool:
    """Whether a segment is a sentence, or a list item where the prompt asked for a list, and not a bag of keywords.

    Args:
        text: the answer.
        segment: one of ``text.segments``.
        listed: the prompt asked for a list, so that an item needs no verb.
        terse: a few bare words answer the prompt.
    """
    words = text.tokens[segment.first : segment.last]
    said = text.norm[segment.start : segment.end]
    chunks = said.count(",") + 1
    linking = sum(word in FUNCTION_WORDS for word in words)
    if terse and (len(words) <= 12 or linking):
        return True
    if chunks >= 5 and len(words) / chunks < 2:
        return False
    if listed and len(words) <= 8:
        return True
    if len(words) < 5:
        return linking > 0 or len(words) == 1 or ": " in said
    if chunks >= 3 and len(words) / chunks >= 3 and linking >= 2:
        return True
    acting = any(_verb(word) for word in words)
    share = linking / len(words)
    return share >= 0.28 or (acting and share >= 0.12)
