"""Shares come out as asked, and who is drawn does not depend on who else is there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_nb.nectar.prompts import mixture
from starling_nb.nectar.prompts.mixture import Quota, quotas
from starling_nb.nectar.prompts.settings import SourceSettings

THREE = [SourceSettings("a", weight=2.0), SourceSettings("b", weight=1.0), SourceSettings("c", count=10)]


def test_counts_come_first_and_weights_share_the_rest() -> None:
    found = quotas(THREE, {"a": 1000, "b": 1000, "c": 1000}, 70)
    assert found == {"a": Quota(40, 40), "b": Quota(20, 20), "c": Quota(10, 10)}


def test_others_fill_the_place_of_one_that_has_too_few() -> None:
    found = quotas(THREE, {"a": 30, "b": 1000, "c": 7}, 70)
    assert found == {"a": Quota(30, 40), "b": Quota(30, 20), "c": Quota(7, 10)}
    assert quotas(THREE, {"a": 3, "b": 2, "c": 0}, 70) == {"a": Quota(3, 40), "b": Quota(2, 20), "c": Quota(0, 10)}


def test_without_a_number_of_rows_the_weights_hold_exactly() -> None:
    found = quotas(THREE, {"a": 100, "b": 80, "c": 50}, 0)
    assert found == {"a": Quota(100, 100), "b": Quota(50, 50), "c": Quota(10, 10)}
    assert quotas([SourceSettings("a")], {"a": 5}, 0) == {"a": Quota(5, 5)}


@given(
    st.integers(0, 500),
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 300)), min_size=1, max_size=6),
)
def test_filling_takes_all_that_is_wanted_or_all_there_is(total: int, parts: list[tuple[float, int]]) -> None:
    weights = {str(place): weight for place, (weight, _) in enumerate(parts)}
    available = {str(place): rows for place, (_, rows) in enumerate(parts)}
    assert sum(mixture.split(total, weights).values()) == total
    found = mixture.fill(total, weights, available)
    assert sum(found.values()) == min(total, sum(available.values()))
    assert all(0 <= found[name] <= available[name] for name in weights)


def test_draws_are_even_and_belong_to_the_key() -> None:
    draws = [mixture.draw(0, "draw", str(number)) for number in range(4000)]
    assert draws[7] == mixture.draw(0, "draw", "7")
    assert len({*draws, *(mixture.draw(1, "draw", str(number)) for number in range(4000))}) == 8000
    shares = np.histogram(np.array(draws, float) / 2**64, bins=8, range=(0, 1))[0] / 4000
    assert shares == pytest.approx(1 / 8, abs=0.025)
    places = mixture.drawn(draws, 100)
    assert sorted(draws)[:100] == sorted(draws[place] for place in places)
    assert list(places) == sorted(places)
    assert set(mixture.drawn(draws[:2000], 50)) <= set(mixture.drawn(draws[:2000], 100))
