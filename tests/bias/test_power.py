"""Labels needed, the bootstrap's word on the errors, and trends over the number of answers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from bias.worlds import PLANTED, simulate

from starling_nb import bias
from starling_nb.bias import BiasError


def test_labels_needed_follow_the_root_law() -> None:
    few, many = (bias.position_effects(simulate(n, PLANTED)) for n in (250, 1000))
    need = bias.needed(few)
    assert need.labels == pytest.approx(bias.needed(many).labels, rel=0.25)
    assert need.more == need.labels - 250
    assert bias.needed(few, effect=need.detectable).labels == pytest.approx(250, abs=1)
    assert bias.needed(few, effect=0.4).labels == pytest.approx(need.labels / 4, rel=0.02)
    assert bias.needed(many, effect=3.0).more == 0
    for wrong in ({"effect": 0.0}, {"power": 1.0}, {"level": 0.0}):
        with pytest.raises(BiasError, match="two shares"):
            bias.needed(few, **wrong)


def test_an_effect_is_seen_as_often_as_the_power_says() -> None:
    """Position 0 differs by .3; with the labels that :func:`needed` asks for it is seen in about 80 %."""
    effect = np.array([0.3, *[-0.05] * 6])
    need = bias.needed(bias.position_effects(simulate(200, effect, spread=0.0)), effect=0.3)
    seen = []
    for seed in range(60):
        row = bias.position_effects(simulate(need.labels, effect, seed=100 + seed, spread=0.0)).effects.iloc[0]
        seen.append(row["low"] > 0)
    assert 0.6 < np.mean(seen) < 0.97


def test_the_bootstrap_agrees_with_the_sandwich() -> None:
    table = simulate(120, PLANTED, repeats=2)
    found = bias.bootstrap_errors(table, draws=150)
    np.testing.assert_allclose(found, bias.position_effects(table).effects["se"], rtol=0.3)
    np.testing.assert_array_equal(found, bias.bootstrap_errors(table, draws=150))


def test_trends_by_length_are_told_apart() -> None:
    line = np.linspace(0.5, -0.5, 7)
    long, short = simulate(300, line), simulate(300, np.linspace(0.5, -0.5, 3), seed=1)
    flat = simulate(300, np.zeros(3), seed=2)
    same = bias.by_length(pd.concat([long, short.assign(prompt_id=short.prompt_id + "s")], ignore_index=True))
    assert same.table["k"].tolist() == [3, 7]
    assert same.table["n"].tolist() == [300, 300]
    assert ((same.table["low"] < -0.7) & (same.table["high"] > -1.1)).all()
    assert same.p > 0.01
    other = bias.by_length(pd.concat([long, flat.assign(prompt_id=flat.prompt_id + "s")], ignore_index=True))
    assert other.p < 1e-3
    with pytest.raises(BiasError, match="several lengths"):
        bias.by_length(long)
