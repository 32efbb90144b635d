"""Arena: ratings of models from battles, votes on two answers to one prompt.

The Bradley-Terry model (Bradley & Terry 1952) in the units of Chatbot Arena (``lm-sys/FastChat``,
``serve/monitor/rating_systems.py``): a rating 400 points higher wins ten times as often as it loses, ratings are 1000
on average unless an anchor is given, a tie is half a win for each side, and intervals come from multinomial resampling
of the counts of unique matchups and outcomes. As in its style control (Li et al. 2024), columns beside the two models
can take up what a vote owes to length and looks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from starling_nb import files
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.arena.logistic import Design, fit
from starling_nb.evaluation.tables import need
from starling_nb.stats import Interval, clustered

Floats = NDArray[np.float64]
SCALE, BASE, INIT = 400.0, 10.0, 1000.0
POINTS = SCALE / math.log(BASE)
"""Points of rating in one logit."""
OUTCOMES = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}
"""What ``winner`` may say, and the share of the win that goes to ``model_a``."""
LIMIT = 10.0
"""Logits beyond which a resample has let a model win or lose everything."""
BLOCK = 4_000_000


@dataclass(frozen=True)
class Ratings:
    """Ratings, points, and what they rest on.

    Attributes:
        table: model, rating, low, high, battles, wins, losses, ties; best first. A bound is infinite where resamples
            let the model win or lose everything, and missing with fewer than 8 independent units (see
            :func:`starling_nb.stats.clustered.enough`).
        style: feature, coefficient, low, high: logits for one standard deviation of the feature; empty without style.
        n: independent units: battles, or clusters of them.
        battles: votes that count.
        dropped: votes that do not, by reason.
        unrated: models without a rating, and why.
        draws: resampled ratings, points: a row a draw, a column a model.
    """

    table: pd.DataFrame
    style: pd.DataFrame
    n: int
    battles: int
    dropped: Mapping[str, int]
    unrated: Mapping[str, str]
    draws: pd.DataFrame = field(repr=False)
    _tails: tuple[float, float] = field(repr=False)

    def difference(self, model: str, other: str) -> Interval:
        """How many points ``model`` is rated above ``other``.

        Raises:
            EvaluationError: one of them has no rating.
        """
        rating = self.table.set_index("model")["rating"]
        for name in (model, other):
            if name not in rating:
                raise EvaluationError(f"{name} has no rating ({self.unrated.get(name, 'it fought no battle')})")
        low, high = _bounds((self.draws[model] - self.draws[other]).to_numpy() / POINTS, self._tails)
        return Interval(float(rating[model] - rating[other]), POINTS * low, POINTS * high, self.n)


def win_probability(difference: float) -> float:
    """Chance that a model rated ``difference`` points higher wins, a tie counting half."""
    return float(1 / (1 + BASE ** (-difference / SCALE)))


def bradley_terry(
    battles: pd.DataFrame,
    *,
    anchor: str | None = None,
    anchor_rating: float = INIT,
    clusters: str | None = None,
    style: Sequence[str] = (),
    key: str | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Ratings:
    """Rate models from battles with the columns ``model_a``, ``model_b`` and ``winner`` (see :data:`OUTCOMES`).

    Votes that cannot be used (no model, one model on both sides, an unknown winner, no cluster, no style, a key that
    came before) are left out and counted. Ratings exist among models that have beaten one another in a circle, ties
    counting as both (Ford 1957): the largest such group is rated, the other models and their battles are left out and
    named.

    Args:
        battles: one row a vote. anchor: this model gets ``anchor_rating``. clusters: the column of what votes have in
        common, say the question or the voter; whole clusters are resampled. style: features, each in two columns
        ``<name>_a`` and ``<name>_b`` (say, lengths), numbers >= 0; their difference over their sum enters, scaled by
        its root mean square and not centred, so that swapping sides changes nothing. key: the column that names a vote.
        draws: resamples. seed: decides them. level: coverage asked for; with few clusters the quantiles are taken
        further out, see :func:`starling_nb.stats.clustered.tails`.

    Raises:
        EvaluationError: a column is missing, no two models can be rated, the anchor is not rated, or a style never
            differs.
    """
    votes, dropped = _read(battles, clusters, style, key)
    votes, unrated = _rateable(votes, dropped)
    names = sorted({*votes["model_a"], *votes["model_b"]})
    if anchor is not None and anchor not in names:
        raise EvaluationError(f"the anchor {anchor} is not rated; rated are {', '.join(names)}")
    design, member = _design(votes, names, style)
    sizes = np.bincount(votes["cluster"]) if clusters else np.ones(len(votes))
    enough = len(sizes) > 1 and clustered.enough(sizes)
    tails = clustered.tails(sizes, level) if enough else (0.0, 1.0)
    start = fit(design, design.count[:, None])
    found = _resampled(design, member, start[:, 0], draws if enough else 0, files.rng(seed, "arena"))
    zero = 0.0 if anchor is None else start[names.index(anchor), 0]
    zeros: Floats | float = 0.0 if anchor is None else found[names.index(anchor)]
    logits, drawn, models = start[:, 0], found, len(names)
    level_at = INIT if anchor is None else anchor_rating
    table = _bounded("model", names, logits[:models] - zero, drawn[:models] - zeros, tails)
    table[["rating", "low", "high"]] = level_at + POINTS * table[["value", "low", "high"]]
    table = table.drop(columns="value").merge(_tally(votes), on="model")[[*TABLE]]
    return Ratings(
        table.sort_values(["rating", "model"], ascending=[False, True], ignore_index=True),
        _bounded("feature", list(style), logits[models:], drawn[models:], tails).rename(
            columns={"value": "coefficient"}
        ),
        len(sizes),
        len(votes),
        {reason: number for reason, number in dropped.items() if number},
        unrated,
        pd.DataFrame((level_at + POINTS * (drawn[:models] - zeros)).T, columns=names),
        tails,
    )


TABLE = ("model", "rating", "low", "high", "battles", "wins", "losses", "ties")


def _read(
    battles: pd.DataFrame, clusters: str | None, style: Sequence[str], key: str | None
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Usable votes (model_a, model_b, share, cluster, styles), and the others counted by the first reason."""
    sides = [f"{name}_{side}" for name in style for side in "ab"]
    wanted = ["model_a", "model_b", "winner", *sides, *(name for name in (clusters, key) if name)]
    need(battles, wanted, "the battles")
    votes = pd.DataFrame({"model_a": battles["model_a"], "model_b": battles["model_b"]})
    votes["share"] = battles["winner"].map(OUTCOMES)
    unnamed = votes[["model_a", "model_b"]].isna().any(axis=1) | (votes[["model_a", "model_b"]] == "").any(axis=1)
    bad = {
        "a model is missing": unnamed,
        "one model on both sides": votes["model_a"] == votes["model_b"],
        "unknown winner": votes["share"].isna(),
    }
    for name in style:
        first, second = (pd.to_numeric(battles[f"{name}_{side}"], errors="coerce") for side in "ab")
        bad[f"no {name}"] = ~(np.isfinite(first) & np.isfinite(second) & (first >= 0) & (second >= 0))
        votes[name] = ((first - second) / (first + second).where(first + second > 0, 1.0)).astype(float)
    if clusters:
        votes["cluster"] = battles[clusters]
        bad[f"no {clusters}"] = battles[clusters].isna()
    left, dropped = np.ones(len(votes), dtype=bool), dict[str, int]()
    for reason, rows in bad.items():
        dropped[reason] = int((left & rows.to_numpy(dtype=bool)).sum())
        left &= ~rows.to_numpy(dtype=bool)
    if key:
        again = battles[key].where(left).duplicated().to_numpy() & left & battles[key].notna().to_numpy()
        dropped[f"{key} came before"] = int(again.sum())
        left &= ~again
    return votes[left], dropped


def _rateable(votes: pd.DataFrame, dropped: dict[str, int]) -> tuple[pd.DataFrame, dict[str, str]]:
    """The votes among the largest group of models that beat one another in a circle, and why others have no rating."""
    if votes.empty:
        raise EvaluationError(f"no battle can be used ({dropped}): give model_a, model_b and winner of each")
    codes, names = pd.factorize(pd.concat([votes["model_a"], votes["model_b"]]), sort=True)
    first, second, share = codes[: len(votes)], codes[len(votes) :], votes["share"].to_numpy()
    pairs = (np.r_[first, second], np.r_[second, first])
    wins = sparse.coo_matrix((np.r_[share, 1 - share], pairs), shape=(len(names),) * 2).tocsr()
    wins.eliminate_zeros()
    _, group = sparse.csgraph.connected_components(wins, connection="strong")
    members = np.bincount(group)
    fought = np.bincount(group[first], minlength=len(members))
    rated = group == max(range(len(members)), key=lambda g: (members[g], fought[g], -g))
    rated &= rated.sum() > 1
    won, lost = np.asarray(wins.sum(1)).ravel(), np.asarray(wins.sum(0)).ravel()
    unrated = {str(names[i]): _why(won[i], lost[i]) for i in np.flatnonzero(~rated)}
    if not rated.any():
        told = "; ".join(f"{name}: {why}" for name, why in unrated.items())
        raise EvaluationError(
            f"no two models can be rated ({told}): each has to win and to lose, ties counting as both; collect votes"
        )
    kept = rated[first] & rated[second]
    dropped["with an unrated model"] = int((~kept).sum())
    votes = votes[kept].copy()
    if "cluster" in votes:
        votes["cluster"] = pd.factorize(votes["cluster"])[0]
    return votes, unrated


def _why(won: float, lost: float) -> str:
    """What keeps a model from being rated."""
    if not won or not lost:
        return "it lost no battle" if won else "it won no battle"
    return "its battles tie it to no circle with the rated models"


def _design(votes: pd.DataFrame, names: Sequence[str], style: Sequence[str]) -> tuple[Design, sparse.csr_matrix | None]:
    """Unique matchups and outcomes with their counts (every vote by itself where styles differ), and for clusters how
    many of their votes are in each row ``[rows, clusters]``."""
    index = {name: number for number, name in enumerate(names)}
    first, second = (votes[side].map(index).to_numpy(dtype=np.int64) for side in ("model_a", "model_b"))
    share, features = votes["share"].to_numpy(), votes[list(style)].to_numpy(dtype=float)
    if style:
        scale = np.sqrt((features**2).mean(0))
        if (scale == 0).any():
            raise EvaluationError(f"{style[int(scale.argmin())]} never differs between two answers: leave it out")
        row, features = np.arange(len(votes)), features / scale
    else:
        swapped = first > second
        share = np.where(swapped, 1 - share, share)
        first, second = np.minimum(first, second), np.maximum(first, second)
        row, cells = pd.factorize((first * len(names) + second) * 3 + (2 * share).astype(np.int64), sort=True)
        first, second, share = cells // 3 // len(names), cells // 3 % len(names), cells % 3 / 2
        features = np.zeros((len(cells), 0))
    design = Design(first, second, share, np.bincount(row).astype(float), features, len(names))
    if "cluster" not in votes:
        return design, None
    return design, sparse.coo_matrix((np.ones(len(row)), (row, votes["cluster"]))).tocsr()


def _resampled(
    design: Design, member: sparse.csr_matrix | None, start: Floats, draws: int, generator: np.random.Generator
) -> Floats:
    """Estimates ``[size, draws]``, logits, from resampled counts: of votes, or of whole clusters."""
    size = int(design.count.sum()) if member is None else member.shape[1]
    chance = design.count / size if member is None else np.full(size, 1 / size)
    width, found = max(1, BLOCK // max(len(chance), len(design.count))), [np.zeros((len(start), 0))]
    for begin in range(0, draws, width):
        drawn = generator.multinomial(size, chance, min(width, draws - begin)).T.astype(float)
        found.append(fit(design, drawn if member is None else member @ drawn, start))
    return np.concatenate(found, axis=1)


def _bounded(
    label: str, names: Sequence[str], value: Floats, drawn: Floats, tails: tuple[float, float]
) -> pd.DataFrame:
    """Columns ``label``, value, low, high."""
    rows = [(name, v, *_bounds(d, tails)) for name, v, d in zip(names, value, drawn, strict=True)]
    return pd.DataFrame(rows, columns=[label, "value", "low", "high"])


def _bounds(drawn: Floats, tails: tuple[float, float]) -> tuple[float, float]:
    """The quantiles of drawn logits, the next one outside; infinite beyond :data:`LIMIT`, NaN without draws."""
    if not len(drawn):
        return math.nan, math.nan
    ordered = np.sort(drawn)
    low, high = (
        ordered[int(end((len(drawn) - 1) * tail))] for end, tail in zip((math.floor, math.ceil), tails, strict=True)
    )
    return (-math.inf if low < -LIMIT else float(low)), (math.inf if high > LIMIT else float(high))


def _tally(votes: pd.DataFrame) -> pd.DataFrame:
    """Battles, wins, losses and ties of each model."""
    share = pd.concat([votes["share"], 1 - votes["share"]])
    model = pd.concat([votes["model_a"], votes["model_b"]]).rename("model")
    counts = pd.DataFrame({"battles": 1, "wins": share == 1, "losses": share == 0, "ties": share == 0.5})
    return counts.groupby(model).sum().astype(int).reset_index()
