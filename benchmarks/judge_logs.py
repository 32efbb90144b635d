"""What the released GPT-4 ranking logs say beyond counts: tables recomputed, and what words alone explain.

The logs are those of ``nectar/ratings/results`` in the authors' repository, stored as three parquet files
(``rankings``, ``responses``, ``prompts``) in a folder ``nectar_experiments``. No text leaves this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from starling_nb import files, stats
from starling_nb.bias import position_by_rank
from starling_nb.bias.plackett_luce import Design, fit
from starling_nb.errors import StarlingError
from starling_nb.judge.simulation import count_words, overlap

JUDGE = "gpt-4-0613"
PLACEBOS = ("gpt-4", "gpt-3.5-turbo", "gpt-3.5-turbo-instruct", "mistral-7b-instruct-v0.1")
RARE = 100  # answering models with fewer answers share one effect
TERMS = ("length", "own", "others")
READ_OFF = 0.002  # how far a share that was read off a plot may be from the truth


@dataclass(frozen=True)
class Ranked:
    """One answer of a ranking: where it was shown, who wrote it, and three numbers of its words."""

    position: int
    model: str
    length: float  # natural log of words
    own: float  # word overlap (F1) with the judge's own answer to the prompt
    others: float  # mean word overlap with the row's remaining answers


def published() -> list[dict[str, Any]]:
    """The arms of ``data/published/position_by_rank.json``."""
    arms: list[dict[str, Any]] = files.read_json(files.DATA / "published" / "position_by_rank.json")["arms"]
    return arms


def first_place_limits(variant: str) -> list[dict[str, float]]:
    """Wilson intervals of the logs' first-place shares; the final run's are widened by what the plot leaves open."""
    source = files.read_json(files.DATA / "published" / "position_first_place.json")
    run, slack = source["final_run"], READ_OFF
    wins = [round(share * run["n"]) for share in run["share"]]
    if variant != run["variant"]:
        wins, slack = next(arm["counts"] for arm in source["arms"] if arm["variant"] == variant), 0.0
    intervals = [stats.proportion_interval(k, max(sum(wins), run["n"] if slack else 0)) for k in wins]
    return [
        {"real": round(i.value, 4), "low": round(i.low - slack, 4), "high": round(i.high + slack, 4)} for i in intervals
    ]


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Valid rankings of seven answers, and the answers by ``response_id``.

    Raises:
        StarlingError: the folder does not hold the logs.
    """
    try:
        rankings = pd.read_parquet(folder / "nectar_experiments" / "rankings.parquet")
        answers = pd.read_parquet(folder / "nectar_experiments" / "responses.parquet")
    except OSError as error:
        raise StarlingError(f"{folder} does not hold the GPT-4 logs (nectar_experiments/*.parquet): {error}") from error
    rankings = rankings[(rankings.k == 7) & rankings.valid_permutation]
    return rankings.rename(columns={"ranking_order": "ranking"}), answers.set_index("response_id")


def counts(rankings: pd.DataFrame, experiment: str) -> list[list[int]]:
    """Shown position x rank of one experiment."""
    table: list[list[int]] = position_by_rank(rankings[rankings.experiment == experiment]).to_numpy().tolist()
    return table


def ranked_rows(rankings: pd.DataFrame, answers: pd.DataFrame, own: str = JUDGE) -> list[tuple[str, list[Ranked]]]:
    """(prompt, answers best to worst) of every ranking that shows ``own``'s answer, which is left out itself."""
    text, model = answers.response.to_dict(), answers.model.to_dict()
    rows = []
    for prompt, ids, ranking in zip(rankings.prompt_id, rankings.response_ids, rankings.ranking, strict=True):
        models = [model[i] for i in ids]
        if own in models and JUDGE in models:
            texts = [text[i] for i in ids]
            reference = models.index(own)
            rows.append((str(prompt), describe(texts, models, ranking, texts[reference], skip=[reference])))
    return rows


def describe(
    texts: Sequence[str], models: Sequence[str], ranking: Sequence[int], own: str, skip: Sequence[int]
) -> list[Ranked]:
    """The answers of one ranking, best to worst, without those at the shown positions ``skip``."""
    left = [int(p) for p in ranking if p not in skip]
    table = {p: {q: overlap(texts[p], texts[q]) for q in left if q != p} for p in left}
    return [
        Ranked(
            p,
            models[p],
            float(np.log(max(count_words(texts[p]), 1))),
            overlap(texts[p], own),
            float(np.mean(list(table[p].values()))),
        )
        for p in left
    ]


def regress(rows: Sequence[tuple[str, Sequence[Ranked]]]) -> dict[str, dict[str, float]]:
    """Plackett-Luce regression of rankings on position, answering model and :data:`TERMS`.

    The fit is the one of :func:`starling_nb.bias.position_effects` with three more columns; standard errors are
    clustered by prompt.

    Returns:
        ``{term: {"value", "se"}}``, logits a unit, and under ``n`` the number of rankings and prompts.
    """
    seen = Counter(answer.model for _, answers in rows for answer in answers)
    names = [name for name, n in seen.items() if n >= RARE]
    shape = len(rows), max(len(answers) for _, answers in rows)
    place, who, terms = np.zeros(shape, int), np.full(shape, len(names)), np.zeros((*shape, len(TERMS)))
    mask = np.zeros(shape, dtype=bool)
    for i, (_, answers) in enumerate(rows):
        for j, answer in enumerate(answers):
            mask[i, j], place[i, j] = True, answer.position
            who[i, j] = names.index(answer.model) if answer.model in names else len(names)
            terms[i, j] = answer.length, answer.own, answer.others
    fitted = fit(Design(mask, [(place, 7), (who, len(names) + 1)], [terms]))
    prompts, cluster = np.unique([prompt for prompt, _ in rows], return_inverse=True)
    pull = fitted.influence(cluster)[:, -len(TERMS) :]
    theta, errors = fitted.theta, np.sqrt((pull**2).sum(0) * len(prompts) / (len(prompts) - 1))
    found = {
        term: {"value": round(float(value), 3), "se": round(float(se), 3)}
        for term, value, se in zip(TERMS, theta[-3:], errors, strict=True)
    }
    return found | {"n": {"rankings": float(len(rows)), "prompts": float(len(prompts))}}


def self_preference(folder: Path) -> dict[str, Any]:
    """Whether the judge prefers its own words, beyond what any capable model's words would earn.

    Rankings are regressed on the overlap with the judge's own answer, and, as placebos, with other models' answers.
    Overlap with a good answer is also a sign of being right; what is the judge's own is only the excess over the
    placebos. ``identified`` says whether that excess is more than two standard errors from zero.
    """
    rankings, answers = read(folder)
    arms = [arm["experiment"] for arm in published() if not arm["experiment"].endswith("_2")]
    rankings = rankings[rankings.experiment.isin(arms)]
    judge = regress(ranked_rows(rankings, answers))
    placebos = {name: regress(ranked_rows(rankings, answers, name))["own"] for name in PLACEBOS}
    excess = judge["own"]["value"] - float(np.mean([fit["value"] for fit in placebos.values()]))
    se = float(np.hypot(judge["own"]["se"], _spread(placebos)))
    return {
        "what": "Plackett-Luce regression of real rankings on position, answering model, log words, overlap with the "
        "judge's own answer (left out itself) and mean overlap with the other answers; sandwich errors over prompts",
        "judge": judge,
        "placebo_own": placebos,
        "excess": {"value": round(excess, 3), "se": round(se, 3)},
        "identified": bool(abs(excess) > 2 * se),
    }


def _spread(placebos: Mapping[str, Mapping[str, float]]) -> float:
    """Standard error of the placebos' mean, from how much they differ."""
    return float(np.std([fit["value"] for fit in placebos.values()], ddof=1) / np.sqrt(len(placebos)))
