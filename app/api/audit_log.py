"""One line in the audit log for each request that is not a stream: reads, refusals, and what operators look at.

A stream writes its own lines: when it joins, and when its permission ends (``app.access.permit``).
"""

from __future__ import annotations

import time
from urllib.parse import unquote_to_bytes

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..access import audit
from ..access.control import AccessControl
from ..access.identity import Identity
from ..core.errors import TransientError
from ..core.keys import KeyRange, Kind
from ..core.selection import MOST_RANGES
from .requests import IDENTITY, PERMITTED, REFUSED, address_of

# Paths that probes and scrapers ask for every few seconds, and pages that hold no data.
UNLOGGED = frozenset({"/livez", "/readyz", "/", "/docs", "/openapi.json", "/.well-known/oauth-protected-resource"})
# The files of these pages: a page loads two dozen of them.
_FILES = ("/page/", "/docs/")
REFUSALS = frozenset({401, 403})
# No endpoint has answered, so nothing has looked at the credentials.
_NO_ENDPOINT = frozenset({404, 405})
_KINDS: dict[bytes, Kind] = {b"prefix": "prefix", b"key": "key"}
_OF_KEYS = frozenset({b"keys_only=1", b"keys_only=true", b"count_only=1", b"count_only=true"})


class AuditLog:
    """Middleware, around all other middleware but the bypasses of streams.

    *is_open*: the app's endpoints look at no credentials (``check_operator``).
    """

    def __init__(self, app: ASGIApp, access: AccessControl, *, is_open: bool = False) -> None:
        self._app = app
        self._access = access
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and write the line when the head of the response is sent."""
        # A preflight has no credentials, and reads nothing.
        unlogged = scope["type"] != "http" or scope["method"] == "OPTIONS" or _is_unlogged(scope["path"])
        if unlogged or not audit.enabled():
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def noted(message: Message) -> None:
            # A HEAD of a stream gets the head of a stream, and no stream writes lines of its own.
            begins = message["type"] == "http.response.start"
            if begins and (REFUSED in scope or not (scope["method"] == "GET" and _is_stream(message))):
                self._write(Request(scope), message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, noted)

    def _write(self, request: Request, status: int, seconds: float) -> None:
        identity: Identity | None = request.scope.get(IDENTITY)
        raw = request.scope["query_string"]
        ranges = request.scope.get(PERMITTED) or ranges_in(raw)
        refusal: TransientError | None = request.scope.get(REFUSED)
        meant = status if refusal is None else refusal.status  # an EventSource would give up after another one than 200
        # Without an identity an endpoint has not accepted the credentials, whatever the status is.
        unknown = identity is None and meant not in _NO_ENDPOINT and not self._is_open
        refused = meant in REFUSALS or (unknown and meant >= 400)
        decision: audit.Decision = "refused" if refused else "permitted" if meant < 400 else "failed"
        if refused and (unknown or meant == 401):  # 401 with an identity: the credentials have ended meanwhile
            rule = "credentials"
        elif identity is None or refused or not ranges:
            rule = ""
        else:
            rule = self._access.rule(identity, tuple(ranges), keys_only=_of_keys(raw))
        audit.write(
            decision,
            identity,
            ranges,
            rule=rule,
            address=address_of(request),
            method=request.method,
            path=request.url.path,
            status=status,
            seconds=round(seconds, 3),
            **({} if refusal is None else {"code": refusal.code}),
        )


def _of_keys(raw: bytes) -> bool:
    return any(unquote_to_bytes(part).lower() in _OF_KEYS for part in raw.split(b"&"))


def _is_unlogged(path: str) -> bool:
    return path in UNLOGGED or path.startswith(_FILES)


def _is_stream(message: Message) -> bool:
    return message["status"] == 200 and any(name == b"x-gateway-instance" for name, _ in message.get("headers", ()))


def ranges_in(raw: bytes) -> list[KeyRange]:
    """Return the ranges that a query names, also in a query that is refused. No other parameter goes into the log."""
    found: list[KeyRange] = []
    for part in raw.split(b"&"):
        name, _, value = part.partition(b"=")
        kind = _KINDS.get(unquote_to_bytes(name) if b"%" in name else name)
        if kind is not None and len(found) < MOST_RANGES:
            found.append(KeyRange(kind, unquote_to_bytes(value.replace(b"+", b" "))))
    return found
