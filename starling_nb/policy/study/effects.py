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
from starling_nb.files import rng
from starling_nb.policy.study.arms import ONLINE
from starling_nb.stats import Interval, crossed_interval, mean_interval

ARM = ["method", "labels", "start", "changes"]
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


def of_methods(study: pd.DataFrame) -> pd.DataFrame:
    """Test rows of the arms that differ from one another in their method, and its learning rate, only."""
    plain = (study.labels == "full") & (study.start == "chat") & (study.changes.str.count("=") <= 1)
    return study[plain & (study.split == "test")]


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


def gains(study: pd.DataFrame, column: str = "utility") -> pd.DataFrame:
    """Change of ``column`` from the chat model, a row an arm: ARM, value, low, high, n, seeds, kl (nats a sequence)."""
    chat = (study.method == "start") & (study.start == "chat")
    start = matrix(study[chat], column)
    rows = []
    for names, arm in study[~chat].groupby(ARM, sort=False):
        found = matrix(arm, column)
        change = crossed_interval((found - start.loc[found.index, found.columns]).to_numpy())
        told = {"seeds": found.shape[1], "kl": float(arm.kl.mean())}
        rows.append(dict(zip(ARM, names, strict=True)) | vars(change) | told)
    return pd.DataFrame(rows)


def gains_of(study: pd.DataFrame, metrics: Mapping[str, str]) -> pd.DataFrame:
    """:func:`gains` of several columns, each under its name in ``metrics``: its columns and ``metric``."""
    return pd.concat([gains(study, column).assign(metric=name) for column, name in metrics.items()], ignore_index=True)


def online(gains: pd.DataFrame, metric: str) -> dict[str, Interval]:
    """Online method → its gain by ``metric``, of a table of :func:`gains_of`."""
    own = gains[gains.metric == metric].set_index("method")
    found = {name: own.loc[name] for name in ONLINE if name in own.index}
    return {name: Interval(row.value, row.low, row.high, int(row.n)) for name, row in found.items()}


def differences(study: pd.DataFrame, margin: float, column: str = "utility") -> pd.DataFrame:
    """Methods against each other, a row a pair: one, other, value, low, high (90 %), n, equivalent.

    Two one-sided tests at 5 % (Schuirmann 1987): ``equivalent`` where the 90 % interval lies within ``margin``, which
    has to be fixed before the data are seen.
    """
    arms = {name: matrix(arm, column) for name, arm in study.groupby("method", sort=False) if name != "start"}
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


def variance_shares(study: pd.DataFrame, column: str = "utility", draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """What part of the differences between arms is due to what: part, value, low, high, n.

    ω² of a balanced design labels × method × seed on the arms' means (Olejnik & Algina 2003), which, unlike a share of
    squares, is near 0 where there is no effect; intervals by resampling prompts.

    Raises:
        StarlingError: an arm of the design is missing.
    """
    arms = study[study.method != "start"]
    names = [list(dict.fromkeys(arms[factor])) for factor in ("labels", "method", "seed")]
    cells = arms.groupby(["labels", "method"], sort=False)
    if cells.ngroups != len(names[0]) * len(names[1]):
        raise StarlingError("shares of variance need every method with every kind of labels: finish the study first")
    every = {name: matrix(part, column) for name, part in cells}
    table = np.stack([np.stack([every[a, b].to_numpy() for b in names[1]]) for a in names[0]])
    prompts = table.shape[2]
    weights = rng(seed, "variance shares").multinomial(prompts, np.full(prompts, 1 / prompts), draws) / prompts
    drawn = _omegas(np.einsum("dp,abps->dabs", weights, table))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    value = _omegas(table.mean(2)[None])[0]
    parts = ("labels", "method", "labels × method", "seed")
    return pd.DataFrame({"part": parts, "value": value, "low": low, "high": high, "n": prompts})


def _omegas(means: Floats) -> Floats:
    """ω² of labels, method, both together and seed ``[draws, 4]``, from ``[draws, labels, methods, seeds]``."""
    _, a, b, s = means.shape
    whole = means.mean((1, 2, 3), keepdims=True)
    by_a, by_b, by_s = (means.mean(axes, keepdims=True) for axes in ((2, 3), (1, 3), (1, 2)))
    by_ab = means.mean(3, keepdims=True)
    squares = [
        b * s * ((by_a - whole) ** 2).sum((1, 2, 3)),
        a * s * ((by_b - whole) ** 2).sum((1, 2, 3)),
        s * ((by_ab - by_a - by_b + whole) ** 2).sum((1, 2, 3)),
        a * b * ((by_s - whole) ** 2).sum((1, 2, 3)),
    ]
    freedom = [a - 1, b - 1, (a - 1) * (b - 1), s - 1]
    rest = ((means - by_ab - by_s + whole) ** 2).sum((1, 2, 3)) / ((a * b - 1) * (s - 1))
    total = ((means - whole) ** 2).sum((1, 2, 3)) + rest
    found: Floats = np.stack([(x - df * rest) / total for x, df in zip(squares, freedom, strict=True)], axis=1)
    return found


def best_rate(trials: pd.DataFrame, column: str = "utility") -> dict[str, str]:
    """The trial of each method with the best mean ``column``: method → its changes."""
    means = trials[trials.method != "start"].groupby(["method", "changes"], sort=False)[column].mean()
    return {str(method): str(part.idxmax()[1]) for method, part in means.groupby("method", sort=False)}
