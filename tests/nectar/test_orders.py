"""Shown orders: each design keeps its promise, the usual draws stay, and added rows change nothing before them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling_nb.errors import StarlingError
from starling_nb.files import rng
from starling_nb.nectar.orders import DESIGNS, Row, check, orders, pass_seed
from starling_nb.nectar.ranking import VARIANTS, build, read_request

MODELS = [f"model {i}" for i in range(12)]
PASSES = {"random": 3, "balanced": 3, "cyclic": 3, "two_pass": 2}


def rows(n: int, k: int = 7, pool: int = 12) -> list[Row]:
    """Prompts answered by ``k`` of ``pool`` models, some of them far more often than others."""
    weights = np.linspace(1, 4, pool) / np.linspace(1, 4, pool).sum()
    drawn = [rng(0, "rows", i).choice(pool, k, replace=False, p=weights) for i in range(n)]
    return [(f"p{i}", [MODELS[j] for j in places]) for i, places in enumerate(drawn)]


def table(made: Sequence[Row], shown: Sequence[Sequence[Sequence[int]]]) -> dict[str, np.ndarray]:
    """Model → how often it stands in each position."""
    counts: dict[str, np.ndarray] = {}
    for (_, models), passes in zip(made, shown, strict=True):
        for order in passes:
            for position, answer in enumerate(order):
                counts.setdefault(models[answer], np.zeros(len(order), dtype=int))[position] += 1
    return counts


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(DESIGNS)), st.lists(st.integers(3, 9), max_size=12), st.integers(0, 5))
def test_every_design_gives_permutations_that_later_rows_do_not_change(
    design: str, sizes: list[int], seed: int
) -> None:
    made = [(f"p{i}", MODELS[:k]) for i, k in enumerate(sizes)]
    found = list(orders(design, made, seed, PASSES[design]))
    assert [len(passes) for passes in found] == [PASSES[design]] * len(made)
    for k, passes in zip(sizes, found, strict=True):
        assert all(sorted(order) == list(range(k)) for order in passes)
        assert all(type(place) is int for order in passes for place in order)
    for n in range(len(made)):
        assert list(orders(design, made[:n], seed, PASSES[design])) == found[:n]


@pytest.mark.parametrize("design", DESIGNS)
def test_rows_are_taken_one_at_a_time(design: str) -> None:
    taken = []

    def endless() -> Iterator[Row]:
        for number in range(10**9):
            taken.append(number)
            yield f"p{number}", MODELS[:7]

    assert len(list(islice(orders(design, endless(), 0, PASSES[design]), 5))) == 5
    assert len(taken) == 5


def test_random_orders_are_those_that_build_draws_by_itself() -> None:
    for name, models in rows(20):
        found = next(orders("random", [(name, models)], 4, 3))
        drawn = [build([{"role": "user", "content": "?"}], models, "final", pass_seed(4, n), name) for n in range(3)]
        assert found == [request.shown for request in drawn]
        assert found[0] == rng(4, "shown", name).permutation(7).tolist()
        for design in ("cyclic", "two_pass"):
            assert next(orders(design, [(name, models)], 4, 2))[0] == found[0]


@pytest.mark.parametrize("passes", [1, 2, 7])
def test_balanced_orders_put_every_model_everywhere_equally_often(passes: int) -> None:
    made = rows(400)
    shown = list(orders("balanced", made, 0, passes))
    for counts in table(made, shown).values():
        assert np.ptp(counts) <= 1
    for order in shown:
        assert all(len({one[position] for one in order}) == passes for position in range(7))
    spread = [np.ptp(counts) for counts in table(made, list(orders("random", made, 0, passes))).values()]
    assert min(spread) > 1


def test_balanced_orders_depend_on_the_seed_and_are_not_a_fixed_pattern() -> None:
    made = rows(3000, pool=7)
    one, other = (list(orders("balanced", made, seed)) for seed in (0, 1))
    assert one != other
    assert len({tuple(passes[0]) for passes in one}) > 1800
    # Who stands beside whom is chance: every ordered pair of neighbours is about equally frequent.
    neighbours = np.zeros((12, 12))
    for (_, models), passes in zip(made, one, strict=True):
        names = [MODELS.index(models[answer]) for answer in passes[0]]
        np.add.at(neighbours, (names[:-1], names[1:]), 1)
    frequent = neighbours[neighbours > 0]
    assert len(frequent) == 42
    assert np.abs(frequent / frequent.mean() - 1).max() < 0.2


def test_rows_of_other_sizes_and_models_that_answer_twice_are_balanced_too() -> None:
    made = [*rows(90, k=4, pool=5), *rows(90, k=7, pool=8)]
    made += [(f"q{i}", ["twin", "twin", "a", "b"]) for i in range(90)]
    shown = list(orders("balanced", made, 0))
    for part, orders_of in ((made[90:180], shown[90:180]), (made[180:], shown[180:])):
        assert all(np.ptp(counts) <= 1 for counts in table(part, orders_of).values())


@pytest.mark.parametrize("passes", [2, 3, 4, 5, 6, 7])
def test_cyclic_passes_are_rotations_spread_evenly(passes: int) -> None:
    for (name, models), found in zip(rows(20), orders("cyclic", rows(20), 0, passes), strict=True):
        first = found[0]
        turns = [order.index(first[0]) for order in found]
        assert all(order == [*first[-turn:], *first[:-turn]] for order, turn in zip(found, turns, strict=True) if turn)
        gaps = np.diff([*sorted((7 - turn) % 7 for turn in turns), 7])
        assert gaps.max() - gaps.min() <= 1
        for position in range(7):
            assert len({order[position] for order in found}) == passes
        assert (name, len(models)) == (name, 7)


def test_two_passes_are_an_order_and_its_mirror_image() -> None:
    for order, mirror in orders("two_pass", rows(20), 0, 2):
        assert mirror == order[::-1]


@pytest.mark.parametrize(
    ("design", "passes", "words"),
    [
        ("latin", 1, "unknown order design 'latin': choose from random, balanced, cyclic, two_pass"),
        ("random", 0, "at least 1"),
        ("balanced", 0, "1 to K"),
        ("cyclic", 1, "2 to K"),
        ("two_pass", 1, "exactly 2"),
        ("two_pass", 3, "exactly 2"),
    ],
)
def test_designs_that_there_are_not_are_refused_at_once(design: str, passes: int, words: str) -> None:
    with pytest.raises(StarlingError, match=words):
        orders(design, [], 0, passes)
    with pytest.raises(StarlingError, match=words):
        check(design, passes)


@pytest.mark.parametrize("design", ["balanced", "cyclic"])
def test_more_passes_than_answers_are_refused_at_the_row(design: str) -> None:
    found = orders(design, [("a", MODELS[:7]), ("b", MODELS[:4])], 0, 5)
    assert len(next(found)) == 5
    with pytest.raises(StarlingError, match=r"K = 4"):
        next(found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_request_is_built_in_the_order_that_is_given(variant: str) -> None:
    question, answers = [{"role": "user", "content": "?"}], [f"answer {i}" for i in range(7)]
    drawn = build(question, answers, variant, 3, "p")
    assert build(question, answers, variant, 3, "p", shown=drawn.shown) == drawn
    given = build(question, answers, variant, 3, "p", shown=np.arange(7)[::-1])  # type: ignore[arg-type]
    assert given.shown == [6, 5, 4, 3, 2, 1, 0]
    assert (given.pairs, given.tie_order) == (drawn.pairs, drawn.tie_order)
    seen = read_request(given.messages)
    assert seen is not None
    assert seen.answers == answers[::-1]
    assert given.to_answers([0]) == [6]


@pytest.mark.parametrize("shown", [[], [0, 1], [0, 1, 1], [0, 1, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2.0], ["0", 1, 2]])
def test_orders_that_are_no_permutation_are_refused(shown: list[int]) -> None:
    with pytest.raises(StarlingError, match="no permutation of 0 to 2"):
        build([{"role": "user", "content": "?"}], ["a", "b", "c"], "final", 0, "p", shown=shown)
