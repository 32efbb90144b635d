"""What the evidence scripts compute, beside the runs that take hours."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from benchmarks.keep_reference import check, clean, without_paths
from benchmarks.study import over_seeds
from starling_nb import files
from starling_nb.errors import StarlingError


def test_a_study_has_the_t_interval_over_its_seeds() -> None:
    """Three values 1, 2, 3: mean 2, standard error 1/√3, t of two degrees of freedom 4.303."""
    runs = [{"a": {"value": value}, "claim.b": {"value": value, "verdict": "holds"}} for value in (1.0, 2.0, 3.0)]
    found = over_seeds(runs)
    assert found["a"]["value"] == pytest.approx(2)
    assert found["a"]["high"] - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert found["claim.b"]["verdicts"] == ["holds"] * 3
    assert over_seeds([*runs, {"c": {"value": 0.0}}]) == {}
    with pytest.raises(StarlingError, match="two seeds"):
        over_seeds(runs[:1])


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
