"""The storm judge keeps its word: it does what ``reply_for`` foretells, and counts it."""

import http.client
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from benchmarks import storm
from benchmarks.storm import load, replies
from benchmarks.storm import server as protocol
from starling_nb.nectar.ranking import VARIANTS, RankingError, build, parse, read_verdict


def messages(number: int, k: int = 7, variant: str = "final") -> list[dict[str, str]]:
    answers = [f"answer {i} <answer H> \n<answer H 0123456789abcdef>\n" for i in range(k)]
    return build([{"role": "user", "content": f"Question {number}?"}], answers, variant, 0).messages


def post(server: Any, asked: Any, timeout: float = 5, **more: Any) -> tuple[int, bytes, dict[str, str]]:
    line = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=timeout)
    try:
        line.request("POST", "/v1/chat/completions", json.dumps({"model": "storm", "messages": asked, **more}))
        answer = line.getresponse()
        return answer.status, answer.read(), {name.lower(): text for name, text in answer.getheaders()}
    finally:
        line.close()


@pytest.fixture(scope="module")
def server() -> Iterator[storm.Thread]:
    with storm.Thread() as started:
        yield started


@pytest.mark.parametrize("kind", [*replies.TEXT, *replies.DRESSED, "plain"])
def test_correct_replies_can_be_read_and_wrong_ones_cannot(kind: str) -> None:
    for number, k in ((0, 7), (1, 7), (2, 3), (3, 12)):
        planned = storm.reply_for(storm.content_of(messages(number, k)), 1, 0, {kind: 1.0}, k)
        assert planned.kind == kind
        if planned.expected_ranking is None:
            with pytest.raises(RankingError):
                parse(planned.text, k)
            continue
        assert parse(planned.text, k) == list(planned.expected_ranking)
        verdict = read_verdict(planned.text, k)
        assert verdict.good_natured is True
        if kind != "json_around":
            assert len(verdict.pairs or []) == k * (k - 1) // 2
        for a, b, winner in verdict.pairs or []:
            assert winner == min(a, b, key=planned.expected_ranking.index)


def test_plans_are_the_same_everywhere_and_follow_the_rates() -> None:
    rates = {"http_500": 0.2, "bold": 0.3}
    kinds = Counter(storm.reply_for(str(n), 1, 7, rates, 7).kind for n in range(2000))
    assert abs(kinds["http_500"] / 2000 - 0.2) < 0.04
    assert abs(kinds["bold"] / 2000 - 0.3) < 0.04
    assert len({storm.reply_for("x", arrival, 7, rates, 7).kind for arrival in range(1, 30)}) == 3
    assert storm.reply_for("x", 1, 7, {}, 7).expected_ranking == (5, 6, 3, 4, 2, 0, 1)  # in every process


@pytest.mark.parametrize("k", [2, 7, 26])
def test_the_answers_of_every_prompt_are_counted(k: int) -> None:
    assert {storm.letters_of(messages(0, k, variant)) for variant in VARIANTS} == {k}
    assert storm.letters_of([{"role": "user", "content": "Hello"}]) == 0


def test_what_was_foretold_is_sent_and_counted(server: storm.Thread) -> None:
    quick = set(storm.KINDS) - {"reset_before", "reset_within", "hang", "cut_short", "slow_drip"}
    rates = dict.fromkeys(sorted(quick - {"plain"}), 0.02)
    server.faults(rates=rates, seed=5)
    answered, valid, kinds = Counter[str](), Counter[str](), Counter[str]()
    for number in range(60):
        asked = messages(number)
        content = storm.content_of(asked)
        for arrival in (1, 2, 3):
            planned = storm.reply_for(content, arrival, 5, rates, 7)
            status, body, _ = post(server, asked)
            assert status == planned.status
            kinds[planned.kind] += 1
            if planned.kind in replies.READABLE:
                choice = json.loads(body)["choices"][0]
                assert choice["message"]["content"] == planned.text
                assert choice["finish_reason"] == planned.finish_reason
                answered[content] += 1
                valid[content] += planned.expected_ranking is not None
    told = server.counts()
    assert (told["answered"], told["valid"], told["kinds"]) == (answered, +valid, kinds)
    assert set(told["asked"].values()) == {3}
    assert len(kinds) > 25


def test_the_ways_a_connection_fails(server: storm.Thread) -> None:
    expected: list[tuple[str, Any]] = [
        ("reset_before", ConnectionResetError),
        ("reset_within", (ConnectionResetError, http.client.IncompleteRead)),
        ("hang", TimeoutError),
        ("cut_short", http.client.IncompleteRead),
    ]
    for kind, error in expected:
        server.faults(rates={kind: 1.0})
        with pytest.raises(error):
            post(server, messages(0), timeout=0.2)
        assert server.counts()["answered"] == {}
        assert server.counts()["kinds"] == {kind: 1}


def test_the_ways_a_body_fails(server: storm.Thread) -> None:
    found = {}
    for kind in replies.BODY:
        server.faults(rates={kind: 1.0})
        status, body, headers = post(server, messages(0))
        assert (status, int(headers["content-length"])) == (200, len(body))
        found[kind] = body
    for kind in ("half_json", "html"):
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            json.loads(found[kind])
    assert json.loads(found["no_choices"])["choices"] == []
    assert "choices" not in json.loads(found["choices_missing"])
    assert json.loads(found["null_content"])["choices"][0]["message"]["content"] is None
    assert json.loads(found["content_filter"])["choices"][0]["finish_reason"] == "content_filter"
    assert server.counts()["answered"] == {}


def test_pauses_are_named_in_every_way(server: storm.Thread) -> None:
    found = {}
    for kind in replies.LIMITED:
        server.faults(rates={kind: 1.0}, pause=0.02)
        status, _, headers = post(server, messages(0))
        assert status == 429
        found[kind] = headers.get("retry-after", ""), headers.get("retry-after-ms", "")
    assert found["http_429_date"][0].endswith("GMT")
    del found["http_429_date"]
    assert found == {
        "http_429_seconds": ("1", ""),
        "http_429_fraction": ("0.02", ""),
        "http_429_ms": ("", "20"),
        "http_429_bare": ("", ""),
    }


def test_slow_drips_and_latency_take_their_time_and_are_counted(server: storm.Thread) -> None:
    server.faults(rates={"slow_drip": 1.0}, drip=0.1, latency=0.02)
    assert json.loads(post(server, messages(0))[1])["choices"]
    told = server.counts()
    assert (list(told["valid"].values()), told["under_way"], told["most_under_way"]) == ([1], 0, 1)


def test_limits_are_told_and_kept(server: storm.Thread) -> None:
    server.faults(limits={"requests": 3, "tokens": 1e9, "window": 600})
    seen = [post(server, messages(0)) for _ in range(5)]
    assert [status for status, _, _ in seen] == [200, 200, 200, 429, 429]
    assert [headers["x-ratelimit-remaining-requests"] for _, _, headers in seen] == ["2", "1", "0", "0", "0"]
    assert seen[0][2]["x-ratelimit-limit-requests"] == "3"
    assert seen[0][2]["x-ratelimit-reset-requests"] == "3m20s"
    assert 195_000 < int(seen[3][2]["retry-after-ms"]) <= 200_000
    told = server.counts()
    assert (told["over_limit"], list(told["asked"].values()), list(told["answered"].values())) == (2, [5], [3])
    server.faults(limits={"tokens": 3000, "window": 0.1})
    assert [post(server, messages(0), max_tokens=1500)[0] for _ in range(2)] == [200, 429]
    texts = [protocol.duration(seconds) for seconds in (0, 0.02, 1, 8.64, 360, 3600)]
    assert texts == ["0ms", "20ms", "1s", "8.64s", "6m0s", "1h0m0s"]


def test_what_it_cannot_do_is_refused(server: storm.Thread) -> None:
    server.faults()
    assert post(server, [{"role": "user", "content": "Hello"}])[0] == 400
    for wrong in ({"rates": {"fire": 1}}, {"rates": {"bold": 2}}, {"colour": 1}):
        with pytest.raises(OSError, match="400") as caught:
            server.faults(**wrong)
        caught.value.close()  # type: ignore[attr-defined]


def test_a_process_of_its_own_serves_the_openai_client_fast() -> None:
    asked: Any = messages(0)
    with storm.Process() as started:
        http_client = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(api_key="x", base_url=started.url, http_client=http_client) as client:
            reply = client.chat.completions.create(model=storm.MODEL, messages=asked)
        planned = storm.reply_for(storm.content_of(asked), 1, 0, {}, 7)
        assert parse(str(reply.choices[0].message.content), 7) == list(planned.expected_ranking or ())
        assert load.measure(started.url, 0.3) > 300  # 10,000 on a quiet core
        assert sum(started.counts()["answered"].values()) > 90
