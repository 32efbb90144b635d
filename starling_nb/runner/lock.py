"""One run at a time in a folder, and no kernel left behind by a run that was killed.

A process is known by its number *and* its start time, so a number that the system has given to somebody else
is never mistaken for the old run, and never killed.
"""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from starling_nb import files
from starling_nb.errors import StarlingError

LOCK, KERNEL = ".lock", ".kernel.json"
_SLACK = 2.0
"""Seconds by which two readings of one process's start time may differ (the clock may be set in between)."""


class LockedError(StarlingError):
    """Another run is at work in the folder."""


def identity(pid: int) -> dict[str, Any]:
    """What tells a process from any other: number, start time (seconds since 1970), host and command."""
    process = psutil.Process(pid)
    return {
        "pid": pid,
        "started": process.create_time(),
        "host": platform.node(),
        "command": process.cmdline(),
    }


def living(known: dict[str, Any]) -> psutil.Process | None:
    """The process that ``known`` describes, or None when it has ended."""
    try:
        process = psutil.Process(known["pid"])
        same = abs(process.create_time() - known["started"]) < _SLACK
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, KeyError, TypeError):
        return None


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the run folder; on entry, end a kernel that a killed run has left.

    Raises:
        LockedError: another run holds it.
        StarlingError: the folder cannot be written.
    """
    path = out / LOCK
    mine = identity(os.getpid())
    try:
        out.mkdir(parents=True, exist_ok=True)
        while not _create(path, mine):
            _clear_stale(path)
    except OSError as error:
        raise StarlingError(
            f"cannot write in {out}: {error.strerror or error}; choose another folder with --out"
        ) from error
    try:
        end_orphan(out)
        yield
    finally:
        path.unlink(missing_ok=True)


def _create(path: Path, mine: dict[str, Any]) -> bool:
    """Create the lock whole (written aside, then linked): False when there is one already."""
    aside = path.with_name(f".{uuid.uuid4().hex}.lock")
    aside.write_text(json.dumps(mine), encoding="utf-8")
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def _clear_stale(path: Path) -> None:
    """Remove the lock of a run that has ended.

    Two runs may find the same stale lock; the one that comes second would move away the fresh lock of the
    first, so what was moved is looked at again and put back if its owner lives.
    """
    if _owner(path) is None:
        return
    aside = path.with_name(f".{uuid.uuid4().hex}.stale")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    try:
        _owner(aside)
    except LockedError:
        os.rename(aside, path)
        raise
    aside.unlink(missing_ok=True)


def _owner(path: Path) -> dict[str, Any] | None:
    """Who holds the lock, if that process has ended; None when there is no lock.

    Raises:
        LockedError: the process lives, or runs on another machine.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    if not isinstance(known, dict):
        return {}
    if known.get("host") not in (None, platform.node()):
        raise LockedError(f"a run on {known['host']} holds {path.parent}; if it has ended, delete {path}")
    if living(known):
        raise LockedError(
            f"another run (process {known['pid']}) is at work in {path.parent}: wait, or choose another --out"
        )
    return known


def note_kernel(out: Path, pid: int, stage: str) -> None:
    """Write down the running kernel, for the run that comes after a kill."""
    files.write_json(out / KERNEL, identity(pid) | {"stage": stage})


def forget_kernel(out: Path) -> None:
    """The kernel has ended."""
    (out / KERNEL).unlink(missing_ok=True)


def end_orphan(out: Path) -> int | None:
    """End the kernel that a killed run left, with its children; its process number, or None."""
    path = out / KERNEL
    if not path.exists():
        return None
    try:
        known = files.read_json(path)
    except StarlingError:
        known = {}
    process = living(known)
    ended = None
    if process is not None and known.get("host") == platform.node() and _is_kernel(process, known):
        end_tree(process)
        ended = process.pid
    path.unlink(missing_ok=True)
    return ended


def _is_kernel(process: psutil.Process, known: dict[str, Any]) -> bool:
    try:
        return process.cmdline() == known.get("command") and "ipykernel_launcher" in process.cmdline()
    except psutil.Error:
        return False


def end_tree(process: psutil.Process) -> None:
    """Kill a process and all its children, and wait for them."""
    try:
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)
