"""From Nectar rows to comparisons that give no rank away, and from faulty data to a count or a clear error."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toy
from starling_nb.nectar import prompts
from starling_nb.nectar import schema as nectar
from starling_nb.reward import comparisons, scoring, training
from starling_nb.reward.comparisons import Comparison, ComparisonError, load, usable
from toy import NAMES, ROWS, row


def test_the_order_of_answers_gives_no_rank_away() -> None:
    one, other = comparisons.of_rows([row("why?"), row("why?", NAMES[::-1])])
    assert one.responders == other.responders == sorted(NAMES)
    assert one.ranks == [2.0, 1.0, 3.0, 4.0]
    assert other.ranks == [3.0, 4.0, 2.0, 1.0]
    assert one.messages == toy.user("why?")
    assert one.prompt_id == prompts.key(toy.user("why?"))
    shuffled = row("why?") | {"answers": row("why?")["answers"][::-1]}
    assert comparisons.of_rows([shuffled]) == [one]


def test_without_some_responders_ranks_close_up() -> None:
    whole = comparisons.of_rows([row("why?")])[0]
    kept = comparisons.without(whole, ["smollm2-cool", "writer-cut"])
    assert kept.responders == ["smollm2-brief", "writer-reference"]
    assert kept.ranks == [1.0, 2.0]
    assert kept.answers == [whole.answers[whole.responders.index(name)] for name in kept.responders]


def test_splits_follow_the_prompt_and_training_never_sees_held_out_responders() -> None:
    parts = comparisons.by_split(comparisons.of_rows(ROWS), ["writer-cut"])
    assert sum(map(len, parts.values())) == len(ROWS)
    assert all(parts.values())
    for name, items in parts.items():
        for item in items:
            assert prompts.split_of(item.messages) == name
            assert ("writer-cut" in item.responders) == (name != "train")
            assert sorted(item.ranks) == [float(i + 1) for i in range(len(item.ranks))]


@pytest.fixture
def test_part() -> list[Comparison]:
    return comparisons.by_split(comparisons.of_rows(ROWS), ["writer-cut"])["test"]


def test_offsets_are_the_mean_scores_of_each_prompt(test_part: list[Comparison]) -> None:
    scores = [[float(i + j) for j in range(len(c.answers))] for i, c in enumerate(test_part)]
    found = comparisons.offsets(test_part, scores)
    assert set(found) == {c.prompt_id for c in test_part}
    for i, comparison in enumerate(test_part):
        assert found[comparison.prompt_id] == pytest.approx(i + (len(comparison.answers) - 1) / 2)
    twice = comparisons.offsets([test_part[0], test_part[0]], [[0.0] * 4, [2.0] * 4])
    assert twice == {test_part[0].prompt_id: 1.0}


def test_rows_are_read_from_parquet_and_json_lines(tmp_path: Path) -> None:
    wanted = comparisons.of_rows(ROWS[:3])
    nectar.write([one | {"num_responses": 4} for one in ROWS[:3]], tmp_path / "rows.parquet")
    lines = "".join(json.dumps(one) + "\n" for one in ROWS[:3])
    (tmp_path / "rows.jsonl").write_text(lines)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as stream:
        stream.write(lines)
    for name in ("rows.parquet", "rows.jsonl", "rows.jsonl.gz"):
        assert load(tmp_path / name) == wanted
        assert load(tmp_path / name, first=2) == wanted[:2]


def test_a_file_becomes_usable_parts_and_a_count_of_what_was_left_out(tmp_path: Path) -> None:
    doubled = row("twice?") | {"answers": [one | {"answer": "same"} for one in row("twice?")["answers"]]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*ROWS, doubled]))
    parts, dropped = comparisons.read(tmp_path / "rows.jsonl", toy.lm().chat, ["writer-cut"])
    assert parts == comparisons.by_split(comparisons.of_rows(ROWS), ["writer-cut"])
    assert dropped == {"repeated answer": 3, "fewer than two answers of different rank": 1}
    first, _ = comparisons.read(tmp_path / "rows.jsonl", toy.lm().chat, first=len(ROWS) - 1)
    assert sum(map(len, first.values())) == len(ROWS) - 1
    with pytest.raises(ComparisonError, match="no comparison in the train split: give more prompts, or hold out fewer"):
        comparisons.read(tmp_path / "rows.jsonl", toy.lm().chat, NAMES[1:])


def broken(**changes: Any) -> dict[str, Any]:
    """A row whose first answer is changed."""
    one = row("why?")
    return one | {"answers": [one["answers"][0] | changes, *one["answers"][1:]]}


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (broken(rank=float("nan")), "row 1: every answer needs a rank that is a finite number"),
        (broken(rank=True), "row 1: every answer needs a rank that is a finite number"),
        ([], "row 1: it is no JSON object"),
        (broken(rank=None), "finite number"),
        (broken(rank="1"), "finite number"),
        (broken(answer=None), "its text"),
        (broken(model=3), "who gave it"),
        ({"prompt": "\n\nHuman: a\n\nAssistant: "}, "it needs a prompt"),
        ({"chosen": "a", "rejected": "b"}, "it needs a prompt"),
        (row("why?") | {"prompt": "why?"}, "not a Nectar prompt"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, bad: dict[str, Any], told: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (row("so?"), bad)))
    with pytest.raises(ComparisonError, match=told):
        load(path)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="does not exist"):
        load(tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet").write_text("no parquet")
    with pytest.raises(ComparisonError, match="no readable parquet"):
        load(tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("a")
    with pytest.raises(ComparisonError, match=r"give \.parquet"):
        load(tmp_path / "rows.csv")
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(ComparisonError, match="holds no rows"):
        load(tmp_path / "rows.jsonl")


def test_what_nothing_can_be_learned_from_is_left_out_and_counted() -> None:
    form = toy.lm().chat
    good = Comparison("a", toy.user("why?"), ["x", "yes", "no"], ["m", "n", "o"], [3.0, 1.0, 2.0])
    faulty = [
        good,
        replace(good, answers=["x", "  ", "no"]),  # an empty answer: the other two stay
        replace(good, answers=["x", "yes", " x "]),  # a repeated one
        replace(good, answers=["x", "a</s>b", "e" * 90]),  # a control token, one beyond the window: one is left
        replace(good, ranks=[1.0, 1.0, 1.0]),  # all tied
        replace(good, answers=["x"], responders=["m"], ranks=[1.0]),  # K = 1
        replace(good, messages=toy.user(" ")),
    ]
    kept, dropped = usable(faulty, form, limit=64)
    assert kept[0] is good
    assert [(one.answers, one.ranks) for one in kept[1:]] == [(["x", "no"], [2.0, 1.0]), (["x", "yes"], [2.0, 1.0])]
    assert dropped == {
        "empty answer": 1,
        "repeated answer": 1,
        "answer with a control token": 1,
        "answer longer than the window": 1,
        "fewer than two answers of different rank": 3,
        "prompt that cannot be written": 1,
    }
    with pytest.raises(ComparisonError, match="no comparison can be used"):
        usable(faulty[4:], form)
    with pytest.raises(ComparisonError, match="none were given"):
        usable([], form)


def test_usable_comparisons_train_to_finite_weights() -> None:
    """Ties, a repeated text, a prompt longer than the window: never a weight that is no number."""
    lm = toy.lm()
    every = [
        Comparison("a", toy.user("why? " * 30), ["x", "yes", "no", "no"], list("mnop"), [2.0, 1.0, 2.0, 4.0]),
        Comparison("b", toy.user("so?"), ["e", "ee", "x"], list("mno"), [1.0, 1.0, 3.0]),
    ]
    kept, _ = usable(every, lm.chat, limit=40)
    for loss in training.LOSSES:
        recipe = training.Recipe(loss=loss, trainable="last:2", epochs=5, batch=2, lr=1e-2, head_lr=1e-2)
        ready = scoring.prepare(lm, kept, recipe.trainable, limit=40)
        assert ready[0].packed.cut > 100
        trained, history, _ = training.train(lm, ready, recipe)
        assert history[-1]["loss"] < history[0]["loss"]
        assert all(bool(part.isfinite().all()) for part in trained.parameters())
