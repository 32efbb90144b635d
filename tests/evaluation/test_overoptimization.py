"""Curves from tables of answers: best of n by brute force, checkpoints paired by prompt, failures counted."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation import overoptimization as over
from starling_nb.policy.offline.baselines import best_of_n_kl

NAMES = ["proxy", "rubric"]


def answers(prompts: int = 30, samples: int = 6, seed: int = 0, shift: float = 0.0) -> pd.DataFrame:
    """Answers whose rubric is the proxy with noise."""
    draw = np.random.default_rng(seed)
    proxy = draw.normal(size=(prompts, samples)) + shift
    rubric = 0.5 * proxy + draw.normal(size=proxy.shape)
    ids = np.repeat([f"p{i}" for i in range(prompts)], samples)
    places = np.tile(np.arange(samples), prompts)
    return pd.DataFrame({"prompt_id": ids, "sample": places, "proxy": proxy.ravel(), "rubric": rubric.ravel()})


def test_best_of_n_is_what_all_choices_of_n_give() -> None:
    table = answers(prompts=4, samples=5)
    curve = over.chosen(table, "proxy", NAMES, [4, 2])
    for row, prompt in enumerate(curve.prompts):
        own = table[table.prompt_id == prompt]
        for place, n in enumerate((2, 4)):
            best = [
                max(choice, key=lambda pair: pair[0])[1] for choice in itertools.combinations(own[NAMES].to_numpy(), n)
            ]
            assert curve.gains["rubric"][row, place] == pytest.approx(np.mean(best) - own.rubric.mean())
    assert curve.points == ("n = 2", "n = 4")
    assert curve.kl == pytest.approx([best_of_n_kl(2), best_of_n_kl(4)])
    assert curve.d == pytest.approx(np.sqrt(curve.kl))


def test_the_order_of_rows_decides_nothing() -> None:
    table = answers()
    mixed = table.sample(frac=1, random_state=1)
    one, other = (over.chosen(t, "proxy", NAMES, [2, 6]) for t in (table, mixed))
    assert one.prompts == other.prompts
    assert one.gains["rubric"] == pytest.approx(other.gains["rubric"])


def test_failed_answers_are_left_out_by_rule_and_counted() -> None:
    table = answers()
    table.loc[[0, 1, 6], "rubric"] = [math.nan, math.inf, math.nan]
    curve = over.chosen(table, "proxy", NAMES, [2, 5])
    assert curve.left_out == {"answers": 3, "prompts": 1}
    assert "p0" not in curve.prompts
    assert "p1" in curve.prompts
    assert len(curve.gains["rubric"]) == 29
    with pytest.raises(EvaluationError, match="no prompt has 7 answers"):
        over.chosen(table, "proxy", NAMES, [2, 7])
    with pytest.raises(EvaluationError, match="there twice"):
        over.chosen(pd.concat([table, table.iloc[:1]]), "proxy", NAMES, [2, 4])
    with pytest.raises(EvaluationError, match="no column judge in the answers"):
        over.chosen(table, "proxy", ["judge"], [2, 4])
    with pytest.raises(EvaluationError, match="two different numbers"):
        over.chosen(table, "proxy", NAMES, [1, 4])


def test_checkpoints_are_paired_by_prompt_and_ordered_by_divergence() -> None:
    start = answers()
    further = {
        name: start.assign(proxy=start.proxy + gain, rubric=start.rubric - gain, kl=kl).sample(frac=1, random_state=0)
        for name, gain, kl in (("late", 2.0, 9.0), ("early", 1.0, 1.0))
    }
    curve = over.run(start, further, NAMES)
    assert curve.points == ("early", "late")
    assert curve.d == pytest.approx([1.0, 3.0])
    assert curve.gains["rubric"] == pytest.approx(np.tile([-1.0, -2.0], (30, 1)))
    found = over.verdicts(curve).set_index("measure")
    assert (found.loc["rubric", "verdict"], found.loc["proxy", "verdict"]) == ("turned", "none")
    assert found.loc["rubric", "fall"] == pytest.approx(-2.0)
    assert found.loc["proxy", "said"] == "none up to √KL = 3.00"


def test_a_prompt_that_failed_at_one_checkpoint_is_left_out_of_all() -> None:
    start = answers(samples=1)
    first, second = (start.assign(kl=kl) for kl in (1.0, 2.0))
    second.loc[4, "rubric"] = math.nan
    curve = over.run(start, {"a": first, "b": second}, NAMES)
    assert curve.left_out == {"answers": 1, "prompts": 1}
    assert "p4" not in curve.prompts
    with pytest.raises(EvaluationError, match="other prompts than the start"):
        over.run(start, {"a": first, "b": second.iloc[1:]}, NAMES)
    with pytest.raises(EvaluationError, match="two or more beside the start"):
        over.run(start, {"a": first}, NAMES)


def test_tables_hold_gains_in_units_with_intervals() -> None:
    table = answers()
    units = over.spread(table, NAMES)
    assert units["proxy"] == pytest.approx(1.0, abs=0.12)
    curve = over.chosen(table, "proxy", NAMES, [2, 4, 6])
    rows = curve.table({"proxy": 2.0})
    assert len(rows) == 6
    last = rows[(rows.measure == "proxy") & (rows.point == "n = 6")].iloc[0]
    assert last.gain == pytest.approx(curve.gains["proxy"][:, -1].mean() / 2)
    assert last.low < last.gain < last.high
    assert last.n == 30
    with pytest.raises(EvaluationError, match="measures nothing here"):
        over.spread(table.assign(proxy=1.0), NAMES)
