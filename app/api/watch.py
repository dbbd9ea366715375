"""``GET /v1/watch``: get and watch, as Server-Sent Events or NDJSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import get_args

from starlette.requests import Request
from starlette.responses import Response

from ..access.identity import Identity
from ..core.cursor import Cursor, parse_cursor
from ..core.errors import BadRequestError, GatewayError, OverCapacityError
from ..core.frames import Format
from ..core.negotiation import format_of, names_event_stream
from ..core.query import parse_choice, parse_flag, parse_query, parse_ranges, parse_revision, text
from ..core.selection import Selection
from ..core.shared import shared
from ..gateway import Gateway
from ..units import seconds
from .requests import (
    address_of,
    caller_of,
    coding_for,
    encoding_of,
    header_of,
    identity_of,
    query_of,
    request_id_of,
    scope_of,
    understood_once,
)
from .stream_response import StreamResponse, WatchRequest

# Query parameters that hold a cursor, the newest cursor first. event-source-polyfill and reconnecting-eventsource
# cannot send the header, or do not send it: when they reconnect, they append `lastEventId` to the URL that they were
# given. That URL may already have `last_event_id`, and even an older `lastEventId`.
_APPENDED = "lastEventId"
_CURSORS = (_APPENDED, "last_event_id")
FORMATS: tuple[str, ...] = get_args(Format)
MODES = ("latest",)
# Seconds between two flushes of ``mode=latest``. The least is a slot of the timers (``app.stream.timers``).
LEAST_INTERVAL, MOST_INTERVAL, DEFAULT_INTERVAL = 0.05, 60.0, 0.5
_KNOWN = frozenset({
    "key", "prefix", "scope", "snapshot", "keys_only", "encoding", "format", "mode", "interval", "min_revision",
    "last_event_id", "lastEventId",
})  # fmt: skip


def cursor_of(header: str | None, query: Mapping[str, bytes]) -> Cursor | None:
    """Return the request's cursor. ``Last-Event-ID`` beats ``lastEventId``, which beats ``last_event_id``.

    A cursor that is present counts, even if it is empty or unreadable: a 400 would close an EventSource for good.
    """
    if header is not None:
        return parse_cursor(header)
    for name in _CURSORS:
        if name in query:
            return parse_cursor(query[name].decode("utf-8", "replace"))
    return None


def interval_of(query: Mapping[str, bytes]) -> float:
    """Return the seconds between two flushes of ``mode=latest``; 0 for a stream of every event.

    Raises:
        BadRequestError: the interval is not allowed, or has no mode that it belongs to.
    """
    latest = parse_choice(query, "mode", MODES) == "latest"
    value = query.get("interval")
    if value is None:
        return DEFAULT_INTERVAL if latest else 0.0
    if not latest:
        raise BadRequestError(
            "'interval' is for 'mode=latest' only; add 'mode=latest', or leave 'interval' out",
            code="conflicting-parameters",
            parameter="interval",
        )
    try:
        interval = float(seconds(text(value)))
    except ValueError:
        interval = 0.0
    if not LEAST_INTERVAL <= interval <= MOST_INTERVAL:
        raise BadRequestError(
            f"'interval' must be a duration from 50ms to 60s, like 500ms, 1s or 2, not {text(value)!r}",
            parameter="interval",
        )
    return interval


class Watch:
    """The endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def get(self, request: Request) -> Response:
        """Answer one request. This method refuses permanent errors; the stream itself refuses transient ones."""
        try:
            return StreamResponse(self._gateway.streams, await self.understand(request))
        except OverCapacityError as error:
            return StreamResponse(self._gateway.streams, _early(request), error)
        except GatewayError as error:
            if request.method == "GET":  # a HEAD does not ask for a stream
                self._gateway.streams.counters.refused[error.code] += 1
            raise

    async def understand(self, request: Request) -> WatchRequest:
        """Return what a request asks for. Raises GatewayError: the request is wrong, or not allowed."""

        async def understand() -> WatchRequest:
            return self._understand(
                request, await identity_of(self._gateway, request.scope, joins=request.method == "GET")
            )

        return await understood_once(request, understand)

    def _understand(self, request: Request, identity: Identity) -> WatchRequest:
        query = parse_query(query_of(request), _KNOWN, lenient=set(_CURSORS), appended={_APPENDED})
        asked = ranges = parse_ranges(query)
        encoding = encoding_of(query)
        keys_only = parse_flag(query, "keys_only", default=False)
        snapshot = parse_flag(query, "snapshot", default=True)
        interval = interval_of(query)
        min_revision = parse_revision(query, "min_revision")
        accept = header_of(request, b"accept") or ""
        chosen = format_of(accept, parse_choice(query, "format", FORMATS))
        cut = scope_of(query)
        access = self._gateway.access
        if cut:
            ranges = access.permitted(identity, asked, keys_only=keys_only)
        else:
            access.authorize(identity, ranges, keys_only=keys_only)
        permit = None
        if access.may_end(identity):
            permit = access.permit(identity, asked, ranges, keys_only=keys_only, cut=cut)
        return WatchRequest(
            shared(Selection(ranges, encoding=encoding, keys_only=keys_only)),
            chosen,
            cursor_of(header_of(request, b"last-event-id"), query),
            snapshot,
            holdable=names_event_stream(accept),
            address=address_of(request),
            user_agent=sys.intern((header_of(request, b"user-agent") or "")[:256]),  # one object for equal clients
            request_id=request_id_of(request),
            interval=interval,
            min_revision=min_revision,
            caller=caller_of(self._gateway, request.scope, identity),
            permit=permit,
            from_gateway=header_of(request, b"x-gateway-tier") is not None,
            coding=coding_for(self._gateway, request, ranges),
        )


def _early(request: Request) -> WatchRequest:
    """Return what the refusal of a request needs whose credentials and parameters nobody has looked at."""
    accept = header_of(request, b"accept") or ""
    return WatchRequest(
        Selection(()),
        format_of(accept, None),
        None,
        snapshot=True,
        holdable=names_event_stream(accept),
        address=address_of(request),
        user_agent="",
        request_id=request_id_of(request),
    )
