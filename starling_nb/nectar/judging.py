"""Ranking prompts and judges: asking a real one, and what the simulated one writes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from starling_nb.judge.client import Request
from starling_nb.judge.simulated import Opinion, register
from starling_nb.nectar.ranking import LETTERS, VARIANTS, RankingRequest, ShownRequest, read_request
from starling_nb.nectar.verdict import PairWinner, Verdict, read_verdict

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
    """The simulated judge's reply: pair winners follow the scores, apart from the slips of the
    calibration."""
    order = shown.pairs or list(itertools.combinations(range(len(shown.answers)), 2))
    slips = opinion.rng.random(len(order)) < opinion.slip
    scores = opinion.scores
    pairs = [
        (a, b, a if (scores[a] >= scores[b]) != slipped else b)
        for (a, b), slipped in zip(order, slips.tolist(), strict=True)
    ]
    ratings = [saturated(grade) for grade in opinion.grades]
    return write_reply(shown.variant, opinion.ranking, opinion.good_natured, pairs, ratings)


def saturated(grade: float) -> int:
    """A grade 1..10 as a lenient judge says it: whole numbers that crowd at 10.

    GPT-4 gave 10 to three answers in four (the authors' released logs); the curve is assumed.
    """
    return max(1, min(10, round(1 + 9 / (1 + math.exp(-2 - 0.6 * (grade - 5.5))))))


register(read_request, answer)
