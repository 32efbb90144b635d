"""Labelling killed at random moments: the files must be those of an undisturbed run, and nothing is paid for twice.

    python -m benchmarks.kills [--kills 50] [--requests 300]

A child process labels; this process is its judge, notes every request it is asked, and sends the child SIGKILL. After
each kill the ledger says which replies were committed: none of them may ever be asked for again. Half of the kills
strike the asynchronous path, half the Batch API path. When the child gets to its end alive, its files are compared
byte by byte with those of the undisturbed run, and it begins anew with an empty ledger.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import records, storm, synthetic, turns
from starling_nb import files
from starling_nb.judge import Batches, Judge
from starling_nb.judge.ledger import Ledger, key
from starling_nb.judge.simulation import BatchRules, serve
from starling_nb.nectar import labelling

FILES = ("nectar.parquet", "rankings.parquet")
LATENCY = 0.01  # seconds a reply takes


class Listener:
    """A judge that answers every ranking request in its own way and notes the ledger's key of each."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def models(self) -> list[str]:
        return [storm.MODEL]

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a chat-completions request."""
        params = {name: value for name, value in body.items() if name not in ("model", "messages")}
        with self._lock:
            self.asked.append(key(body["model"], body["messages"], params, 0))
        time.sleep(LATENCY)
        planned = storm.reply_for(storm.content_of(body["messages"]), 1, 0, {}, storm.letters_of(body["messages"]))
        choice = {"index": 0, "message": {"role": "assistant", "content": planned.text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        whole = {"id": "x", "object": "chat.completion", "created": 0, "model": storm.MODEL}
        return {**whole, "choices": [choice], "usage": usage}


def run(path: str, kills: int, n: int, seed: int = 0) -> dict[str, Any]:
    """Label ``n`` prompts again and again under ``kills`` kills; ``path`` is ``async`` or ``batch``."""
    listener, draw = Listener(), files.rng(seed, "kills", path)
    stop, url = serve(listener, rules=BatchRules(pause=0.05))
    struck = repeated = finished = 0
    committed: set[str] = set()
    same = True
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            began = time.monotonic()
            with _child(url, folder / "calm", path, n) as child:
                assert child.wait() == 0
            longest = time.monotonic() - began
            while struck < kills:
                before = len(listener.asked)
                with _child(url, folder / "out", path, n) as child:
                    alive = turns.survives(child, float(draw.uniform(0.3, 1.0)) * longest)
                struck += not alive
                repeated += sum(asked in committed for asked in listener.asked[before:])
                committed = _committed(folder / "out" / "ledger.sqlite")
                if alive or struck == kills:
                    if not alive:  # the last kill is followed by a run to the end
                        before = len(listener.asked)
                        with _child(url, folder / "out", path, n) as child:
                            assert child.wait() == 0
                        repeated += sum(asked in committed for asked in listener.asked[before:])
                    same &= all(
                        (folder / "out" / file).read_bytes() == (folder / "calm" / file).read_bytes() for file in FILES
                    )
                    finished += 1
                    shutil.rmtree(folder / "out")
                    committed = set()
    finally:
        stop()
    return {"kills": struck, "runs_to_the_end": finished, "asked_again": repeated, "same_files": same}


@contextmanager
def _child(url: str, out: Path, path: str, n: int) -> Iterator[subprocess.Popen[bytes]]:
    line = [sys.executable, "-m", "benchmarks.kills", "--child", url, str(out), path, "--requests", str(n)]
    child = subprocess.Popen(line, cwd=files.ROOT, stdout=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def _committed(path: Path) -> set[str]:
    if not path.exists():
        return set()
    ledger = Ledger(path)
    found = {row[0].hex() for row in ledger.select("SELECT key FROM attempts WHERE outcome = 'reply'")}
    ledger.close()
    return found


def label(url: str, out: Path, path: str, n: int) -> None:
    """What the child does."""
    batch = Batches(size=max(1, n // 4), poll=0.02) if path == "batch" else None
    judge = Judge(storm.MODEL, url, ledger=out / "ledger.sqlite", batch=batch, concurrency=4)
    labelling.label(judge, synthetic.Many(n), labelling.Plan(), out)
    judge.close()


def main() -> None:
    """Read the command line; label as a child, or kill children and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--child", nargs=3, metavar=("URL", "OUT", "PATH"))
    asked = parser.parse_args()
    if asked.child:
        label(asked.child[0], Path(asked.child[1]), asked.child[2], asked.requests)
        return
    found = {path: run(path, asked.kills // 2, asked.requests) for path in ("async", "batch")}
    records.keep("kills.json", {"requests": asked.requests, **found})


if __name__ == "__main__":
    main()
