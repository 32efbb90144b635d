"""Planted effects of length and of one measure's own taste come back; shares of nothing are not given."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.overoptimization import shares


def side(growth: float = 0.0, rate: float = 0.0, better: float = 0.0, seed: int = 0, prompts: int = 60) -> pd.DataFrame:
    """Answers of one model: the score is rate · log words + a prompt's own level + quality."""
    draw = np.random.default_rng(seed)
    level = np.repeat(np.random.default_rng(99).normal(size=prompts) * 3, 8)
    words = np.round(np.exp(draw.normal(3.4 + growth, 0.3, size=prompts * 8)))
    score = rate * np.log1p(words) + level + better + 0.1 * draw.normal(size=len(words))
    ids = np.repeat([f"p{i}" for i in range(prompts)], 8)
    return pd.DataFrame({"prompt_id": ids, "words": words, "proxy": score, "judge": score})


def test_a_gain_that_is_all_length_is_found_to_be() -> None:
    found = shares.length(side(rate=2.0), side(growth=0.4, rate=2.0, seed=1), "proxy")
    assert found.slope.value == pytest.approx(2.0, abs=0.05)
    assert found.share is not None
    assert found.share.value == pytest.approx(1.0, abs=0.05)
    assert found.at_equal_length.low < 0 < found.at_equal_length.high
    assert abs(shares.at_matched_lengths(side(rate=2.0), side(growth=0.4, rate=2.0, seed=1), "proxy").value) < 0.1


def test_a_gain_that_is_half_length_is_split() -> None:
    start, tuned = side(rate=1.0), side(growth=0.5, rate=1.0, better=0.5, seed=1)
    found = shares.length(start, tuned, "proxy")
    assert found.share is not None
    assert found.share.low < 0.5 < found.share.high
    assert found.at_equal_length.low < 0.5 < found.at_equal_length.high
    assert found.gain.n == 60
    row = shares.length_row(start, tuned, "proxy")
    assert row["share"] == found.share.value
    assert row["matched"] == pytest.approx(0.5, abs=0.1)


def test_no_gain_has_no_share() -> None:
    found = shares.length(side(), side(seed=1), "proxy")
    assert found.share is None
    assert np.isnan(shares.length_row(side(), side(seed=1), "proxy")["share"])


def test_what_only_the_trained_measure_sees() -> None:
    start, tuned = side(rate=1.0), side(rate=1.0, seed=1)
    tuned = tuned.assign(proxy=tuned.proxy + 1.0)
    rows = shares.private_gain(start, tuned, "proxy", ["judge"]).set_index("measure")
    assert rows.loc["only proxy", "low"] > 0
    assert rows.loc["only proxy", "value"] == pytest.approx(rows.loc["proxy", "value"] - rows.loc["judge", "value"])
    same = shares.private_gain(start, side(rate=1.0, seed=1), "proxy", ["judge"]).set_index("measure")
    assert same.loc["only proxy", "value"] == pytest.approx(0.0)


def test_sides_that_do_not_match_are_refused() -> None:
    with pytest.raises(EvaluationError, match="other prompts"):
        shares.length(side(), side(prompts=59), "proxy")
    one = side().groupby("prompt_id").head(1)
    with pytest.raises(EvaluationError, match="several answers a prompt"):
        shares.length(one, one, "proxy")
    with pytest.raises(EvaluationError, match="sample more"):
        shares.at_matched_lengths(side(), side(growth=5.0), "proxy")
    row = shares.length_row(side(), side(growth=5.0), "proxy")
    assert (np.isnan(row["matched"]), row["matched_n"], row["n"]) == (True, 0, 60)
    with pytest.raises(EvaluationError, match="another measure"):
        shares.private_gain(side(), side(), "proxy", [])
