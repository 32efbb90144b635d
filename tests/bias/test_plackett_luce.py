"""The regression core: derivatives, weights, stages, blocks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from bias.worlds import PLANTED, simulate

from starling_nb.bias import plackett_luce as pl
from starling_nb.bias.effects import _groups
from starling_nb.bias.tables import read


def design(stages: int | None = None) -> pl.Design:
    """Positions, models and a covariate over rankings of seven and of four."""
    parts = [simulate(15, PLANTED), simulate(10, PLANTED[:4], seed=1)]
    table = read(pd.concat(parts, ignore_index=True), "prompt_id", "models")
    covariate = np.random.default_rng(2).normal(size=table.order.shape)
    return pl.Design(table.mask, [(table.order, 7), _groups(table)], [covariate], stages)


@pytest.mark.parametrize("stages", [None, 1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_derivatives_are_those_of_the_likelihood(stages: int | None, weighted: bool) -> None:
    made = design(stages)
    generator = np.random.default_rng(0)
    theta = generator.normal(size=made.size)
    weights = generator.random(25) if weighted else None
    _, gradient, information = pl.derivatives(theta, made, weights)
    step = 1e-5 * np.eye(len(theta))
    slope = [
        (pl.log_likelihood(theta + e, made, weights) - pl.log_likelihood(theta - e, made, weights)) / 2e-5 for e in step
    ]
    np.testing.assert_allclose(gradient, slope, atol=1e-5)
    bend = [
        (pl.derivatives(theta - e, made, weights)[1] - pl.derivatives(theta + e, made, weights)[1]) / 2e-5 for e in step
    ]
    np.testing.assert_allclose(information, bend, atol=1e-5)


def test_the_likelihood_is_the_formula() -> None:
    made = design()
    theta = np.random.default_rng(0).normal(size=made.size)
    utility, total = made.utilities(theta, slice(None)), 0.0
    place, model = (pl.contrast(levels) for _, levels in made.factors)
    parts = np.split(theta, [6, made.size - 1])
    by_hand = place @ parts[0], model @ parts[1], parts[2]
    (order, _), (group, _) = made.factors
    first = [
        by_hand[0][order[0, i]] + by_hand[1][group[0, i]] + by_hand[2][0] * made.covariates[0][0, i] for i in range(7)
    ]
    np.testing.assert_allclose(utility[0], first)
    for row, mask in zip(utility, made.mask, strict=True):
        u = row[mask]
        total += sum(u[i] - np.log(np.exp(u[i:]).sum()) for i in range(len(u)))
    assert pl.log_likelihood(theta, made) + pl.RIDGE / 2 * theta @ theta == pytest.approx(total)
    assert pl.fit(made).log_likelihood > total


def test_a_weight_counts_a_ranking_so_many_times() -> None:
    table = read(simulate(40, PLANTED), "prompt_id")
    twice = np.where(np.arange(40) < 10, 2.0, 1.0)
    order = np.concatenate([table.order, table.order[:10]])
    weighted = pl.fit(pl.Design(table.mask, [(table.order, 7)]), twice)
    repeated = pl.fit(pl.Design(np.ones((50, 7), bool), [(order, 7)]))
    np.testing.assert_allclose(weighted.theta, repeated.theta, atol=1e-6)
    assert weighted.log_likelihood == pytest.approx(repeated.log_likelihood)
    np.testing.assert_allclose(weighted.information, repeated.information, atol=1e-6)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = design()
    theta = np.random.default_rng(0).normal(size=made.size)
    whole = pl.derivatives(theta, made)
    monkeypatch.setattr(pl, "BLOCK", 300)
    assert len(list(made.blocks)) > 3
    for ours, theirs in zip(pl.derivatives(theta, made), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_influence_adds_up_to_nothing_and_moves_the_estimate() -> None:
    """At the maximum the pulls cancel but for the ridge; leaving a prompt out moves the estimate by about its pull."""
    made = design()
    found = pl.fit(made)
    pull = found.influence(np.arange(25))
    np.testing.assert_allclose(pull.sum(0), np.linalg.solve(found.information, pl.RIDGE * found.theta), atol=1e-6)
    less = pl.fit(made, np.where(np.arange(25) == 3, 1 - 1e-4, 1.0))
    np.testing.assert_allclose((found.theta - less.theta) / 1e-4, pull[3], atol=1e-3)
