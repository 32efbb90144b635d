"""Result tables: accuracy by subset with intervals that resample prompts, beside the longest-answer baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from starling_nb.reward.benchmarks.items import Benchmark
from starling_nb.reward.benchmarks.official import Aggregate, aggregates, notes
from starling_nb.reward.benchmarks.readers import read
from starling_nb.reward.benchmarks.scoring import (
    Scorer,
    Scores,
    check,
    check_ending,
    longest,
    outcomes,
    save_scores,
    score,
    stored,
)
from starling_nb.stats import Interval, mean_interval, share_interval

COLUMNS = ["scorer", "benchmark", "subset", "metric", "value", "low", "high", "n"]


def evaluate(
    name: str,
    source: str | Path,
    scorer: Scorer | None,
    *,
    label: str = "scorer",
    path: Path | None = None,
    split: str | None = None,
    cache_dir: Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Read a benchmark, score it and give its :func:`table`, the longest-answer rows included.

    Args:
        name: of the benchmark. source, split, cache_dir: as in :func:`starling_nb.reward.benchmarks.read`.
        scorer: conversations to scores, for example :meth:`starling_nb.reward.RewardModel.score`; None takes the scores
            that came with the file.
        label: the scorer's name in the table.
        path: the scores are saved here too (``.parquet`` or ``.jsonl``), before the table is made.
        seed: decides the intervals.

    Raises:
        BenchmarkError: as in reading, scoring and saving. StarlingError: as the scorer does.
    """
    if path is not None:
        check_ending(path)
    benchmark = read(name, source, split, cache_dir)
    scores = stored(benchmark.items) if scorer is None else score(scorer, benchmark.items)
    if path is not None:
        save_scores(path, benchmark.items, scores)
    return table(benchmark, scores, label, seed)


def table(benchmark: Benchmark, scores: Scores, scorer: str = "scorer", seed: int = 0) -> pd.DataFrame:
    """Results, one row a scorer, subset and metric; the longest-answer baseline is always beside the scorer's.

    Columns: scorer, benchmark, subset (``"all"`` for the whole), metric, value, low, high (95 %), n (items). Ties lose.
    RewardBench and RM-Bench also get their published ``section`` and ``overall`` rows
    (:mod:`starling_nb.reward.benchmarks.official`). Rows without a value: ``skipped`` (rows left out, by reason),
    ``in no section`` (a subset that RewardBench does not know) and ``missing`` (one that it has and the items lack).

    Raises:
        BenchmarkError: the scores do not fit the items, or one is NaN. StatsError: there are no items.
    """
    check(benchmark.items, scores)
    rows: list[dict[str, Any]] = []
    for name, values in ((scorer, scores), ("longest answer", longest(benchmark.items))):
        frame = _frame(benchmark, values)
        groups = [("all", frame), *((str(key), part) for key, part in frame.groupby("subset"))]
        metrics = [c for c in frame.columns if c not in ("subset", "cluster")]
        if frame.subset.nunique() == 1:
            groups = groups[:1]
        for subset, part in groups:
            rows += [
                _row(name, benchmark.name, subset, m, share_interval(part[m], part.cluster), len(part)) for m in metrics
            ]
        rows += [
            _weighted(frame, one, name, benchmark.name, seed) for one in aggregates(benchmark.name, _counts(frame))
        ]
    left_out = [(reason, "skipped", count) for reason, count in benchmark.skipped.items()]
    for subset, metric, count in left_out + notes(benchmark.name, _counts(frame)):
        rows.append({"scorer": "", "benchmark": benchmark.name, "subset": subset, "metric": metric, "n": count})
    return pd.DataFrame(rows, columns=COLUMNS)


def _frame(benchmark: Benchmark, scores: Scores) -> pd.DataFrame:
    pairs = zip(benchmark.items, scores, strict=True)
    rows = [{"subset": i.subset, "cluster": i.cluster, **outcomes(i, s)} for i, s in pairs]
    return pd.DataFrame(rows, columns=None if rows else ["subset", "cluster", "accuracy"])


def _counts(frame: pd.DataFrame) -> dict[str, int]:
    return {str(subset): int(count) for subset, count in frame.subset.value_counts(sort=False).items()}


def _row(scorer: str, benchmark: str, subset: str, metric: str, found: Interval, n: int) -> dict[str, Any]:
    names = {"scorer": scorer, "benchmark": benchmark, "subset": subset, "metric": metric}
    return {**names, "value": found.value, "low": found.low, "high": found.high, "n": n}


def _weighted(frame: pd.DataFrame, figure: Aggregate, scorer: str, benchmark: str, seed: int) -> dict[str, Any]:
    """A weighted mean of subset means; deviations are scaled so that its interval resamples prompts."""
    part = frame[frame.subset.isin(list(figure.shares))]
    means = part.groupby("subset")[figure.column].mean()
    value = sum(share * means[s] for s, share in figure.shares.items())
    counts = part.subset.value_counts()
    scale = part.subset.map({s: share * len(part) / counts[s] for s, share in figure.shares.items()})
    values = value + scale * (part[figure.column] - part.subset.map(means))
    found = mean_interval(values, part.cluster, seed)
    return _row(scorer, benchmark, figure.subset, figure.metric, found, len(part))
