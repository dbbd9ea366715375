"""Where a stream's bytes go: two ways to a client, behind one contract.

``FastSink`` writes to the transport below ASGI, in the loop's turn in which there is something to write: what many are
sent is framed once, and no task is woken for it. It needs our extension (``app.api.protocol``). ``PortableSink`` awaits
ASGI's ``send`` in the response's own task, on any server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Literal, Protocol

from app.api.connection import LOOKS, Connection, StuckError
from app.api.line import EXTENSION
from app.core.pace import Patience

log = logging.getLogger("gateway.stream")

Choice = Literal["auto", "portable", "fast"]
SINKS = ("fast", "portable")


class Sink(Protocol):
    """Takes one write at a time."""

    name: str

    @property
    def ready(self) -> bool:
        """Whether a write is taken now; ``on_ready`` of ``serve`` is called when it is again."""

    def write(self, data: bytes | memoryview) -> None:
        """Take some bytes of the body, when ready."""

    def stuck(self) -> bool:
        """Asked every ``look`` seconds while not ready: whether the client is given up."""

    async def serve(self, over: asyncio.Future[None], on_ready: Callable[[], None]) -> None:
        """Write until *over* is done. Raises what it was given, and StuckError."""


class Chunks:
    """The chunked coding of HTTP/1.1 (RFC 9112, section 7.1); what is sent to many in a row is framed once."""

    __slots__ = ("_data", "_framed")

    def __init__(self) -> None:
        self._data: bytes | memoryview = b""
        self._framed = b""

    def of(self, data: bytes | memoryview) -> bytes:
        """*data*, never empty, as one chunk."""
        if data is not self._data:
            self._framed = b"".join((b"%x\r\n" % len(data), data, b"\r\n"))
            self._data = data
        return self._framed


class FastSink:
    """See the module."""

    name = "fast"
    __slots__ = ("_chunks", "_connection", "_line", "_look", "_patience", "_transport")

    def __init__(self, connection: Connection, chunks: Chunks) -> None:
        assert connection.line.transport is not None, "only with our extension"
        self._connection = connection
        self._line = connection.line
        self._transport = connection.line.transport
        self._chunks = chunks
        self._look = connection.send_timeout / LOOKS
        self._patience: Patience | None = None

    @property
    def ready(self) -> bool:
        """See ``Sink``."""
        return self._line.ready

    def write(self, data: bytes | memoryview) -> None:
        """See ``Sink``. What the kernel does not take at once, the transport keeps."""
        self._transport.write(self._chunks.of(data))
        if not self._line.ready:
            self._patience = Patience(self._connection.send_timeout, self._line.untaken)

    def stuck(self) -> bool:
        """See ``Sink``."""
        return self._patience is not None and self._patience.ends(self._line.untaken, self._look)

    async def serve(self, over: asyncio.Future[None], on_ready: Callable[[], None]) -> None:
        """See ``Sink``: others do the writing."""
        self._line.on_ready = on_ready
        if self._line.ready:
            on_ready()
        try:
            await over
        except StuckError:
            await self._connection.cut_off()
            raise


class PortableSink:
    """See the module."""

    name = "portable"
    __slots__ = ("_connection", "_pending", "_wake")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pending: bytes | memoryview | None = None
        self._wake = asyncio.Event()

    @property
    def ready(self) -> bool:
        """See ``Sink``."""
        return self._pending is None

    def write(self, data: bytes | memoryview) -> None:
        """See ``Sink``."""
        self._pending = data
        self._wake.set()

    def stuck(self) -> bool:
        """See ``Sink``: here ``Connection.send`` itself gives up."""
        return False

    async def serve(self, over: asyncio.Future[None], on_ready: Callable[[], None]) -> None:
        """See ``Sink``."""
        over.add_done_callback(lambda _over: self._wake.set())
        on_ready()
        while not over.done():
            if self._pending is None:
                self._wake.clear()
                await self._wake.wait()
            else:
                await self._connection.send(self._pending)
                self._pending = None
                on_ready()
        await over


def make_sink(choice: Choice, connection: Connection, chunks: Chunks) -> FastSink | PortableSink:
    """The fast one where the server offers our extension and *choice* does not forbid it."""
    if choice != "portable" and connection.line.transport is not None:
        return FastSink(connection, chunks)
    if choice == "fast":
        log.warning("GATEWAY_SINK=fast can't be had: the server does not offer %s", EXTENSION)
    return PortableSink(connection)
