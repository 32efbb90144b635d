"""The HTTP half of the simulated judge: the standard library's threading server, on the loopback only."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from starling_nb.errors import StarlingError
from starling_nb.judge.simulation.batch_server import Batches, BatchRules
from starling_nb.judge.simulation.failures import Failures
from starling_nb.judge.simulation.file_server import PIECE, Files, Stored
from starling_nb.judge.simulation.protocol import Backend, Refused, stumbled

LARGEST_BODY = 16 * 2**20  # bytes, files apart


def serve(
    backend: Backend, port: int = 0, rules: BatchRules | None = None, failures: Failures | None = None
) -> tuple[Callable[[], None], str]:
    """Serve in a thread of its own; returns a function that stops it, and the base URL.

    Files and batches live in a temporary folder and end with the server; ``rules`` and ``failures`` say how
    batches run.

    Raises:
        StarlingError: the port is taken.
    """
    handler: type[_Handler] = type("Handler", (_Handler,), {"backend": backend})
    try:
        server = _Server(("127.0.0.1", port), handler)
    except OSError as error:
        raise StarlingError(f"port {port} cannot be used ({error.strerror}): choose another, or 0 for any") from error
    folder = tempfile.mkdtemp(prefix="starling_nb-judge-")
    handler.files = files = Files(Path(folder))
    handler.batches = batches = Batches(backend, files, rules or BatchRules(), failures or Failures({}, 0))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join()
        server.hang_up()
        server.server_close()
        batches.close()
        shutil.rmtree(folder, ignore_errors=True)

    return stop, f"http://127.0.0.1:{server.server_address[1]}/v1"


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: dict[Any, threading.Thread] = {}
        self._guard = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        arguments = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=arguments, daemon=True)
        with self._guard:
            self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that clients keep alive, and wait for their threads."""
        with self._guard:
            connections = dict(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):  # the client was quicker
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections.values():
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections alive
    disable_nagle_algorithm = True
    backend: Backend
    files: Files
    batches: Batches

    def do_GET(self) -> None:
        """Models, files, batches, and a file's content."""
        self._answer("GET")

    def do_POST(self) -> None:
        """A chat completion, an upload, a new batch, or the end of one."""
        self._answer("POST")

    def do_DELETE(self) -> None:
        """The end of a file."""
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        try:
            url = urlsplit(self.path)
            found = self._find(method, url.path.strip("/").split("/"), dict(parse_qsl(url.query)))
        except Refused as refused:
            return self._error(refused)
        except Exception as error:
            return self._error(stumbled(error))
        if isinstance(found, Stored):
            return self._send_file(found)
        self._send(200, found)

    def _find(self, method: str, path: list[str], query: Mapping[str, str]) -> object:
        if (method, path) == ("POST", ["v1", "files"]):
            return self._upload()
        body = self._body()
        match (method, *path):
            case ("GET", "v1", "models"):
                return {"object": "list", "data": [_model(name) for name in self.backend.models()]}
            case ("POST", "v1", "chat", "completions"):
                return self.backend.complete(_parsed(body))
            case ("GET", "v1", "files"):
                return self.files.page(query)
            case ("GET", "v1", "files", name):
                return self.files.get(name).describe()
            case ("GET", "v1", "files", name, "content"):
                return self.files.get(name)
            case ("DELETE", "v1", "files", name):
                return self.files.delete(name)
            case ("POST", "v1", "batches"):
                return self.batches.create(_parsed(body))
            case ("GET", "v1", "batches"):
                return self.batches.page(query)
            case ("GET", "v1", "batches", name):
                return self.batches.get(name)
            case ("POST", "v1", "batches", name, "cancel"):
                return self.batches.cancel(name)
        raise Refused(404, "not_found", f"no {method} at {self.path}: try /v1/models, chat/completions, files, batches")

    def _body(self) -> bytes:
        length = self._length()
        if not 0 <= length <= LARGEST_BODY:
            self.close_connection = True
            raise Refused(413, "bad_length", f"a request needs a Content-Length of at most {LARGEST_BODY} bytes")
        return self.rfile.read(length)

    def _upload(self) -> dict[str, Any]:
        if (length := self._length()) < 0:
            self.close_connection = True
            raise Refused(411, "bad_length", "an upload needs a Content-Length")
        return self.files.upload(self.headers.get("Content-Type", ""), length, self.rfile)

    def _length(self) -> int:
        """Bytes of the body; -1 where they are not told."""
        text = self.headers.get("Content-Length", "" if self.command == "POST" else "0")
        return int(text) if text.isdecimal() else -1

    def _error(self, refused: Refused) -> None:
        self._send(refused.status, refused.body(), refused.headers)

    def _send(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def _send_file(self, stored: Stored) -> None:
        try:
            stream = stored.open()
        except Refused as refused:
            return self._error(refused)
        with stream:
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(stored.length))
            self.end_headers()
            left = stored.length
            while left > 0 and (piece := stream.read(min(PIECE, left))):
                self.wfile.write(piece)
                left -= len(piece)

    def log_message(self, format: str, *args: object) -> None:
        """Silence: the ledger is the log."""


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "starling_nb"}


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "bad_json", f"the body is not JSON ({error})") from error
    if not isinstance(body, dict):
        raise Refused(400, "bad_json", "the body must be a JSON object")
    return body
