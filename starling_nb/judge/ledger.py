"""The ledger: one row for every attempt to get a reply, in an SQLite file that survives kills.

A row's key is a hash of everything that determines the reply (model, messages, parameters, sample index) and of
nothing else, so that a run that was killed, or repeated with one request changed, pays only for what is new. Failures
are kept beside the replies, as evidence, and never served as answers. Neither API keys nor headers are ever written.
Several judges and processes may share one ledger.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starling_nb.errors import StarlingError
from starling_nb.files import hash_value

REPLY = "reply"
"""The outcome of an attempt that got one; every other word names a failure."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
  number INTEGER PRIMARY KEY, key BLOB NOT NULL, id TEXT, model TEXT, sample INTEGER, params TEXT, time REAL,
  outcome TEXT NOT NULL, reply TEXT, finish_reason TEXT, served_model TEXT,
  prompt_tokens INTEGER, completion_tokens INTEGER, error TEXT);
CREATE INDEX IF NOT EXISTS replies ON attempts (key) WHERE outcome = 'reply';
CREATE INDEX IF NOT EXISTS failures ON attempts (key) WHERE outcome <> 'reply';
CREATE TABLE IF NOT EXISTS servers (model TEXT, address TEXT, PRIMARY KEY (model, address)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
  job TEXT PRIMARY KEY, state TEXT NOT NULL, file_id TEXT, batch_id TEXT, requests INTEGER);
CREATE TABLE IF NOT EXISTS batch_owners (job TEXT PRIMARY KEY, model TEXT NOT NULL, address TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batch_requests (
  key BLOB PRIMARY KEY, job TEXT NOT NULL, id TEXT, sample INTEGER, params TEXT) WITHOUT ROWID;
"""
WAIT = 60.0  # seconds for another process to finish its write


def key(model: str, messages: Sequence[Mapping[str, str]], params: Mapping[str, Any], sample: int) -> str:
    """Name of one reply: hex SHA-256 of the model, the messages, the parameters and the sample index."""
    return hash_value([model, [dict(message) for message in messages], dict(params), sample])


@dataclass(frozen=True)
class Attempt:
    """One try at getting a reply, as the ledger keeps it; ``outcome`` is ``reply`` or the name of a failure."""

    key: str
    id: str
    model: str
    sample: int
    params: Mapping[str, Any]
    outcome: str = REPLY
    reply: str | None = None
    finish_reason: str | None = None
    served_model: str | None = None
    usage: Mapping[str, int] = field(default_factory=dict)  # prompt_tokens, completion_tokens, total_tokens
    error: str | None = None


_COLUMNS = ("key", "id", "model", "sample", "params", "outcome", "reply", "finish_reason", "served_model", "error")
_SELECT = f"SELECT {', '.join(_COLUMNS)}, prompt_tokens, completion_tokens FROM attempts"
_INSERT = (
    f"INSERT INTO attempts ({', '.join(_COLUMNS)}, prompt_tokens, completion_tokens, time) "
    f"VALUES ({', '.join('?' * (len(_COLUMNS) + 3))})"
)


class Ledger:
    """Attempts in the SQLite file ``path``, or in memory where ``path`` is None.

    What :meth:`append` has returned from is on the disk (write-ahead log, synchronised at every commit). The file must
    lie on a local disk: network file systems do not support its locks.

    Raises:
        StarlingError: the file is none of these ledgers, or cannot be read or written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._writing = threading.Lock()
        with self._told():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._reader = self._writer = self._connect()
            if path is not None:
                self._reader = self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            ":memory:" if self.path is None else self.path, WAIT, check_same_thread=False, isolation_level=None
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def __len__(self) -> int:
        return int(self.select("SELECT count(DISTINCT key) FROM attempts WHERE outcome = 'reply'")[0][0])

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def get(self, name: str) -> Attempt | None:
        """The first reply entered under ``name``, or None."""
        rows = self.select(
            f"{_SELECT} WHERE key = ? AND outcome = 'reply' ORDER BY number LIMIT 1", (bytes.fromhex(name),)
        )
        return _attempt(rows[0]) if rows else None

    def failures(self, name: str) -> list[Attempt]:
        """The failed attempts under ``name``, oldest first."""
        rows = self.select(f"{_SELECT} WHERE key = ? AND outcome <> 'reply' ORDER BY number", (bytes.fromhex(name),))
        return [_attempt(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """Attempts by outcome."""
        return dict(self.select("SELECT outcome, count(*) FROM attempts GROUP BY outcome ORDER BY outcome"))

    def mean_tokens(self, model: str) -> tuple[float, float] | None:
        """Mean prompt and reply tokens of the newest thousand replies of ``model``; None where there is none."""
        newest = (
            "SELECT prompt_tokens p, completion_tokens c FROM attempts WHERE outcome = 'reply' AND model = ? "
            "ORDER BY number DESC LIMIT 1000"
        )
        row = self.select(f"SELECT avg(p), avg(c) FROM ({newest})", (model,))[0]
        return None if row[0] is None else (float(row[0]), float(row[1]))

    def used(self) -> dict[str, dict[str, int]]:
        """Tokens that were paid for (``prompt_tokens``, ``completion_tokens``), by model."""
        sums = "SELECT model, sum(prompt_tokens), sum(completion_tokens) FROM attempts GROUP BY model"
        rows = self.select(sums)
        return {model: {"prompt_tokens": prompt, "completion_tokens": reply} for model, prompt, reply in rows}

    def met(self, model: str, address: str) -> list[str]:
        """Other servers at which ``model`` was asked into this ledger; ``address`` is noted beside them."""
        with self.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO servers VALUES (?, ?)", (model, address))
        rows = self.select("SELECT address FROM servers WHERE model = ? AND address <> ?", (model, address))
        return [row[0] for row in rows]

    def append(self, attempts: Sequence[Attempt]) -> None:
        """Enter attempts, all or none; they are in the file when this returns."""
        if not attempts:
            return
        with self.transaction() as connection:
            insert(connection, attempts)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are entered together when the block ends, or not at all when it fails."""
        with self._told(), self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def select(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        """Rows of a query."""
        with self._told():
            return self._reader.execute(query, tuple(values)).fetchall()

    def close(self) -> None:
        """Close the file and fold its write-ahead log into it."""
        for connection in {id(c): c for c in (self._reader, self._writer)}.values():
            connection.close()

    def __del__(self) -> None:
        if hasattr(self, "_reader"):
            self.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
                raise StarlingError(
                    f"{self.path} is not a judge's ledger: move it away, or name another file"
                ) from error
            raise StarlingError(
                f"the judge's ledger {self.path} cannot be read or written ({error}): free some space, mend its "
                "permissions or close what holds it, then run again; nothing in it is paid for twice"
            ) from error


def is_one(path: Path) -> bool:
    """Whether a file is a ledger; it is only read."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'attempts'").fetchall())
    except sqlite3.Error:
        return False


def insert(connection: sqlite3.Connection, attempts: Iterable[Attempt]) -> None:
    """Enter attempts within a transaction."""
    connection.executemany(_INSERT, map(_row, attempts))


def _row(attempt: Attempt) -> tuple[Any, ...]:
    values = {name: getattr(attempt, name) for name in _COLUMNS}
    values["key"] = bytes.fromhex(attempt.key)
    values["params"] = json.dumps(attempt.params, sort_keys=True)
    for name in ("reply", "error"):  # half a character cannot be stored as text
        values[name] = None if values[name] is None else _whole(values[name])
    tokens = [attempt.usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens")]
    return (*values.values(), *tokens, time.time())


def _whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _attempt(row: Sequence[Any]) -> Attempt:
    values = dict(zip(_COLUMNS, row, strict=False))
    prompt, completion = row[len(_COLUMNS) :]
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    values |= {"key": values["key"].hex(), "params": json.loads(values["params"]), "usage": usage}
    return Attempt(**values)


class Clerk:
    """Enters attempts from a running event loop, many in one commit: those that arrive during one make up the next."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._waiting: list[tuple[Attempt, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    def note(self, attempt: Attempt) -> asyncio.Future[None]:
        """Hand in an attempt; the future is done when it is on the disk, or holds what went wrong."""
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody need wait for a failure's
        self._waiting.append((attempt, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return future

    async def close(self) -> None:
        """Wait until everything handed in is entered."""
        if self._task is not None:
            await self._task

    async def _drain(self) -> None:
        while self._waiting:
            entering, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self.ledger.append, [attempt for attempt, _ in entering])
            except StarlingError as error:
                for _, future in entering:
                    if not future.done():
                        future.set_exception(error)
            else:
                for _, future in entering:
                    if not future.done():
                        future.set_result(None)
