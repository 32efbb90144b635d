"""Every solution passes, every stub fails, and whoever makes a known mistake is told which."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from typer.testing import CliRunner

from starling_nb import files, losses, progress, teach
from starling_nb.cli import app
from starling_nb.losses import ranking
from starling_nb.policy.offline import baselines
from starling_nb.teach import exercise, sheets

EVERY = {one.number: one for part in teach.exercises().values() for one in part}
numbered = pytest.mark.parametrize("number", EVERY)


def run(book: nbformat.NotebookNode) -> None:
    """All code cells of a sheet, one after another, as a kernel would."""
    names: dict[str, Any] = {}
    for cell in book.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, cell.id, "exec"), names)


def test_there_are_enough_and_they_are_numbered_by_chapter() -> None:
    assert 12 <= len(EVERY) <= 25
    for place, part in enumerate(teach.exercises().values(), 1):
        assert [one.number for one in part] == [f"{place}.{n}" for n in range(1, len(part) + 1)]
    names = [path.stem for path in sorted((files.ROOT / "notebooks").glob("*.ipynb"))]
    assert {f"{place:02}_{name}" for place, name in enumerate(teach.CHAPTERS, 1)} >= set(names[1:])


@numbered
def test_the_solution_is_right_and_its_stub_is_not_written_yet(
    number: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = EVERY[number]
    assert teach.check(number, one.solved) is True
    assert capsys.readouterr().out == f"exercise {number}: right\n"
    names: dict[str, Any] = {"math": math}
    exec(one.stub, names)
    assert teach.check(number, names[one.solved.__name__]) is False
    assert "not written yet" in capsys.readouterr().out
    monkeypatch.setenv(progress.HEADLESS, "1")
    with pytest.raises(exercise.ExerciseError, match="not written yet"):
        teach.check(number, names[one.solved.__name__])


@numbered
def test_each_known_mistake_gets_its_own_hint(number: str) -> None:
    one = EVERY[number]
    assert one.mistakes
    for wrong, hint in one.mistakes:
        assert one.verdict(wrong) == hint
    assert len({hint for _, hint in one.mistakes}) == len(one.mistakes)


@numbered
def test_any_other_wrong_answer_is_shown_a_case_that_fails(number: str) -> None:
    def strange(*_: Any) -> Any:
        return "strange"

    assert "gives 'strange', and" in EVERY[number].verdict(strange)


def test_an_answer_that_changes_its_arguments_is_told_so() -> None:
    def careless(shares: list[float]) -> float:
        shares[:] = [abs(share - 1 / len(shares)) for share in shares]
        return sum(shares) / 2

    assert "changes its arguments" in EVERY["2.3"].verdict(careless)


def test_an_error_where_none_is_due_is_told() -> None:
    def broken(preferences: list[float]) -> float:
        raise KeyError("preference")

    assert "gives KeyError ('preference')" in EVERY["5.1"].verdict(broken)


def test_an_unknown_exercise_is_refused() -> None:
    with pytest.raises(exercise.ExerciseError, match=r"no exercise 9\.9: choose from 1\.1"):
        teach.check("9.9", print)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, 1.0, True),
        (math.nan, math.nan, True),
        (1.0, 1.0 + 1e-8, True),
        (1.0, 1.001, False),
        ([1, (2, 3)], (1, [2.0, 3.0]), True),
        ([1], [1, 2], False),
        (torch.tensor([1.0, 2.0]), [1.0, 2.0], True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"b": 1}, False),
        (ValueError("a"), ValueError("b"), True),
        (ValueError("a"), KeyError("a"), False),
        ("1", 1, False),
        (None, None, True),
    ],
)
def test_outcomes_are_equal_to_rounding_and_errors_by_kind(one: Any, other: Any, equal: bool) -> None:
    assert exercise.same(one, other) is equal
    assert exercise.same(other, one) is equal


def test_solutions_are_what_the_library_computes() -> None:
    solve = {number: one.solved for number, one in EVERY.items()}
    scores = torch.tensor([[0.3, -1.2, 2.0, 0.1]])
    assert solve["3.1"](scores[0].tolist()) == pytest.approx(float(ranking.k_wise(scores)), rel=1e-5)
    rewards, values = torch.tensor([[0.1, -0.4, 1.0]]), torch.tensor([[0.3, 0.2, -0.5]])
    due, _ = losses.gae(rewards, values, torch.ones(1, 3), gamma=0.9, lam=0.7)
    assert solve["4.2"](rewards[0].tolist(), values[0].tolist(), 0.9, 0.7) == pytest.approx(due[0].tolist(), rel=1e-5)
    p, q = torch.tensor([-1.0, -2.0]), torch.tensor([-1.3, -0.5])
    assert solve["4.4"](p.tolist(), q.tolist()) == pytest.approx(losses.kl_k3(p, q).tolist(), rel=1e-5)
    assert solve["6.2"](16) == pytest.approx(baselines.best_of_n_kl(16))


def test_sheets_are_built_alike_each_time_and_a_students_holds_no_solution(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["teach", "build", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    first = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.ipynb"))}
    assert len(first) == 2 * len(teach.CHAPTERS)
    sheets.build(tmp_path)
    assert {path: path.read_bytes() for path in first} == first
    for path in tmp_path.glob("student/*.ipynb"):
        text = path.read_text(encoding="utf-8")
        nbformat.validate(nbformat.reads(text, 4))
        for one in teach.exercises()[path.stem[3:]]:
            body = one.source.splitlines()[len(one.stub.splitlines()) - 1 :]
            assert body
            assert not any(line.strip() in text for line in body if len(line.strip()) > 12)
            assert f'NotImplementedError(\\"exercise {one.number}\\")' in text


def test_a_teachers_sheet_runs_through_and_a_students_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for chapter, found in teach.exercises().items():
        run(sheets.sheet(chapter, found, solved=True))
        assert capsys.readouterr().out.count(": right\n") == len(found)
        run(sheets.sheet(chapter, found, solved=False))
        assert capsys.readouterr().out.count("not written yet") == len(found)
