from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_nb import profiles
from starling_nb.profiles import ParameterError


@pytest.mark.parametrize("stage", profiles.STAGES)
@pytest.mark.parametrize("profile", profiles.names())
def test_every_profile_makes_every_stage(profile: str, stage: str) -> None:
    made = profiles.make(stage, profiles.values(profile, stage))
    assert made.profile == profile
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 1  # type: ignore[misc]


def test_the_five_profiles_are_there() -> None:
    assert profiles.names() == ["gpu", "laptop", "paper", "smoke", "study"]


@pytest.mark.parametrize("profile", profiles.names())
def test_what_is_tuned_is_measured_on_answers_as_long(profile: str) -> None:
    tuned, *measured = (
        profiles.values(profile, stage)["max_new_tokens"]
        for stage in profiles.STAGES
        if stage[:2] in ("04", "05", "06")
    )
    assert all(cap >= tuned for cap in measured)


@pytest.mark.parametrize("stage", profiles.STAGES)
def test_every_parameter_has_a_help_and_a_type_that_notebooks_can_declare(stage: str) -> None:
    helps, kinds = profiles.helps(stage), profiles.kinds(stage)
    assert {name for name in kinds if len(helps.get(name, "")) < 10} == set()
    assert set(kinds.values()) <= set(profiles.KINDS.values())


def test_common_values_are_the_same_for_all_stages_where_a_profile_says_nothing_else() -> None:
    assert profiles.values("laptop", "03_reward_training")["threads"] == 2
    assert profiles.values("smoke", "03_reward_training")["threads"] == 2
    assert profiles.values("paper", "03_reward_training")["dtype"] == "bfloat16"


def test_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ParameterError, match="smoke"):
        profiles.values("desktop", "00_start_here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 1}, "has no parameter sed"),
        ({"seed": "1"}, "has to be int"),
        ({"seed": True}, "has to be int"),
        ({"threads": 0}, "at least one"),
        ({"dtype": "int4"}, "choose one of"),
    ],
)
def test_bad_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        profiles.make("00_start_here", profiles.values("laptop", "00_start_here") | change)


def test_a_missing_value_is_refused() -> None:
    values = profiles.values("laptop", "00_start_here")
    del values["seed"]
    with pytest.raises(ParameterError, match=r"lacks a value for seed"):
        profiles.make("00_start_here", values)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.lists(st.integers(0, 9)))
def test_values_written_as_text_read_back(value: Any) -> None:
    assert profiles.parse("x", type(value), str(value)) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [(int, "1.5"), (int, ""), (float, "nan"), (float, "x"), (bool, "2"), (list, "1"), (list, "[")],
)
def test_text_of_another_type_is_refused(kind: type, text: str) -> None:
    with pytest.raises(ParameterError, match="x = "):
        profiles.parse("x", kind, text)


def test_a_whole_number_is_a_fine_float() -> None:
    assert profiles.check("x", float, 1) == 1.0
    assert type(profiles.check("x", float, 1)) is float
