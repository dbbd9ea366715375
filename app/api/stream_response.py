"""The response to ``GET /v1/watch``: the head, then a ``Delivery`` or a refusal that an EventSource understands.

``EventSourceResponse`` provides the class, its headers and its integration in FastAPI. Its ``__call__`` is replaced,
because it runs four tasks and a ping, and its clean-up depends on a generator having started (sse-starlette #156).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Hashable

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from ..core.errors import GatewayError, TransientError, UnavailableError
from ..core.frames import comment, control, greeting
from ..core.negotiation import Coding
from ..core.reasons import QUOTA_REASONS
from ..stream.connection import Connection, StuckError
from ..stream.delivery import FAILED, Delivery
from ..stream.sink import GONE, STUCK, FastSink, make_sink
from ..stream.streams import Streams
from ..watch.subscriber import Subscriber
from .problems import problem
from .requests import REFUSED
from .watch_request import WatchRequest

logger = logging.getLogger("gateway.stream")

# The maximum number of refused EventSources that are held open at a time. Any further one is closed at once.
MAX_HELD = 1000
_MEDIA_TYPES = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}

RawHeaders = list[tuple[bytes, bytes]]


class _NoContent:
    """A placeholder for the content that ``EventSourceResponse`` requires. ``__call__`` writes the real content."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise NotImplementedError("never iterated: StreamResponse replaces __call__")


def common_headers(chosen: str, coding: Coding, instance: str, tier: int | None) -> RawHeaders:
    """Return the headers of every stream of the format *chosen* and a coding: all but ``X-Request-Id``."""
    gateway = {"X-Gateway-Instance": instance} | ({} if tier is None else {"X-Gateway-Tier": str(tier)})
    varies = "Last-Event-ID, Accept, Origin" + (", Accept-Encoding" if coding is not Coding.FIXED else "")
    response = EventSourceResponse(
        _NoContent(),
        media_type=_MEDIA_TYPES[chosen],
        headers={
            "Cache-Control": "no-store, no-transform",
            "Vary": varies,
            **({"Content-Encoding": "gzip"} if coding is Coding.GZIP else {}),
            **gateway,
        },
        ping=0,
    )
    # sse-starlette sends `Connection: keep-alive`. HTTP/2 forbids this header. It also contradicts the `close` that the
    # server sends to HTTP/1.0 clients, and to clients that ask for `close`.
    del response.headers["connection"]
    return response.raw_headers


class StreamResponse(EventSourceResponse):
    """See the module. *refusal*: the request has already been refused for now."""

    def __init__(self, streams: Streams, asked: WatchRequest, refusal: TransientError | None = None) -> None:
        super().__init__(_NoContent(), ping=0)
        common = common_headers(asked.format, asked.coding, streams.instance, streams.tier())
        self.raw_headers = [*common, asked.id_header]
        self._streams = streams
        self._asked = asked
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. Return at its end, or when the sink no longer needs ASGI."""
        if scope["method"] == "HEAD":
            await self._head(scope, receive, send)
            return
        try:
            if self._refusal is not None:
                raise self._refusal
            subscriber = await subscribe(self._streams, self._asked)
        except TransientError as error:
            await self._refuse(error, scope, receive, send)
            return
        except GatewayError as error:
            self._streams.counters.refused[error.code] += 1
            raise
        headers = self.raw_headers
        history = subscriber.channel.history
        if self._asked.from_gateway and history.joinable:
            # The gateway below is current when it has come as far.
            headers = [*headers, (b"x-etcd-revision", str(history.log.tip).encode())]
        await deliver(self._streams, self._asked, subscriber, headers, scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as to a GET, but do not subscribe: a load balancer's check must not cost etcd anything."""
        try:
            if self._refusal is not None:
                raise self._refusal
            self._streams.capacity.check()
            await self._streams.registry.check_join(self._asked.selection.ranges, self._asked.caller)
        except TransientError as error:
            if not self._asked.holdable:
                retry_after = self._streams.retry_ms(error.retry_factor) / 1000
                await problem(error, retry_after=retry_after)(scope, receive, send)
                return
            scope[REFUSED] = error
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _refuse(self, error: TransientError, scope: Scope, receive: Receive, send: Send) -> None:
        streams = self._streams
        streams.counters.refused[error.code] += 1
        retry_ms = streams.retry_ms(error.retry_factor)
        logger.warning(
            "refused",
            extra={
                "range": " ".join(self._asked.selection.names),
                "code": error.code,
                "cause": error.cause,
                "address": self._asked.address,
            },
        )
        if not self._asked.holdable:
            await problem(error, retry_after=retry_ms / 1000)(scope, receive, send)
            return
        scope[REFUSED] = error
        async with Connection(scope, receive, send, streams.settings.send_timeout) as connection:
            await connection.start(self.status_code, self.raw_headers)
            await connection.send(greeting(self._asked.form, streams.instance, retry_ms))
            # A client that is above a quota and asks again and again must leave room for other refused clients.
            most = MAX_HELD // 2 if error.code in QUOTA_REASONS else MAX_HELD
            if len(streams.held) < most and streams.capacity.has_room and not streams.registry.draining:
                await self._hold(connection, retry_ms / 1000)
            if not connection.gone:
                members: dict[str, Hashable] = {"reason": error.close_reason, "retry_ms": retry_ms}
                if isinstance(error, UnavailableError):
                    members["detail"] = error.detail
                close = control(self._asked.form, "close", members)
                await connection.send(close, more=False)

    async def _hold(self, connection: Connection, seconds: float) -> None:
        """Keep the connection open for *seconds*: an EventSource that is refused at once reconnects at once.

        Without heartbeats, the client or a proxy would take the connection for dead.
        """
        over = asyncio.Event()
        self._streams.held.add(over)
        connection.on_gone = over.set
        try:
            while not over.is_set():
                pause = min(seconds, self._streams.settings.heartbeat)
                seconds -= pause
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await over.wait()
                    return
                if seconds <= 0:
                    return
                await connection.send(comment(self._asked.form, "waiting"))
        finally:
            self._streams.held.discard(over)


async def subscribe(streams: Streams, asked: WatchRequest) -> Subscriber:
    """Join the feed that the request asks for. The caller must release the subscriber, or ``deliver`` to it.

    Raises:
        TransientError: there is no room, or nothing to join; nothing is held.
        UnauthorizedError, ForbiddenError: the access rules have changed since the request was authorized.
    """
    if asked.permit is not None:
        asked.permit.check()
    streams.capacity.check()
    subscriber = await streams.registry.join(
        asked.selection.ranges,
        address=asked.address,
        user_agent=asked.user_agent,
        request_id=asked.request_id,
        has_cursor=asked.cursor is not None and asked.cursor.epoch is not None and not asked.cursor.empty,
        caller=asked.caller,
    )
    subscriber.from_gateway = asked.from_gateway
    if asked.permit is not None:
        subscriber.permit = asked.permit  # from here on, a change of the rules ends the stream
        try:
            asked.permit.check()  # check again: a worker has asked the hub in between
            asked.permit.note("joined", address=asked.address, request_id=asked.request_id)
        except BaseException:
            subscriber.release()
            raise
    return subscriber


async def deliver(
    streams: Streams,
    asked: WatchRequest,
    subscriber: Subscriber,
    headers: RawHeaders,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    lines: bytes = b"",
) -> None:
    """Send the head and then the stream. Return at its end, or when the sink no longer needs ASGI.

    The subscriber is released however this ends. *lines*: the headers as they are on the wire, if no middleware has to
    see them.
    """
    try:
        connection = Connection(scope, receive, send, streams.settings.send_timeout)
        sink = make_sink(streams.settings.sink, connection, streams.chunks, streams.finishing, streams.leaves)
        reader = streams.reader(
            subscriber.channel,
            asked.selection,
            form=asked.form,
            cursor=asked.cursor,
            snapshot=asked.snapshot,
            interval=asked.interval,
            min_revision=asked.min_revision,
            for_gateway=asked.from_gateway,
        )
        delivery = Delivery(streams, subscriber, reader, sink)
    except BaseException:
        subscriber.release()  # no delivery owns the subscriber yet
        raise
    try:
        async with connection:
            if not isinstance(sink, FastSink):
                await connection.start(200, headers)
            elif lines:
                sink.give_head(lines)
            else:
                await connection.start(200, [*headers, (b"connection", b"close")])  # as ``Server.head_of``
            delivery.begin()
            await sink.run(delivery)
    except StuckError:
        delivery.end(STUCK)
    except asyncio.CancelledError:
        delivery.cancelled()
        raise
    except BaseException:
        delivery.end(GONE if connection.gone or connection.client.lost else FAILED)
        raise
