"""How much is enough, and does the length of the list matter: power, a bootstrap check, and trends by K."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from starling_nb import files
from starling_nb.bias.effects import PositionEffects, _design, _groups, hotelling_p
from starling_nb.bias.plackett_luce import Design, contrast, fit
from starling_nb.bias.tables import BiasError, Floats, Rankings, read


@dataclass(frozen=True)
class Need:
    """Labels needed to see one position's effect, ``more`` than there are, and what can be seen with those there are.

    ``detectable`` is in logits; ``labels`` counts rankings of the same kind, repeats of a prompt included.
    """

    labels: int
    more: int
    detectable: float


@dataclass(frozen=True)
class Trends:
    """Front-to-back trends by number of answers: ``table`` has columns ``k, trend, se, low, high, n``; ``wald`` on
    ``df`` degrees of freedom and ``p`` test that they are all the same."""

    table: pd.DataFrame
    wald: float
    df: int
    p: float


def needed(found: PositionEffects, effect: float = 0.2, power: float = 0.8, level: float = 0.95) -> Need:
    """Labels with which an effect of ``effect`` logits at the least well known position is seen with this power.

    A two-sided z-test at ``1 - level``; standard errors fall as one over the root of the number of labels.

    Raises:
        BiasError: ``effect`` is not above zero, or ``power`` and ``level`` are no shares.
    """
    if effect <= 0 or not 0 < power < 1 or not 0 < level < 1:
        raise BiasError(
            f"effect = {effect}, power = {power}, level = {level}: an effect above 0 and two shares are meant"
        )
    reach = float(scipy_stats.norm.ppf((1 + level) / 2) + scipy_stats.norm.ppf(power))
    detectable = reach * float(found.effects["se"].max())
    labels = math.ceil(found.n * (detectable / effect) ** 2)
    return Need(labels, max(0, labels - found.n), detectable)


def bootstrap_errors(rankings: pd.DataFrame | Rankings, draws: int = 200, seed: int = 0, models: bool = True) -> Floats:
    """Standard errors ``[positions]`` of the effects by resampling prompts: a check on the sandwich's.

    Raises:
        BiasError: as :func:`starling_nb.bias.effects.position_effects`.
    """
    table = read(rankings, "prompt_id", "models")
    design = _design(table, rankings, models, None, None)
    start, free = fit(design).theta, table.width - 1
    groups = int(table.prompt.max()) + 1
    generator, found = files.rng(seed, "bootstrap of position effects"), []
    for _ in range(draws):
        weights = np.bincount(generator.integers(groups, size=groups), minlength=groups)[table.prompt]
        found.append(contrast(table.width) @ fit(design, weights.astype(float), start).theta[:free])
    return np.std(found, axis=0, ddof=1)


def by_length(rankings: pd.DataFrame | Rankings, level: float = 0.95) -> Trends:
    """The trend from the first shown place to the last, for each number of answers, and whether K changes it.

    One fit: an effect an answering model, and for each K a slope on the relative place, from -1/2 (first) to 1/2
    (last). A trend is what the last place has over the first, in logits; zero is fair. Errors are clustered by prompt,
    so the same prompts may be ranked at several K.

    Raises:
        BiasError: all rankings have one length, or as :func:`starling_nb.bias.effects.position_effects`.
    """
    table = read(rankings, "prompt_id", "models")
    lengths = np.unique(table.length)
    if len(lengths) < 2:
        raise BiasError(f"all rankings have K = {lengths[0]}: a trend over K needs several lengths")
    place = np.where(table.mask, table.order / (table.length[:, None] - 1) - 0.5, 0.0)
    slopes = np.stack([np.where(table.length[:, None] == k, place, 0.0) for k in lengths], axis=2)
    fitted = fit(Design(table.mask, [_groups(table)], [slopes]))
    pull = fitted.influence(table.prompt)[:, -len(lengths) :]
    groups, trend = len(pull), fitted.theta[-len(lengths) :]
    if groups < 2:
        raise BiasError("position effects need rankings of at least two prompts")
    covariance = pull.T @ pull * groups / (groups - 1)
    apart = contrast(len(lengths)).T  # each less the last
    gap, gap_covariance = apart @ trend, apart @ covariance @ apart.T
    wald = float(gap @ np.linalg.pinv(gap_covariance, hermitian=True) @ gap)
    se, t = np.sqrt(np.diag(covariance)), float(scipy_stats.t.ppf((1 + level) / 2, groups - 1))
    counts = [int((table.length == k).sum()) for k in lengths]
    found = pd.DataFrame({"k": lengths, "trend": trend, "se": se, "low": trend - t * se, "high": trend + t * se})
    df = len(lengths) - 1
    return Trends(found.assign(n=counts), wald, df, hotelling_p(wald, df, groups))
