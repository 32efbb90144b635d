"""The judge client against real servers on the loopback: patience, budget, resume, and nothing lost."""

import asyncio
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import storm
from starling_nb.errors import StarlingError
from starling_nb.judge import Budget, BudgetExceeded, Judge, JudgeUnavailable, Ledger, Request, wire
from starling_nb.judge.ledger import key
from starling_nb.judge.simulation import Refused, serve
from starling_nb.nectar import judging
from starling_nb.nectar.ranking import build

Script = Callable[[Mapping[str, Any], int], Any]
SECRET = "sk-do-not-write-me-down"


class Backend:
    """A judge that does what the script says: a reply's text, a whole completion, or an HTTP error."""

    def __init__(self, script: Script) -> None:
        self.script, self.bodies, self.times = script, [], []  # type: ignore[var-annotated]
        self.arrivals: Counter[str] = Counter()
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()

    def models(self) -> list[str]:
        return ["m"]

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        with self.lock:
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.arrivals[text] += 1
            arrival = self.arrivals[text]
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
        try:
            reply = self.script(body, arrival)
        finally:
            with self.lock:
                self.busy -= 1
        return reply if isinstance(reply, dict) else completion(reply)


def completion(text: str, reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m-0613",
        "choices": [choice],
        "usage": usage,
    }


@contextmanager
def judge(script: Script, **settings: Any) -> Iterator[tuple[Judge, Backend]]:
    backend = Backend(script)
    stop, url = serve(backend)
    try:
        yield Judge("m", url, **{"api_key": SECRET, **settings}), backend
    finally:
        stop()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FIRST_PAUSE", 0.01)


def asks(n: int, **params: Any) -> list[Request[int]]:
    return [Request(f"r{i}", [{"role": "user", "content": str(i)}], params, int) for i in range(n)]


def echo(body: Mapping[str, Any], arrival: int) -> str:
    return str(body["messages"][-1]["content"])


def after(seconds: float) -> Script:
    def script(body: Mapping[str, Any], arrival: int) -> str:
        time.sleep(seconds)
        return echo(body, arrival)

    return script


def refuse(status: int, code: str = "x", **headers: str) -> Refused:
    return Refused(status, code, f"no: {status} for {SECRET}", {k.replace("_", "-"): v for k, v in headers.items()})


def test_outcomes_come_in_the_order_of_requests_in_a_script_and_in_a_running_loop() -> None:
    def slower_first(body: Mapping[str, Any], arrival: int) -> str:
        time.sleep(0.05 if echo(body, arrival) == "0" else 0)
        return echo(body, arrival)

    async def notebook_cell(asked: Judge) -> list[Any]:
        return asked.ask_all(asks(5))

    with judge(slower_first) as (asked, backend):
        outcomes = asked.ask_all(asks(20, temperature=0.5))
        assert [outcome.value for outcome in outcomes] == list(range(20))
        assert [outcome.id for outcome in outcomes] == [f"r{i}" for i in range(20)]
        assert outcomes[3].usage == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        assert backend.bodies[0]["temperature"] == 0.5
        assert [outcome.value for outcome in asyncio.run(notebook_cell(asked))] == list(range(5))
        assert asked.spent == {"requests": 25, "tokens": 25 * 15, "dollars": 0.0}


def test_ask_yields_pairs_as_they_settle_and_may_be_left_early() -> None:
    async def main(asked: Judge) -> list[tuple[str, Any]]:
        seen = []
        stream = asked.ask(iter(asks(50)))
        async for request, outcome in stream:
            seen.append((request.id, outcome.value))
            if len(seen) == 6:
                break
        await stream.aclose()
        return seen

    with judge(echo, concurrency=2) as (asked, backend):
        seen = asyncio.run(main(asked))
        assert all(name == f"r{value}" for name, value in seen)
        assert len(backend.bodies) < 12


def test_concurrency_is_a_limit_that_is_used() -> None:
    with judge(after(0.03), concurrency=4) as (asked, backend):
        asked.ask_all(asks(16))
        assert backend.most_busy == 4


def test_a_second_run_pays_nothing_and_needs_neither_server_nor_key(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with judge(echo, ledger=path) as (asked, _):
        first = asked.ask_all(asks(5))
    again = Judge("m", ledger=path).ask_all(asks(5))
    assert [outcome.value for outcome in again] == [outcome.value for outcome in first]
    assert all(outcome.cached for outcome in again)
    assert not any(outcome.cached for outcome in first)
    assert SECRET.encode() not in path.read_bytes()
    record = Ledger(path).get(key("m", asks(1)[0].messages, {"seed": 0}, 0))
    assert record is not None
    assert (record.served_model, record.reply, record.usage["total_tokens"]) == ("m-0613", "0", 15)


def test_no_key_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(JudgeUnavailable, match="OPENAI_API_KEY"):
        Judge("m").ask_all(asks(1))


def test_one_changed_request_is_the_only_one_paid_again(tmp_path: Path) -> None:
    with judge(echo, ledger=tmp_path / "l.jsonl") as (asked, backend):
        asked.ask_all(asks(4))
        requests = asks(4)
        requests[2] = Request("r2", [{"role": "user", "content": "22"}], {}, int)
        outcomes = asked.ask_all(requests)
        assert [outcome.cached for outcome in outcomes] == [True, True, False, True]
        assert len(backend.bodies) == 5


def test_the_same_question_is_asked_once_even_at_the_same_time() -> None:
    same = Request("twice", [{"role": "user", "content": "7"}], {}, int)
    with judge(after(0.02)) as (asked, backend):
        outcomes = asked.ask_all([same, same, Request("thrice", same.messages, {}, int)])
        assert [outcome.value for outcome in outcomes] == [7, 7, 7]
        assert len(backend.bodies) == 1


def test_a_killed_run_is_continued(tmp_path: Path) -> None:
    path, n = tmp_path / "ledger.sqlite", 30
    program = (
        "import sys; from pathlib import Path; from starling_nb.judge import Judge, Request\n"
        "asks = [Request(f'r{i}', [{'role': 'user', 'content': str(i)}], {}, int) for i in range(30)]\n"
        "Judge('m', sys.argv[1], ledger=Path(sys.argv[2]), concurrency=2).ask_all(asks)"
    )
    with judge(after(0.05), ledger=path) as (asked, backend):
        child = subprocess.Popen([sys.executable, "-c", program, str(asked.base_url), str(path)])
        deadline = time.monotonic() + 60
        while len(Ledger(path)) < 5:
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.01)
        child.kill()
        child.wait()
        saved = len(Ledger(path))
        outcomes = asked.ask_all(asks(n))
        assert [outcome.value for outcome in outcomes] == list(range(n))
        assert sum(outcome.cached for outcome in outcomes) == saved
        assert 5 <= saved < n
        assert len(backend.bodies) <= n + 2  # at most those that were under way are paid twice


def test_retry_after_is_obeyed_and_the_request_answered() -> None:
    def limited(body: Mapping[str, Any], arrival: int) -> str:
        if arrival == 1:
            raise refuse(429, "rate_limit_exceeded", Retry_After="0.3")
        return echo(body, arrival)

    with judge(limited) as (asked, backend):
        assert asked.ask_all(asks(1))[0].value == 0
        assert backend.times[1] - backend.times[0] >= 0.29


def test_server_errors_are_tried_again_then_reported_and_never_cached(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"

    def down(body: Mapping[str, Any], arrival: int) -> str:
        if arrival <= 3:
            raise refuse(503)
        return echo(body, arrival)

    with judge(down, ledger=path, retries=2) as (asked, backend):
        outcome = asked.ask_all(asks(1))[0]
        assert outcome.value is None
        assert outcome.error is not None
        assert "503" in outcome.error
        assert outcome.error.startswith("Unanswered")
        assert SECRET not in outcome.error
        assert asked.ledger.counts() == {"http_503": 3}
        assert asked.spent == {"requests": 0, "tokens": 0, "dollars": 0.0}
        assert asked.ask_all(asks(1))[0].value == 0
        assert len(backend.bodies) == 4


def test_a_bad_request_costs_one_try_and_spares_the_others() -> None:
    def picky(body: Mapping[str, Any], arrival: int) -> str:
        if echo(body, arrival) == "1":
            raise refuse(400, "context_length_exceeded")
        return echo(body, arrival)

    with judge(picky) as (asked, backend):
        outcomes = asked.ask_all(asks(3))
        assert [outcome.value for outcome in outcomes] == [0, None, 2]
        assert len(backend.bodies) == 3


@pytest.mark.parametrize(("status", "code"), [(401, "invalid_api_key"), (404, "no_model"), (429, "insufficient_quota")])
def test_what_would_fail_for_all_stops_the_run_after_saving(tmp_path: Path, status: int, code: str) -> None:
    path = tmp_path / "l.jsonl"

    def script(body: Mapping[str, Any], arrival: int) -> str:
        if int(echo(body, arrival)) >= 3:
            raise refuse(status, code)
        return echo(body, arrival)

    with judge(script, ledger=path, concurrency=1) as (asked, backend):
        with pytest.raises(JudgeUnavailable) as caught:
            asked.ask_all(asks(50))
        assert SECRET not in str(caught.value)
        assert [outcome.value for outcome in caught.value.outcomes] == [0, 1, 2]
        assert len(backend.bodies) == 4
        assert asked.ledger.counts()["reply"] == 3


def test_a_dead_server_is_named() -> None:
    with judge(echo) as (asked, _):
        url = asked.base_url
    with pytest.raises(JudgeUnavailable, match="cannot reach the judge at http://127"):
        Judge("m", url, retries=1).ask_all(asks(2))


def test_a_call_that_hangs_is_given_up() -> None:
    with judge(after(0.6), timeout=0.15, retries=0) as (asked, _):
        outcome = asked.ask_all(asks(1))[0]
        assert outcome.error is not None
        assert "0.15 s" in outcome.error


def test_a_budget_of_requests_stops_after_saving_and_goes_on_when_raised(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with judge(echo, ledger=path, budget=7, concurrency=3) as (asked, backend):
        with pytest.raises(BudgetExceeded, match="7 requests") as caught:
            asked.ask_all(asks(20))
        assert len(backend.bodies) == len(caught.value.outcomes) == len(Ledger(path)) == 7
        rest = Judge("m", asked.base_url, ledger=path, budget=Budget(requests=13)).ask_all(asks(20))
        assert sum(outcome.cached for outcome in rest) == 7
        assert len(backend.bodies) == 20


def test_a_budget_of_tokens_is_never_exceeded_and_nearly_used() -> None:
    def slow(body: Mapping[str, Any], arrival: int) -> str:
        time.sleep(0.005)
        return echo(body, arrival)

    with judge(slow, budget=Budget(tokens=150), concurrency=8) as (asked, _):
        with pytest.raises(BudgetExceeded):
            asked.ask_all(asks(50, max_tokens=40))  # each may cost 50 and does cost 15
        assert 150 - 50 < asked.spent["tokens"] <= 150


def test_an_unreadable_reply_is_kept_with_its_error_and_paid_once(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with judge(lambda body, n: completion("seven, I thi", "length"), ledger=path) as (asked, backend):
        for cached in (False, True):
            outcome = asked.ask_all(asks(1))[0]
            assert (outcome.value, outcome.reply, outcome.cached) == (None, "seven, I thi", cached)
            assert outcome.error is not None
            assert outcome.error.startswith("ValueError: invalid literal")
            assert "max_tokens" in outcome.error
        assert len(backend.bodies) == 1


def test_asking_again_uses_another_sample_and_seed(tmp_path: Path) -> None:
    def second_time(body: Mapping[str, Any], arrival: int) -> str:
        return "not a number" if body["seed"] == 11 else "42"

    with judge(second_time, ledger=tmp_path / "l.jsonl", attempts=3) as (asked, backend):
        outcome = asked.ask_all(asks(1, seed=11))[0]
        assert outcome.value == 42
        assert outcome.usage["total_tokens"] == 30
        assert [body["seed"] for body in backend.bodies] == [11, 12]
        assert asked.ask_all(asks(1, seed=11))[0].cached
        assert len(backend.bodies) == 2


def test_nonsense_and_filtered_replies_are_failures(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    strange = [{"choices": []}, completion("", "content_filter"), {"hello": 1}]
    with judge(lambda body, n: strange[int(echo(body, n))], ledger=path, retries=1) as (asked, _):
        outcomes = asked.ask_all(asks(3))
        assert all(outcome.error and outcome.error.startswith("Unanswered") for outcome in outcomes)
        assert asked.ledger.counts() == {"content_filter": 1, "malformed": 4}


def test_filtered_replies_count_against_the_budget_and_in_the_ledger(tmp_path: Path) -> None:
    most = Budget(tokens=100)
    with judge(lambda *_: completion("", "content_filter"), ledger=tmp_path / "l", budget=most) as (asked, backend):
        with pytest.raises(BudgetExceeded, match=r"of 100 tokens"):
            asked.ask_all(asks(20, max_tokens=20))
        assert asked.spent["tokens"] == 15 * len(backend.bodies) <= 100
        assert asked.ledger.used()["m"]["completion_tokens"] == 5 * len(backend.bodies) > 0


def test_a_placeholder_for_a_key_is_not_struck_out_of_replies() -> None:
    with judge(lambda *_: "ollama says 42", api_key="ollama") as (asked, _):
        assert asked.ask_all([Request("a", [{"role": "user", "content": "0"}], {}, str)])[0].reply == "ollama says 42"


def test_a_mistyped_parameter_is_named() -> None:
    with judge(echo) as (asked, _), pytest.raises(StarlingError, match="temprature"):
        asked.ask_all(asks(1, temprature=0.0))


def test_text_that_is_not_unicode_spares_the_others() -> None:
    broken = Request("broken", [{"role": "user", "content": "\ud83d"}], {}, int)
    with judge(echo) as (asked, _):
        first, second = asked.ask_all([broken, *asks(1)])
        assert "clean its text" in str(first.error)
        assert second.value == 0


def test_a_fault_in_the_reader_of_replies_is_not_hidden() -> None:
    with judge(echo) as (asked, _), pytest.raises(ZeroDivisionError):
        asked.ask_all([Request("x", [{"role": "user", "content": "0"}], {}, lambda reply: 1 // int(reply))])


def test_the_real_key_is_not_sent_to_a_server_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers["Authorization"])
            self.rfile.read(int(self.headers["Content-Length"]))
            content = json.dumps(completion("3")).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            assert Judge("m", url).ask_all(asks(1))[0].value == 3
        finally:
            server.shutdown()
            thread.join()
    assert seen == ["Bearer local"]


def test_importing_the_judge_does_not_import_openai() -> None:
    program = (
        "import sys, starling_nb.judge, starling_nb.nectar\nprint({'openai', 'torch', 'pandas'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_replay_answers_from_the_ledger_alone_and_tells_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"

    def filtered(body: Mapping[str, Any], arrival: int) -> Any:
        return completion("", "content_filter") if echo(body, arrival) == "3" else echo(body, arrival)

    with judge(filtered, ledger=path) as (asked, backend):
        asked.ask_all(asks(5))
        sent = len(backend.bodies)
        replay = Judge("m", asked.base_url, ledger=path, replay=True)
        outcomes = replay.ask_all(asks(7))
        assert outcomes == list(replay.settled(asks(7)))
        assert len(backend.bodies) == sent
    assert [outcome.value for outcome in outcomes] == [0, 1, 2, None, 4, None, None]
    assert outcomes[3].error == "Unanswered: the server's content filter stopped the reply"
    assert outcomes[5].error == "Unanswered: it was never asked"
    with pytest.raises(StarlingError, match=r"none\.sqlite is none"):
        Judge("m", ledger=tmp_path / "none.sqlite", replay=True)


def test_a_stream_longer_than_memory_is_drawn_as_it_is_asked() -> None:
    drawn, seen = [], []

    def endless() -> Iterator[Request[int]]:
        for request in asks(300):
            drawn.append(request.id)
            yield request

    def keep(request: Request[int], outcome: Any) -> None:
        seen.append(outcome.value)
        assert len(drawn) <= len(seen) + 4

    with judge(echo, concurrency=4) as (asked, _):
        asked.run(endless(), keep)
    assert sorted(seen) == list(range(300))


def test_what_is_under_way_when_a_session_is_left_is_still_saved(tmp_path: Path) -> None:
    async def main(asked: Judge) -> None:
        stream = asked.ask(iter(asks(50)))
        async for _ in stream:
            break
        await stream.aclose()

    with judge(after(0.05), concurrency=5, ledger=tmp_path / "l.sqlite") as (asked, backend):
        asyncio.run(main(asked))
        assert len(Ledger(tmp_path / "l.sqlite")) == len(backend.bodies)


class Patience:
    """A server that answers 0 at once and 1 when it is told to, and asks for a minute of quiet before all others."""

    pause = 60.0

    def __init__(self) -> None:
        self.refused, self.told = threading.Event(), threading.Event()

    def __call__(self, body: Mapping[str, Any], arrival: int) -> str:
        text = echo(body, arrival)
        if text == "1":
            assert self.told.wait(30)
        elif text != "0":
            self.refused.set()
            raise refuse(429, "rate_limit_exceeded", Retry_After=str(self.pause))
        else:
            assert self.refused.wait(30)
        return text

    def leave(self, asked: Judge) -> None:
        """Come back when two are sitting out the pause and one is under way; let that one come to its end."""
        deadline = time.monotonic() + 30
        while asked.ledger.counts().get("http_429", 0) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        threading.Timer(0.2, self.told.set).start()


async def left_by_break(asked: Judge, server: Patience) -> None:
    async with aclosing(asked.ask(asks(9))) as stream:
        async for _ in stream:
            await asyncio.to_thread(server.leave, asked)
            break


def left_by_an_exception(asked: Judge, server: Patience) -> None:
    def fail(request: Request[int], outcome: Any) -> None:
        server.leave(asked)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asked.run(asks(9), fail)


def interrupt(asked: Judge, server: Patience) -> None:
    """Wait for the moment, then do as Ctrl-C does."""
    server.leave(asked)
    os.kill(os.getpid(), signal.SIGINT)


def left_by_ctrl_c_in_a_script(asked: Judge, server: Patience) -> None:
    threading.Thread(target=interrupt, args=(asked, server)).start()
    with pytest.raises(KeyboardInterrupt):
        asked.ask_all(asks(9))


def left_by_ctrl_c_in_a_notebook(asked: Judge, server: Patience) -> None:
    async def cell() -> None:
        with pytest.raises(KeyboardInterrupt):
            asked.ask_all(asks(9))

    threading.Thread(target=interrupt, args=(asked, server)).start()
    loop = asyncio.new_event_loop()  # without the handler of asyncio.run, as in a kernel
    try:
        loop.run_until_complete(cell())
    finally:
        loop.close()


@pytest.mark.parametrize(
    "leave",
    [
        lambda asked, server: asyncio.run(left_by_break(asked, server)),
        left_by_an_exception,
        left_by_ctrl_c_in_a_script,
        left_by_ctrl_c_in_a_notebook,
    ],
    ids=["break", "exception", "script", "notebook"],
)
def test_who_leaves_waits_for_no_pause_and_loses_no_reply(
    leave: Callable[[Judge, Patience], None], tmp_path: Path
) -> None:
    server = Patience()
    with judge(server, concurrency=5, ledger=tmp_path / "l.sqlite") as (asked, backend):
        began = time.monotonic()
        leave(asked, server)
        assert time.monotonic() - began < server.pause / 2
        replies = Ledger(tmp_path / "l.sqlite")
        assert all(key("m", request.messages, {"seed": 0}, 0) in replies for request in asks(2))
        assert replies.counts()["reply"] == 2
        assert set(backend.arrivals.values()) == {1}  # nothing was sent again
        assert asked.spending.reserved_tokens == 0
        assert asked.spent["requests"] == 2


def test_a_reply_that_must_be_whole_is_asked_for_again_when_it_was_cut_off() -> None:
    def cut(body: Mapping[str, Any], arrival: int) -> Any:
        return completion("42", "length") if body["seed"] == 0 else "43"

    message = [{"role": "user", "content": "0"}]
    with judge(cut, attempts=2) as (asked, _):
        assert asked.ask_all([Request("a", message, {}, int, whole=True)])[0].value == 43
        assert asked.ask_all([Request("a", message, {}, int)])[0].value == 42
    with judge(cut) as (asked, _):
        (outcome,) = asked.ask_all([Request("a", message, {}, int, whole=True)])
        assert (
            outcome.error == "TruncatedReply: the token limit ended the reply (the reply was cut off: raise max_tokens)"
        )


def test_a_key_that_comes_back_is_struck_out_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def leaky(body: Mapping[str, Any], arrival: int) -> Any:
        if echo(body, arrival) == "0":
            return f"your key is {SECRET}"
        raise refuse(400, "bad")

    path = tmp_path / "l.sqlite"
    with judge(leaky, ledger=path) as (asked, _):
        outcomes = asked.ask_all(asks(2))
        asked.close()
    told = [outcome.reply + str(outcome.error) for outcome in outcomes]
    assert all("***" in text and SECRET not in text for text in told)
    assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    assert SECRET not in "".join(capsys.readouterr())


def test_an_address_with_a_password_is_never_shown() -> None:
    asked = Judge("m", f"http://me:{SECRET}@127.0.0.1:9/v1?key={SECRET}", retries=0)
    with pytest.raises(JudgeUnavailable, match=r"cannot reach the judge at http://127\.0\.0\.1:9/v1") as caught:
        asked.ask_all(asks(1))
    assert SECRET not in str(caught.value)


def test_a_limit_told_in_headers_is_kept_with_hardly_a_refusal() -> None:
    asked = [
        judging.to_request(build([{"role": "user", "content": f"q{i}"}], ["a", "b"], "final", 0), f"{i}")
        for i in range(150)
    ]
    with storm.Thread() as server:
        server.faults(limits={"requests": 50, "window": 1.0})
        outcomes = Judge("storm", server.url, concurrency=16).ask_all(asked)
        assert all(outcome.value is not None for outcome in outcomes)
        assert server.counts()["over_limit"] <= 20  # the first crowd knows of no limit yet
