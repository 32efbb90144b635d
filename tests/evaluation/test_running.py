"""``evaluate``: two models become a table of figures with intervals, and files that the official tools read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation import small
from typer.testing import CliRunner

import toy
from starling_nb import files
from starling_nb.cli import app
from starling_nb.evaluation import EvaluationError, alpaca_eval, answering, mmlu, mt_bench, running
from starling_nb.evaluation.alpaca_eval import formats as alpaca_files
from starling_nb.evaluation.mmlu import sets as mmlu_sets
from starling_nb.evaluation.mt_bench import formats as mt_bench_files
from starling_nb.evaluation.mt_bench import official
from starling_nb.evaluation.running import Plan
from starling_nb.judge import Outcome, Request
from starling_nb.judge.connect import connect
from starling_nb.models import LM
from starling_nb.policy import checkpoint
from starling_nb.policy.hydra import Hydra

SMALL: dict[str, Any] = {"n": 4, "max_new_tokens": 6, "shots": 1}


def model() -> LM:
    return small.lm([mmlu.prompt(question, ()) for question in mmlu.load()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start model, another one, and the other's top block alone."""
    here = tmp_path_factory.mktemp("models")
    lm = model()
    for name in ("start", "tuned"):
        lm.model.save_pretrained(here / name)
        lm.chat.tokenizer.save_pretrained(here / name)
        with torch.no_grad():
            lm.model.model.layers[-1].mlp.up_proj.weight.add_(0.3)  # type: ignore[union-attr, operator]
    changed = LM(running.models.load(str(here / "tuned")).model, lm.chat, str(here / "start"))
    checkpoint.save(Hydra(changed, "last:1"), here / "policy.safetensors", changed.name)
    return here


def plan(folder: Path, out: Path, **changes: Any) -> Plan:
    return Plan(str(folder / "tuned"), str(folder / "start"), out, **SMALL | changes)


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("out")
    with connect("simulated", out / "ledger.sqlite") as judge:
        return out, running.run(plan(folder, out), judge)


def test_every_benchmark_gives_figures_with_intervals(done: tuple[Path, pd.DataFrame]) -> None:
    out, table = done
    assert set(table.bench) == set(running.BENCHES)
    assert set(table.model) == {"start", "tuned", "change"}
    known = table[table.low.notna()]
    assert (known.low <= known.value).all()
    assert (known.value <= known.high).all()
    pd.testing.assert_frame_equal(pd.read_csv(out / "evaluation.csv"), table)


def test_every_judged_benchmark_tells_of_the_replies_that_it_asked_for(done: tuple[Path, pd.DataFrame]) -> None:
    told = done[1][done[1].metric == running.UNANSWERED].set_index(["bench", "model"])
    asked = {("mt_bench", "start"): 8, ("mt_bench", "tuned"): 8, ("alpaca_eval", "tuned"): 8}
    assert told.n.to_dict() == asked
    assert set(told.value) == {0.0}


def test_a_change_is_the_tuned_figure_less_the_start_one(done: tuple[Path, pd.DataFrame]) -> None:
    figures = done[1].set_index(["bench", "metric", "model"])["value"].sort_index()
    for bench, metric in [("mt_bench", "grade"), ("mmlu", "accuracy"), ("safety", "compliance")]:
        one = figures[bench, metric]
        assert one["change"] == pytest.approx(one["tuned"] - one["start"])


def test_the_official_tools_files_hold_what_was_said_and_judged(done: tuple[Path, pd.DataFrame]) -> None:
    out, table = done
    figures = table.set_index(["bench", "metric", "model"])["value"].sort_index()
    for name in ("start", "tuned"):
        said = mt_bench_files.read_answers(out / "mt_bench" / "model_answer" / f"{name}.jsonl")
        assert [len(turns) for turns in said.turns.values()] == [2] * 4
    (path,) = (out / "mt_bench" / "model_judgment").glob("*_single.jsonl")
    judged = mt_bench_files.read_judgments(path, mt_bench.load())
    for name, rows in judged.groupby("model"):
        assert mt_bench.summarize(rows).overall.value == figures["mt_bench", "grade", name]
    outputs = alpaca_files.read_outputs(out / "alpaca_eval" / "tuned" / "model_outputs.json")
    annotations = alpaca_files.read_annotations(out / "alpaca_eval" / "tuned" / "annotations.json")
    assert list(outputs.output) == list(annotations.output_2)
    assert alpaca_eval.win_rate(annotations).win_rate == figures["alpaca_eval", "win_rate", "tuned"]


def test_what_is_done_is_not_asked_again(
    done: tuple[Path, pd.DataFrame], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = done

    def refuse(*given: object) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr(running, "BENCHES", dict.fromkeys(running.BENCHES, refuse))
    with connect("simulated", out / "ledger.sqlite") as judge:
        again = running.run(plan(folder, out), judge)
        pd.testing.assert_frame_equal(again, table)
        with pytest.raises(AssertionError, match="asked again"):
            running.run(plan(folder, out, seed=1), judge)
        other = SimpleNamespace(model="m", base_url="http://127.0.0.1:1/v1")
        about = [running._about(plan(folder, out), {}, one) for one in (judge, other)]  # type: ignore[arg-type]
    assert [one["server"] for one in about] == ["", "http://127.0.0.1:1/v1"]


def test_the_table_keeps_what_other_benchmarks_have_left(folder: Path, tmp_path: Path) -> None:
    def benches() -> set[str]:
        return set(pd.read_csv(tmp_path / "evaluation.csv").bench)

    running.run(plan(folder, tmp_path, benches=("mmlu",)))
    running.run(plan(folder, tmp_path, benches=("safety",)))
    assert benches() == {"mmlu", "safety"}
    running.run(plan(folder, tmp_path, benches=("safety",), seed=1))
    assert benches() == {"safety"}


def test_a_broken_off_evaluation_keeps_the_benchmarks_that_were_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(running.BENCHES, "safety", broken)
    with pytest.raises(KeyboardInterrupt):
        running.run(plan(folder, tmp_path, benches=("mmlu", "safety")))
    assert [path.name for path in tmp_path.iterdir()] == ["mmlu.json"]


def test_answers_of_a_benchmark_that_was_broken_off_are_not_sampled_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = running.run(plan(folder, tmp_path / "whole", benches=("safety",)))
    started, sample = list[int](), running.models.sample

    def counted(lm: LM, prompts: Any, *given: Any, **how: Any) -> Any:
        started.append(len(prompts))
        if len(started) == 4:
            raise KeyboardInterrupt
        return sample(lm, prompts, *given, **how)

    monkeypatch.setattr(answering, "ROUNDS", 1)
    monkeypatch.setattr(answering.answer, "__kwdefaults__", answering.answer.__kwdefaults__ | {"batch": 2})
    monkeypatch.setattr(running.models, "sample", counted)
    mine = plan(folder, tmp_path / "broken", benches=("safety",))
    with pytest.raises(KeyboardInterrupt):
        running.run(mine)
    broken = len(started)
    again = running.run(mine)
    asked = whole.set_index(["metric", "model"]).n["compliance", "start"] * 2
    assert sum(started[:3] + started[broken:]) == 2 * asked, "each of both models' answers is sampled once"
    pd.testing.assert_frame_equal(again, whole)


class Sevens:
    """A judge that gives every answer a seven, as FastChat's prompts ask for it, and keeps what it was asked; the first
    ``silent`` requests stay unanswered."""

    base_url = None
    model = "sevens"

    def __init__(self, silent: int = 0) -> None:
        self.asked: list[str] = []
        self.silent = silent

    def ask_all(self, requests: Sequence[Request[Any]]) -> list[Outcome[Any]]:
        self.asked += [request.messages[-1]["content"] for request in requests]
        late = [Outcome(one.id, None, "Unanswered: 503", "", {}, False) for one in requests[: self.silent]]
        self.silent -= len(late)
        graded = requests[len(late) :]
        return late + [Outcome(one.id, one.parse("Good. [[7]]"), None, "Good. [[7]]", {}, False) for one in graded]


def test_a_kept_answer_stays_when_more_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    sampled = answering._sampled

    def counted(lm: Any, part: Any, *how: Any) -> dict[str, str]:
        asked.extend(id for id, *_ in part)
        return sampled(lm, part, *how)

    monkeypatch.setattr(answering, "_sampled", counted)
    lm, talks = toy.lm(), {text: toy.user(text) for text in toy.QUESTIONS}
    few = dict(list(talks.items())[:4])
    how: dict[str, Any] = {"max_new_tokens": 6}
    with answering.kept(tmp_path):
        first = answering.answer(lm, few, **how)
        whole = answering.answer(lm, talks, **how)
        answering.answer(lm, few | {"why?": toy.user("why not?")}, **how)
        answering.answer(lm, few, **how | {"seed": 1})
    assert asked == [*talks, "why?", *few]
    assert whole == answering.answer(lm, talks, **how)
    assert list(whole) == list(talks)
    assert first == {name: whole[name] for name in few}


def test_a_benchmark_with_unanswered_requests_is_told_of_and_asked_again(folder: Path, tmp_path: Path) -> None:
    judge: Any = Sevens(silent=3)
    mine = plan(folder, tmp_path, benches=("mt_bench",))
    figures = running.run(mine, judge).set_index(["metric", "model"])
    assert figures.value[running.UNANSWERED, "start"] == 3
    assert figures.n[running.UNANSWERED, "start"] == 8
    assert not (tmp_path / "mt_bench.json").exists()
    again = running.run(mine, judge).set_index(["metric", "model"])
    assert (again.value[running.UNANSWERED] == 0).all()
    assert (again.value[running.UNREADABLE] == 0).all()
    assert (tmp_path / "mt_bench.json").exists()


def test_one_item_alone_has_a_figure_without_an_interval(folder: Path, tmp_path: Path) -> None:
    judge: Any = Sevens()
    mine = plan(folder, tmp_path, benches=("mt_bench",), n=1)
    table = running.run(mine, judge)
    grade = table.set_index(["metric", "model"]).loc[("grade", "tuned")]
    assert grade.value == 7
    assert np.isnan([grade.low, grade.high]).all()
    pd.testing.assert_frame_equal(running.run(mine, judge), table)


def test_official_questions_and_judge_prompts_take_the_place_of_ours(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"v1": "{question}{answer}", "v1-multi-turn": "{question_1}{question_2}{answer_2}"}
    names = [f"{kind}-{turns}" for kind in ("single", "single-math") for turns in fields]
    texts = {name: f"official {name} {fields[name[name.index('v1') :]]}" for name in names}
    prompts = {name: official.Template(name, "single", "", text) for name, text in texts.items()}
    first, second = ("81", "writing", ("one", "two")), ("111", "math", ("1", "2"), ("r", "s"))
    asked = [mt_bench.Question(*first), mt_bench.Question(*second)]
    choices = mmlu.load()[:3]
    monkeypatch.setattr(official, "judge_prompts", lambda: prompts)
    monkeypatch.setattr(official, "questions", lambda: asked)
    monkeypatch.setattr(mmlu_sets, "questions", lambda: choices)
    monkeypatch.setattr(mmlu_sets, "dev", mmlu.load_dev)
    judge: Any = Sevens()
    table = running.run(plan(folder, tmp_path, benches=("mt_bench", "mmlu"), official=True), judge)
    assert {said.split()[1] for said in judge.asked} == set(names)
    figures = table.set_index(["bench", "metric", "model"])
    assert figures.value["mt_bench", "grade", "tuned"] == 7
    assert figures.n["mmlu", "accuracy", "start"] == 3
    (path,) = (tmp_path / "mt_bench" / "model_judgment").glob("*_single.jsonl")
    assert {row["judge"][1] for row in files.read_jsonl(path)} >= {"single-v1"}


def test_tuned_blocks_alone_are_the_whole_model(folder: Path, tmp_path: Path) -> None:
    whole, blocks = (
        running.run(Plan(str(folder / name), str(folder / "start"), tmp_path / name, benches=("mmlu",), **SMALL))
        for name in ("tuned", "policy.safetensors")
    )
    pd.testing.assert_frame_equal(whole, blocks)


def test_a_model_against_itself_has_changed_in_nothing(folder: Path, tmp_path: Path) -> None:
    same = Plan(str(folder / "start"), str(folder / "start"), tmp_path, benches=("mmlu", "safety"), **SMALL)
    table = running.run(same)
    assert (table[table.model == "change"].value == 0).all()


def test_without_a_judge_what_needs_none_is_asked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="mt_bench is graded by a judge: name one by --judge"):
        running.run(plan(folder, tmp_path, benches=("mt_bench",)))
    with pytest.raises(EvaluationError, match="no benchmark arena: choose from mt_bench"):
        running.run(plan(folder, tmp_path, benches=("arena",)))
    assert not list(tmp_path.iterdir())
    told = ["evaluate", str(folder / "tuned"), "--start", str(folder / "start"), "--out", str(tmp_path)]
    sizes = ["--items", "3", "--tokens", "4", "--shots", "0", "--bench", "mmlu", "--bench", "safety"]
    shown = CliRunner().invoke(app, [*told, *sizes], catch_exceptions=False)
    assert "over_refusal" in shown.output
    rows = files.read_json(tmp_path / "mmlu.json")["rows"]
    assert [row[:2] for row in rows[:3]] == [["accuracy", name] for name in ("start", "tuned", "change")]
    assert json.loads((tmp_path / "mmlu.json").read_text())["about"]["n"] == "3"
