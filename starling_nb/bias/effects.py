"""Position effects over the whole ranking, in logits of a Plackett-Luce model.

The first place can look fair while the whole ranking, from which a K-wise loss learns, is not.

Which effect is meant has to be said, because Plackett-Luce models are not collapsible: noise that a model leaves out
shrinks its other effects towards zero. With the answering models alone in the model the effect is *marginal*: what a
position does over all the differences between a model's answers. With a term for the quality of the answer itself it is
*conditional*, and larger. Neither is wrong; they answer different questions. The mean rank by position
(:mod:`starling_nb.bias.places`) needs no model at all and is what to report first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from starling_nb.bias.plackett_luce import RIDGE, Design, Fit, contrast, derivatives, fit
from starling_nb.bias.tables import BiasError, Floats, Ints, Rankings, read

RARE = 5
"""Models seen in fewer rankings share one effect."""
FEW_PROMPTS = 30
CROWDED = 5
"""Rankings a parameter below which estimates come out a little too large."""
BEYOND = 6.0
"""Logits: an effect this large is a separation, finite only because of the ridge."""


@dataclass(frozen=True)
class PositionEffects:
    """Effects of the shown position on an answer's chances, in logits, centred at zero over positions.

    Attributes:
        effects: columns ``position`` (from 0), ``effect``, ``se``, ``low``, ``high``.
        wald: chi-square of "no position has an effect", on ``df`` degrees of freedom. ``p`` refers it to Hotelling's
            F, because the covariance was estimated: chi-square's p-values are too small where prompts are few.
        spread: largest minus smallest effect. It is not zero for a fair judge: noise spreads estimates too.
        n: rankings used. prompts: independent units among them.
        estimand: what the effects are: ``marginal``, ``unadjusted`` or ``conditional``.
        covariance: ``[positions, positions]`` of the effects.
        influence: one row a prompt id, one column a position: that prompt's pull on the effects.
        slope: logits a unit of the quality, where one was given, with its standard error.
        flags: what to know before the numbers are believed; empty where all is well.
    """

    effects: pd.DataFrame
    wald: float
    df: int
    p: float
    spread: float
    n: int
    prompts: int = 0
    estimand: str = "marginal"
    covariance: Floats = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    influence: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    slope: tuple[float, float] | None = None
    flags: tuple[str, ...] = ()


def position_effects(
    rankings: pd.DataFrame | Rankings,
    level: float = 0.95,
    *,
    models: bool = True,
    quality: str | Floats | None = None,
    top: int | None = None,
) -> PositionEffects:
    """Fit one effect a shown position beside one an answering model.

    Standard errors are the sandwich of White (1982) over prompts, so they hold where verdicts on one prompt resemble
    each other and where the choice model is only a good approximation. Models seen in fewer than 5 rankings share one
    effect. A very weak ridge keeps effects finite where one position always wins; that is flagged.

    Args:
        rankings: needs ``prompt_id``, ``models`` and ``ranking``.
        level: coverage of the intervals.
        models: with False no model has an effect: right only where every model stands everywhere equally often.
        quality: a column with one number an answer, in shown order (a rubric, a published rank), or such an array
            ``[n, K]``: the effects become conditional on it.
        top: only the first ``top`` choices count; 1 looks at the first place alone.

    Raises:
        BiasError: a table that :func:`starling_nb.bias.tables.read` refuses; fewer than two prompts; a quality that is
            missing or not finite; or models that always stand at the same positions, so that the two cannot be told
            apart.
    """
    table = read(rankings, "prompt_id", "models")
    design = _design(table, rankings, models, quality, top)
    free = table.width - 1
    _check_separable(design, free)
    fitted = fit(design)
    estimand = "conditional" if quality is not None else "marginal" if models else "unadjusted"
    return summarize(fitted, table, free, level, estimand, slope=quality is not None)


def summarize(
    fitted: Fit, table: Rankings, free: int, level: float, estimand: str, slope: bool = False
) -> PositionEffects:
    """Effects of the first ``free`` parameters (a centred factor), with errors clustered by prompt.

    Raises:
        BiasError: fewer than two prompts.
    """
    pull = fitted.influence(table.prompt)
    groups = len(pull)
    if groups < 2:
        raise BiasError("position effects need rankings of at least two prompts")
    correction = groups / (groups - 1)
    spread_out = contrast(free + 1)
    theta, own = fitted.theta[:free], pull[:, :free]
    free_covariance = own.T @ own * correction
    wald = float(theta @ np.linalg.pinv(free_covariance, hermitian=True) @ theta)
    effect, covariance = spread_out @ theta, spread_out @ free_covariance @ spread_out.T
    names = table.prompts if len(table.prompts) == groups else range(groups)
    return PositionEffects(
        effects=_with_errors(effect, covariance, groups, level),
        wald=wald,
        df=free,
        p=hotelling_p(wald, free, groups),
        spread=float(np.ptp(effect)),
        n=len(table),
        prompts=groups,
        estimand=estimand,
        covariance=covariance,
        influence=pd.DataFrame(own @ spread_out.T, index=pd.Index(names, name="prompt_id")),
        slope=(float(fitted.theta[-1]), float(np.sqrt(correction * (pull[:, -1] ** 2).sum()))) if slope else None,
        flags=_flags(effect, fitted.theta[free:], groups, len(table)),
    )


def _with_errors(effect: Floats, covariance: Floats, groups: int, level: float) -> pd.DataFrame:
    """``position, effect, se, low, high``, with Student's intervals."""
    se, t = np.sqrt(np.diag(covariance)), float(scipy_stats.t.ppf((1 + level) / 2, groups - 1))
    found = pd.DataFrame({"position": range(len(effect)), "effect": effect, "se": se})
    return found.assign(low=effect - t * se, high=effect + t * se)


def hotelling_p(wald: float, df: int, groups: int) -> float:
    """p-value of a Wald statistic whose covariance was estimated from ``groups`` independent units (Hotelling 1931).

    NaN where there are no more groups than degrees of freedom.
    """
    if groups <= df:
        return float("nan")
    return float(scipy_stats.f.sf(wald * (groups - df) / (df * (groups - 1)), df, groups - df))


def difference(one: PositionEffects, other: PositionEffects, level: float = 0.95) -> PositionEffects:
    """Effects of one judge prompt less another's, paired by prompt id: both saw the same prompts.

    Raises:
        BiasError: the two have other numbers of positions, or no prompt in common.
    """
    if one.df != other.df:
        raise BiasError(f"{one.df + 1} positions cannot be compared with {other.df + 1}: take rankings of equal K")
    if not one.influence.index.intersection(other.influence.index).size:
        raise BiasError("the two rank no prompt in common: compare rankings of the same prompts")
    pull = one.influence.sub(other.influence, fill_value=0.0).to_numpy()
    groups = len(pull)
    gap = one.effects["effect"].to_numpy() - other.effects["effect"].to_numpy()
    covariance = pull.T @ pull * groups / (groups - 1)
    wald = float(gap @ np.linalg.pinv(covariance, hermitian=True) @ gap)
    found = _with_errors(gap, covariance, groups, level)
    p = hotelling_p(wald, one.df, groups)
    return PositionEffects(
        found, wald, one.df, p, float(np.ptp(gap)), min(one.n, other.n), groups, "difference", covariance
    )


def _design(
    table: Rankings, rankings: pd.DataFrame | Rankings, models: bool, quality: str | Floats | None, top: int | None
) -> Design:
    """Positions first, then models, then the quality."""
    if top is not None and top < 1:
        raise BiasError(f"top = {top}: at least the first choice has to count")
    factors = [(table.order, table.width)]
    if models:
        factors.append(_groups(table))
    covariates = [] if quality is None else [table.best_to_worst(_quality(table, rankings, quality))]
    return Design(table.mask, factors, covariates, top)


def _groups(table: Rankings) -> tuple[Ints, int]:
    """Each ranked answer's model, best to worst, rare ones as one; and the number of such groups."""
    if table.model is None:
        raise BiasError("the rankings lack models: they need prompt_id, models and ranking")
    named = np.sort(table.model, axis=1)
    once = named >= 0
    once[:, 1:] &= named[:, 1:] != named[:, :-1]
    seen = np.bincount(named[once], minlength=int(table.model.max()) + 1)
    common = seen >= RARE
    number = np.where(common, np.cumsum(common) - 1, common.sum())
    levels = int(common.sum()) + bool((seen[~common] > 0).any())
    model = np.where(table.mask, number[np.maximum(table.model, 0)], -1)
    return table.best_to_worst(model), levels


def _quality(table: Rankings, rankings: pd.DataFrame | Rankings, quality: str | Floats) -> Floats:
    """One number an answer ``[n, K]``, in shown order, centred in each row."""
    values = np.zeros(table.order.shape)
    if isinstance(quality, str):
        if isinstance(rankings, Rankings) or quality not in rankings.columns:
            raise BiasError(f"the rankings lack {quality}: it should hold one number an answer, in shown order")
        rows: Sequence[Sequence[float]] = rankings[quality].tolist()
        for row, (numbers, k) in enumerate(zip(rows, table.length, strict=True)):
            if np.size(numbers) != k:
                raise BiasError(
                    f"row {row} ranks {k} answers but has {np.size(numbers)} numbers in {quality}: give one number "
                    "an answer"
                )
            try:
                values[row, :k] = np.asarray(numbers, dtype=np.float64).ravel()
            except (TypeError, ValueError) as error:
                raise BiasError(f"{quality} should hold one number an answer, not {numbers!r}") from error
    else:
        if quality.shape != values.shape:
            raise BiasError(f"the quality has the shape {quality.shape}, the rankings {values.shape}: they must agree")
        values = np.where(table.mask, quality, 0.0)
    if not np.isfinite(values).all():
        raise BiasError("the quality holds numbers that are not finite: leave those rows out")
    return np.where(table.mask, values - values.sum(1, keepdims=True) / table.length[:, None], 0.0)


def _flags(effect: Floats, others: Floats, groups: int, n: int) -> tuple[str, ...]:
    flags, parameters = [], len(effect) + len(others) - 1
    if groups < FEW_PROMPTS:
        flags.append(f"only {groups} prompts: intervals are rough")
    if n < CROWDED * parameters:
        flags.append(f"{parameters} parameters for {n} rankings: effects come out a little too large")
    if np.abs(effect).max() > BEYOND:
        flags.append("separation: a position always wins or always loses; only the direction of its effect is known")
    if np.abs(others).max(initial=0.0) > BEYOND:
        flags.append("a model always wins or always loses: its own effect is unknown, those of the positions are not")
    return tuple(flags)


def _check_separable(design: Design, free: int) -> None:
    """Refuse designs in which position effects can be exchanged for other effects."""
    if (sample := design.sample()) is not None:
        with contextlib.suppress(BiasError):  # what a sample tells apart, the whole does
            return _check_separable(sample, free)
    _, _, information = derivatives(np.zeros(design.size), design)
    values, vectors = np.linalg.eigh(information - RIDGE * np.eye(design.size))
    flat = vectors[:free, values < 1e-9 * max(float(values.max()), 1.0)]
    if np.abs(flat).max(initial=0.0) > 1e-6:
        raise BiasError(
            "positions and models cannot be told apart: the same models always stand at the same positions. "
            "Shuffle the answers before they are shown"
        )
