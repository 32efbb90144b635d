"""Run the notebooks in order, skip what is done, and gather what came of it.

A run folder holds ``notebooks/`` (executed), one folder per stage, ``figures/``, ``tables/``,
``metrics.json``, ``manifest.json`` and ``report.html``. A stage whose key (:mod:`starling_nb.runner.keys`) is
unchanged and whose files still have their recorded hashes is not run again; a killed stage goes on from its
checkpoints.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starling_nb import files
from starling_nb.progress import clock
from starling_nb.runner import keys, lock, manifest
from starling_nb.runner.notebook import Notebook
from starling_nb.runner.planning import Plan, plan

__all__ = ["Plan", "Result", "explain", "plan", "run"]


@dataclass
class Result:
    """What came of a run.

    Attributes:
        ran, skipped: names of stages; failed: the stage that failed, with ``message``.
        verdicts: claim id → verdict, of all finished stages in the folder.
    """

    out: Path
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: str | None = None
    message: str = ""
    verdicts: dict[str, str] = field(default_factory=dict)

    def exit_code(self, strict: bool = False) -> int:
        """0 for a finished run, 1 where a stage failed, 3 where ``strict`` and a claim fails."""
        if self.failed:
            return 1
        return 3 if strict and "fails" in self.verdicts.values() else 0


def run(plan: Plan, say: Callable[[str], None] = print) -> Result:
    """Carry out a plan.

    Raises:
        LockedError: another run is at work in the folder.
        StarlingError: the folder cannot be written, or its manifest is damaged.
    """
    from starling_nb import report

    with lock.held(plan.out), _terminable():
        record = manifest.load(plan.out)
        record |= manifest.head(plan.profile, manifest.command_line())
        record["env"] |= {name: plan.parameters[plan.books[0].name].get(name) for name in ("threads", "dtype")}
        record["seeds"] = {name: values["seed"] for name, values in plan.parameters.items() if "seed" in values}
        result = Result(plan.out)
        try:
            for book in plan.books:
                _stage(plan, book, record, result, say)
                if result.failed:
                    break
        finally:  # also where it was interrupted: numbers and report of what is no more do not stay
            try:
                _settle(plan.out, record, result)
            finally:
                manifest.save(plan.out, record)
            result.verdicts = _gather(plan.out, record)
            report.write(plan.out)
    return result


def explain(plan: Plan) -> list[str]:
    """One line a stage: would it run, and why. Nothing is run or written."""
    record, lines, again = manifest.load(plan.out), [], set[str]()
    for book in plan.books:
        parts = _components(plan, book)
        reasons = [f"{need} runs again" for need in book.needs if need in again]
        reasons = reasons or _reasons(plan, book, record["stages"].get(book.name), parts)
        if reasons:
            again.add(book.name)
        lines.append(f"{book.name}: {'run (' + '; '.join(reasons) + ')' if reasons else 'skip, nothing changed'}")
    return lines


def _components(plan: Plan, book: Notebook) -> dict[str, Any]:
    inputs = {need: _handed_over(plan.out, need) for need in book.needs}
    return keys.components(book, plan.parameters[book.name], inputs, keys.data_hash())


def _reasons(plan: Plan, book: Notebook, entry: dict[str, Any] | None, parts: dict[str, Any]) -> list[str]:
    """Why a stage has to run; empty when it does not."""
    if book.name in plan.forced:
        return ["--force"]
    if entry is None:
        return ["it has not been run here"]
    if entry["status"] not in ("done", "stale"):
        return [f"the last try is {entry['status']}"]
    if entry["key"] != keys.key_of(book.name, parts):
        return keys.differences(entry["components"], parts) or ["its key changed"]
    written = keys.outputs(plan.out, book.name)
    if entry["outputs"] != written:
        names = sorted(
            name for name in entry["outputs"].keys() | written.keys() if entry["outputs"].get(name) != written.get(name)
        )
        return [f"{name} is not as it was written" for name in names[:3]]
    executed = plan.out / "notebooks" / f"{book.name}.ipynb"
    return [] if executed.exists() else ["its executed notebook is gone"]


def _stage(plan: Plan, book: Notebook, record: dict[str, Any], result: Result, say: Callable[[str], None]) -> None:
    """Skip or run one stage, and write down what happened."""
    parts = _components(plan, book)
    reasons = _reasons(plan, book, record["stages"].get(book.name), parts)
    if not reasons:
        entry = record["stages"][book.name]
        entry["cached"] = True
        result.skipped.append(book.name)
        say(f"{book.name}  unchanged (made in {clock(entry['seconds'])})")
        return
    key = keys.key_of(book.name, parts)
    say(f"{book.name}  runs: {'; '.join(reasons[:4])}{' …' if len(reasons) > 4 else ''}")
    entry = {
        "key": key,
        "status": "running",
        "cached": False,
        "components": parts,
        "params": parts["parameters"],
    }
    entry |= {
        "seconds": 0.0,
        "inputs": {},
        "outputs": {},
        "resumed_step": None,
        "peak_rss_bytes": 0,
        "error": None,
    }
    record["stages"][book.name] = entry
    manifest.save(plan.out, record)
    _sweep(plan, book, key)
    _execute(plan, book, key, entry, say)
    if entry["error"]:
        result.failed, result.message = book.name, entry["error"]
    else:
        result.ran.append(book.name)
        say(f"{book.name}  done in {clock(entry['seconds'])}")
    manifest.save(plan.out, record)


def _sweep(plan: Plan, book: Notebook, key: str) -> None:
    """Take away what an earlier run of the stage wrote; its checkpoints stay, unless the stage is forced."""
    shutil.rmtree(plan.out / book.name, ignore_errors=True)
    for kind in ("figures", "tables"):
        for path in (plan.out / kind).glob(f"{book.number}_*"):
            path.unlink()
    if book.name in plan.forced:
        shutil.rmtree(plan.out / ".checkpoints" / key, ignore_errors=True)
    (plan.out / book.name).mkdir(parents=True)


def _execute(plan: Plan, book: Notebook, key: str, entry: dict[str, Any], say: Callable[[str], None]) -> None:
    from starling_nb.runner import console, kernel

    folder, values = plan.out / book.name, plan.parameters[book.name]
    context = {"name": book.name, "out": str(plan.out), "needs": book.needs, "key": key, "parameters": values}
    progress = folder / "progress.jsonl"
    env = kernel.environment(values, json.dumps(context), progress, plan.dollars)
    with console.Watch(book.name, progress, say) as watch:

        def started(pid: int) -> None:
            watch.kernel(pid)
            lock.note_kernel(plan.out, pid, book.name)

        try:
            kernel.execute(book, values, plan.out / "notebooks", env, started, plan.timeout)
            entry |= _left(plan, book)
        except kernel.NotebookFailed as error:
            entry |= {"status": "failed", "error": str(error)}
        finally:
            lock.forget_kernel(plan.out)
            entry |= {"seconds": round(watch.seconds, 1), "peak_rss_bytes": watch.peak_rss}


def _left(plan: Plan, book: Notebook) -> dict[str, Any]:
    """What a stage that ran to its end has left behind."""
    from starling_nb.runner.kernel import NotebookFailed

    written = keys.outputs(plan.out, book.name)
    executed = plan.out / "notebooks" / f"{book.name}.ipynb"
    absent = [name for name in book.outputs if f"{book.name}/{name}" not in written]
    if f"{book.name}/stage.json" not in written or absent:
        failed = executed.with_name(f"{book.name}.failed.ipynb")
        executed.rename(failed)
        what = f"did not write {', '.join(absent)}" if absent else "ended without `stage.leave()`"
        raise NotebookFailed(f"{book.name} {what}\nexecuted notebook: {failed}")
    note = files.read_json(plan.out / book.name / "stage.json")
    for path in (plan.out / ".checkpoints").glob(f"{book.name}-*"):
        shutil.rmtree(path, ignore_errors=True)
    inputs = {name: _input_hash(plan.out, name) for name in note["inputs"]}
    return {"status": "done", "outputs": written, "inputs": inputs, "resumed_step": note["resumed_step"]}


def _input_hash(out: Path, name: str) -> str:
    return keys.hash_tree(files.ROOT / name if name.startswith("data/") else out / name)


def _settle(out: Path, record: dict[str, Any], result: Result) -> None:
    """Mark every stage of the folder, planned or not, whose numbers no longer belong to this run: it stands on one that
    failed, or on one that has changed since; and take the mark away where that is no longer so."""
    failed, stale = {result.failed} if result.failed else set[str](), set[str]()
    for name, entry in sorted(record["stages"].items()):
        if entry["status"] not in ("done", "stale") or name in failed:
            continue
        needs = entry["components"]["inputs"]
        broken = [need for need in needs if need in failed]
        changed = [need for need, was in needs.items() if need in stale or _handed_over(out, need) != was]
        if broken:
            failed.add(name)
            entry |= {"status": "blocked", "error": f"{broken[0]} failed"}
        elif changed:
            stale.add(name)
            entry |= {"status": "stale", "error": f"{changed[0]} has changed since: run this stage again"}
        else:
            entry |= {"status": "done", "error": None}


def _handed_over(out: Path, stage: str) -> str:
    return keys.handed_over(stage, keys.outputs(out, stage))


def _gather(out: Path, record: dict[str, Any]) -> dict[str, str]:
    """Write the run's ``metrics.json`` out of its finished stages; returns the verdicts."""
    metrics: dict[str, Any] = {}
    for name, entry in record["stages"].items():
        path = out / name / "metrics.json"
        if entry["status"] == "done" and path.exists():
            metrics |= files.read_json(path)
    files.write_json(out / "metrics.json", metrics)
    return {name: row["verdict"] for name, row in metrics.items() if name.startswith("claim.")}


@contextmanager
def _terminable() -> Iterator[None]:
    """Make a polite kill (SIGTERM) end the kernel too, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
