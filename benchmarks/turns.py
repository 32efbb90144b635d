"""Ways of doing one thing, each in a process of its own and in turn; and children that are killed.

A machine is never equally quiet for long: only ways that took turns in one run can be compared, and the order turns
round from one round to the next, so that no way always comes after the same other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from starling_nb import files


def in_turn(
    module: str,
    ways: Sequence[str],
    arguments: Sequence[str] = (),
    *,
    rounds: int,
    say: Callable[[Any], str],
    once: Collection[str] = (),
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, list[Any]]:
    """What ``python -m module --child WAY *arguments`` prints as its last line, JSON, by way: one result a round.

    Args:
        module: with a command line that knows ``--child``.
        ways: run in this order, in every second round in the opposite one.
        arguments: the rest of the command line.
        rounds: runs of each way.
        say: what is printed of a result.
        once: ways that run in the first round only.
        environments: by way, what is set in the child's environment.

    Raises:
        SystemExit: a child failed; with the end of what it said.
    """
    runs: dict[str, list[Any]] = {way: [] for way in ways}
    for turn in range(rounds):
        for way in ways if turn % 2 == 0 else ways[::-1]:
            if way in once and turn:
                continue
            line = [sys.executable, "-m", module, "--child", way, *arguments]
            env = {**os.environ, **(environments or {}).get(way, {})}
            done = subprocess.run(line, env=env, capture_output=True, text=True, check=False, cwd=files.ROOT)
            if done.returncode:
                sys.exit(f"{way} failed:\n{done.stderr[-3000:]}")
            runs[way].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"{way}: {say(runs[way][-1])}", flush=True)
    return runs


def survives(child: subprocess.Popen[Any], seconds: float) -> bool:
    """Whether a child ends by itself within ``seconds``; it is killed if not.

    Raises:
        SystemExit: it ended by itself, and failed.
    """
    try:
        if child.wait(seconds):
            sys.exit(f"a run failed: {child.args!r}")
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait() == 0
    return True
