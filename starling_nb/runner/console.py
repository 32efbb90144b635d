"""What the person at the keyboard sees while a stage runs: a live line in a terminal, a plain line now and
then elsewhere.

The same thread that reads the stage's progress file also samples the memory of the kernel and its children.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from starling_nb.progress import Tail, clock

PLAIN_EVERY = 15.0
"""Seconds between two progress lines where there is no terminal."""


class Watch:
    """Shows a running stage; a context manager around its execution.

    Attributes:
        peak_rss: most bytes held by the kernel and its children together, sampled twice a second.
    """

    def __init__(self, stage: str, progress: Path, show: Callable[[str], None] = print) -> None:
        from rich.console import Console

        self.stage, self.peak_rss, self._pid = stage, 0, 0
        self._tail, self._show, self._began = Tail(progress), show, time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch {stage}", daemon=True)
        console = Console()
        self._status: Any = console.status(stage) if console.is_terminal and show is print else None

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self._began

    def kernel(self, pid: int) -> None:
        """The kernel has started as process ``pid``."""
        self._pid = pid

    def __enter__(self) -> Watch:
        if self._status:
            self._status.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._status:
            self._status.stop()

    def _watch(self) -> None:
        shown, said = time.monotonic(), ""
        while not self._stop.wait(0.5):
            self._sample()
            text = self._tail.read() or ""
            if self._status:
                self._status.update(f"{self.stage}  {clock(self.seconds)}  {text}")
            elif text != said and time.monotonic() - shown >= PLAIN_EVERY:
                shown, said = time.monotonic(), text
                self._show(f"{self.stage}  {text}")

    def _sample(self) -> None:
        if not self._pid:
            return
        try:
            kernel = psutil.Process(self._pid)
            family = [kernel, *kernel.children(recursive=True)]
            self.peak_rss = max(self.peak_rss, sum(process.memory_info().rss for process in family))
        except psutil.Error:
            pass
