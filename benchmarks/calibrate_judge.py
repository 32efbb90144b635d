"""Fit the simulated judge to what real GPT-4 logs say of a judge's weaknesses.

    python -m benchmarks.calibrate_judge [--real DIR] [--length wins|regression]

Targets are the aggregates in ``data/published``: shown position x rank for every prompt variant with logs, how far a
judge agrees with itself, and how often the longer answer wins. They are matched on this project's own answers by
simulation with common random numbers. Writes ``data/judge_calibration.json``, and achieved against target to
``benchmarks/results/judge_calibration.json``. With ``--real`` the counts are checked against the logs, and rankings are
regressed on length and self-preference; without it those regressions are kept from the last run.

In GPT-4's logs the longer answer wins 70 % of pairs, but better answers are longer there. In ours quality and length
hardly go together, so one judge cannot repeat both that share (``--length wins``) and the coefficient of length among
answers alike in model and wording (``--length regression``). The results file tells what each costs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize
from scipy import stats as scipy_stats

from benchmarks import judge_logs
from benchmarks.judge_simulation import MINI, Answers, agreement, judge, load_answers, word_regression
from starling_nb import files, stats
from starling_nb.errors import StarlingError
from starling_nb.judge.simulation import Calibration

Floats = NDArray[np.float64]
RESULTS = files.ROOT / "benchmarks" / "results" / "judge_calibration.json"
BANDS = {"retest_tau": (0.79, 0.84), "other_order_tau": (0.45, 0.56), "longer_wins": (0.65, 0.75)}
AIMS = {"retest_tau": 0.815, "other_order_tau": 0.505}
LONGER_WINS = 0.651  # the near end of its band, which leaves most to quality
IN_ORDER = ("pairwise_fixed_order",)  # the variants whose table is rejected without a share ranked as shown
# The variants whose first places ask for more than position and contrast.
TOP = ("final", "naive", "pairwise", "pairwise_fixed_order")
SELF_PREFERENCE = 0.5  # assumed: no more than the excess over placebos that the logs allow
SHRINK = 0.5  # individual_scores has no logs: half the effects of naive
SPLIT = np.vstack([np.eye(6), -np.ones(6)])  # six free numbers to seven that sum to zero


def with_scalars(calibration: Calibration, values: ArrayLike) -> Calibration:
    """``values`` are scale, length and the call's share of the noise variance, which is one in all."""
    scale, length, share = (float(x) for x in np.asarray(values))
    return replace(
        calibration, scale=scale, length=length, order_noise=float(np.sqrt(1 - share)), call_noise=float(np.sqrt(share))
    )


def fit_scalars(answers: Answers, start: Calibration, aims: Mapping[str, float], rounds: int = 20) -> Calibration:
    """Scale, length and noises at which the simulation shows the three ``aims``."""

    def gaps(x: Floats) -> list[float]:
        trial = with_scalars(start, x)
        found = {name: float(values.mean()) for name, values in agreement(answers, trial, rounds).items()}
        if "length_coefficient" in aims:
            found["length_coefficient"] = word_regression(answers, trial)["length"]["value"]
        return [found[name] - aim for name, aim in aims.items()]

    x = [start.scale, start.length, start.call_noise**2]
    limits = ([0.2, 0.01, 0.005], [8.0, 8.0, 0.6])
    return with_scalars(start, optimize.least_squares(gaps, x, bounds=limits, diff_step=0.05, max_nfev=12).x)


@dataclass(frozen=True)
class Arm:
    """What the logs say of one variant."""

    variant: str
    table: Floats  # position x rank, shares
    n: int
    first: Floats  # first places of rankings that the table does not hold, shares
    first_weight: Floats  # their precision [7, 7]

    @property
    def free(self) -> int:
        """Number of fitted effects."""
        return 12 + (self.variant in IN_ORDER) + 6 * (self.variant in TOP)


def load_arms() -> dict[str, Arm]:
    """Every variant with logs; two runs of one prompt count as one of mean counts."""
    more = files.read_json(files.DATA / "published" / "position_first_place.json")
    runs: dict[str, list[Floats]] = {}
    for arm in judge_logs.published():
        runs.setdefault(arm["variant"], []).append(np.array(arm["counts"], dtype=float))
    arms = {}
    for variant, tables in runs.items():
        whole = next(np.array(arm["counts"], dtype=float) for arm in more["arms"] if arm["variant"] == variant)
        rest = np.maximum(whole - tables[0][:, 0], 0)
        share, n, blur = rest / rest.sum(), rest.sum(), 0.0
        if variant == more["final_run"]["variant"]:
            share, n, blur = np.array(more["final_run"]["share"]), more["final_run"]["n"], judge_logs.READ_OFF**2 / 3
        p = (share + 0.02) / (share + 0.02).sum()
        weight = np.linalg.pinv((np.diag(p) - np.outer(p, p)) / n + blur * (np.eye(7) - 1 / 7), hermitian=True)
        table = np.mean([t / t[0].sum() for t in tables], axis=0)
        arms[variant] = Arm(variant, table, int(tables[0][0].sum()), share / share.sum(), weight)
    return arms


def with_effects(calibration: Calibration, variant: str, theta: Floats) -> Calibration:
    """``theta`` are position (6), log contrast (6), then ``in_order`` (1) and ``position_top`` (6) where fitted."""
    changes: dict[str, Any] = {
        "position": {**calibration.position, variant: _rounded(SPLIT @ theta[:6])},
        "contrast": {**calibration.contrast, variant: _rounded(np.exp(SPLIT @ theta[6:12]))},
    }
    if variant in IN_ORDER:
        changes["in_order"] = {**calibration.in_order, variant: round(float(np.clip(theta[12], 0, 0.5)), 4)}
    if variant in TOP:
        changes["position_top"] = {**calibration.position_top, variant: _rounded(SPLIT @ theta[-6:])}
    return replace(calibration, **changes)


def effects_of(calibration: Calibration, variant: str) -> Floats:
    """The inverse of :func:`with_effects`; zeros for a variant that has none."""
    flat = [0.0] * 7
    theta = [
        *calibration.position.get(variant, flat)[:6],
        *np.log(calibration.contrast.get(variant, [1.0] * 7))[:6],
    ]
    if variant in IN_ORDER:
        theta.append(calibration.in_order.get(variant, 0.05))
    if variant in TOP:
        theta.extend(calibration.position_top.get(variant, flat)[:6])
    return np.array(theta, dtype=float)


def fit_arm(answers: Answers, start: Calibration, arm: Arm, rounds: int = 40, steps: int = 8) -> Calibration:
    """Minimum chi-square by Gauss-Newton over one variant's effects; a weak ridge holds what the table hardly tells."""
    in_order, top = int(arm.variant in IN_ORDER), 6 * int(arm.variant in TOP)
    ridge = np.array([0.02] * 6 + [1.0] * 6 + [0.0] * in_order + [1.0] * top)
    widths = np.array([0.15] * 12 + [0.03] * in_order + [0.15] * top)

    def moments(theta: Floats) -> Floats:
        return judge(answers, with_effects(start, arm.variant, theta), arm.variant, rounds).one_hot

    theta, best = effects_of(start, arm.variant), (np.inf, start)
    for _ in range(steps):
        rows = moments(theta)
        weight = np.linalg.pinv(np.cov(rows.T) / arm.n, rcond=1e-6, hermitian=True)
        weight[::7, ::7] += arm.first_weight  # cells of rank 0 stand at every seventh place
        gap = arm.table.ravel() - rows.mean(0)
        extra = arm.first - arm.table[:, 0]
        pull = weight @ gap
        pull[::7] += arm.first_weight @ extra
        loss = gap @ weight @ gap + 2 * gap[::7] @ arm.first_weight @ extra + ridge @ theta**2
        if loss < best[0]:
            best = (loss, with_effects(start, arm.variant, theta))
        slope = np.stack(
            [
                (moments(theta + width * e).mean(0) - moments(theta - width * e).mean(0)) / (2 * width)
                for width, e in zip(widths, np.eye(len(theta)), strict=True)
            ],
            axis=1,
        )
        step = np.linalg.solve(slope.T @ weight @ slope + np.diag(ridge), slope.T @ pull - ridge * theta)
        theta = theta + np.clip(step, -0.5, 0.5)
    return best[1]


def _rounded(values: Floats) -> list[float]:
    return [round(float(x), 4) for x in values]


def calibrate(answers: Answers, aims: Mapping[str, float], rounds: int = 3) -> Calibration:
    """All parameters: scalars and the final variant's effects by turns, then the other variants'."""
    arms = load_arms()
    found = with_scalars(
        Calibration(scale=1, length=0, self_preference=SELF_PREFERENCE, order_noise=1, call_noise=0, position={}),
        [1.5, 2.0, 0.15],
    )
    for _ in range(rounds):
        found = fit_arm(answers, fit_scalars(answers, found, aims), arms["final"], rounds=80, steps=5)
    found = fit_scalars(answers, found, aims)
    found = with_scalars(found, np.round([found.scale, found.length, found.call_noise**2], 3))
    for variant in sorted(set(arms) - {"final"}):
        found = fit_arm(answers, found, arms[variant])

    def halved(table: Mapping[str, Sequence[float]], logs: bool = False) -> dict[str, Sequence[float]]:
        row = np.log(table["naive"]) if logs else np.array(table["naive"])
        return {**table, "individual_scores": _rounded(np.exp(SHRINK * row) if logs else SHRINK * row)}

    return replace(
        found,
        position=halved(found.position),
        position_top=halved(found.position_top),
        contrast=halved(found.contrast, logs=True),
        origin="fitted by benchmarks/calibrate_judge.py to aggregates of the authors' GPT-4 logs (data/published) on "
        "the answers of data/nectar_mini.parquet; slip as counted in the same logs",
        assumed=["self_preference", "individual_scores"],
    )


def arm_report(answers: Answers, calibration: Calibration, arm: Arm, rounds: int = 100) -> dict[str, Any]:
    """How well one variant's table and first places are met, on orders that the fit has not seen."""
    rows = judge(answers, calibration, arm.variant, rounds, order="check").one_hot
    chance = rows.mean(0)
    gap = arm.table.ravel() - chance
    chi2 = float(arm.n * gap @ np.linalg.pinv(np.cov(rows.T), rcond=1e-6, hermitian=True) @ gap)
    found = agreement(answers, calibration, 20, arm.variant)
    first = [
        {**limits, "simulated": round(float(p), 4), "met": bool(limits["low"] <= p <= limits["high"])}
        for p, limits in zip(chance[::7], judge_logs.first_place_limits(arm.variant), strict=True)
    ]
    return {
        "variant": arm.variant,
        "n": arm.n,
        "chi2": round(chi2, 1),
        "p": round(float(scipy_stats.chi2.sf(chi2, 36)), 4),
        "p_less_fitted": round(float(scipy_stats.chi2.sf(chi2, 36 - arm.free)), 4),
        "met": bool(scipy_stats.chi2.sf(chi2, 36) > 0.01),
        "first_place": first,
        **{name: round(float(found[name].mean()), 3) for name in BANDS},
    }


def report(answers: Answers, calibration: Calibration, logs: Mapping[str, Any]) -> dict[str, Any]:
    """Achieved against target."""
    ids = [item.prompt.id for item in answers.candidates]
    found = {k: stats.mean_interval(v, ids) for k, v in agreement(answers, calibration, 100).items()}
    words, real = word_regression(answers, calibration), logs["judge"]["length"]
    targets = {
        name: {
            "low": low,
            "high": high,
            "simulated": _short(found[name].as_dict()),
            "met": bool(low <= found[name].value <= high),
        }
        for name, (low, high) in BANDS.items()
    }
    low, high = (round(real["value"] + side * 1.96 * real["se"], 3) for side in (-1, 1))
    inside = bool(low <= words["length"]["value"] <= high)
    return {
        "fingerprint": calibration.fingerprint,
        "targets": targets,
        "length_coefficient": {"low": low, "high": high, "simulated": words["length"], "met": inside},
        "arms": [arm_report(answers, calibration, arm) for arm in load_arms().values()],
        "judge_and_rubric": {name: _short(found[name].as_dict()) for name in ("rubric_tau", "rubric_best_first")},
    }


def _short(values: Mapping[str, float | int | None]) -> dict[str, float | int | None]:
    return {name: round(x, 4) if isinstance(x, float) else x for name, x in values.items()}


def check_counts(folder: Path) -> None:
    """Compare the committed counts with the logs.

    Raises:
        StarlingError: a table differs.
    """
    rankings, _ = judge_logs.read(folder)
    for arm in judge_logs.published():
        if judge_logs.counts(rankings, arm["experiment"]) != arm["counts"]:
            raise StarlingError(f"the counts of {arm['experiment']} in data/published differ from the logs in {folder}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, write both files, print the comparison."""
    parser = argparse.ArgumentParser(description="fit the simulated judge to GPT-4's ranking logs")
    parser.add_argument("--real", type=Path, help="folder that holds nectar_experiments/*.parquet")
    parser.add_argument("--answers", type=Path, default=MINI, help="Nectar parquet, or a JSON pool of answers")
    parser.add_argument("--length", choices=("wins", "regression"), default="wins", help="what the length term meets")
    options = parser.parse_args(arguments)
    if options.real:
        check_counts(options.real)
    logs = judge_logs.self_preference(options.real) if options.real else files.read_json(RESULTS)["word_regression"]
    answers = load_answers(options.answers)
    ways = {
        "wins": {"longer_wins": LONGER_WINS},
        "regression": {"length_coefficient": logs["judge"]["length"]["value"]},
    }
    fits = {name: calibrate(answers, {**AIMS, **way}) for name, way in ways.items()}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=files.ROOT)
    chosen = fits.pop(options.length)
    results = {
        "commit": commit.stdout.strip(),
        "answers": answers.fingerprint,
        "length": options.length,
        "word_regression": logs,
        **report(answers, chosen, logs),
        "alternative": [{"length": k, "calibration": asdict(v), **report(answers, v, logs)} for k, v in fits.items()],
    }
    files.write_json(files.DATA / "judge_calibration.json", asdict(chosen))
    files.write_json(RESULTS, results)
    print(json.dumps({k: results[k] for k in ("targets", "length_coefficient", "judge_and_rubric")}, indent=1))
    for arm in results["arms"]:
        print({k: v for k, v in arm.items() if k != "first_place"}, [x["met"] for x in arm["first_place"]])


if __name__ == "__main__":
    main()
