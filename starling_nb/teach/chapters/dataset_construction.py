"""Exercises on notebook 01: what a judge's reply is worth, and what a ranking holds."""

from __future__ import annotations

import math

from starling_nb.teach.exercise import Exercise

PERMUTATION = Exercise(
    "1.1",
    "A reply is a strict permutation, or nothing",
    minutes=10,
    text="""A judge was shown `k` answers as A, B, C, … and replies with letters from best to worst. Return the places
(A is 0) in that order. Whatever is not each of the `k` letters exactly once is a `ValueError`: a label
that was guessed at is worse than one that is missing.""",
    hints=(
        "`ord(letter) - ord('A')` is a letter's place.",
        "Compare the *sorted* places with what `k` answers have to give.",
    ),
    cases=((["B", "A", "C"], 3), (["A", "B"], 3), (["A", "A", "B"], 3), (["A", "B", "D"], 3), (["A"], 1), ([], 0)),
)


@PERMUTATION.solution
def permutation(letters: list[str], k: int) -> list[int]:
    """Places of the answers, best first.

    Raises:
        ValueError: not each of the k letters once.
    """
    places = [ord(letter) - ord("A") for letter in letters]
    if sorted(places) != list(range(k)):
        raise ValueError(f"not a permutation of {k} answers: {letters}")
    return places


@PERMUTATION.mistake("You accept a reply that names fewer letters than there were answers: count them against k.")
def _too_few(letters: list[str], k: int) -> list[int]:
    places = [ord(letter) - ord("A") for letter in letters]
    if len(set(places)) != len(places) or any(place >= k for place in places):
        raise ValueError
    return places


@PERMUTATION.mistake(
    "You accept a letter that comes twice: the number of letters is right, and one answer has no rank."
)
def _twice(letters: list[str], k: int) -> list[int]:
    places = [ord(letter) - ord("A") for letter in letters]
    if len(places) != k or any(place >= k for place in places):
        raise ValueError
    return places


@PERMUTATION.mistake("Every reply passes: nothing is compared with k.")
def _anything(letters: list[str], k: int) -> list[int]:
    return [ord(letter) - ord("A") for letter in letters]


RANKS = Exercise(
    "1.2",
    "From shown places back to answers",
    minutes=10,
    text="""`shown[p]` is the answer that the judge saw at place `p`, and `ranking` names *places*, best first. Return
the rank of every **answer**, 1 for the best. Two permutations are undone here, in the right order: mixing
them up gives labels that look fine and are wrong.""",
    hints=(
        "`shown[ranking[0]]` is the best answer.",
        "Walk over the ranking and write the rank at that answer's index.",
    ),
    cases=(([2, 0, 1], [1, 2, 0]), ([0, 1, 2, 3], [3, 1, 0, 2]), ([3, 1, 0, 2], [0, 1, 2, 3]), ([0], [0])),
)


@RANKS.solution
def ranks(shown: list[int], ranking: list[int]) -> list[int]:
    """The rank of each answer, from 1."""
    found = [0] * len(shown)
    for rank, place in enumerate(ranking, 1):
        found[shown[place]] = rank
    return found


@RANKS.mistake("These are the ranks of the places: you have not asked which answer stood there.")
def _of_places(shown: list[int], ranking: list[int]) -> list[int]:
    found = [0] * len(shown)
    for rank, place in enumerate(ranking, 1):
        found[place] = rank
    return found


@RANKS.mistake("This is the order of the answers, best first, not the rank of each: invert it.")
def _order(shown: list[int], ranking: list[int]) -> list[int]:
    return [shown[place] + 1 for place in ranking]


COMPARISONS = Exercise(
    "1.3",
    "How many comparisons one ranking holds",
    minutes=5,
    text="""Nectar has 182,954 prompts with seven ranked answers, and is called 3.8 million comparisons. Count the
pairs of answers of which one is better than the other; answers with equal rank are no comparison.""",
    hints=("Seven different ranks give 21.",),
    cases=(([1, 2, 3, 4, 5, 6, 7],), ([1, 1, 2],), ([1, 1, 1],), ([1],), ([2, 1, 2, 1],)),
)


@COMPARISONS.solution
def comparisons(ranks: list[int]) -> int:
    """Pairs of which one answer is better."""
    equal = sum(math.comb(ranks.count(rank), 2) for rank in set(ranks))
    return math.comb(len(ranks), 2) - equal


@COMPARISONS.mistake("You count ties: two answers of one rank say nothing about which is better.")
def _with_ties(ranks: list[int]) -> int:
    return math.comb(len(ranks), 2)


@COMPARISONS.mistake("You count every pair twice, once from each side.")
def _ordered(ranks: list[int]) -> int:
    return sum(a != b for a in ranks for b in ranks)
