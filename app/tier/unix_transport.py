"""httpx over a Unix socket, on asyncio's streams.

httpx's own transport reads Unix sockets through anyio. There, with uvloop, a connection whose reader was cancelled
stayed open: the hub went on to serve streams, and to hold etcd's watches, that nobody read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import h11
import httpx

# Bytes that are read at a time.
PIECE = 64 * 1024
# Connections that wait for the next request at most.
MOST_IDLE = 16


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection

    async def event(self) -> Any:
        """Return the next event of the answer."""
        try:
            while (event := self.http.next_event()) is h11.NEED_DATA:
                self.http.receive_data(await self.reader.read(PIECE))
        except (OSError, h11.RemoteProtocolError) as error:
            raise httpx.ReadError(str(error) or type(error).__name__) from None
        return event


class UnixTransport(httpx.AsyncBaseTransport):
    """See the module. A connection is closed in the same turn in which its response is, or its request is cancelled.

    Args:
        path: of the socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: list[_Connection] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx. Only requests without a body.

        Raises:
            httpx.TransportError: nobody listens, or what comes is not HTTP.
        """
        connection = await self._connect()
        try:
            sent = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
            connection.writer.write(connection.http.send(sent) or b"")
            connection.writer.write(connection.http.send(h11.EndOfMessage()) or b"")
            head = await connection.event()
            while isinstance(head, h11.InformationalResponse):
                head = await connection.event()
            if not isinstance(head, h11.Response):
                raise httpx.ReadError("the connection ended before an answer")
        except BaseException:
            connection.writer.close()
            raise
        stream = _Stream(self, connection)
        return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=stream)

    async def _connect(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not (connection.reader.at_eof() or connection.writer.is_closing()):
                return connection
            connection.writer.close()
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            raise httpx.ConnectError(str(error)) from None
        return _Connection(reader, writer, h11.Connection(h11.CLIENT))

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection for the next request if its answer is complete; otherwise close it."""
        http = connection.http
        if http.our_state is h11.DONE and http.their_state is h11.DONE and len(self._idle) < MOST_IDLE:
            http.start_next_cycle()
            self._idle.append(connection)
        else:
            connection.writer.close()

    async def aclose(self) -> None:
        """Close the connections that wait."""
        while self._idle:
            self._idle.pop().writer.close()


class _Stream(httpx.AsyncByteStream):
    """The body of one answer."""

    def __init__(self, transport: UnixTransport, connection: _Connection) -> None:
        self._transport = transport
        self._connection: _Connection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None:
            event = await self._connection.event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise httpx.ReadError("the connection ended within an answer")

    async def aclose(self) -> None:
        """Give the connection back. Idempotent, and nothing in it waits."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.give_back(connection)
