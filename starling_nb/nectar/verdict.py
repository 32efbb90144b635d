"""Reading a ranking judge's reply: a strict permutation or a typed error, never a guess.

The reply is matched against patterns; none of it is ever evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from starling_nb.errors import StarlingError
from starling_nb.nectar.wording import LETTERS

PairWinner = tuple[int, int, int | None]  # two shown positions and the winner, None for a tie


class RankingError(StarlingError):
    """A reply from which no ranking can be taken."""


class NotAPermutationError(RankingError):
    """The list leaves an answer out, names one twice, or names one that was not shown."""


class MissingListError(RankingError):
    """There is no list."""


class SeveralListsError(RankingError):
    """There are lists that differ."""


class RefusalError(RankingError):
    """The judge declined."""


class TruncatedError(RankingError):
    """The reply ends before its list."""


@dataclass(frozen=True)
class Verdict:
    """A judge's reply, read. Positions are shown positions from 0; what the reply does not say is None."""

    ranking: list[int]  # best to worst
    good_natured: bool | None
    pairs: list[PairWinner] | None  # in the reply's order
    scores: list[float] | None  # in shown order


def parse(reply: str, k: int) -> list[int]:
    """The final ranking of ``k`` answers: shown positions from 0, best to worst.

    Lists in double brackets count; where there is none, lists in single brackets do; where there is none
    either, a line such as ``Ranking: B, A, C`` does. Letters may be quoted.

    Raises:
        RankingError: one of its subclasses, saying what is wrong.
    """
    lists = _lists(reply, _DOUBLE, 1) or _lists(reply, _SINGLE, 2) or _lists(reply, _LABELLED, 2)
    if _TORN.search(reply):
        raise TruncatedError("the reply ends inside a list: raise max_tokens")
    if not lists:
        raise _nothing(reply, k)
    if any(found != lists[0] for found in lists):
        raise SeveralListsError(
            f"the reply holds lists that differ: {lists[0]} and {next(x for x in lists if x != lists[0])}"
        )
    if sorted(lists[0]) != list(LETTERS[:k]):
        raise NotAPermutationError(f"{', '.join(lists[0])} is not an order of {', '.join(LETTERS[:k])}")
    return [LETTERS.index(letter) for letter in lists[0]]


def read_verdict(reply: str, k: int) -> Verdict:
    """The whole reply: ranking, and whatever verdict, pair winners and scores stand before it.

    Raises:
        RankingError: as :func:`parse`.
    """
    return Verdict(parse(reply, k), _good_natured(reply), _pairs(reply, k) or None, _scores(reply, k))


_DOUBLE = re.compile(r"\[\[([^\[\]]*)\]\]")
_SINGLE = re.compile(r"(?<!\[)\[([^\[\]]*)\](?!\])")
_LABELLED = re.compile(
    r"^[^:\n]*(?i:\branking\b|\bbest to worst\b)[^:\n]*:\s*([A-Z](?:\s*[,>]\s*[A-Z])+)\W*$", re.MULTILINE
)
_TORN = re.compile(r"(?:\[\[[^\[\]]*\]?|(?<!\[)\[[^\[\]]*)\s*\Z")
_ITEM = re.compile(r"""[\s"'`*‘’“”]*(?:(?:Answer|Model|Assistant)\s+)?([A-Z])[\s"'`*‘’“”]*""")
_NATURE = re.compile(r"(\bnot[\s-]+(?:an?[\s-]+)?|n['’]t[\s-]+(?:an?[\s-]+)?)?\bgood[\s-]natured", re.IGNORECASE)
_SORRY = re.compile(
    r"\b(?:sorry|apologi[sz]e|unable to|(?:can|could|will|would|do|must)\s*(?:not|n?['’]t)\s+"
    r"(?:help|assist|rank|compare|judge|comply|provide|do))\b",
    re.IGNORECASE,
)
_PAIR = re.compile(
    r"""^[\s*\-\d.]*\(?['"]?([A-Z])['"]?\s*(?:,|vs\.?|versus)\s*['"]?([A-Z])['"]?\)?\s*[:=]\s*(.*)$""",
    re.MULTILINE,
)
_WINNER = re.compile(r"(?i:\bwinner):\W*(?:Model\s+|Answer\s+)?([A-Z]|[Tt]ie)\b")
_LEADING = re.compile(r"""\W*([A-Z]|[Tt]ie)['"*`]*(?=\s*$|\s*[.;,(–—]|\s+-|\s+(?:wins|is\s+better)\b)""")
_SCORE = re.compile(r"^[\s*\-]*(?:Answer\s+|Model\s+)?([A-Z])\b[^\[\n]*\[\[\s*(\d+(?:\.\d+)?)\s*\]\]", re.MULTILINE)


def _lists(reply: str, pattern: re.Pattern[str], least: int) -> list[list[str]]:
    """The letters of each bracketed list of letters."""
    found = []
    for match in pattern.finditer(reply):
        items = [_ITEM.fullmatch(item) for item in re.split(r"[,>]", match[1])]
        letters = [item[1] for item in items if item]
        if len(letters) == len(items) >= least:
            found.append(letters)
    return found


def _nothing(reply: str, k: int) -> RankingError:
    """Why there is no list."""
    pairs, scores = len(_pairs(reply, k)), len(_SCORE.findall(reply))
    if 0 < pairs < k * (k - 1) // 2 or 0 < scores < k:
        return TruncatedError(f"the reply ends after {pairs or scores} of its lines, before the list: raise max_tokens")
    if not pairs and _SORRY.search(reply):
        return RefusalError("the judge declined to rank")
    return MissingListError("the reply holds no list of letters in double square brackets")


def _good_natured(reply: str) -> bool | None:
    """What the reply first says of the conversation."""
    match = _NATURE.search(reply)
    return None if match is None else match[1] is None


def _pairs(reply: str, k: int) -> list[PairWinner]:
    """Pair winners in the reply's order; a line whose winner is in doubt is left out."""
    found: list[PairWinner] = []
    for a, b, rest in _PAIR.findall(reply):
        match = _WINNER.search(rest) or _LEADING.match(rest)
        if match and a != b and max(a, b) <= LETTERS[k - 1]:
            winner = match[1]
            if winner in (a, b):
                found.append((LETTERS.index(a), LETTERS.index(b), LETTERS.index(winner)))
            elif winner.lower() == "tie":
                found.append((LETTERS.index(a), LETTERS.index(b), None))
    return found


def _scores(reply: str, k: int) -> list[float] | None:
    """The answers' scores, if each has exactly one."""
    found = _SCORE.findall(reply)
    if sorted(letter for letter, _ in found) != list(LETTERS[:k]):
        return None
    return [float(number) for _, number in sorted(found)]
