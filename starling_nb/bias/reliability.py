"""How far a judge agrees with itself: when it ranks the same answers again, and when it is asked about two of them.

Two rankings of the same answers in one shown order tell how noisy a judge is; in other orders they add what the places
do. Agreement is Kendall's tau of the two rankings and whether they name the same winner. Prompts are what is
independent, so every interval is clustered by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from starling_nb import stats
from starling_nb.bias.failures import invalid_rates
from starling_nb.bias.tables import ANSWERS, BiasError, Floats, Ints, Rankings, named_answers, read
from starling_nb.stats import Interval, share_interval

LARGEST = 2_000_000
"""Pairs of rankings that are compared, at most."""
WINNERS = ("first", "second", "tie")
__all__ = ["Agreement", "agreement", "invalid_rates", "kendall", "pair_agreement", "read_follow_ups"]


@dataclass(frozen=True)
class Agreement:
    """Two rankings of the same answers, compared; ``n`` of the intervals counts prompts.

    Attributes:
        tau: mean Kendall tau, 1 for equal rankings, 0 for unrelated ones.
        same_winner: share of the pairs of rankings that put the same answer first.
        pairs: pairs of rankings compared.
        same_order: those of them in which the answers were shown in the same order; a retest is all of them.
    """

    tau: Interval
    same_winner: Interval
    pairs: int
    same_order: int


def agreement(
    one: pd.DataFrame,
    other: pd.DataFrame | None = None,
    order: Literal["any", "same", "other"] = "any",
    seed: int = 0,
    level: float = 0.95,
) -> Agreement:
    """Compare every ranking of ``one`` with every ranking of the same answers in ``other``.

    Args:
        one, other: need ``prompt_id``, ``ranking`` and what names the answers: ``answers``, ``shown`` or ``models``.
            Without ``other``, every two rankings of the same answers within ``one`` are compared.
        order: which pairs of rankings count: any, those with the answers shown in the ``same`` order, or in an
            ``other`` one.
        seed: of the bootstrap over prompts.
        level: coverage of the intervals.

    Raises:
        BiasError: no such pair of rankings; answers cannot be told apart, or are not those of the same models; or a
            table that :func:`starling_nb.bias.tables.read` refuses.
    """
    both = one if other is None else _joined(one, other)
    table = read(both, "prompt_id")
    answer, block = named_answers(both, table)
    first, second = _pairs(block, None if other is None else np.arange(len(table)) >= len(one))
    place = np.argsort(np.where(table.mask, answer, np.arange(table.width)), axis=1)
    _check_models(both, table, place, first, second)
    equal = (answer[first] == answer[second]).all(axis=1)
    kept = equal if order == "same" else ~equal if order == "other" else np.ones_like(equal)
    if not kept.any():
        shown = "" if order == "any" else f" shown in {'the same order' if order == 'same' else 'another order'}"
        raise BiasError(f"no two rankings are of the same answers of one prompt{shown}: rank prompts more than once")
    first, second = first[kept], second[kept]
    rank = np.take_along_axis(table.ranks, place, axis=1).astype(np.int16)
    tau = kendall(rank[first], rank[second], table.length[first])
    prompt = table.prompt[first]
    winner = np.argmax(rank == 0, axis=1)
    return Agreement(
        stats.mean_interval(tau, prompt, seed, 2000 if len(tau) < 50_000 else 400, level),
        share_interval(winner[first] == winner[second], prompt, level),
        len(first),
        int(equal[kept].sum()),
    )


def kendall(one: NDArray[Any], other: NDArray[Any], length: Ints) -> Floats:
    """Kendall's tau of rows of ranks ``[n, K]`` without ties, of which the first ``length`` count."""
    width = one.shape[1]
    total = np.zeros(len(one), dtype=np.int64)
    for gap in range(1, width):
        signs = np.sign(one[:, gap:] - one[:, :-gap]) * np.sign(other[:, gap:] - other[:, :-gap])
        total += np.where(np.arange(gap, width) < length[:, None], signs, 0).sum(axis=1)
    return total / (length * (length - 1) / 2)


def pair_agreement(
    rankings: pd.DataFrame, verdicts: pd.DataFrame, on: Sequence[str] = ("prompt_id",), level: float = 0.95
) -> pd.DataFrame:
    """How often a verdict on two answers alone puts them as the ranking of all does, by how far apart they are.

    Args:
        rankings: need ``prompt_id``, ``ranking`` and what names the answers: ``answers``, ``shown`` or ``models``.
        verdicts: one row a verdict: ``prompt_id``, ``first`` and ``second`` (answers, by the names that the rankings
            give them), ``winner`` (``first``, ``second`` or ``tie``).
        on: the columns by which a verdict finds its rankings, ``prompt_id`` among them; it is compared with each.
        level: coverage of the intervals.

    Returns:
        ``by`` (``rank``: distance in the ranking; ``shown``: distance in the shown list), ``distance``, ``share`` of
        the decided verdicts that agree, ``low``, ``high``, ``n`` (decided verdicts), ``ties``.

    Raises:
        BiasError: a missing column, an unknown winner, an answer named twice, or no verdict on a ranked pair.
    """
    if missing := [name for name in (*on, "first", "second", "winner") if name not in verdicts.columns]:
        raise BiasError(f"the verdicts lack {', '.join(missing)}: they need {', '.join(on)}, first, second and winner")
    if wrong := sorted(set(verdicts["winner"].astype(str)) - set(WINNERS)):
        raise BiasError(f"{wrong[0]!r} is no winner: write {', '.join(WINNERS[:-1])} or {WINNERS[-1]}")
    places = _placed(rankings, on)
    asked = verdicts.astype({"first": str, "second": str})
    found = asked.merge(places, left_on=[*on, "first"], right_on=[*on, "name"]).drop(columns="name")
    keys = {"left_on": [*on, "row", "second"], "right_on": [*on, "row", "name"]}
    found = found.merge(places, suffixes=("_first", "_second"), **keys)
    if found.empty:
        raise BiasError("no verdict is about two answers of a ranking: name answers as the rankings do")
    if set(places["row"][places.duplicated(["row", "name"])]) & set(found["row"]):
        raise BiasError("a ranking names an answer twice: add a column `answers` with a name of its own for each")
    first_above = found["rank_first"] < found["rank_second"]
    found["tied"], found["agrees"] = found["winner"] == "tie", (found["winner"] == "first") == first_above
    parts = [_by_distance(found, by, level) for by in ("rank", "shown")]
    return pd.concat(parts, ignore_index=True)


def read_follow_ups(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The authors' rankings of two to seven answers, and their verdicts on neighbours of each ranking, asked alone.

    In the runs named ``shuffle`` the two answers were shown in a random order. ``folder`` holds what
    :func:`starling_nb.bias.read_logs` needs, ``rankings.parquet`` with ``pairwise_adjacent_winners`` beside: the shown
    position that won, for every two neighbours from the best down.

    Returns:
        Rankings (``experiment, k, prompt_id, models, answers, ranking``) and verdicts (``experiment, k, prompt_id,
        first``, the one ranked higher, ``second, winner``) for :func:`pair_agreement` with
        ``on=("experiment", "k", "prompt_id")``.

    Raises:
        BiasError: a file is missing or lacks a column.
    """
    try:
        models = pd.read_parquet(folder / "responses.parquet").set_index("response_id")["model"]
        table = pd.read_parquet(folder / "rankings.parquet")
        table = table[table["valid_permutation"] & table["pairwise_adjacent_winners"].notna()].reset_index(drop=True)
        answers = [list(ids) for ids in table["response_ids"]]
        table = table.assign(answers=answers, models=[models[ids].tolist() for ids in answers])
        rankings = table.rename(columns={"ranking_order": "ranking"})
        keys, winners = ["experiment", "k", "prompt_id"], table["pairwise_adjacent_winners"]
        rows = [
            (*key, names[above], names[below], "first" if winner == above else "second")
            for *key, names, order, won in zip(
                *(table[k] for k in keys), answers, rankings["ranking"], winners, strict=True
            )
            for above, below, winner in zip(order[:-1], order[1:], won, strict=True)
        ]
    except (OSError, KeyError, ValueError) as error:
        raise BiasError(f"{folder} does not hold the follow-up logs ({error}): see read_follow_ups") from error
    return rankings[[*keys, "models", "answers", "ranking"]], pd.DataFrame(
        rows, columns=[*keys, *WINNERS[:2], "winner"]
    )


def _joined(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Both tables below each other, with the columns that name answers in both."""
    shared = [name for name in (*ANSWERS, "models") if name in one.columns and name in other.columns]
    for table in (one, other):
        if missing := [name for name in ("prompt_id", "ranking") if name not in table.columns]:
            raise BiasError(f"the rankings lack {', '.join(missing)}: they need prompt_id, models and ranking")
    return pd.concat([table[["prompt_id", "ranking", *shared]] for table in (one, other)], ignore_index=True)


def _pairs(block: Ints, side: NDArray[np.bool_] | None) -> tuple[Ints, Ints]:
    """Rows that rank the same answers, every two of them once; with sides given, one of each."""
    order = np.argsort(block, kind="stable")
    sorted_block, found, count = block[order], [], 0
    for gap in range(1, len(block)):
        here = np.flatnonzero(sorted_block[gap:] == sorted_block[:-gap])
        if not len(here) or count > LARGEST:
            break
        pair = np.stack([order[here], order[here + gap]])
        found.append(pair if side is None else pair[:, side[pair[0]] != side[pair[1]]])
        count += found[-1].shape[1]
    first, second = np.concatenate(found, axis=1)[:, :LARGEST] if found else np.zeros((2, 0), dtype=np.intp)
    return first, second


def _check_models(rankings: pd.DataFrame, table: Rankings, place: Ints, first: Ints, second: Ints) -> None:
    """Refuse answers that have one name in both rankings and other models behind it."""
    if "models" not in rankings.columns or not any(name in rankings.columns for name in ANSWERS):
        return
    model = read(rankings, "prompt_id", "models").model
    assert model is not None
    by_answer = np.take_along_axis(model, place, axis=1)
    if len(wrong := np.flatnonzero((by_answer[first] != by_answer[second]).any(axis=1))):
        prompt = table.prompts[table.prompt[first[wrong[0]]]]
        raise BiasError(
            f"prompt {prompt}: one answer has two models in two rankings, so that the answers are not the same: "
            "compare rankings of the same answers"
        )


def _placed(rankings: pd.DataFrame, on: Sequence[str]) -> pd.DataFrame:
    """One row an answer: the columns ``on``, ``row``, ``name``, ``shown`` position and ``rank``."""
    table = read(rankings, *dict.fromkeys(("prompt_id", *on)))
    column = next((name for name in (*ANSWERS, "models") if name in rankings.columns), None)
    if column is None:
        raise BiasError("nothing names the answers: add a column `answers` with a name of its own for each")
    row, shown = np.nonzero(table.mask)
    names = [str(name) for names in rankings[column] for name in names]
    if len(names) != len(row):
        raise BiasError(f"{len(row)} answers are ranked but {column} names {len(names)}: name each one")
    keys = rankings[list(on)].iloc[row].reset_index(drop=True)
    return keys.assign(row=row, name=names, shown=shown, rank=table.ranks[row, shown], prompt=table.prompt[row])


def _by_distance(found: pd.DataFrame, by: str, level: float) -> pd.DataFrame:
    """Agreement of decided verdicts by the distance of their two answers."""
    rows = []
    distance = (found[f"{by}_first"] - found[f"{by}_second"]).abs()
    for gap, part in found.groupby(distance):
        decided = part[~part["tied"]]
        share = Interval(float("nan"), float("nan"), float("nan"), 0)
        if len(decided):
            share = share_interval(decided["agrees"], decided["prompt_first"], level)
        rows.append((by, gap, share.value, share.low, share.high, len(decided), len(part) - len(decided)))
    return pd.DataFrame(rows, columns=["by", "distance", "share", "low", "high", "n", "ties"])
