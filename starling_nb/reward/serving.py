"""A reward model in a process of its own, asked over HTTP: several ranks of a training share one card's.

The published run trained on seven cards and kept its reward model on the eighth. ``GET /`` names the model. ``POST /``
takes ``{"conversations": [[message, …], …]}`` and gives ``{"scores": [number, …]}``, or takes ``{"prompts": …}`` and
gives ``{"faults": [text, …]}``. What cannot be scored gives status 400 and ``{"error": reason}``. The server listens on
the loopback interface alone.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starling_nb.chat import Message
from starling_nb.errors import StarlingError
from starling_nb.reward.layout import RewardError
from starling_nb.reward.model import RewardModel

LARGEST_BODY = 64 * 2**20  # bytes
AT_ONCE = 1000  # prompts in a request
START = 300.0
"""Seconds that a server may take to read its model."""
PATIENCE = 3600.0
"""Seconds that a client waits for its scores: all other ranks may be served before."""


class Served:
    """A served reward model; it scores texts, not token ids, as :meth:`RewardModel.score_sampled` does.

    Args:
        address: ``http://host:port``, as ``starling-nb serve-reward`` says it.
        wait: seconds to wait for a server that is still reading its model.

    Raises:
        RewardError: no reward model answers there.
    """

    def __init__(self, address: str, wait: float = 0.0) -> None:
        self.address, url = address, urlsplit(address)
        told = f"{address!r} is no address of a served reward model: give http://host:port"
        if url.scheme != "http" or not url.hostname or url.path.strip("/"):
            raise RewardError(told)
        try:
            self._host, self._port = url.hostname, url.port or 80
        except ValueError as error:  # the port is no number, or too large a one
            raise RewardError(told) from error
        about = self._met(time.monotonic() + wait)
        self.name, self._fingerprint = str(about.get("model")), str(about.get("fingerprint"))

    def fingerprint(self) -> str:
        """That of the model behind the server, when this client was made."""
        return self._fingerprint

    def score_sampled(self, conversations: Sequence[Sequence[Message]], batch: int = 32) -> list[float]:
        """Scores of sampled texts; any ``batch``, for the server chooses its own.

        Raises:
            RewardError: the server is gone, refuses a text, or gives other than a finite number for each.
        """
        scores = self._asked("POST", {"conversations": [list(one) for one in conversations]}).get("scores")
        right = isinstance(scores, list) and len(scores) == len(conversations)
        if not right or not all(isinstance(x, int | float) and math.isfinite(x) for x in scores or []):
            raise RewardError(f"{self.address} gave no number for each of {len(conversations)} texts: is it ours?")
        return [float(score) for score in scores or []]

    def faults(self, prompts: Sequence[Sequence[Message]]) -> list[str]:
        """As :meth:`RewardModel.faults`.

        Raises:
            RewardError: the server is gone, or gives other than a text for each.
        """
        found: list[str] = []
        for i in range(0, len(prompts), AT_ONCE):
            asked = [list(one) for one in prompts[i : i + AT_ONCE]]
            told = self._asked("POST", {"prompts": asked}).get("faults")
            if not isinstance(told, list) or len(told) != len(asked):
                raise RewardError(f"{self.address} says nothing of {len(asked)} prompts: is it ours, and as new?")
            found += map(str, told)
        return found

    def _met(self, until: float) -> dict[str, Any]:
        """What the server says of itself, as soon as it answers."""
        told = False
        while True:
            try:
                return self._asked("GET")
            except RewardError as error:
                if not isinstance(error.__cause__, ConnectionRefusedError) or time.monotonic() > until:
                    raise
            if not told:
                print(f"waiting for the reward model at {self.address}", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.2)

    def _asked(self, method: str, body: object = None) -> dict[str, Any]:
        line = http.client.HTTPConnection(self._host, self._port, timeout=PATIENCE)
        try:
            line.request(method, "/", None if body is None else json.dumps(body).encode())
            reply = line.getresponse()
            found = json.loads(reply.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RewardError(
                f"no reward model answers at {self.address} ({error or type(error).__name__}): start it by "
                "`starling-nb serve-reward`; a training goes on from its last checkpoint"
            ) from error
        finally:
            line.close()
        if not isinstance(found, dict) or reply.status != 200:
            reason = found.get("error") if isinstance(found, dict) else None
            raise RewardError(f"the reward model at {self.address} refuses: {reason or f'status {reply.status}'}")
        return found


Reward = RewardModel | Served
"""What scores the texts of a policy."""


def load(name: str | Path, **how: Any) -> Reward:
    """The reward model at an address (``http://…``), once it is ready, else the folder or hub id, loaded as ``how``
    says.

    Raises:
        RewardError: it is not there, or cannot be read.
    """
    if "://" in str(name) or re.fullmatch(r"[\w.-]+:\d+", str(name)):
        return Served(str(name), START)
    return RewardModel.from_pretrained(name, **how)


def serve(reward: RewardModel, name: str, port: int = 0, batch: int = 32) -> tuple[Callable[[], None], str]:
    """Serve in a thread of its own; returns a function that stops it, and the address.

    Args:
        reward: the model; one request at a time has it.
        name: what it is called.
        port: 0 for any that is free.
        batch: conversations computed at a time, at most.

    Raises:
        RewardError: the port is taken.
    """
    about = {"model": name, "fingerprint": reward.fingerprint()}
    own = {"reward": reward, "about": about, "batch": batch, "turn": threading.Lock()}
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), own))
    except OSError as error:
        raise RewardError(f"port {port} cannot be used ({error.strerror}): choose another, or 0 for any") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    return stop, f"http://127.0.0.1:{server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    reward: RewardModel
    about: dict[str, str]
    batch: int
    turn: threading.Lock

    def do_GET(self) -> None:
        """The model's name and fingerprint."""
        self._send(200, self.about)

    def do_POST(self) -> None:
        """The scores of conversations, or why no answer to a prompt could be scored."""
        told: dict[str, object]
        try:
            name, asked = self._read()
            with self.turn:
                if name == "prompts":
                    told = {"faults": self.reward.faults(asked)}
                else:
                    told = {"scores": self.reward.score_sampled(asked, self.batch)}
        except (StarlingError, ValueError, KeyError, TypeError) as error:
            return self._send(400, {"error": str(error) or type(error).__name__})
        except Exception as error:  # out of memory on the card, say: the reason belongs to who asked
            return self._send(500, {"error": f"{type(error).__name__}: {error}"})
        self._send(200, told)

    def _read(self) -> tuple[str, list[list[Message]]]:
        size = int(self.headers.get("Content-Length") or 0)
        if not 0 < size <= LARGEST_BODY:
            raise ValueError(f"a body of {size} bytes: send 1 to {LARGEST_BODY}")
        body = json.loads(self.rfile.read(size))
        name = "prompts" if "prompts" in body else "conversations"
        found = [[{"role": m["role"], "content": m["content"]} for m in one] for one in body[name]]
        if not all(isinstance(text, str) for one in found for m in one for text in m.values()):
            raise ValueError("role and content of every message must be text")
        return name, found

    def _send(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A request is no news."""
