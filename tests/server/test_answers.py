"""The answer after which the gateway closes a connection."""

from __future__ import annotations

import json

from app.core.errors import BadRequestError
from app.server.answers import closing_answer


def test_it_is_a_whole_response() -> None:
    """Status, the server's headers, the problem's headers, and the problem."""
    answer = closing_answer(BadRequestError("wrong", code="some-code"), [(b"date", b"today")])
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")

    assert status == "HTTP/1.1 400 Bad Request"
    assert headers[0] == "date: today"
    assert headers[-1] == "connection: close"
    assert f"content-length: {len(body)}" in headers
    assert json.loads(body)["code"] == "some-code"
