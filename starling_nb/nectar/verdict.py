"""Reading a ranking judge's reply: a strict permutation or a typed error, never a guess.

The reply is matched against patterns; none of it is ever evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

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
    """A judge's reply, read. Positions are shown positions from 0; what the reply does not say is None.

    How the pair winners go with the list is a fact about the judge and never a failure: of GPT-4's seven-wise replies
    in the authors' logs, one in seven contradicts a pair of its own.
    """

    ranking: list[int]  # best to worst
    good_natured: bool | None
    pairs: list[PairWinner] | None  # in the reply's order
    scores: list[float] | None  # in shown order

    @property
    def contradictions(self) -> int:
        """Decided pairs whose winner stands lower in the list than the loser."""
        return sum(self.ranking.index(winner) > self.ranking.index(loser) for winner, loser in self._decided)

    @property
    def pair_agreement(self) -> float | None:
        """Share 0..1 of the decided pairs whose winner stands higher in the list; None where no pair is decided."""
        decided = len(self._decided)
        return 1 - self.contradictions / decided if decided else None

    @property
    def cyclic(self) -> bool:
        """Whether the decided pairs go round in a circle (A beats B beats C beats A), so that no list can keep all."""
        beats = set(self._decided)
        while beats:
            losers = {loser for _, loser in beats}
            kept = {(winner, loser) for winner, loser in beats if winner in losers}
            if kept == beats:
                return True
            beats = kept
        return False

    @property
    def _decided(self) -> list[tuple[int, int]]:
        """Winner and loser of every pair that is no tie."""
        return [(winner, b if winner == a else a) for a, b, winner in self.pairs or [] if winner is not None]


def parse(reply: str, k: int) -> list[int]:
    """The final ranking of ``k`` answers: shown positions from 0, best to worst.

    Lists in double brackets and lines such as ``Ranking: B, A, C`` count; where there is none in double brackets, lists
    in single brackets do. All that count must agree. Letters may be quoted; they are the Latin capitals A to Z and
    nothing that looks like them. Time is linear in the reply's length.

    Raises:
        RankingError: one of its subclasses, saying what is wrong.
        StarlingError: ``k`` is not between 1 and 26.
    """
    if not 1 <= k <= len(LETTERS):
        raise StarlingError(f"a ranking has 1 to {len(LETTERS)} answers, not {k}: pass the number that was shown")
    if _torn(reply):
        raise TruncatedError("the reply ends inside a list: raise max_tokens")
    if _BACKWARDS.search(reply):
        raise MissingListError(
            "the reply speaks of an order from worst to best before its list: it is not turned round"
        )
    lists = _lists(reply, k)
    if not lists:
        raise _nothing(reply, k)
    readable = [found for found in lists if found is not None]
    if not readable:
        raise MissingListError("the reply's list holds other things than the letters A to Z")
    first = readable[0]
    other = next((found for found in lists if found != first), first)
    if other != first:
        shown = "one that cannot be read" if other is None else _brief(other)
        raise SeveralListsError(f"the reply holds lists that differ: {_brief(first)} and {shown}")
    if sorted(first) != list(LETTERS[:k]):
        raise NotAPermutationError(f"{_brief(first)} is not an order of {', '.join(LETTERS[:k])}")
    return [LETTERS.index(letter) for letter in first]


def read_verdict(reply: str, k: int) -> Verdict:
    """The whole reply: ranking, and whatever verdict, pair winners and scores stand before it.

    Raises:
        RankingError: as :func:`parse`.
    """
    return Verdict(parse(reply, k), _good_natured(reply), _pairs(reply, k) or None, _scores(reply, k))


# No pattern may take more than linear time: two neighbouring repeats never match the same characters, and patterns
# that begin with a repeat are tried once a line (``match``), never at every place (``search``).
_DOUBLE = re.compile(r"\[\[([^\[\]]*)\]\]")
_SINGLE = re.compile(r"(?<!\[)\[([^\[\]]*)\](?!\])(?!\s{0,9}:)")  # "[A, B]: A" is a pair
_LABEL = re.compile(r"\brankings?\b|\bbest to worst\b", re.IGNORECASE)
_BACKWARDS = re.compile(r"\bworst[\s-]{1,9}(?:to[\s-]{1,9}best|first)\b[^\[\]]{0,80}(?:\[|$)", re.IGNORECASE)
_SEPARATOR = re.compile("[,>]")
_MARKS = " \t\r.;!*_`"  # what may stand around a list on a labelled line
_ITEM = re.compile(r"""[\s"'`*‘’“”]*(?:(?:Answer|Model|Assistant)\s+)?([A-Z])[\s"'`*‘’“”]*""")
_SYMBOL = re.compile(r"\W*[^\W_]\W*")
_NATURE = re.compile(
    r"(?P<not>\bnot[\s-]+(?:an?[\s-]+)?|n['’]t[\s-]+(?:an?[\s-]+)?)?\bgood[\s-]natured\b"
    r"[\s\"'*_:?]{0,9}(?P<said>\b(?:yes|true|no|false)\b)?",
    re.IGNORECASE,
)
_DOUBT = re.compile(r"\b(?:not|neither|nor|never|hardly|barely|less|isn['’]t)\b[^\n.;:?!]*$", re.IGNORECASE)
_SORRY = re.compile(
    r"\b(?:sorry|apologi[sz]e|unable to|(?:can|could|will|would|do|must)\s*(?:not|n?['’]t)\s+"
    r"(?:help|assist|rank|compare|judge|comply|provide|do))\b",
    re.IGNORECASE,
)
_PAIR = re.compile(r"""[\s*\-\d.]*\(?['"]?([A-Z])['"]?\s*(?:,|vs\.?|versus)\s*['"]?([A-Z])['"]?\)?\s*[:=]\s*(.*)""")
_WINNER = re.compile(r"(?i:\bwinner):\W*(?:Model\s+|Answer\s+)?([A-Z]|[Tt]ie)\b")
_LEADING = re.compile(r"""\W*([A-Z]|[Tt]ie)['"*`]*(?=\s*$|\s*[.;,(–—]|\s+-|\s+(?:wins|is\s+better)\b)""")
_SCORE = re.compile(r"[\s*\-]*(?:Answer\s+|Model\s+)?([A-Z])\b[^\[]*\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")

Letters = list[str]


def _lists(reply: str, k: int) -> list[Letters | None]:
    """The lists that count, None for one that cannot be read."""
    double, labelled = _bracketed(reply, _DOUBLE), _labelled(reply)
    if not double:
        return _bracketed(reply, _SINGLE) + labelled
    return double + [found for found in labelled if found and sorted(found) == list(LETTERS[:k])]


def _bracketed(reply: str, pattern: re.Pattern[str]) -> list[Letters | None]:
    """The letters of each bracketed list of letters; None for a list of something like letters."""
    found: list[Letters | None] = []
    for match in pattern.finditer(reply):
        items = _SEPARATOR.split(match[1])
        letters = _letters(items)
        if letters and len(letters) >= (1 if pattern is _DOUBLE else 2):
            found.append(letters)
        elif any(map(str.isalpha, match[1])) and (pattern is _DOUBLE or _resembles(items)):
            found.append(None)
    return found


def _labelled(reply: str) -> list[Letters | None]:
    """The letters on each line that says it is a ranking, or on the line below where it says no more."""
    lines = [line for line in reply.split("\n") if line.strip()]
    found: list[Letters | None] = []
    for line, below in zip_longest(lines, lines[1:], fillvalue=""):
        label, colon, rest = line.partition(":")
        if colon and _LABEL.search(label):
            letters = _letters(_SEPARATOR.split((rest.strip(_MARKS) or below).strip(_MARKS)))
            found += [letters] if letters and len(letters) > 1 else []
    return found


def _letters(items: Sequence[str]) -> Letters | None:
    """The items as letters; None where one of them is anything else."""
    matches = [_ITEM.fullmatch(item) for item in items]
    letters = [match[1] for match in matches if match]
    return letters if len(letters) == len(items) else None


def _resembles(items: Sequence[str]) -> bool:
    """Whether the items could be meant as letters: one sign each, of whatever alphabet."""
    return len(items) > 1 and all(map(_SYMBOL.fullmatch, items))


def _torn(reply: str) -> bool:
    """Whether the reply ends between an opening bracket and the last of its closing ones."""
    before, bracket, inside = reply.rstrip().rpartition("[")
    closed = inside.removesuffix("]") if before.endswith("[") else inside
    return bool(bracket) and "]" not in closed


def _brief(letters: Letters) -> str:
    """A list of letters for an error message, cut where it is very long."""
    return ", ".join(letters[: len(LETTERS)]) + (" …" if len(letters) > len(LETTERS) else "")


def _nothing(reply: str, k: int) -> RankingError:
    """Why there is no list."""
    pairs, scores = len(_pairs(reply, k)), len(_score_lines(reply))
    if 0 < pairs < k * (k - 1) // 2 or 0 < scores < k:
        return TruncatedError(f"the reply ends after {pairs or scores} of its lines, before the list: raise max_tokens")
    if not pairs and _SORRY.search(reply):
        return RefusalError("the judge declined to rank")
    return MissingListError("the reply holds no list of letters in double square brackets")


def _good_natured(reply: str) -> bool | None:
    """What the reply first says of the conversation; None where it says it in a way of its own."""
    match = _NATURE.search(reply)
    if match is None or (match["not"] is None and _DOUBT.search(reply[: match.start()][-80:])):
        return None  # "not entirely good-natured", "neither good-natured nor harmful": no guess
    said = (match["said"] or "yes").lower() in ("yes", "true")
    return said if match["not"] is None else not said


def _pairs(reply: str, k: int) -> list[PairWinner]:
    """Pair winners in the reply's order; a line whose winner is in doubt is left out."""
    found: list[PairWinner] = []
    for line in filter(None, map(_PAIR.match, reply.split("\n"))):
        a, b, rest = line.groups()
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
    found = _score_lines(reply)
    if sorted(letter for letter, _ in found) != list(LETTERS[:k]):
        return None
    return [float(number) for _, number in sorted(found)]


def _score_lines(reply: str) -> list[tuple[str, str]]:
    """Letter and number of each line that gives a score."""
    return [(line[1], line[2]) for line in filter(None, map(_SCORE.match, reply.split("\n")))]
