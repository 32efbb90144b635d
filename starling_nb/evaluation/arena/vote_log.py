"""A file to which lines are added, each on the disk before the next, and never changed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from starling_nb.evaluation import EvaluationError


class VoteLog:
    """JSON lines after a head that says whose they are.

    Args:
        path: the file; made by the first :meth:`append`.
        head: its first line; ``battles`` names what is voted on, ``voter`` who votes.

    ``records`` holds ``(line number, record)`` of the lines after the head. A last line that a crash left half written
    is none, and the next one takes its place.

    Raises:
        EvaluationError: the file cannot be read, has another head, or a line that is not JSON.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path, self.head = path, dict(head)
        with self._told("read"):
            content = path.read_bytes() if path.exists() else b""
        self._size = content.rfind(b"\n") + 1
        self._torn = len(content) - self._size
        lines = enumerate(content[: self._size].split(b"\n")[:-1], 1)
        found = [(number, self._parsed(number, line)) for number, line in lines]
        if found:
            self._check(found[0][1])
        self.records = found[1:]

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
            if isinstance(record, dict):
                return record
        except ValueError:
            pass
        raise EvaluationError(f"{self.path}, line {number}, is no vote: restore the file or move it away")

    def _check(self, head: Mapping[str, Any]) -> None:
        if head == self.head:
            return
        if "arena" not in head:
            raise EvaluationError(f"{self.path} is no file of votes: name another one")
        what = "other battles" if head.get("battles") != self.head["battles"] else f"votes of {head.get('voter')!r}"
        raise EvaluationError(
            f"{self.path} holds {what}: give the prompts, answers, seed and voter that it was begun with, or name "
            "another file"
        )

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line, after the head where the file is new; it is on the disk when this returns.

        Raises:
            EvaluationError: it could not be saved, or another session has changed the file.
        """
        lines = [record] if self._size else [self.head, record]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        with self._told("written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as stream:
                if stream.tell() != self._size + self._torn:
                    raise EvaluationError(f"{self.path} was changed by another session: make this session anew")
                try:
                    if self._torn:
                        stream.truncate(self._size)
                        self._torn = 0
                    if stream.write(text) != len(text):
                        raise OSError("the disk is full")
                    os.fsync(stream.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        stream.truncate(self._size)
                    raise
            if not self._size:
                _settle(self.path.parent)
        self._size += len(text)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EvaluationError(
                f"{self.path} could not be {what} ({error.strerror or error}): free some space or mend its rights, "
                "then go on; what was saved is kept"
            ) from error


def _settle(folder: Path) -> None:
    """Make a new file's name durable; where folders cannot be synchronised, the system does it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
