"""Answers that are a JSON object in one line, which no cache may keep."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from ..core.encoding import compact

NO_STORE = {"Cache-Control": "no-store"}


def json_answer(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer with *body*. *headers*: further ones."""
    return json_text(compact(body) + "\n", status, headers)


def json_text(text: str | bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer with a body that is encoded already."""
    return Response(text, status, {**NO_STORE, **(headers or {})}, media_type="application/json")
