"""The study: the laptop story over several seeds, with equal budgets for all methods; hours, resumable seed by seed.

    python -m benchmarks.study [--profile study] [--seeds 3] [--out outputs/study]

Each seed has a run folder of its own below ``--out`` (finished stages are kept, so a broken-off study goes on); all
seeds train on the same rows. Writes ``benchmarks/results/study/<profile>.json``: every metric as mean over seeds with
its 95 % interval (Student's t over seeds, which a comparison between methods has to beat) and every claim's verdicts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.runner import manifest


def over_seeds(runs: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Metrics of several seeds → value (mean), low, high (t interval over seeds), seeds; claims → verdict by seed.

    Raises:
        StarlingError: fewer than two runs, which have no spread.
    """
    if len(runs) < 2:
        raise StarlingError("a study needs at least two seeds: raise --seeds")
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(set.intersection(*(set(run) for run in runs))):
        values = np.array([run[name]["value"] for run in runs], dtype=float)
        half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        mean = float(values.mean())
        found[name] = {"value": mean, "low": mean - half, "high": mean + half, "seeds": values.tolist()}
        if name.startswith("claim."):
            found[name]["verdicts"] = [run[name]["verdict"] for run in runs]
    return found


def main() -> None:
    """Run what is missing, then gather."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="study")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=files.ROOT / "outputs" / "study")
    asked = parser.parse_args()
    runs = []
    for seed in range(asked.seeds):
        out = asked.out / f"seed-{seed}"
        line = [sys.executable, "-m", "starling_nb", "reproduce", "--profile", asked.profile, "--out", str(out)]
        subprocess.run([*line, "--set", f"seed={seed}", "--set", "01.seed=0"], check=True)
        runs.append(files.read_json(out / "metrics.json"))
    about = manifest.head(asked.profile, [])
    results = files.ROOT / "benchmarks" / "results" / "study" / f"{asked.profile}.json"
    results.parent.mkdir(exist_ok=True)
    files.write_json(results, {"git": about["git"], "env": about["env"], "metrics": over_seeds(runs)})
    print(results)


if __name__ == "__main__":
    main()
