"""The HTTP half of the simulated judge: the standard library's threading server, on the loopback only."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from starling_nb.errors import StarlingError

LARGEST_BODY = 16 * 2**20  # bytes


class Refused(Exception):  # noqa: N818  (an HTTP answer, not a fault of the program)
    """An HTTP error to answer with."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})


class Backend(Protocol):
    """What the server needs of a judge."""

    def models(self) -> list[str]: ...
    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]: ...


def serve(backend: Backend, port: int = 0) -> tuple[Callable[[], None], str]:
    """Serve in a thread of its own; returns a function that stops it, and the base URL.

    Raises:
        StarlingError: the port is taken.
    """
    handler = type("Handler", (_Handler,), {"backend": backend})
    try:
        server = _Server(("127.0.0.1", port), handler)
    except OSError as error:
        raise StarlingError(f"port {port} cannot be used ({error.strerror}): choose another, or 0 for any") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join()
        server.hang_up()
        server.server_close()

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

    def do_GET(self) -> None:
        """The list of models."""
        if self.path.rstrip("/") != "/v1/models":
            return self._error(Refused(404, "not_found", f"nothing at {self.path}: try /v1/models"))
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "starling_nb"} for name in self._names()]
        self._send(200, {"object": "list", "data": rows})

    def do_POST(self) -> None:
        """A chat completion."""
        try:
            body = self._body()
            if self.path.rstrip("/") != "/v1/chat/completions":
                raise Refused(404, "not_found", f"nothing at {self.path}: try /v1/chat/completions")
            self._send(200, self.backend.complete(body))
        except Refused as refused:
            self._error(refused)
        except Exception as error:  # the protocol's answer to a fault of the program
            self._error(Refused(500, "server_error", f"{type(error).__name__}: {error}"))

    def _names(self) -> list[str]:
        return self.backend.models()

    def _body(self) -> dict[str, Any]:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= LARGEST_BODY:
            self.close_connection = True
            raise Refused(413, "bad_length", f"a request needs a Content-Length of at most {LARGEST_BODY} bytes")
        try:
            body = json.loads(self.rfile.read(length))
        except (ValueError, RecursionError) as error:
            raise Refused(400, "bad_json", f"the body is not JSON ({error})") from error
        if not isinstance(body, dict):
            raise Refused(400, "bad_json", "the body must be a JSON object")
        return body

    def _error(self, refused: Refused) -> None:
        kind = "server_error" if refused.status >= 500 else "invalid_request_error"
        error = {"message": str(refused), "type": kind, "param": None, "code": refused.code}
        self._send(refused.status, {"error": error}, refused.headers)

    def _send(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Silence: the ledger is the log."""
