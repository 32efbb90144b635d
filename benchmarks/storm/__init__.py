"""The storm judge: a fast chat-completions server on the loopback that answers ranking requests, rightly and wrongly.

It has no latency of its own, counts every request and reply by content, and fails in every way that
:mod:`benchmarks.storm.replies` names, at rates that are set over HTTP:

    with storm.Process() as server:                    # or storm.Thread()
        server.faults(rates={"http_500": 0.1}, seed=1)
        ...                                            # ask server.url
        assert set(server.counts()["answered"].values()) == {1}

``python -m benchmarks.storm [port]`` serves until it is ended, and prints its URL first.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from benchmarks.storm.replies import KINDS, Planned, content_of, letters_of, ranking_of, reply_for
from benchmarks.storm.server import MODEL, run

ROOT = Path(__file__).resolve().parents[2]
__all__ = ["KINDS", "MODEL", "Planned", "Process", "Thread", "content_of", "letters_of", "ranking_of", "reply_for"]


class _Storm:
    """What a test does with a server, wherever it runs."""

    url: str

    def counts(self) -> dict[str, Any]:
        """Requests ``asked``, replies ``answered`` and ``valid`` by content; ``kinds``, ``over_limit`` and more."""
        return dict(self._call("/counts", None))

    def faults(self, **settings: Any) -> None:
        """Set ``rates``, ``seed``, ``limits`` ({requests, tokens, window}), ``hang``, ``drip``, ``latency``, ``pause``.

        What is not named goes back to its default; counts start anew unless ``clear=False``.
        """
        self._call("/faults", json.dumps(settings).encode())

    def _call(self, path: str, body: bytes | None) -> Any:
        place = urlsplit(self.url)
        with build_opener(ProxyHandler({})).open(Request(f"http://{place.netloc}{path}", body), timeout=30) as response:
            return json.loads(response.read())


class Thread(_Storm):
    """The server in a thread of this process."""

    def __enter__(self) -> Thread:
        ready = threading.Event()

        def started(url: str) -> None:
            self.url = url
            ready.set()

        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await run(0, started, self._stop)

        self._thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


class Process(_Storm):
    """The server in a process, and so on a core, of its own."""

    def __enter__(self) -> Process:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.storm"], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self._child.stdout is not None
        self.url = self._child.stdout.readline().strip()
        assert self.url.startswith("http"), "it did not start: run python -m benchmarks.storm to see why"
        return self

    def __exit__(self, *exception: object) -> None:
        self._child.terminate()
        self._child.communicate()
