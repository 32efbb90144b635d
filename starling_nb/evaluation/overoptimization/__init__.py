"""When more of a reward makes answers worse: what is optimised beside what judges, over the divergence from the start.

The *proxy* is what chose or trained; *gold* are measures that did neither: the rubric, a judge, a reward model that
learned from other labels. Two ways of optimising are watched: the best of n answers, and checkpoints of a run. All is
computed from tables of answers, one row an answer: prompt_id, a column a measure, and for a run kl (nats).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.overoptimization.fits import Floats, Form, Stop, fit, stop
from starling_nb.evaluation.tables import need
from starling_nb.policy.offline.baselines import best_of_n, best_of_n_kl
from starling_nb.stats import mean_interval


@dataclass(frozen=True)
class Curve:
    """One way of optimising, measured at growing divergence.

    Attributes:
        way: its name; form: the published curve that is fitted to it.
        points: what each point is; kl: its divergence from the start, nats.
        gains: measure → gain over the start ``[prompts, points]``, in the measure's own unit.
        prompts: the prompts, in the order of the rows.
        left_out: answers that a measure failed on, and prompts that had too few others.
    """

    way: str
    form: Form
    points: tuple[str, ...]
    kl: Floats
    gains: Mapping[str, Floats]
    prompts: tuple[str, ...]
    left_out: Mapping[str, int]

    @property
    def d(self) -> Floats:
        """√KL of the points, √nats."""
        found: Floats = np.sqrt(self.kl)
        return found

    def table(self, units: Mapping[str, float] | None = None) -> pd.DataFrame:
        """One row a measure and point: way, measure, point, kl, d, gain, low, high, n, fitted.

        ``units`` divides a measure's gains, say by :func:`spread`, so that several fit one axis.
        """
        rows = []
        for measure, gains in self.gains.items():
            own = gains / (units or {}).get(measure, 1.0)
            fitted = fit(self.form, self.d, own).at(self.d)
            for place, point in enumerate(self.points):
                gain = mean_interval(own[:, place])
                told = {"way": self.way, "measure": measure, "point": point, "kl": self.kl[place], "d": self.d[place]}
                found = {"gain": gain.value, "low": gain.low, "high": gain.high, "n": gain.n}
                rows.append(told | found | {"fitted": float(fitted[place])})
        return pd.DataFrame(rows)


def whole(answers: pd.DataFrame, measures: Sequence[str], least: int = 1) -> tuple[pd.DataFrame, dict[str, int]]:
    """The answers that every measure judged, of prompts that have ``least`` such answers, and what was left out.

    Raises:
        EvaluationError: a column is missing, an answer is there twice (columns prompt_id and sample, where there), or
            nothing is left.
    """
    need(answers, ["prompt_id", *measures], "the answers")
    if "sample" in answers and answers.duplicated(["prompt_id", "sample"]).any():
        raise EvaluationError("an answer is there twice: keep one row a prompt and sample")
    judged = answers[np.isfinite(answers[list(measures)].to_numpy(dtype=float)).all(1)]
    enough = judged.groupby("prompt_id")["prompt_id"].transform("size") >= least
    kept = judged[enough]
    if kept.empty:
        raise EvaluationError(f"no prompt has {least} answers that every measure judged: sample more, or ask for less")
    prompts = answers.prompt_id.nunique() - kept.prompt_id.nunique()
    return kept, {"answers": len(answers) - len(judged), "prompts": prompts}


def chosen(answers: pd.DataFrame, proxy: str, measures: Sequence[str], ns: Sequence[int]) -> Curve:
    """Gains of the best of n answers by ``proxy``, over one answer, for each n.

    Each is the mean over all choices of n of a prompt's answers
    (:func:`starling_nb.policy.offline.baselines.best_of_n`), not over some drawn ones; the divergence is
    log n − (n − 1) / n, an upper bound (Beirami et al. 2024, arXiv 2401.01879).

    Args:
        answers: of the start model, at least the largest n a prompt.
        proxy: the measure that chooses, itself among ``measures``.
        measures: columns to follow.
        ns: numbers of answers, 2 or more.

    Raises:
        EvaluationError: fewer than two different n, one below 2, or as :func:`whole`.
    """
    numbers = sorted(set(ns))
    if len(numbers) < 2 or numbers[0] < 2:
        raise EvaluationError(f"ns = {list(ns)}: give two different numbers of answers or more, each from 2")
    kept, left_out = whole(answers, list(dict.fromkeys([proxy, *measures])), numbers[-1])
    rows: dict[str, list[list[float]]] = {measure: [] for measure in measures}
    groups = list(kept.groupby("prompt_id", sort=True))
    for _, own in groups:
        by = own[proxy].to_numpy(dtype=float)
        for measure in measures:
            worth = own[measure].to_numpy(dtype=float)
            rows[measure].append([best_of_n(by, worth, n) - worth.mean() for n in numbers])
    return Curve(
        "best of n",
        "best_of_n",
        tuple(f"n = {n}" for n in numbers),
        np.array([best_of_n_kl(n) for n in numbers]),
        {measure: np.array(values) for measure, values in rows.items()},
        tuple(str(name) for name, _ in groups),
        left_out,
    )


def run(
    start: pd.DataFrame, checkpoints: Mapping[str, pd.DataFrame], measures: Sequence[str], way: str = "rl"
) -> Curve:
    """Gains of a run's checkpoints over the start, paired by prompt, in order of their divergence.

    Args:
        start: answers of the start model.
        checkpoints: name → answers of that policy to the same prompts, with a column kl (nats from the start).
        measures: columns to follow.
        way: name of the run.

    Raises:
        EvaluationError: fewer than two checkpoints, prompts that do not match, a checkpoint that is the start itself,
            or as :func:`whole`.
    """
    if len(checkpoints) < 2:
        raise EvaluationError(f"{len(checkpoints)} checkpoints: a curve needs two or more beside the start")
    tables = {"the start": start, **checkpoints}
    kept = {}
    left_out = {"answers": 0, "prompts": 0}
    for name, table in tables.items():
        if set(table.prompt_id) != set(start.prompt_id):
            raise EvaluationError(f"{name} answered other prompts than the start: measure all on the same prompts")
        columns = [*measures] if name == "the start" else [*measures, "kl"]
        kept[name], lost = whole(table, columns)
        left_out["answers"] += lost["answers"]
    means = {name: table.groupby("prompt_id")[list(measures)].mean() for name, table in kept.items()}
    shared = sorted(set.intersection(*(set(mean.index) for mean in means.values())))
    if not shared:
        raise EvaluationError("no prompt was judged at every checkpoint: look at what failed")
    left_out["prompts"] = start.prompt_id.nunique() - len(shared)
    kl = {name: float(kept[name].groupby("prompt_id").kl.mean()[shared].mean()) for name in checkpoints}
    order = sorted(checkpoints, key=lambda name: kl[name])
    first = means["the start"].loc[shared]
    gains = {
        measure: np.stack([(means[name].loc[shared, measure] - first[measure]).to_numpy() for name in order], axis=1)
        for measure in measures
    }
    return Curve(way, "rl", tuple(order), np.array([kl[name] for name in order]), gains, tuple(shared), left_out)


def monitor(curve: Curve, seed: int = 0) -> dict[str, Stop]:
    """Measure → whether and where it turned; intervals over prompts, each measure on its own."""
    return {measure: stop(curve.form, curve.d, gains, seed) for measure, gains in curve.gains.items()}


def verdicts(curve: Curve, seed: int = 0) -> pd.DataFrame:
    """The monitor's findings, one row a measure, in the measure's own unit.

    Columns: way, measure, alpha, alpha_low, alpha_high, beta and slope likewise, peak (√nats) likewise, fall likewise
    (from the point next to the peak to the last), seen (√nats), n, verdict, said.
    """
    rows = []
    for measure, found in monitor(curve, seed).items():
        row: dict[str, object] = {"way": curve.way, "measure": measure}
        parts = {**{name: getattr(found.fit, name) for name in ("alpha", "beta", "slope", "peak")}, "fall": found.fall}
        for name, value in parts.items():
            row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        rows.append(row | {"seen": found.fit.seen, "n": found.fall.n, "verdict": found.verdict, "said": str(found)})
    return pd.DataFrame(rows)


def spread(answers: pd.DataFrame, measures: Sequence[str]) -> dict[str, float]:
    """Standard deviation of each measure over answers to one prompt, a unit in which measures can be compared.

    Raises:
        EvaluationError: one answer a prompt, a measure that is the same for all answers of every prompt, or as
            :func:`whole`.
    """
    kept, _ = whole(answers, measures, 2)
    groups = kept.groupby("prompt_id")
    freedom = len(kept) - groups.ngroups
    found = {}
    for measure in measures:
        within = kept[measure] - groups[measure].transform("mean")
        found[measure] = float(np.sqrt((within**2).sum() / freedom))
        if found[measure] == 0:
            raise EvaluationError(f"{measure} is the same for all answers of every prompt: it measures nothing here")
    return found
