"""The length-controlled win rate beside the official implementation: equal figures, time, coverage, files.

The official package is no dependency. Install it beside, and run this with both on the path:

    pip install --target DIR --no-deps alpaca-eval patsy python-dotenv fire termcolor tiktoken "setuptools<81"
    PYTHONPATH=DIR python -m benchmarks.length_control

The hub's files cannot be had everywhere, and the comparison needs none of their content: gamed baselines and
difficulties of the same layout are simulated, and the official code is handed that folder as if it were the hub. What
is compared: coefficients, win rates and standard errors for judges of several tastes, the three official regressions,
unreadable preferences among them, and the win rate that the official command line computes from our files.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from benchmarks.records import keep
from starling_nb import files
from starling_nb.evaluation.alpaca_eval import formats as alpaca_files
from starling_nb.evaluation.alpaca_eval import win_rate
from starling_nb.evaluation.alpaca_eval.length_control import (
    GAMED,
    ORDER,
    Reference,
    length_controlled_win_rate,
    load_reference,
)

ROWS = 805
BASELINE, MODEL, ANNOTATOR = "base", "tuned", "simulated"
OFFICIAL = {
    "length": "np.tanh(std_delta_len)",
    "difficulty": "instruction_difficulty",
    "model": "not_gamed_baseline.astype(float)",
}
JUDGES = {
    "likes long answers": (-1.2, 0.4, -1.0),
    "likes short answers": (0.8, -0.3, 0.5),
    "blind to length": (0.0, 0.6, -2.0),
    "sees no model": (-2.0, 0.0, 0.0),
}
"""Coefficients of simulated judges: length, difficulty, model."""


def bundle(folder: Path, seed: int, rows: int = ROWS, length: float = -1.0) -> Reference:
    """Write the two files of the hub's layout, simulated, into ``folder``, and read them."""
    draw = files.rng(seed, "reference")
    difficulty = draw.normal(0, 1, rows)
    parts = []
    for model, shift in (("base_verbose", -1.0), ("base_concise", 1.0)):
        gap = shift + draw.normal(0, 0.7, rows)
        logit = length * np.tanh(gap) + draw.normal(0, 1.0, rows)
        columns = {"index": range(rows), "model": model, "preference": special.expit(logit), "std_delta_len": gap}
        parts.append(pd.DataFrame(columns | {"instruction_difficulty": difficulty, "not_gamed_baseline": False}))
    files.write_bytes(folder / GAMED, pd.concat(parts).to_csv(index=False).encode())
    files.write_bytes(
        folder / "instruction_difficulty.csv", pd.Series(difficulty, name="instruction_difficulty").to_csv().encode()
    )
    files.write_json(folder / ORDER, [{"instruction": f"Do number {row}.", "output": ""} for row in range(rows)])
    return load_reference(folder)


def judged(reference: Reference, judge: Sequence[float], seed: int, noise: float = 1.0) -> pd.DataFrame:
    """Annotations by a judge with these coefficients; lengths are uneven, and some longer than the baseline's."""
    draw = files.rng(seed, "judged")
    rows = len(reference.instructions)
    lengths = np.exp(draw.normal([6.0, 6.3], 0.5, (rows, 2))).astype(int)
    gap = (lengths[:, 0] - lengths[:, 1]) / (lengths[:, 0] - lengths[:, 1]).std(ddof=1)
    logit = judge[0] * np.tanh(gap) + judge[1] * reference.difficulty + judge[2] + draw.normal(0, noise, rows)
    table = {
        "instruction": reference.instructions,
        "output_1": ["x" * n for n in lengths[:, 0]],
        "generator_1": BASELINE,
        "output_2": ["y" * n for n in lengths[:, 1]],
        "generator_2": MODEL,
        "dataset": "simulated",
        "annotator": ANNOTATOR,
        "preference": 1 + special.expit(logit),
        "raw_completion": "",
    }
    return pd.DataFrame(table)


def official(folder: Path) -> Any:
    """The official module, reading ``folder`` where it would ask the hub.

    Raises:
        SystemExit: it is not installed; says how to install it.
    """
    try:
        from alpaca_eval.metrics import glm_winrate
    except ImportError as error:
        raise SystemExit(f"the official package cannot be imported ({error})\n\n{__doc__}") from error
    glm_winrate.hf_hub_download = lambda filename, **_: str(folder / filename)
    return glm_winrate


def compare(module: Any, reference: Reference, table: pd.DataFrame, model: str, folder: Path) -> dict[str, Any]:
    """Both implementations on one table: their figures and the largest difference."""
    theirs = module.get_length_controlled_winrate(
        table.copy(), glm_name=model, save_weights_dir=folder / "weights", is_warn_extreme_changes=False
    )
    saved = pd.read_csv(folder / "weights" / model / f"baseline_{BASELINE}.csv", index_col=0).loc[MODEL]
    ours = length_controlled_win_rate(table, reference, model=model)
    pairs = {
        "win_rate": (ours.win_rate, theirs["length_controlled_winrate"]),
        "standard_error": (ours.standard_error, theirs["lc_standard_error"]),
        "raw": (ours.raw, theirs["win_rate"]),
    }
    pairs |= {name: (ours.coefficients[name], float(saved.get(term, 0.0))) for name, term in OFFICIAL.items()}
    figures = {name: float(value) for name, (value, _) in pairs.items()}
    return figures | {"largest_difference": max(abs(one - float(other)) for one, other in pairs.values())}


def through_files(module: Any, reference: Reference, table: pd.DataFrame, folder: Path) -> dict[str, float]:
    """What the official ``evaluate`` computes from the files that we write, and what is left of ours in its reading."""
    from alpaca_eval import evaluate, utils

    annotations, board = folder / ANNOTATOR / "annotations.json", folder / "leaderboard.csv"
    alpaca_files.write_annotations(annotations, table)
    answers = folder / "model_outputs.json"
    alpaca_files.write_outputs(answers, table["instruction"], table["output_2"], generator=MODEL)
    read = utils.load_or_convert_to_dataframe(answers)
    known = {"win_rate": 0.0, "avg_length": int(read["output"].str.len().mean())}
    pd.DataFrame(known, index=[MODEL]).to_csv(board)
    found, _ = evaluate(
        model_outputs=answers,
        reference_outputs=answers,
        name=MODEL,
        precomputed_leaderboard=board,
        annotators_config=ANNOTATOR,
        output_path=folder,
        is_recompute_metrics_only=True,
        is_return_instead_of_print=True,
        is_cache_leaderboard=False,
        metric_kwargs={"save_weights_dir": None, "is_warn_extreme_changes": False},
    )
    theirs = found.loc[MODEL]
    back = alpaca_files.read_annotations(annotations)
    ours, plain = length_controlled_win_rate(back, reference), win_rate(back)
    return {
        "official_win_rate": float(theirs["win_rate"]),
        "official_length_controlled": float(theirs["length_controlled_winrate"]),
        "difference_win_rate": abs(float(theirs["win_rate"]) - plain.win_rate),
        "difference_length_controlled": abs(float(theirs["length_controlled_winrate"]) - ours.win_rate),
        "official_n": int(theirs["n_total"]),
        "ours_n": plain.n,
    }


def timed(module: Any, reference: Reference, table: pd.DataFrame, rounds: int) -> dict[str, float]:
    """Median processor seconds of both, taking turns."""
    seconds: dict[str, list[float]] = {"ours": [], "official": []}
    for _ in range(rounds):
        start = time.process_time()
        length_controlled_win_rate(table, reference)
        seconds["ours"].append(time.process_time() - start)
        start = time.process_time()
        module.get_length_controlled_winrate(table.copy(), save_weights_dir=None, is_warn_extreme_changes=False)
        seconds["official"].append(time.process_time() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def coverage(runs: int, folder: Path) -> dict[str, Any]:
    """How often the interval holds the win rate that a judge would give at equal length, over fresh instructions."""
    judge = JUDGES["likes long answers"]
    grid = np.random.default_rng(0).normal(size=(2, 200_000))
    truth = 100 * float(special.expit(judge[1] * grid[0] + judge[2] + grid[1]).mean())
    hits, rates, widths = 0, [], []
    for seed in range(runs):
        reference = bundle(folder, 10_000 + seed, length=judge[0])
        found = length_controlled_win_rate(judged(reference, judge, 10_000 + seed), reference)
        hits += found.low <= truth <= found.high
        rates.append(found.win_rate)
        widths.append((found.high - found.low) / 2 / 1.963)
    return {
        "runs": runs,
        "covered": hits / runs,
        "truth": truth,
        "mean": float(np.mean(rates)),
        "spread_of_estimates": float(np.std(rates, ddof=1)),
        "mean_interval_error": float(np.mean(widths)),
    }


def near_even(runs: int) -> dict[str, Any]:
    """The same without a reference and near 50 %, where the penalty sets coefficients to 0: answers of any length."""
    found = {}
    for rows, rate in itertools.product((40, 88, 805), (0.5, 0.56)):
        draw, hits, widths = np.random.default_rng(rows), 0, []
        for _ in range(runs):
            lengths = draw.integers(100, 900, (rows, 2))
            texts = {f"output_{side + 1}": ["x" * n for n in lengths[:, side]] for side in (0, 1)}
            won = {"instruction": [str(row) for row in range(rows)], "preference": 1.0 + (draw.random(rows) < rate)}
            told = length_controlled_win_rate(pd.DataFrame(won | texts), model="length_controlled_minimal")
            hits += told.low <= 100 * rate <= told.high
            widths.append(told.high - told.low)
        found[f"{rows} rows, {100 * rate:.0f} %"] = {"covered": hits / runs, "narrowest": min(widths), "runs": runs}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, time, simulate, and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400, help="simulations of the interval's coverage")
    parser.add_argument("--rounds", type=int, default=7, help="timed fits of each")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        reference, module = bundle(folder, 1), official(folder)
        agree: dict[str, Any] = {}
        for seed, (name, judge) in enumerate(JUDGES.items()):
            table = judged(reference, judge, seed)
            table.loc[table.index[seed::97], "preference"] = math.nan
            for model in module.GLM_INFO:
                agree[f"{name}, {model}"] = compare(module, reference, table, model, folder)
                print(name, model, agree[f"{name}, {model}"])
        table = judged(reference, JUDGES["likes long answers"], 0)
        found = {"official": _version(), "agreement": agree}
        found["largest_difference"] = max(one["largest_difference"] for one in agree.values())
        found["files"] = through_files(module, reference, table, folder)
        found["processor_seconds_805_rows"] = timed(module, reference, table, options.rounds)
        found["coverage"] = coverage(options.runs, folder / "coverage")
        found["coverage_near_even"] = near_even(options.runs // 2)
    keep("length_control.json", found)


def _version() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("alpaca-eval", "scikit-learn")}


if __name__ == "__main__":
    main(sys.argv[1:])
