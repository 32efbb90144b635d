"""Budgets stop in time, whatever they count, and forecasts come before anything is asked."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling_nb.errors import StarlingError
from starling_nb.judge import Attempt, Budget, BudgetExceeded, Judge, Price, Request
from starling_nb.judge.spending import PRICES, Spending


def most(prompt: int, reply: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": reply}


def used(prompt: int, reply: int) -> dict[str, int]:
    return most(prompt, reply) | {"total_tokens": prompt + reply}


def test_prices_by_hand() -> None:
    assert PRICES["gpt-4-0613"].of(most(1_000_000, 500_000)) == pytest.approx(30 + 30)
    assert PRICES["gpt-4o"].in_batches().of(most(1_000_000, 0)) == pytest.approx(1.25)


def test_dollars_without_a_price_are_refused() -> None:
    with pytest.raises(StarlingError, match="needs the judge's price"):
        Judge("unheard-of", "http://127.0.0.1:9/v1", budget=Budget(dollars=1.0))


@pytest.mark.parametrize("most", [{"dollars": math.nan}, {"dollars": math.inf}, {"dollars": -1.0}, {"requests": -1}])
def test_what_limits_nothing_is_no_budget(most: dict[str, Any]) -> None:
    with pytest.raises(StarlingError, match="at most, 0 or more"):
        Budget(**most)


@given(st.integers(1, 9), st.none() | st.integers(9, 99), st.none() | st.floats(0.1, 9))
def test_processes_together_keep_to_one_budget(n: int, requests: int | None, dollars: float | None) -> None:
    share = Budget(requests, None, dollars).split(n)
    assert (share.requests is None, share.tokens, share.dollars is None) == (requests is None, None, dollars is None)
    if requests is not None and share.requests is not None:
        assert 0 < share.requests * n <= requests < (share.requests + 1) * n
    assert dollars is None or share.dollars == pytest.approx(dollars / n)


def test_what_earlier_runs_spent_counts_and_is_told() -> None:
    spending = Spending(Budget(dollars=1.0, before=0.9), Price(1, 1))
    spending.reserve_now(most(50_000, 50_000))
    spending.settle(most(50_000, 50_000), used(50_000, 0))
    with pytest.raises(BudgetExceeded, match=r"spent: \$0\.95 of \$1\.00, \$0\.90 of them in earlier runs"):
        spending.reserve_now(most(50_000, 50_000))
    assert Budget(dollars=1.0, before=0.6).split(4).dollars == pytest.approx(0.7)


def test_a_budget_of_fewer_requests_than_processes_is_refused() -> None:
    assert Budget(0).split(2) == Budget(0)
    with pytest.raises(StarlingError, match="a budget for 4 processes needs as many requests"):
        Budget(3).split(4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1)), min_size=1, max_size=12))
def test_a_budget_is_never_exceeded_whatever_the_replies_cost(asked: list[tuple[int, int, float]]) -> None:
    spending = Spending(Budget(tokens=100, dollars=80e-6, requests=9), Price(1, 1))

    async def main() -> None:
        async def one(prompt: int, reply: int, share: float) -> None:
            await spending.reserve(most(prompt, reply))
            await asyncio.sleep(0)
            spending.settle(most(prompt, reply), None if share < 0.2 else used(prompt, int(reply * share)))

        found = await asyncio.gather(*(one(*item) for item in asked), return_exceptions=True)
        assert all(error is None or isinstance(error, BudgetExceeded) for error in found)

    asyncio.run(main())
    assert spending.tokens <= 100
    assert spending.dollars <= 80e-6 + 1e-12
    assert spending.requests <= 9
    assert spending.reserved_tokens == 0
    assert spending.reserved_dollars == pytest.approx(0, abs=1e-12)


def test_a_forecast_reads_a_few_requests_and_learns_reply_lengths_from_the_ledger() -> None:
    def requests() -> object:
        while True:
            yield Request("x", [{"role": "user", "content": "word " * 800}], {"max_tokens": 400}, str)

    judge = Judge("gpt-4o", "http://127.0.0.1:9/v1")
    first = judge.forecast(requests(), 1000)  # type: ignore[arg-type]
    assert first.requests == 1000
    assert first.tokens == pytest.approx(1000 * (1000 + 200), rel=0.01)
    assert first.dollars == pytest.approx((1_000_000 * 2.5 + 200_000 * 10) / 1e6, rel=0.01)
    assert str(first) == "1,000 requests, about 1.20 million tokens, $4.50"
    judge.ledger.append([Attempt("00" * 32, "x", "gpt-4o", 0, {}, reply="yes", usage=used(900, 50))])
    assert judge.forecast(requests(), 1000).tokens == pytest.approx(1000 * (1000 + 50), rel=0.01)  # type: ignore[arg-type]
    assert Judge("unheard-of", "http://127.0.0.1:9/v1").forecast(requests(), 5).dollars is None  # type: ignore[arg-type]
    assert judge.forecast([], 0).requests == 0


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("你好世界" * 60, 540),
        ("नमस्ते दुनिया " * 40, 560),
        ("3.14159, 2718 " * 40, 560),
        ("Plain words, as people write. " * 40, 282),
    ],
)
def test_what_is_set_aside_for_a_prompt_covers_what_a_small_tokenizer_makes_of_it(text: str, tokens: int) -> None:
    """Counted with SmolLM2's tokenizer; its 49,152 pieces are fewer than any judge's, so that it needs more of them."""
    request = Request("1", [{"role": "user", "content": text}], {"max_tokens": 7}, str)
    assert tokens <= request.most["prompt_tokens"] <= 4 * tokens
    assert request.most["completion_tokens"] == 7
