"""What the evidence scripts compute, beside the runs that take hours."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toy
from benchmarks import gpu_step, packing_speed, real_labels, records, study, trl_speed, turns, update_speed
from benchmarks.keep_reference import check, clean, without_paths
from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.policy.recipe import PUBLISHED, Recipe, parsed
from starling_nb.policy.scaling import plan
from starling_nb.policy.study.arms import Arm
from starling_nb.reward.comparisons import Comparison


def test_every_arm_of_the_study_has_a_name_of_its_own_and_a_recipe() -> None:
    parts = study.chapters(dict.fromkeys(study.METHODS, "lr=2e-4"))
    every = [*study.trials(), *(arm for part in parts.values() for arm in part)]
    assert len({arm.name for arm in every}) == len(every)
    assert max(len(arm.name) for arm in every) < 200, "names of files hold 255 bytes"
    named = [name for part in study.PARTS.values() for name in part]
    assert sorted(named) == sorted(name for name, *_ in PUBLISHED if name not in study.SCALED)
    whole = [Recipe(**parsed(arm.changes)) for arm in parts["switches"] if len(arm.changes) > len(named)]
    published = replace(Recipe.published(), **dict(parsed(["lr=2e-4", "value_lr=1e-3", "epochs=1"])))
    assert whole == [published] * len(study.SEEDS)
    assert {arm.seed for arm in study.trials()}.isdisjoint(study.SEEDS)
    assert {arm.split for arm in study.trials()} == {"validation"}


def test_only_arms_that_decide_on_rates_are_stopped_where_answers_no_longer_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floors: dict[str, float] = {}

    def run(common: study.Ground, arm: Arm) -> None:
        floors[arm.name] = common.recipe.eos_floor
        files.write_json(tmp_path / "arms" / f"{arm.name}.json", {})

    common = study.ground(tmp_path, "smoke")
    monkeypatch.setattr(study, "ground", lambda *_: common)
    monkeypatch.setattr(study.arms, "run", run)
    parts = study.chapters(dict.fromkeys(study.METHODS, "lr=2e-4"))
    rates = [*study.trials(), *parts.pop("methods")]
    for arm in [*rates, *(arm for part in parts.values() for arm in part)]:
        study.alone(Namespace(out=tmp_path, profile="smoke"), arm)
    told = {arm.name for arm in (*rates, *parts["beyond"])}
    assert {name for name, floor in floors.items() if floor > 0} == told


def test_a_rate_at_which_a_guard_stops_a_method_gives_way_to_the_next_best(tmp_path: Path) -> None:
    (tmp_path / "arms").mkdir()
    for arm in study.trials():
        best = arm.changes[:1] == ("lr=4e-4",) and arm.method != "apa"
        told = {"method": arm.method, "changes": " ".join(arm.changes), "utility": [2.0 + best]}
        pd.DataFrame(told).to_parquet(tmp_path / "arms" / f"{arm.name}.parquet")
    before = study.chosen(tmp_path)
    assert before == {**dict.fromkeys(study.METHODS, "lr=4e-4"), "apa": "lr=2e-4"}
    arm = next(one for one in study.chapters(before)["methods"] if one.method == "rloo" and one.seed == 1)
    assert not study.over(tmp_path, arm)
    files.write_json(tmp_path / "arms" / f"{arm.name}.stopped.json", {"reason": "answers have stopped ending"})
    assert study.over(tmp_path, arm)
    assert study.ruled_out(tmp_path, replace(arm, seed=2, labels="noise"))
    assert study.chosen(tmp_path) == before | {"rloo": "lr=2e-4"}
    files.write_json(tmp_path / "arms" / "rloo-full-lr=2e-4-test-0.stopped.json", {"reason": "the same"})
    with pytest.raises(StarlingError, match="stopped rloo at every rate"):
        study.chosen(tmp_path)


def test_arms_that_are_over_ask_for_no_reward_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in study.ROWS:
        files.write_json(tmp_path / name / "01_dataset_construction" / "stage.json", {})
    jobs = list[tuple[str, ...]]()
    monkeypatch.setattr(study, "child", lambda asked, *words: jobs.append(words))
    asked, kept, left = Namespace(out=tmp_path, workers=2), Arm("apa", 100), Arm("apa", 1, "quarter")
    files.write_json(tmp_path / "arms" / f"{kept.name}.parquet", {})
    study.run(asked, [kept])
    assert jobs == []
    study.run(asked, [kept, left])
    assert sorted(jobs) == [("--arm", left.name), ("--reward", "full-1"), ("--reward", "quarter-1")]


def test_a_study_goes_on_from_its_committed_record(tmp_path: Path) -> None:
    record = records.FOLDER / "study"
    about, rows = files.read_json(record / "policy.json"), pd.read_parquet(record / "policy.parquet")
    study.unpack(record, tmp_path, about["profile"])
    assert study.chosen(tmp_path) == about["rates"]
    every = [*study.trials(), *(arm for part in study.chapters(about["rates"]).values() for arm in part)]
    assert {arm.name for arm in every if study.over(tmp_path, arm)} == set(about["steps"])
    one = next(arm for arm in every if arm.method == "start" and arm.split == "test")
    kept = pd.read_parquet(tmp_path / "arms" / f"{one.name}.parquet")
    same = (rows.split == "test") & (rows.seed == one.seed) & (rows.start == one.start)
    assert kept.equals(rows[same & (rows.method.isin(["start", "best of 3"]))])
    (tmp_path / "arms" / f"{one.name}.parquet").write_bytes(b"of this machine")
    study.unpack(record, tmp_path, about["profile"])
    assert (tmp_path / "arms" / f"{one.name}.parquet").read_bytes() == b"of this machine"
    with pytest.raises(StarlingError, match="another profile or recipe"):
        study.unpack(record, tmp_path, "laptop")


@given(
    st.recursive(
        st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_a_record_is_json_whatever_is_in_it(value: object) -> None:
    assert json.loads(records.written({"found": value})) == {"found": value}


def test_an_interval_takes_one_line_of_a_record_and_a_long_list_many() -> None:
    interval = {"high": 2, "low": 0, "text": "a [b] {c}", "value": 1}
    lines = records.written({"one": {"low": 0, "value": 1}, "odd": interval, "long": list(range(100))}).splitlines()
    assert ' "one": {"low": 0, "value": 1}' in lines
    assert len(lines) == 1 + 102 + 6 + 1 + 1


def test_the_reference_names_no_path_of_the_machine(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    text = json.dumps({"out": str(run), "file": f"{run}/figures/a.png", "data": f"{files.ROOT}/data/x", "home": "~"})
    found = without_paths(text, run)
    assert json.loads(found)["file"] == "outputs/reference/figures/a.png"
    assert str(tmp_path) not in found
    assert str(files.ROOT) not in found


def test_papermills_notes_go_and_the_rest_stays() -> None:
    cell = nbformat.v4.new_code_cell("1 + 1", metadata={"papermill": {"duration": 1.0}, "tags": ["parameters"]})
    book = clean(nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"input_path": "/x"}, "a": 1}))
    assert dict(book.metadata) == {"a": 1}
    assert dict(book.cells[0].metadata) == {"tags": ["parameters"]}


@pytest.mark.parametrize(
    ("status", "verdict", "dirty", "said"),
    [
        ("failed", "holds", False, "not finished"),
        ("done", "fails", False, "less than it claims: 03.a"),
        ("done", "holds", True, "changed files"),
        ("done", "holds", False, "not what the present code makes"),
    ],
)
def test_only_a_clean_finished_run_becomes_the_reference(
    tmp_path: Path, status: str, verdict: str, dirty: bool, said: str
) -> None:
    components = {"inputs": {}, "versions": {}}
    stages = {"00_start_here": {"status": status, "components": components}}
    record = {"schema": 1, "profile": "laptop", "git": {"commit": "c", "dirty": dirty}, "stages": stages}
    files.write_json(tmp_path / "manifest.json", record)
    files.write_json(tmp_path / "metrics.json", {"claim.03.a": {"value": 1.0, "verdict": verdict}})
    with pytest.raises(StarlingError, match=said):
        check(tmp_path)


def test_folds_measure_on_other_prompts_and_other_models_than_they_learn_from() -> None:
    every = [
        Comparison(
            f"p{i}", toy.user(f"why {i}?"), [f"a{k}" for k in range(6)], [f"m{(i + k) % 9}" for k in range(6)], ranks
        )
        for i, ranks in enumerate([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * 24)
    ]
    parts = real_labels.folds(every)
    assert len(parts) == 4
    for learn, measure in parts:
        assert learn
        assert measure
        assert not {one.prompt_id for one in learn} & {one.prompt_id for one in measure}
        assert not {m for one in learn for m in one.responders} & {m for one in measure for m in one.responders}
    assert {m for _, measure in parts for one in measure for m in one.responders} == {f"m{i}" for i in range(9)}


def test_a_lead_over_length_is_that_of_the_pairs() -> None:
    texts = ["one two three", "four five six", "one"]
    test = [Comparison(f"p{i}", toy.user("why?"), texts, list("abc"), [1.0, 2.0, 3.0]) for i in range(5)]
    found = real_labels.beyond_length(test, [[3.0, 2.0, 1.0]] * 5)
    assert found["accuracy"]["value"] == 1.0
    assert found["longest"]["value"] == pytest.approx(2.5 / 3)
    assert found["lead"]["value"] == pytest.approx(0.5 / 3)
    assert found["length_matched"]["value"] == 1.0
    assert found["length_matched_pairs"] == 5
    assert found["pairs"] == 15


def test_drawn_comparisons_are_seven_answers_of_uneven_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STARLING_NB_REAL_DATA", raising=False)
    lm = toy.lm()
    items = packing_speed.comparisons(3, lm)
    assert [len(one.answers) for one in items] == [7, 7, 7]
    assert items == packing_speed.comparisons(3, lm)
    assert len({len(answer) for one in items for answer in one.answers}) > 5


def test_both_timed_ways_send_the_same_gradients_down() -> None:
    found = []
    for method in (packing_speed.packed, packing_speed.padded):
        lm = toy.lm()
        step, work, sizes = method(lm, toy.comparisons((4, 3)), head=torch.linspace(-1, 1, 32))
        for one in work:
            step(one)
        assert sum(sizes) > 0
        found.append({name: part.grad for name, part in lm.model.model.named_parameters()})
    for name, grad in found[0].items():
        assert grad.abs().sum() > 0
        torch.testing.assert_close(grad, found[1][name], rtol=1e-4, atol=1e-5)


def test_every_timed_way_of_updating_learns_the_same() -> None:
    """Shared trunk or whole models: with the last blocks learning the losses are the same, step by step."""
    found = {}
    for way in update_speed.WAYS:
        lm = toy.lm(num_hidden_layers=5)
        work = update_speed.task(60, 3, rows=6, prompt=5, answer=7, minibatch=3)
        torch.manual_seed(1)  # of the critic's first layer
        step, learned = (update_speed.apart if way in ("four models", "whole") else update_speed.on_trunk)(
            lm, work, way
        )
        found[way] = update_speed.phase(step, learned, work, 3)
    assert len(found["captured"]) == 6
    assert found["captured"][-2:] != found["captured"][:2]
    for way in ("one pass", "recomputed", "four models"):
        assert found[way] == pytest.approx(found["captured"], rel=1e-4)
    assert found["whole"][:1] == pytest.approx(found["captured"][:1], rel=1e-4)


def test_ways_take_turns_in_turning_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "told.py").write_text(
        "import json, os, sys\n"
        "if 'wrong' in sys.argv: sys.exit('no such thing')\n"
        "print('loading')\nprint(json.dumps([sys.argv[2:], os.environ.get('MARK')]))\n"
    )
    monkeypatch.setattr(files, "ROOT", tmp_path)
    told: list[list[str]] = []
    runs = turns.in_turn(
        "told",
        ["a", "b", "c"],
        ["--n", "1"],
        rounds=3,
        say=lambda one: told.append(one[0]) or "",
        once=["b"],
        environments={"c": {"MARK": "x"}},
    )
    assert [line[0] for line in told] == ["a", "b", "c", "c", "a", "a", "c"]
    assert all(line[1:] == ["--n", "1"] for line in told)
    assert [len(each) for each in runs.values()] == [3, 1, 3]
    assert [one[1] for one in runs["c"]] == ["x"] * 3
    assert runs["a"][0][1] is None
    with pytest.raises(SystemExit, match="wrong failed:\nno such thing"):
        turns.in_turn("told", ["wrong"], rounds=1, say=str)


@pytest.mark.parametrize(("work", "alive"), [("pass", True), ("import time; time.sleep(60)", False)])
def test_a_child_is_killed_when_its_time_is_over(work: str, alive: bool) -> None:
    child = subprocess.Popen([sys.executable, "-c", work])
    assert turns.survives(child, 30 if alive else 0.05) is alive
    assert child.returncode == (0 if alive else -9)


def test_a_child_that_fails_is_told_of() -> None:
    with pytest.raises(SystemExit, match="a run failed"):
        turns.survives(subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"]), 30)


def test_a_step_on_a_card_is_timed_by_phase_and_held_against_its_limits() -> None:
    """The shape is tiny here and the card a processor; the steps are those of the loop."""
    line = ["--shape", "tiny", "--answers", "8", "--flight", "4", "--prompt", "10", "--answer", "6"]
    found = gpu_step.measure(gpu_step.parsed(line))
    phases = {"sampling", "reward", "old and reference", "update"}
    for name in ("seconds", "tokens_a_second", "operations", "share_of_matmul_limit"):
        assert set(found[name]) == phases
        assert all(value > 0 for value in found[name].values())
    assert found["tokens_a_second"]["update"] == pytest.approx(48 / found["seconds"]["update"])
    assert found["share_of_bandwidth_limit"]["sampling"] > 0


def test_both_sides_of_the_peer_benchmark_are_asked_the_same() -> None:
    """A kept trunk saves what lies below the last four blocks, and one of two prompts above."""
    lm = toy.lm(num_hidden_layers=10)
    shape = plan.Shape.of(lm.model.config)
    feed = 3 * shape.width * shape.inner
    for answers, prompts in ((8, 8), (16, 8)):
        ours, theirs = (trl_speed.operations(lm, 10, 20, answers)[side] for side in ("ours", "trl"))
        below, tokens = 10 * (answers - prompts), 30 * answers
        assert theirs["sampling"] - ours["sampling"] == 2 * shape.products * below
        top = 4 * shape.block * (tokens - below) - feed * 10 * prompts
        whole = 2 * 10 * shape.block * tokens
        head = 2 * shape.table * answers * 20
        assert ours["old and reference"] == 2 * (2 * top + head)
        assert theirs["old and reference"] == 2 * (whole + head)
        assert ours["update"] == 2 * (6 * top + 2 * head)
        assert theirs["update"] == 2 * (whole + 4 * 4 * shape.block * tokens + 2 * head)


def test_steps_are_counted_without_the_first() -> None:
    steps = trl_speed.Steps([(5.0, 1.0), (6.0, 2.5), (8.0, 5.0)], [100, 30, 60])
    told = steps.counted()
    assert told["tokens_a_second"] == 30.0
    assert told["tokens"] == [30, 60]
    assert (told["seconds"], told["cpu_seconds"]) == ([1.0, 2.0], [1.5, 2.5])
