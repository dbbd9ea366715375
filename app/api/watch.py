"""``GET /v1/watch``: get and watch, as Server-Sent Events or NDJSON."""

from __future__ import annotations

import sys
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from ..access.identity import Identity
from ..core.cursor import Cursor, parse_cursor
from ..core.errors import GatewayError, OverCapacityError
from ..core.interned import interned
from ..core.negotiation import format_of, names_event_stream
from ..core.selection import Selection
from ..gateway import Gateway
from .requests import (
    PERMITTED,
    address_of,
    caller_of,
    coding_for,
    header_of,
    headers_of,
    identity_of,
    is_from_gateway,
    once_per_request,
    query_of,
    request_id_of,
)
from .stream_response import StreamResponse
from .watch_query import parse
from .watch_request import WatchRequest


def cursor_of(header: str | None, query: bytes | None) -> Cursor | None:
    """Return the request's cursor. The header ``Last-Event-ID`` beats the one in the *query*.

    A cursor that is present counts, even if it is empty or unreadable: a 400 would close an EventSource for good.
    """
    if header is not None:
        return parse_cursor(header)
    return parse_cursor(query.decode("utf-8", "replace")) if query is not None else None


class WatchEndpoint:
    """The endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def get(self, request: Request) -> Response:
        """Answer one request. This method refuses permanent errors; the stream itself refuses transient ones."""
        gateway = self._gateway
        try:
            asked = await self.parse_and_authorize(request)
            refused = asked.from_gateway and not gateway.upstream.can_be_followed
            return StreamResponse(gateway.streams, asked, gateway.upstream.condition.error() if refused else None)
        except OverCapacityError as error:
            return StreamResponse(gateway.streams, _early(request), error)
        except GatewayError as error:
            if request.method == "GET":  # a HEAD does not ask for a stream
                gateway.streams.counters.refused[error.code] += 1
            raise

    async def parse_and_authorize(self, request: Request) -> WatchRequest:
        """Return what a request asks for. Raises GatewayError: the request is wrong, or not allowed."""

        async def work() -> WatchRequest:
            return self._parse_and_authorize(
                request, await identity_of(self._gateway, request.scope, joins=request.method == "GET")
            )

        return await once_per_request(request, work)

    def _parse_and_authorize(self, request: Request, identity: Identity) -> WatchRequest:
        query = parse(query_of(request))
        selection, permitted_only = query.selection, query.permitted_only
        asked = ranges = selection.ranges
        keys_only = selection.keys_only
        accept = ",".join(headers_of(request, b"accept"))
        chosen = format_of(accept, query.format)
        access = self._gateway.access
        permit = None
        if permitted_only:
            ranges = request.scope[PERMITTED] = access.permitted(identity, asked, keys_only=keys_only)
            if access.may_end(identity):
                permit = access.permit(identity, asked, ranges, keys_only=keys_only, permitted_only=True)
        elif access.may_end(identity):
            permit = access.admit(identity, ranges, keys_only=keys_only)
        else:
            access.authorize(identity, ranges, keys_only=keys_only)
        return WatchRequest(
            interned(replace(selection, ranges=ranges)) if permitted_only else selection,
            chosen,
            cursor_of(header_of(request, b"last-event-id"), query.cursor),
            query.snapshot,
            holdable=names_event_stream(accept),
            address=address_of(request),
            user_agent=sys.intern((header_of(request, b"user-agent") or "")[:256]),  # one object for equal clients
            request_id=request_id_of(request),
            interval=query.interval,
            min_revision=query.min_revision,
            caller=caller_of(self._gateway, request.scope, identity),
            permit=permit,
            from_gateway=is_from_gateway(request),
            coding=coding_for(self._gateway, request, ranges),
        )


def _early(request: Request) -> WatchRequest:
    """Return what a refusal needs that comes before the credentials and the parameters are checked."""
    accept = ",".join(headers_of(request, b"accept"))
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
