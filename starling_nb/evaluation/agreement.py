"""How far a judge can be trusted: against people, against itself with the answers exchanged, against length.

All of it works on tables of verdicts, one row a verdict, with the columns

* ``prompt_id``: the prompt; prompts are what is independent, so every interval is clustered by them;
* ``first``, ``second``: names of the two answers in the order in which they were shown, say the models;
* ``winner``: ``first``, ``second`` or ``tie``; missing (None, NaN) where the reply could not be read.

Labels have the same columns. Where one prompt has several comparisons of the same two names, say in repeated runs or
for several judges, name the columns that tell them apart in ``on``; its first one is the cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from starling_nb.bias.reliability import WINNERS
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.tables import need, single
from starling_nb.stats import Interval, share_interval

ON = ("prompt_id",)
Rule = Literal["each", "net", "both"]
RULES: dict[Rule, str] = {
    "each": "every verdict counts by itself, whatever its order",
    "net": "the verdicts of both orders add up, a tie counts nothing; opposite ones cancel out and make a tie",
    "both": "a pair is right where the verdicts of both orders are",
}
"""How verdicts become what is right or wrong."""
_NEITHER = 2.0  # a verdict that no label says


@dataclass(frozen=True)
class BothOrders:
    """What a judge does when the same two answers are shown in both orders; ``n`` of the intervals counts prompts.

    Attributes:
        first_wins: share of the decided verdicts, in whatever order, that name the answer shown first; NaN of none.
        consistent: share of the pairs with the same result in both orders, two ties included.
        always_first, always_second: share of the pairs in which the first, or the second, shown won both times.
        verdicts, ties, unreadable: readable verdicts, ties among them, and those that could not be read.
        pairs: pairs with a readable verdict in each order.
        excluded: pairs that were left out of the shares of pairs, having one order only or an unreadable verdict.
    """

    first_wins: Interval
    consistent: Interval
    always_first: Interval
    always_second: Interval
    verdicts: int
    ties: int
    unreadable: int
    pairs: int
    excluded: int


@dataclass(frozen=True)
class Accuracy:
    """Verdicts against labels; ``n`` of the interval counts prompts.

    Attributes:
        accuracy: share of what counts that says what the label says; a tie is right where the label is a tie.
        decided: the same where neither verdict nor label is a tie.
        counted: what counts on labelled pairs: verdicts by the rule ``each``, else pairs.
        unreadable: verdicts on labelled pairs that could not be read, or pairs that lack a readable verdict in one of
            the orders; they count in neither share, unless they were to count as wrong.
        unlabelled: verdicts on pairs without a label.
    """

    accuracy: Interval
    decided: Interval
    counted: int
    unreadable: int
    unlabelled: int


def both_orders(verdicts: pd.DataFrame, on: Sequence[str] = ON) -> BothOrders:
    """Position bias and consistency of a judge from verdicts in both orders.

    Raises:
        EvaluationError: a missing column, an unknown winner, two verdicts on one shown order, or no pair in both
            orders.
    """
    table = _named(verdicts, on)
    single(table, [*on, "one", "other", "shown"], "two verdicts are on the same answers in the same order")
    read = table[table["won"].notna()]
    decided = read[read["won"] != 0]
    keys = [*on, "one", "other"]
    pairs = read[read["shown"] == 1].merge(read[read["shown"] == -1], on=keys, suffixes=("", "_swapped"))
    if pairs.empty:
        raise EvaluationError("no pair has a readable verdict in each order: ask the judge about both orders")
    prompt, one, swapped = pairs[on[0]], pairs["won"], pairs["won_swapped"]
    return BothOrders(
        share(decided["won"] == decided["shown"], decided[on[0]]),
        share_interval(one == swapped, prompt),
        share_interval((one == 1) & (swapped == -1), prompt),
        share_interval((one == -1) & (swapped == 1), prompt),
        len(read),
        len(read) - len(decided),
        len(table) - len(read),
        len(pairs),
        len(table[keys].drop_duplicates()) - len(pairs),
    )


def accuracy(
    verdicts: pd.DataFrame,
    labels: pd.DataFrame,
    on: Sequence[str] = ON,
    rule: Rule = "each",
    unreadable: Literal["out", "wrong"] = "out",
) -> Accuracy:
    """How often a judge says what people (or a known right answer) say.

    Args:
        verdicts: of the judge, in one order or both.
        labels: one row a pair; a label that is missing leaves its pair unlabelled. See :func:`majority`.
        on: columns that join the two.
        rule: a name in :data:`RULES`; all but ``each`` need verdicts in both orders.
        unreadable: whether what cannot be read is left out or, as some sets' own scripts have it, says nothing and is
            wrong (by the rule ``net``: adds nothing to the other order's verdict).

    Raises:
        EvaluationError: as :func:`both_orders`; two labels for one pair; or nothing that counts.
    """
    truth, keys = _named(labels, on), [*on, "one", "other"]
    single(truth, keys, "two labels are for the same pair")
    found = _named(verdicts, on).merge(truth[[*keys, "won"]], on=keys, how="left", suffixes=("", "_label"))
    labelled = found[found["won_label"].notna()]
    counted = labelled.assign(blank=labelled["won"].isna()) if rule == "each" else _of_pairs(labelled, keys, rule)
    read = counted.fillna({"won": _NEITHER}) if unreadable == "wrong" else counted[~counted["blank"]]
    if read.empty:
        raise EvaluationError("no readable verdict is on a labelled pair: name prompts and answers as the labels do")
    decided = read[read["won"].isin([-1, 1]) & (read["won_label"] != 0)]
    return Accuracy(
        share_interval(read["won"] == read["won_label"], read[on[0]]),
        share(decided["won"] == decided["won_label"], decided[on[0]]),
        len(read),
        int(counted["blank"].sum()),
        len(found) - len(labelled),
    )


def _of_pairs(rows: pd.DataFrame, keys: list[str], rule: Rule) -> pd.DataFrame:
    """One row a pair: what its verdicts come to, and ``blank`` where one of the two cannot be read or is missing."""
    single(rows, [*keys, "shown"], "two verdicts are on the same answers in the same order")
    wide = rows.pivot(index=[*keys, "won_label"], columns="shown", values="won").reindex(columns=[1, -1])
    agreed = wide[1].where(wide[1] == wide[-1], _NEITHER)
    won = np.sign(wide.sum(axis=1, min_count=1)) if rule == "net" else agreed
    return wide.assign(won=won, blank=wide.isna().any(axis=1)).reset_index()


def majority(votes: pd.DataFrame, on: Sequence[str] = ON) -> pd.DataFrame:
    """One label a pair from several votes on it: what more people said than anything else.

    Args:
        votes: one row a vote, with the columns of a verdict.
        on: columns that tell pairs apart, beside the answers' names.

    Returns:
        ``*on, first, second, winner, votes, agreeing``; ``winner`` is missing where two results have equally many
        votes.

    Raises:
        EvaluationError: a missing column or an unknown winner.
    """
    table = _named(votes, on)
    counts = table.dropna(subset="won").groupby([*on, "one", "other"], sort=False)["won"].value_counts().unstack()
    counts = counts.reindex(columns=[1.0, -1.0, 0.0]).fillna(0)
    most = counts.max(axis=1)
    clear = counts.eq(most, axis=0).sum(axis=1) == 1
    winner = counts.idxmax(axis=1).map({1.0: "first", -1.0: "second", 0.0: "tie"}).where(clear, None)
    found = pd.DataFrame({"winner": winner, "votes": counts.sum(axis=1).astype(int), "agreeing": most.astype(int)})
    return found.reset_index().rename(columns={"one": "first", "other": "second"})


def longer_wins(pairs: pd.DataFrame, on: Sequence[str] = ON) -> pd.DataFrame:
    """The verdicts of a judge that only counts characters: the baseline that a judge has to beat.

    Args:
        pairs: ``*on, first, second`` and the answers' texts in ``first_text`` and ``second_text``.

    Returns:
        ``*on, first, second, winner``; answers of equal length are a tie.

    Raises:
        EvaluationError: a missing column.
    """
    need(pairs, [*on, "first", "second", "first_text", "second_text"])
    gap = np.sign(pairs["first_text"].str.len() - pairs["second_text"].str.len())
    return pairs[[*on, "first", "second"]].assign(winner=gap.map({1: "first", -1: "second", 0: "tie"}))


def cyclic_triads(verdicts: pd.DataFrame, on: Sequence[str] = ON) -> Interval:
    """Share of the threes of answers to one prompt, all decided, that run in a circle: a over b, b over c, c over a.

    The verdicts on a pair, in both orders say, are averaged first; a pair that is even then decides nothing. ``n``
    counts prompts.

    Raises:
        EvaluationError: a missing column, an unknown winner, or no three answers with all pairs decided.
    """
    table = _named(verdicts, on).dropna(subset="won")
    table["group"] = table.groupby(list(on), sort=False).ngroup()
    net = np.sign(table.groupby(["one", "other", "group"])["won"].sum())
    wide = net.unstack("group").fillna(0.0)
    names = sorted(set(table["one"]) | set(table["other"]))
    prompt = table.drop_duplicates("group").set_index("group")[on[0]].loc[wide.columns].to_numpy()
    rows = {pair: wide.loc[pair].to_numpy() for pair in wide.index}
    hits, clusters = [], []
    for a, b, c in combinations(names, 3):
        if (a, b) in rows and (b, c) in rows and (a, c) in rows:
            first, second, last = rows[a, b], rows[b, c], rows[a, c]
            decided = (first * second * last) != 0
            hits.append(((first == second) & (first == -last))[decided])
            clusters.append(prompt[decided])
    if not hits or not len(hit := np.concatenate(hits)):
        raise EvaluationError(
            "no three answers to one prompt have all their pairs decided: nothing can run in a circle"
        )
    return share_interval(hit, np.concatenate(clusters))


def _named(table: pd.DataFrame, on: Sequence[str]) -> pd.DataFrame:
    """The columns ``on``, the two names in sorted order, ``shown`` (1 where ``one`` was shown first, else -1) and
    ``won``: 1 where ``one`` won, -1 where ``other`` did, 0 for a tie, NaN where nothing could be read."""
    need(table, [*on, "first", "second", "winner"])
    if wrong := sorted({str(winner) for winner in table["winner"].dropna()} - set(WINNERS)):
        raise EvaluationError(f"{wrong[0]!r} is no winner: write {', '.join(WINNERS[:-1])} or {WINNERS[-1]}, or None")
    first, second = table["first"].astype(str), table["second"].astype(str)
    if (first == second).any():
        raise EvaluationError("an answer is compared with itself: give the two answers names of their own")
    shown = np.where(first < second, 1, -1)
    won = table["winner"].map(dict(zip(WINNERS, (1.0, -1.0, 0.0), strict=True))).astype(float) * shown
    found = table[list(on)].assign(one=first.where(shown == 1, second), other=second.where(shown == 1, first))
    return found.assign(shown=shown, won=won).reset_index(drop=True)


def share(hits: ArrayLike, clusters: ArrayLike) -> Interval:
    """Clustered share of hits; NaN of none."""
    nan = float("nan")
    return share_interval(hits, clusters) if np.size(hits) else Interval(nan, nan, nan, 0)
