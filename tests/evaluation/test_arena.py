"""Ratings of battles against closed forms, an independent implementation and planted truths."""

from __future__ import annotations

import math
from typing import Any

import choix
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling_nb.evaluation import EvaluationError, arena

SWAPPED = {"model_a": "model_b", "model_b": "model_a"}


def battles(seed: int = 0, votes: int = 600, models: int = 4, spread: float = 0.8) -> pd.DataFrame:
    """Votes on random pairs of models m0 (best), m1 …, a sixth of them ties; sixty questions."""
    draw = np.random.default_rng(seed)
    first = draw.integers(0, models, votes)
    second = (first + draw.integers(1, models, votes)) % models
    wins = draw.random(votes) < 1 / (1 + np.exp(spread * (first - second)))
    winner = np.where(draw.random(votes) < 1 / 6, "tie", np.where(wins, "model_a", "model_b"))
    names = np.array([f"m{i}" for i in range(models)])
    sides = {"model_a": names[first], "model_b": names[second]}
    return pd.DataFrame({**sides, "winner": winner, "question": draw.integers(0, 60, votes)})


def rated(table: pd.DataFrame, **asked: Any) -> pd.Series:
    return arena.bradley_terry(table, draws=0, **asked).table.set_index("model")["rating"]


def table(*rows: tuple[Any, Any, Any], times: int = 1) -> pd.DataFrame:
    return pd.DataFrame(list(rows) * times, columns=["model_a", "model_b", "winner"])


def test_two_models_in_closed_form() -> None:
    votes = table(*[("x", "y", "model_a")] * 2, ("x", "y", "tie"), ("y", "x", "tie (bothbad)"), times=5)
    found = arena.bradley_terry(votes)
    assert found.difference("x", "y").value == pytest.approx(400 * math.log10(3), abs=1e-3)
    assert found.table["rating"].mean() == pytest.approx(1000)
    assert found.table.to_dict("records")[0] | {"rating": 0, "low": 0, "high": 0} == {
        **{"model": "x", "rating": 0, "low": 0, "high": 0},
        **{"battles": 20, "wins": 10, "losses": 0, "ties": 10},
    }
    assert arena.win_probability(found.difference("x", "y").value) == pytest.approx(0.75, abs=1e-6)
    assert (found.n, found.battles, found.dropped, found.unrated) == (20, 20, {}, {})


def test_ratings_equal_those_of_choix() -> None:
    votes = battles()
    wins = np.zeros((4, 4))
    for a, b, winner in votes[["model_a", "model_b", "winner"]].itertuples(index=False):
        wins[int(a[1]), int(b[1])] += arena.OUTCOMES[winner]
        wins[int(b[1]), int(a[1])] += 1 - arena.OUTCOMES[winner]
    theirs = choix.ilsr_pairwise_dense(wins, tol=1e-12)
    expected = 1000 + arena.POINTS * (theirs - theirs.mean())
    assert rated(votes).sort_index().to_numpy() == pytest.approx(expected, abs=1e-2)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(4)))
def test_sides_order_and_names_of_battles_change_nothing(seed: int, names: list[int]) -> None:
    votes = battles(seed, votes=80)
    draw = np.random.default_rng(seed)
    turned, renamed = votes.copy(), {f"m{i}": f"m{k}" for i, k in enumerate(names)}
    here = draw.random(len(votes)) < 0.5
    turned.loc[here, ["model_a", "model_b"]] = votes.loc[here, ["model_b", "model_a"]].to_numpy()
    turned.loc[here, "winner"] = votes.loc[here, "winner"].replace(SWAPPED)
    turned = turned.iloc[draw.permutation(len(votes))].replace({"model_a": renamed, "model_b": renamed})
    plain, other = rated(votes), rated(turned)
    assert other[plain.index.map(renamed)].to_numpy() == pytest.approx(plain.to_numpy(), abs=1e-4)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000))
def test_every_model_wins_as_often_as_its_rating_says(seed: int) -> None:
    """What defines the maximum of the likelihood."""
    votes = battles(seed, votes=60)
    rating, share = rated(votes), votes["winner"].map(arena.OUTCOMES)
    gap = votes["model_a"].map(rating) - votes["model_b"].map(rating)
    expected = 1 / (1 + 10 ** (-gap / 400))
    for model in rating.index:
        left, right = votes["model_a"] == model, votes["model_b"] == model
        assert (share - expected)[left].sum() - (share - expected)[right].sum() == pytest.approx(0, abs=1e-4)


def test_four_times_the_votes_halve_the_interval_unless_they_are_one_voters() -> None:
    votes = battles(votes=400).assign(vote=range(400))
    four = pd.concat([votes] * 4, ignore_index=True)
    width = {}
    for name, found in {
        "once": arena.bradley_terry(votes),
        "four": arena.bradley_terry(four),
        "clustered": arena.bradley_terry(four, clusters="vote"),
    }.items():
        gap = found.difference("m0", "m3")
        assert gap.low < gap.value < gap.high
        width[name] = gap.high - gap.low
    assert width["four"] == pytest.approx(width["once"] / 2, rel=0.15)
    assert width["clustered"] == pytest.approx(width["once"], rel=0.15)
    assert arena.bradley_terry(four, clusters="vote", draws=10).n == 400


def test_equal_seeds_give_equal_intervals() -> None:
    first, again, other = (arena.bradley_terry(battles(), draws=50, seed=seed).table for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)


def test_style_takes_up_a_planted_length_bias() -> None:
    draw = np.random.default_rng(3)
    votes = battles(3, votes=12_000, models=3, spread=0.5)
    number = {name: votes[f"model_{name}"].str[1].astype(int).to_numpy() for name in "ab"}
    for name in "ab":  # the worst model writes the longest answers
        votes[f"length_{name}"] = draw.lognormal(5 + 0.4 * number[name], 0.5).round()
    length = {name: votes[f"length_{name}"].to_numpy() for name in "ab"}
    relative = (length["a"] - length["b"]) / (length["a"] + length["b"])
    relative /= np.sqrt((relative**2).mean())
    gap = 0.5 * (number["b"] - number["a"]) + 0.7 * relative
    votes["winner"] = np.where(draw.random(len(votes)) < 1 / (1 + np.exp(-gap)), "model_a", "model_b")
    plain, found = arena.bradley_terry(votes, draws=0), arena.bradley_terry(votes, style=["length"], draws=60)
    bias = found.style.iloc[0]
    assert bias.low < 0.7 < bias.high
    assert bias.high - bias.low < 0.2
    truth = 0.5 * arena.POINTS
    within = found.difference("m0", "m1")
    assert within.low < truth < within.high
    assert plain.difference("m0", "m1").value < within.low


def test_style_without_an_effect_leaves_ratings_and_one_that_never_differs_is_refused() -> None:
    votes = battles().assign(length_a=5, length_b=5)
    with pytest.raises(EvaluationError, match="length never differs"):
        arena.bradley_terry(votes, style=["length"])
    draw = np.random.default_rng(0)
    votes = votes.assign(length_a=draw.integers(0, 9, 600), length_b=draw.integers(0, 9, 600))
    found = arena.bradley_terry(votes, style=["length"], clusters="question", draws=20)
    assert found.n == 60
    assert found.table.set_index("model")["rating"].to_numpy() == pytest.approx(rated(votes).to_numpy(), abs=15)


def test_votes_that_cannot_be_used_are_left_out_and_counted() -> None:
    good = battles().assign(id=range(600), length_a=9.0, length_b=[4.0, 5.0] * 300)
    bad = pd.DataFrame(
        [
            ("m0", None, "model_a", 1, 1000, 1.0, 1.0),
            ("", "m1", "model_a", 1, 1001, 1.0, 1.0),
            ("m1", "m1", "model_a", 1, 1002, 1.0, 1.0),
            ("m0", "m1", "nobody", 1, 1003, 1.0, 1.0),
            ("m0", "m1", math.nan, 1, 1004, 1.0, 1.0),
            ("m0", "m1", "tie", math.nan, 1005, 1.0, 1.0),
            ("m0", "m1", "tie", 1, 1006, math.nan, 1.0),
            ("m0", "m1", "tie", 1, 1006, 1.0, -1.0),
            ("m0", "m1", "tie", 1, 7, 1.0, 1.0),
        ],
        columns=["model_a", "model_b", "winner", "question", "id", "length_a", "length_b"],
    )
    asked: dict[str, Any] = {"clusters": "question", "style": ["length"], "key": "id", "draws": 0}
    found = arena.bradley_terry(pd.concat([good, bad]), **asked)
    assert found.battles == 600
    assert found.dropped == {
        **{"a model is missing": 2, "one model on both sides": 1, "unknown winner": 2},
        **{"no length": 2, "no question": 1, "id came before": 1},
    }
    assert found.table.equals(arena.bradley_terry(good, **asked).table)


def test_models_outside_the_circle_are_named_and_their_battles_counted() -> None:
    odd = table(("king", "m0", "model_a"), ("m0", "pawn", "model_a"), ("u", "v", "tie"), ("w", "u", "model_a"))
    odd = pd.concat([odd, table(("v", "w", "model_a"))])
    found = arena.bradley_terry(pd.concat([battles(), odd]), draws=0)
    assert list(found.table["model"]) == ["m0", "m1", "m2", "m3"]
    assert found.dropped == {"with an unrated model": 5}
    assert {name: why.split()[1] for name, why in found.unrated.items()} == {
        **{"king": "lost", "pawn": "won"},
        **dict.fromkeys("uvw", "battles"),
    }
    with pytest.raises(EvaluationError, match="king has no rating"):
        found.difference("king", "m0")


def test_an_anchor_holds_and_shifts_the_others() -> None:
    votes = battles()
    free, held = arena.bradley_terry(votes), arena.bradley_terry(votes, anchor="m2", anchor_rating=1114)
    rows = held.table.set_index("model")
    assert rows.loc["m2", ["rating", "low", "high"]].tolist() == pytest.approx([1114] * 3)
    assert held.difference("m0", "m1").low == pytest.approx(free.difference("m0", "m1").low)
    assert rows["rating"].mean() != pytest.approx(1000, abs=20)


def test_bounds_say_where_votes_set_none() -> None:
    lone = table(*[("x", "y", "model_a")] * 14, ("y", "x", "model_a"))
    gap = arena.bradley_terry(lone).difference("x", "y")
    assert gap.high == math.inf
    assert 0 < gap.low < gap.value < 1000
    assert gap.as_dict()["high"] is None
    few = arena.bradley_terry(battles().assign(question=lambda b: b["question"] % 7), clusters="question")
    assert few.n == 7
    assert few.table[["low", "high"]].isna().to_numpy().all()
    assert math.isnan(few.difference("m0", "m1").low)


def test_what_cannot_be_rated_is_refused_with_a_reason() -> None:
    for votes, asked, said in [
        (table(), {}, "no battle can be used"),
        (table(("x", "x", "tie")), {}, "both sides"),
        (table(("x", "y", "model_a")), {}, "x: it lost no battle; y: it won no battle"),
        (battles().drop(columns="winner"), {}, "no column winner in the battles"),
        (battles(), {"clusters": "voter"}, "voter"),
        (battles(), {"style": ["length"]}, "length_a, length_b"),
        (battles(), {"anchor": "gpt"}, "anchor gpt is not rated"),
    ]:
        with pytest.raises(EvaluationError, match=said):
            arena.bradley_terry(votes, **asked)
