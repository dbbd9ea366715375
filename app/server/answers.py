"""The answer to bytes that are not a request: a problem, as every other error gets, after which the connection ends."""

from __future__ import annotations

from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from ..api.problems import problem
from ..core.errors import BadRequestError


def closing_answer(error: BadRequestError, headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """Return the whole response for *error*. *headers* come first."""
    answer = problem(error)
    lines = [*headers, *answer.raw_headers, (b"connection", b"close")]
    head = b"".join(b"%b: %b\r\n" % header for header in lines)
    return b"".join((STATUS_LINE[error.status], head, b"\r\n", answer.body))
