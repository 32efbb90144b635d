"""What the authors' GPT-4 logs say about position: every arm measured, corrected, and held against the published ranks.

    STARLING_NB_REAL_DATA=FOLDER python -m benchmarks.bias_real_logs

``FOLDER/nectar_experiments`` holds the logs as :func:`starling_nb.bias.read_logs` wants them. All arms share one shown
order a prompt, so they are compared prompt by prompt. The published rank of an answer comes from the final data set,
which was judged in orders of its own: agreement with it is agreement with an independently ordered label. Corrections
are cross-fitted: no ranking is corrected by effects that it helped to estimate. Aggregates only are written, to
``benchmarks/results/bias_real_logs.json``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import records
from starling_nb import bias, stats
from starling_nb.bias.correction import cross_corrected
from starling_nb.bias.reliability import agreement, kendall, pair_agreement, read_follow_ups
from starling_nb.bias.tables import Ints
from starling_nb.errors import StarlingError

SPREADS = (0.5, 1.0, 2.0)
"""Priors of the correction, logits: one ranking a prompt does not tell which is right."""
PLAIN, TIES = "naive", "random_tie_break"


def arm(table: pd.DataFrame) -> dict[str, Any]:
    """One judge prompt: first places, mean ranks, and effects by every estimand."""
    test, chi2 = bias.order_test(table), bias.first_place_test(table)
    found = {
        "n": len(table),
        "first_place_chi2": chi2[0],
        "first_place_p": chi2[1],
        "permutation_p_mean_rank": test.mean_rank[1],
        "permutation_p_first_place": test.first_place[1],
        "friedman_chi2": test.mean_rank[0],
        "mean_rank": bias.mean_rank(table).round(3).to_dict("list"),
    }
    estimates = {"marginal": bias.position_effects(table), "unadjusted": bias.position_effects(table, models=False)}
    estimates["top_1"] = bias.position_effects(table, top=1)
    if len(ranked := published(table)):
        estimates["conditional_on_published_rank"] = bias.position_effects(ranked, quality="quality")
    for name, effects in estimates.items():
        found[name] = effects.effects.round(3).to_dict("list") | {
            "wald": effects.wald,
            "p": effects.p,
            "spread": effects.spread,
            "n": effects.n,
            "flags": effects.flags,
        }
    found["bootstrap_over_sandwich"] = (
        bias.bootstrap_errors(table) / estimates["marginal"].effects["se"].to_numpy()
    ).round(2)
    found["bootstrap_over_sandwich"] = found["bootstrap_over_sandwich"].tolist()
    need = bias.needed(estimates["marginal"])
    return found | {"labels_for_a_fifth_of_a_logit": need.labels, "detectable_logits": need.detectable}


def published(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose answers all have a published rank, as ``quality``: higher is better."""
    whole = [row is not None and np.isfinite(np.asarray(row, dtype=float)).all() for row in table["nectar_ranks"]]
    kept = table[whole]
    return kept.assign(quality=[(-np.asarray(row, dtype=float)).tolist() for row in kept["nectar_ranks"]])


def taus(table: pd.DataFrame, ranks: Ints) -> pd.Series:
    """Kendall tau of ranks ``[n, 7]`` in shown order with the published ones, by prompt."""
    theirs = np.array([np.argsort(np.argsort(-np.asarray(row))) for row in table["quality"]])
    return pd.Series(kendall(ranks, theirs, np.full(len(table), 7)), index=table["prompt_id"].to_numpy())


def corrected(table: pd.DataFrame, spread: float) -> Ints:
    """Corrected ranks ``[n, 7]`` in shown order."""
    read = bias.read(table, "prompt_id", "models")
    place = np.broadcast_to(np.arange(7), (len(table), 7))
    found = cross_corrected(read, spread=spread, answer=place)
    return np.argsort(found.order[read.prompt], axis=1)


def against_published(arms: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Agreement with the independently ordered label: arms as they are, arms corrected, paired differences."""
    raw: dict[str, pd.Series] = {}
    found: dict[str, Any] = {}
    for name, table in arms.items():
        if not len(table := published(table)):
            continue
        ranks = np.array([np.argsort(row) for row in table["ranking"]])
        raw[name] = taus(table, ranks)
        row: dict[str, Any] = {"tau": stats.mean_interval(raw[name].to_numpy()).as_dict()}
        for spread in SPREADS:
            gain = taus(table, corrected(table, spread)) - raw[name]
            row[f"corrected_minus_raw, spread {spread}"] = stats.mean_interval(gain.to_numpy()).as_dict()
        found[name] = row
    for name, values in raw.items():
        for other in (PLAIN, TIES):
            gap = (values - raw[other]).dropna()
            found[name][f"minus_{other}"] = stats.mean_interval(gap.to_numpy()).as_dict() if name != other else None
    return found


def paired(arms: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Every arm's position effects less the plain prompt's, on the prompts of both."""
    plain = bias.position_effects(arms[PLAIN])
    found = {}
    for name, table in arms.items():
        if set(table["prompt_id"]) & set(arms[PLAIN]["prompt_id"]) and name != PLAIN:
            gap = bias.difference(bias.position_effects(table), plain)
            found[name] = gap.effects.round(3).to_dict("list") | {"wald": gap.wald, "p": gap.p, "prompts": gap.prompts}
    return found


def lengths(folder: Path) -> dict[str, Any]:
    """K from 2 to 7 on the same prompts: front-to-back trend, and verdicts on two answers alone."""
    rankings, verdicts = read_follow_ups(folder)
    found: dict[str, Any] = {}
    for experiment, table in rankings.groupby("experiment"):
        trends = bias.by_length(table)
        asked = verdicts[verdicts["experiment"] == experiment]
        keys = ["experiment", "k", "prompt_id"]
        by_k = [
            {"k": int(k), **pair_agreement(table[table["k"] == k], part, keys).query("by == 'rank'").iloc[0].to_dict()}
            for k, part in asked.groupby("k")
        ]
        found[str(experiment)] = {
            "trend_by_k": trends.table.round(3).to_dict("list"),
            "same_trend_p": trends.p,
            "adjacent_verdicts_by_k": by_k,
            "adjacent_verdicts_by_shown_distance": pair_agreement(table, asked, keys)
            .query("by == 'shown'")
            .to_dict("records"),
        }
    return found


def repeats(arms: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The same prompt asked twice in the same shown order; and another judge prompt in the same order."""
    found = {}
    for name, one, other in [
        ("same judge prompt", "static_tie_break", "static_tie_break_again"),
        ("plain against random tie-break", PLAIN, TIES),
    ]:
        both = (arms[key].assign(answers=[list(ids) for ids in arms[key]["response_ids"]]) for key in (one, other))
        result = agreement(*both)
        found[name] = {"tau": result.tau.as_dict(), "same_winner": result.same_winner.as_dict(), "pairs": result.pairs}
    return found


def run(folder: Path) -> dict[str, Any]:
    """All of it."""
    arms = bias.read_logs(folder)
    return {
        "what": "positional bias in the authors' GPT-4 ranking logs (part of the rows), aggregates",
        "origin": "github.com/efrick2002/Starling, commit 097e427, nectar/ratings/results",
        "arms": {name: arm(table) for name, table in arms.items()},
        "less_the_plain_prompt": paired(arms),
        "agreement_with_published_rank": against_published(arms),
        "repeats": repeats(arms),
        "by_number_of_answers": lengths(folder),
    }


if __name__ == "__main__":
    root = os.environ.get("STARLING_NB_REAL_DATA")
    if not root:
        raise StarlingError("set STARLING_NB_REAL_DATA to the folder that holds nectar_experiments")
    records.keep("bias_real_logs.json", run(Path(root) / "nectar_experiments"))
