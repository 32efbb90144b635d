"""The committed calibration does to our answers what GPT-4's logs show, and the fit finds what is planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import calibrate_judge, judge_logs
from benchmarks.judge_simulation import Answers, agreement, judge, load_answers
from starling_nb import bias, files
from starling_nb.judge.simulation import Calibration, perceive
from starling_nb.nectar.ranking import VARIANTS


@pytest.fixture(scope="module")
def answers() -> Answers:
    """The embedded data, graded."""
    return load_answers()


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration.load()


def plain(**changes: Any) -> Calibration:
    values: dict[str, Any] = dict.fromkeys(("length", "self_preference", "order_noise", "call_noise"), 0.0)
    return Calibration(**{**values, "scale": 1.0, "position": {}, **changes})


def test_every_variant_is_calibrated_or_says_that_it_is_assumed(calibration: Calibration) -> None:
    logged = {arm["variant"] for arm in judge_logs.published()}
    assert set(calibration.position) == set(calibration.contrast) == set(VARIANTS)
    assert set(calibration.assumed) == set(VARIANTS) - logged | {"self_preference"}
    assert calibration.order_noise**2 + calibration.call_noise**2 == pytest.approx(1.0)


def test_the_results_are_those_of_this_calibration_and_every_target_is_met(
    answers: Answers, calibration: Calibration
) -> None:
    results = files.read_json(calibrate_judge.RESULTS)
    assert results["fingerprint"] == calibration.fingerprint
    assert results["answers"] == answers.fingerprint
    assert all(target["met"] for target in results["targets"].values())
    assert {arm["variant"] for arm in results["arms"]} == {arm["variant"] for arm in judge_logs.published()}
    assert all(arm["met"] and all(place["met"] for place in arm["first_place"]) for arm in results["arms"])


def test_agreement_and_length_lie_in_their_bands(answers: Answers, calibration: Calibration) -> None:
    found = {name: values.mean() for name, values in agreement(answers, calibration, 10).items()}
    for name, (low, high) in calibrate_judge.BANDS.items():
        assert low <= found[name] <= high, name
    assert found["rubric_tau"] > 2 * (found["longer_wins"] - 0.5)  # quality first, then length


def test_each_weakness_is_what_moves_its_figure(answers: Answers, calibration: Calibration) -> None:
    steady = agreement(answers, replace(calibration, call_noise=0.0), 4)
    assert steady["retest_tau"].min() == 1.0
    assert agreement(answers, replace(calibration, order_noise=0.2), 4)["other_order_tau"].mean() > 0.56
    now, terse, wordy = (agreement(answers, replace(calibration, length=calibration.length * x), 4) for x in (1, 0, 3))
    assert terse["longer_wins"].mean() < 0.6
    assert wordy["longer_wins"].mean() > 0.7
    assert wordy["rubric_tau"].mean() < now["rubric_tau"].mean() - 0.05


def test_naive_is_biased_and_a_drawn_tie_order_less(answers: Answers, calibration: Calibration) -> None:
    def chi2(variant: str) -> tuple[float, float]:
        judged = judge(answers, calibration, variant, 4)
        order = np.take_along_axis(judged.places, judged.ranks.argsort(1), 1)
        return bias.first_place_test(pd.DataFrame({"ranking": order.tolist()}))

    naive, drawn = chi2("naive"), chi2("random_tie_break")
    assert naive[1] < 1e-6
    assert drawn[0] < naive[0] / 3


def test_contrast_sends_answers_to_both_ends_and_draws_nothing_new() -> None:
    flat = np.full((4000, 7), 5.5)

    def ranks(judge: Calibration) -> Any:
        noise = files.rng(0, "order"), files.rng(0, "call")
        return (-perceive(flat, flat, flat, "v", judge, *noise)).argsort(1).argsort(1)

    plainly, stretched = (
        ranks(plain(order_noise=1.0)),
        ranks(plain(order_noise=1.0, contrast={"v": [3.0, *[1.0] * 6]})),
    )
    at_ends = [np.isin(r[:, 0], [0, 6]).mean() for r in (plainly, stretched)]
    assert at_ends[0] == pytest.approx(2 / 7, abs=0.03)
    assert at_ends[1] > 0.5
    assert (ranks(plain(order_noise=1.0, contrast={"v": [1.0] * 7})) == plainly).all()


def test_a_share_of_requests_is_ranked_as_shown_call_after_call() -> None:
    flat, judge = np.full((4000, 7), 5.5), plain(order_noise=1.0, call_noise=0.3, in_order={"v": 0.4})
    as_shown = [
        (np.diff(perceive(flat, flat, flat, "v", judge, files.rng(0, "order"), files.rng(0, call))) <= 0).all(1)
        for call in ("one", "two")
    ]
    assert as_shown[0].mean() == pytest.approx(0.4, abs=0.03)
    assert (as_shown[0] == as_shown[1]).mean() > 0.99


def test_the_fit_finds_planted_effects(answers: Answers, calibration: Calibration) -> None:
    planted = judge(answers, calibration, "static_tie_break", 20, order="planted").one_hot.mean(0)
    arm = calibrate_judge.Arm("static_tie_break", planted.reshape(7, 7), 2000, np.zeros(7), np.zeros((7, 7)))
    bare = replace(calibration, position={"final": calibration.position["final"]}, contrast={})
    fitted = calibrate_judge.fit_arm(answers, bare, arm, rounds=10, steps=5)
    for name, tolerance in (("position", 0.25), ("contrast", 0.25)):
        found, truth = (getattr(c, name)["static_tie_break"] for c in (fitted, calibration))
        assert found == pytest.approx(truth, abs=tolerance), name


def test_the_regression_on_words_finds_planted_coefficients() -> None:
    rng = files.rng(0, "planted words")
    rows = []
    for prompt in range(600):
        features = rng.normal(size=(7, 3))
        ranking = np.argsort(-(features @ [0.6, -0.4, 0.0] + rng.gumbel(size=7)))
        rows.append((str(prompt), [judge_logs.Ranked(int(p), "m", *features[p]) for p in ranking]))
    found = judge_logs.regress(rows)
    for term, truth in zip(judge_logs.TERMS, (0.6, -0.4, 0.0), strict=True):
        assert abs(found[term]["value"] - truth) < 4 * found[term]["se"] < 0.2


def test_committed_counts_are_those_of_the_logs(real_data: Path) -> None:
    calibrate_judge.check_counts(real_data)
    rankings, _ = judge_logs.read(real_data)
    tables = [judge_logs.counts(rankings, arm["experiment"]) for arm in judge_logs.published()]
    assert [sum(table[0]) for table in tables] == [arm["n"] for arm in judge_logs.published()]
