"""Files that are never half-written, their hashes, and randomness keyed by name.

Every file of a run is written beside its final place and renamed into it, so that a crash or a full disk leaves
either the old file or none.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from starling_nb.errors import StarlingError

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"


def cache_dir() -> Path:
    """Folder for downloaded and converted models: ``STARLING_NB_CACHE``, else ``~/.cache/starling_nb``."""
    return Path(os.environ.get("STARLING_NB_CACHE") or Path.home() / ".cache" / "starling_nb")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place when the block ends without an error.

    Raises:
        StarlingError: the folder cannot be written or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise StarlingError(
            f"cannot write {path}: {error.strerror or error}. Free some space, check the permissions "
            "or choose another folder, then run the same command again: finished work is kept."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text to ``path`` atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys: equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StarlingError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StarlingError(f"{path} is missing: restore it (git checkout) or rerun the stage that makes it") from error
    except (ValueError, OSError) as error:
        raise StarlingError(f"{path} cannot be read as JSON ({error}): delete it and run again") from error


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line as they come, atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def read_jsonl(path: Path) -> list[Any]:
    """Read one JSON value a line, unzipped where the name ends with ``.gz``; empty lines are passed over.

    Raises:
        StarlingError: the file is missing, or a line is not JSON (the message names the line).
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode("utf-8").split("\n")  # not splitlines: a JSON text may hold other line separators
    except FileNotFoundError as error:
        raise StarlingError(f"{path} is missing: restore it (git checkout) or rerun the stage that makes it") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise StarlingError(f"{path} cannot be read ({error}): restore it or rerun the stage that makes it") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise StarlingError(f"{path}, line {number}, is not JSON ({error}): mend or remove it") from error
    return rows


def sha256(content: bytes) -> str:
    """Hex digest of ``content``."""
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_value(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value, independent of key order."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


def rng(seed: int, *ids: str | int) -> np.random.Generator:
    """A generator decided by ``seed`` and the names of what it is for, never by the order of calls."""
    digest = hashlib.sha256(json.dumps([seed, *ids]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def split_of(item: str) -> str:
    """Which split an item id belongs to, by hash: 64 % train, 16 % validation, 20 % test."""
    share = int.from_bytes(hashlib.sha256(f"part of {item}".encode()).digest()[:8], "little") / 2**64
    return "train" if share < 0.64 else "validation" if share < 0.80 else "test"
