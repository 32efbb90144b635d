"""The Batch API path: every step can be broken off, failures are asked again, and nothing is paid for twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from starling_nb import progress
from starling_nb.errors import StarlingError
from starling_nb.judge import (
    Batches,
    Budget,
    BudgetExceeded,
    Judge,
    JudgeUnavailable,
    Ledger,
    Price,
    Request,
    batch,
    jobs,
    wire,
)
from starling_nb.judge.simulation import BatchRules, Failures, Refused, serve

SECRET = "sk-do-not-write-me-down"
QUICK: dict[str, Any] = {"poll": 0.01}


class Backend:
    """Says the last message again; what begins with ``bad`` is refused for good, and the key is blurted out."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()

    def models(self) -> list[str]:
        return ["m"]

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        if text.startswith("bad"):
            raise Refused(400, "context_length_exceeded", f"too long for {SECRET}")
        self.answered[f"{text}/{body['seed']}"] += 1
        reason = "content_filter" if text == "filtered" else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


@contextmanager
def server(rates: Mapping[str, float] | None = None, **rules: Any) -> Iterator[tuple[Backend, str]]:
    backend = Backend()
    stop, url = serve(backend, rules=BatchRules(**rules), failures=Failures(rates or {}, 0))
    try:
        yield backend, url
    finally:
        stop()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FIRST_PAUSE", 0.01)


def asks(*texts: str) -> list[Request[int]]:
    return [Request(text, [{"role": "user", "content": text}], {}, int) for text in texts]


def judge(url: str, folder: Path, **settings: Any) -> Judge:
    how = {**QUICK, **settings.pop("how", {})}
    return Judge("m", url, SECRET, folder / "l.sqlite", batch=Batches(**how), **settings)


def test_replies_come_by_batches_and_a_second_run_asks_nothing(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with server() as (backend, url):
        asked = judge(url, tmp_path, how={"size": 4, "report": lambda *said: seen.append(said)}, price=Price(2, 2))
        texts = [str(n) for n in range(10)]
        outcomes = asked.ask_all(asks(*texts, "0"))
        assert [outcome.value for outcome in outcomes] == [*range(10), 0]
        assert asked.spent == {"requests": 10, "tokens": 150, "dollars": pytest.approx(150e-6)}  # half the price
        assert seen[-1] == (11, 11)
        assert [o.value for o in judge(url, tmp_path).ask_all(asks(*texts))] == list(range(10))
        assert set(backend.answered.values()) == {1}
    assert [path.name for path in tmp_path.iterdir() if "sqlite" not in path.name] == []


def test_planning_and_waiting_say_how_far_they_are_and_what_was_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, tuple[int, int | None, dict[str, float]]] = {}
    monkeypatch.setattr(progress, "report", lambda n, total, desc, **rates: said.update({desc: (n, total, rates)}))
    with server() as (_, url):
        judge(url, tmp_path, how={"size": 2}, price=Price(2, 2)).ask_all(asks("1", "2", "3"))
        assert said["planning batches"] == (3, 3, {})
        assert said["batches"] == (3, 3, {"dollars": pytest.approx(45e-6)})


def test_jobs_of_an_earlier_run_are_counted_before_anything_is_planned(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with server() as (_, url):
        batch._Run(judge(url, tmp_path), Batches()).plan(asks("1", "2"))  # and then it dies
        asked = judge(url, tmp_path, how={"report": lambda *told: seen.append(told)})
        assert [outcome.value for outcome in asked.ask_all(asks("1", "2", "3"))] == [1, 2, 3]
    assert all(0 <= settled <= total for settled, total in seen)
    assert {total for _, total in seen} == {2, 3}


def test_a_generator_of_requests_is_kept_and_asked(tmp_path: Path) -> None:
    with server() as (_, url):
        assert [o.value for o in judge(url, tmp_path).ask_all(iter(asks("1", "2")))] == [1, 2]


def test_lines_that_fail_are_put_into_another_batch_until_their_failure_stands(tmp_path: Path) -> None:
    with server({"batch_line": 0.4}, line_status=503) as (backend, url):
        outcomes = judge(url, tmp_path, how={"rounds": 20}).ask_all(asks(*map(str, range(30))))
        assert [outcome.value for outcome in outcomes] == list(range(30))
        assert set(backend.answered.values()) == {1}
    assert Ledger(tmp_path / "l.sqlite").counts()["http_503"] > 3
    with server({"batch_line": 1.0}, line_status=503) as (_, url):
        (outcome,) = judge(url, tmp_path / "b", how={"rounds": 3}).ask_all(asks("1"))
        assert outcome.value is None
        assert Ledger(tmp_path / "b" / "l.sqlite").counts() == {"http_503": 3}


def test_what_never_can_be_answered_is_asked_once_and_told(tmp_path: Path) -> None:
    with server() as (backend, url):
        asked = judge(url, tmp_path)
        outcomes = asked.ask_all(asks("1", "bad one", "filtered", "words"))
        asked.close()
        assert [outcome.value for outcome in outcomes] == [1, None, None, None]
        assert "too long for ***" in str(outcomes[1].error)
        assert "content filter" in str(outcomes[2].error)
        assert str(outcomes[3].error).startswith("ValueError")
        assert backend.answered["filtered/0"] == 1
    assert all(SECRET.encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_an_unreadable_reply_is_followed_by_the_next_sample(tmp_path: Path) -> None:
    with server() as (backend, url):
        judge(url, tmp_path, attempts=3).ask_all(asks("words"))
        assert backend.answered == {"words/0": 1, "words/1": 1, "words/2": 1}


def test_what_an_expired_batch_did_not_reach_is_asked_again_and_the_rest_is_kept(tmp_path: Path) -> None:
    with server({"batch_expired": 0.5}, expire_after=3) as (backend, url):
        outcomes = judge(url, tmp_path, how={"rounds": 30}).ask_all(asks(*map(str, range(12))))
        assert [outcome.value for outcome in outcomes] == list(range(12))
        assert set(backend.answered.values()) == {1}


def test_a_full_queue_is_waited_for_and_a_faulty_batch_is_told(tmp_path: Path) -> None:
    with server({"batch_failed": 0.4}) as (backend, url):
        outcomes = judge(url, tmp_path, how={"size": 2}).ask_all(asks(*map(str, range(8))))
        assert [outcome.value for outcome in outcomes] == list(range(8))
        assert set(backend.answered.values()) == {1}
    with server({"batch_failed": 1.0}) as (_, url):
        with pytest.raises(JudgeUnavailable, match="token_limit_exceeded"):
            judge(url, tmp_path / "b").ask_all(asks("1"))
        assert Ledger(tmp_path / "b" / "l.sqlite").select("SELECT * FROM batches") == []


class Broken(Exception):  # noqa: N818
    """The process dies here."""


@pytest.mark.parametrize("step", ["planned", "uploading", "uploaded", "creating", "submitted", "collecting"])
def test_a_run_that_dies_at_any_step_is_continued_and_pays_once(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies right after the step was done and, for the words in -ing, before that could be noted."""

    def die(*_: Any, **__: Any) -> Any:
        raise Broken

    noting = jobs.Jobs.step

    def die_noting(self: jobs.Jobs, job: str, state: str, **found: Any) -> None:
        if (step, state) in (("uploading", "uploaded"), ("creating", "submitted")):
            raise Broken
        noting(self, job, state, **found)
        if step == state:
            raise Broken

    with server() as (backend, url):
        with monkeypatch.context() as broken:
            if step == "planned":
                broken.setattr(batch._Run, "_upload", die)
            elif step == "collecting":
                broken.setattr(jobs.Jobs, "end", die)
            else:
                broken.setattr(jobs.Jobs, "step", die_noting)
            with pytest.raises(Broken):
                judge(url, tmp_path).ask_all(asks("1", "2", "3"))
        assert len(Ledger(tmp_path / "l.sqlite")) == 0
        outcomes = judge(url, tmp_path).ask_all(asks("1", "2", "3", "4"))
        assert [outcome.value for outcome in outcomes] == [1, 2, 3, 4]
        assert set(backend.answered.values()) == {1}


def test_batches_that_no_server_knows_any_more_are_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server forgets its files; then another one takes its place, at another address."""

    def broken(self: Any, *given: Any) -> Any:
        raise KeyboardInterrupt

    asked, rows = asks("1", "2"), "SELECT state FROM batches"
    with monkeypatch.context() as patch, server() as (_, url):
        patch.setattr(batch._Run, "_collect", broken)
        with pytest.raises(KeyboardInterrupt):
            judge(url, tmp_path).ask_all(asked)
        assert Ledger(tmp_path / "l.sqlite").select(rows) == [("submitted",)]
        with Ledger(tmp_path / "l.sqlite").transaction() as connection:
            connection.execute("UPDATE batches SET batch_id = 'batch_unknown'")
        patch.undo()
        assert [outcome.value for outcome in judge(url, tmp_path).ask_all(asked)] == [1, 2]
        patch.setattr(batch._Run, "_collect", broken)
        with pytest.raises(KeyboardInterrupt):
            judge(url, tmp_path).ask_all(asks("3", "4"))
    with server() as (backend, url):
        assert [outcome.value for outcome in judge(url, tmp_path).ask_all(asks("3", "4"))] == [3, 4]
        assert backend.answered.total() == 2
    assert Ledger(tmp_path / "l.sqlite").select(rows) == [("submitted",)], "the first server's job is left to it"


def test_a_file_that_the_server_does_not_know_any_more_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, *given: Any) -> Any:
        raise KeyboardInterrupt

    with server() as (backend, url):
        with monkeypatch.context() as patch:
            patch.setattr(batch._Run, "_create", broken)
            with pytest.raises(KeyboardInterrupt):
                judge(url, tmp_path).ask_all(asks("1"))
        with Ledger(tmp_path / "l.sqlite").transaction() as connection:
            connection.execute("UPDATE batches SET file_id = 'file-unknown'")
        assert [outcome.value for outcome in judge(url, tmp_path).ask_all(asks("1"))] == [1]
        assert backend.answered.total() == 1


def test_a_request_file_that_was_tidied_away_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as (_, url):
        with monkeypatch.context() as broken:
            broken.setattr(batch._Run, "_upload", lambda *_: (_ for _ in ()).throw(Broken()))
            with pytest.raises(Broken):
                judge(url, tmp_path).ask_all(asks("1"))
        for path in (tmp_path / "l.sqlite.batches").iterdir():
            path.unlink()
        assert judge(url, tmp_path).ask_all(asks("1"))[0].value == 1


def test_a_budget_stops_the_next_batch_and_keeps_what_was_asked(tmp_path: Path) -> None:
    with server() as (backend, url):
        with pytest.raises(BudgetExceeded):
            judge(url, tmp_path, budget=Budget(requests=5), how={"size": 2}).ask_all(asks(*map(str, range(9))))
        assert sum(backend.answered.values()) == len(Ledger(tmp_path / "l.sqlite")) == 5


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    for wrong in ({"size": 0}, {"size": 50_001}, {"megabytes": 201}, {"poll": 0}, {"rounds": 0}):
        with pytest.raises(StarlingError, match="1 to 50,000 requests"):
            Batches(**wrong)  # type: ignore[arg-type]
    with pytest.raises(StarlingError, match="give a ledger file"):
        Judge("m", batch=Batches())


def test_two_jobs_never_hold_the_same_request(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l.sqlite")
    with book.transaction() as connection:
        connection.execute("INSERT INTO batch_requests VALUES (x'00', 'a', 'r', 0, '{}')")
    with pytest.raises(StarlingError), book.transaction() as connection:
        connection.execute("INSERT INTO batch_requests VALUES (x'00', 'b', 'r', 0, '{}')")
    assert book.select("SELECT job FROM batch_requests") == [("a",)]


def test_a_batch_belongs_to_its_server_however_that_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *given: Any) -> Any:
        raise KeyboardInterrupt

    with server() as (backend, url):
        with monkeypatch.context() as patch:
            patch.setattr(batch._Run, "_collect", broken)
            with pytest.raises(KeyboardInterrupt):
                judge(url, tmp_path).ask_all(asks("1", "2"))
        again = url.replace("127.0.0.1", "LOCALHOST") + "/"
        assert [outcome.value for outcome in judge(again, tmp_path).ask_all(asks("1", "2"))] == [1, 2]
        assert set(backend.answered.values()) == {1}
    assert Ledger(tmp_path / "l.sqlite").select("SELECT state FROM batches") == []


@pytest.mark.parametrize(
    ("url", "same"),
    [
        (None, "https://api.openai.com/v1/"),
        ("HTTPS://API.openai.com:443/v1", "https://api.openai.com/v1"),
        ("http://localhost:8000/v1", "http://127.0.0.1:8000/v1/"),
        ("http://[::1]:80/v1", "http://127.0.0.1/v1"),
    ],
)
def test_one_server_has_one_spelling(url: str | None, same: str) -> None:
    assert wire.server(url) == wire.server(same)
    assert wire.server(url) != wire.server("http://127.0.0.1:8001/v1")


def test_a_filtered_line_of_a_batch_is_counted(tmp_path: Path) -> None:
    with server() as (_, url):
        asked = judge(url, tmp_path)
        (outcome,) = asked.ask_all(asks("filtered"))
        assert outcome.error is not None
        assert asked.spent["tokens"] == 15
        assert asked.ledger.used() == {"m": {"prompt_tokens": 10, "completion_tokens": 5}}
