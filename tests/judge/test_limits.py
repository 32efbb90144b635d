"""Rate limits are learnt from what servers say, and kept."""

from __future__ import annotations

import asyncio
import email.utils
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_nb.judge import limits
from starling_nb.judge.limits import RateLimit, retry_after


def headers(size: float, left: float, reset: str, kind: str = "requests") -> dict[str, str]:
    values = {"limit": size, "remaining": left, "reset": reset}
    return {f"x-ratelimit-{name}-{kind}": str(value) for name, value in values.items()}


async def sent_within(limit: RateLimit, span: float, tokens: int = 1) -> tuple[int, float]:
    """Requests let through in about ``span`` seconds, and how many seconds it was."""
    began, number = time.monotonic(), 0
    while True:
        try:
            async with asyncio.timeout(max(0.001, began + span - time.monotonic())):
                await limit.acquire(tokens)
        except TimeoutError:
            return number, time.monotonic() - began
        number += 1
        if time.monotonic() - began >= span:
            return number, time.monotonic() - began


@pytest.mark.parametrize(
    ("text", "value"),
    [("20ms", 0.02), ("1s", 1.0), ("6m0s", 360.0), ("1h2m3.5s", 3723.5), ("7", 7.0), ("", None), ("1x", None)],
)  # fmt: skip
def test_time_spans_as_servers_write_them(text: str, value: float | None) -> None:
    assert limits.seconds(text) == value


@given(st.text(max_size=20))
def test_any_header_is_a_wait_or_none(text: str) -> None:
    assert 0 <= retry_after({"retry-after": text, "retry-after-ms": text}) <= limits.LONGEST_OBEYED
    assert (limits.seconds(text) or 0.0) >= 0
    RateLimit().learn({f"x-ratelimit-{name}-requests": text for name in ("limit", "remaining", "reset")})


def test_retry_after_as_number_milliseconds_and_date() -> None:
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "40", "retry-after": "9"}) == 0.04
    assert 3 < retry_after({"retry-after": email.utils.formatdate(time.time() + 5, usegmt=True)}) <= 6
    assert retry_after({"retry-after": "-1"}) == 0
    assert retry_after({"retry-after": "1e9"}) == limits.LONGEST_OBEYED


def test_a_bucket_lets_through_what_is_left_and_then_the_servers_rate() -> None:
    async def main() -> tuple[int, float]:
        limit = RateLimit()
        limit.learn(headers(1000, 10, "9.9s"))  # 100 a second come back
        return await sent_within(limit, 0.5)

    number, seconds = asyncio.run(main())
    assert 15 < number <= 10 + 100 * seconds + 1


def test_the_scarcer_of_requests_and_tokens_decides() -> None:
    async def main() -> tuple[int, float]:
        limit = RateLimit()
        limit.learn(headers(1000, 1000, "0s") | headers(10_000, 500, "9.5s", "tokens"))  # 1,000 tokens a second
        return await sent_within(limit, 0.5, tokens=100)

    number, seconds = asyncio.run(main())
    assert 5 < number <= 5 + 10 * seconds + 1


def test_a_request_larger_than_the_whole_limit_waits_for_all_of_it_and_is_sent() -> None:
    async def main() -> float:
        limit = RateLimit()
        limit.learn(headers(100, 90, "0.1s", "tokens"))
        began = time.monotonic()
        await limit.acquire(1_000_000)
        return time.monotonic() - began

    assert asyncio.run(main()) < 1


def test_plain_refusals_slow_the_pace_and_answers_raise_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    limit = RateLimit()
    for _ in range(200):
        limit.answered()
    now[0] += 2.0
    assert limit.refused({}) == 0
    assert limit.buckets["pace"].rate == pytest.approx(70)  # seven tenths of 100 a second
    limit.refused({})  # in the same second: one crowd, one lesson
    assert limit.buckets["pace"].rate == pytest.approx(70)
    for _ in range(10):
        limit.answered()
    assert limit.buckets["pace"].rate == pytest.approx(70 * 1.01**10)


def test_a_server_that_refuses_however_slowly_it_is_asked_does_not_halt_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    limit = RateLimit()
    for _ in range(50):
        limit.answered()
    for _ in range(100):
        now[0] += 1.0
        limit.refused({})
    assert limit.buckets["pace"].rate == pytest.approx(5)
    limit.refused({}, for_rate=False)
    assert limit.buckets["pace"].rate == pytest.approx(5)


def test_a_pause_that_was_asked_for_holds_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> float:
        limit = RateLimit()
        assert limit.refused({"retry-after": "0.2"}) == 0.2
        began = time.monotonic()
        await asyncio.gather(*(limit.acquire(1) for _ in range(20)))
        return time.monotonic() - began

    assert 0.19 < asyncio.run(main()) < 0.6
