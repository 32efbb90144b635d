"""Blind votes: what is shown, what is kept through crashes, and the view without a browser."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling_nb import progress
from starling_nb.evaluation import EvaluationError, arena, report
from starling_nb.evaluation.arena import vote_log
from starling_nb.evaluation.arena.voting import CHOICES, ArenaSession
from starling_nb.explore import voting_view

PROMPTS = {f"q{i:02d}": f"How much is {i} <b>plus</b> one?" for i in range(30)}
ANSWERS = {
    name: {id: f"{word} <script>{id}</script>" for id in PROMPTS}
    for name, word in (("starling", "certainly"), ("openchat", "perhaps"))
}
NAMES = (*ANSWERS, "starling", "openchat")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "votes" / "me.jsonl"


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every press comes long after the one before."""
    monkeypatch.setattr(voting_view, "PAUSE", 0.0)


def session(path: Path, **changes: Any) -> ArenaSession:
    given: dict[str, Any] = {"prompts": PROMPTS, "answers": ANSWERS, "seed": 3, "voter": "me"}
    return ArenaSession(path, **(given | changes))


def decide(one: ArenaSession, votes: int | None = None) -> None:
    """Vote for the certain answer, wherever it is shown."""
    while one.current is not None and votes != 0:
        one.vote("A" if one.current.a.startswith("certainly") else "B")
        votes = None if votes is None else votes - 1


def test_sides_and_order_are_shuffled_and_come_back_with_the_export(path: Path) -> None:
    one = session(path)
    decide(one)
    table = one.battles()
    assert sorted(table["question_id"]) == sorted(PROMPTS)
    assert list(table["question_id"]) != sorted(PROMPTS)
    assert 7 <= (table["model_a"] == "starling").sum() <= 23
    wins = table.apply(lambda row: row[row["winner"]], axis=1)
    assert set(wins) == {"starling"}
    assert table["blind"].all()
    assert (table["voter"] == "me").all()
    other = session(path.with_name("other.jsonl"), seed=4)
    decide(other)
    assert list(other.battles()["question_id"]) != list(table["question_id"])


@pytest.mark.usefixtures("unhurried")
def test_nothing_names_a_system_before_the_reveal(path: Path) -> None:
    one = session(path)
    view = voting_view.ArenaView(one)
    for name in ("A", "tie", "undo", "both bad", "B"):
        view.press(name)
        parts = (view.status, view.prompt, view.a, view.b, view.tables)
        told = [repr(one), repr(one.current), str(view._repr_mimebundle_()), *(part.value for part in parts)]
        told += [button.description for button in view.buttons.values()]
        assert not any(name in text for text in told for name in NAMES)
    assert not any(name in path.read_text() for name in NAMES)
    with pytest.raises(EvaluationError, match="27 battles are left") as caught:
        one.battles()
    assert not any(name in str(caught.value) for name in NAMES)


def test_votes_after_a_reveal_are_not_blind_and_do_not_rate(path: Path) -> None:
    one = session(path)
    decide(one, 4)
    assert len(one.reveal()) == 4
    one.vote("tie")
    assert list(one.battles()["blind"]) == [True] * 4 + [False]
    again = session(path)
    assert again.revealed
    assert again.battles().equals(one.battles())
    left = one.summary()["left out"].set_index("what")["battles"]
    assert (left["votes after a reveal"], left["battles left"]) == (1, 25)


def test_a_vote_changed_after_the_end_was_seen_is_not_blind(path: Path) -> None:
    one = session(path)
    decide(one)
    one.battles()
    one.undo()
    one.vote("tie")
    assert list(session(path).battles()["blind"]) == [True] * 29 + [False]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([*CHOICES, "undo", "resume", "crash"]), max_size=25))
def test_any_course_of_votes_undos_and_crashes_resumes_where_it_was(
    tmp_path_factory: pytest.TempPathFactory, course: list[str]
) -> None:
    path = tmp_path_factory.mktemp("course") / "votes.jsonl"
    one, kept = session(path), []
    for step in course:
        if step in CHOICES:
            one.vote(step)
            kept.append(CHOICES[step])
        elif step == "undo" and kept:
            one.undo()
            kept.pop()
        elif step == "crash":
            with path.open("ab") as stream:
                stream.write(b'{"vote": 3, "choi')
        if step in ("resume", "crash"):
            one = session(path)
        assert one.current is not None
        assert one.current.number == len(kept) + 1
    one.reveal()
    assert list(session(path).battles()["winner"]) == kept


def test_the_file_only_grows_and_every_vote_is_on_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    real = vote_log.os.fsync
    monkeypatch.setattr(vote_log.os, "fsync", lambda handle: (synced.append(path.read_bytes()), real(handle)))
    one = session(path)
    for step in ("A", "undo", "B"):
        one.undo() if step == "undo" else one.vote(step)
        assert synced[-1] == path.read_bytes()
    sizes = [len(content) for content in synced]
    assert sizes == sorted(sizes)
    assert all(path.read_bytes().startswith(content) for content in synced)
    assert [next(iter(json.loads(line))) for line in path.read_text().splitlines()[1:]] == ["vote", "undo", "vote"]


def test_a_vote_that_could_not_be_saved_does_not_count(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = session(path)
    one.vote("A")
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(vote_log.os, "fsync", full)
        with pytest.raises(EvaluationError, match="No space left"):
            one.vote("B")
    assert path.read_bytes() == before
    assert one.current is not None
    assert one.current.number == 2
    one.vote("tie")
    assert session(path).current == one.current


def test_other_battles_voters_files_and_writers_are_refused(path: Path) -> None:
    one = session(path)
    one.vote("A")
    changed = {**ANSWERS, "starling": {**ANSWERS["starling"], "q00": "another answer"}}
    for changes, said in [
        ({"answers": changed}, "other battles"),
        ({"seed": 4}, "other battles"),
        ({"voter": "you"}, "votes of 'me'"),
    ]:
        with pytest.raises(EvaluationError, match=said):
            session(path, **changes)
    session(path).vote("B")
    with pytest.raises(EvaluationError, match="another session"):
        one.vote("B")
    lines = path.read_bytes().splitlines(keepends=True)
    for content, said in [
        (b'{"id": 1}\n', "no file of votes"),
        (lines[0] + b"garbage\n" + lines[1], "line 2, is no vote"),
        (lines[0] + lines[1] + lines[1], "line 3, follows"),
        (lines[0] + b'{"undo": 0}\n', "line 2, follows"),
    ]:
        path.write_bytes(content)
        with pytest.raises(EvaluationError, match=said):
            session(path)


def test_what_makes_no_battle_is_counted_and_equal_answers_tie_by_rule(path: Path) -> None:
    third = {"q00": ANSWERS["starling"]["q00"], "q01": "perhaps not", "q99": "to nothing"}
    one = session(path, answers={**ANSWERS, "zephyr": third})
    assert one.skipped == {"an answer is missing": 56, "an answer to no prompt": 1}
    seen = Counter()
    while (shown := one.current) is not None:
        assert shown.a != shown.b
        assert shown.total == 33
        seen[shown.prompt] += 1
        one.vote("tie")
    assert sorted(seen.values())[-2:] == [2, 3]
    table = one.battles()
    assert len(table) == 34
    assert table.loc[table["by_rule"], ["question_id", "winner"]].to_numpy().tolist() == [["q00", "tie"]]
    with pytest.raises(EvaluationError, match="no battle"):
        session(path, answers={"starling": ANSWERS["starling"]})


def test_bad_votes_are_refused(path: Path) -> None:
    one = session(path)
    with pytest.raises(EvaluationError, match="no choice"):
        one.vote("C")
    with pytest.raises(EvaluationError, match="no vote to take back"):
        one.undo()
    assert not path.exists()
    decide(one)
    with pytest.raises(EvaluationError, match="all battles are decided"):
        one.vote("A")


def test_the_export_is_rated_clustered_by_question(path: Path) -> None:
    one = session(path)
    for number in range(30):
        one.vote("tie" if number % 3 == 0 else "A")
    found = arena.bradley_terry(one.battles(), clusters="question_id", style=["length"], key="question_id")
    assert (found.n, found.battles) == (30, 30)
    summary = one.summary()
    votes = summary["votes"].set_index("choice")
    assert votes.loc["A, where one won", ["votes", "share", "n"]].tolist() == [20, 1, 20]
    assert set(summary["ratings"]["model"]) == set(ANSWERS)
    assert (summary["ratings"]["questions"] == 30).all()


@pytest.mark.usefixtures("unhurried")
def test_buttons_vote_undo_and_reveal_and_texts_are_escaped(path: Path) -> None:
    one = session(path)
    view = voting_view.ArenaView(one)
    assert "<script>" not in view.a.value + view.b.value + view.prompt.value
    assert "&lt;script&gt;" in view.a.value
    view.buttons["A"].click()
    view.buttons["both bad"].click()
    assert "Battle 3 of 30" in view.status.value
    view.buttons["undo"].click()
    view.buttons["undo"].click()
    view.buttons["undo"].click()
    assert "no vote to take back" in view.status.value
    view.buttons["reveal"].click()
    assert "starling" not in view.a.value + view.b.value
    decide(one)
    view.buttons["undo"].click()
    view.buttons["tie"].click()
    assert view.buttons["A"].disabled
    assert "All battles are decided" in view.status.value
    assert "<table" in view._repr_mimebundle_()["text/html"]


def test_the_second_of_two_quick_clicks_decides_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = session(path)
    view = voting_view.ArenaView(one)
    monkeypatch.setattr(voting_view, "PAUSE", 3600.0)
    view.buttons["A"].click()
    for name in ("A", "B", "tie", "undo"):
        view.buttons[name].click()
    assert one.left == len(PROMPTS) - 1
    assert "Battle 2 of 30" in view.status.value
    assert len(path.read_text().splitlines()) == 2
    monkeypatch.setattr(voting_view, "PAUSE", 0.0)
    view.buttons["B"].click()
    assert one.left == len(PROMPTS) - 2
    monkeypatch.setattr(voting_view, "PAUSE", 3600.0)
    view.buttons["reveal"].click()
    assert one.revealed


def test_a_busy_kernel_knows_a_double_click_by_the_browsers_clock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    told: dict[str, Any] = {}
    kernel = SimpleNamespace(get_parent=lambda: {"header": told})
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: SimpleNamespace(kernel=kernel))
    ticks = iter(range(0, 1000, 10))  # seconds between everything that the kernel does
    monkeypatch.setattr(voting_view, "time", SimpleNamespace(monotonic=lambda: float(next(ticks)), time=lambda: 0.0))
    one = session(path)
    view = voting_view.ArenaView(one)
    for seconds, votes in ((0.0, 1), (0.1, 1), (0.7, 2), (9.0, 3)):
        told["date"] = began + timedelta(seconds=seconds)
        view.buttons["A"].click()
        assert one.left == len(PROMPTS) - votes


def test_headless_it_shows_tables_and_never_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.HEADLESS, "1")
    named = {"<i>starling</i>": ANSWERS["starling"], "openchat": ANSWERS["openchat"]}
    one = session(path, answers=named)
    assert "no ratings" in repr(voting_view.show(one))
    for choice in ("A", "B") * 10:
        one.vote(choice)
    before = path.read_bytes()
    shown = voting_view.show(one)
    assert isinstance(shown, voting_view.ArenaTables)
    text = shown._repr_html_()
    assert "<table" in text
    assert "&lt;i&gt;starling" in text
    assert "<i>" not in text
    assert "battles left" in repr(shown)
    assert path.read_bytes() == before
    assert isinstance(one.summary()["votes"], pd.DataFrame)


def test_a_runs_votes_lie_outside_its_stage_and_other_answers_begin_another_file(tmp_path: Path) -> None:
    messages = {id: [{"role": "user", "content": text}] for id, text in PROMPTS.items()}
    stage = SimpleNamespace(out=tmp_path, p=SimpleNamespace(seed=3))
    nothing: Any = None
    first = report.ballot(stage, report.HeadToHead(nothing, None, messages, ANSWERS))
    decide(first, 2)
    again = report.ballot(stage, report.HeadToHead(nothing, None, messages, ANSWERS))
    assert again.left == len(PROMPTS) - 2
    changed = {**ANSWERS, "starling": dict.fromkeys(PROMPTS, "certainly not")}
    assert report.ballot(stage, report.HeadToHead(nothing, None, messages, changed)).left == len(PROMPTS)
    assert [path.parent for path in tmp_path.rglob("*.jsonl")] == [tmp_path / "votes"]
