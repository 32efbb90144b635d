"""The simulated judge's batches: the OpenAI Batch protocol over the same backend that answers single requests.

A batch runs in a thread of its own. Its input is read twice, line by line: once to check it, once to answer it,
in a keyed random order, so that the output stands in another order than the input, as it does with a real server.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from starling_nb.files import hash_value, rng
from starling_nb.judge.simulation.failures import Failures
from starling_nb.judge.simulation.file_server import Files, Stored, new_id
from starling_nb.judge.simulation.protocol import Backend, Refused, page, stumbled

ENDPOINT, WINDOW, DAY = "/v1/chat/completions", "24h", 86_400
MOST_REQUESTS = 50_000  # in a batch, as published
MOST_ERRORS = 100  # told of one input
ENDED = ("completed", "failed", "expired", "cancelled")
STEPS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


@dataclass(frozen=True)
class BatchRules:
    """How batches run.

    ``pause`` is the time in seconds between two statuses. The failure ``batch_expired`` strikes after
    ``expire_after`` lines, after half of them where it is None; ``batch_line`` fails a line with ``line_status``.
    """

    pause: float = 0.0
    expire_after: int | None = None
    line_status: int = 500


class Batches:
    """The batches of one server."""

    def __init__(self, backend: Backend, files: Files, rules: BatchRules, failures: Failures) -> None:
        self.backend, self.files, self.rules, self.failures = backend, files, rules, failures
        self._batches: dict[str, dict[str, Any]] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Start a batch; returns it as it is before its first step.

        Raises:
            Refused: the input file is unknown, or a parameter is not one that batches have.
        """
        metadata = body.get("metadata") or {}
        if body.get("endpoint") != ENDPOINT or body.get("completion_window") != WINDOW:
            raise Refused(400, "bad_parameter", f"batches are for endpoint {ENDPOINT} and completion_window {WINDOW}")
        if not _is_metadata(metadata):
            raise Refused(400, "bad_metadata", "metadata is at most 16 texts of 512 characters with names of 64")
        stored = self.files.get(str(body.get("input_file_id")))
        now = int(time.time())
        batch: dict[str, Any] = {
            "id": new_id("batch_"),
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": None,
            "input_file_id": stored.id,
            "completion_window": WINDOW,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + DAY,
            **{f"{step}_at": None for step in STEPS},
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": metadata,
        }
        thread = threading.Thread(target=self._run, args=(batch, stored), daemon=True)
        with self._lock:
            self._batches[batch["id"]] = batch
            self._threads = [running for running in self._threads if running.is_alive()] + [thread]
            told = copy.deepcopy(batch)
            thread.start()
        return told

    def get(self, name: str) -> dict[str, Any]:
        """The batch with this id, as it stands.

        Raises:
            Refused: there is none.
        """
        with self._lock:
            return copy.deepcopy(self._find(name))

    def page(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The batches, the newest first."""
        with self._lock:
            rows = copy.deepcopy(list(self._batches.values()))
        return page(rows[::-1], query, usual=20, most=100)

    def cancel(self, name: str) -> dict[str, Any]:
        """Ask a batch to end; what is answered by then is kept.

        Raises:
            Refused: there is none with this id, or it has ended.
        """
        with self._lock:
            batch = self._find(name)
            if batch["status"] in ENDED:
                raise Refused(409, "batch_ended", f"a batch that is {batch['status']} cannot be cancelled")
            _step(batch, "cancelling")
            return copy.deepcopy(batch)

    def close(self) -> None:
        """End all batches where they are, and wait for their threads."""
        self._closing.set()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _find(self, name: str) -> dict[str, Any]:
        if name not in self._batches:
            raise Refused(404, "not_found", f"no such batch: {name}")
        return self._batches[name]

    def _run(self, batch: dict[str, Any], stored: Stored) -> None:
        try:
            with stored.open() as stream:
                lines = _read(stream, stored.length, self.backend.models())
                self._closing.wait(self.rules.pause)
                failure = None if lines.errors else self.failures.batch(lines.content)
                if failure == "batch_failed":
                    lines.errors.append(_error("token_limit_exceeded", "too many tokens are waiting (simulated)"))
                if lines.errors:
                    return self._fail(batch, lines.errors)
                with self._lock:
                    batch["request_counts"]["total"] = len(lines.starts)
                self._advance(batch, "in_progress")
                self._answer(batch, stream, lines, expires=failure == "batch_expired")
        except Refused as refused:  # the input was deleted
            self._fail(batch, [_error("file_not_found", str(refused))])
        except Exception as error:  # the protocol's answer to a fault of the program
            self._fail(batch, [_error("server_error", str(stumbled(error)))])

    def _answer(self, batch: dict[str, Any], stream: BinaryIO, lines: _Lines, expires: bool) -> None:
        """Answer the lines until they or the time are used up, or someone cancels."""
        order = rng(self.failures.seed, "batch order", lines.content).permutation(len(lines.starts)).tolist()
        allowed = len(order)
        if expires:
            allowed = len(order) // 2 if self.rules.expire_after is None else self.rules.expire_after
        paths = {kind: self.files.folder / f"{batch['id']}_{kind}.jsonl" for kind in ("output", "error")}
        with paths["output"].open("wb") as good, paths["error"].open("wb") as bad:
            for number, line in enumerate(order):
                if self._closing.is_set() or batch["status"] == "cancelling":
                    break
                stream.seek(lines.starts[line])
                request = json.loads(stream.readline(lines.end - lines.starts[line]))
                row = self._ask(request) if number < allowed else _unanswered(request)
                fine = row["error"] is None and row["response"]["status_code"] == 200
                (good if fine else bad).write(json.dumps(row).encode() + b"\n")
                with self._lock:
                    batch["request_counts"]["completed" if fine else "failed"] += 1
        self._advance(batch, "finalizing")
        for kind, path in paths.items():
            name = self.files.add(path, path.name, "batch_output") if path.stat().st_size else None
            with self._lock:
                batch[f"{kind}_file_id"] = name
        self._closing.wait(self.rules.pause)
        with self._lock:
            cancelled = batch["status"] == "cancelling"
            _step(batch, "cancelled" if cancelled else "expired" if allowed < len(order) else "completed")

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the output or error file."""
        try:
            if self.failures.line(hash_value(request["body"].get("messages"))):
                raise Refused(self.rules.line_status, "batch_line", "this line failed (simulated)")
            status, body = 200, self.backend.complete(request["body"])
        except Refused as refused:
            status, body = refused.status, refused.body()
        except Exception as error:  # the protocol's answer to a fault of the program
            status, body = 500, stumbled(error).body()
        response = {"status_code": status, "request_id": new_id("req_"), "body": body}
        return _row(request, response, None)

    def _fail(self, batch: dict[str, Any], errors: list[dict[str, Any]]) -> None:
        with self._lock:
            batch["errors"] = {"object": "list", "data": errors[:MOST_ERRORS]}
            _step(batch, "failed")

    def _advance(self, batch: dict[str, Any], status: str) -> None:
        """Go on to ``status`` unless the batch is being cancelled, and stay there for a pause."""
        with self._lock:
            if batch["status"] != "cancelling":
                _step(batch, status)
        self._closing.wait(self.rules.pause)


@dataclass
class _Lines:
    """A checked input: where its lines start, where the last one ends, its hash, and what is wrong with it."""

    starts: list[int]
    end: int
    content: str
    errors: list[dict[str, Any]]


def _read(stream: BinaryIO, length: int, models: list[str]) -> _Lines:
    """Read and check the input once."""
    starts: list[int] = []
    errors: list[dict[str, Any]] = []
    names: set[str] = set()
    first, digest = "", hashlib.sha256()
    for number, (start, line) in enumerate(_split(stream, length), 1):
        digest.update(line)
        if not line.strip():
            continue
        starts.append(start)
        wrong, name, model = _check(line)
        if not wrong and name in names:
            wrong = ("duplicate_custom_id", f"custom_id {name!r} stands on another line too")
        elif not wrong and model not in models:
            wrong = ("model_not_found", f"no such model: {model!r}")
        elif not wrong and model != (first or model):
            wrong = ("mismatched_model", f"all lines need the same model: {first!r} came first, here is {model!r}")
        names.add(name)
        first = first or model
        if wrong and len(errors) < MOST_ERRORS:
            errors.append(_error(*wrong, line=number))
    if not starts:
        errors.append(_error("empty_file", "the input holds no requests"))
    if len(starts) > MOST_REQUESTS:
        errors.append(_error("too_many_requests", f"{len(starts)} requests are more than {MOST_REQUESTS}: split them"))
    return _Lines(starts, stream.tell(), digest.hexdigest(), errors)


def _split(stream: BinaryIO, length: int) -> Iterator[tuple[int, bytes]]:
    """Start and text of each line of the next ``length`` bytes."""
    start = stream.tell()
    end = start + length
    while start < end:
        line = stream.readline(end - start)
        yield start, line
        start += len(line)


def _check(line: bytes) -> tuple[tuple[str, str] | None, str, str]:
    """What is wrong with a line by itself (code and message), its custom_id and its model."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ("invalid_json_line", f"this line is not JSON ({error})"), "", ""
    if not isinstance(request, dict) or not isinstance(request.get("body"), dict):
        return ("invalid_request", "a line is an object with custom_id, method, url and body"), "", ""
    name, model = request.get("custom_id"), request["body"].get("model")
    wrong = None
    if not isinstance(name, str) or not name:
        wrong = ("missing_custom_id", "a line needs a custom_id, a text")
    elif request.get("method") != "POST":
        wrong = ("invalid_method", f"the method is POST, not {request.get('method')!r}")
    elif request.get("url") != ENDPOINT:
        wrong = ("invalid_url", f"the url is the batch's endpoint {ENDPOINT}, not {request.get('url')!r}")
    return wrong, str(name), model if isinstance(model, str) else ""


def _unanswered(request: Mapping[str, Any]) -> dict[str, Any]:
    message = "the completion window closed before this request was answered"
    return _row(request, None, {"code": "batch_expired", "message": message})


def _row(request: Mapping[str, Any], response: object, error: object) -> dict[str, Any]:
    row = {"id": new_id("batch_req_"), "custom_id": request["custom_id"]}
    return {**row, "response": response, "error": error}


def _error(code: str, message: str, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": None}


def _step(batch: dict[str, Any], status: str) -> None:
    batch["status"] = status
    batch[f"{status}_at"] = int(time.time())


def _is_metadata(value: object) -> bool:
    if not isinstance(value, dict) or len(value) > 16:
        return False
    return all(isinstance(text, str) and len(text) <= 512 and len(name) <= 64 for name, text in value.items())
