"""What a Batch API run must remember to be continued after a kill: its jobs, their requests, their files.

The state lies in the ledger's own file, so that a job's end and its replies are entered in one transaction.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from starling_nb import files
from starling_nb.judge.asking import Request
from starling_nb.judge.ledger import Attempt, Ledger, insert
from starling_nb.judge.session import Gap

ENDPOINT = "/v1/chat/completions"


@dataclass(frozen=True)
class Job:
    """One batch to be: ``state`` is planned, uploaded or submitted; a job that was collected is gone."""

    name: str
    state: str
    file_id: str | None
    batch_id: str | None
    requests: int


@dataclass(frozen=True)
class Asked:
    """One request of a job, as far as the ledger must know it."""

    id: str
    sample: int
    params: dict[str, Any]


class Jobs:
    """The jobs of one ledger for one model at one address; their request files lie in a folder beside the ledger.

    Jobs for others stay where they are until their own judge is asked again.
    """

    def __init__(self, ledger: Ledger, model: str, address: str) -> None:
        assert ledger.path is not None
        self.ledger = ledger
        self.owner = (model, address)
        self.folder = ledger.path.with_name(ledger.path.name + ".batches")

    def open(self) -> list[Job]:
        """The jobs that are not collected, oldest first."""
        rows = self.ledger.select(
            "SELECT job, state, file_id, batch_id, requests FROM batches LEFT JOIN batch_owners USING (job) "
            "WHERE model IS NULL OR (model = ? AND address = ?) ORDER BY batches.rowid",
            self.owner,
        )
        return [Job(*row) for row in rows]

    def file(self, job: str) -> Path:
        """Where a job's requests lie until the server has them."""
        return self.folder / f"{job}.jsonl"

    @contextmanager
    def planning(self) -> Iterator[Plan]:
        """A new job that is entered when the block ends, if it holds any request."""
        plan = Plan()
        path = self.file(plan.job)
        with files.replacing(path) as part, part.open("w", encoding="utf-8") as stream:
            plan.stream = stream
            yield plan
        if not plan.rows:
            path.unlink()
            return
        with self.ledger.transaction() as connection:
            connection.execute(
                "INSERT INTO batches (job, state, requests) VALUES (?, 'planned', ?)", (plan.job, len(plan.rows))
            )
            connection.execute("INSERT INTO batch_owners VALUES (?, ?, ?)", (plan.job, *self.owner))
            # A request that waits at another address moves here, where it was asked for; one that waits here stays.
            connection.executemany(
                "DELETE FROM batch_requests WHERE key = ? AND job IN "
                "(SELECT job FROM batch_owners WHERE NOT (model = ? AND address = ?))",
                [(row[0], *self.owner) for row in plan.rows],
            )
            connection.executemany("INSERT INTO batch_requests VALUES (?, ?, ?, ?, ?)", plan.rows)

    def step(self, job: str, state: str, *, file_id: str | None = None, batch_id: str | None = None) -> None:
        """Note that a job has reached ``state``; its file is not needed once it is submitted."""
        with self.ledger.transaction() as connection:
            connection.execute(
                "UPDATE batches SET state = ?, file_id = coalesce(?, file_id), batch_id = ? WHERE job = ?",
                (state, file_id, batch_id, job),
            )
        if state == "submitted":
            self.file(job).unlink(missing_ok=True)

    def asked(self, job: str) -> dict[str, Asked]:
        """A job's requests by the key of the reply they wait for."""
        rows = self.ledger.select("SELECT key, id, sample, params FROM batch_requests WHERE job = ?", (job,))
        return {key.hex(): Asked(id, sample, json.loads(params)) for key, id, sample, params in rows}

    def end(self, job: str, found: Sequence[Attempt] = ()) -> None:
        """Enter what came of a job and strike it out, together."""
        with self.ledger.transaction() as connection:
            insert(connection, found)
            connection.execute("DELETE FROM batch_requests WHERE job = ?", (job,))
            connection.execute("DELETE FROM batches WHERE job = ?", (job,))
            connection.execute("DELETE FROM batch_owners WHERE job = ?", (job,))
        self.file(job).unlink(missing_ok=True)
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()


class Plan:
    """A job in the making."""

    stream: TextIO

    def __init__(self) -> None:
        self.job = uuid.uuid4().hex
        self.rows: list[tuple[bytes, str, str, int, str]] = []
        self.size = 0

    def add(self, request: Request[Any], gap: Gap, model: str) -> None:
        """Put a request into the file; its ``custom_id`` is the ledger's key."""
        body = {"model": model, "messages": request.messages, **gap.params}
        line = json.dumps({"custom_id": gap.name, "method": "POST", "url": ENDPOINT, "body": body}) + "\n"
        self.stream.write(line)
        self.size += len(line)
        params = json.dumps(gap.params, sort_keys=True)
        self.rows.append((bytes.fromhex(gap.name), self.job, request.id, gap.sample, params))
