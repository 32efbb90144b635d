"""Run a program that nobody has read, in a child process, and hold what it returns against what is right.

The child is a Python of its own without site packages, in a temporary folder of its own, with an environment of one
variable and no open files but one pipe, in a session of its own that is killed as a whole. CPU seconds, memory, file
size, open files and new processes are limited. The right answers never leave this process: the child is given calls and
sends back values, so that a program can neither print a pass nor exit with one, nor return an object that claims to
equal everything.

**What this does not confine.** A program may read every file that this user may read (the file with the right answers
too, if it knows where to look), and write where this user may write, 1 MB a file at most. On Linux it has no network
and its descendants die with it, but only where the kernel lets an ordinary user make namespaces; elsewhere it has the
network, and a descendant that opens a session of its own outlives the child. The limit on processes does not bind
root, and macOS has none on memory. The standard library has no more to offer: run answers of a model that you have a
reason to distrust inside a container or a virtual machine.
"""

from __future__ import annotations

import ast
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from starling_nb.evaluation import EvaluationError

Outcome = Literal["passed", "wrong", "error", "timeout", "died"]
CHILD = Path(__file__).with_name("sandbox_child.py")
START = 120.0
"""Seconds of wall clock in which a child must have started, however busy the machine is."""
MOST = 1 << 20
"""Bytes that are read from a child."""
KILLED = (
    tuple(code for number in (signal.SIGXCPU, signal.SIGKILL) for code in (-number, 128 + number))
    if os.name == "posix"
    else ()
)
"""Exit statuses of a child that the limit of CPU seconds ended, with and without a process between."""


@dataclass(frozen=True)
class Limits:
    """Of one program: CPU seconds (all its calls together), seconds of wall clock, address space in MB."""

    cpu: int = 4
    wall: float = 60.0
    memory: int = 512


@dataclass(frozen=True)
class Call:
    """An expression that calls the program's function, and the value it should have."""

    expression: str
    expected: Any


@dataclass(frozen=True)
class Job:
    """A program, the name of the function it must define, and the calls to make."""

    program: str
    function: str
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Result:
    """How a program did, and what the first call that failed gave: ``timeout`` by CPU or wall clock; ``died`` where it
    ended before its last call."""

    outcome: Outcome
    detail: str = ""


def run_all(
    jobs: Sequence[Job],
    limits: Limits | None = None,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Run programs, ``workers`` at a time (default one a core), and return their results in the given order.

    ``progress`` is called with (programs done, programs).

    Raises:
        EvaluationError: as :func:`run`.
    """
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        waiting = [pool.submit(run, job, limits) for job in jobs]
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                future.result()
                if progress is not None:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in waiting]


def run(job: Job, limits: Limits | None = None) -> Result:
    """Run one program.

    Raises:
        EvaluationError: the system has no such limits, or a child cannot be started: no failure of the program.
    """
    if os.name != "posix":
        raise EvaluationError("programs are only run where processes can be limited: use Linux or macOS")
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="starling-nb-", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "candidate.py").write_text(job.program, encoding="utf-8", errors="replace")
        calls = "".join(f"    lambda: {call.expression},\n" for call in job.calls)
        (Path(folder) / "calls.py").write_text(f"from candidate import {job.function}\n\nCALLS = [\n{calls}]\n")
        told, late, code = _child(folder, limits)
    lines = _lines(told)
    if lines[:1] != [("ready", "")]:
        raise EvaluationError(
            f"a child process to run programs in did not start (exit status {code}): look for free memory, and "
            f"whether {sys.executable} runs"
        )
    return _judged(job.calls, lines[1:], late or code in KILLED)


def _child(folder: str, limits: Limits) -> tuple[bytes, bool, int]:
    """What a child says, whether it was too slow, and its exit status."""
    # -P -s -S and an environment of one word isolate as -I does, which would leave the order of sets to chance.
    command = [sys.executable, "-P", "-s", "-S", "-B", str(CHILD), str(limits.cpu), str(limits.memory)]
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    try:
        child = subprocess.Popen(command, cwd=folder, env={"PYTHONHASHSEED": "0"}, start_new_session=True, **quiet)
    except OSError as error:
        raise EvaluationError(f"no child process to run programs in could be started: {error}") from error
    with child:
        try:
            told, late = _read(child, limits.wall)
        finally:
            # Before it is waited for: until then its number cannot be another process's.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
    return told, late, child.returncode


def _read(child: subprocess.Popen[bytes], wall: float) -> tuple[bytes, bool]:
    """Everything up to the end or :data:`MOST` bytes, and whether time ran out; ``wall`` counts from the first line."""
    assert child.stdout is not None
    told, end = b"", time.monotonic() + START
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while len(told) < MOST:
            if not selector.select(max(0.0, end - time.monotonic())):
                return told, True
            part = os.read(child.stdout.fileno(), 1 << 16)
            if not part:
                break
            if b"\n" not in told and b"\n" in part:
                end = time.monotonic() + wall
            told += part
    return told, False


def _lines(told: bytes) -> list[tuple[str, str]]:
    """The whole lines as kind and text, up to the first that is neither: a program may write there too."""
    lines = []
    for line in told.split(b"\n")[:-1]:
        kind, space, text = line.partition(b" ")
        if not space or kind not in (b"ready", b"value", b"error"):
            break
        lines.append((kind.decode(), text.decode("utf-8", "replace")))
    return lines


def _judged(calls: Sequence[Call], lines: Sequence[tuple[str, str]], late: bool) -> Result:
    """The first call that failed decides."""
    for number, call in enumerate(calls):
        match lines[number] if number < len(lines) else None:
            case ("value", text) if _equals(text, call.expected):
                continue
            case ("value", text):
                return Result("wrong", f"{call.expression} gave {text[:80]}, not {call.expected!r}")
            case ("error", what):
                return Result("error", what[:200])
            case _:
                what = f"no answer to {call.expression}"
                return Result("timeout", what) if late else Result("died", what)
    return Result("passed")


def _equals(text: str, expected: Any) -> bool:
    """Whether a literal has this value; what is no literal has none."""
    try:
        return bool(ast.literal_eval(text) == expected)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
