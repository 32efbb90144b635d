"""A test for every claim: its three verdicts by interval, and no verdict from what is missing or too small."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from starling_nb import files
from starling_nb.evaluation import EvaluationError, published
from starling_nb.evaluation.published import claimed

ROWS = {row["id"]: row for row in claimed.claims().to_dict("records")}
MEASURED = sorted(id for id, row in ROWS.items() if row["metric"])
YES, NO, SMALL = claimed.VERDICTS


def metrics(row: dict[str, Any], low: float, high: float, n: int = 1000) -> dict[str, Any]:
    """Our number for a claim, with everything that it needs."""
    found = {row["metric"]: {"value": (low + high) / 2, "low": low, "high": high, "n": n}}
    return found | ({row["needs"]["metric"]: {"value": 0.001}} if row["needs"] else {})


def places(row: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """An interval for each verdict."""
    bound, floor = row["bound"], row["floor"]
    above, below, between = (bound + 0.1, bound + 0.2), (floor - 0.2, floor - 0.1), (floor - 0.1, bound + 0.1)
    wide = (-2 * bound, 2 * bound)
    return {
        "above": {YES: above, NO: below, SMALL: between},
        "below": {
            YES: (bound - 0.04, bound - 0.01),
            NO: (floor + 0.1, floor + 0.2),
            SMALL: (floor - 0.01, bound + 0.1),
        },
        "not above": {YES: below, NO: above, SMALL: between},
        "within": {YES: (-bound / 2, bound / 2), NO: (2 * bound, 3 * bound), SMALL: wide},
    }[row["rule"]]


@pytest.mark.parametrize("id", MEASURED)
@pytest.mark.parametrize("verdict", claimed.VERDICTS)
def test_the_interval_decides(id: str, verdict: str) -> None:
    row = ROWS[id]
    found = claimed.against(metrics(row, *places(row)[verdict])).set_index("id")
    assert found.loc[id, "verdict"] == verdict
    assert found.loc[id, "n"] == 1000
    others = found.drop(index=[one for one in ROWS if ROWS[one]["metric"] == row["metric"]])
    assert set(others.verdict) <= {SMALL}
    assert others.why.str.contains("this run has no").all()


@pytest.mark.parametrize("id", MEASURED)
def test_too_few_units_and_unmet_needs_decide_nothing(id: str) -> None:
    row = ROWS[id]
    sure = places(row)[YES]
    assert claimed.judged(row, metrics(row, *sure, n=row["min_n"] - 1))[0] == SMALL
    if row["needs"]:
        floor = metrics(row, *sure) | {row["needs"]["metric"]: {"value": 0.9}}
        assert claimed.judged(row, floor) == (
            SMALL,
            f"{row['needs']['why']} ({row['needs']['metric'].split('.')[-1]} = 0.9)",
        )
        del floor[row["needs"]["metric"]]
        assert claimed.judged(row, floor)[0] == SMALL


def test_a_number_without_interval_can_show_but_not_refute() -> None:
    row = ROWS["first_place_bias"]
    one = {row["metric"]: {"value": 0.3, "low": None, "high": None, "n": 703}}
    assert claimed.judged(row, one)[0] == YES
    one[row["metric"]]["value"] = 0.1
    assert claimed.judged(row, one)[0] == SMALL


def test_a_small_but_sure_null_refutes_what_would_have_to_matter() -> None:
    row = ROWS["k_wise_beats_pairwise"]
    assert claimed.judged(row, metrics(row, -0.009, 0.003))[0] == NO
    assert claimed.judged(row, metrics(row, -0.009, 0.02))[0] == SMALL


def test_the_reference_run_is_judged_row_by_row() -> None:
    run = files.read_json(files.ROOT / "outputs" / "reference" / "metrics.json")
    found = claimed.against(run)
    assert found.id.to_list() == list(ROWS)
    assert set(found.verdict) <= set(claimed.VERDICTS)
    for row in found[found.verdict != SMALL].itertuples():
        assert row.n >= ROWS[row.id]["min_n"]
        assert math.isfinite(row.obtained)
    assert found.set_index("id").loc["arena", "verdict"] == SMALL


def test_published_numbers_are_those_of_the_table() -> None:
    start, tuned = (published.row(published.load(), name) for name in (published.START, published.TUNED))
    for id, metric in (("mt_bench", "mt_bench"), ("alpaca_eval", "alpaca_eval"), ("mmlu_unchanged", "mmlu")):
        assert ROWS[id]["published"] == pytest.approx(tuned[metric] - start[metric])
    counts = next(
        arm["counts"]
        for arm in files.read_json(files.DATA / "published" / "position_first_place.json")["arms"]
        if arm["variant"] == "naive"
    )
    assert ROWS["first_place_bias"]["published"] == pytest.approx(counts[0] / sum(counts), abs=5e-4)


def test_what_the_evidence_can_show_is_computed() -> None:
    """Golden: AlpacaEval z ≈ 2.4, MT-Bench 0.8 to 1.7, MMLU −0.7."""
    found = claimed.evidence().set_index("metric")
    assert found.loc["alpaca_eval", "z_strong"] == pytest.approx(2.36, abs=0.01)
    assert found.loc["alpaca_eval", "se_low"] == pytest.approx(
        100 * math.sqrt((0.8851 * 0.1149 + 0.9199 * 0.0801) / 805), rel=1e-9
    )
    assert (found.loc["mt_bench", "z_weak"], found.loc["mt_bench", "z_strong"]) == (
        pytest.approx(0.757, abs=0.01),
        pytest.approx(1.647, abs=0.01),
    )
    assert found.loc["mmlu", "z_weak"] == pytest.approx(-0.70, abs=0.01)
    assert found.loc["alpaca_eval", "p_strong"] == pytest.approx(0.018, abs=0.001)
    assert found.loc["alpaca_eval", "units_needed"] == pytest.approx(805 * (2.8016 / 2.358) ** 2, rel=0.01)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "claims.json"
    row = files.read_json(files.DATA / "published" / "claims.json")[0]
    for damage in ({}, [{"id": "x"}], [row, row], [row | {"rule": "about"}]):
        path.write_text(json.dumps(damage))
        with pytest.raises(EvaluationError, match=r"restore it|id of its own"):
            claimed.claims(path)
    path.write_text("{}")
    with pytest.raises(EvaluationError, match="nothing is known of the noise"):
        claimed.evidence(path)
    with pytest.raises(EvaluationError, match="must be a list"):
        published.related(path)


def test_related_results_agree_with_the_blog_where_both_speak() -> None:
    ours = published.related().set_index("model")
    blog = published.load().set_index("model")
    assert ours.loc["OpenChat-3.5", "mmlu"] == blog.loc["OpenChat-3.5", "mmlu"]
    assert ours.loc["Starling-LM-7B-alpha-ExPO", "ae2_lc"] - ours.loc[
        "Starling-LM-7B-alpha", "ae2_lc"
    ] == pytest.approx(4.78)
    assert math.isnan(ours.loc["REBEL-OpenChat-3.5", "alpaca_eval"])


def test_leaderboard_rows_are_the_official_ones(real_data: Path) -> None:
    import pandas as pd

    official = pd.read_parquet(real_data / "alpaca_eval" / "leaderboard_v2_weighted_gpt4_turbo.parquet")
    official = official.set_index("model")[["win_rate", "length_controlled_winrate", "avg_length"]]
    checked = 0
    for row in published.related().dropna(subset=["ae2_lc"]).itertuples():
        found = official[(official.win_rate - row.ae2_win_rate).abs() < 0.01]
        if not found.empty:
            checked += 1
            assert ((found.length_controlled_winrate - row.ae2_lc).abs() < 0.01).any()
    assert checked >= 8
