"""The batch and file protocols of the simulated judge's server, as the real ``openai`` client sees them."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from starling_nb.judge import SimulatedJudge
from starling_nb.judge.simulation import BatchRules, Failures, Refused, batch_server, file_server, serve
from starling_nb.nectar.ranking import build, parse

URL = "/v1/chat/completions"


class Echo:
    """Answers with the last message; "refuse" and "crash" do what they say. Keeps what it was asked."""

    def __init__(self, wait: float = 0.0) -> None:
        self.wait = wait
        self.asked: list[str] = []
        self.held = threading.Event()
        self.held.set()

    def models(self) -> list[str]:
        return ["m", "n"]

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        self.asked.append(text)
        time.sleep(self.wait)
        assert self.held.wait(10)
        if text == "refuse":
            raise Refused(429, "rate_limit_exceeded", "too many")
        if text == "crash":
            raise ZeroDivisionError("oh")
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def line(name: str, text: str = "hello", **changes: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": name, "method": "POST", "url": URL, "body": body, **changes}


def lines(n: int, text: str = "hello") -> list[dict[str, Any]]:
    return [line(f"r{i}", f"{text} {i}") for i in range(n)]


def connect(url: str) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(api_key="x", base_url=url, max_retries=0, timeout=20, http_client=http)


@contextmanager
def serving(backend: Any = None, rates: Mapping[str, float] | None = None, **rules: Any) -> Iterator[openai.OpenAI]:
    stop, url = serve(backend or Echo(), rules=BatchRules(**rules), failures=Failures(rates or {}, 0))
    try:
        with connect(url) as client:
            yield client
    finally:
        stop()


def upload(client: openai.OpenAI, rows: list[dict[str, Any]] | bytes) -> str:
    content = rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    return client.files.create(file=("in.jsonl", content), purpose="batch").id


def start(client: openai.OpenAI, rows: list[dict[str, Any]] | bytes, **more: Any) -> Any:
    name = upload(client, rows)
    return client.batches.create(input_file_id=name, endpoint=URL, completion_window="24h", **more)


def wait(client: openai.OpenAI, name: str, *statuses: str) -> Any:
    statuses = statuses or ("completed", "failed", "expired", "cancelled")
    deadline = time.monotonic() + 20
    while (batch := client.batches.retrieve(name)).status not in statuses:
        assert time.monotonic() < deadline, batch
        time.sleep(0.005)
    return batch


def rows(client: openai.OpenAI, name: str | None) -> list[dict[str, Any]]:
    return [json.loads(text) for text in client.files.content(name).text.splitlines()] if name else []


def counts(batch: Any) -> tuple[int, int, int]:
    told = batch.request_counts
    return told.total, told.completed, told.failed


def test_a_batch_goes_through_its_steps_and_answers_every_line_in_another_order() -> None:
    backend = Echo()
    backend.held.clear()
    with serving(backend, pause=0.02) as client:
        batch = start(client, lines(30), metadata={"run": "seven"})
        assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", URL)
        assert counts(wait(client, batch.id, "in_progress")) == (30, 0, 0)
        backend.held.set()
        batch = wait(client, batch.id)
        assert batch.status == "completed"
        assert (counts(batch), batch.errors, batch.error_file_id) == ((30, 30, 0), None, None)
        assert batch.metadata == {"run": "seven"}
        assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at < batch.expires_at
        found = rows(client, batch.output_file_id)
        names = [row["custom_id"] for row in found]
        assert names != sorted(names, key=lambda name: int(name[1:]))
        assert sorted(names) == sorted(f"r{i}" for i in range(30))
        assert len({row["id"] for row in found}) == 30
        for row in found:
            assert (row["error"], row["response"]["status_code"]) == (None, 200)
            assert row["response"]["request_id"]
            reply = row["response"]["body"]["choices"][0]["message"]["content"]
            assert reply == f"hello {row['custom_id'][1:]}"
        stored = client.files.retrieve(batch.output_file_id)
        assert (stored.purpose, stored.bytes) == ("batch_output", len(client.files.content(stored.id).content))


def test_the_order_of_the_output_is_the_same_every_time() -> None:
    orders = []
    for _ in range(2):
        with serving() as client:
            done = wait(client, start(client, lines(20)).id)
            orders.append([row["custom_id"] for row in rows(client, done.output_file_id)])
    assert orders[0] == orders[1]


def test_what_the_backend_refuses_stands_in_the_error_file() -> None:
    with serving() as client:
        batch = wait(client, start(client, [line("a"), line("b", "refuse"), line("c", "crash")]).id)
        assert (batch.status, counts(batch)) == ("completed", (3, 1, 2))
        assert [row["custom_id"] for row in rows(client, batch.output_file_id)] == ["a"]
        failed = {row["custom_id"]: row["response"] for row in rows(client, batch.error_file_id)}
        assert failed["b"]["status_code"] == 429
        assert failed["b"]["body"]["error"]["code"] == "rate_limit_exceeded"
        assert failed["c"]["status_code"] == 500


def test_lines_fail_at_the_stated_rate_and_anew_with_each_arrival() -> None:
    backend = Echo()
    with serving(backend, {"batch_line": 0.3}, line_status=503) as client:
        asked, rounds = lines(60), 0
        while asked:
            batch = wait(client, start(client, asked).id)
            failed = rows(client, batch.error_file_id)
            assert {row["response"]["status_code"] for row in failed} <= {503}
            assert 8 <= len(failed) <= 28 or rounds
            names = {row["custom_id"] for row in failed}
            asked, rounds = [row for row in asked if row["custom_id"] in names], rounds + 1
            assert rounds < 15
    assert sorted(backend.asked) == sorted(f"hello {i}" for i in range(60))


def test_only_failures_leave_no_output_file() -> None:
    with serving(rates={"batch_line": 1.0}) as client:
        batch = wait(client, start(client, lines(3)).id)
        assert (batch.status, batch.output_file_id, counts(batch)) == ("completed", None, (3, 0, 3))


@pytest.mark.parametrize(("after", "answered"), [(4, 4), (0, 0), (None, 5)])
def test_an_expired_batch_keeps_what_was_answered(after: int | None, answered: int) -> None:
    with serving(rates={"batch_expired": 1.0}, expire_after=after) as client:
        batch = wait(client, start(client, lines(10)).id)
        assert (batch.status, counts(batch)) == ("expired", (10, answered, 10 - answered))
        assert batch.expired_at
        left = rows(client, batch.error_file_id)
        assert {(row["error"]["code"], row["response"]) for row in left} == {("batch_expired", None)}
        names = [row["custom_id"] for row in rows(client, batch.output_file_id) + left]
        assert sorted(names) == [f"r{i}" for i in range(10)]


def test_a_whole_batch_can_fail_and_pass_the_next_time() -> None:
    with serving(rates={"batch_failed": 0.5}) as client:
        done = [wait(client, start(client, lines(2)).id) for _ in range(12)]
        assert {batch.status for batch in done} == {"failed", "completed"}
        failed = next(batch for batch in done if batch.status == "failed")
        assert failed.errors.data[0].code == "token_limit_exceeded"
        assert failed.failed_at


BODY = line("x")["body"]
WRONG: list[tuple[str, int | None, list[dict[str, Any]] | bytes]] = [
    ("invalid_json_line", 2, json.dumps(line("a")).encode() + b"\n{half\n"),
    ("invalid_json_line", 1, b"\xff\n"),
    ("invalid_request", 1, b"[]\n"),
    ("invalid_request", 1, [line("a", body=None)]),
    ("missing_custom_id", 1, [line("")]),
    ("duplicate_custom_id", 3, [line("a"), line("b"), line("a")]),
    ("invalid_method", 1, [line("a", method="GET")]),
    ("invalid_url", 1, [line("a", url="/v1/embeddings")]),
    ("model_not_found", 1, [line("a", body={**BODY, "model": "gpt"})]),
    ("mismatched_model", 2, [line("a"), line("b", body={**BODY, "model": "n"})]),
    ("empty_file", None, b"\n"),
]


@pytest.mark.parametrize(("code", "number", "content"), WRONG)
def test_a_wrong_input_fails_with_code_and_line(code: str, number: int | None, content: Any) -> None:
    backend = Echo()
    with serving(backend) as client:
        batch = wait(client, start(client, content).id)
        assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
        error = batch.errors.data[0]
        assert (error.code, error.line, len(batch.errors.data)) == (code, number, 1)
        assert error.message
    assert not backend.asked


def test_too_many_requests_and_too_large_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_server, "MOST_REQUESTS", 3)
    monkeypatch.setattr(file_server, "LARGEST_FILE", 10_000)
    monkeypatch.setattr(file_server, "FORM", 1000)
    with serving() as client:
        batch = wait(client, start(client, lines(4)).id)
        assert batch.errors.data[0].code == "too_many_requests"
        for size in (10_001, 300_000):
            with pytest.raises(openai.APIStatusError, match="split it") as caught:
                upload(client, b"x" * size)
            assert caught.value.status_code == 413
        assert client.files.retrieve(upload(client, b"x" * 10_000)).bytes == 10_000


def test_a_cancelled_batch_keeps_what_was_answered() -> None:
    with serving(Echo(wait=0.02)) as client:
        name = start(client, lines(500)).id
        while not client.batches.retrieve(name).request_counts.completed:
            time.sleep(0.005)
        assert client.batches.cancel(name).status == "cancelling"
        batch = wait(client, name)
        assert batch.status == "cancelled"
        assert batch.cancelling_at <= batch.cancelled_at
        found = rows(client, batch.output_file_id)
        assert 0 < len(found) == batch.request_counts.completed < 500
        with pytest.raises(openai.ConflictError, match="cancelled cannot be cancelled"):
            client.batches.cancel(name)


def test_batches_are_listed_newest_first_with_their_metadata_in_pages() -> None:
    with serving() as client:
        assert client.batches.list().data == []
        made = [start(client, lines(1), metadata={"part": str(i)}).id for i in range(7)]
        page = client.batches.list(limit=3)
        assert [batch.id for batch in page.data] == made[:3:-1]
        assert page.has_more
        assert [batch.id for batch in client.batches.list(limit=3, after=made[1]).data] == [made[0]]
        listed = list(client.batches.list(limit=2))  # turns the pages
        assert [batch.id for batch in listed] == made[::-1]
        assert [batch.metadata for batch in listed] == [{"part": str(i)} for i in range(7)][::-1]
        for wrong in ({"limit": 0}, {"limit": 101}):
            with pytest.raises(openai.BadRequestError, match="limit"):
                client.batches.list(**wrong)
        with pytest.raises(openai.NotFoundError):
            client.batches.list(after="batch_0")


def test_files_are_kept_as_they_came_listed_and_deleted() -> None:
    with serving() as client:
        content = bytes(range(256)) * 5000 + b"\r\n--boundary\r\n"
        name = client.files.create(file=io.BytesIO(content), purpose="batch").id
        assert client.files.content(name).content == content
        other = client.files.create(file=("täst.jsonl", b""), purpose="batch")
        assert (other.bytes, other.purpose, other.status) == (0, "batch", "processed")
        assert client.files.content(other.id).content == b""
        assert [file.id for file in client.files.list()] == [other.id, name]
        assert [file.id for file in client.files.list(order="asc", limit=1)] == [name, other.id]
        assert list(client.files.list(purpose="fine-tune")) == []
        assert client.files.delete(name).deleted
        for ask in (client.files.retrieve, client.files.content, client.files.delete):
            call: Callable[[str], Any] = ask
            with pytest.raises(openai.NotFoundError, match="no such file"):
                call(name)
        with pytest.raises(openai.BadRequestError, match="purpose='vision'"):
            client.files.create(file=b"x", purpose="vision")


def test_what_does_not_exist_is_said_so() -> None:
    with serving() as client:
        name = upload(client, lines(1))
        good = {"input_file_id": name, "endpoint": URL, "completion_window": "24h"}
        many = {str(i): "" for i in range(17)}
        for wrong in ({"endpoint": "/v1/x"}, {"completion_window": "1h"}, {"metadata": many}, {"metadata": {"a": 1}}):
            with pytest.raises(openai.BadRequestError):
                client.batches.create(**{**good, **wrong})  # type: ignore[arg-type]
        for missing in (
            lambda: client.batches.create(**{**good, "input_file_id": "file-0"}),  # type: ignore[arg-type]
            lambda: client.batches.retrieve("batch_0"),
            lambda: client.batches.cancel("batch_0"),
        ):
            with pytest.raises(openai.NotFoundError, match="no such"):
                missing()


def test_a_batch_survives_the_end_of_its_input_file() -> None:
    backend = Echo()
    backend.held.clear()
    with serving(backend) as client:
        batch = start(client, lines(4))
        wait(client, batch.id, "in_progress")
        client.files.delete(batch.input_file_id)
        backend.held.set()
        assert counts(wait(client, batch.id)) == (4, 4, 0)


def test_batches_run_side_by_side_and_beside_single_requests() -> None:
    with serving(Echo(wait=0.04)) as client:
        begin = time.monotonic()
        names = [start(client, lines(30, f"batch {i}")).id for i in range(6)]
        message: Any = {"role": "user", "content": "alone"}
        alone = client.chat.completions.create(model="m", messages=[message])
        assert alone.choices[0].message.content == "alone"
        for i, name in enumerate(names):
            batch = wait(client, name)
            found = rows(client, batch.output_file_id)
            texts = {row["response"]["body"]["choices"][0]["message"]["content"] for row in found}
            assert texts == {f"batch {i} {n}" for n in range(30)}
        assert time.monotonic() - begin < 0.7 * 6 * 30 * 0.04  # one after the other; side by side it is a sixth


def test_the_server_stops_in_the_middle_of_a_batch() -> None:
    backend = Echo(wait=0.01)
    with serving(backend, pause=30) as client:
        start(client, lines(1000))
    with serving(backend) as client:
        start(client, lines(1000))
    assert len(backend.asked) < 100


def test_the_simulated_judge_ranks_in_batches_and_counts_contents() -> None:
    asks = [build([{"role": "user", "content": "Hi"}], [f"a{i}", "b", "c"], "final", 0) for i in range(6)]

    class Truth:
        def find(self, messages: Any) -> dict[str, Any]:
            return {"behaviour": "answer"}

        def grade(self, rubric: Any, messages: Any, answer: str) -> Any:
            return type("Grade", (), {"utility": 5.0})

    rates = {"http_429": 0.5}
    with SimulatedJudge(truth=Truth(), failures=rates, seed=3) as judge, connect(judge.base_url) as client:
        todo = {f"r{i}": {"model": judge.model, "messages": ask.messages} for i, ask in enumerate(asks)}
        while todo:
            batch = wait(client, start(client, [line(name, body=body) for name, body in todo.items()]).id)
            for row in rows(client, batch.output_file_id):
                del todo[row["custom_id"]]
                parse(row["response"]["body"]["choices"][0]["message"]["content"], 3)
            assert {row["response"]["status_code"] for row in rows(client, batch.error_file_id)} <= {429}
        assert judge.served == 6
        assert set(judge.served_by_content.values()) == {1}
