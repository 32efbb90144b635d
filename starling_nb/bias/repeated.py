"""Position effects free of quality, from answers that were seen in several orders.

Take two answers of one prompt and two rankings of it in other orders. In a Plackett-Luce model the one stands above the
other with log-odds *quality difference + difference of their places' effects*. Where the two rankings disagree about
the pair, which of them put it first depends on the places alone: the quality cancels (Rasch 1960; Chamberlain 1980 for
the logit with fixed effects). Nothing is assumed about how good answers are, and the effects are *conditional* ones.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from starling_nb.bias.effects import PositionEffects, summarize
from starling_nb.bias.plackett_luce import Design, contrast, fit
from starling_nb.bias.tables import BiasError, Floats, Ints, Rankings, named_answers, read

LARGEST = 2_000_000
"""Pairs of rankings looked at, at most: more would take memory and teach nothing new."""


def repeated_effects(rankings: pd.DataFrame, level: float = 0.95) -> PositionEffects:
    """Effects from pairs of answers that two rankings of the same answers put in opposite order.

    Args:
        rankings: needs ``prompt_id``, ``models`` and ``ranking``, and ``shown`` where one model gave several answers to
            a prompt. Prompts that were ranked in one order only say nothing here.
        level: coverage of the intervals, which are clustered by prompt.

    Returns:
        :class:`~starling_nb.bias.effects.PositionEffects` with the estimand ``conditional``; ``n`` counts pairs that
        turned round.

    Raises:
        BiasError: no prompt was ranked in two orders, fewer than two prompts disagree with themselves, or some position
            never took part.
    """
    table = read(rankings, "prompt_id")
    answer, block = named_answers(rankings, table)
    first, second = _passes(block)
    if not len(first):
        raise BiasError("no prompt was ranked twice: effects free of quality need answers seen in several orders")
    regressors, rows = _turned(table, answer, first, second)
    moved = np.abs(regressors).max(axis=1, initial=0.0) > 0
    regressors, prompt = regressors[moved], table.prompt[first[rows[moved]]]
    if len(np.unique(prompt)) < 2 or np.linalg.matrix_rank(regressors) < table.width - 1:
        raise BiasError(
            "too few pairs of answers changed both their places and their order between two rankings: rank more "
            "prompts in several orders"
        )
    names, prompt = np.unique(prompt, return_inverse=True)
    design = Design(np.ones((len(prompt), 2), bool), covariates=[np.stack([regressors, 0 * regressors], axis=1)])
    pairs = Rankings(
        np.broadcast_to(np.arange(2), (len(prompt), 2)), np.full(len(prompt), 2), prompt, prompts=_ids(table, names)
    )
    return summarize(fit(design), pairs, table.width - 1, level, "conditional")


def _passes(block: Ints) -> tuple[Ints, Ints]:
    """Rows of every two rankings of the same answers."""
    by_block = pd.Series(np.arange(len(block))).groupby(block).agg(list)
    pairs = [pair for rows in by_block if len(rows) > 1 for pair in combinations(rows, 2)][:LARGEST]
    found = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _turned(table: Rankings, answer: Ints, first: Ints, second: Ints) -> tuple[Floats, Ints]:
    """Regressors ``[pairs, positions - 1]`` of what happened over its mirror image, and the pair of rankings."""
    places = np.arange(table.width)
    place = np.argsort(np.where(table.mask, answer, places), axis=1)  # the position of each answer
    rank = np.take_along_axis(table.ranks, place, axis=1)
    effect = contrast(table.width)
    found, rows = [], []
    for a, b in combinations(range(table.width), 2):
        here = table.length[first] > b
        above = [rank[side, a] < rank[side, b] for side in (first, second)]
        turned = np.flatnonzero(here & (above[0] != above[1]))
        gaps = [effect[place[side[turned], a]] - effect[place[side[turned], b]] for side in (first, second)]
        found.append(np.where(above[0][turned], 1.0, -1.0)[:, None] * (gaps[0] - gaps[1]))
        rows.append(turned)
    return np.concatenate(found), np.concatenate(rows)


def _ids(table: Rankings, numbers: Ints) -> list[object]:
    return [table.prompts[i] for i in numbers]
