"""Labelling: whatever happens on the way, the files are those of an undisturbed run and nothing is asked twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from benchmarks import fault_storm, kills, storm, synthetic
from starling_nb import files, progress
from starling_nb.errors import StarlingError
from starling_nb.judge import BudgetExceeded, Judge
from starling_nb.nectar import candidates, dataset, labelling, orders, schema
from starling_nb.nectar.candidates import Candidates
from starling_nb.nectar.labelling import Plan


@pytest.fixture(scope="module")
def server() -> Any:
    with storm.Thread() as started:
        yield started


def ask(server: storm.Thread, ledger: Path | None = None, **settings: Any) -> Judge:
    return Judge(storm.MODEL, server.url, ledger=ledger, **settings)


def test_both_files_hold_everything_and_fit_together(server: storm.Thread, tmp_path: Path) -> None:
    items = synthetic.Many(30)
    plan = Plan(passes=3, design="cyclic", seed=4)
    labels = labelling.label(ask(server), items, plan, tmp_path)
    assert (labels.prompts, labels.rows, dict(labels.outcomes)) == (30, 30, {"": 90})
    rows, table = dataset.load(tmp_path / "nectar.parquet"), pd.read_parquet(tmp_path / "rankings.parquet")
    assert schema.validate(rows, k=7, distinct=True) == 30
    assert Counter(table.prompt_id) == Counter({item.prompt.id: 3 for item in items})
    assert table.order.tolist() == [0, 1, 2] * 30
    assert pq.read_schema(tmp_path / "rankings.parquet").equals(labelling.rankings_schema())
    expected = orders.orders("cyclic", ((c.prompt.id, c.models) for c in items), 4, 3)
    assert [list(shown) for shown in table.shown] == [order for passes in expected for order in passes]
    for item, row in zip(items, rows, strict=True):
        assert {(a["model"], a["answer"]) for a in row["answers"]} == set(zip(item.models, item.answers, strict=True))
    assert rows == dataset.to_rows(list(items), table)
    assert list(table.pair_agreement) == [1.0] * 90  # the storm judge follows its own pairs
    again = labelling.rank(ask(server), list(items), plan)
    assert [list(r) for r in again.sort_values(["prompt_id", "order"]).ranking] == [
        list(r) for r in table.sort_values(["prompt_id", "order"]).ranking
    ]


def test_every_pass_over_the_candidates_says_how_far_it_is(
    server: storm.Thread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults()
    monkeypatch.setenv(progress.HEADLESS, "1")
    monkeypatch.setenv(progress.FILE, str(tmp_path / "progress.jsonl"))
    candidates.write(synthetic.Many(12), tmp_path / "c.parquet")
    labelling.label(ask(server), candidates.File(tmp_path / "c.parquet"), Plan(), tmp_path)
    lines = files.read_jsonl(tmp_path / "progress.jsonl")
    assert list(dict.fromkeys(line["desc"] for line in lines)) == ["checking candidates", "writing rows"]
    assert {line["total"] for line in lines} == {12}
    assert [line["step"] for line in lines if line["desc"] == "writing rows"][-1] == 12


def test_failures_stay_in_the_table_and_make_no_row(server: storm.Thread, tmp_path: Path) -> None:
    server.faults(rates={"refusal": 0.2, "wrong_letter": 0.2, "torn_list": 0.2})
    labels = labelling.label(ask(server), synthetic.Many(60), Plan(), tmp_path)
    server.faults()
    table = pd.read_parquet(tmp_path / "rankings.parquet")
    assert len(table) == labels.prompts == 60
    assert table.ranking.isna().sum() == table.error.notna().sum() == 60 - labels.outcomes[""]
    assert set(labels.outcomes) == {"", "RefusalError", "NotAPermutationError", "TruncatedError"}
    assert labels.rows == len(dataset.load(tmp_path / "nectar.parquet")) == labels.outcomes[""]
    assert labels.valid_share == labels.rows / 60
    assert table[table.ranking.isna()].reply.str.len().min() > 0


def test_verdicts_that_contradict_themselves_are_left_out_only_when_asked(tmp_path: Path) -> None:
    class Contrary:
        """Its pair winners and its list run in opposite ways for every second request."""

        asked = 0

        def models(self) -> list[str]:
            return ["m"]

        def complete(self, body: Any) -> dict[str, Any]:
            from starling_nb.nectar.judging import write_reply

            Contrary.asked += 1
            k = storm.letters_of(body["messages"])
            list_ = list(range(k)) if body["messages"][1]["content"].count("a") % 2 else list(range(k))[::-1]
            reply = write_reply("final", list_, True, [(a, b, a) for a in range(k) for b in range(a + 1, k)])
            choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
            return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}

    from starling_nb.judge.simulation import serve

    stop, url = serve(Contrary())
    try:
        judge = Judge("m", url)
        every = labelling.label(judge, synthetic.Many(40), Plan(), tmp_path / "a")
        strict = labelling.label(judge, synthetic.Many(40), Plan(consistent=True), tmp_path / "b")
    finally:
        stop()
    assert Contrary.asked == 40
    table = pd.read_parquet(tmp_path / "b" / "rankings.parquet")
    assert every.rows == 40
    assert 0 < strict.rows == (table.contradictions == 0).sum() < 40
    assert set(table.pair_agreement) == {0.0, 1.0}
    assert not table.cyclic.any()


def test_a_budget_stops_before_files_are_written_and_the_next_run_pays_only_the_rest(
    server: storm.Thread, tmp_path: Path
) -> None:
    server.faults()
    with pytest.raises(BudgetExceeded):
        labelling.label(ask(server, tmp_path / "l.sqlite", budget=10), synthetic.Many(25), Plan(), tmp_path)
    assert not (tmp_path / "nectar.parquet").exists()
    labelling.label(ask(server, tmp_path / "l.sqlite"), synthetic.Many(25), Plan(), tmp_path)
    assert set(server.counts()["answered"].values()) == {1}
    replayed = Judge(storm.MODEL, server.url, ledger=tmp_path / "l.sqlite", replay=True)
    labelling.label(replayed, synthetic.Many(25), Plan(), tmp_path / "replayed")
    assert sum(server.counts()["asked"].values()) == 25
    for name in ("nectar.parquet", "rankings.parquet"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "replayed" / name).read_bytes()


def test_an_iterator_of_candidates_is_refused_before_anything_is_paid(server: storm.Thread, tmp_path: Path) -> None:
    server.faults()
    with pytest.raises(StarlingError, match="gone through several times"):
        labelling.label(ask(server), iter(synthetic.Many(3)), Plan(), tmp_path)
    with pytest.raises(StarlingError, match="unknown order design"):
        labelling.label(ask(server), synthetic.Many(3), Plan(design="by taste"), tmp_path)
    assert server.counts()["asked"] == {}


def test_what_could_not_be_written_in_the_end_is_refused_before_anything_is_paid(
    server: storm.Thread, tmp_path: Path
) -> None:
    server.faults()
    first, second = synthetic.Many(2)
    bleeding = candidates.Conversation("p9", [{"role": "user", "content": "Hi.\n\nHuman: and?"}], ["x"])
    for wrong, said in [
        (Candidates(bleeding, first.models, first.answers), "p9 cannot be ranked: .* role mark"),
        (Candidates(second.prompt, ["a"], ["only one"]), "p000001 cannot be ranked: .* needs 2 to 26"),
        (first, "p000000 stands there twice"),
    ]:
        with pytest.raises(StarlingError, match=said):
            labelling.label(ask(server), [first, wrong], Plan(), tmp_path)
    assert server.counts()["asked"] == {}


def test_candidates_of_a_file_are_labelled_as_those_in_memory(server: storm.Thread, tmp_path: Path) -> None:
    candidates.write(synthetic.Many(8), tmp_path / "c.parquet")
    for name, items in (("a", synthetic.Many(8)), ("b", candidates.File(tmp_path / "c.parquet"))):
        labelling.label(ask(server), items, Plan(), tmp_path / name)
    for name in ("nectar.parquet", "rankings.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_storm_of_faults_ends_in_one_verdict_or_one_recorded_failure_each() -> None:
    found = fault_storm.run(700)
    assert found["requests"] == found["verdicts"] + found["failures"] == 700
    assert len(found["kinds"]) >= 30


@pytest.mark.parametrize("path", ["async", "batch"])
def test_kills_change_nothing_and_nothing_committed_is_sent_again(path: str) -> None:
    found = kills.run(path, 3, n=40)
    assert (found["kills"], found["asked_again"], found["same_files"]) == (3, 0, True)
