"""Do intervals of few clusters hold the truth? Thousands of simulated samples, beside the plain percentile bootstrap.

    python -m benchmarks.interval_coverage [--repetitions 5000]

Means and paired differences go through :func:`starling_nb.stats.mean_interval`, win rates through
:func:`starling_nb.stats.share_interval`, changes of accuracy through :func:`starling_nb.stats.share_change`,
differences of ratings through :func:`starling_nb.evaluation.arena.bradley_terry`. Two turns of one question share that
question's luck, and so do the three matches that three models fight on one question. What ratings claim is their
estimate from a sample of 300,000 questions; samples in which not all models can be rated are left out and counted.
Writes ``benchmarks/results/interval_coverage.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from benchmarks import records
from starling_nb import files
from starling_nb.evaluation import EvaluationError, arena
from starling_nb.stats import Interval, mean_interval, share_change, share_interval

ASKED = (0.93, 0.97)
DRAWS = 600
LARGE = 300_000
Floats = NDArray[np.float64]
Sample = tuple[Floats, NDArray[np.int64]]
"""Values and the clusters they belong to."""


def bootstrapped(values: Floats, ids: NDArray[np.int64]) -> Interval:
    """The interval of a mean, from fewer resamples; samples differ, so that one seed does for all."""
    return mean_interval(values, ids, draws=DRAWS)


@dataclass(frozen=True)
class Scenario:
    """``draw(clusters, generator)`` gives a sample of so many clusters; coverage has to lie within :data:`ASKED`."""

    name: str
    draw: Callable[[int, np.random.Generator], Sample]
    clusters: tuple[int, ...] = (8, 20, 80)
    interval: Callable[[Floats, NDArray[np.int64]], Interval] = bootstrapped


def own(values: Floats) -> Sample:
    """Every value is its own cluster."""
    return values, np.arange(len(values))


def graded(middle: float) -> Callable[[int, np.random.Generator], Sample]:
    """Grades 1..10 of two turns, as a judge gives them: whole numbers, bunched below the top."""

    def draw(count: int, generator: np.random.Generator) -> Sample:
        question = generator.normal(middle, 1.5, (count, 1))
        grades = np.clip(np.round(question + generator.normal(0, 1.5, (count, 2))), 1, 10)
        return grades.ravel(), np.repeat(np.arange(count), 2)

    return draw


def changed(count: int, generator: np.random.Generator) -> Sample:
    """Change of two turns' grades from one model to another; the question's difficulty is shared and cancels."""
    question, gain = generator.normal(7, 1.5, (count, 1)), generator.normal(0.3, 0.8, (count, 1))
    before, after = (
        np.clip(np.round(question + shift + generator.normal(0, 1.2, (count, 2))), 1, 10) for shift in (0.0, gain)
    )
    return (after - before).ravel(), np.repeat(np.arange(count), 2)


def uneven(count: int, generator: np.random.Generator) -> Sample:
    """Clusters of one to seven values."""
    ids = np.repeat(np.arange(count), generator.integers(1, 8, count))
    return generator.normal(size=count)[ids] + generator.normal(size=len(ids)), ids


def preferred(chance: float, turns: int = 1) -> Callable[[int, np.random.Generator], Sample]:
    """Votes 0, a half and 1, a fifth of them ties; two turns of a question share its luck."""

    def draw(count: int, generator: np.random.Generator) -> Sample:
        luck = generator.normal(0, 0.7, (count, 1)) if turns > 1 else 0.0
        wins = generator.random((count, turns)) < 1 / (1 + np.exp(-np.log(chance / (1 - chance)) - luck))
        tied = generator.random((count, turns)) < 0.2
        return np.where(tied, 0.5, wins).ravel(), np.repeat(np.arange(count), turns)

    return draw


def moved(up: float, down: float, turns: int = 1) -> Callable[[int, np.random.Generator], Sample]:
    """Answers that become right or wrong, with these chances; ``turns`` of a subject share its luck."""

    def draw(count: int, generator: np.random.Generator) -> Sample:
        luck = generator.normal(0, 0.7 if turns > 1 else 0.0, (count, 1))
        rise, fall = np.minimum(up * np.exp(luck), 0.5), np.minimum(down * np.exp(-luck), 0.5)
        chance = generator.random((count, turns))
        changes = np.where(chance < rise, 1.0, np.where(chance > 1 - fall, -1.0, 0.0))
        return changes.ravel(), np.repeat(np.arange(count), turns)

    return draw


MEANS = [
    Scenario("mean, normal", lambda count, generator: own(generator.normal(size=count)), (3, 5, 8, 20, 80)),
    Scenario("mean, two turns share a question", graded(7.0)),
    Scenario("mean, clusters of 1 to 7", uneven),
    Scenario("paired difference, two turns share a question", changed),
    Scenario("win rate .5, two turns share a question", preferred(0.5, 2), interval=share_interval),
    Scenario("win rate .7", preferred(0.7), interval=share_interval),
    Scenario(
        "win rate .3, weighted",
        lambda count, generator: own(generator.beta(0.35, 0.82, count)),
        interval=share_interval,
    ),
    Scenario("win rate .5, single votes", preferred(0.5), (8,), interval=share_interval),
    Scenario("win rate .9, single votes", preferred(0.9), interval=share_interval),
    Scenario("change of accuracy, 10 % up, 5 % down", moved(0.1, 0.05), (20, 60, 200), share_change),
    Scenario("change of accuracy, 3 % up, 2 % down", moved(0.03, 0.02), (60, 200), share_change),
    Scenario("change of accuracy, ten questions a subject", moved(0.15, 0.1, 10), (8, 20, 60), share_change),
    Scenario("mean, exponential", lambda count, generator: own(generator.exponential(size=count)), (8, 80)),
]
RATINGS = [(1.0, (8, 20, 80)), (0.0, (20,))]
"""How much the matches on one question share, and numbers of questions."""


def percentile(values: Floats, ids: NDArray[np.int64], generator: np.random.Generator) -> tuple[float, float]:
    """The plain percentile bootstrap of whole clusters."""
    sums, counts = np.bincount(ids, values), np.bincount(ids)
    drawn = generator.integers(len(sums), size=(DRAWS, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def of_means(number: int, repetitions: int, seed: int) -> dict[str, Any]:
    """How often the interval, and the plain bootstrap's in one repetition of five, hold the mean."""
    case, found = MEANS[number], {}
    generator = files.rng(seed, "interval coverage", case.name)
    due = float(case.draw(LARGE, generator)[0].mean())
    for clusters in case.clusters:
        rows, plain = [], []
        for turn in range(repetitions):
            values, ids = case.draw(clusters, generator)
            interval = case.interval(values, ids)
            rows.append((interval.low, interval.high))
            if turn % 5 == 0:
                plain.append(percentile(values, ids, generator))
        found[f"{case.name}, {clusters}"] = told(np.array(rows), np.array(plain), due, clusters)
    return found


def fought(questions: int, generator: np.random.Generator, shared: float) -> pd.DataFrame:
    """Three models meet on every question, in all three pairs; some matches are close and tie."""
    strength = np.array([0.5, 0.0, -0.5]) + generator.normal(0, shared, (questions, 3))
    first, second = np.array([0, 0, 1]), np.array([1, 2, 2])
    gap = strength[:, first] - strength[:, second] + generator.logistic(size=(questions, 3))
    winner = np.where(np.abs(gap) < 0.4, "tie", np.where(gap > 0, "model_a", "model_b"))
    names, question = np.array(["a", "b", "c"]), np.repeat(np.arange(questions), 3)
    sides = {"model_a": np.tile(names[first], questions), "model_b": np.tile(names[second], questions)}
    return pd.DataFrame({**sides, "winner": winner.ravel(), "question": question})


def of_ratings(number: int, repetitions: int, seed: int) -> dict[str, Any]:
    """How often the interval of a rating's distance from the next, and plain quantiles, hold it."""
    (shared, sizes), found = RATINGS[number], {}
    generator = files.rng(seed, "interval coverage", "ratings", number)
    due = arena.bradley_terry(fought(LARGE, generator, shared), draws=0).difference("a", "b").value
    for questions in sizes:
        rows, plain = [], []
        for turn in range(repetitions):
            battles = fought(questions, generator, shared)
            try:
                rated = arena.bradley_terry(battles, clusters="question" if shared else None, seed=turn, draws=400)
                interval = rated.difference("a", "b")
            except EvaluationError:
                continue
            rows.append((interval.low, interval.high))
            plain.append(np.quantile(rated.draws["a"] - rated.draws["b"], [0.025, 0.975]))
        units = questions if shared else 3 * questions
        name = f"rating difference, {'three matches share a question' if shared else 'single votes'}, {units}"
        found[name] = told(np.array(rows), np.array(plain), due, units) | {"left_out": repetitions - len(rows)}
    return found


def told(ours: Floats, plain: Floats, due: float, units: int) -> dict[str, Any]:
    """Coverage of our intervals ``[repetitions, 2]`` and of the plain bootstrap's."""
    share, theirs = (float(((low <= due) & (due <= high)).mean()) for low, high in (ours.T, plain.T))
    return {
        "coverage": round(share, 4),
        "percentile": round(theirs, 4),
        "missed_below_and_above": [
            round(float((due < ours[:, 0]).mean()), 4),
            round(float((due > ours[:, 1]).mean()), 4),
        ],
        "units": units,
        "met": bool(ASKED[0] <= share <= ASKED[1]),
    }


def run(repetitions: int, jobs: int, seed: int = 0) -> dict[str, Any]:
    """All scenarios, in ``jobs`` processes."""
    found: dict[str, Any] = {}
    with ProcessPoolExecutor(jobs) as pool:
        # The longest begin first.
        ratings = [pool.submit(of_ratings, number, repetitions, seed) for number in range(len(RATINGS))]
        means = [pool.submit(of_means, number, repetitions, seed) for number in range(len(MEANS))]
        for future in [*means, *ratings]:
            found |= future.result()
            print(*(f"{name}: {row}" for name, row in future.result().items()), sep="\n", flush=True)
    return {
        "what": "coverage of 95 % intervals by number of independent units; percentile: the plain bootstrap's",
        "repetitions": repetitions,
        "band_of_chance": [float(x) / repetitions for x in scipy_stats.binom.interval(0.99, repetitions, 0.95)],
        "asked": list(ASKED),
        "met": all(row["met"] for row in found.values()),
        "scenarios": found,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5000)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    given = parser.parse_args()
    result = run(given.repetitions, given.jobs)
    if given.repetitions >= 5000:
        records.keep("interval_coverage.json", result)
