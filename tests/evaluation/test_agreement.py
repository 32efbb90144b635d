from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from starling_nb.evaluation import EvaluationError, agreement
from starling_nb.evaluation.alpaca_eval import annotators

WINNER = {"A": "first", "B": "second", "tie": "tie", "C": "tie"}
Row = tuple[Any, str, str, str | None]


def table(*rows: Row) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["prompt_id", "first", "second", "winner"])


def counted(rows: list[Row]) -> dict[str, float]:
    """The figures of both orders, counted by hand."""
    read = [row for row in rows if isinstance(row[3], str)]
    decided = [row for row in read if row[3] != "tie"]
    said = {row[:3]: row[3] for row in read}
    pairs = [(said[p, a, b], said[p, b, a]) for p, a, b in said if a < b and (p, b, a) in said]
    opposite = {"first": "second", "second": "first", "tie": "tie"}
    return {
        "first_wins": sum(row[3] == "first" for row in decided) / len(decided),
        "consistent": sum(one == opposite[other] for one, other in pairs) / len(pairs),
        "always_first": pairs.count(("first", "first")) / len(pairs),
        "always_second": pairs.count(("second", "second")) / len(pairs),
        "verdicts": len(read),
        "pairs": len(pairs),
    }


def same(verdicts: pd.DataFrame) -> agreement.BothOrders:
    """The library's figures, after they have met the hand count."""
    found = agreement.both_orders(verdicts)
    rows = list(verdicts[["prompt_id", "first", "second", "winner"]].itertuples(index=False, name=None))
    for name, value in counted(rows).items():
        got = getattr(found, name)
        assert (got if isinstance(got, int) else got.value) == pytest.approx(value, abs=1e-12), name
    return found


def test_both_orders_by_hand() -> None:
    verdicts = table(
        *[("p", "a", "b", "first"), ("p", "b", "a", "second")],  # a, whatever the order
        *[("q", "a", "b", "first"), ("q", "b", "a", "first")],
        *[("r", "b", "a", "tie"), ("r", "a", "b", "tie")],
        *[("s", "a", "b", "second"), ("s", "b", "a", None), ("t", "a", "b", "first")],
    )
    found = same(verdicts)
    assert (found.verdicts, found.ties, found.unreadable, found.pairs, found.excluded) == (8, 2, 1, 3, 2)
    assert found.consistent.value == pytest.approx(2 / 3)
    assert found.first_wins.n == 4


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (table(("p", "a", "b", "A")), "'A' is no winner"),
        (table(("p", "a", "a", "tie")), "compared with itself"),
        (table(("p", "a", "b", "first"), ("p", "a", "b", "tie")), "same answers in the same order"),
        (table(("p", "a", "b", "first")), "in each order"),
        (table(("p", "a", "b", "first")).drop(columns="winner"), "no column winner in the table"),
    ],
)
def test_tables_that_say_nothing_clear_are_refused(verdicts: pd.DataFrame, said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        agreement.both_orders(verdicts)


def test_accuracy_majority_and_length() -> None:
    votes = table(
        *[("p", "a", "b", "first"), ("p", "b", "a", "second"), ("p", "a", "b", "tie")],
        *[("q", "a", "b", "first"), ("q", "a", "b", "second"), ("r", "a", "b", "tie")],
    )
    labels = agreement.majority(votes)
    assert labels["winner"].fillna("none").tolist() == ["first", "none", "tie"]
    assert labels["votes"].tolist() == [3, 2, 1]
    verdicts = table(
        *[("p", "b", "a", "second"), ("p", "a", "b", "second"), ("q", "a", "b", "first")],
        *[("r", "b", "a", "tie"), ("r", "a", "b", None)],
    )
    found = agreement.accuracy(verdicts, labels)
    assert (found.accuracy.value, found.accuracy.n) == (pytest.approx(2 / 3), 2)
    assert found.decided.value == 0.5
    assert (found.counted, found.unreadable, found.unlabelled) == (3, 1, 1)
    texts = verdicts.assign(first_text=["x", "xxx", "x", "x", "x"], second_text=["xx", "x", "x", "x", "xx"])
    assert agreement.longer_wins(texts)["winner"].tolist() == ["second", "first", "tie", "tie", "second"]
    with pytest.raises(EvaluationError, match="two labels"):
        agreement.accuracy(verdicts, votes)
    with pytest.raises(EvaluationError, match="no readable verdict"):
        agreement.accuracy(verdicts, table(("z", "a", "b", "tie")))


@pytest.mark.parametrize(
    ("rule", "unreadable", "right", "counted", "blank"),
    [
        ("net", "out", ["p", "s", "v"], 6, 2),  # q cancels out, r is decided by one order
        ("net", "wrong", ["p", "s", "t", "v"], 8, 2),  # t's other verdict adds nothing
        ("both", "out", ["p", "v"], 6, 2),
        ("both", "wrong", ["p", "v"], 8, 2),
        ("each", "out", ["p", "p", "q", "s", "t", "v", "v"], 13, 2),
        ("each", "wrong", ["p", "p", "q", "s", "t", "v", "v"], 15, 2),
    ],
)
def test_pairs_count_by_rule(rule: Any, unreadable: Any, right: list[str], counted: int, blank: int) -> None:
    said = {
        "p": ("first", "second"),  # the first answer in both orders
        "q": ("first", "first"),
        "r": ("second", "tie"),
        "s": ("first", "tie"),
        "t": ("first", None),
        "u": ("second", "first"),
        "v": ("tie", "tie"),
        "w": (None, None),
    }
    rows = [(id, *names, one) for id, both in said.items() for names, one in zip(("ab", "ba"), both, strict=True)]
    verdicts = table(*(row for row in rows if row[:3] != ("w", "b", "a")))  # of w one order was never asked
    labels = table(*((id, "a", "b", "tie" if id == "v" else "first") for id in said))
    found = agreement.accuracy(verdicts, labels, rule=rule, unreadable=unreadable)
    assert found.accuracy.value == pytest.approx(len(right) / counted)
    assert (found.counted, found.unreadable) == (counted, blank)


def test_circles_are_found() -> None:
    circle = [("p", "a", "b", "first"), ("p", "b", "c", "first"), ("p", "a", "c", "second")]
    line = [("q", "a", "b", "first"), ("q", "c", "b", "second"), ("q", "a", "c", "first")]
    even = [("r", "a", "b", "first"), ("r", "b", "a", "first"), ("r", "b", "c", "first"), ("r", "c", "a", "first")]
    found = agreement.cyclic_triads(table(*circle, *line, *even))
    assert (found.value, found.n) == (0.5, 2)
    with pytest.raises(EvaluationError, match="circle"):
        agreement.cyclic_triads(table(*even))


def qlora(folder: Path, name: str, key: str) -> pd.DataFrame:
    stored = pd.read_parquet(folder / "qlora_judge" / f"{name}_pair_judgments.parquet")
    names = {key: "prompt_id", "model_a": "first", "model_b": "second"}
    return stored.rename(columns=names).assign(winner=stored["verdict"].map(WINNER))


def test_verdicts_of_the_qlora_judge(real_data: Path) -> None:
    vicuna = qlora(real_data, "vicuna", "question_id")
    found = same(vicuna)
    assert found.first_wins.low < 0.650 < found.first_wins.high  # the whole set's figures, of which this is a part
    assert found.consistent.low < 0.614 < found.consistent.high
    net: Counter[tuple[Any, str, str]] = Counter()
    for prompt, a, b, winner in vicuna[["prompt_id", "first", "second", "winner"]].itertuples(index=False, name=None):
        points = {"first": 1, "second": -1}.get(winner, 0)
        net[prompt, a, b] += points
        net[prompt, b, a] -= points
    prompts, models = sorted({key[0] for key in net}), sorted({key[1] for key in net})
    triads = [(net[p, a, b], net[p, b, c], net[p, c, a]) for p in prompts for a, b, c in combinations(models, 3)]
    decided = [one for one in triads if 0 not in one]
    cyclic = sum(all(x > 0 for x in one) or all(x < 0 for x in one) for one in decided)
    assert agreement.cyclic_triads(vicuna).value == pytest.approx(cyclic / len(decided), abs=1e-12)
    answers = pd.read_parquet(real_data / "qlora_judge" / "vicuna_responses.parquet")
    text = answers.set_index(["question_id", "model"])["response"]
    for side in ("first", "second"):
        vicuna[f"{side}_text"] = text.loc[list(zip(vicuna["prompt_id"], vicuna[side], strict=True))].to_numpy()
    length = agreement.longer_wins(vicuna[vicuna["first"] < vicuna["second"]])
    ranked = agreement.majority(vicuna)
    wins = agreement.accuracy(length, ranked)
    hits = [
        len(text[p, a]) != len(text[p, b]) and (len(text[p, a]) > len(text[p, b])) == (net[p, a, b] > 0)
        for p in prompts
        for a, b in combinations(models, 2)
        if net[p, a, b]
    ]
    assert wins.decided.value == pytest.approx(sum(hits) / len(hits), abs=0.03)
    other = same(qlora(real_data, "oa", "message_id"))
    assert other.consistent.low < 0.724 < other.consistent.high


def test_verdicts_of_mt_bench_judges(real_data: Path) -> None:
    stored = pd.read_parquet(real_data / "mt_bench" / "pair_judgments.parquet")
    names = {"question_id": "prompt_id", "model_a": "first", "model_b": "second"}
    verdicts = stored.rename(columns=names).assign(winner=stored["verdict"].map(WINNER))
    found = {judge: same(rows) for judge, rows in verdicts.groupby("judge")}
    assert found["gpt-4-0613"].consistent.value > found["gpt-3.5-turbo-1106"].consistent.value
    assert found["gpt-4-0613"].first_wins.low < 0.491 < found["gpt-4-0613"].first_wins.high


def test_verdicts_against_people(real_data: Path) -> None:
    human = pd.read_parquet(real_data / "vicuna_blog_eval" / "faireval_human_labels.parquet")
    scores = pd.read_parquet(real_data / "vicuna_blog_eval" / "score_reviews.parquet")
    scores = scores[scores["file"] == "gpt35_vicuna-13b"]
    sign = (scores["score_a"] > scores["score_b"]).astype(int) - (scores["score_a"] < scores["score_b"]).astype(int)
    shown = {"question_id": "prompt_id", "model_a": "first", "model_b": "second"}
    verdicts = scores.rename(columns=shown).assign(winner=sign.map({1: "first", -1: "second", 0: "tie"}))
    names = {"CHATGPT": "first", "VICUNA13B": "second", "TIE": "tie"}
    labels = human.rename(columns=shown).assign(winner=human["human_label"].map(names))
    both = scores.assign(sign=sign).merge(human, on="question_id")
    right = both["sign"] == both["human_label"].map({"CHATGPT": 1, "VICUNA13B": -1, "TIE": 0})
    fair = agreement.accuracy(verdicts, labels).accuracy
    assert fair.value == pytest.approx(right.mean(), abs=1e-12)
    assert fair.low < 0.525 < fair.high


def test_annotators_and_shown_slots(real_data: Path) -> None:
    judged = pd.read_parquet(real_data / "alpaca_eval" / "judgments.parquet")
    v1, v2 = (judged[judged["annotator"] == name] for name in ("gpt4_v1", "gpt4_turbo_weighted"))
    found = annotators.agreement(v1, v2)
    assert found.order.value == pytest.approx(_order(v1, v2), abs=1e-12)
    assert annotators.agreement(v1, v2, margin=0.1).order.value > found.order.value
    cot = annotators.agreement(judged[judged["annotator"] == "gpt4_turbo_cot"], v2)
    assert cot.same_winner.low < 0.939 < cot.same_winner.high
    lower = 0
    for _, rows in v2.groupby("model"):
        shown = annotators.by_shown_order(rows).set_index("shown")["win_rate"]
        first = rows["preference"][rows["candidate_shown_first"]].mean()
        assert shown["first"] == pytest.approx(100 * (first - 1))
        assert shown["slot"] == pytest.approx((shown["first"] + 100 - shown["second"]) / 2)
        lower += shown["first"] < shown["second"]
    assert lower == 44  # of 45 models


def _order(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """Share of pairs of models in the same order, counted prompt by prompt."""
    both = one.merge(other, on=["prompt_id", "model"]).dropna(subset=["preference_x", "preference_y"])
    hits = []
    for _, rows in both.groupby("prompt_id"):
        values = list(zip(rows["preference_x"], rows["preference_y"], strict=True))
        for (a, b), (c, d) in combinations(values, 2):
            if a != c and b != d:
                hits.append((a > c) == (b > d))
    return sum(hits) / len(hits)
