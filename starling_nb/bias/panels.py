"""The blog's panels from the authors' counts, and how much fairer one prompt's first places are than another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from starling_nb import files
from starling_nb.bias.places import mean_rank_from_counts, share_from_counts
from starling_nb.bias.tables import BiasError
from starling_nb.stats import Interval, chi_square_uniform

DRAWS = 2000


def published_first_place(path: Path | None = None) -> dict[str, pd.DataFrame]:
    """First-place shares of the authors' GPT-4 logs by prompt variant, from the committed counts.

    Returns:
        variant -> ``position, share, low, high, n`` as :func:`first_place_share` gives them.
    """
    table = files.read_json(path or files.DATA / "published" / "position_first_place.json")
    return {arm["variant"]: share_from_counts(arm["counts"]) for arm in table["arms"]}


def published_ranks(path: Path | None = None) -> dict[str, NDArray[np.int64]]:
    """Counts ``[position, rank]`` of the authors' GPT-4 logs by prompt variant, the first run of each."""
    table = files.read_json(path or files.DATA / "published" / "position_by_rank.json")
    return {arm["variant"]: np.array(arm["counts"]) for arm in reversed(table["arms"])}


def published_tests() -> pd.DataFrame:
    """What the committed counts say of each prompt variant: does the first place, does the whole ranking look fair?

    Returns:
        ``variant``, ``first_chi2``, ``first_p``, ``first_n`` (Pearson, first places) and ``rank_chi2``, ``rank_p``,
        ``rank_n`` (Friedman, mean ranks). The two were counted on other parts of the logs, so their numbers differ.
    """
    rows, ranks = [], published_ranks()
    for name, shares in published_first_place().items():
        wins = (shares["share"] * shares["n"]).round()
        _, rank_chi2, rank_p = mean_rank_from_counts(ranks[name])
        rows.append((name, *chi_square_uniform(wins), int(wins.sum()), rank_chi2, rank_p, int(ranks[name][0].sum())))
    columns = ["variant", "first_chi2", "first_p", "first_n", "rank_chi2", "rank_p", "rank_n"]
    return pd.DataFrame(rows, columns=columns)


def bias_difference(one: pd.DataFrame, other: pd.DataFrame, seed: int = 0) -> Interval:
    """How much further ``one``'s first places stray from fair than ``other``'s.

    The measure is the chi-square distance per label, ``K · Σ (share - 1/K)²``, less its expectation under fairness,
    so that noise alone adds nothing. The interval resamples prompts; both tables hold the same prompts.

    Raises:
        BiasError: the two tables share no prompt.
    """
    common = sorted(set(one.prompt_id) & set(other.prompt_id))
    if not common:
        raise BiasError("the two variants ranked no prompt in common: compare rankings of the same prompts")
    first, second = (_winners(table, common) for table in (one, other))
    generator = files.rng(seed, "bias difference")
    draws = generator.integers(len(common), size=(DRAWS, len(common)))
    # A resample repeats prompts, which alone adds K - 1 over n to the distance; it cancels in the difference.
    gaps = np.array([_distance(first[rows]) - _distance(second[rows]) for rows in draws])
    low, high = np.quantile(gaps, [0.025, 0.975])
    return Interval(_distance(first) - _distance(second), float(low), float(high), len(common))


def _winners(table: pd.DataFrame, prompts: list[str]) -> NDArray[np.float64]:
    """One row a prompt, 1 at the shown position that won, ``[prompts, K]``."""
    by_id = dict(zip(table.prompt_id, table.ranking, strict=True))
    size = max(len(ranking) for ranking in by_id.values())
    return np.eye(size)[[by_id[prompt][0] for prompt in prompts]]


def _distance(winners: NDArray[np.float64]) -> float:
    n, k = winners.shape
    shares = winners.mean(axis=0)
    return float(k * ((shares - 1 / k) ** 2).sum() - (k - 1) / n)


EXPERIMENTS = {
    "naive": "no_pairwise",
    "pairwise": "pairwise_no_given_order",
    "pairwise_fixed_order": "pairwise_not_random",
    "random_pair_order": "baseline_no_tiebreak",
    "static_tie_break": "tiebreak_order_given_static",
    "static_tie_break_again": "tiebreak_order_given_static_2",
    "random_tie_break": "tiebreak_order_given",
    "final": "pointwise_pairwise_baseline",
}


def read_logs(folder: Path) -> dict[str, pd.DataFrame]:
    """The authors' raw seven-wise rankings by prompt variant, from a folder that holds them as parquet.

    ``rankings.parquet`` needs experiment, prompt_id, k, response_ids (as shown), ranking_order (shown positions, best
    to worst) and valid_permutation; ``responses.parquet`` needs response_id and model.

    Raises:
        BiasError: a file is missing or lacks a column.
    """
    try:
        models = pd.read_parquet(folder / "responses.parquet").set_index("response_id")["model"]
        table = pd.read_parquet(folder / "rankings.parquet")
        table = table[table["valid_permutation"] & (table["k"] == 7)]
        table = table.assign(
            models=[models[list(ids)].tolist() for ids in table["response_ids"]], ranking=table["ranking_order"]
        )
    except (OSError, KeyError, ValueError) as error:
        raise BiasError(f"{folder} does not hold the ranking logs ({error}): see the help of read_logs") from error
    return {name: table[table["experiment"] == arm] for name, arm in EXPERIMENTS.items()}
