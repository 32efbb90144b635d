"""Exercises on notebook 06: when more reward is less quality."""

from __future__ import annotations

import math

from starling_nb.teach.exercise import Exercise

BEST_OF_N = Exercise(
    "6.1",
    "Best of n, without throwing samples away",
    minutes=20,
    text="""N answers to a prompt were drawn, each with a proxy score and a gold one. What gold score has the proxy's
favourite of n answers, on average over **all** subsets of size n? Sorted by proxy, the answer with i
worse ones is the best of C(i, n − 1) of the C(N, n) subsets. Proxy scores are all different.""",
    hints=("`math.comb(i, n - 1)` is 0 where i < n − 1.", "Sort the pairs by proxy, worst first, and enumerate."),
    cases=(
        ([0.1, 0.9, 0.5], [1.0, 3.0, 2.0], 2),
        ([0.1, 0.9, 0.5], [1.0, 3.0, 2.0], 1),
        ([0.1, 0.9, 0.5, 0.7], [4.0, 1.0, 3.0, 2.0], 3),
        ([3.0, 1.0, 2.0, 0.0], [1.0, 5.0, 2.0, 2.0], 4),
    ),
)


@BEST_OF_N.solution
def best_of_n(proxy: list[float], gold: list[float], n: int) -> float:
    """Expected gold score of the best by proxy among n."""
    ordered = [g for _, g in sorted(zip(proxy, gold, strict=True))]
    shares = [math.comb(worse, n - 1) / math.comb(len(ordered), n) for worse in range(len(ordered))]
    return sum(share * g for share, g in zip(shares, ordered, strict=True))


@BEST_OF_N.mistake("You look at the first n answers only: the others were paid for, and make the estimate surer.")
def _first_n(proxy: list[float], gold: list[float], n: int) -> float:
    return gold[max(range(n), key=lambda i: proxy[i])]


@BEST_OF_N.mistake("You choose by gold: the proxy chooses, gold only grades the choice.")
def _by_gold(proxy: list[float], gold: list[float], n: int) -> float:
    return best_of_n(gold, gold, n)


@BEST_OF_N.mistake("The order is turned: the answer with the highest proxy wins every subset that it is in.")
def _worst(proxy: list[float], gold: list[float], n: int) -> float:
    return best_of_n([-score for score in proxy], gold, n)


COST = Exercise(
    "6.2",
    "What best of n costs",
    minutes=5,
    text="""Choosing the best of n moves the policy from the start model by log n − (n − 1) / n nats at most. Return
it for n.""",
    hints=("n = 1 changes nothing.",),
    cases=((1,), (2,), (16,), (64,)),
)


@COST.solution
def best_of_n_kl(n: int) -> float:
    """Divergence from the start model, nats, at most."""
    return math.log(n) - (n - 1) / n


@COST.mistake("log n is the divergence of one certain answer of n: take (n − 1) / n off.")
def _log(n: int) -> float:
    return math.log(n)


PEAK = Exercise(
    "6.3",
    "Where to stop",
    minutes=10,
    text="""Gao and others found gold = d·(α − β·d) for best of n and gold = d·(α − β·log d) for RL, with d the root
of the divergence. Return where each is highest: first best of n, then RL.""",
    hints=("Set the derivative to 0.", "The second derivative contains α − β·log d − β."),
    cases=((1.0, 0.2), (0.5, 0.5), (2.0, 1.0), (0.3, 0.1)),
)


@PEAK.solution
def peaks(alpha: float, beta: float) -> tuple[float, float]:
    """The d of the highest gold score of best of n, and of RL."""
    return alpha / (2 * beta), math.exp(alpha / beta - 1)


@PEAK.mistake("There gold is back at 0: the highest point comes before.")
def _zeros(alpha: float, beta: float) -> tuple[float, float]:
    return alpha / beta, math.exp(alpha / beta)
