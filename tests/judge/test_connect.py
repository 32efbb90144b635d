"""Who judges, where, and for how much."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from starling_nb.errors import StarlingError
from starling_nb.judge import Budget, BudgetExceeded, Judge, Price, Request, SimulatedJudge, simulation
from starling_nb.judge.connect import DOLLARS, connect
from starling_nb.judge.spending import PRICES
from starling_nb.nectar import prompts
from starling_nb.nectar.judging import Verdict, to_request
from starling_nb.nectar.ranking import build

SECRET = "sk-do-not-write-me-down"


def requests(n: int) -> list[Request[Verdict]]:
    """Three answers to each of n prompts, to be ranked."""
    asked = prompts.load(limit=n)
    flawed = [build(one.messages, [one.reference, one.flawed, "I do not know."], "final", 0) for one in asked]
    return [to_request(request, one.id) for request, one in zip(flawed, asked, strict=True)]


@pytest.mark.parametrize("key", ["", SECRET])
def test_any_openai_compatible_server_can_judge_and_no_key_is_needed_or_written(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with SimulatedJudge() as server, connect(f"{simulation.MODEL}@{server.base_url}", tmp_path / "ledger") as judge:
        (outcome,) = judge.ask_all(requests(1))
        assert server.served == 1
    assert outcome.error is None
    assert outcome.value is not None
    assert sorted(outcome.value.ranking) == [0, 1, 2]
    assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_a_model_s_name_may_hold_an_at_sign() -> None:
    with connect("qwen@v2@http://127.0.0.1:8000/v1") as judge:
        assert (judge.model, judge.base_url) == ("qwen@v2", "http://127.0.0.1:8000/v1")


@pytest.mark.parametrize(
    "who",
    [
        "qwen@htp://127.0.0.1:8000/v1",
        "qwen@http://127.0.0.1:port/v1",
        "@http://127.0.0.1:8000/v1",
        "http://127.0.0.1/v1",
    ],
)
def test_an_address_that_is_none_is_refused(who: str) -> None:
    with pytest.raises(StarlingError, match="write model@http"), connect(who):
        pass


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> str:
    """A simulated judge's server under a name with a price: 10 dollars a thousand tokens of prompt."""
    monkeypatch.setitem(PRICES, simulation.MODEL, Price(10_000, 0))
    return simulation.MODEL


def paid(judge: Judge) -> float:
    return judge.spent["dollars"]


def test_the_judges_of_a_folder_share_its_dollars_over_runs_and_stages(
    priced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "ledgers" / "01.sqlite", tmp_path / "ledgers" / "02.sqlite"
    with SimulatedJudge() as server:
        who = f"{priced}@{server.base_url}"
        with connect(who, first) as judge:
            judge.ask_all(requests(3))
            cost = paid(judge)
        assert cost > 0
        monkeypatch.setenv(DOLLARS, str(cost))
        with connect(who, first) as judge:
            assert len(judge.ask_all(requests(3))) == 3, "what was paid for is free"
        with connect(who, second) as judge, pytest.raises(BudgetExceeded, match="used up"):
            judge.ask_all(requests(3))
        assert server.served == 3
        monkeypatch.setenv(DOLLARS, str(10 * cost))
        with connect(who, second) as judge:
            assert len(judge.ask_all(requests(3))) == 3
            assert paid(judge) == pytest.approx(cost)
        with connect(who, tmp_path / "elsewhere" / "01.sqlite") as judge:
            assert judge.spending.budget.dollars == pytest.approx(10 * cost)
            assert judge.spending.budget.before == 0


def test_dollars_of_the_environment_limit_commands_that_name_none(
    priced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DOLLARS, "5")
    for given, found in ((Budget(), Budget(dollars=5)), (Budget(7), Budget(7, dollars=5)), (Budget(dollars=9),) * 2):
        with connect(priced, tmp_path / "l.sqlite", 0, given) as judge:
            assert judge.spending.budget == found
    with connect(priced, tmp_path / "l.sqlite", among=4) as judge:
        assert judge.spending.budget.dollars == 1.25
    with connect(priced, tmp_path / "l.sqlite", among=None) as judge:
        assert judge.spending.budget.dollars is None


def test_files_that_are_no_ledgers_are_left_alone(priced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.sqlite").write_text("no database")
    with closing(sqlite3.connect(tmp_path / "own.sqlite")) as own:
        own.execute("CREATE TABLE t (x)")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setenv(DOLLARS, "5")
    with connect(priced, tmp_path / "a.sqlite") as judge:
        assert judge.spending.budget.before == 0
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_another_server_s_model_of_the_same_name_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with SimulatedJudge() as first, SimulatedJudge() as second:
        one, other = (f"{simulation.MODEL}@{server.base_url}" for server in (first, second))
        for who in (one, one):
            with connect(who, path) as judge:
                judge.ask_all(requests(1))
        with pytest.warns(UserWarning, match=r"they count for .* too"), connect(other, path):
            pass


@pytest.mark.parametrize("amount", ["ten", "-1", "nan", "inf"])
def test_an_amount_that_is_none_is_refused(
    amount: str, priced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DOLLARS, amount)
    with pytest.raises(StarlingError, match="an amount of dollars"), connect(priced, tmp_path / "a.sqlite"):
        pass


def test_dollars_do_not_limit_a_judge_without_a_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DOLLARS, "5")
    with pytest.raises(StarlingError, match="leave --dollars"), connect("qwen@http://127.0.0.1:1/v1", tmp_path / "a"):
        pass
    with connect("simulated", tmp_path / "a.sqlite") as judge:
        assert judge.spending.budget.dollars is None, "the simulated judge costs nothing"
