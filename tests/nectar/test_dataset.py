"""Answers, rankings, rows and files: nothing is lost between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from starling_nb.errors import StarlingError
from starling_nb.judge.connect import connect
from starling_nb.nectar import dataset, labelling, prompts, schema
from starling_nb.nectar.candidates import Candidates
from starling_nb.nectar.labelling import Plan
from starling_nb.nectar.responses import embedded, fill

PROMPTS = prompts.load(limit=12)


@dataclass(frozen=True)
class Named:
    """Says its own name."""

    name: str
    weight: float = 1.0

    def answer(self, prompts: Sequence[Any], seed: int, faults: Callable[[str], object]) -> dict[str, str]:
        return {prompt.id: f"{self.name} says {prompt.id}" for prompt in prompts}


def answered() -> list[Candidates]:
    """Seven answers a prompt by the embedded pool, whose models say only their names."""
    models = [Named(settings.name, settings.weight) for settings in embedded.MODELS]
    writers = [embedded.Writer(kind, PROMPTS) for kind in embedded.WRITERS]
    return list(fill(PROMPTS, [*models, *writers], 7, order=embedded.order))


def rankings(candidates: list[Candidates], **changes: Any) -> pd.DataFrame:
    """Every answer ranked by its length; shown backwards."""
    rows = []
    for item in candidates:
        shown = list(range(len(item.answers)))[::-1]
        texts = [item.answers[i] for i in shown]
        order = sorted(range(len(texts)), key=[(-len(text), text) for text in texts].__getitem__)
        row = {"prompt_id": item.prompt.id, "models": [item.models[i] for i in shown], "shown": shown}
        rows.append(row | {"ranking": order, "good_natured": True, "reply": "…", "error": None} | changes)
    return pd.DataFrame(rows)


def test_rows_hold_every_answer_in_rank_order_and_come_back_as_candidates() -> None:
    candidates = answered()
    rows = dataset.to_rows(candidates, rankings(candidates))
    assert schema.validate(rows, distinct=True) == len(PROMPTS)
    for row, item in zip(rows, candidates, strict=True):
        assert [answer["rank"] for answer in row["answers"]] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
        lengths = [len(answer["answer"]) for answer in row["answers"]]
        assert lengths == sorted(lengths, reverse=True)
        pairs = {(answer["model"], answer["answer"]) for answer in row["answers"]}
        assert pairs == set(zip(item.models, item.answers, strict=True))
        assert row["source"] == [item.prompt.family]
        assert row["turns"] == item.prompt.turns
    back = dataset.candidates_of(rows, PROMPTS)
    assert [item.prompt for item in back] == PROMPTS
    for item, before in zip(back, candidates, strict=True):
        assert item.models == sorted(before.models)
        assert dict(zip(item.models, item.answers, strict=True)) == dict(
            zip(before.models, before.answers, strict=True)
        )
    again = dataset.to_rows(back, rankings(back))
    found = dataset.agreement(rows, again)
    assert (found.identical, found.tau.value, found.n) == (1.0, 1.0, len(PROMPTS))
    with pytest.raises(StarlingError, match="no such prompt here"):
        dataset.candidates_of(rows, PROMPTS[1:])


def test_replies_without_a_ranking_make_no_row() -> None:
    candidates = answered()
    table = rankings(candidates)
    table.at[3, "ranking"] = None
    assert len(dataset.valid(table)) == len(PROMPTS) - 1
    rows = dataset.to_rows(candidates, table)
    assert len(rows) == len(PROMPTS) - 1


def test_agreement_between_opposite_rankings() -> None:
    candidates = answered()
    rows = dataset.to_rows(candidates, rankings(candidates))
    flipped = [row | {"answers": [answer | {"rank": 8 - answer["rank"]} for answer in row["answers"]]} for row in rows]
    found = dataset.agreement(rows, flipped)
    assert (found.identical, found.tau.value) == (0.0, -1.0)
    other = [row | {"answers": [answer | {"answer": "x"} for answer in row["answers"]]} for row in rows]
    with pytest.raises(StarlingError, match="no answers in common"):
        dataset.agreement(rows, other)


def test_statistics_by_hand() -> None:
    def row(texts: list[str]) -> dict[str, Any]:
        answers = [{"answer": text, "model": f"m{len(text.split())}", "rank": n + 1.0} for n, text in enumerate(texts)]
        return {
            "prompt": f"\n\nHuman: {texts[0]}\n\nAssistant: ",
            "answers": answers,
            "turns": 1,
            "source": ["x"],
            "good_natured": texts[0] == "a",
        }

    rows = [row(["a", "a b", "a b c"]), row(["a b c", "a b", "a"])]
    found = dataset.statistics(rows)
    assert found["rows"] == 2
    assert found["answers_per_row"] == 3
    assert found["words_per_answer"] == 2
    assert found["good_natured"] == 0.5
    assert found["longer_wins"] == 0.5
    assert (found["mean_rank.m1"], found["mean_rank.m2"], found["mean_rank.m3"]) == (2, 2, 2)
    ranks = dataset.mean_ranks(rows[:1]).set_index("model")
    assert ranks.loc["m3", "mean_rank"] == 3
    assert dataset.statistics(rows[:1])["longer_wins"] == 0.0


def test_likeness_of_two_builds() -> None:
    candidates = answered()
    same = dataset.compare_answers(candidates, candidates)
    assert same == {"same_responders": 1.0, "identical_answers": 1.0, "words_ratio": 1.0}
    doubled = [Candidates(c.prompt, c.models, [f"{a} {a}" for a in c.answers]) for c in candidates]
    found = dataset.compare_answers(doubled, candidates)
    assert (found["same_responders"], found["identical_answers"]) == (1.0, 0.0)
    assert found["words_ratio"] == pytest.approx(2.0)
    with pytest.raises(StarlingError, match="no prompt in common"):
        dataset.compare_answers([], candidates)


def test_a_judge_ranks_every_prompt_and_repeating_asks_again_in_the_same_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidates = answered()
    with connect("simulated", tmp_path / "ledger.sqlite") as judge:
        table = labelling.rank(judge, candidates, Plan(seed=1))
        repeated = labelling.rank(judge, candidates, Plan(seed=1, repeat=1))
    assert table.error.isna().all()
    for record, item in zip(table.to_dict("records"), candidates, strict=True):
        assert sorted(record["ranking"]) == sorted(record["shown"]) == list(range(7))
        assert record["models"] == [item.models[i] for i in record["shown"]]
        assert record["prompt_id"] == item.prompt.id
    assert table.shown.tolist() == repeated.shown.tolist()
    assert table.ranking.tolist() != repeated.ranking.tolist()
    rows = dataset.to_rows(candidates, table)
    best = {answer["model"] for row in rows for answer in row["answers"] if answer["rank"] <= 3}
    assert "writer-reference" in best
    ranks = dataset.mean_ranks(rows).set_index("model").mean_rank
    assert ranks["writer-reference"] < ranks["smollm2-default"]
    shown = dataset.show_request(table, candidates, 2)
    assert sorted(shown["rank"]) == [1, 2, 3, 4, 5, 6, 7]
    assert shown.answer.tolist() == [candidates[2].answers[i] for i in table.shown[2]]
    assert candidates[2].prompt.messages[-1]["content"] in capsys.readouterr().out


def test_passes_are_merged_by_mean_rank_and_ties_fall_to_the_first() -> None:
    assert dataset.merged_order([[0, 1, 2], [2, 0, 1], [1, 0, 2]]) == [1, 0, 2]
    assert dataset.merged_order([[1, 0, 2], [0, 1, 2]]) == [1, 0, 2]
    candidates = answered()[:2]
    once = rankings(candidates)
    upside_down = once.assign(ranking=[ranking[::-1] for ranking in once.ranking], good_natured=False)
    two_to_one = pd.concat([once, once, upside_down], ignore_index=True)
    assert dataset.to_rows(candidates, two_to_one) == dataset.to_rows(candidates, once)
    one_to_two = pd.concat([once, upside_down, upside_down], ignore_index=True)
    assert dataset.to_rows(candidates, one_to_two) == dataset.to_rows(candidates, upside_down)


def test_every_pass_shows_another_order() -> None:
    candidates = answered()[:6]
    with connect("simulated") as judge:
        found = labelling.rank(judge, candidates, Plan(passes=2))
        with pytest.raises(StarlingError, match="passes = 0"):
            labelling.rank(judge, candidates, Plan(passes=0))
    assert found.order.tolist() == [0] * 6 + [1] * 6
    assert found.shown[:6].tolist() != found.shown[6:].tolist()
    assert len(dataset.to_rows(candidates, found)) == 6
