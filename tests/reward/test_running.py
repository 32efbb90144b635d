"""``train-reward`` and ``score``: a file of rankings becomes a model folder, and that gives scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import processes
import toy
from starling_nb.chat import from_nectar_text
from starling_nb.cli import app
from starling_nb.errors import StarlingError
from starling_nb.reward import RewardModel, running
from starling_nb.reward.training import Recipe

QUICK = ["--epochs", "8", "--batch", "4", "--lr", "3e-3", "--head-lr", "1e-2", "--trainable", "last:2"]


class Stop(Exception):  # noqa: N818
    """The plug is pulled."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A toy backbone as a folder."""
    lm = toy.lm()
    lm.model.save_pretrained(tmp_path / "base")
    lm.chat.tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows in which the longer answer is better, and one answer that is empty."""
    rows = [toy.row(f"question {i}?") for i in range(40)]
    for one in rows:
        for answer in one["answers"]:
            answer["answer"] = "e" * (5 - int(answer["rank"])) + "x"
    rows[0]["answers"][0]["answer"] = " "
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(*words: Any) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_from_rankings_to_a_model_to_scores(base: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "reward"
    told = call("train-reward", data, "--out", out, "--base", base, "--judge", "simulated", *QUICK)
    assert "1 empty answer" in told
    readme = (out / "model" / "README.md").read_text()
    assert "pairwise_accuracy" in readme
    assert "simulated" in readme
    assert str(tmp_path) not in readme
    board = pd.read_csv(out / "evaluation.csv")
    cell = board[(board.method == "k_wise") & (board.metric == "pairwise_accuracy")].iloc[0]
    assert cell.value > 0.95
    assert set(board.method) >= {"k_wise", "longest", "surface"}
    curve = pd.read_csv(out / "curve.csv")
    assert curve.loss.iloc[-1] < curve.loss.iloc[0]
    call("score", out / "model", data, "--out", tmp_path / "scores.jsonl")
    scores = pd.read_json(tmp_path / "scores.jsonl", lines=True)
    assert len(scores) == 160
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    first = next(answer for answer in rows[1]["answers"] if answer["rank"] == 1)
    conversation = [*from_nectar_text(rows[1]["prompt"]), {"role": "assistant", "content": first["answer"]}]
    (alone,) = RewardModel.from_pretrained(out / "model").score([conversation])
    assert (scores.score - alone).abs().min() < 1e-4


def test_conversations_are_scored_in_their_order(base: Path, data: Path, tmp_path: Path) -> None:
    call("train-reward", data, "--out", tmp_path / "reward", "--base", base, *QUICK)
    texts = [[*toy.user("so?"), {"role": "assistant", "content": "e" * n}] for n in (3, 1, 2)]
    source = tmp_path / "talks.jsonl"
    source.write_text("".join(json.dumps({"id": i, "messages": one}) + "\n" for i, one in enumerate(texts)))
    call("score", tmp_path / "reward" / "model", source, "--out", tmp_path / "s.jsonl")
    found = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [one["id"] for one in found] == [0, 1, 2]
    wanted = RewardModel.from_pretrained(tmp_path / "reward" / "model").score(texts)
    assert [one["score"] for one in found] == pytest.approx(wanted, abs=1e-5)
    assert len(set(wanted)) == 3
    texts[1][-1]["content"] = "struck </s> through"
    source.write_text("".join(json.dumps({"messages": one}) + "\n" for one in texts))
    assert "left without one, with the reason: 1" in call(
        "score", tmp_path / "reward" / "model", source, "--out", tmp_path / "s.jsonl"
    )
    found = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [found[0]["score"], found[2]["score"]] == pytest.approx([wanted[0], wanted[2]], abs=1e-5)
    assert found[1]["score"] is None
    assert "control token '</s>'" in found[1]["error"]
    texts[0][-1]["content"] = None
    source.write_text(json.dumps({"messages": texts[0]}) + "\n")
    with pytest.raises(StarlingError, match="line 1: messages must be"):
        running.score(RewardModel.from_pretrained(tmp_path / "reward" / "model"), source, tmp_path / "t.jsonl")
    source.write_text(json.dumps({"messages": toy.user("so?")}) + "\n")
    with pytest.raises(StarlingError, match="line 1: messages must be"):
        running.score(RewardModel.from_pretrained(tmp_path / "reward" / "model"), source, tmp_path / "t.jsonl")
    assert not (tmp_path / "t.jsonl").exists()


def test_a_benchmark_is_scored_beside_the_longest_answer(base: Path, data: Path, tmp_path: Path) -> None:
    call("train-reward", data, "--out", tmp_path / "reward", "--base", base, *QUICK)
    source = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"q {i}?", "chosen": "eeeex", "rejected": "ex e", "subset": "s", "id": i} for i in range(4)]
    source.write_text("".join(json.dumps(one) + "\n" for one in pairs))
    out = tmp_path / "scores.jsonl"
    told = call("score", tmp_path / "reward" / "model", source, "--benchmark", "reward_bench", "--out", out)
    assert "longest" in told
    assert len(out.read_text().splitlines()) >= 4


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(base: Path, data: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=4, batch=4, lr=3e-3, head_lr=1e-2, trainable="last:1", save_every=3)

    def quiet(_: str) -> Any:
        return lambda step, total, rates: None

    def pulled(name: str) -> Any:
        def report(step: int, total: int, rates: dict[str, float]) -> None:
            if name == "training" and step == 11:
                raise Stop

        return report

    whole = running.run(running.Plan(data, tmp_path / "whole", str(base), recipe=recipe), quiet)
    assert whole
    plan = running.Plan(data, tmp_path / "cut", str(base), recipe=recipe)
    with pytest.raises(Stop):
        running.run(plan, pulled)
    assert not (tmp_path / "cut" / "model").exists()
    again = running.run(plan, quiet)
    assert again
    weights = [(one.model / "model.safetensors").read_bytes() for one in (whole, again)]
    assert weights[0] == weights[1]
    assert (tmp_path / "whole" / "curve.csv").read_bytes() == (tmp_path / "cut" / "curve.csv").read_bytes()


def test_two_processes_train_one_model_and_the_main_one_speaks(base: Path, data: Path, tmp_path: Path) -> None:
    words = [str(data), "--base", str(base), "--epochs", "2", "--batch", "4", "--trainable", "last:1"]
    call("train-reward", *words, "--out", tmp_path / "one")
    told = processes.launch("train-reward", *words, "--out", str(tmp_path / "two"))
    assert told.count("comparisons: ") == 1
    curves = [pd.read_csv(tmp_path / out / "curve.csv") for out in ("one", "two")]
    pd.testing.assert_frame_equal(*curves, rtol=1e-4)
    texts = [[*toy.user("why?"), {"role": "assistant", "content": "eee"}]]
    scores = [RewardModel.from_pretrained(tmp_path / out / "model").score(texts)[0] for out in ("one", "two")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_what_cannot_be_done_is_said_before_anything_is_written(base: Path, data: Path, tmp_path: Path) -> None:
    lines = data.read_text().splitlines()
    (tmp_path / "one.jsonl").write_text(lines[1] + "\n")
    with pytest.raises(StarlingError, match="leaves no comparison in the"):
        running.run(running.Plan(tmp_path / "one.jsonl", tmp_path / "o", str(base)), lambda _: lambda *_: None)
    for wrong in ({"loss": "listwise"}, {"batch": 0}, {"lr": float("nan")}, {"warmup": -1.0}):
        with pytest.raises(StarlingError, match=r"choose one of|at least 1, rates"):
            Recipe(**wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "o").exists()
