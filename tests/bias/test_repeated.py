"""Effects free of quality, from answers seen in several orders."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from bias.worlds import CENTRED, PLANTED, simulate

from starling_nb import bias
from starling_nb.bias import BiasError


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_the_conditional_effects_come_back_however_much_answers_differ(spread: float) -> None:
    found = bias.repeated_effects(simulate(600, PLANTED, repeats=3, reorder=True, spread=spread))
    assert found.estimand == "conditional"
    assert ((found.effects["low"] <= CENTRED) & (found.effects["high"] >= CENTRED)).mean() >= 6 / 7
    assert float(found.effects["effect"] @ CENTRED / (CENTRED @ CENTRED)) == pytest.approx(1, abs=0.12)


def test_the_marginal_effects_of_the_same_rankings_are_smaller() -> None:
    table = simulate(300, PLANTED, repeats=3, reorder=True, spread=1.5)
    marginal, conditional = bias.position_effects(table).effects, bias.repeated_effects(table).effects
    assert marginal["effect"] @ CENTRED < 0.8 * (conditional["effect"] @ CENTRED)


def test_one_model_with_two_answers_needs_their_names() -> None:
    table = simulate(60, PLANTED, repeats=2, reorder=True)
    shown = [[ord(name) for name in row] for row in table["models"]]
    doubled = table.assign(models=[["a" if name == "b" else name for name in row] for row in table["models"]])
    with pytest.raises(BiasError, match="add a column `shown`"):
        bias.repeated_effects(doubled)
    ours, named = bias.repeated_effects(table), bias.repeated_effects(doubled.assign(shown=shown))
    pd.testing.assert_frame_equal(ours.effects, named.effects)


def test_where_nothing_was_repeated_it_says_so() -> None:
    with pytest.raises(BiasError, match="no prompt was ranked twice"):
        bias.repeated_effects(simulate(30, PLANTED))
    with pytest.raises(BiasError, match="too few pairs"):
        bias.repeated_effects(simulate(30, PLANTED, repeats=2))


def test_prompts_are_what_is_independent() -> None:
    table = simulate(100, PLANTED, repeats=2, reorder=True)
    copies = pd.concat([table, table.assign(prompt_id=table.prompt_id + "x")])
    once, twice = bias.repeated_effects(table), bias.repeated_effects(copies)
    np.testing.assert_allclose(once.effects["effect"], twice.effects["effect"], atol=1e-3)
    np.testing.assert_allclose(once.effects["se"] / np.sqrt(2), twice.effects["se"], rtol=0.02)
    assert (once.prompts, twice.prompts) == (once.prompts, 2 * once.prompts)
