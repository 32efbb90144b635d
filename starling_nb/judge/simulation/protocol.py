"""What all parts of the simulated judge's server share: refusals, the backend, and pages of a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Refused(Exception):  # noqa: N818  (an HTTP answer, not a fault of the program)
    """An HTTP error to answer with."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON that says what is wrong."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}


class Backend(Protocol):
    """What the server needs of a judge."""

    def models(self) -> list[str]: ...
    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]: ...


def stumbled(error: Exception) -> Refused:
    """The protocol's answer to a fault of the program."""
    return Refused(500, "server_error", f"{type(error).__name__}: {error}")


def page(rows: Sequence[dict[str, Any]], query: Mapping[str, str], usual: int, most: int) -> dict[str, Any]:
    """The part of ``rows`` that ``limit`` and ``after`` in the query ask for, as a list object.

    Raises:
        Refused: ``limit`` is no number from 1 to ``most``, or no row has the id ``after``.
    """
    text = query.get("limit", str(usual))
    limit = int(text) if text.isdecimal() else 0
    if not 1 <= limit <= most:
        raise Refused(400, "bad_parameter", f"limit must be a whole number from 1 to {most}")
    names, start = [row["id"] for row in rows], 0
    if (after := query.get("after")) is not None:
        if after not in names:
            raise Refused(404, "not_found", f"nothing has the id {after!r}: take after from the page before")
        start = names.index(after) + 1
    part = list(rows[start : start + limit])
    first, last = (part[0]["id"], part[-1]["id"]) if part else (None, None)
    more = start + limit < len(rows)
    return {"object": "list", "data": part, "first_id": first, "last_id": last, "has_more": more}
