"""Parts of a request that more than one endpoint reads."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import get_args

from starlette.requests import Request

from ..core.encoding import Encoding
from ..core.query import parse_choice

ENCODINGS: tuple[str, ...] = get_args(Encoding)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def address_of(request: Request) -> str:
    """Return ``host:port`` of the client, or of the client that a proxy names (uvicorn's proxy headers)."""
    client = request.client
    if client is None:
        return "unknown"
    host = f"[{client.host}]" if ":" in client.host else client.host
    return f"{host}:{client.port}"


def request_id_of(request: Request) -> str:
    """Return the ``X-Request-Id`` that a proxy has set, if it is harmless; otherwise a new id."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def authorization_of(request: Request) -> bytes:
    """Return the ``Authorization`` header in the bytes that the client sent; empty if there is no such header."""
    return request.headers.get("authorization", "").encode("latin-1")


def query_of(request: Request) -> bytes:
    """Return the raw query string."""
    raw: bytes = request.scope["query_string"]
    return raw


def encoding_of(query: Mapping[str, bytes]) -> str:
    """Return the encoding of keys and values in the response. Raises BadRequestError for an unknown encoding."""
    return parse_choice(query, "encoding", ENCODINGS) or "auto"
