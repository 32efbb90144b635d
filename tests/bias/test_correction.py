"""Corrected rankings: the optimum is the optimum, nothing is corrected by itself, and the truth comes nearer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from starling_nb import files, stats
from starling_nb.bias import BiasError, Rankings, correction, position_effects
from starling_nb.bias.correction import conditional, corrected, corrected_scores, cross_corrected, reward_weights
from starling_nb.bias.simulation import JUDGES, World, asking, rankings, shown_orders, world

EFFECTS = np.array([1.0, 0.2, -0.3, 0.4, -1.3])


def drawn(n: int, k: int, *names: str) -> np.ndarray:
    return files.rng(0, "drawn", *names).random((n, k)).argsort(1)


def judged(about: World, design: str, passes: int, name: str = "plackett_luce") -> tuple[Rankings, np.ndarray]:
    """Rankings by the naive prompt, and the answer at each shown position."""
    n, k = about.quality.shape
    shown = shown_orders(design, passes, drawn(n, k, "first"), about.model, 0)
    generator, rows = files.rng(0, "judge", name), np.arange(n)[:, None]
    order = np.stack([JUDGES[name](about.quality[rows, at], asking("naive", k), generator) for at in shown])
    return rankings(order, shown, about.model), shown.reshape(-1, k)


def by_answer(table: Rankings, shown: np.ndarray) -> np.ndarray:
    """``[n, K]`` minus the rank of each answer."""
    return -np.argsort(np.take_along_axis(shown, table.order, axis=1), axis=1)


def taus(scores: np.ndarray, quality: np.ndarray) -> np.ndarray:
    i, j = np.triu_indices(quality.shape[1], 1)
    found: np.ndarray = (np.sign(scores[:, i] - scores[:, j]) * np.sign(quality[:, i] - quality[:, j])).mean(1)
    return found


def log_posterior(
    utility: np.ndarray, orders: list[list[int]], shown: list[list[int]], spread: float, mean: np.ndarray
) -> float:
    """Written out: every choice among the answers that are left, and the prior."""
    total = -float(((utility - mean) ** 2).sum()) / (2 * spread**2)
    for order, at in zip(orders, shown, strict=True):
        worth = [utility[at[place]] + EFFECTS[place] for place in order]
        for stage in range(len(worth) - 1):
            total += worth[stage] - np.log(np.exp(worth[stage:]).sum())
    return total


def second_differences(function: Callable[[np.ndarray], float], at: np.ndarray, width: float = 1e-3) -> np.ndarray:
    steps = width * np.eye(len(at))
    corners = [
        [[sign * other * function(at + sign * a + other * b) for sign in (1, -1) for other in (1, -1)] for a in steps]
        for b in steps
    ]
    found: np.ndarray = np.sum(corners, axis=2) / (4 * width**2)
    return found


@pytest.mark.parametrize("spread", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_the_optimum_is_that_of_a_general_optimiser(spread: float, mean: float) -> None:
    """Three prompts of five answers in two orders each; the third prompt once more."""
    table = Rankings(drawn(7, 5, "order"), np.full(7, 5), np.array([0, 1, 2, 0, 1, 2, 2]))
    shown = drawn(7, 5, "shown")
    prior = np.full((3, 5), mean) * np.arange(5)
    found = corrected_scores(table, EFFECTS, spread, prior=prior, answer=shown)
    for prompt in range(3):
        rows = np.flatnonzero(table.prompt == prompt)
        passes = [table.order[row].tolist() for row in rows], [shown[row].tolist() for row in rows]
        best = optimize.minimize(
            lambda u, p=passes, m=prior[prompt]: -log_posterior(u, *p, spread, m), np.zeros(5), options={"gtol": 1e-9}
        )
        assert found.scores[prompt] == pytest.approx(best.x, abs=2e-5)
        bend = -second_differences(lambda u, p=passes, m=prior[prompt]: log_posterior(u, *p, spread, m), best.x)
        assert found.sd[prompt] == pytest.approx(np.sqrt(np.diag(np.linalg.inv(bend))), rel=1e-3)


def test_shorter_rankings_are_corrected_as_if_they_stood_alone() -> None:
    order = np.array([[2, 0, 1, -1, -1], [4, 1, 0, 3, 2]])
    both = Rankings(order, np.array([3, 5]), np.arange(2))
    alone = Rankings(order[:1, :3], np.array([3]), np.arange(1))
    found, expected = corrected_scores(both, EFFECTS, 1.0), corrected_scores(alone, EFFECTS[:3], 1.0)
    assert found.scores[0, :3] == pytest.approx(expected.scores[0])
    assert np.isnan(found.scores[0, 3:]).all()
    assert found.order[0].tolist() == [*expected.order[0].tolist(), -1, -1]


def test_without_effects_no_ranking_changes() -> None:
    table, shown = Rankings(drawn(200, 7, "same"), np.full(200, 7), np.arange(200)), drawn(200, 7, "at")
    found = corrected_scores(table, np.zeros(7), answer=shown)
    assert (found.order == np.take_along_axis(shown, table.order, axis=1)).all()
    assert found.spread == correction.SPREAD


@pytest.mark.parametrize("name", ["plackett_luce", "thurstone", "interaction", "random_effects"])
def test_correction_brings_the_truth_nearer(name: str) -> None:
    about = world(1500, files.rng(0, "nearer"))
    table, shown = judged(about, "random", 1, name)
    raw, found = taus(by_answer(table, shown), about.quality), cross_corrected(table, answer=shown)
    gain = stats.paired_difference(taus(found.scores, about.quality), raw)
    assert gain.low > 0.015
    fair = JUDGES[name](about.quality, asking("naive").fair, files.rng(0, "fair"))
    assert gain.value < taus(-fair.argsort(1), about.quality).mean() - raw.mean()


def test_two_passes_merged_are_better_than_one_and_than_their_mean_rank() -> None:
    about = world(1000, files.rng(0, "merged"))
    table, shown = judged(about, "two_pass", 2)
    once = Rankings(table.order[:1000], table.length[:1000], table.prompt[:1000])
    one = taus(cross_corrected(once, answer=shown[:1000]).scores, about.quality)
    two = taus(cross_corrected(table, answer=shown).scores, about.quality)
    ranks = by_answer(table, shown).reshape(2, 1000, 7)
    borda = taus(ranks.sum(0) + 0.01 * ranks[0], about.quality)
    assert stats.paired_difference(two, one).low > 0.05
    assert stats.paired_difference(two, borda).low > 0


@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_two_orders_tell_the_spread(spread: float) -> None:
    table, shown = judged(world(600, files.rng(0, "spread", str(spread)), spread=spread), "random", 2)
    assert cross_corrected(table, answer=shown).spread == pytest.approx(spread, rel=0.3)


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_the_corrected_order_hardly_depends_on_the_spread(spread: float) -> None:
    about = world(1500, files.rng(0, "depends", str(spread)), spread=spread)
    table, shown = judged(about, "random", 1)
    found = [taus(cross_corrected(table, spread=s, answer=shown).scores, about.quality).mean() for s in (0.5, 1, 2)]
    assert max(found) - min(found) < 0.015
    assert min(found) - taus(by_answer(table, shown), about.quality).mean() > 0.03


@pytest.mark.parametrize("k", [4, 7])
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0, 3.0])
def test_left_out_utilities_shrink_effects_as_said(k: int, spread: float) -> None:
    n, asked = 12_000, asking("naive", k)
    quality = spread * files.rng(0, "shrink").normal(size=(n, k))
    order = JUDGES["plackett_luce"](quality, asked, files.rng(1, "shrink"))
    marginal = position_effects(rankings(order, drawn(n, k, "any")), models=False).effects["effect"].to_numpy()
    slope = conditional(marginal, spread) @ asked.position / (asked.position @ asked.position)
    assert slope == pytest.approx(1, abs=0.075)


def test_no_prompt_is_corrected_by_itself() -> None:
    """Another verdict on one prompt changes the effects of the other folds only."""
    about = world(200, files.rng(0, "folds"))
    table, shown = judged(about, "random", 1)
    order = table.order.copy()
    order[17] = order[17][::-1]
    one = cross_corrected(table, 4, answer=shown).scores
    other = cross_corrected(replace(table, order=order), 4, answer=shown).scores
    same = (one == other).all(axis=1)
    assert same.sum() == 200 // 4 - 1
    assert not same[17]


def test_a_table_of_names_gives_the_same_answers_as_arrays() -> None:
    about = world(60, files.rng(0, "names"))
    table, shown = judged(about, "two_pass", 2)
    frame = pd.DataFrame(
        {
            "prompt_id": [f"p{prompt:02}" for prompt in table.prompt],
            "models": [[f"m{model}" for model in row] for row in table.model],
            "ranking": table.order.tolist(),
        }
    )
    found = corrected(frame, spread=2.0)
    expected = cross_corrected(frame, spread=2.0)
    assert found.columns.tolist() == ["prompt_id", "answers", "scores", "sd"]
    assert found["prompt_id"].tolist() == [f"p{prompt:02}" for prompt in range(60)]
    arrays = cross_corrected(table, spread=2.0, answer=shown)
    for row, order, scores in zip(found.itertuples(), arrays.order, arrays.scores, strict=True):
        assert row.answers == [f"m{about.model[row.Index, answer]}" for answer in order]
        assert row.scores == pytest.approx(scores[order])
        assert (np.diff(row.scores) <= 0).all()
    assert np.sort(expected.scores, axis=1) == pytest.approx(np.sort(arrays.scores, axis=1))


def test_a_position_term_gives_back_the_weights() -> None:
    about = world(4000, files.rng(0, "weights"), spread=2, unseen=0)
    table, shown = judged(about, "random", 1)
    seen = about.features[np.arange(4000)[:, None], shown]
    plain, freed = reward_weights(table, seen), reward_weights(table, seen, position_term=True)
    size = about.weights @ about.weights
    assert freed.weights @ about.weights / size == pytest.approx(1, abs=0.03)
    assert plain.weights @ about.weights / size < 0.8
    assert freed.positions == pytest.approx(asking("naive").position, abs=0.1)
    assert freed.positions.sum() == pytest.approx(0, abs=1e-9)
    assert (plain.positions == 0).all()


def test_a_ridge_is_a_penalty_on_the_weights() -> None:
    """The weights are those of a general optimiser of the penalised likelihood, written out."""
    about = world(100, files.rng(0, "ridge"), features=4)
    table, shown = judged(about, "random", 1)
    seen = about.features[np.arange(100)[:, None], shown]
    ranked = table.best_to_worst(seen)

    def penalised(weights: np.ndarray) -> float:
        worth = ranked @ weights
        left = np.log(np.cumsum(np.exp(worth)[:, ::-1], axis=1)[:, ::-1])
        return float((left - worth).sum() + 30.0 / 2 * weights @ weights)

    best = optimize.minimize(penalised, np.zeros(4), options={"gtol": 1e-6}).x
    assert reward_weights(table, seen, ridge=30.0).weights == pytest.approx(best, abs=1e-4)
    assert np.linalg.norm(best) < 0.9 * np.linalg.norm(reward_weights(table, seen).weights)


def test_what_cannot_be_corrected_is_refused() -> None:
    table = Rankings(drawn(4, 3, "refused"), np.full(4, 3), np.array([0, 1, 0, 1]))
    with pytest.raises(BiasError, match="answers have no names"):
        corrected_scores(table, np.zeros(3))
    with pytest.raises(BiasError, match="number each place"):
        corrected_scores(table, np.zeros(3), answer=np.zeros((4, 2), dtype=int))
    once = replace(table, prompt=np.arange(4))
    with pytest.raises(BiasError, match="one effect a place"):
        corrected_scores(once, np.zeros(4))
    with pytest.raises(BiasError, match="above zero"):
        corrected_scores(once, np.zeros(3), 0.0)
    with pytest.raises(BiasError, match="at least 2 folds"):
        cross_corrected(once, folds=9)
    with pytest.raises(BiasError, match="lack models"):
        corrected(pd.DataFrame({"prompt_id": ["a", "b"], "ranking": [[0, 1], [1, 0]]}))
    with pytest.raises(BiasError, match=r"\[n, K, d\]"):
        reward_weights(once, np.zeros((4, 2, 2)))
