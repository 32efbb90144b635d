"""A run of judging tells its rate, its price and the share that could not be read."""

from __future__ import annotations

import pytest

from starling_nb import progress
from starling_nb.judge import Outcome, Price
from starling_nb.judge.meter import Meter


def outcome(value: int | None, cached: bool = False) -> Outcome[int]:
    return Outcome(
        "x", value, None if value else "ValueError: no", "", {"prompt_tokens": 1000, "completion_tokens": 0}, cached
    )


def test_what_is_shown_while_running(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, float]] = []
    monkeypatch.setattr(progress, "report", lambda step, total, desc, **rates: shown.append({"step": step, **rates}))
    meter = Meter(4, "ranking", Price(3, 6))
    for value, cached in ((1, True), (2, False), (None, False), (3, False)):
        meter(outcome(value, cached))
    assert [line["step"] for line in shown] == [1, 2, 3, 4]
    assert "$_per_1k" not in shown[0]  # nothing was paid yet
    assert shown[-1]["$_per_1k"] == pytest.approx(3.0)  # 1,000 labels of 1,000 tokens at $3 a million
    assert shown[-1]["invalid"] == 0.25
    assert shown[-1]["labels_per_s"] > 0
    assert "$_per_1k" not in Meter(4, "ranking").rates()


def test_a_run_that_ends_early_leaves_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter(4, "ranking") as meter:
        meter(outcome(1))
    assert progress._bars == {}
    assert "1/4" in capsys.readouterr().err
