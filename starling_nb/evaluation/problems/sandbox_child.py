"""What runs in the child process of :mod:`~.problems.sandbox`: a program that nobody has read, and calls.

Run as a script by a Python without site packages, in a folder with ``candidate.py`` (the program) and ``calls.py``
(``CALLS``, functions without arguments). Arguments: CPU seconds, megabytes. It writes lines to what was its standard
output: ``ready``, then for each call ``value`` and its ``repr``, or ``error`` and what went wrong. It never
learns what would be right. It imports as little as can be: every module costs each program milliseconds.
"""

from __future__ import annotations

import os
import resource
import sys

NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000  # CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET of Linux
FILE_BYTES = 1 << 20
LONGEST = 20_000  # characters of a value or an error
PLAIN = (bool, int, float, complex, str, bytes)


def alone() -> None:
    """Leave the network and the process tree behind where the kernel lets (Linux), and die with all descendants."""
    try:
        import ctypes

        refused = ctypes.CDLL(None).unshare(NAMESPACES)
    except (ImportError, AttributeError, OSError, TypeError):
        return
    if refused:
        return
    for _ in range(2):  # the first process of the new tree, with which all others end, and the one that works
        if child := os.fork():
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os._exit(code if code >= 0 else 128 - code)


def limit(seconds: int, megabytes: int) -> None:
    """Hard limits, which the program cannot lift again."""
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_NPROC, 0),
    ):
        now = resource.getrlimit(what)[1]
        most = most if now == resource.RLIM_INFINITY else min(most, now)
        try:  # noqa: SIM105
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError):
            pass  # macOS knows no limit of the address space


def plain(value: object) -> object:
    """The value in types that have a literal: a Counter becomes a dict, a named tuple a tuple."""
    for kind in PLAIN:
        if isinstance(value, kind):
            return kind(value)  # type: ignore[arg-type]
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    for kinds, made in (((list,), list), ((tuple,), tuple), ((set, frozenset), set)):
        if isinstance(value, kinds):
            return made(plain(one) for one in value)
    return value


def main() -> None:
    """Say ready, import the program, make the calls."""
    channel, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    alone()
    limit(int(sys.argv[1]), int(sys.argv[2]))

    def tell(kind: str, what: str = "") -> None:
        text = what[:LONGEST].replace("\n", " ")  # no literal's repr has a line break
        os.write(channel, f"{kind} {text}\n".encode("utf-8", "backslashreplace"))

    tell("ready")
    sys.path.insert(0, os.getcwd())
    try:
        from calls import CALLS
    except BaseException as error:  # whatever the program does, SystemExit too, is its own failure
        tell("error", f"{type(error).__name__}: {error}")
        os._exit(0)
    for call in CALLS:
        try:
            tell("value", repr(plain(call())))
        except BaseException as error:
            tell("error", f"{type(error).__name__}: {error}")
    os._exit(0)


if __name__ == "__main__":
    main()
