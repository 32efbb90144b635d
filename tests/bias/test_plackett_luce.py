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
    scores, information = pl.derivatives(theta, made, weights)
    step = 1e-5 * np.eye(len(theta))
    slope = [
        (pl.log_likelihood(theta + e, made, weights) - pl.log_likelihood(theta - e, made, weights)) / 2e-5 for e in step
    ]
    np.testing.assert_allclose(scores.sum(0) - pl.RIDGE * theta, slope, atol=1e-5)
    bend = [
        (pl.derivatives(theta - e, made, weights)[0] - pl.derivatives(theta + e, made, weights)[0]).sum(0) / 2e-5
        for e in step
    ]
    np.testing.assert_allclose(information - pl.RIDGE * np.eye(len(theta)), bend, atol=1e-5)


def test_the_likelihood_is_the_formula() -> None:
    made = design()
    theta = np.random.default_rng(0).normal(size=made.size)
    utility, total = made.columns(slice(None)) @ theta, 0.0
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
    assert len(list(made.blocks())) > 5
    for ours, theirs in zip(pl.derivatives(theta, made), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
