"""The protocol of the storm judge, see :mod:`benchmarks.storm`: HTTP/1.1 by hand, its faults, limits and counts."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.storm.replies import READABLE, Planned, check_rates, content_of, letters_of, reply_for

MODEL = "storm"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 408: "Request Timeout", 409: "Conflict"}
HTML = b"<html><head><title>Gateway</title></head><body>Please stand by.</body></html>"


class Bucket:
    """A rate limit as OpenAI keeps it: ``limit`` per ``window`` seconds, refilled steadily."""

    def __init__(self, limit: float, window: float) -> None:
        self.limit, self.rate, self.left, self.at = limit, limit / window, limit, time.monotonic()

    def refill(self) -> None:
        now = time.monotonic()
        self.left = min(self.limit, self.left + (now - self.at) * self.rate)
        self.at = now

    def lacks(self, amount: float) -> float:
        """Seconds until ``amount`` can be taken; 0 where it can be now."""
        return max(0.0, (amount - self.left) / self.rate)

    def headers(self, what: str) -> str:
        reset = duration((self.limit - self.left) / self.rate)
        return (
            f"x-ratelimit-limit-{what}: {self.limit:.0f}\r\nx-ratelimit-remaining-{what}: {int(self.left)}\r\n"
            f"x-ratelimit-reset-{what}: {reset}\r\n"
        )


def duration(seconds: float) -> str:
    """``20ms``, ``1.5s``, ``6m0s``, ``1h0m0s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{round(seconds, 3):g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"


class State:
    """Settings and counts of a server; :meth:`set` is the body of ``POST /faults``."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self.clear()
        self.set({})

    def clear(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.valid: Counter[str] = Counter()
        self.arrivals: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.over_limit = self.opened = self.under_way = self.most_under_way = 0

    def set(self, body: dict[str, Any]) -> None:
        known = {"rates", "seed", "limits", "hang", "drip", "latency", "pause", "clear"}
        if unknown := sorted(set(body) - known):
            raise ValueError(f"unknown setting {unknown[0]!r}: choose from {', '.join(sorted(known))}")
        check_rates(body.get("rates", {}))
        self.rates, self.seed = (
            {kind: rate for kind, rate in body.get("rates", {}).items() if rate},
            body.get("seed", 0),
        )
        self.hang, self.drip = body.get("hang", 60.0), body.get("drip", 0.2)
        self.latency, self.pause = body.get("latency", 0.0), body.get("pause", 0.05)
        limits = body.get("limits") or {}
        window = limits.get("window", 60.0)
        self.buckets = {what: Bucket(limits[what], window) for what in ("requests", "tokens") if what in limits}
        if body.get("clear", True):
            self.clear()

    def counts(self) -> dict[str, Any]:
        names = ("asked", "answered", "valid", "kinds", "over_limit", "opened", "under_way", "most_under_way")
        return {name: getattr(self, name) for name in names} | {"open": len(self.connections)}

    def limit(self, cost: dict[str, float]) -> tuple[float, str]:
        """Seconds to wait, 0 where the request was let in, and the headers that tell of the limits."""
        for bucket in self.buckets.values():
            bucket.refill()
        wait = max((bucket.lacks(cost[what]) for what, bucket in self.buckets.items()), default=0.0)
        for what, bucket in self.buckets.items():
            bucket.left -= 0 if wait else cost[what]
        return wait, "".join(bucket.headers(what) for what, bucket in self.buckets.items())


class Connection(asyncio.Protocol):
    """One kept-alive connection: a request is read whole, then answered, then the next."""

    def __init__(self, state: State) -> None:
        self.state, self.buffer, self.busy = state, bytearray(), False
        self.transport: Any = None
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.state.connections.add(self)
        self.state.opened += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.state.connections.discard(self)
        self._done()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while not self.busy and self.transport and (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.buffer[:end]).lower()
            length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self.buffer) < end + 4 + length:
                return
            body = bytes(self.buffer[end + 4 : end + 4 + length])
            del self.buffer[: end + 4 + length]
            method, path = head.split(b" ", 2)[:2]
            self._serve(method + b" " + path, body)

    def _serve(self, what: bytes, body: bytes) -> None:
        try:
            if what == b"post /v1/chat/completions":
                self._complete(json.loads(body), len(body))
            elif what == b"get /counts":
                self._send(200, json.dumps(self.state.counts()).encode())
            elif what == b"post /faults":
                self.state.set(json.loads(body))
                self._send(200, b"{}")
            elif what == b"get /v1/models":
                self._send(200, json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode())
            else:
                self._send(404, _error(404, "nothing here"))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            self._send(400, _error(400, f"{type(error).__name__}: {error}"))

    def _complete(self, body: dict[str, Any], size: int) -> None:
        state, messages = self.state, body["messages"]
        content, k = content_of(messages), letters_of(messages)
        if k < 2:
            raise ValueError("the storm judge reads ranking prompts only")
        state.asked[content] += 1
        tokens = size / 4 + (body.get("max_completion_tokens") or body.get("max_tokens") or 0)
        wait, headers = state.limit({"requests": 1, "tokens": tokens}) if state.buckets else (0.0, "")
        if wait:
            state.over_limit += 1
            headers += f"retry-after-ms: {math.ceil(wait * 1000)}\r\nretry-after: {math.ceil(wait)}\r\n"
            return self._send(429, _error(429, "over the limit"), headers)
        state.arrivals[content] += 1
        planned = reply_for(content, state.arrivals[content], state.seed, state.rates, k)
        state.kinds[planned.kind] += 1
        state.under_way += 1
        state.most_under_way = max(state.most_under_way, state.under_way)
        self.busy = True
        if state.latency:
            self.loop.call_later(state.latency, self._act, planned, content, headers, size)
        else:
            self._act(planned, content, headers, size)

    def _act(self, planned: Planned, content: str, headers: str, size: int) -> None:
        kind, state = planned.kind, self.state
        if self.transport is None or self.transport.is_closing():
            return
        if kind == "hang":
            self.loop.call_later(state.hang, self._reset)
        elif kind == "reset_before":
            self._reset()
        elif planned.status != 200 and planned.status:
            self._send(planned.status, _error(planned.status, "simulated"), headers + self._pause(kind))
            self._done()
        else:
            reply = HTML if kind == "html" else _reply(planned, content, size)
            if kind == "half_json":
                reply = reply[: len(reply) // 2]
            extra = 50 if kind == "cut_short" else 0
            whole = _frame(200, reply, headers, "text/html" if kind == "html" else "application/json", extra)
            if kind in ("reset_within", "cut_short"):
                self.transport.write(whole if extra else whole[: -len(reply) // 2])
                self.loop.call_later(0.01, self.transport.close if extra else self._reset)
            elif kind == "slow_drip":
                self._drip(whole, len(whole) // 20 + 1, planned, content)
            else:
                self.transport.write(whole)
                self._count(planned, content)

    def _drip(self, rest: bytes, step: int, planned: Planned, content: str) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        self.transport.write(rest[:step])
        if len(rest) > step:
            self.loop.call_later(self.state.drip / 20, self._drip, rest[step:], step, planned, content)
        else:
            self._count(planned, content)

    def _count(self, planned: Planned, content: str) -> None:
        """A reply was sent whole."""
        if planned.kind in READABLE:
            self.state.answered[content] += 1
        if planned.expected_ranking is not None:
            self.state.valid[content] += 1
        self._done()

    def _done(self) -> None:
        """Free for the next request."""
        if self.busy:
            self.busy = False
            self.state.under_way -= 1
            if self.buffer and self.transport is not None:
                self.loop.call_soon(self.data_received, b"")

    def _pause(self, kind: str) -> str:
        pause = self.state.pause
        return {
            "http_429_seconds": "Retry-After: 1\r\n",
            "http_429_fraction": f"Retry-After: {pause:g}\r\n",
            "http_429_date": f"Retry-After: {email.utils.formatdate(time.time() + 1, usegmt=True)}\r\n",
            "http_429_ms": f"retry-after-ms: {pause * 1000:g}\r\n",
        }.get(kind, "")

    def _reset(self) -> None:
        """Drop the connection with RST."""
        if self.transport is not None:
            peer = self.transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def _send(self, status: int, body: bytes, headers: str = "") -> None:
        self.transport.write(_frame(status, body, headers))


def _frame(status: int, body: bytes, headers: str = "", kind: str = "application/json", extra: int = 0) -> bytes:
    head = f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}\r\nContent-Type: {kind}\r\n"
    return f"{head}{headers}Content-Length: {len(body) + extra}\r\n\r\n".encode() + body


def _error(status: int, message: str) -> bytes:
    kind = "rate_limit_exceeded" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": kind}}).encode()


def _reply(planned: Planned, content: str, size: int) -> bytes:
    """The body of a chat completion."""
    asked, told = size // 4, len(planned.text) // 4
    text = "null" if planned.kind == "null_content" else json.dumps(planned.text)
    choices = (
        f'[{{"index":0,"message":{{"role":"assistant","content":{text}}},"logprobs":null,'
        f'"finish_reason":"{planned.finish_reason}"}}]'
    )
    listed = {"no_choices": '"choices":[],', "choices_missing": ""}.get(planned.kind, f'"choices":{choices},')
    return (
        f'{{"id":"storm-{content}","object":"chat.completion","created":0,"model":"{MODEL}",{listed}'
        f'"usage":{{"prompt_tokens":{asked},"completion_tokens":{told},"total_tokens":{asked + told}}}}}'
    ).encode()


async def run(port: int, started: Callable[[str], object], stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set; ``started`` is called with the base URL."""
    state = State()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(state), "127.0.0.1", port, backlog=1024)
    started(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    await stop.wait()
    server.close()
    for connection in list(state.connections):
        connection.transport.abort()
    await asyncio.sleep(0)
