from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from starling_nb.evaluation import EvaluationError, published
from starling_nb.evaluation.published import Obtained
from starling_nb.stats import Interval

ROWS = [
    {"model": "Starling-LM-7B-alpha", "mt_bench": 8.09, "alpaca_eval": 91.99, "mmlu": 63.9},
    {"model": "OpenChat-3.5", "mt_bench": 7.81, "alpaca_eval": 88.51, "mmlu": 64.3},
    {"model": "GPT-4-Turbo", "mt_bench": 9.32, "alpaca_eval": 97.70, "mmlu": None},
]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "results_table.json"
    path.write_text(json.dumps(ROWS))
    return path


def test_missing_figures_are_nan(table: Path) -> None:
    rows = published.load(table)
    assert rows["mt_bench"].tolist() == [8.09, 7.81, 9.32]
    assert math.isnan(rows["mmlu"].iloc[2])
    assert list(rows.columns) == [
        "model",
        "mt_bench",
        "alpaca_eval",
        "mmlu",
    ]


def test_changes_stand_side_by_side(table: Path) -> None:
    ours = {"mt_bench": Obtained(3.0, 3.5, Interval(0.5, 0.2, 0.8, 36), "simulated-judge")}
    rows = published.target_vs_obtained(ours, published.load(table)).set_index("metric")
    assert rows.loc["mt_bench", "published_change"] == pytest.approx(0.28)
    assert rows.loc["alpaca_eval", "published_change"] == pytest.approx(3.48)
    assert rows.loc["mmlu", "published_change"] == pytest.approx(-0.4)
    mine = rows.loc["mt_bench", ["obtained_start", "obtained_tuned", "obtained_change", "low", "high", "n", "judge"]]
    assert mine.tolist() == [3.0, 3.5, 0.5, 0.2, 0.8, 36, "simulated-judge"]
    assert math.isnan(rows.loc["mmlu", "obtained_change"])
    assert rows.loc["mmlu", "n"] == 0


def test_unknown_metrics_and_damaged_tables_are_refused(table: Path) -> None:
    with pytest.raises(EvaluationError, match="arena"):
        published.target_vs_obtained({"arena": Obtained(1, 2, Interval(1, 0, 2, 3))}, published.load(table))
    with pytest.raises(EvaluationError, match="0 rows named OpenChat"):
        published.target_vs_obtained({}, published.load(table).iloc[:1])
    for damage in ({"model": "x"}, [{"model": "x", "mt_bench": 1}]):
        table.write_text(json.dumps(damage))
        with pytest.raises(EvaluationError, match="restore it"):
            published.load(table)


def test_the_committed_table_holds_the_seven_billion_rows() -> None:
    rows = published.target_vs_obtained({}).set_index("metric")
    assert rows.loc["mt_bench", ["published_start", "published_tuned"]].tolist() == [7.81, 8.09]
    assert len(published.load()) == 12
