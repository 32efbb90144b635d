"""What a study of policies shows: gains over the start, methods against each other, and what a gain depends on.

All of it is computed from one table with a row a prompt of every arm (columns method, labels, start, changes, split,
seed, prompt_id, utility, facts, words, eos, reward, kl), as ``benchmarks/study.py`` keeps it. Arms of a seed shared
their random numbers, so every difference is paired by prompt and seed; intervals cover prompts and seeds
(:func:`starling_nb.stats.crossed_interval`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from starling_nb.errors import StarlingError
from starling_nb.policy.recipe import PARTS
from starling_nb.policy.study.arms import ONLINE
from starling_nb.stats import Interval, crossed_interval, mean_interval

ARM = ["method", "labels", "start", "changes"]
DEMONSTRATION = "best demonstration"
"""Method of the rows that grade the data set's best-ranked answers as if a policy had given them."""
Floats = NDArray[np.float64]


def read(path: Path) -> pd.DataFrame:
    """A study's table as ``benchmarks/study.py`` keeps it.

    Raises:
        StarlingError: the file has other columns.
    """
    study = pd.read_parquet(path)
    if missing := [name for name in (*ARM, "split", "seed", "prompt_id", "utility", "kl") if name not in study]:
        raise StarlingError(f"{path} is no study's table: it lacks {', '.join(missing)}; name that of benchmarks.study")
    return study


def chapter(study: pd.DataFrame, varied: str = "method") -> pd.DataFrame:
    """Test rows of the start model and of arms that differ in one way at most from plain ones, which are of all labels,
    from the chat model, with a learning rate for their only change; of the seeds that all these arms have.

    Args:
        study: from :func:`read`.
        varied: ``method`` keeps the plain arms of every method. ``labels``, ``start``, ``trainable`` and ``switches``
            (every other switch of the recipe) add the arms that differ in it, and keep the methods that have such arms;
            ``beyond`` keeps APA and its extrapolation, which the others leave out.

    Raises:
        StarlingError: another ``varied``.
    """
    own = study.changes.map(further)
    blocks = own.str.startswith("trainable=")
    differs = {
        "labels": study.labels != "full",
        "start": study.start != "chat",
        "trainable": blocks,
        "switches": (own != "") & ~blocks,
        "beyond": study.method == "expo",
    }
    if varied not in ("method", *differs):
        raise StarlingError(f"varied = {varied!r}: choose one of method, {', '.join(differs)}")
    others = pd.concat([found for name, found in differs.items() if name != varied], axis=1).any(axis=1)
    rows = study[~others & (study.split == "test")]
    if varied == "method":
        return _in_all(rows[rows.method != DEMONSTRATION])
    whole = {"start", "apa"} if varied == "beyond" else {"start"}
    return _in_all(rows[rows.method.isin({*whole, *rows.method[differs[varied]]})])


def _in_all(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the seeds that every arm among them has: a study that is under way goes on seed by seed."""
    arms = rows[[*ARM, "seed"]].drop_duplicates().groupby("seed").size()
    return rows[rows.seed.isin(arms.index[arms == rows[ARM].drop_duplicates().shape[0]])]


def further(changes: str) -> str:
    """What an arm changes besides its learning rate."""
    return " ".join(one for one in changes.split() if not one.startswith("lr="))


def named(gains: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """``gains`` whose ``method`` says what tells its rows apart: the method and these columns; for figures."""
    told = gains[list(columns)].copy()
    if "changes" in told:
        told["changes"] = told.changes.map(_part)
    words = pd.concat([gains.method, told], axis=1).astype(str)
    return gains.assign(method=[", ".join(word for word in row if word) for row in words.to_numpy()])


def _part(changes: str) -> str:
    """The name of the part of the recipe that an arm has changed, or what it changed."""
    own = further(changes)
    switches = tuple(one.partition("=")[0] for one in own.split())
    parts = {names: part for part, names in PARTS.items()}
    return parts.get(switches, own if len(switches) < 2 else "all of them")


def trials(study: pd.DataFrame) -> pd.DataFrame:
    """Rows of the trials, on validation prompts, from which each method's learning rate was chosen."""
    return study[study.split == "validation"]


def matrix(arm: pd.DataFrame, column: str) -> pd.DataFrame:
    """One arm's ``column`` as prompts × seeds.

    Raises:
        StarlingError: an arm that is missing, or measured twice or not at all on a prompt of a seed.
    """
    if arm.empty or arm.duplicated(["prompt_id", "seed"]).any():
        raise StarlingError("a study's table needs one row a prompt and seed of every arm: gather it again")
    table = arm.pivot(index="prompt_id", columns="seed", values=column)
    if table.isna().any(axis=None):
        raise StarlingError(f"the seeds of an arm have {column} for other prompts each: finish the study first")
    return table


def gains(study: pd.DataFrame, column: str = "utility", base: pd.DataFrame | None = None) -> pd.DataFrame:
    """Change of ``column`` from the rows of one arm, ``base`` (the chat model), less ``base``, chat model.

    Columns: ARM, value, low, high, n, seeds, kl (nats a sequence).
    """
    if base is None:
        base = study[(study.method == "start") & (study.start == "chat")]
    start, own = matrix(base, column), set(map(tuple, base[ARM].drop_duplicates().to_numpy()))
    rows = []
    for names, arm in study.groupby(ARM, sort=False):
        if names in own or (names[0] == "start" and names[2] == "chat"):
            continue
        found = matrix(arm, column)
        change = crossed_interval((found - start.loc[found.index, found.columns]).to_numpy())
        told = {"seeds": found.shape[1], "kl": float(arm.kl.mean())}
        rows.append(dict(zip(ARM, names, strict=True)) | vars(change) | told)
    return pd.DataFrame(rows)


def from_own_start(study: pd.DataFrame, metrics: Mapping[str, str]) -> pd.DataFrame:
    """:func:`gains_of` every arm over the model that it began with."""
    trained = study[study.method.isin(["start", *ONLINE, "dpo"])]
    parts = [gains_of(own, metrics, own[own.method == "start"]) for _, own in trained.groupby("start", sort=False)]
    return pd.concat(parts, ignore_index=True)


def demonstrated(study: pd.DataFrame) -> Interval:
    """How much more the data set's first-ranked answers are worth than the chat model's, by rubric."""
    test = study[(study.split == "test") & (study.start == "chat")]
    best, start = (matrix(test[test.method == method], "utility") for method in (DEMONSTRATION, "start"))
    return crossed_interval((best - start.loc[best.index, best.columns]).to_numpy())


def gains_of(study: pd.DataFrame, metrics: Mapping[str, str], base: pd.DataFrame | None = None) -> pd.DataFrame:
    """:func:`gains` of several columns, each under its name in ``metrics``: its columns and ``metric``."""
    parts = [gains(study, column, base).assign(metric=name) for column, name in metrics.items()]
    return pd.concat(parts, ignore_index=True)


def told_seeds(gains: pd.DataFrame) -> str:
    """How many seeds a table of :func:`gains` is of, for a caption."""
    most, least = gains.seeds.max(), gains.seeds.min()
    if most == 1:
        return "one seed, intervals over prompts alone"
    return f"{most} seeds" if most == least else f"{least} to {most} seeds"


def online(gains: pd.DataFrame, metric: str) -> dict[str, Interval]:
    """Online method → its gain by ``metric``, of a table of :func:`gains_of`."""
    own = gains[gains.metric == metric].set_index("method")
    found = {name: own.loc[name] for name in ONLINE if name in own.index}
    return {name: Interval(row.value, row.low, row.high, int(row.n)) for name, row in found.items()}


def differences(study: pd.DataFrame, margin: float, column: str = "utility") -> pd.DataFrame:
    """Trained methods against each other, a row a pair: one, other, value, low, high (90 %), n, equivalent.

    Two one-sided tests at 5 % (Schuirmann 1987): ``equivalent`` where the 90 % interval lies within ``margin``, which
    has to be fixed before the data are seen.
    """
    arms = {name: matrix(arm, column) for name, arm in study.groupby("method", sort=False) if name in (*ONLINE, "dpo")}
    rows = []
    for one, other in combinations(arms, 2):
        gap = crossed_interval((arms[one] - arms[other]).to_numpy(), level=0.9)
        rows.append({"one": one, "other": other, **vars(gap), "equivalent": max(-gap.low, gap.high) < margin})
    return pd.DataFrame(rows)


def largest_gap(study: pd.DataFrame, column: str = "utility") -> Interval:
    """Of the two online methods that are furthest apart, how far, with its 95 % interval; the worst of all pairs, so
    larger than a pair named in advance would be.

    Raises:
        StarlingError: fewer than two online methods.
    """
    arms = {name: matrix(arm, column) for name, arm in study.groupby("method", sort=False) if name in ONLINE}
    pairs = [crossed_interval((arms[one] - arms[other]).to_numpy()) for one, other in permutations(arms, 2)]
    if not pairs:
        raise StarlingError("a gap needs two online methods: finish the study first")
    return max(pairs, key=lambda gap: gap.value)


def at_equal_kl(trials: pd.DataFrame, columns: Sequence[str] = ("utility", "reward")) -> tuple[float, pd.DataFrame]:
    """Methods at one divergence: change from the start, linear in √KL between each method's trials; the best of n
    answers is no method here, whose divergence never gets far.

    Returns:
        The divergence, nats a sequence: the largest that every method reached; and method, metric, value, low, high, n,
        intervals over prompts.
    """
    start = trials[trials.method == "start"].set_index("prompt_id")
    tuned = trials[(trials.method != "start") & ~trials.method.str.startswith("best of ")]
    ways = {
        name: sorted(((arm.kl.mean(), arm.set_index("prompt_id")) for _, arm in part.groupby("changes")), key=_first)
        for name, part in tuned.groupby("method", sort=False)
    }
    level = min(way[-1][0] for way in ways.values())
    rows = []
    for name, way in ways.items():
        places = [0.0, *(float(np.sqrt(kl)) for kl, _ in way)]
        for column in columns:
            points = np.stack([np.zeros(len(start)), *((arm[column] - start[column]).to_numpy() for _, arm in way)])
            rows.append({"method": name, "metric": column, **vars(mean_interval(_between(places, points, level**0.5)))})
    return float(level), pd.DataFrame(rows)


def _first(pair: tuple[float, pd.DataFrame]) -> float:
    return pair[0]


def _between(places: Sequence[float], points: Floats, place: float) -> Floats:
    """Each column of ``points`` ``[places, prompts]`` at ``place``, linear between neighbours."""
    after = min(int(np.searchsorted(places, place)), len(places) - 1)
    share = (place - places[after - 1]) / (places[after] - places[after - 1])
    found: Floats = points[after - 1] + share * (points[after] - points[after - 1])
    return found


def frontier(trials: pd.DataFrame, column: str) -> pd.DataFrame:
    """Change of ``column`` over divergence, for each method from the start model on; intervals over prompts, paired.

    Columns: method, kl (nats a sequence), value, low, high, n.
    """
    start = trials[trials.method == "start"].set_index("prompt_id")

    def point(arm: pd.DataFrame) -> dict[str, float]:
        change = arm[column] - start[column]
        return {"kl": float(arm.kl.mean()), **vars(mean_interval(change))}

    rows = []
    for name, part in trials[trials.method != "start"].groupby("method", sort=False):
        arms = [start, *(arm.set_index("prompt_id") for _, arm in part.groupby("changes"))]
        rows += [{"method": name, **point(arm)} for arm in arms]
    return pd.DataFrame(rows)


def best_rate(trials: pd.DataFrame, column: str = "utility") -> dict[str, str]:
    """The trial of each method with the best mean ``column``: method → its changes."""
    means = trials[trials.method != "start"].groupby(["method", "changes"], sort=False)[column].mean()
    return {str(method): str(part.idxmax()[1]) for method, part in means.groupby("method", sort=False)}
