from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling_nb import files
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.mt_bench import Question, pairs
from starling_nb.judge import Outcome

BENCH = [
    Question("81", "writing", ("Write a line.", "Shorten it."), ("a verse", "verse")),
    Question("111", "math", ("Add 1 and 2.", "Double it."), ("It is 3", "It is 6")),
]
ONE = {"81": ["one first", "one second"], "111": ["one third", "one sixth"]}
TWO = {"81": ["two first", "two second"], "111": ["two third", "two sixth"]}


def table(*cells: tuple[str, int, str | None, str | None]) -> pd.DataFrame:
    return pd.DataFrame([("m", "n", *cell) for cell in cells], columns=pairs.VERDICTS).astype({"g1": object})


def test_both_orders_are_asked_with_each_models_own_conversation() -> None:
    asked = {one.id: one for one in pairs.requests(BENCH, ONE, TWO)}
    assert sorted(asked) == sorted(f"{id}/{turn}/{order}" for id in ONE for turn in (1, 2) for order in ("12", "21"))
    shown, swapped = (asked[f"111/2/{order}"].messages[1]["content"] for order in ("12", "21"))
    order = ["Add 1", "one third", "two third", "It is 3", "Double", "one sixth", "two sixth", "It is 6"]
    assert [shown.index(text) for text in order] == sorted(shown.index(text) for text in order)
    assert swapped.index("two sixth") < swapped.index("one sixth")
    assert "verse" not in asked["81/1/12"].messages[1]["content"]
    assert "second" not in asked["81/1/12"].messages[1]["content"]
    with pytest.raises(EvaluationError, match="111 needs 2 answers of both"):
        pairs.requests(BENCH, ONE, {**TWO, "111": ["only one"]})


def test_orders_agree_or_it_is_a_tie_and_what_is_half_judged_is_out() -> None:
    said = {"1": ("A", "B"), "2": ("A", "A"), "3": ("tie", "tie"), "4": ("B", "A"), "5": ("tie", "B"), "6": ("A", None)}
    outcomes = [
        Outcome(f"{id}/1/{order}", value, None, "", {}, False)
        for id, both in said.items()
        for order, value in zip(("12", "21"), both, strict=True)
    ] + [Outcome("7/1/21", "A", None, "", {}, False)]
    found = pairs.battles(pairs.verdicts(outcomes, "m", "n"))
    assert list(found.table.columns) == ["model_a", "model_b", "winner", "question_id", "turn"]
    assert dict(zip(found.table["question_id"], found.table["winner"], strict=True)) == {
        "1": "model_a", "2": "tie", "3": "tie", "4": "model_b", "5": "tie",
    }  # fmt: skip
    assert (found.unreadable, found.duplicated, found.disagreed) == (2, 0, 2)
    assert pairs.win_rate(found.table).value == 0.5
    assert pairs.win_rate(found.table).n == 5


def test_a_second_row_of_one_pair_is_counted_and_left_out() -> None:
    found = pairs.battles(table(("1", 1, "model_a", "model_a"), ("1", 1, "model_b", "model_b"), ("1", 2, "tie", "tie")))
    assert found.table["winner"].tolist() == ["model_a", "tie"]
    assert found.duplicated == 1
    with pytest.raises(EvaluationError, match="one pair of models"):
        pairs.win_rate(found.table.iloc[:0])


WON = st.sampled_from(["model_a", "model_b", "tie", None, "error"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("123"), st.integers(1, 2), WON, WON), min_size=1, max_size=12))
def test_exchanging_the_models_exchanges_the_winners(cells: list[tuple[str, int, str | None, str | None]]) -> None:
    swap = {"model_a": "model_b", "model_b": "model_a"}
    plain = pairs.battles(table(*cells))
    other = pairs.battles(table(*((i, t, swap.get(h or "", h), swap.get(g or "", g)) for i, t, g, h in cells)))
    assert [swap.get(won, won) for won in plain.table["winner"]] == other.table["winner"].tolist()
    assert len(plain.table) + plain.unreadable + plain.duplicated == len(cells)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("so [[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie"), ("[[B]] and [[A]]", "A"), ("[[D]]", None), ("", None)],
)
def test_official_replies_are_read_as_fastchat_reads_them(reply: str, verdict: str | None) -> None:
    if verdict is None:
        with pytest.raises(pairs.VerdictError):
            pairs.parse(reply)
    else:
        assert pairs.parse(reply) == verdict


def test_our_verdict_stands_on_the_last_line() -> None:
    assert pairs.parse_last("[[A]] looks good at first.\n[[C]]\n") == "tie"
    for reply in ("", "[[A]]\nor not", "[[A]] [[B]]"):
        with pytest.raises(pairs.VerdictError):
            pairs.parse_last(reply)


def scored(scores: Sequence[float]) -> pd.DataFrame:
    rows = [(str(n), 1, 1, score) for n, score in enumerate(scores)]
    return pd.DataFrame(rows, columns=["question_id", "turn", "repeat", "score"])


def test_grades_a_tenth_apart_are_a_tie() -> None:
    found = pairs.from_scores({"m": scored([5, 5.1, 5.2, 3, -1, 7]), "n": scored([5, 5, 5, 4, 5])}, "m", "n")
    assert found.table["winner"].tolist() == ["tie", "tie", "model_a", "model_b"]
    assert found.unreadable == 2


def test_pairs_come_back_from_fastchats_file(tmp_path: Path) -> None:
    given = table(("81", 1, "model_a", "tie"), ("81", 2, None, "model_b"))
    pairs.write_file(tmp_path / "gpt-4_pair.jsonl", given, judge="gpt-4")
    stored = files.read_jsonl(tmp_path / "gpt-4_pair.jsonl")
    assert [(row["g1_winner"], row["g2_winner"]) for row in stored] == [("model_1", "tie"), ("error", "model_2")]
    back = pairs.read_file(tmp_path / "gpt-4_pair.jsonl")
    assert back.where(back.notna(), None).to_numpy().tolist() == given.where(given.notna(), None).to_numpy().tolist()
    files.write_jsonl(tmp_path / "bad.jsonl", [{"model_1": "m"}])
    with pytest.raises(EvaluationError, match="no usable 'model_2'"):
        pairs.read_file(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("judge", "first", "consistent", "always"),
    [("gpt-4-0613", 0.491, 0.815, (0.050, 0.062)), ("gpt-3.5-turbo-1106", 0.474, 0.695, (0.111, 0.148))],
)
def test_stored_verdicts_give_the_figures_of_an_independent_count(
    real_data: Path, judge: str, first: float, consistent: float, always: tuple[float, float]
) -> None:
    stored = pd.read_parquet(real_data / "mt_bench" / "pair_judgments.parquet")
    stored = stored[stored["judge"] == judge]
    said = {(r.question_id, r.model_a, r.model_b): r.verdict for r in stored.itertuples()}
    base = "vicuna-13b-v1.3"
    rows, same, both, wins, losses, ever = [], 0, 0, 0, 0, [0, 0]
    for (id, a, b), verdict in said.items():
        wins, losses = wins + (verdict == "A"), losses + (verdict == "B")
        if a != base:
            continue
        other = said.get((id, b, a))
        rows.append((a, b, str(id), 2, pairs.winner(verdict, "12"), pairs.winner(other, "21")))
        if {verdict, other} <= {"A", "B", "C"}:
            both += 1
            same += (verdict, other) in (("A", "B"), ("B", "A"), ("C", "C"))
            ever[0] += verdict == other == "A"
            ever[1] += verdict == other == "B"
    table = pd.DataFrame(rows, columns=pairs.VERDICTS)
    found = pairs.positions(table)
    assert found.first_wins.value == pytest.approx(wins / (wins + losses), abs=1e-12)
    assert found.consistent.value == pytest.approx(same / both, abs=1e-12)
    assert found.always_first.value == pytest.approx(ever[0] / both, abs=1e-12)
    assert found.always_second.value == pytest.approx(ever[1] / both, abs=1e-12)
    decided = pairs.battles(table)
    assert (len(decided.table), decided.disagreed) == (both, both - same)
    # Published over the whole set, of which three questions in four are here.
    assert found.first_wins.low < first < found.first_wins.high
    assert found.consistent.low < consistent < found.consistent.high
    assert abs(found.always_first.value - always[0]) < 0.02 > abs(found.always_second.value - always[1])
