"""What the authors reported, beside what a run of ours obtains.

The two columns never share a scale: another model, other questions, another judge. What can be compared is
the direction of the change from the start model to the tuned one, and whether its interval excludes zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from starling_nb import files
from starling_nb.evaluation import EvaluationError
from starling_nb.stats import Interval

UNITS = {"mt_bench": "grade, 1 to 10", "alpaca_eval": "win rate, %", "mmlu": "accuracy, %"}
START, TUNED = "OpenChat-3.5", "Starling"  # the blog's rows before and after tuning; a name may go on


@dataclass(frozen=True)
class Obtained:
    """One metric of a run of ours, in the units of the published table (:data:`UNITS`)."""

    start: float
    tuned: float
    change: Interval
    judge: str = ""


def load(path: Path | None = None) -> pd.DataFrame:
    """The blog's results table: model, mt_bench, alpaca_eval, mmlu; NaN where none is given.

    Raises:
        EvaluationError: the file is not a list of such rows.
    """
    path = path or files.DATA / "published" / "results_table.json"
    rows = files.read_json(path)
    columns = ["model", *UNITS]
    if not isinstance(rows, list) or not all(isinstance(one, dict) and set(columns) <= set(one) for one in rows):
        raise EvaluationError(f"{path} must be a list of rows with {', '.join(columns)}: restore it (git checkout)")
    table = pd.DataFrame([[one[column] for column in columns] for one in rows], columns=columns)
    return table.astype(dict.fromkeys(UNITS, float))


def related(path: Path | None = None) -> pd.DataFrame:
    """What others obtained from the same start model or judged beside it; NaN where none is given.

    Columns: model, how, mt_bench, alpaca_eval (version 1, win rate in %), ae2_win_rate, ae2_lc (length-controlled, %),
    ae2_length (mean characters), mmlu (%), source. The two AlpacaEvals have other judges and baselines: never compare
    across them.

    Raises:
        EvaluationError: the file is not a list of such rows.
    """
    path = path or files.DATA / "published" / "related_results.json"
    numbers = ["mt_bench", "alpaca_eval", "ae2_win_rate", "ae2_lc", "ae2_length", "mmlu"]
    columns = ["model", "how", *numbers, "source"]
    rows = files.read_json(path)
    if not isinstance(rows, list) or not all(isinstance(one, dict) and set(columns) <= set(one) for one in rows):
        raise EvaluationError(f"{path} must be a list of rows with {', '.join(columns)}: restore it (git checkout)")
    table = pd.DataFrame([[one[column] for column in columns] for one in rows], columns=columns)
    return table.astype(dict.fromkeys(numbers, float))


def target_vs_obtained(ours: Mapping[str, Obtained], published: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a metric: what tuning changed for the authors and what it changes here.

    Columns: metric, unit, published_start, published_tuned, published_change, obtained_start, obtained_tuned,
    obtained_change with low, high and n, and judge. Metrics without a run of ours keep NaN.

    Raises:
        EvaluationError: a metric that the published table does not have.
    """
    if unknown := set(ours) - set(UNITS):
        raise EvaluationError(f"no published figure for {sorted(unknown)[0]!r}: choose from {', '.join(UNITS)}")
    table = load() if published is None else published
    start, tuned = row(table, START), row(table, TUNED)
    missing = Obtained(float("nan"), float("nan"), Interval(float("nan"), float("nan"), float("nan"), 0))
    rows = []
    for metric, unit in UNITS.items():
        mine = ours.get(metric, missing)
        found = {
            "metric": metric,
            "unit": unit,
            "published_start": start[metric],
            "published_tuned": tuned[metric],
            "published_change": tuned[metric] - start[metric],
            "obtained_start": mine.start,
            "obtained_tuned": mine.tuned,
            "obtained_change": mine.change.value,
            "low": mine.change.low,
            "high": mine.change.high,
            "n": mine.change.n,
            "judge": mine.judge,
        }
        rows.append(found)
    return pd.DataFrame(rows)


def row(table: pd.DataFrame, name: str) -> dict[str, float]:
    """The figures of the one model whose name begins so, by metric.

    Raises:
        EvaluationError: no such model, or several.
    """
    found = table[table["model"].str.lower().str.startswith(name.lower())]
    if len(found) != 1:
        raise EvaluationError(f"the published table has {len(found)} rows named {name}…, one is due: restore it")
    return {metric: float(found[metric].iloc[0]) for metric in UNITS}
