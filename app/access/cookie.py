"""The cookie of a browser's session: its name and its attributes."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.errors import BadRequestError
from .proxy import Headers

# ``__Host-``: browsers accept the cookie only with Secure, Path=/ and without Domain, so no other host can set it.
COOKIE = "__Host-etcd-watch-session"
# Bytes of ``name=value``. RFC 6265 asks browsers to take as many, and they take no more.
MAX_COOKIE = 4096


def set_cookie(value: str, max_age: int) -> str:
    """Return the header ``Set-Cookie``. *max_age*: seconds; 0 removes the cookie."""
    return f"{COOKIE}={value}; Max-Age={max_age}; Path=/; Secure; HttpOnly; SameSite=Strict"


def cookie_in(headers: Headers) -> bytes | None:
    """Return the value of the session's cookie in the headers of a request, or None.

    Raises:
        BadRequestError: the request has two of them. A proxy in front may have looked at the other one.
    """
    name = COOKIE.encode()
    split = (pair.partition(b"=") for pair in _pairs(headers))
    found = [value.strip(b" \t") for key, _, value in split if key.strip(b" \t") == name]
    if len(found) > 1:
        raise BadRequestError("the request has two session cookies; send one", code="conflicting-credentials")
    return found[0] if found else None


def _pairs(headers: Headers) -> Iterable[bytes]:
    return (pair for name, value in headers if name == b"cookie" for pair in value.split(b";"))
