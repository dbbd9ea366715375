"""httpx on asyncio's streams: a connection is closed in the same turn in which nobody needs it any more.

httpx's own transport awaits while it closes. A task that is cancelled meanwhile leaves its connection open for ever: by
a timeout and by its owner, or because it has cancelled itself before. The upstream then goes on to serve a stream that
nobody reads, and to hold etcd's watch. A feed cancels its watch from the watch's own task when the upstream says
``reset``: 120 of 120 resets left such a stream. With uvloop, a single cancel was enough to leave a connection to a Unix
socket open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
import httpx

from ..dial import Streams
from ..ports import Clock
from .dial import Dial

# Bytes that are read at a time.
PIECE = 64 * 1024
# Connections that wait for the next request at most: of the descriptors that are reserved anyway
# (`app.descriptors.RESERVE`).
MOST_IDLE = 16
# Seconds for which a connection waits. Servers and proxies close theirs later.
IDLE_TIMEOUT = 5.0

# Bytes of a head: as many as a gateway takes (`app.server.protocol.MAX_HEAD`).
MOST_HEAD = 64 * 1024

# Where a connection leads: scheme, host, port.
Origin = tuple[str, str, int | None]


@dataclass(slots=True)
class _Connection:
    origin: Origin
    streams: Streams
    http: h11.Connection
    idle_since: float = 0.0

    async def event(self) -> Any:
        """Return the next event of the answer."""
        reader, _ = self.streams
        try:
            while (event := self.http.next_event()) is h11.NEED_DATA:
                self.http.receive_data(await reader.read(PIECE))
        except (OSError, h11.RemoteProtocolError) as error:
            raise httpx.ReadError(str(error) or type(error).__name__) from None
        return event

    def send(self, request: httpx.Request) -> None:
        """Send a request without a body.

        A connection may be lost as soon as it is made: a load balancer without a gateway behind it resets it. To write
        to it would be a RuntimeError of uvloop.
        """
        _, writer = self.streams
        if writer.is_closing():
            raise httpx.WriteError("the other end has closed the connection at once")
        sent = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        writer.write(self.http.send(sent) or b"")
        writer.write(self.http.send(h11.EndOfMessage()) or b"")

    @property
    def usable(self) -> bool:
        """Whether the other end has neither closed the connection, nor sent what nobody has asked for.

        Proxies say 408 on a connection that waits for long. Such bytes would be taken for the answer to the next
        request, and each further answer for that to the request after its own.
        """
        reader, writer = self.streams
        return not (writer.is_closing() or self.http.trailing_data[0] or _has_more(reader))

    def close(self) -> None:
        """Close at once. What has not arrived is not wanted: TLS must not wait for the other end's farewell."""
        _, writer = self.streams
        writer.transport.abort()


def _has_more(reader: asyncio.StreamReader) -> bool:
    """Whether a read would not wait, because bytes or an end have come. If so, the read has taken a byte."""
    read = reader.read(1)
    try:
        read.send(None)
    except (StopIteration, OSError):
        return True
    finally:
        read.close()
    return False


class CutError(httpx.ReadError):
    """The connection ended within an answer, after its head."""


class StreamTransport(httpx.AsyncBaseTransport):
    """See the module.

    Args:
        dial: opens connections.
    """

    def __init__(self, dial: Dial, clock: Clock = time.monotonic) -> None:
        self._dial = dial
        self._clock = clock
        self._idle: list[_Connection] = []  # the latest last

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx. Only requests without a body.

        Raises:
            httpx.TransportError: nobody listens, or what comes is not HTTP.
        """
        connection = await self._connect(request.url)
        try:
            connection.send(request)
            head = await connection.event()
            while isinstance(head, h11.InformationalResponse):
                head = await connection.event()
            if not isinstance(head, h11.Response):
                raise httpx.ReadError("the connection ended before an answer")
            if head.status_code == HTTPStatus.REQUEST_TIMEOUT:
                # A proxy has said so before it saw this request, and what comes next may be the answer.
                raise httpx.ReadError("408: the connection had waited for too long")
        except BaseException:
            connection.close()
            raise
        stream = _Stream(self, connection)
        return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=stream)

    async def _connect(self, url: httpx.URL) -> _Connection:
        origin = (url.scheme, url.host, url.port)
        self._close_old()
        for connection in reversed(self._idle):
            if connection.origin == origin:
                self._idle.remove(connection)
                return connection
        return _Connection(origin, await self._dial(url), h11.Connection(h11.CLIENT, MOST_HEAD))

    def _close_old(self) -> None:
        now = self._clock()
        kept = [one for one in self._idle if one.usable and now - one.idle_since <= IDLE_TIMEOUT]
        for connection in self._idle:
            if connection not in kept:
                connection.close()
        self._idle = kept

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection for the next request if its answer is complete; otherwise close it."""
        http = connection.http
        self._close_old()
        complete = http.our_state is h11.DONE and http.their_state is h11.DONE
        if complete and connection.usable and len(self._idle) < MOST_IDLE:
            http.start_next_cycle()
            connection.idle_since = self._clock()
            self._idle.append(connection)
        else:
            connection.close()

    async def aclose(self) -> None:
        """Close the connections that wait."""
        while self._idle:
            self._idle.pop().close()


class _Stream(httpx.AsyncByteStream):
    """The body of one answer."""

    def __init__(self, transport: StreamTransport, connection: _Connection) -> None:
        self._transport = transport
        self._connection: _Connection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None:
            try:
                event = await self._connection.event()
            except httpx.ReadError as error:
                raise CutError(str(error)) from None
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise CutError("the connection ended within an answer")

    async def aclose(self) -> None:
        """Give the connection back. Idempotent, and nothing in it waits."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.give_back(connection)
