from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.problems import sandbox, sandbox_child
from starling_nb.evaluation.problems.sandbox import Call, Job, Limits, Result, run, run_all

HASTY = Limits(cpu=1, wall=30.0, memory=256)


def job(body: str, *calls: tuple[str, Any], head: str = "") -> Job:
    """A program of one function ``f`` without arguments, or as ``head`` says."""
    return Job(f"{head}\ndef f():\n    {body}\n", "f", tuple(Call(*call) for call in calls or [("f()", 7)]))


PROGRAMS = {
    "a right value": (job("return 7"), "passed"),
    "a wrong value": (job("return 8"), "wrong"),
    "the second call decides": (Job("def f(x=1):\n    return 7 // x", "f", (Call("f()", 7), Call("f(0)", 1))), "error"),
    "an object that equals everything": (
        job("return Yes()", head="class Yes:\n    def __eq__(self, other):\n        return True"),
        "wrong",
    ),
    "a printed pass": (job("print('passed')\n    print('[\"value\", \"7\"]')\n    return 0"), "wrong"),
    "an early exit": (job("import os\n    os._exit(0)"), "died"),
    "an exit at import": (job("return 7", head="import os\nos._exit(0)"), "died"),
    "a polite exit": (job("raise SystemExit(0)"), "error"),
    "an exit that imitates a limit": (job("import os\n    os._exit(3)"), "died"),
    "a loop": (job("while True: pass"), "timeout"),
    "too much memory": (job("return len(bytearray(1 << 31))"), "error"),
    "another name": (Job("def g():\n    return 7", "f", (Call("f()", 7),)), "error"),
    "no Python": (Job("def f(:\n    return 7", "f", (Call("f()", 7),)), "error"),
    "no bytes": (Job("f = \0 \ud800", "f", (Call("f()", 7),)), "error"),
    "no literal": (job("return object()"), "wrong"),
    "a flood": (
        job(
            "import os\n    for fd in range(3, 9):\n        try: os.write(fd, b'x' * 9999)\n"
            "        except OSError: pass\n    return 7"
        ),
        "died",
    ),
    "a package": (job("import numpy\n    return 7"), "error"),
    "an order of a set": (
        job("return list({'b', 'a', 'c'})", ("sorted(f())", ["a", "b", "c"]), ("f() == f()", True)),
        "passed",
    ),
    "a large file": (job("open('x', 'wb').write(bytes(1 << 22))\n    return 7"), "error"),
    "what it prints and reads goes nowhere": (
        job("print('x' * 99999)\n    import sys\n    return 7 + len(sys.stdin.read())"),
        "passed",
    ),
}


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    return dict(zip(PROGRAMS, run_all([one for one, _ in PROGRAMS.values()], HASTY), strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_cannot_but_do_what_its_calls_ask(name: str, results: dict[str, Result]) -> None:
    assert results[name].outcome == PROGRAMS[name][1], results[name].detail


def test_a_detail_says_what_was_seen(results: dict[str, Result]) -> None:
    assert results["a wrong value"].detail == "f() gave 8, not 7"
    assert results["the second call decides"].detail.startswith("ZeroDivisionError")
    assert results["a loop"].detail == "no answer to f()"


def test_a_child_has_no_environment_no_files_and_no_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARLING_SECRET", "x")
    reads, leads = sandbox._read, []

    def read(child: subprocess.Popen[bytes], wall: float) -> tuple[bytes, bool]:
        leads.append(
            os.getsid(child.pid) == child.pid
        )  # asked from here: a child in a tree of its own may see no number
        return reads(child, wall)

    monkeypatch.setattr(sandbox, "_read", read)
    with open(os.devnull) as kept:
        os.set_inheritable(kept.fileno(), True)
        seen = run(
            job(
                "return [dict(os.environ), sorted(os.listdir('.')), sys.flags.no_site, closed()]",
                ("f()[0].keys() - {'LC_CTYPE'}", {"PYTHONHASHSEED"}),
                ("f()[1]", ["calls.py", "candidate.py"]),
                ("f()[2]", 1),
                ("f()[3]", True),
                head="import os, sys\n\n\ndef closed():\n    try:\n"
                f"        return os.fstat({kept.fileno()}) is None\n    except OSError:\n        return True\n",
            )
        )
    assert seen == Result("passed")
    assert leads == [True]


def test_a_sleeper_is_stopped_by_the_clock() -> None:
    assert run(job("import time\n    time.sleep(1000)"), Limits(wall=0.1)).outcome == "timeout"


def test_a_descendant_does_not_keep_the_child_waiting() -> None:
    forks = "if os.fork() == 0:\n        time.sleep(1000)\n    return 7"
    # It holds no end of the pipe and is killed with its group, or it could not be made.
    assert run(job(forks, head="import os, time"), Limits(wall=1000.0)).outcome in ("passed", "error")


@pytest.fixture(scope="module")
def _namespaces() -> None:
    if run(job("return os.getpid()", ("f()", 2), head="import os")).outcome != "passed":
        pytest.skip("needs a kernel that lets an ordinary user make namespaces")


@pytest.mark.usefixtures("_namespaces")
def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach = f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 30).close()"
        assert run(job(f"{reach}\n    return 7", head="import socket")).outcome == "error"
        with socket.create_connection(server.getsockname()):
            pass  # from here it can be reached


HOLDS = """import fcntl, os, time

def hold():
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        fcntl.flock(os.open({path!r}, os.O_RDWR), fcntl.LOCK_EX)
        os.write(writing, b"x")
        time.sleep(1000)
    return os.read(reading, 1)
"""


@pytest.mark.usefixtures("_namespaces")
def test_a_descendant_in_a_session_of_its_own_ends_with_the_child(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    found = run(job("return hold()", ("f()", b"x"), head=HOLDS.format(path=str(path))))
    assert found.outcome == "passed" or "BlockingIOError" in found.detail  # no process at all, but for root
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_child_that_does_not_start_is_nobodys_wrong_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "child.py"
    broken.write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(sandbox, "CHILD", broken)
    with pytest.raises(EvaluationError, match=r"did not start \(exit status 3\)"):
        run_all([job("return 7")] * 3)


def test_results_come_in_order_whatever_the_workers() -> None:
    jobs = [job(f"return {n}", ("f()", n % 2)) for n in range(4)]
    told: list[tuple[int, int]] = []
    threads = threading.active_count()
    found = run_all(jobs, workers=3, progress=lambda done, n: told.append((done, n)))
    assert [one.outcome for one in found] == ["passed", "passed", "wrong", "wrong"]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert threading.active_count() == threads
    assert run_all([]) == []


WORDS = st.text(max_size=5)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS | st.binary(max_size=5) | FLOATS,
    lambda one: st.lists(one) | st.tuples(one, one) | st.dictionaries(WORDS, one) | st.sets(st.integers()),
    max_leaves=5,
)


@settings(deadline=None, max_examples=30)
@given(LITERALS)
def test_plain_values_travel_whole(value: object) -> None:
    assert sandbox_child.plain(value) == value
    assert sandbox._equals(repr(sandbox_child.plain(value)), value)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=30) | st.sampled_from(["(" * 5000, "-" * 9000 + "1", "1e999", "__import__('os')", "[7" * 3000]))
def test_no_text_but_the_literal_equals(text: str) -> None:
    assert not sandbox._equals(text, ("right", 7.5))


LINES = st.tuples(st.sampled_from(["ready", "value", "error"]), st.text(st.characters(codec="ascii"), max_size=5))


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=40), st.lists(LINES, max_size=3))
def test_lines_are_read_up_to_the_first_that_is_none(tail: bytes, lines: list[tuple[str, str]]) -> None:
    lines = [(kind, text.replace("\n", " ")) for kind, text in lines]
    told = b"".join(f"{kind} {text}\n".encode() for kind, text in lines)
    assert sandbox._lines(told + b"{}\n" + tail) == lines
