"""The Batch API: requests as files, replies within a day, at half the price, restartable at every step.

A job goes planned → uploaded → submitted → collected, and each step is in the ledger before the next begins:

* *planned*: the job's requests lie in a file beside the ledger, and the ledger knows their keys;
* *uploaded*: the server has the file (one that was uploaded and not noted is uploaded again: that is free);
* *submitted*: the server works on it. A batch carries its job's name, so that one that was created and not noted is
  found by its name and never created twice;
* *collected*: its replies and failures are entered in one transaction with this step, and the job is gone.

What failed or ran out of time is asked again in a new job.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from starling_nb import progress
from starling_nb.errors import StarlingError
from starling_nb.judge.asking import Request
from starling_nb.judge.jobs import ENDPOINT, Asked, Job, Jobs
from starling_nb.judge.ledger import Attempt
from starling_nb.judge.session import Gap, read
from starling_nb.judge.spending import BudgetExceeded
from starling_nb.judge.wire import JudgeUnavailable, Unanswered, server

if TYPE_CHECKING:
    from starling_nb.judge.client import Judge

MARK = "starling_nb_job"  # the name under which a batch's metadata carry its job
FINAL = ("completed", "expired", "cancelled", "failed")
PERMANENT = ("content_filter", "http_400", "http_403", "http_404", "http_413", "http_422")
"""Failures that asking again does not mend."""
UPLOAD_TIMEOUT = 1800.0  # seconds


@dataclass(frozen=True)
class Batches:
    """How to use the Batch API.

    Args:
        size: requests in one batch, at most 50,000 (the published limit).
        megabytes: of one batch's file, at most 200 (the published limit).
        poll: seconds between two looks at the batches under way.
        rounds: how often a request is put into a batch before its failure stands.
        report: called with (requests settled, requests in all) at every look; a line of progress that also tells the
            dollars spent, by default.

    Raises:
        StarlingError: a number out of range.
    """

    size: int = 20_000
    megabytes: float = 150.0
    poll: float = 30.0
    rounds: int = 3
    report: Callable[[int, int], object] | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.size <= 50_000 and 0 < self.megabytes <= 200 and self.poll > 0 and self.rounds >= 1):
            raise StarlingError("a batch holds 1 to 50,000 requests and up to 200 MB; poll and rounds must be positive")

    async def fill(self, judge: Judge, requests: Iterable[Request[Any]]) -> None:
        """Get every reply that the ledger lacks, as far as it can be had; earlier runs' jobs are finished first.

        Raises:
            BudgetExceeded: a further request could cost more than the budget has left; all others were collected.
            JudgeUnavailable: the server cannot be reached, or refuses.
        """
        run = _Run(judge, self)
        try:
            await run.finish()
            for _ in range(self.rounds * judge.attempts):
                stopped = run.plan(requests)
                if not await run.finish() and stopped is None:
                    return
                if stopped is not None:
                    raise stopped
        finally:
            progress.abandon("batches")
            await run.wire.close()


class _Run:
    """One call of :meth:`Batches.fill`."""

    def __init__(self, judge: Judge, how: Batches) -> None:
        self.judge, self.how, self.wire = judge, how, judge.wire()
        self.jobs = Jobs(judge.ledger, judge.model, server(judge.base_url))
        self.tries: Counter[str] = Counter()
        self.reserved: dict[str, dict[str, int]] = {}
        self.new: set[str] = set()  # jobs for which no batch can exist on the server yet
        self.total = 0
        self.stopped: BudgetExceeded | None = None

    def plan(self, requests: Iterable[Request[Any]]) -> BudgetExceeded | None:
        """Put what is missing into jobs; returns what stopped it early, if anything did."""
        self.total, self.stopped = 0, None
        missing = self._missing(requests)
        for first in missing:
            with self.jobs.planning() as plan:
                for request, gap in chain([first], missing):
                    plan.add(request, gap, self.judge.model)
                    if len(plan.rows) == self.how.size or plan.size >= self.how.megabytes * 1e6:
                        break
        return self.stopped

    def _missing(self, requests: Iterable[Request[Any]]) -> Iterator[tuple[Request[Any], Gap]]:
        """The requests that lack a reply and may still get one, each reply once; what they may cost is set aside."""
        for request in progress.track(requests, "planning batches", printed=False):
            self.total += 1
            try:
                gap = read(self.judge, request)
            except Unanswered:
                continue
            if not isinstance(gap, Gap) or gap.name in self.reserved or self.tries[gap.name] >= self.how.rounds:
                continue
            try:
                self.judge.spending.reserve_now(request.most)
            except BudgetExceeded as error:
                self.stopped = error
                return
            self.reserved[gap.name] = request.most
            yield request, gap

    async def finish(self) -> int:
        """Take every job to its end; returns how many requests were in them."""
        asked = sum(job.requests for job in self.jobs.open())
        while jobs := self.jobs.open():
            waiting = [job for job in jobs if job.state == "submitted"]
            moved = [await self._advance(job, alone=waiting in ([], [job])) for job in jobs]
            self._tell(max(self.total, asked))
            if not any(moved):
                await asyncio.sleep(self.how.poll)
        return asked

    def _tell(self, total: int) -> None:
        settled = total - sum(job.requests for job in self.jobs.open())
        if self.how.report is not None:
            self.how.report(settled, total)
        else:
            dollars = {"dollars": self.judge.spending.dollars} if self.judge.price else {}
            progress.report(settled, total, "batches", **dollars)

    async def _advance(self, job: Job, alone: bool) -> bool:
        """One step of one job; False where it has to wait."""
        client: Any = self.wire.open()
        if job.state == "planned":
            return await self._upload(client, job)
        if job.state == "uploaded":
            batch = await self.wire.patiently(lambda: self._create(client, job))
            self.jobs.step(job.name, "submitted" if batch else "planned", batch_id=batch.id if batch else None)
            return True
        batch = await self.wire.patiently(lambda: self._known(client, job))
        if batch is None:
            lost = {"error": {"code": "batch_lost", "message": f"{self.wire.where()} does not know the batch any more"}}
            self._end(job, [self._attempt(name, asked, lost) for name, asked in self.jobs.asked(job.name).items()])
            return True
        if batch.status not in FINAL:
            return False
        if batch.status == "failed":
            return self._refused(job, batch, alone)
        await self._collect(client, job, batch)
        return True

    async def _upload(self, client: Any, job: Job) -> bool:
        path = self.jobs.file(job.name)
        if not path.exists():  # somebody tidied up; nothing was sent, so it can be planned again
            self.jobs.end(job.name)
            return True
        slow = client.with_options(timeout=UPLOAD_TIMEOUT)
        uploaded = await self.wire.patiently(lambda: slow.files.create(file=path, purpose="batch"))
        self.new.add(job.name)
        self.jobs.step(job.name, "uploaded", file_id=uploaded.id)
        return True

    async def _known(self, client: Any, job: Job) -> Any:
        """The server's batch of this job, None where it knows none."""
        import openai

        try:
            return await client.batches.retrieve(job.batch_id)
        except openai.NotFoundError:
            return None

    async def _create(self, client: Any, job: Job) -> Any:
        """The server's batch of this job: the one that was created already, if a kill or a cut hid it from us; None
        where the server does not know the file that an earlier run gave it."""
        import openai

        earlier = job.name not in self.new
        if earlier:
            async for batch in client.batches.list(limit=100):
                if (batch.metadata or {}).get(MARK) == job.name and batch.status != "failed":
                    return batch
        self.new.discard(job.name)
        try:
            return await client.batches.create(
                input_file_id=job.file_id, endpoint=ENDPOINT, completion_window="24h", metadata={MARK: job.name}
            )
        except openai.NotFoundError:
            if not earlier:
                raise
            return None

    def _refused(self, job: Job, batch: Any, alone: bool) -> bool:
        """The server would not begin: too much queued already, which passes, or a fault in the requests."""
        errors = list(batch.errors.data or []) if batch.errors else []
        if any(error.code == "token_limit_exceeded" for error in errors) and not alone:
            self.jobs.step(job.name, "uploaded")
            return False
        told = "; ".join(f"{e.code}: {e.message}" for e in errors[:3]) or "no reason given"
        self.jobs.end(job.name)
        raise JudgeUnavailable(
            self.wire.safe(f"{self.wire.where()} refuses the batch ({told}): mend it, or ask singly")
        )

    async def _collect(self, client: Any, job: Job, batch: Any) -> None:
        """Enter the replies and failures of a finished batch, together with the end of its job."""
        left = self.jobs.asked(job.name)
        found: list[Attempt] = []
        for file_id in (batch.output_file_id, batch.error_file_id):
            async for line in self._lines(client, file_id):
                if (asked := left.pop(str(line.get("custom_id")), None)) is not None:
                    found.append(self._attempt(line["custom_id"], asked, line))
        ended = {"error": {"code": f"batch_{batch.status}", "message": "the batch ended before this request"}}
        self._end(job, found + [self._attempt(name, asked, ended) for name, asked in left.items()])

    def _end(self, job: Job, found: Sequence[Attempt]) -> None:
        """Enter what came of a job, and free what was set aside for it."""
        self.jobs.end(job.name, found)
        for attempt in found:
            most = self.reserved.pop(attempt.key, None)
            self.judge.spending.collect(most, attempt.usage or None)

    def _attempt(self, name: str, asked: Asked, line: dict[str, Any]) -> Attempt:
        """What the ledger enters for one line of a batch's output or error file."""
        response, usage = line.get("response") or {}, dict[str, int]()
        status, body = response.get("status_code"), response.get("body")
        try:
            if status == 200:
                return Attempt(name, asked.id, self.judge.model, asked.sample, asked.params, **self.wire.record(body))
            problem = line.get("error") or (body or {}).get("error") or {}
            failure = f"http_{status}" if status else str(problem.get("code") or "malformed")
            told = str(problem.get("message") or problem)
        except Unanswered as error:
            failure, told, usage = error.failure, str(error), dict(error.usage)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            failure, told = "malformed", f"no chat completion ({type(error).__name__}: {error})"
        self.tries[name] += self.how.rounds if failure in PERMANENT else 1
        told = self.wire.safe(told)[:500]
        return Attempt(name, asked.id, self.judge.model, asked.sample, asked.params, failure, error=told, usage=usage)

    async def _lines(self, client: Any, file_id: str | None) -> AsyncIterator[dict[str, Any]]:
        """The JSON lines of a file on the server, read as they come."""
        import openai

        if file_id is None:
            return
        try:
            async with client.files.with_streaming_response.content(file_id) as response:
                async for text in response.iter_lines():
                    if text.strip():
                        yield dict(json.loads(text))
        except (openai.APIError, ValueError) as error:
            told = f"{self.wire.where()} gave the batch's results only in part ({error}): run again to fetch them"
            raise JudgeUnavailable(self.wire.safe(told)) from error
