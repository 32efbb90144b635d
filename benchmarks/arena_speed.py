"""Ratings of a million votes with a hundred bootstraps, beside two other ways, in turn and in processes of their own.

    python -m benchmarks.arena_speed [--votes 1000000] [--rounds 1]

``ours``: :func:`starling_nb.evaluation.arena.bradley_terry` from the plain table. ``lbfgs``: Chatbot Arena's protocol
written plainly, scipy's L-BFGS-B on the weighted logistic loss of unique matchups and outcomes, one fit a multinomial
resample. ``choix``: its spectral algorithm, the ratings alone, as a third opinion. Target: 20 s for ours, of the
processor's time in one thread, which other work on the machine lengthens less than the clock's.
Writes ``benchmarks/results/arena_speed.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize

from benchmarks import records, turns
from starling_nb import files
from starling_nb.evaluation import arena

VOTES, MODELS, DRAWS, SECONDS = 1_000_000, 100, 100, 20
Floats = NDArray[np.float64]
Fit = Callable[[Floats], Floats]


def made(votes: int) -> pd.DataFrame:
    """Votes on random pairs of models a few hundred points apart, a fifth of them ties."""
    draw = files.rng(0, "arena speed")
    strength = draw.normal(0, 0.7, MODELS)
    first = draw.integers(0, MODELS, votes)
    second = (first + draw.integers(1, MODELS, votes)) % MODELS
    wins = draw.random(votes) < 1 / (1 + np.exp(strength[second] - strength[first]))
    winner = np.where(draw.random(votes) < 0.2, "tie", np.where(wins, "model_a", "model_b"))
    names = np.array([f"model-{i:02d}" for i in range(MODELS)])
    return pd.DataFrame({"model_a": names[first], "model_b": names[second], "winner": winner})


def ours(battles: pd.DataFrame) -> tuple[Floats, Floats, list[str]]:
    """Ratings, their resamples ``[draws, models]`` and the models' names."""
    found = arena.bradley_terry(battles, draws=DRAWS)
    ratings = found.table.set_index("model")["rating"][found.draws.columns]
    return ratings.to_numpy(), found.draws.to_numpy(), list(found.draws)


def theirs(
    battles: pd.DataFrame, fitter: Callable[[Any, Any, Any, int], Fit], draws: int
) -> tuple[Floats, Floats, list[str]]:
    """The same by one fit a resample of the unique matchups and outcomes."""
    codes, names = pd.factorize(pd.concat([battles["model_a"], battles["model_b"]]), sort=True)
    share = battles["winner"].map(arena.OUTCOMES).to_numpy()
    rows, counts = np.unique(np.c_[codes[: len(share)], codes[len(share) :], share], axis=0, return_counts=True)
    fit = fitter(rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2], len(names))
    drawn = np.random.default_rng(0).multinomial(len(share), counts / len(share), draws)
    points = [1000 + arena.POINTS * (theta - theta.mean()) for theta in map(fit, (counts, *drawn))]
    return points[0], np.array(points[1:]).reshape(draws, len(names)), list(names)


def by_lbfgs(first: Any, second: Any, share: Floats, models: int) -> Fit:
    """The loss and its gradient, in natural logits."""

    def loss(theta: Floats, weights: Floats) -> tuple[float, Floats]:
        gap = theta[first] - theta[second]
        chance = 1 / (1 + np.exp(-gap))
        wrong = weights * (chance - share)
        slope = np.bincount(first, wrong, models) - np.bincount(second, wrong, models)
        return float(weights @ (np.logaddexp(0, gap) - share * gap)), slope

    options = {"gtol": 1e-6, "maxiter": 100}
    return lambda weights: (
        optimize.minimize(
            loss, np.zeros(models), args=(weights / weights.sum(),), jac=True, method="L-BFGS-B", options=options
        ).x
    )


def by_choix(first: Any, second: Any, share: Floats, models: int) -> Fit:
    """Wins as a matrix."""
    import choix

    def fit(weights: Floats) -> Floats:
        wins = np.zeros((models, models))
        np.add.at(wins, (first, second), weights * share)
        np.add.at(wins, (second, first), weights * (1 - share))
        return np.asarray(choix.ilsr_pairwise_dense(wins))

    return fit


WAYS: dict[str, Callable[[pd.DataFrame], tuple[Floats, Floats, list[str]]]] = {
    "ours": ours,
    "lbfgs": lambda battles: theirs(battles, by_lbfgs, DRAWS),
    "choix": lambda battles: theirs(battles, by_choix, 0),
}


def measure(way: str, votes: int) -> dict[str, Any]:
    """Seconds on the clock and of the processor, the largest memory, ratings and the mean width of their intervals."""
    battles = made(votes)
    clock, processor = time.perf_counter(), time.process_time()
    ratings, draws, names = WAYS[way](battles)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0) if len(draws) else (np.nan, np.nan)
    width = float(np.mean(high - low))
    return {
        "seconds": round(time.perf_counter() - clock, 2),
        "cpu_seconds": round(time.process_time() - processor, 2),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "mean_width": round(width, 3) if len(draws) else None,
        "ratings": dict(zip(names, ratings.round(4).tolist(), strict=True)),
    }


def run(votes: int, rounds: int) -> dict[str, Any]:
    """All ways, and how far the others' ratings are from ours, points."""
    arguments = ["--votes", str(votes)]
    runs = turns.in_turn(
        "benchmarks.arena_speed",
        list(WAYS),
        arguments,
        rounds=rounds,
        say=lambda r: f"{r['seconds']} s",
        once=["style"],
    )
    own, found = runs["ours"][0]["ratings"], {}
    for way, results in runs.items():
        apart = max(abs(value - own[name]) for name, value in results[0]["ratings"].items())
        found[way] = {name: [result[name] for result in results] for name in ("seconds", "cpu_seconds", "peak_bytes")}
        found[way] |= {"mean_width": results[0]["mean_width"], "points_from_ours": round(apart, 4)}
    return {
        "what": f"Bradley-Terry ratings of {votes:,} votes on {MODELS} models with {DRAWS} bootstraps",
        "limit_seconds": SECONDS,
        "met": max(found["ours"]["seconds"]) <= SECONDS,
        "load_before": list(os.getloadavg()),
        "ways": found,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=int, default=VOTES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--child", choices=WAYS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.child, given.votes)))
    else:
        result = run(given.votes, given.rounds)
        print(json.dumps(result, indent=1))
        if given.votes >= VOTES:
            records.keep("arena_speed.json", result)
