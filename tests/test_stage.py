"""A notebook's side of a run, without a kernel: entering by hand, reading inputs, leaving results."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import papermill
import pytest

import starling_nb
import tiny
from starling_nb import files, profiles, reproduce
from starling_nb import stage as stages
from starling_nb.errors import StarlingError
from starling_nb.profiles import ParameterError
from starling_nb.runner import by_hand, keys
from starling_nb.stage import Stage, StageError

NAME = "00_start_here"


def cell(**changes: Any) -> dict[str, Any]:
    """The globals of a notebook whose parameters cell has run."""
    return profiles.values("laptop", NAME) | changes


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return starling_nb.enter(NAME, cell(out=str(tmp_path)))


@pytest.fixture
def under_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    context = {"name": "07_own", "out": str(tmp_path), "needs": ["00_first"], "key": "07_own-abc"}
    context["parameters"] = {"seed": 3, "profile": "smoke", "steps": 10}
    monkeypatch.setenv(stages.ENVIRONMENT, json.dumps(context))
    return starling_nb.enter("07_own", {"seed": 4})


def test_by_hand_the_cell_is_the_laptop_profile(stage: Stage, tmp_path: Path) -> None:
    assert (stage.p.profile, stage.p.seed, stage.dir) == ("laptop", 0, tmp_path / NAME)
    assert stage.dir.is_dir()


def test_by_hand_the_profile_overrides_what_was_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARLING_NB_PROFILE", "gpu")
    namespace = cell(out=str(tmp_path), seed=5)
    entered = starling_nb.enter(NAME, namespace)
    assert (entered.p.profile, entered.p.dtype, entered.p.seed) == ("gpu", "bfloat16", 5)
    assert namespace["dtype"] == "bfloat16"
    assert starling_nb.enter(NAME, cell(out=str(tmp_path), profile="smoke")).p.profile == "smoke"


def test_what_papermill_injects_wins_even_where_it_equals_the_laptop_value(tmp_path: Path) -> None:
    injected = "# Parameters\nprofile = 'gpu'\ndtype = 'auto'\n"
    entered = starling_nb.enter(NAME, cell(out=str(tmp_path), profile="gpu", In=["", "x = 1", injected]))
    assert (entered.p.profile, entered.p.dtype) == ("gpu", "auto")


def test_a_misspelt_injected_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no parameter sed; it has profile"):
        starling_nb.enter(NAME, cell(out=str(tmp_path), In=["# Parameters\nsed = 1\n"]))


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(StarlingError, match="there are 00_start_here"):
        starling_nb.enter("99_nowhere", {})


def test_the_default_folder_is_named_after_the_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "ROOT", tmp_path)
    assert starling_nb.enter(NAME, cell(profile="smoke")).out == tmp_path / "outputs" / "smoke"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match="choose another folder"):
        starling_nb.enter(NAME, cell(out=str(tmp_path / "file")))


def test_the_runner_decides_parameters_key_and_folder(under_runner: Stage, tmp_path: Path) -> None:
    assert (under_runner.p.seed, under_runner.p.steps, under_runner.key) == (3, 10, "07_own-abc")
    assert under_runner.checkpoints == tmp_path / ".checkpoints" / "07_own-abc"
    with pytest.raises(StageError, match="the runner runs '07_own'"):
        starling_nb.enter("08_other", {})


def test_inputs_have_to_be_announced_and_there(under_runner: Stage, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="unannounced"):
        under_runner.input("01_second", "a.txt")
    with pytest.raises(StageError, match=r"00_first has not been run .*usual time.*--only 00"):
        under_runner.input("00_first", "a.txt")
    files.write_json(tmp_path / "00_first" / "stage.json", {})
    with pytest.raises(StageError, match=r"finished without a\.txt"):
        under_runner.input("00_first", "a.txt")
    (tmp_path / "00_first" / "a.txt").write_text("here")
    assert under_runner.input("00_first", "a.txt").read_text() == "here"


def test_by_hand_a_missing_stage_is_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def build(name: str, asker: str, p: Any, out: Path) -> None:
        asked.append(name)
        files.write_json(out / name / "stage.json", {})
        files.write_text(out / name / "a.txt", "built")

    monkeypatch.setattr(by_hand, "build", build)
    monkeypatch.setattr(stage, "needs", ("01_dataset_construction",))
    for _ in range(2):
        assert stage.input("01_dataset_construction", "a.txt").read_text() == "built"
    assert asked == ["01_dataset_construction"]
    assert "01_dataset_construction has not been run in" in capsys.readouterr().out


def test_building_runs_the_command_line_with_what_differs(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    script = "import sys; print(sys.argv[1:]); sys.exit('--only' not in sys.argv)"
    commands: list[list[str]] = []
    popen = by_hand.subprocess.Popen

    def spy(command: list[str], **kw: Any) -> Any:
        commands.append(command)
        return popen([sys.executable, "-c", script, *command[3:]], **kw)

    monkeypatch.setattr(by_hand.subprocess, "Popen", spy)
    p = profiles.make(NAME, cell(seed=7))
    by_hand.build("01_dataset_construction", NAME, p, stage.out)
    assert commands[0][1:4] == ["-m", "starling_nb", "reproduce"]
    assert commands[0][4:] == [
        "--profile",
        "laptop",
        "--out",
        str(stage.out),
        "--only",
        "01",
        "--set",
        "seed=7",
    ]
    monkeypatch.setattr(by_hand, "sys", types.SimpleNamespace(executable=sys.executable))
    script = "raise SystemExit(1)"
    with pytest.raises(StarlingError, match="did not finish"):
        by_hand.build("01_dataset_construction", NAME, p, stage.out)


def test_data_and_real_paths(stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "DATA", tmp_path)
    (tmp_path / "prompts.jsonl").write_text("{}")
    assert stage.data("prompts.jsonl") == tmp_path / "prompts.jsonl"
    with pytest.raises(StageError, match=r"data/gone\.jsonl is missing"):
        stage.data("gone.jsonl")
    stage.p = types.SimpleNamespace(real_logs="", real_file=str(tmp_path / "prompts.jsonl"), real_gone="nowhere/x")
    assert stage.real("real_logs") is None
    assert stage.real("real_file") == tmp_path / "prompts.jsonl"
    with pytest.raises(ParameterError, match="no such file"):
        stage.real("real_gone")


def test_metrics_and_claims_are_flat_sorted_and_the_same_each_time(tmp_path: Path) -> None:
    written = []
    for folder, order in (("a", [0, 1]), ("b", [1, 0])):
        stage = starling_nb.enter(NAME, cell(out=str(tmp_path / folder)))
        for step in order:
            if step:
                stage.record("k_wise.accuracy", np.float32(0.75), low=0.5, high=1, n=np.int64(8))
            else:
                stage.claim("beats_length", 0.7, 0.6, 0.8, 100, "low>0.5", "beats length")
        stage.leave()
        written.append((stage.dir / "metrics.json").read_bytes())
    assert written[0] == written[1]
    assert json.loads(written[0]) == {
        "00.k_wise.accuracy": {"value": 0.75, "low": 0.5, "high": 1.0, "n": 8},
        "claim.00.beats_length": {
            "value": 0.7, "low": 0.6, "high": 0.8, "n": 100,
            "verdict": "holds", "rule": "low>0.5", "text": "beats length",
        },
    }  # fmt: skip


def test_claims_of_an_earlier_stage_do_not_leak(tmp_path: Path) -> None:
    first = starling_nb.enter(NAME, cell(out=str(tmp_path)))
    first.claim("x", 1.0)
    second = starling_nb.enter(NAME, cell(out=str(tmp_path)))
    second.leave()
    assert json.loads((second.dir / "metrics.json").read_text()) == {}


@pytest.mark.parametrize(("id", "value"), [("x", float("nan")), ("x", float("inf")), ("a b", 1.0), ("", 1.0)])
def test_what_is_no_number_or_no_id_is_refused(stage: Stage, id: str, value: float) -> None:
    with pytest.raises(StageError, match=r"finite|good id"):
        stage.record(id, value)


def test_figures_and_tables_carry_captions(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    plots = types.ModuleType("starling_nb.plots")
    plots.save = lambda fig, path, provenance: path.write_text(f"{fig.words} {provenance['stage']}")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "starling_nb.plots", plots)
    monkeypatch.setattr(starling_nb, "plots", plots, raising=False)
    figure = types.SimpleNamespace(words="drawn")
    assert stage.figure(figure, "panels", "Four panels.") is figure
    assert figure.caption == "Four panels."
    frame = pd.DataFrame({"a": [1, 2]})
    assert stage.table(frame, "counts", "Two counts.") is frame
    assert (stage.out / "figures" / "00_panels.png").read_text() == f"drawn {NAME}"
    assert (stage.out / "figures" / "00_panels.txt").read_text() == "Four panels.\n"
    assert (stage.out / "tables" / "00_counts.csv").read_text() == "a\n1\n2\n"
    stage.table(frame.set_index(pd.Index(["x", "y"])), "named", "Two counts with names.")
    assert (stage.out / "tables" / "00_named.csv").read_text() == ",a\nx,1\ny,2\n"
    with pytest.raises(StageError, match="no good name"):
        stage.table(frame, "../escape", "")


def test_a_notebook_runs_alone_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain papermill, started in the notebook's own folder, with one parameter given."""
    body = 'stage.record("seed", stage.p.seed)\nassert stage.p.profile == "laptop" and seed == stage.p.seed'
    lines = tiny.declared(profiles.values("laptop", NAME))
    path = tiny.write(tmp_path / "books", NAME, body, common=lines)
    monkeypatch.chdir(path.parent)
    papermill.execute_notebook(
        path.name, str(tmp_path / "done.ipynb"), {"seed": 9, "out": str(tmp_path / "run")}, progress_bar=False
    )
    assert json.loads((tmp_path / "run" / NAME / "metrics.json").read_text())["00.seed"]["value"] == 9


def test_by_hand_and_under_the_runner_the_key_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that either goes on from the other's checkpoints."""
    monkeypatch.setattr(stages, "NOTEBOOKS", tmp_path / "books")
    tiny.write(tmp_path / "books", NAME, "pass", common=tiny.declared(profiles.values("laptop", NAME)))
    plan = reproduce.plan("smoke", tmp_path / "out", notebooks=tmp_path / "books", settings=["seed=3"])
    (book,) = plan.books
    parts = keys.components(book, plan.parameters[NAME], {}, keys.data_hash())
    entered = starling_nb.enter(NAME, cell(out=str(tmp_path / "out"), profile="smoke", seed=3))
    assert entered.key == keys.key_of(NAME, parts)
    assert entered.checkpoints.parent == plan.out / ".checkpoints"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its interval, as the statistics give it."""

    value: float
    low: float
    high: float
    n: int


def test_an_interval_stands_for_its_four_numbers(stage: Stage) -> None:
    stage.record("half", Estimate(0.5, 0.4, 0.6, 30))
    stage.record("lone", Estimate(0.5, math.nan, math.nan, 1))
    stage.claim("rises", Estimate(0.5, 0.4, 0.6, 30), rule="low>0")
    stage.claim("rises_much", Estimate(0.5, 0.4, 0.6, 30), rule="low>0.45")
    rows = pd.DataFrame([{"method": "apa", "metric": "words, a line", "value": 1.0, "low": 0.0, "high": 2.0, "n": 4}])
    stage.record_rows(rows, "method", "metric")
    stage.leave()
    written = files.read_json(stage.dir / "metrics.json")
    assert [written[f"claim.00.{name}"]["verdict"] for name in ("rises", "rises_much")] == ["holds", "fails"]
    assert written["00.half"] == {"value": 0.5, "low": 0.4, "high": 0.6, "n": 30}
    assert written["00.lone"] == {"value": 0.5, "low": None, "high": None, "n": 1}
    assert written["00.apa.words_a_line"]["n"] == 4


def test_settings_take_the_parameters_that_they_share(stage: Stage) -> None:
    found = stage.settings(dataclasses.make_dataclass("Recipe", [("seed", int, 9), ("other", int, 9)], frozen=True))
    assert (found.seed, found.other) == (stage.p.seed, 9)
