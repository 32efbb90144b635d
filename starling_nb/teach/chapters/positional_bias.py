"""Exercises on notebook 02: does the judge read the answers or their place?"""

from __future__ import annotations

from starling_nb.teach.exercise import Exercise

FIRST = Exercise(
    "2.1",
    "Who wins the first place?",
    minutes=5,
    text="""Each ranking names shown places, best first. Return, for each of the `k` places, the share of rankings
that put it first. A judge that reads nothing but the answers, shown in random order, gives every place
1/k.""",
    hints=("Only `ranking[0]` matters here.", "Places that never win have share 0, and have to be there."),
    cases=(([[1, 0, 2], [1, 2, 0], [0, 1, 2], [1, 0, 2]], 3), ([[0, 1], [1, 0]], 2), ([[3, 2, 1, 0]], 4)),
)


@FIRST.solution
def first_places(rankings: list[list[int]], k: int) -> list[float]:
    """The share of first places that each shown place wins."""
    winners = [ranking[0] for ranking in rankings]
    return [winners.count(place) / len(rankings) for place in range(k)]


@FIRST.mistake("You look at the place that comes last in each ranking: best stands first.")
def _last(rankings: list[list[int]], k: int) -> list[float]:
    losers = [ranking[-1] for ranking in rankings]
    return [losers.count(place) / len(rankings) for place in range(k)]


@FIRST.mistake("These are counts: divide by the number of rankings.")
def _counts(rankings: list[list[int]], k: int) -> list[float]:
    winners = [ranking[0] for ranking in rankings]
    return [float(winners.count(place)) for place in range(k)]


MEAN_RANK = Exercise(
    "2.2",
    "The mean rank of a place",
    minutes=10,
    text="""First places miss most of a judge's bias: on the authors' own logs the last place is treated worst.
Return, for each shown place, the mean rank (from 1) of whatever answer stood there. Without bias all are
(k + 1) / 2.""",
    hints=(
        "In `[2, 0, 1]` place 2 has rank 1, place 0 rank 2 and place 1 rank 3.",
        "`ranking.index(place) + 1`.",
    ),
    cases=(([[2, 0, 1], [2, 1, 0]],), ([[0, 1], [1, 0]],), ([[1, 2, 0], [1, 0, 2], [0, 1, 2]],)),
)


@MEAN_RANK.solution
def mean_ranks(rankings: list[list[int]]) -> list[float]:
    """The mean rank that each shown place gets."""
    k = len(rankings[0])
    return [sum(ranking.index(place) + 1 for ranking in rankings) / len(rankings) for place in range(k)]


@MEAN_RANK.mistake("You average which place stands at each rank; what is asked is which rank each place has.")
def _mean_places(rankings: list[list[int]]) -> list[float]:
    k = len(rankings[0])
    return [sum(ranking[rank] + 1 for ranking in rankings) / len(rankings) for rank in range(k)]


@MEAN_RANK.mistake("Your ranks begin at 0: the best answer has rank 1.")
def _from_zero(rankings: list[list[int]]) -> list[float]:
    k = len(rankings[0])
    return [sum(ranking.index(place) for ranking in rankings) / len(rankings) for place in range(k)]


VARIATION = Exercise(
    "2.3",
    "One number for a bias",
    minutes=5,
    text="""The total variation between the shares of first places and equal shares says what part of all first places
would have to change hands to be fair: half the sum of the absolute differences.""",
    hints=("Equal shares are `1 / len(shares)`.",),
    cases=(([0.5, 0.25, 0.25],), ([1.0, 0.0],), ([0.25] * 4,), ([0.313, 0.308, 0.174, 0.097, 0.046, 0.031, 0.031],)),
)


@VARIATION.solution
def total_variation(shares: list[float]) -> float:
    """Distance from equal shares, 0 to 1."""
    fair = 1 / len(shares)
    return sum(abs(share - fair) for share in shares) / 2


@VARIATION.mistake("Each first place that moves is counted where it leaves and where it arrives: halve the sum.")
def _whole(shares: list[float]) -> float:
    return sum(abs(share - 1 / len(shares)) for share in shares)


@VARIATION.mistake("Without absolute values the differences add up to nothing.")
def _signed(shares: list[float]) -> float:
    return sum(share - 1 / len(shares) for share in shares) / 2
