"""The blog's claims beside what a run of ours shows, and what the published evidence can show at all.

Nothing is decided by eye. A claim says where our number has to lie, and its interval decides: wholly there is
*reproduced*, wholly elsewhere is *not*, and anything between is *not testable at this scale*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import norm

from starling_nb import claims as rules
from starling_nb import files
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.published import START, TUNED, UNITS, load, row

FIELDS = (
    "id",
    "claim",
    "published",
    "low",
    "high",
    "unit",
    "source",
    "metric",
    "rule",
    "bound",
    "floor",
    "min_n",
    "on",
)
RULES = {
    "above": "reproduced: interval above the bound; not: interval below the floor, the least that would matter",
    "below": "reproduced: interval below the bound; not: interval above the floor",
    "not above": "reproduced: interval below the floor or at it; not: interval above the bound",
    "within": "reproduced: interval within ± bound; not: interval outside",
}
VERDICTS = ("reproduced", "not", "not testable at this scale")


def claims(path: Path | None = None) -> pd.DataFrame:
    """Each claim with its published number, NaN where the blog gives words only.

    Columns: id, claim, published, low, high, unit, source, metric (ours), rule (a name in :data:`RULES`), bound, floor,
    min_n, on (what ours is measured on), needs (what has to hold before it says anything, or None).

    Raises:
        EvaluationError: the file is no list of such rows, an id is there twice, or a rule is unknown.
    """
    path = path or files.DATA / "published" / "claims.json"
    rows = files.read_json(path)
    if not isinstance(rows, list) or not all(isinstance(one, dict) and set(FIELDS) <= set(one) for one in rows):
        raise EvaluationError(f"{path} must be a list of rows with {', '.join(FIELDS)}: restore it (git checkout)")
    table = pd.DataFrame([[one[name] for name in FIELDS] for one in rows], columns=list(FIELDS))
    if table.id.duplicated().any() or not set(table["rule"]) <= set(RULES):
        raise EvaluationError(f"{path}: every claim needs an id of its own and a rule of {', '.join(RULES)}")
    table[["published", "low", "high"]] = table[["published", "low", "high"]].astype(float)
    return table.assign(needs=[one.get("needs") for one in rows])


def against(metrics: Mapping[str, Mapping[str, Any]], table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Target against obtained: every claim beside our number from a run's ``metrics.json``.

    Columns: id, claim, published, unit, obtained, low, high, n, on, verdict (of :data:`VERDICTS`), why (what decided),
    source.
    """
    found = []
    for one in (claims() if table is None else table).to_dict("records"):
        ours = metrics.get(one["metric"]) or {}
        verdict, why = judged(one, metrics)
        numbers = {"obtained": ours.get("value"), "low": ours.get("low"), "high": ours.get("high"), "n": ours.get("n")}
        own = {name: math.nan if value is None else float(value) for name, value in numbers.items()}
        told = {name: one[name] for name in ("id", "claim", "published", "unit")}
        found.append({**told, **own, "on": one["on"], "verdict": verdict, "why": why, "source": one["source"]})
    return pd.DataFrame(found)


def judged(claim: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The verdict on one claim, and what decided it.

    A number without an interval, such as a p-value, counts as an interval of no width on the side of *reproduced* only:
    that nothing was found is no evidence that nothing is there.
    """
    small = VERDICTS[2]
    ours = metrics.get(claim["metric"]) if claim["metric"] else None
    if ours is None:
        return small, f"this run has no {claim['metric'] or 'such number'}"
    if claim.get("needs") and (missing := _unmet(claim["needs"], metrics)):
        return small, missing
    n = ours.get("n")
    if n is None or n < claim["min_n"]:
        return small, f"{n or 'no'} independent units, {claim['min_n']} are due"
    value = float(ours["value"])
    alone = ours.get("low") is None or ours.get("high") is None
    low, high = (value, value) if alone else (float(ours["low"]), float(ours["high"]))
    verdict = _verdict(claim["rule"], low, high, float(claim["bound"]), float(claim["floor"]))
    said = f"{value:.4g}, no interval" if alone else f"[{low:.4g}, {high:.4g}]"
    if alone and verdict == VERDICTS[1]:
        verdict = small
    return verdict, f"{said}, {claim['rule']} {claim['bound']:g}, n = {n:,}"


def _verdict(rule: str, low: float, high: float, bound: float, floor: float) -> str:
    yes, no = {
        "above": (low > bound, high < floor),
        "below": (high < bound, low > floor),
        "not above": (high <= floor, low > bound),
        "within": (-bound < low and high < bound, low > bound or high < -bound),
    }[rule]
    return VERDICTS[0] if yes else VERDICTS[1] if no else VERDICTS[2]


def _unmet(needs: Mapping[str, str], metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Why a claim cannot be tested, or nothing."""
    found = metrics.get(needs["metric"])
    if found is None:
        return f"this run has no {needs['metric']}"
    met = all(condition.met(float(found["value"])) for condition in rules.parse(needs["rule"]))
    return "" if met else f"{needs['why']} ({needs['metric'].split('.')[-1]} = {found['value']:.3g})"


def evidence(path: Path | None = None, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """What the blog's own differences can show, computed from its numbers and from the sizes of the benchmarks.

    Columns: metric, unit, change (tuned − start), n, se_low, se_high, z_weak and z_strong (change over the larger and
    the smaller standard error), p_weak, p_strong (two-sided), units_needed (items at which four of five repetitions
    would show the change at 5 %, at the smaller standard error) and basis. Win rates and accuracies in per cent; their
    binomial errors take the two models as independent, which paired answers are not: an upper bound.

    Raises:
        EvaluationError: the file with the noise lacks a metric.
    """
    noise = files.read_json(path or files.DATA / "published" / "noise.json")
    figures = load() if table is None else table
    start, tuned = row(figures, START), row(figures, TUNED)
    power = float(norm.ppf(0.975) + norm.ppf(0.8))
    rows = []
    for metric, unit in UNITS.items():
        if metric not in noise:
            raise EvaluationError(f"nothing is known of the noise of {metric}: restore data/published/noise.json")
        n, change = int(noise[metric]["n"]), tuned[metric] - start[metric]
        least, most = noise[metric].get("standard_errors") or [_binomial(start[metric], tuned[metric], n)] * 2
        weak, strong = change / most, change / least
        ps = {"p_weak": 2 * float(norm.sf(abs(weak))), "p_strong": 2 * float(norm.sf(abs(strong)))}
        sizes = {"metric": metric, "unit": unit, "change": change, "n": n, "se_low": least, "se_high": most}
        needed = math.ceil(n * (power / strong) ** 2)
        told = {"z_weak": weak, "z_strong": strong, **ps, "units_needed": needed, "basis": noise[metric]["source"]}
        rows.append(sizes | told)
    return pd.DataFrame(rows)


def _binomial(one: float, other: float, n: int) -> float:
    """Standard error of the difference of two independent shares, per cent."""
    return 100 * math.sqrt(sum(x / 100 * (1 - x / 100) for x in (one, other)) / n)
