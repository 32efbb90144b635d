"""The ledger: every reply that was paid for, one JSON line each, appended and never rewritten.

A line's key is a hash of what was asked (model, messages, parameters, sample index) and of nothing else, so
that a run that was killed, or repeated with one request changed, pays only for what is new. Failures are not
entered. Neither keys nor headers are ever written. Several judges and processes may share one ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from starling_nb.errors import StarlingError
from starling_nb.files import hash_value

try:
    import fcntl
except ImportError:  # no advisory locks on this system: one process at a time
    fcntl = None  # type: ignore[assignment]

Record = dict[str, Any]


def key(model: str, messages: Sequence[Mapping[str, str]], params: Mapping[str, Any], sample: int) -> str:
    """Name of one reply: hex SHA-256 of the model, the messages, the parameters and the sample index."""
    return hash_value([model, [dict(message) for message in messages], dict(params), sample])


class Ledger:
    """Replies by key, kept in ``path`` (JSON lines), or in memory where ``path`` is None.

    Only the place of each line is held in memory; replies are read from the file when asked for. A last line
    that a kill has torn is cut off when the ledger is next opened.

    Raises:
        StarlingError: the file cannot be read or written, or a line that is not the last is damaged.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._memory: dict[str, Record] = {}
        self._places: dict[str, int] = {}
        self._end = 0
        self._lines = 0
        self.refresh()

    def __len__(self) -> int:
        return len(self._memory) if self.path is None else len(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._memory or name in self._places

    def get(self, name: str) -> Record | None:
        """The record entered under ``name``, or None."""
        if self.path is None:
            return self._memory.get(name)
        if name not in self._places:
            return None
        with self._opened() as stream:
            stream.seek(self._places[name])
            record = self._decode(stream.readline())
        if record["key"] != name:
            raise StarlingError(f"{self.path} was rewritten while a judge was using it: run again")
        return record

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Enter ``record`` under ``name``; it is in the file when this returns."""
        if self.path is None:
            self._memory[name] = dict(record)
            return
        line = json.dumps({"key": name, **record}, sort_keys=True).encode() + b"\n"
        with self._opened() as stream:
            self._catch_up(stream)
            stream.seek(self._end)
            stream.write(line)
            stream.flush()
            self._note(name, len(line))

    def refresh(self) -> None:
        """Learn of lines that others have appended since; mend a torn last line."""
        if self.path is not None and (self._end or self.path.exists()):
            with self._opened() as stream:
                self._catch_up(stream)

    def _catch_up(self, stream: BinaryIO) -> None:
        size = stream.seek(0, 2)
        if size < self._end:  # the file was removed or cut: start over
            self._places, self._end, self._lines = {}, 0, 0
        stream.seek(self._end)
        while self._end < size:
            line = stream.readline()
            if not line.endswith(b"\n"):
                stream.truncate(self._end)
                return
            self._note(self._decode(line)["key"], len(line))

    def _note(self, name: str, length: int) -> None:
        self._places.setdefault(name, self._end)
        self._end += length
        self._lines += 1

    def _decode(self, line: bytes) -> Record:
        try:
            record = json.loads(line)
            if isinstance(record["key"], str) and isinstance(record["reply"], str):
                return dict(record)
        except (ValueError, KeyError, TypeError):
            pass
        raise StarlingError(
            f"{self.path}, line {self._lines + 1}, is not a reply: remove that line (the others stay paid "
            "for), or move the file away to ask everything again"
        )

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file, held by this process alone for a moment."""
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            with self.path.open("r+b") as stream:
                if fcntl is not None:
                    fcntl.flock(stream, fcntl.LOCK_EX)
                yield stream
        except OSError as error:
            raise StarlingError(
                f"the judge's ledger {self.path} cannot be read or written ({error.strerror or error}): free "
                "some space or mend its permissions, then run again; nothing in it is paid for twice"
            ) from error
