from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from starling_nb import cli, files
from starling_nb.runner import planning

HEAVY = ("torch", "transformers", "pandas", "openai", "papermill", "numpy.testing", "nbconvert", "matplotlib")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["starling-nb", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    code = caught.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(planning, "NOTEBOOKS", tmp_path / "books")
    tiny.write(tmp_path / "books", "00_a", 'stage.claim("x", stage.p.x)', parameters="x: float = 1.0  # a number")
    return tmp_path


@pytest.mark.parametrize("module", ["starling_nb", "starling_nb.cli"])
def test_importing_the_front_imports_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_quick_and_lists_the_commands() -> None:
    times = []
    for _ in range(3):
        before = os.times()
        command = [sys.executable, "-m", "starling_nb", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = os.times()  # processor time: a busy neighbour does not count
        times.append(sum(after[2:4]) - sum(before[2:4]))
    assert all(name in done.stdout for name in ("reproduce", "fetch", "doctor"))
    assert min(times) < 0.5


def test_a_run_exits_0_and_3_when_strict_and_a_claim_fails(
    books: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(books / "out")
    assert call(monkeypatch, "reproduce", "--out", out, "--set", "x=-1") == 0
    assert "claims: 0 holds, 1 fails, 0 too small" in capsys.readouterr().out
    assert call(monkeypatch, "reproduce", "--out", out, "--set", "x=-1", "--strict") == 3
    assert "unchanged" in capsys.readouterr().out
    assert call(monkeypatch, "reproduce", "--out", out, "--explain") == 0
    assert capsys.readouterr().out == "00_a: run (x: -1.0 -> 1.0)\n"


def test_a_failed_stage_exits_1(
    books: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write(books / "books", "00_a", "1 / 0")
    assert call(monkeypatch, "reproduce", "--out", str(books / "out")) == 1
    message = capsys.readouterr().err
    assert "    1 / 0\nZeroDivisionError: division by zero\n" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--profile", "desktop"],
            "profile 'desktop' is unknown: choose one of gpu, laptop, paper, smoke, study",
        ),
        (["--set", "x=big"], "not a value of type float"),
        (["--only", "8"], "no notebook '8'"),
        (["--out", "FILE"], "cannot write in"),
    ],
)
def test_what_the_user_can_put_right_is_one_message_and_exits_2(
    books: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (books / "file").write_text("")
    arguments = [argument.replace("FILE", str(books / "file")) for argument in arguments]
    assert call(monkeypatch, "reproduce", "--out", str(books / "out"), *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("starling-nb: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"), [(PermissionError(13, "Permission denied", "/x"), 2), (KeyboardInterrupt(), 130)]
)
def test_system_errors_and_interrupts_have_no_traceback(
    books: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(files, "write_json", fail)
    assert call(monkeypatch, "reproduce", "--out", str(books / "out")) == code
    text = capsys.readouterr().err
    assert text.startswith("starling-nb: ")
    assert "Traceback" not in text


def test_doctor_prints_a_line_for_each_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines} >= {
        "python",
        "torch",
        "disk",
        "model",
        "data",
        "judge",
        "reference",
    }
