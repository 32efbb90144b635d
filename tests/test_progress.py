from __future__ import annotations

import json
from pathlib import Path

import pytest

from starling_nb import progress
from starling_nb.progress import Tail, clock


@pytest.fixture
def headless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "progress.jsonl"
    monkeypatch.setenv(progress.HEADLESS, "1")
    monkeypatch.setenv(progress.FILE, str(path))
    monkeypatch.setattr(progress, "_written", {})
    return path


def test_a_batch_run_writes_few_lines_and_always_the_last(headless: Path) -> None:
    for step in range(1, 1001):
        progress.report(step, 1000, "sampling", tokens_per_s=240.0)
    steps = [json.loads(line)["step"] for line in headless.read_text().splitlines()]
    assert steps[0] == 1
    assert steps[-1] == 1000
    assert len(steps) < 20


def test_track_yields_everything_and_ends_with_one_line(headless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(iter("abc"), "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().out.startswith("letters: 3/3 in ")
    assert json.loads(headless.read_text().splitlines()[-1])["total"] == 3


def test_what_is_left_early_leaves_no_bar_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for letter in progress.track("abc", "letters"):
        if letter == "b":
            break
    assert progress._bars == {}
    told = capsys.readouterr()
    assert "1/3" in told.err
    assert told.out == ""


def test_a_pass_among_several_prints_no_line(headless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track((n for n in range(5)), "checking", printed=False)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")
    assert json.loads(headless.read_text().splitlines()[-1]).items() >= {"step": 5, "total": 5}.items()


def test_without_a_file_a_batch_run_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.HEADLESS, "1")
    progress.report(1, 2, "nothing")


def test_a_watched_run_draws_a_bar_and_closes_it(capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2, 3):
        progress.report(step, 3, "epochs", loss=0.5)
    assert "3/3" in capsys.readouterr().err
    assert progress._bars == {}


def test_in_a_notebook_the_bar_is_one_text_that_ends_where_the_work_does(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, bundle: dict[str, str], raw: bool) -> None:
            shown[-1] = bundle["text/plain"]

    def display(bundle: dict[str, str], raw: bool, display_id: bool) -> Handle:
        shown.append(bundle["text/plain"])
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(progress, "watched", lambda: True)
    assert list(progress.track([5, 6, 7], "epochs")) == [5, 6, 7]
    (text,) = shown
    assert "epochs: 100%" in text
    assert "3/3" in text


def test_the_tail_says_step_rate_and_time_left(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    tail = Tail(path)
    assert tail.read() is None
    line = {
        "time": 100.0,
        "desc": "tune",
        "step": 10,
        "total": 100,
        "rates": {"tokens_per_s": 2134.0, "kl": 0.1234},
    }
    path.write_text(json.dumps(line) + "\n")
    assert tail.read() == "tune 10/100 10 % · 2,134 tokens/s · 0.123 kl"
    half = json.dumps(line | {"time": 160.0, "step": 40})
    with path.open("a") as stream:
        stream.write(half[:10])
        stream.flush()
        assert tail.read() == "tune 10/100 10 % · 2,134 tokens/s · 0.123 kl"
        stream.write(half[10:] + "\n")
    assert tail.read() == "tune 40/100 40 % · 2,134 tokens/s · 0.123 kl · 2:00 left"
    with path.open("a") as stream:
        stream.write("{broken}\n" + json.dumps(line | {"time": 170.0, "step": 1}) + "\n")
    assert tail.read() == "tune 1/100 1 % · 2,134 tokens/s · 0.123 kl"


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
