"""What arms differ by: planted parts come back without bias, and their intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from starling_nb.errors import StarlingError
from starling_nb.policy.study import variance

LABELS, METHODS, SEEDS, PROMPTS = ("full", "noise", "naive"), ("apa", "ppo", "p3o"), 3, 60


def drawn(labels: float, method: float, seed: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Means ``[labels, methods, prompts, seeds]``: both effects even over their levels, of prompts that disagree."""
    by_labels, by_method = (np.linspace(-1, 1, 3) * size for size in (labels, method))
    table = by_labels[:, None, None, None] + by_method[None, :, None, None]
    for shape, spread in (((3, 1, PROMPTS, 1), 0.4), ((1, 3, PROMPTS, 1), 0.4), ((3, 3, PROMPTS, 3), 0.8)):
        table = table + random.normal(0, spread, shape)
    found: NDArray[np.float64] = table + random.normal(0, seed, (3, 3, 1, 3)) + random.normal(5, 2, (1, 1, PROMPTS, 1))
    return found


def study(table: NDArray[np.float64]) -> pd.DataFrame:
    """The same as a study's rows."""
    places = np.indices(table.shape).reshape(4, -1)
    rows = {
        "labels": [LABELS[i] for i in places[0]],
        "method": [METHODS[i] for i in places[1]],
        "prompt_id": places[2],
        "seed": places[3],
        "utility": table.ravel(),
    }
    return pd.DataFrame(rows)


def plainly(table: NDArray[np.float64]) -> list[float]:
    """The parts, pair by pair."""
    whole = table.mean((0, 1))
    by_labels, by_method = table.mean(1) - whole, table.mean(0) - whole
    by_both = table - whole - by_labels[:, None] - by_method[None]
    by_seed = table - table.mean(3, keepdims=True)
    prompts, seeds = table.shape[2:]
    pairs = [(p, q) for p in range(prompts) for q in range(prompts) if p != q]
    turns = [(s, t) for s in range(seeds) for t in range(seeds) if s != t or seeds == 1]

    def shared(effect: NDArray[np.float64]) -> float:
        return float(np.mean([(effect[..., p, s] * effect[..., q, t]).mean() for p, q in pairs for s, t in turns]))

    seed = [(by_seed[:, :, p] * by_seed[:, :, q]).sum(2).mean() for p, q in pairs]
    labels, method, both = shared(by_labels), shared(by_method), shared(by_both)
    of_seeds = [float(np.mean(seed)) / (seeds - 1)] if seeds > 1 else []
    return [labels, method, both, *of_seeds, labels - method]


@pytest.mark.parametrize(("seeds", "used"), [(3, 3), (2, 1), (1, 1)])
def test_parts_are_means_over_pairs_of_prompts_and_seeds(seeds: int, used: int) -> None:
    table = drawn(0.5, 0.2, 0.1, np.random.default_rng(3))[:, :, :7, :seeds]
    found = variance.parts(study(table))
    assert found.part.to_list() == [part for part in variance.PARTS if used > 1 or part != "seed"]
    assert found.value.to_numpy() == pytest.approx(plainly(table[..., :used]))
    assert found.share[:-1].sum() == pytest.approx(1)
    assert np.isnan(found.share.iloc[-1])
    assert set(found.seeds) == {used}


@pytest.mark.parametrize("seeds", [1, 3])
def test_parts_are_unbiased_and_their_intervals_hold_the_truth(seeds: int) -> None:
    random, truth = np.random.default_rng(0), (0.15**2 - 0.05**2) * 2 / 3
    chance = 0.05 if seeds > 1 else 0.0
    tables = [drawn(0.15, 0.05, chance, random)[..., :seeds] for _ in range(60)]
    found = [variance.parts(study(table)).set_index("part") for table in tables]
    gaps = [one.loc["labels minus method"] for one in found]
    values = np.array([gap.value for gap in gaps])
    assert abs(values.mean() - truth) < 3 * values.std() / np.sqrt(len(values))
    assert np.mean([gap.low <= truth <= gap.high for gap in gaps]) >= 0.9
    if seeds > 1:
        drawn_apart = np.array([one.value["seed"] for one in found])
        assert abs(drawn_apart.mean() - 0.05**2) < 3 * drawn_apart.std() / np.sqrt(len(drawn_apart))


def test_a_large_effect_is_seen_and_none_is_not() -> None:
    random = np.random.default_rng(1)
    large = variance.parts(study(drawn(0.8, 0.0, 0.05, random))).set_index("part")
    assert large.low["labels minus method"] > 0
    assert large.share["labels"] > 0.8
    nothing = variance.parts(study(drawn(0.0, 0.0, 0.05, random))).set_index("part")
    assert nothing.low["labels minus method"] < 0 < nothing.high["labels minus method"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_main_effects_are_differences_of_means_over_the_other_factor(seeds: int) -> None:
    table = drawn(0.5, 0.2, 0.0, np.random.default_rng(4))[..., :seeds]
    found = variance.main_effects(study(table)).set_index(["factor", "level"])
    assert found.against.to_list() == ["full", "full", "apa", "apa"]
    assert set(found.seeds) == {seeds}
    means = table.mean((2, 3))
    assert found.value["labels", "naive"] == pytest.approx(means[2].mean() - means[0].mean())
    assert found.value["method", "ppo"] == pytest.approx(means[:, 1].mean() - means[:, 0].mean())
    assert found.low["labels", "naive"] < 1.0 < found.high["labels", "naive"]


def test_a_design_with_a_hole_is_refused() -> None:
    table = study(drawn(0.5, 0.2, 0.1, np.random.default_rng(2)))
    with pytest.raises(StarlingError, match="every method with every kind"):
        variance.parts(table[(table.labels != "naive") | (table.method != "ppo")])
