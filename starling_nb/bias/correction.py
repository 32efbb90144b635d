"""Rankings corrected for position: each answer's own utility where the effects of the places are known, or unknown.

Under the Plackett-Luce model an answer is chosen by its utility plus the effect of the place where it stands. Once the
effects are known, the utilities have a posterior: the likelihood of all rankings of the prompt times a Gaussian prior.
Its mode orders the answers as they would stand without the effects, as far as the rankings tell. Rankings of one prompt
in several orders enter one likelihood, which is also how passes are merged. The effects come from the other prompts
(:func:`cross_corrected`), so that no ranking is corrected by itself.

Where a linear reward model is fitted to the rankings, nothing needs to be corrected: the effects are parameters of the
same likelihood, estimated beside the weights and then thrown away (:func:`reward_weights`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from starling_nb import files
from starling_nb.bias.effects import position_effects
from starling_nb.bias.plackett_luce import RIDGE, Design, fit
from starling_nb.bias.tables import ANSWERS, BiasError, Floats, Ints, Rankings, named_answers, read

SPREAD = 1.0
"""Logits: standard deviation of utilities where every prompt is ranked once. One ranking a prompt does not tell it, and
the corrected order hardly depends on it (``tests/bias/test_correction.py``)."""
SPREADS = np.geomspace(0.25, 4.0, 7)
"""Where the evidence is looked at."""
LOOKED_AT, STEPS = 200, 60
"""Prompts from which the spread is estimated; Newton steps at most."""


@dataclass(frozen=True)
class Corrected:
    """Utilities of m prompts' answers, at most K each, in the order of the answers' numbers.

    Attributes:
        scores: ``[m, K]`` posterior modes, logits; NaN where a prompt has fewer answers.
        sd: ``[m, K]`` posterior standard deviations (Laplace).
        order: ``[m, K]`` answers from best to worst, filled up with -1.
        spread: of the prior.
    """

    scores: Floats
    sd: Floats
    order: Ints
    spread: float


def conditional(effects: Floats, spread: float) -> Floats:
    """Effects given the utilities, from effects of a model without them.

    What a Plackett-Luce model leaves out shrinks its effects. With Gaussian utilities of standard deviation ``spread``
    (logits) the shrinkage is close to ``1 / sqrt(1 + spread^2)``: within a fourteenth for K of 3 to 10, effects up to
    two logits and spreads up to two, by simulation.
    """
    return np.asarray(effects, dtype=float) * np.sqrt(1 + spread**2)


def corrected_scores(
    rankings: pd.DataFrame | Rankings,
    effects: Floats,
    spread: float | None = None,
    *,
    prior: Floats | float = 0.0,
    answer: Ints | None = None,
) -> Corrected:
    """Utilities of the answers at known effects of the places.

    Args:
        rankings: needs ``prompt_id``, ``ranking`` and, where a prompt is ranked more than once, ``models`` (or
            ``shown``); answers are numbered within their prompt in the order of these names.
        effects: ``[K]``, logits, given the utilities (see :func:`conditional`).
        spread: standard deviation of the prior; None estimates it by the evidence (Laplace) from the prompts that are
            ranked more than once, and takes :data:`SPREAD` where there are none.
        prior: mean of the prior: one number, or ``[m, K]``, for example the answering models' effects.
        answer: ``[n, K]`` number of the answer at each shown position, where ``rankings`` are arrays.

    Raises:
        BiasError: a table that :func:`starling_nb.bias.tables.read` refuses; answers that cannot be told apart; effects
            of another number of places; a spread that is not positive.
    """
    found = _posterior(rankings, answer)
    if np.shape(effects) != found.at.shape[1:]:
        raise BiasError(f"{np.size(effects)} effects for {found.at.shape[1]} places: give one effect a place")
    rows = np.broadcast_to(np.asarray(effects, dtype=float), found.at.shape)
    found = replace(found, effects=rows, mean=np.broadcast_to(prior, found.mean.shape))
    return replace(found, spread=_estimated(found, lambda _: rows) if spread is None else spread).corrected()


def cross_corrected(
    rankings: pd.DataFrame | Rankings,
    folds: int = 5,
    seed: int = 0,
    spread: float | None = None,
    *,
    answer: Ints | None = None,
) -> Corrected:
    """:func:`corrected_scores` with effects that are estimated on the prompts of the other folds.

    The effects are those of :func:`starling_nb.bias.effects.position_effects`, beside the answering models where they
    are known, put on the scale of :func:`conditional`.

    Raises:
        BiasError: fewer than two folds or too few prompts for them, or as :func:`corrected_scores`.
    """
    found = _posterior(rankings, answer)
    named = rankings.model is not None if isinstance(rankings, Rankings) else "models" in rankings.columns
    table = read(rankings, "prompt_id", *(["models"] if named else []))
    prompts = int(table.prompt.max()) + 1
    if not 2 <= folds <= prompts:
        raise BiasError(f"{folds} folds of {prompts} prompts: take at least 2 folds and as many prompts")
    fold = (files.rng(seed, "correction folds").permutation(prompts) % folds)[table.prompt]
    marginal = np.array([_marginal(table, fold != number) for number in range(folds)])[fold]
    if spread is None:
        spread = _estimated(found, lambda s: conditional(marginal, s))
    return replace(found, effects=conditional(marginal, spread), spread=spread).corrected()


def corrected(rankings: pd.DataFrame, folds: int = 5, seed: int = 0, spread: float | None = None) -> pd.DataFrame:
    """:func:`cross_corrected` as a table with one row a prompt (and set of answers).

    Returns:
        ``prompt_id``; ``answers``, their names from best to worst; ``scores`` and ``sd`` in the same order, logits.

    Raises:
        BiasError: as :func:`cross_corrected`, or a table without ``models``, ``answers`` and ``shown``.
    """
    column = next((name for name in (*ANSWERS, "models") if name in rankings.columns), None)
    if column is None:
        raise BiasError("the rankings lack models: without names nobody can say which answer is meant")
    table = read(rankings, "prompt_id")
    answer, prompt = named_answers(rankings, table)
    found = cross_corrected(rankings, folds, seed, spread)
    rows = []
    for block, row in enumerate(np.unique(prompt, return_index=True)[1]):
        place = np.argsort(answer[row, : table.length[row]])
        order = found.order[block, : table.length[row]]
        names = [rankings[column].iloc[row][i] for i in place[order]]
        rows.append((rankings["prompt_id"].iloc[row], names, found.scores[block, order], found.sd[block, order]))
    return pd.DataFrame(rows, columns=["prompt_id", "answers", "scores", "sd"])


@dataclass(frozen=True)
class RewardWeights:
    """A linear reward model: ``weights`` ``[d]`` and the effects of the places ``[K]`` that stood beside them (zero
    where there was no such term)."""

    weights: Floats
    positions: Floats


def reward_weights(
    table: Rankings, features: Floats, position_term: bool = False, ridge: float = RIDGE
) -> RewardWeights:
    """The linear reward model of greatest K-wise likelihood, with or without effects of the places beside it.

    Args:
        table: rankings.
        features: ``[n, K, d]``, in shown order.
        position_term: estimate one effect a place in the same likelihood.
        ridge: penalty ``ridge / 2 * |weights|^2``, in nats.

    Raises:
        BiasError: features of another shape, a ridge that is not positive, or no convergence.
    """
    if features.ndim != 3 or features.shape[:2] != table.order.shape or not ridge > 0:
        raise BiasError(
            f"features {features.shape} and ridge {ridge} for rankings {table.order.shape}: give features [n, K, d] in "
            "shown order and a ridge > 0"
        )
    unit = float(np.sqrt(RIDGE / ridge))  # the fit has one ridge for all: another ridge is another unit
    factors = [(table.order, table.width)] if position_term else []
    theta = fit(Design(table.mask, factors, [table.best_to_worst(features) * unit])).theta
    free = table.width - 1 if position_term else 0
    positions = np.append(theta[:free], -theta[:free].sum()) if position_term else np.zeros(table.width)
    return RewardWeights(theta[free:] * unit, positions)


@dataclass(frozen=True)
class _Posterior:
    """n rankings of m prompts, by answer; what a shorter ranking lacks stands last under a number of its own.

    ``at`` ``[n, K]`` is the answer at each rank, ``place`` where it stood, ``effects`` those of the places; ``mask`` is
    true for answers; ``prompt`` ``[n]`` says whose they are; ``mean`` ``[m, K]`` and ``spread`` are the prior's.
    """

    at: Ints
    place: Ints
    mask: NDArray[np.bool_]
    prompt: Ints
    effects: Floats
    mean: Floats
    spread: float

    @property
    def counted(self) -> NDArray[np.bool_]:
        """``[n, K]``: true for the choices; the last answer left over is none."""
        return np.pad(self.mask[:, 1:], ((0, 0), (0, 1)))

    def utilities(self, mode: Floats) -> tuple[Floats, Floats]:
        """``[n, K]`` utility with effect of each ranked answer, and the log of what it was chosen from."""
        effects = np.take_along_axis(self.effects, self.place, axis=1)
        total = np.where(self.mask, mode[self.prompt[:, None], self.at] + effects, -np.inf)
        left = np.logaddexp.accumulate(total[:, ::-1], axis=1)[:, ::-1]
        return np.where(self.mask, total, 0.0), np.where(self.mask, left, 0.0)

    def value(self, mode: Floats) -> Floats:
        """``[m]`` log posterior up to a constant."""
        total, left = self.utilities(mode)
        each = np.where(self.counted, total - left, 0.0).sum(1)
        return np.bincount(self.prompt, each, len(mode)) - ((mode - self.mean) ** 2).sum(1) / (2 * self.spread**2)

    def derivatives(self, mode: Floats) -> tuple[Floats, Floats]:
        """Gradient ``[m, K]`` and negative Hessian ``[m, K, K]`` of the log posterior."""
        total, left = self.utilities(mode)
        eye, open_to = np.eye(mode.shape[1]), np.tri(mode.shape[1], dtype=bool).T  # stage x answer still there
        open_to = self.counted[:, :, None] & self.mask[:, None, :] & open_to
        chance = np.exp(np.where(open_to, total[:, None, :] - left[:, :, None], -np.inf))
        hessian = chance.sum(1)[:, :, None] * eye - chance.transpose(0, 2, 1) @ chance
        gradient = (self.mean - mode) / self.spread**2
        information = np.tile(eye / self.spread**2, (len(mode), 1, 1))
        np.add.at(gradient, (self.prompt[:, None], self.at), self.counted - chance.sum(1))
        np.add.at(information, (self.prompt[:, None, None], self.at[:, :, None], self.at[:, None, :]), hessian)
        return gradient, information

    def maximum(self) -> tuple[Floats, Floats, Floats]:
        """Modes ``[m, K]``, information ``[m, K, K]`` and log evidence ``[m]`` (Laplace), by Newton's method for all
        prompts at once; a prompt whose step does not help takes half of it."""
        mode, value = np.array(self.mean), self.value(self.mean)
        for _ in range(STEPS):
            gradient, information = self.derivatives(mode)
            step = np.linalg.solve(information, gradient[:, :, None])[:, :, 0]
            gain = (gradient * step).sum(1) / 2
            if gain.max() < 1e-7:  # the step's own error is of the order of its square
                evidence = value + gain - np.linalg.slogdet(information)[1] / 2 - mode.shape[1] * np.log(self.spread)
                return mode + step, information, evidence
            scale, slack = np.ones(len(mode)), 1e-12 * np.abs(value)
            while (worse := (then := self.value(mode + scale[:, None] * step)) < value - slack).any():
                scale[worse] /= 2
            mode, value = mode + scale[:, None] * step, then
        raise BiasError(f"utilities did not converge in {STEPS} Newton steps: take a smaller spread or smaller effects")

    def corrected(self) -> Corrected:
        """The modes, their errors and the order that they give."""
        if not 0 < self.spread < np.inf:
            raise BiasError(f"spread = {self.spread}: utilities need a standard deviation above zero")
        mode, information, _ = self.maximum()
        there = np.zeros(mode.shape, dtype=bool)
        there[self.prompt[:, None], self.at] = self.mask
        sd = np.sqrt(np.diagonal(np.linalg.inv(information), axis1=1, axis2=2))
        order = np.argsort(-np.where(there, mode, -np.inf), axis=1, kind="stable")
        order = np.where(np.take_along_axis(there, order, axis=1), order, -1)
        return Corrected(np.where(there, mode, np.nan), np.where(there, sd, np.nan), order, self.spread)


def _posterior(rankings: pd.DataFrame | Rankings, answer: Ints | None) -> _Posterior:
    """The rankings by answer, whatever names the answers, without effects."""
    table = read(rankings, "prompt_id")
    columns, prompt = np.arange(table.width), table.prompt
    if isinstance(rankings, pd.DataFrame) and any(name in rankings.columns for name in (*ANSWERS, "models")):
        answer, prompt = named_answers(rankings, table)
    elif answer is None:
        if len(np.unique(prompt)) < len(table):
            raise BiasError("a prompt is ranked more than once and its answers have no names: add models or answer")
        answer = np.broadcast_to(columns, table.order.shape)
    elif answer.shape != table.order.shape:
        raise BiasError(f"answers of the shape {answer.shape} for rankings {table.order.shape}: number each place")
    place = np.where(table.mask, table.order, columns)
    at = np.where(table.mask, np.take_along_axis(answer, place, axis=1), columns)
    mean = np.zeros((int(prompt.max()) + 1, table.width))
    return _Posterior(at, place, table.mask, prompt, np.zeros(at.shape), mean, SPREAD)


def _marginal(table: Rankings, rows: NDArray[np.bool_]) -> Floats:
    """``[K]`` effects in some of the rankings."""
    _, prompt = np.unique(table.prompt[rows], return_inverse=True)
    model = None if table.model is None else table.model[rows]
    some = replace(table, order=table.order[rows], length=table.length[rows], prompt=prompt, model=model, prompts=())
    return position_effects(some, models=model is not None).effects["effect"].to_numpy()


def _estimated(given: _Posterior, effects: Callable[[float], Floats]) -> float:
    """The spread of greatest evidence among :data:`SPREADS`, refined by a parabola; ``effects`` are ``[n, K]``."""
    several = np.flatnonzero(np.bincount(given.prompt) > 1)[:LOOKED_AT]
    if not len(several):
        return SPREAD
    number = np.full(len(given.mean), -1)
    number[several] = np.arange(len(several))
    rows = number[given.prompt] >= 0
    at, place, mask, prompt = given.at[rows], given.place[rows], given.mask[rows], number[given.prompt[rows]]
    some = [_Posterior(at, place, mask, prompt, effects(s)[rows], given.mean[several], s) for s in SPREADS]
    evidence = [float(one.maximum()[2].mean()) for one in some]
    best = min(max(int(np.argmax(evidence)), 1), len(SPREADS) - 2)
    bend, tilt, _ = np.polyfit([-1, 0, 1], evidence[best - 1 : best + 2], 2)
    shift = np.clip(-tilt / (2 * bend), -1, 1) if bend < 0 else np.sign(tilt)
    return float(SPREADS[best] * (SPREADS[1] / SPREADS[0]) ** shift)
