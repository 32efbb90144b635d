"""Do the intervals hold what they promise? Thousands of simulated tables, their estimates against a pseudo-truth.

    python -m benchmarks.bias_coverage [--repetitions 5000]

Every scenario draws a large pool of prompts from one world (:mod:`starling_nb.bias.simulation`) and ranks it once. The
pseudo-truth of an estimand is its estimate on 200,000 of these rankings (for repeats: the planted effects, which it
claims); a repetition is a slice of the pool. Coverage is pooled over positions; rates stand beside the exact binomial
99 % band of what they should be. Writes ``benchmarks/results/bias_coverage.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from benchmarks import records
from starling_nb import bias, files, progress
from starling_nb.bias.simulation import JUDGES, Asking, asking, rankings, world
from starling_nb.bias.tables import Rankings

TRUTH = 200_000
LEVEL = 0.95
DRAWS = 199
Estimator = Callable[[Rankings, NDArray[np.float64]], bias.PositionEffects]


@dataclass(frozen=True)
class Scenario:
    """Who judges how many prompts how often, and which estimate is looked at."""

    name: str
    estimate: Estimator
    judge: str = "plackett_luce"
    variant: str = "naive"
    prompts: int = 187
    passes: int = 1
    reorder: bool = False
    models: int = 10
    front: float = 0.0
    scale: float = 1.0
    planted: bool = False


@dataclass(frozen=True)
class Pool:
    """All repetitions' rankings, prompt by prompt, and the quality of the shown answers."""

    order: NDArray[np.intp]
    shown: NDArray[np.intp]
    model: NDArray[np.intp]
    quality: NDArray[np.float64]

    def part(self, start: int, prompts: int) -> tuple[Rankings, NDArray[np.float64]]:
        """The rankings of some prompts, and their quality ``[rows, K]`` in shown order."""
        rows = slice(start, start + prompts)
        table = rankings(self.order[:, rows], self.shown[:, rows], self.model[rows])
        quality = np.take_along_axis(
            np.broadcast_to(self.quality[rows], self.shown[:, rows].shape), self.shown[:, rows], 2
        )
        return table, quality.reshape(-1, self.model.shape[1])


def marginal(table: Rankings, _: NDArray[np.float64]) -> bias.PositionEffects:
    """Position beside model."""
    return bias.position_effects(table)


def unadjusted(table: Rankings, _: NDArray[np.float64]) -> bias.PositionEffects:
    """Position alone."""
    return bias.position_effects(table, models=False)


def conditional(table: Rankings, quality: NDArray[np.float64]) -> bias.PositionEffects:
    """Position beside model and the answer's own quality."""
    return bias.position_effects(table, quality=quality)


def first_choice(table: Rankings, _: NDArray[np.float64]) -> bias.PositionEffects:
    """Position beside model, the first place alone."""
    return bias.position_effects(table, top=1)


def repeated(table: Rankings, _: NDArray[np.float64]) -> bias.PositionEffects:
    """Pairs that turned round between two orders."""
    assert table.model is not None
    frame = {"prompt_id": table.prompt, "models": table.model.tolist(), "ranking": table.order.tolist()}
    return bias.repeated_effects(pd.DataFrame(frame))


COVERAGE = [
    *(Scenario(f"marginal, {judge}", marginal, judge) for judge in JUDGES),
    Scenario("marginal, 60 prompts asked three times", marginal, prompts=60, passes=3),
    Scenario("marginal, strong models in front", marginal, front=1.0),
    Scenario("marginal, 40 models", marginal, models=40),
    Scenario("first place alone", first_choice),
    Scenario("conditional on quality", conditional, planted=True),
    Scenario("conditional, three orders", repeated, prompts=100, passes=3, reorder=True, planted=True),
]
FAIR = [
    *(Scenario(f"{prompts} prompts", marginal, "fair", prompts=prompts) for prompts in (40, 100, 187)),
    Scenario("60 prompts asked three times", marginal, "fair", prompts=60, passes=3),
    Scenario("three orders", repeated, "fair", prompts=100, passes=3, reorder=True),
]
POWER = [Scenario(f"naive effects x {scale}", marginal, scale=scale) for scale in (0.1, 0.2, 0.3, 0.5)]


def asked(case: Scenario) -> Asking:
    """The variant's effects, scaled."""
    found = asking(case.variant)
    return replace(found, position=case.scale * found.position)


def pool(case: Scenario, prompts: int, seed: int) -> Pool:
    """Rank a world as large as all repetitions together."""
    generator = files.rng(seed, "coverage", case.name)
    drawn = world(prompts, generator, features=2, models=case.models, front=case.front)
    n, k = drawn.quality.shape
    shown = np.broadcast_to(np.arange(k), (case.passes, n, k))
    if case.reorder:
        shown = np.argsort(generator.random((case.passes, n, k)), axis=2)
    seen = np.take_along_axis(np.broadcast_to(drawn.quality, shown.shape), shown, axis=2)
    order = np.stack([JUDGES[case.judge](quality, asked(case), generator) for quality in seen])
    return Pool(order, shown, drawn.model, drawn.quality)


def truth(case: Scenario, made: Pool, prompts: int) -> NDArray[np.float64]:
    """The effects that the estimate claims."""
    if case.planted:
        return asked(case).position
    estimate = case.estimate(*made.part(0, min(prompts, TRUTH // case.passes)))
    return estimate.effects["effect"].to_numpy()


def coverage(case: Scenario, repetitions: int, seed: int) -> dict[str, Any]:
    """How often intervals hold the pseudo-truth, and whether estimates are centred on it."""
    prompts = max(repetitions * case.prompts, TRUTH // case.passes)
    made = pool(case, prompts, seed)
    due, inside, estimates, errors = truth(case, made, prompts), [], [], []
    for number in range(repetitions):
        effects = case.estimate(*made.part(number * case.prompts, case.prompts)).effects
        inside.append((effects["low"].to_numpy() <= due) & (due <= effects["high"].to_numpy()))
        estimates.append(effects["effect"].to_numpy())
        errors.append(effects["se"].to_numpy())
        progress.report(number + 1, repetitions, case.name)
    by_position = np.mean(inside, axis=0)
    spread = np.std(estimates, axis=0, ddof=1)
    return {
        "coverage": float(by_position.mean()),
        "by_position": by_position.round(4).tolist(),
        "truth": due.round(4).tolist(),
        "bias_in_standard_deviations": ((np.mean(estimates, axis=0) - due) / spread).round(3).tolist(),
        "error_over_spread": (np.mean(errors, axis=0) / spread).round(3).tolist(),
        "prompts": case.prompts,
        "passes": case.passes,
    }


def rejections(case: Scenario, repetitions: int, seed: int) -> dict[str, Any]:
    """How often each test says that positions matter, at 5 %."""
    made, hits = pool(case, repetitions * case.prompts, seed), []
    for number in range(repetitions):
        table, quality = made.part(number * case.prompts, case.prompts)
        found = case.estimate(table, quality)
        row = {"wald_f": found.p, "wald_chi2": float(scipy_stats.chi2.sf(found.wald, found.df))}
        if case.passes == 1:
            order = bias.order_test(table, seed=number, draws=DRAWS)
            row |= {"permutation_mean_rank": order.mean_rank[1], "permutation_first_place": order.first_place[1]}
            row |= {"first_place_chi2": bias.first_place_test(table)[1]}
        hits.append({name: p <= 0.05 for name, p in row.items()})
        progress.report(number + 1, repetitions, case.name)
    return {"rates": pd.DataFrame(hits).mean().round(4).to_dict(), "prompts": case.prompts, "passes": case.passes}


def in_front(seed: int) -> dict[str, Any]:
    """Strong models in front: what adjusted and unadjusted estimates say of a fair and of a biased judge."""
    found: dict[str, Any] = {}
    for judge in ("fair", "plackett_luce"):
        random = pool(Scenario("front", marginal, judge), TRUTH, seed)
        due = marginal(*random.part(0, TRUTH)).effects["effect"].to_numpy()
        front = pool(Scenario("front", marginal, judge, front=1.0), 20_000, seed)
        for name, estimate in (("adjusted", marginal), ("unadjusted", unadjusted)):
            gap = estimate(*front.part(0, 20_000)).effects["effect"].to_numpy() - due
            found[f"{judge}, {name}"] = {"worst_error_logits": float(np.abs(gap).max())}
    return found


def band(rate: float, repetitions: int) -> list[float]:
    """Where a share of ``repetitions`` lies in 99 of 100 cases if it is ``rate``."""
    return [float(x) / repetitions for x in scipy_stats.binom.interval(0.99, repetitions, rate)]


def run(repetitions: int, seed: int = 0) -> Mapping[str, Any]:
    """All scenarios."""
    return {
        "what": "coverage of 95 % intervals and rejection rates at 5 % of simulated rankings, K = 7",
        "repetitions": repetitions,
        "band_coverage": band(0.95, repetitions),
        "band_rejection": band(0.05, repetitions),
        "coverage": {case.name: coverage(case, repetitions, seed) for case in COVERAGE},
        "fair": {case.name: rejections(case, repetitions, seed) for case in FAIR},
        "power": {case.name: rejections(case, max(200, repetitions // 5), seed) for case in POWER},
        "in_front": in_front(seed),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5000)
    given = parser.parse_args()
    found = run(given.repetitions)
    for name, row in {**found["coverage"], **found["fair"], **found["power"], **found["in_front"]}.items():
        print(name, row)
    if given.repetitions >= 5000:
        records.keep("bias_coverage.json", found)
