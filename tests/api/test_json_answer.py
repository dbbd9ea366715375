"""``app.api.json_answer``: one JSON object in a line, which no cache keeps."""

from __future__ import annotations

from starlette.responses import Response

from app.api.json_answer import json_answer, json_text


def headers_of(answer: Response) -> dict[str, str]:
    """The headers of an answer, without its length."""
    return {name: value for name, value in answer.headers.items() if name != "content-length"}


def test_a_body_is_one_line() -> None:
    """The line ends, so that a shell's prompt does not follow the last brace."""
    answer = json_answer({"status": "ü"}, 503)
    assert (answer.status_code, bytes(answer.body)) == (503, '{"status":"ü"}\n'.encode())
    assert headers_of(answer) == {"cache-control": "no-store", "content-type": "application/json"}


def test_a_body_that_is_encoded_stays_as_it_is() -> None:
    """It comes from another process. Further headers stand beside the common ones."""
    answer = json_text(b"{}\n", headers={"Set-Cookie": "a=b"})
    assert (answer.status_code, bytes(answer.body)) == (200, b"{}\n")
    expected = {"cache-control": "no-store", "content-type": "application/json", "set-cookie": "a=b"}
    assert headers_of(answer) == expected
