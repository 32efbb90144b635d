"""Ranking prompts and judges: asking a real one, and what the simulated one writes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from starling_nb.judge.client import Request
from starling_nb.judge.simulation import Opinion, register
from starling_nb.nectar.ranking import LETTERS, VARIANTS, RankingRequest, ShownRequest, read_request
from starling_nb.nectar.verdict import PairWinner, Verdict, read_verdict

FARTHER = 0.6
"""Chance that an answer on which the judge changes its mind goes one place farther: 2.2 places on average (K = 7)."""
STRAY = 0.2
"""Share of the contradicting pairs that slip one by one.

Both were chosen so that at the calibration's ``slip`` as many replies contradict a pair of their own, and as many hold
a circle, as in the authors' released GPT-4 logs (recomputed: 14.3 % and 3.8 % of 1,332 seven-wise replies). Those logs'
moves are shorter (1.2 places), since fewer of their pairs contradict the list (0.9 %).
"""
PUBLISHED = {"temperature": 0.0, "max_tokens": 1024}  # the released rater asks at temperature 0


def to_request(ranking: RankingRequest, id: str, params: Mapping[str, Any] = PUBLISHED) -> Request[Verdict]:
    """A ranking prompt as a request to a :class:`~starling_nb.judge.Judge`; its outcome's value is a
    Verdict."""
    return Request(id, ranking.messages, dict(params), partial(read_verdict, k=ranking.k))


def write_reply(
    variant: str,
    ranking: Sequence[int],
    good_natured: bool,
    pairs: Sequence[PairWinner] = (),
    scores: Sequence[float] = (),
) -> str:
    """A reply in the form that ``variant`` asks for; positions are shown positions, scores in shown order."""
    lines = [f"Conversation: {'good-natured' if good_natured else 'not good-natured'}", ""]
    first = VARIANTS[variant].first
    if first == "pairs":
        for a, b, winner in pairs:
            lines.append(f"({LETTERS[a]}, {LETTERS[b]}): {'tie' if winner is None else LETTERS[winner]}")
    elif first == "scores":
        lines += [f"{letter}: [[{score:g}]]" for letter, score in zip(LETTERS, scores, strict=False)]
    lines += [""] * (first != "nothing")
    return "\n".join([*lines, f"Final ranking: [[{', '.join(LETTERS[i] for i in ranking)}]]"])


def answer(shown: ShownRequest, opinion: Opinion) -> str:
    """The simulated judge's reply: pair winners follow its ranking, apart from the slips of the calibration."""
    order = shown.pairs or list(itertools.combinations(range(len(shown.answers)), 2))
    pairs = pair_winners(opinion.ranking, order, opinion.slip, opinion.rng)
    ratings = [saturated(grade) for grade in opinion.grades]
    return write_reply(shown.variant, opinion.ranking, opinion.good_natured, pairs, ratings)


def pair_winners(
    ranking: Sequence[int], order: Sequence[tuple[int, int]], slip: float, rng: np.random.Generator
) -> list[PairWinner]:
    """Winners of the pairs in ``order``, a share ``slip`` of them, on average, against the ranking.

    Most that stand against it come from a change of mind between the pairs and the list: the pairs follow the ranking
    with one answer moved by d places, which contradicts d pairs and closes no circle. The rest slip one by one.
    """
    weights = FARTHER ** np.arange(len(ranking) - 1)
    weights /= weights.sum()  # of a move by 1, 2, … K - 1 places
    share = float(weights @ np.arange(1, len(ranking))) / len(order)  # of the pairs, turned by a move
    turned = min(slip * (1 - STRAY), share)
    stray = (slip - turned) / (1 - turned)
    first = list(ranking)
    if rng.random() < turned / share:
        distance = 1 + int(rng.choice(len(weights), p=weights))
        start = int(rng.integers(len(ranking) - distance))
        ends = (start, start + distance) if rng.random() < 0.5 else (start + distance, start)
        first.insert(ends[1], first.pop(ends[0]))
    found: list[PairWinner] = []
    for (a, b), strays in zip(order, (rng.random(len(order)) < stray).tolist(), strict=True):
        wins = ranking.index(a) > ranking.index(b) if strays else first.index(a) < first.index(b)
        found.append((a, b, a if wins else b))
    return found


def saturated(grade: float) -> int:
    """A grade 1..10 as a lenient judge says it: whole numbers that crowd at 10.

    GPT-4 gave 10 to three answers in four (the authors' released logs); the curve is assumed.
    """
    return max(1, min(10, round(1 + 9 / (1 + math.exp(-2 - 0.6 * (grade - 5.5))))))


register(read_request, answer)
