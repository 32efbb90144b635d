from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_nb import claims
from starling_nb.claims import ClaimError, judge, parse

FINITE = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("rule", "value", "low", "high", "verdict"),
    [
        (">0.5", 0.6, None, None, "holds"),
        (">0.5", 0.5, None, None, "fails"),
        (">=0.5", 0.5, None, None, "holds"),
        ("< 3", 3.0, None, None, "fails"),
        ("<=3", 3.0, None, None, "holds"),
        ("low>0", 0.2, 0.1, 0.3, "holds"),
        ("low>0", 0.2, -0.1, 0.5, "fails"),
        ("high<10", 9.0, 8.0, 9.5, "holds"),
        ("between 0.65 0.75", 0.65, None, None, "holds"),
        ("between 0.65 0.75", 0.76, None, None, "fails"),
        ("value>0.6 and low>0.5", 0.7, 0.45, 0.9, "fails"),
        ("value > .6 and low > 5e-1", 0.7, 0.55, 0.9, "holds"),
        ("high between -1 1", 0.0, -2.0, 0.5, "holds"),
    ],
)
def test_rules(rule: str, value: float, low: float | None, high: float | None, verdict: str) -> None:
    assert judge(rule, value, low, high) == verdict


def test_too_small_a_sample_decides_nothing() -> None:
    assert judge(">0.5", 0.99, n=9, min_n=10) == "too small"
    assert judge(">0.5", 0.01, n=9, min_n=10) == "too small"
    assert judge(">0.5", 0.01, n=10, min_n=10) == "fails"


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        ("", (1.0,)),
        ("value", (1.0,)),
        ("mean>0", (1.0,)),
        (">0.5 or <2", (1.0,)),
        ("between 1", (1.0,)),
        ("__import__('os')", (1.0,)),
        ("low>0", (1.0,)),
        (">0", (float("nan"),)),
        (">0", (1.0, 2.0, 0.5)),
        (">0", (1.0, None, float("inf"))),
    ],
)
def test_what_cannot_be_judged_is_refused(rule: str, numbers: tuple[float | None, ...]) -> None:
    with pytest.raises(ClaimError, match="rule"):
        judge(rule, *numbers)  # type: ignore[arg-type]


def test_a_least_sample_asks_for_n() -> None:
    with pytest.raises(ClaimError, match="at least 5"):
        judge(">0", 1.0, min_n=5)


@given(st.text())
def test_any_text_is_a_rule_or_a_claim_error(text: str) -> None:
    with contextlib.suppress(ClaimError):
        assert parse(text)


@given(st.sampled_from(["value", "low", "high"]), st.sampled_from([">", ">=", "<", "<="]), FINITE)
def test_written_terms_read_back(subject: str, sign: str, bound: float) -> None:
    (condition,) = parse(f"{subject} {sign} {bound!r}")
    assert (condition.subject, condition.sign, condition.bound) == (subject, sign, bound)


@given(FINITE, FINITE)
def test_a_rule_and_its_opposite_never_agree(value: float, bound: float) -> None:
    assert {judge(f">{bound!r}", value), judge(f"<={bound!r}", value)} == {"holds", "fails"}


def test_the_ledger_keeps_the_last_claim_of_an_id() -> None:
    claims.clear()
    claims.record("b", 0.1, rule=">0.5")
    claims.record("a", 1, n=3, rule=">0", text="one")
    claims.record("b", 0.9, rule=">0.5")
    assert [(claim.id, claim.verdict) for claim in claims.recorded()] == [("a", "holds"), ("b", "holds")]
    assert claims.recorded()[0].row() == {
        "text": "one", "rule": ">0", "value": 1.0, "low": None, "high": None, "n": 3, "verdict": "holds",
    }  # fmt: skip
    claims.clear()
    assert claims.recorded() == []
