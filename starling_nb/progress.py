"""One way to say how far the work is, in a terminal, in JupyterLab and in a batch run.

Library code calls :func:`track` or :func:`report` and never a progress bar of its own. In a batch run the
lines go to a small file that the runner reads and prints; in a notebook or a terminal a tqdm bar is drawn, as text: in
an export, where no widget lives, it stands as it last stood.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from operator import length_hint
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

HEADLESS = "STARLING_NB_HEADLESS"
FILE = "STARLING_NB_PROGRESS"
INTERVAL = 0.5
"""Seconds between two written lines of one task."""

_written: dict[str, float] = {}
_bars: dict[str, Any] = {}


def headless() -> bool:
    """True in a batch run, where nobody watches the notebook itself."""
    return os.environ.get(HEADLESS, "") not in ("", "0")


def watched() -> bool:
    """Whether this is a notebook that somebody looks at: a kernel, and no batch run."""
    if headless():
        return False
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def report(step: int, total: int | None, desc: str = "", **rates: float) -> None:
    """Say that ``step`` of ``total`` is done; ``rates`` are numbers to show beside it
    (``tokens_per_s=240.0``).

    Cheap enough for every step: at most two lines a second are written for one ``desc``, and always the last.
    """
    finished = total is not None and step >= total
    if not headless():
        _draw(step, total, desc, finished, rates)
        return
    now = time.monotonic()
    if finished or now - _written.get(desc, -INTERVAL) >= INTERVAL:
        _written[desc] = now
        _append({"time": time.time(), "desc": desc, "step": step, "total": total, "rates": rates})


def track(iterable: Iterable[T], desc: str, total: int | None = None, printed: bool = True) -> Generator[T, None, None]:
    """Yield the items of ``iterable`` and report each; a batch run ends with one printed line, if that is wanted.

    ``total`` is the iterable's own length, or its estimate of it, by default.
    """
    total = total or length_hint(iterable) or None
    started, step = time.monotonic(), 0
    try:
        for step, item in enumerate(iterable, 1):
            yield item
            report(step, total, desc)
        if step != total:
            report(step, step, desc)
    finally:
        abandon(desc)
    if headless() and printed:
        print(f"{desc}: {step}/{step if total is None else total} in {time.monotonic() - started:.1f} s")


def named(desc: str) -> Callable[[int, int, dict[str, float]], None]:
    """A callback ``(step, total, rates)`` that reports under one name."""
    return lambda step, total, rates: report(
        step, total, desc, **{name: value for name, value in rates.items() if name not in ("step", "total", "desc")}
    )


def sampling(total: int, desc: str) -> Callable[[int, int], None]:
    """A callback ``(sampled tokens, finished answers)`` that reports answers and tokens a second under one name."""
    began = time.monotonic()
    return lambda tokens, done: report(done, total, desc, tokens_per_s=tokens / max(1e-3, time.monotonic() - began))


def counter(total: int, desc: str) -> Callable[[object], None]:
    """A callback that counts how often it is called, up to ``total``."""
    done = itertools.count(1)
    return lambda _: report(next(done), total, desc)


def _append(record: dict[str, Any]) -> None:
    path = os.environ.get(FILE)
    if path:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")


def _draw(step: int, total: int | None, desc: str, finished: bool, rates: dict[str, float]) -> None:
    bar = _bars.get(desc)
    if bar is None or bar.total != total or bar.n > step:
        bar = _bars[desc] = _bar(total, desc)
    bar.set_postfix({name: f"{value:.4g}" for name, value in rates.items()}, refresh=False)
    bar.update(step - bar.n)
    if finished:
        bar.close()
        del _bars[desc]


def _bar(total: int | None, desc: str) -> Any:
    from tqdm.std import tqdm

    if not watched():
        return tqdm(total=total, desc=desc or None)
    from IPython.display import display

    class Bar(tqdm):
        """Drawn anew in one place of the cell's output."""

        @staticmethod
        def status_printer(file: Any) -> Callable[[str], None]:
            handle = display({"text/plain": ""}, raw=True, display_id=True)
            return lambda text: handle.update({"text/plain": text}, raw=True)

    return Bar(total=total, desc=desc or None, file=io.StringIO())


def abandon(desc: str) -> None:
    """Close the bar of work that came to an early end; nothing is done where there is none."""
    if (bar := _bars.pop(desc, None)) is not None:
        bar.close()


@dataclass
class Tail:
    """Reads the progress file of a running stage, as far as it is written."""

    path: Path
    _offset: int = 0
    _first: dict[str, tuple[float, int]] = field(default_factory=dict)
    _latest: dict[str, Any] | None = None

    def new(self) -> list[dict[str, Any]]:
        """The records (``desc``, ``step``, ``total``, ``rates``) that were written since the last look."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as stream:
            stream.seek(self._offset)
            block = stream.read()
        whole = block[: block.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):  # two processes may have written into one line
                found.append(json.loads(line))
        return found

    def read(self) -> str | None:
        """The newest line as text (``sampling 120/400 30 % · 240 tokens/s · 1:23 left``), or None."""
        for record in self.new():
            self._take(record)
        return self._text(self._latest) if self._latest else None

    def _take(self, record: dict[str, Any]) -> None:
        desc, step = record["desc"], record["step"]
        if desc not in self._first or step < self._first[desc][1]:
            self._first[desc] = (record["time"], step)
        self._latest = record

    def _text(self, record: dict[str, Any]) -> str:
        step, total = record["step"], record["total"]
        parts = [f"{record['desc']} {step:,}".strip()]
        if total:
            parts[0] += f"/{total:,} {100 * step / total:.0f} %"
        parts += [_rate(name, value) for name, value in record["rates"].items()]
        began, first = self._first[record["desc"]]
        if total and first < step < total:
            parts.append(f"{clock((record['time'] - began) / (step - first) * (total - step))} left")
        return " · ".join(parts)


def _rate(name: str, value: float) -> str:
    number = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{number} {name.replace('_per_', '/').replace('_', ' ')}"


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
