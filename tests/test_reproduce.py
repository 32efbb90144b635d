"""The runner on tiny notebooks: what is skipped, what is run again, and what a failure looks like."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import tiny
from starling_nb import files, reproduce
from starling_nb.errors import StarlingError
from starling_nb.reproduce import Result
from starling_nb.runner import kernel
from starling_nb.runner.lock import KERNEL, LOCK, LockedError

FIRST = """
import os
from starling_nb import progress
for item in progress.track(range(2), "counting"):
    pass
(stage.dir / "number.txt").write_text(str(stage.p.k // 10))
stage.record("k", stage.p.k, n=1)
stage.claim("is_large", stage.p.k, rule=">20", text="k is large")
print(os.environ["OMP_WAIT_POLICY"], os.environ["OMP_NUM_THREADS"], os.environ["HF_HUB_OFFLINE"], os.getcwd())
"""
SECOND = 'stage.record("seen", float(stage.input("00_first", "number.txt").read_text()))'


def run(books: Path, out: Path, **options: Any) -> tuple[Result, list[str]]:
    """Plan and run; the result and what was said."""
    said: list[str] = []
    return reproduce.run(reproduce.plan("laptop", out, notebooks=books, **options), said.append), said


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two notebooks, run once; tests work on copies."""
    folder = tmp_path_factory.mktemp("chain")
    tiny.write(folder / "books", "00_first", FIRST, parameters="k: int = 10  # a number")
    tiny.write(folder / "books", "01_second", SECOND, needs=["00_first"])
    result, _ = run(folder / "books", folder / "out")
    assert result.ran == ["00_first", "01_second"]
    return folder


@pytest.fixture
def again(chain: Path, tmp_path: Path) -> Callable[..., tuple[Result, list[str]]]:
    """Run the chain again in a copy (whose ``out`` is then ``tmp_path / "c" / "out"``)."""
    shutil.copytree(chain, tmp_path / "c")

    def rerun(**options: Any) -> tuple[Result, list[str]]:
        return run(tmp_path / "c" / "books", tmp_path / "c" / "out", **options)

    return rerun


def test_a_run_leaves_metrics_manifest_report_and_executed_notebooks(chain: Path) -> None:
    out = chain / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["00.k"] == {"value": 10.0, "low": None, "high": None, "n": 1}
    assert metrics["01.seen"]["value"] == 1.0
    assert metrics["claim.00.is_large"]["verdict"] == "fails"
    manifest = json.loads((out / "manifest.json").read_text())
    entry = manifest["stages"]["01_second"]
    assert (entry["status"], entry["cached"], entry["error"]) == ("done", False, None)
    assert entry["inputs"] == {"00_first/number.txt": files.sha256(b"1")}
    assert set(entry["outputs"]) == {"01_second/metrics.json", "01_second/stage.json"}
    assert entry["seconds"] > 0
    assert entry["peak_rss_bytes"] > 1e6
    assert manifest["seeds"] == {"00_first": 0, "01_second": 0}
    assert manifest["env"]["packages"]["papermill"]
    assert (out / "report.html").exists()
    assert sorted(path.name for path in (out / "notebooks").glob("*.ipynb")) == [
        "00_first.ipynb",
        "01_second.ipynb",
    ]
    assert not (out / LOCK).exists()
    assert not (out / KERNEL).exists()


def test_the_kernel_has_its_environment_and_the_notebook_tells_no_machine(chain: Path) -> None:
    executed = (chain / "out" / "notebooks" / "00_first.ipynb").read_text()
    assert f"PASSIVE 2 1 {files.ROOT}" in executed.replace("\\n", "\n")
    assert "papermill" not in json.loads(executed)["metadata"]
    assert "encryption" not in executed


def test_nothing_changed_nothing_runs_and_metrics_keep_their_bytes(again: Callable[..., Any], tmp_path: Path) -> None:
    before = (tmp_path / "c" / "out" / "metrics.json").read_bytes()
    result, said = again()
    assert (result.ran, result.skipped) == ([], ["00_first", "01_second"])
    assert said[0].startswith("00_first  unchanged (made in ")
    assert (tmp_path / "c" / "out" / "metrics.json").read_bytes() == before
    assert (result.exit_code(), result.exit_code(strict=True)) == (0, 3)


def test_numbers_that_stand_on_a_changed_stage_are_taken_out_until_they_are_made_again(
    again: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "c" / "out"

    def told() -> tuple[str, set[str]]:
        stages = json.loads((out / "manifest.json").read_text())["stages"]
        return stages["01_second"]["status"], set(json.loads((out / "metrics.json").read_text()))

    whole = told()
    result, _ = again(only=["0"], settings=["00.k=25"])
    assert result.ran == ["00_first"]
    status, metrics = told()
    assert status == "stale"
    assert "01.seen" not in metrics
    assert "00_first has changed since" in (out / "report.html").read_text()
    again(only=["0"])
    assert told() == whole, "made as before, so what stood on it stands again"
    again(only=["0"], settings=["00.k=25"])
    result, _ = again(settings=["00.k=25"])
    assert result.ran == ["01_second"]
    assert told() == whole


def test_an_interrupted_run_keeps_no_numbers_of_what_it_has_swept_away(
    again: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c" / "out"

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kernel, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        again(settings=["00.k=25"])
    assert json.loads((out / "metrics.json").read_text()) == {}
    stages = json.loads((out / "manifest.json").read_text())["stages"]
    assert (stages["00_first"]["status"], stages["01_second"]["status"]) == ("running", "stale")
    assert "k is large" not in (out / "report.html").read_text()


def test_a_report_shows_no_page_of_a_failure_that_was_mended(again: Callable[..., Any], tmp_path: Path) -> None:
    books, out = tmp_path / "c" / "books", tmp_path / "c" / "out"
    tiny.write(books, "00_first", "raise KeyError('k')", parameters="k: int = 10  # a number")
    again()
    assert "00_first.failed.html" in (out / "report.html").read_text()
    tiny.write(books, "00_first", FIRST, parameters="k: int = 10  # a number")
    again()
    assert "00_first.failed.html" not in (out / "report.html").read_text()
    assert "00_first.html" in (out / "report.html").read_text()


def test_a_judge_s_address_with_a_password_reaches_no_file(tmp_path: Path) -> None:
    tiny.write(tmp_path / "books", "00_first", "pass")
    for secret in ("m@http://me:pass@host/v1", "m@http://host/v1?api_key=secret"):
        with pytest.raises(StarlingError, match="no keys or passwords"):
            reproduce.plan("laptop", tmp_path / "out", notebooks=tmp_path / "books", settings=[f"judge={secret}"])
    assert not (tmp_path / "out").exists()


def test_what_a_judge_was_paid_for_outlives_the_stage_s_folder(tmp_path: Path) -> None:
    ask = """
from starling_nb.judge.connect import ledger_of
path = ledger_of(stage)
path.parent.mkdir(exist_ok=True)
stage.record("replies", len(path.read_text()) if path.exists() else 0)
path.write_text("a reply")
"""
    for judge, kept in (("gpt-4-0613", 7.0), ("simulated", 0.0)):
        tiny.write(tmp_path / "books", "00_first", ask)
        for force in (False, True):
            run(tmp_path / "books", tmp_path / judge, settings=[f"judge={judge}"], force=force)
        metrics = json.loads((tmp_path / judge / "metrics.json").read_text())
        assert metrics["00.replies"]["value"] == kept, judge


def test_the_most_that_a_judge_may_cost_reaches_the_notebook_and_is_no_reason_to_run_it_again(tmp_path: Path) -> None:
    ask = """
from starling_nb.judge.connect import connect, ledger_of
with connect(stage.p.judge, ledger_of(stage)) as judge:
    stage.record("left", judge.spending.budget.dollars)
"""
    tiny.write(tmp_path / "books", "00_first", ask)
    for dollars, ran in ((2.5, ["00_first"]), (7.0, [])):
        result, _ = run(tmp_path / "books", tmp_path / "out", settings=["judge=gpt-4-0613"], dollars=dollars)
        assert result.ran == ran, result.message
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["00.left"]["value"] == 2.5
    with pytest.raises(StarlingError, match="what qwen costs is not known"):
        run(tmp_path / "books", tmp_path / "out", settings=["judge=qwen@http://127.0.0.1:8000/v1"], dollars=1)
    reproduce.plan("laptop", tmp_path / "out", notebooks=tmp_path / "books", dollars=1)
    with pytest.raises(StarlingError, match="dollars = nan"):
        reproduce.plan("laptop", tmp_path / "out", notebooks=tmp_path / "books", dollars=float("nan"))


def test_a_forced_run_makes_the_same_metrics(again: Callable[..., Any], tmp_path: Path) -> None:
    before = (tmp_path / "c" / "out" / "metrics.json").read_bytes()
    result, said = again(only=["0"], force=True)
    assert result.ran == ["00_first"]
    assert said[0] == "00_first  runs: --force"
    assert (tmp_path / "c" / "out" / "metrics.json").read_bytes() == before


def test_a_changed_parameter_runs_its_stage_and_what_truly_depends_on_it(again: Callable[..., Any]) -> None:
    result, said = again(settings=["k=15"])
    assert (result.ran, result.skipped) == (["00_first"], ["01_second"])  # number.txt is still 1
    assert said[0] == "00_first  runs: k: 10 -> 15"
    result, said = again(settings=["00.k=30"])
    assert result.ran == ["00_first", "01_second"]
    assert "01_second  runs: the files of 00_first changed" in said
    assert result.exit_code(strict=True) == 0


def test_damaged_or_missing_outputs_are_made_again(again: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "c" / "out" / "01_second" / "metrics.json").write_text("{}")
    result, said = again()
    assert (result.ran, result.skipped) == (["01_second"], ["00_first"])
    assert said[1] == "01_second  runs: 01_second/metrics.json is not as it was written"


def test_explain_tells_why_and_runs_nothing(chain: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"notebooks": chain / "books"}
    lines = reproduce.explain(reproduce.plan("laptop", chain / "out", settings=["seed=1"], only=["00"], **options))
    assert lines == ["00_first: run (seed: 0 -> 1)"]
    lines = reproduce.explain(reproduce.plan("laptop", tmp_path / "new", **options))
    assert lines == ["00_first: run (it has not been run here)", "01_second: run (00_first runs again)"]
    assert not (tmp_path / "new").exists()


def test_selection_brings_what_is_needed(chain: Path, tmp_path: Path) -> None:
    books = shutil.copytree(chain / "books", tmp_path / "books")
    tiny.write(books, "02_third", "pass", needs=["00_first"])
    tiny.write(books, "03_fourth", "pass")

    def names(**options: Any) -> list[str]:
        plan = reproduce.plan("laptop", tmp_path / "out", notebooks=books, **options)
        return [book.number for book in plan.books]

    assert names() == ["00", "01", "02", "03"]
    assert names(only=["02_third"]) == ["00", "02"]
    assert names(only=["3"]) == ["03"]
    assert names(start="02") == ["00", "02", "03"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": ["bogus=1"]}, "'bogus' is no parameter; there are dtype, judge, k, out"),
        ({"settings": ["01.k=1"]}, "'k' is no parameter of 01; there are profile, out, seed"),
        ({"settings": ["k=many"]}, "not a value of type int"),
        ({"settings": ["k"]}, "name=value"),
        ({"settings": ["09.k=1"]}, "no notebook '09'; there are 00_first, 01_second"),
        ({"only": ["7"]}, "no notebook '7'"),
        ({"settings": ["profile=desktop"]}, "profile 'desktop' is unknown: choose one of gpu"),
    ],
)
def test_wrong_names_and_types_are_refused_before_anything_starts(
    chain: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(StarlingError) as caught:
        run(chain / "books", tmp_path / "out", **options)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_run_never_writes_over_the_notebooks(chain: Path) -> None:
    for out in (chain, files.ROOT, files.ROOT.parent):
        with pytest.raises(StarlingError, match="choose a folder of its own"):
            reproduce.plan("laptop", out, notebooks=chain / "books" if out != chain else chain / "notebooks")


@pytest.mark.parametrize(
    ("body", "leave", "options", "message"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", True, {}, "killed, likely for want of memory"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGBUS)", True, {}, "the kernel died of SIGBUS"),
        ("import os\nos._exit(3)", True, {}, "ended by itself (code 3)"),
        ("import sys\nsys.exit(0)", True, {}, "it stopped before code cell"),
        (
            "x = 1\nraise ValueError('no\\nway')",
            True,
            {},
            "line 2:\n    raise ValueError('no\\nway')\nValueError: no\nway",
        ),
        ("import time\ntime.sleep(60)", True, {"timeout": 1}, "more than the 1 s that --timeout allows"),
        ("pass", False, {}, "ended without `stage.leave()`"),
    ],
)
def test_failures_are_told_on_one_screen(
    tmp_path: Path, body: str, leave: bool, options: dict[str, Any], message: str
) -> None:
    tiny.write(tmp_path / "books", "00_bad", body, leave=leave)
    tiny.write(tmp_path / "books", "01_next", "pass", needs=["00_bad"])
    result, _ = run(tmp_path / "books", tmp_path / "out", **options)
    failed = tmp_path / "out" / "notebooks" / "00_bad.failed.ipynb"
    assert (result.failed, result.ran, result.exit_code(strict=True)) == ("00_bad", [], 1)
    assert message in result.message
    assert f"executed notebook: {failed}" in result.message
    assert result.message.count("\n") < 20
    assert [path.name for path in (tmp_path / "out" / "notebooks").glob("*.ipynb")] == [failed.name]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["stages"]["00_bad"]["status"] == "failed"
    assert manifest["stages"]["00_bad"]["error"] == result.message


def test_a_failure_blocks_what_stands_on_it(again: Callable[..., Any], tmp_path: Path) -> None:
    tiny.write(tmp_path / "c" / "books", "00_first", "raise KeyError('k')", parameters="k: int = 10  # a number")
    again()
    out = tmp_path / "c" / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["stages"]["01_second"]["status"] == "blocked"
    assert json.loads((out / "metrics.json").read_text()) == {}
    assert "KeyError" in (out / "report.html").read_text()


RESUMING = """
import time
half = stage.checkpoints / "half.txt"
if not half.exists():
    half.write_text("5")
    time.sleep(120)
stage.resumed_step = int(half.read_text())
stage.record("steps", 10)
"""
RUNNER = """
import sys
from pathlib import Path
from starling_nb import reproduce
reproduce.run(reproduce.plan("laptop", Path(sys.argv[2]), notebooks=Path(sys.argv[1])))
"""


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Poll until the condition is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return value


def test_a_killed_run_leaves_no_kernel_no_lock_and_is_continued(tmp_path: Path) -> None:
    tiny.write(tmp_path / "books", "00_long", RESUMING)
    out = tmp_path / "out"
    command = [sys.executable, "-c", RUNNER, str(tmp_path / "books"), str(out)]
    runner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list(out.glob(".checkpoints/*/half.txt")))
        kernel = json.loads((out / KERNEL).read_text())
        with pytest.raises(LockedError, match=f"process {runner.pid}"):
            run(tmp_path / "books", out)
        os.kill(runner.pid, signal.SIGSTOP)  # a stopped run is a living one
        with pytest.raises(LockedError):
            run(tmp_path / "books", out)
    finally:
        runner.kill()
        runner.wait()
    result, said = run(tmp_path / "books", out)
    assert result.ran == ["00_long"]
    assert said[0] == "00_long  runs: the last try is running"
    assert not psutil.pid_exists(kernel["pid"])
    entry = json.loads((out / "manifest.json").read_text())["stages"]["00_long"]
    assert entry["resumed_step"] == 5
    assert list(out.glob(".checkpoints/*")) == []


def test_a_full_disk_is_one_message_and_nothing_is_half_written(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(StarlingError, match=r"No space left on device\. Free some space"):
        run(chain / "books", tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 99}', '{"schema": 1, "stages": []}'])
def test_a_damaged_manifest_is_one_message(chain: Path, tmp_path: Path, content: str) -> None:
    files.write_text(tmp_path / "out" / "manifest.json", content)
    with pytest.raises(StarlingError, match="delete it"):
        run(chain / "books", tmp_path / "out")
