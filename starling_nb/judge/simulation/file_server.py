"""The simulated judge's files: what the OpenAI Files protocol uploads, lists, hands out and deletes.

A file lives on disk and never in memory: an upload is written as it comes, form and all, and the file is the
stretch of it between two boundaries of the form.
"""

from __future__ import annotations

import itertools
import mmap
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO

from starling_nb.files import hash_value
from starling_nb.judge.simulation.protocol import Refused, page

LARGEST_FILE = 200 * 2**20  # bytes, as published for the input of a batch
FORM = 64 * 2**10  # bytes that the form around a file may take
PIECE = 2**20  # bytes moved at a time

_count = itertools.count()


def new_id(kind: str) -> str:
    """An id that no server has given before."""
    return kind + hash_value([time.time_ns(), os.getpid(), next(_count)])[:24]


@dataclass(frozen=True)
class Stored:
    """A file: ``length`` bytes of ``path`` from ``start``."""

    id: str
    filename: str
    purpose: str
    created_at: int
    path: Path
    start: int
    length: int

    def open(self) -> BinaryIO:
        """The bytes from the start of the file on; the reader stops after ``length`` of them.

        Raises:
            Refused: the file was deleted.
        """
        try:
            stream = self.path.open("rb")
        except FileNotFoundError as error:
            raise _missing(self.id) from error
        stream.seek(self.start)
        return stream

    def describe(self) -> dict[str, Any]:
        """The file object of the protocol."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.length,
            "created_at": self.created_at,
            "expires_at": None,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class Files:
    """The files of one server, kept in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Stored] = {}
        self._lock = threading.Lock()

    def upload(self, content_type: str, length: int, body: BufferedIOBase) -> dict[str, Any]:
        """Keep the file of a form; all of ``body`` is read, whatever comes of it.

        Raises:
            Refused: the form is too large, or is not ``multipart/form-data`` with ``purpose=batch`` and ``file``.
        """
        name = new_id("file-")
        path = self.folder / name
        too_large = length > LARGEST_FILE + FORM
        with open(os.devnull if too_large else path, "wb") as out:
            while length > 0 and (piece := body.read(min(PIECE, length))):
                out.write(piece)
                length -= len(piece)
        if too_large:
            raise Refused(413, "file_too_large", f"a file may have {LARGEST_FILE} bytes: split it")
        try:
            if length:
                raise Refused(400, "bad_form", "the upload ends early")
            stored = self._read(name, path, content_type)
        except Refused:
            path.unlink()
            raise
        return self._enter(stored)

    def add(self, path: Path, filename: str, purpose: str) -> str:
        """Enter a file that was written into the folder; returns its id."""
        name = new_id("file-")
        stored = Stored(name, filename, purpose, int(time.time()), path, 0, path.stat().st_size)
        return str(self._enter(stored)["id"])

    def get(self, name: str) -> Stored:
        """The file with this id.

        Raises:
            Refused: there is none.
        """
        with self._lock:
            found = self._files.get(name)
        if found is None:
            raise _missing(name)
        return found

    def page(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The files, the newest first unless ``order=asc``, those of one ``purpose`` where it is given."""
        with self._lock:
            rows = [stored.describe() for stored in self._files.values()]
        rows = [row for row in rows if query.get("purpose", row["purpose"]) == row["purpose"]]
        return page(rows if query.get("order") == "asc" else rows[::-1], query, usual=10_000, most=10_000)

    def delete(self, name: str) -> dict[str, Any]:
        """Forget a file.

        Raises:
            Refused: there is none with this id.
        """
        with self._lock:
            stored = self._files.pop(name, None)
        if stored is None:
            raise _missing(name)
        stored.path.unlink()
        return {"id": name, "object": "file", "deleted": True}

    def _enter(self, stored: Stored) -> dict[str, Any]:
        with self._lock:
            self._files[stored.id] = stored
        return stored.describe()

    def _read(self, name: str, path: Path, content_type: str) -> Stored:
        header = Message()
        header["Content-Type"] = content_type
        boundary = header.get_boundary()
        if header.get_content_type() != "multipart/form-data" or not boundary or not path.stat().st_size:
            raise Refused(400, "bad_form", "a file is uploaded as multipart/form-data with purpose and file")
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as form:
            parts = _parts(form, boundary.encode())
            _, start, end = parts.get("purpose", ("", 0, 0))
            purpose = bytes(form[start:end])[:100].decode(errors="replace")
        if "file" not in parts or purpose != "batch":
            raise Refused(400, "bad_form", f"the form needs purpose=batch and file; it has purpose={purpose!r}")
        filename, start, end = parts["file"]
        if end - start > LARGEST_FILE:
            raise Refused(413, "file_too_large", f"a file may have {LARGEST_FILE} bytes: split it")
        return Stored(name, filename, purpose, int(time.time()), path, start, end - start)


def _parts(form: mmap.mmap, boundary: bytes) -> dict[str, tuple[str, int, int]]:
    """Field → file name, start and end of its content."""
    found, at, width = {}, form.find(b"--" + boundary), len(boundary) + 2
    while at >= 0 and form[at + width : at + width + 2] != b"--":
        start = form.find(b"\r\n\r\n", at) + 4
        end = form.find(b"\r\n--" + boundary, start)
        if start < 4 or end < 0:
            raise Refused(400, "bad_form", "a part of the form has no end")
        head = BytesHeaderParser().parsebytes(form[at + width + 2 : start])
        field = head.get_param("name", header="content-disposition")
        found[str(field)] = (head.get_filename() or "upload", start, end)
        at = end + 2
    return found


def _missing(name: str) -> Refused:
    return Refused(404, "not_found", f"no such file: {name}")
