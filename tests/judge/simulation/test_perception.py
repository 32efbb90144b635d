"""The choice model of the simulated judge against what Plackett and Luce say it should do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starling_nb.errors import StarlingError
from starling_nb.files import write_json
from starling_nb.judge.simulation.perception import Calibration, as_grades, count_words, effects, overlap, perceive

SLOPE = [0.9, 0.6, 0.3, 0.0, -0.3, -0.6, -0.9]


def calibration(**changes: Any) -> Calibration:
    values: dict[str, Any] = dict.fromkeys(("length", "self_preference", "order_noise", "call_noise"), 0.0)
    values |= {"scale": 1.0, "position": {}}
    return Calibration(**{**values, **changes})


def seen(
    utilities: Any,
    judge: Calibration,
    variant: str = "",
    lengths: Any = None,
    styles: Any = None,
    seed: int = 0,
) -> Any:
    shape = np.shape(utilities)
    lengths = np.full(shape, 40) if lengths is None else lengths
    styles = np.zeros(shape) if styles is None else styles
    noise = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    return perceive(utilities, lengths, styles, variant, judge, *noise)


@pytest.mark.parametrize("part", ["order_noise", "call_noise"])
def test_first_place_and_second_place_follow_plackett_luce(part: str) -> None:
    utilities, n = np.array([8.0, 5.5, 3.0, 4.0]), 40_000
    judge = calibration(scale=1.2, position={"v": SLOPE}, **{part: 1.0})
    rankings = np.argsort(-seen(np.tile(utilities, (n, 1)), judge, "v"), axis=1)
    weights = np.exp(
        1.2 * np.log((utilities - 0.75) / (10.25 - utilities)) / 1.8
        + np.interp(np.linspace(0, 1, 4), np.linspace(0, 1, 7), SLOPE)
    )
    first = np.bincount(rankings[:, 0], minlength=4) / n
    assert first == pytest.approx(weights / weights.sum(), abs=0.012)
    after_best = rankings[rankings[:, 0] == 0, 1]
    assert np.bincount(after_best, minlength=4)[1:] / len(after_best) == pytest.approx(
        weights[1:] / weights[1:].sum(), abs=0.015
    )


def test_every_term_pushes_the_right_way() -> None:
    judge = calibration(length=0.5, self_preference=2.0)
    flat = np.full(3, 5.5)
    assert np.argmax(seen(np.array([3.0, 9.0, 5.0]), judge)) == 1
    assert np.argmax(seen(flat, judge, lengths=[10, 20, 400])) == 2
    assert np.argmax(seen(flat, judge, styles=[0.1, 0.0, 0.0])) == 0
    assert np.isfinite(seen(flat, judge, lengths=[0, 0, 0])).all()


def test_order_noise_returns_with_the_request_and_call_noise_does_not() -> None:
    judge = calibration(order_noise=1.0, call_noise=1.0)
    flat = np.full((2000, 7), 5.5)
    scores = [
        perceive(flat, flat, flat, "", judge, np.random.default_rng(order), np.random.default_rng(call))
        for order, call in ((0, 1), (0, 2), (3, 4))
    ]
    same, other = (np.corrcoef(scores[0].ravel(), scores[i].ravel())[0, 1] for i in (1, 2))
    assert same == pytest.approx(0.5, abs=0.03)
    assert other == pytest.approx(0.0, abs=0.03)


def test_the_extra_effect_moves_only_the_first_place() -> None:
    judge = calibration(position={"v": SLOPE}, position_top={"v": [0, 0, 0, 0, 0, 5, 0]})
    assert np.argsort(-seen(np.full(7, 5.5), judge, "v")).tolist() == [5, 0, 1, 2, 3, 4, 6]
    assert np.argsort(-seen(np.full(7, 5.5), judge, "other")).tolist() == list(range(7))


def test_effects_are_interpolated_over_the_relative_position() -> None:
    assert effects({"v": SLOPE}, "v", 7) == pytest.approx(SLOPE)
    assert effects({"v": SLOPE}, "v", 4) == pytest.approx([0.9, 0.3, -0.3, -0.9])
    assert effects({"v": SLOPE}, "v", 2) == pytest.approx([0.9, -0.9])
    assert effects({"v": SLOPE}, "v", 1).tolist() == [0.0]
    assert effects({"v": SLOPE}, "w", 3).tolist() == [0.0, 0.0, 0.0]


def test_grades_undo_the_scale() -> None:
    judge = calibration(scale=1.7)
    assert as_grades(seen(np.array([1.0, 5.5, 7.25, 10.0]), judge), judge) == pytest.approx([1.0, 5.5, 7.25, 10.0])
    assert as_grades(np.array([-99.0, 99.0]), judge).tolist() == [1.0, 10.0]


def test_overlap_is_unigram_f1() -> None:
    assert overlap("The cat sat", "the CAT sat!") == 1.0
    assert overlap("the cat", "the dog ran far") == pytest.approx(2 * 1 / 6)
    assert overlap("", "words") == overlap("words", "") == overlap("one", "two") == 0.0
    assert count_words("It's 3 o'clock, friend.") == 4


def test_a_calibration_is_read_back_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "judge.json"
    values = {"scale": 1.0, "length": 0.1, "self_preference": 0.0, "order_noise": 1.0, "call_noise": 0.5}
    write_json(path, {**values, "position": {"v": SLOPE}, "origin": "here", "assumed": ["length"]})
    loaded = Calibration.load(path)
    assert loaded.position["v"] == SLOPE
    assert loaded.fingerprint != calibration().fingerprint
    wrongs: list[Any] = [
        {**values, "position": {"v": [0.0]}},
        {**values, "position": {}, "scale": 0.0},
        {**values, "position": {}, "call_noise": -1.0},
        {**values, "position": {}, "mystery": 1},
        {**values, "position": None},
        values,
        [],
    ]
    for wrong in wrongs:
        write_json(path, wrong)
        with pytest.raises(StarlingError):
            Calibration.load(path)
    with pytest.raises(StarlingError, match="missing"):
        Calibration.load(tmp_path / "absent.json")
