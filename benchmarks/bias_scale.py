"""Position effects of a data set of Nectar's size: 183,000 rankings of seven, 40 models, from a plain table.

    python -m benchmarks.bias_scale [--rows 183000]

The table (ids and names as texts, lists as they come out of parquet) is made in a process of its own; the fit and the
whole report's tests run in another, whose time and largest memory are taken. Targets: 15 s and 2 GB for the fit on two
cores. Writes ``benchmarks/results/bias_scale.json``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import records
from starling_nb import bias, files

ROWS, MODELS, K = 183_000, 40, 7
SECONDS, BYTES = 15, 2 * 10**9
PLANTED = np.array([0.6, 0.5, 0.1, 0.0, -0.2, -0.4, -0.6])


def make(path: Path, rows: int) -> None:
    """Plackett-Luce verdicts on answers of random models and of random quality."""
    generator = files.rng(0, "bias scale")
    model = generator.random((rows, MODELS)).argsort(1)[:, :K]
    quality = np.linspace(1, -1, MODELS)[model] + generator.normal(size=model.shape)
    order = np.argsort(-(quality + PLANTED + generator.gumbel(size=model.shape)), axis=1)
    names = np.array([f"model-{i:02d}" for i in range(MODELS)])
    columns = {"prompt_id": [f"{i:016x}" for i in range(rows)], "models": list(names[model]), "ranking": list(order)}
    pd.DataFrame(columns).to_parquet(path)


def measure(path: Path) -> dict[str, Any]:
    """Time and memory of the fit, reading the table's columns included."""
    table = pd.read_parquet(path)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    found = bias.position_effects(table)
    fitted = time.perf_counter()
    test = bias.order_test(table)
    ranks = bias.mean_rank(table)
    placed = bias.placements(table)
    return {
        "rows": len(table),
        "fit_seconds": round(fitted - start, 1),
        "other_seconds": round(time.perf_counter() - fitted, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "table_bytes": before * 1024,
        "effects": found.effects.round(4).to_dict("list"),
        "mean_rank": ranks["mean_rank"].round(4).tolist(),
        "placements": len(placed),
        "order_test": test.method,
    }


def run(rows: int) -> dict[str, Any]:
    """Make the table, then measure in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rankings.parquet"
        make(path, rows)
        command = [sys.executable, "-m", "benchmarks.bias_scale", "--measure", str(path)]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    limits = {"seconds": SECONDS, "bytes": BYTES}
    met = found["fit_seconds"] <= SECONDS and found["peak_bytes"] <= BYTES
    return {"what": "position effects of simulated rankings, K = 7, 40 models", "limits": limits, "met": met, **found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--measure", type=Path)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
    else:
        result = run(given.rows)
        print(json.dumps(result, indent=1))
        if given.rows >= ROWS:
            records.keep("bias_scale.json", result)
