"""Where a stream's bytes go: two ways to a client, behind one contract.

``FastSink`` writes to the transport below ASGI, in the loop's turn in which there is something to write: what many are
sent is framed once, and no task is woken for it. It needs our extension (``app.server.protocol``). ``PortableSink``
awaits ASGI's ``send`` in the response's own task, on any server that speaks ASGI's lifespan. It sends each message
once, whether the server writes before it waits or after. A server whose ``send`` does not wait hides a stuck client.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Literal, Protocol

from app.core.slow_reader import StallTimer
from app.ports import spawn
from app.stream.connection import Connection
from app.stream.framing import Chunks, Unframed
from app.stream.transport import EXTENSION, ClientTransport

log = logging.getLogger("gateway.stream")

Choice = Literal["auto", "portable", "fast"]
SINKS = ("fast", "portable")
# What ends a stream that we did not close by a `close` event: its client left, or took nothing.
GONE, STUCK = "client", "send-timeout"


class Source(Protocol):
    """Whose bytes a sink takes."""

    ended: bool

    def go_on(self) -> None:
        """The sink takes a write again."""

    def end(self, reason: str, error: Exception | None = None) -> None:
        """Nothing more is written, for that reason; ends the sink, too."""


class Sink(Protocol):
    """Takes one write at a time."""

    name: str

    async def run(self, source: Source) -> None:
        """After the head: write what *source* has, to its end or until ASGI is needed no more."""

    @property
    def ready(self) -> bool:
        """Whether a write is taken now; ``go_on`` is called when it is again."""

    def write(self, data: bytes | memoryview) -> bool:
        """Take some bytes of the body, when ready; whether it takes more at once."""

    def stuck(self, seconds: float) -> bool:
        """Asked now and then while not ready, *seconds* after the last time: whether the client is given up."""

    @property
    def seconds_unacked(self) -> float:
        """See ``ClientTransport.seconds_unacked``."""

    @property
    def unacked_bytes(self) -> int:
        """See ``ClientTransport.unacked_bytes``."""

    def end(self, reason: str, error: Exception | None) -> None:
        """Called once: what is written is all. By an *error* of ours the body is broken off."""


class FastSink:
    """See the module. The connection is taken over from ASGI: nothing of the request is left but this and its source.

    Every way out comes here by ``ClientTransport.on_lost``. asyncio promises it once for each connection.
    """

    name = "fast"
    __slots__ = ("_finishing", "_framing", "_line", "_patience", "_send_timeout", "_source", "_transport")

    def __init__(
        self, line: ClientTransport, framing: Chunks | Unframed, send_timeout: float, finishing: set[asyncio.Task[None]]
    ) -> None:
        assert line.transport is not None, "only with our extension"
        self._line = line
        self._transport = line.transport
        self._framing = framing
        self._send_timeout = send_timeout
        self._finishing = finishing
        self._source: Source | None = None
        self._patience: StallTimer | None = None

    @property
    def ready(self) -> bool:
        """See ``Sink``."""
        return self._line.ready

    async def run(self, source: Source) -> None:
        """See ``Sink``. Returns at once: ASGI wrote the head, and what follows is *source*'s alone."""
        self._source = source
        self._line.take_over()
        self._line.on_ready, self._line.on_lost = source.go_on, self._lost
        if self._line.lost:
            self._lost()
        elif self._line.ready:
            source.go_on()

    def _lost(self) -> None:
        if self._source is not None:
            self._source.end(GONE)

    def write(self, data: bytes | memoryview) -> bool:
        """See ``Sink``. What the kernel does not take at once, the transport keeps."""
        self._transport.write(self._framing.of(data))
        if self._line.ready:
            return True
        self._patience = StallTimer(self._send_timeout, self._line.unacked_bytes)
        return False

    def stuck(self, seconds: float) -> bool:
        """See ``Sink``."""
        return self._patience is not None and self._patience.ends(self._line.unacked_bytes, seconds)

    @property
    def seconds_unacked(self) -> float:
        """See ``Sink``."""
        return self._line.seconds_unacked

    @property
    def unacked_bytes(self) -> int:
        """See ``Sink``."""
        return self._line.unacked_bytes

    def end(self, reason: str, error: Exception | None) -> None:
        """See ``Sink``."""
        self._line.leave()
        self._source = None
        if error is not None:
            log.error("stream failed", exc_info=error)
        if error is not None or reason == STUCK:
            self._line.abort()
        elif not self._line.lost:
            task = spawn(self._finish(), name="stream-finish", died=lambda _error: self._line.abort())
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def _finish(self) -> None:
        await self._line.until_acked(self._send_timeout)
        if not self._line.lost:
            self._transport.write(self._framing.last)
            self._transport.close()


class PortableSink:
    """See the module."""

    name = "portable"
    __slots__ = ("_connection", "_error", "_pending", "_wake")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pending: bytes | memoryview | None = None
        self._error: Exception | None = None
        self._wake = asyncio.Event()

    @property
    def ready(self) -> bool:
        """See ``Sink``."""
        return self._pending is None

    def write(self, data: bytes | memoryview) -> bool:
        """See ``Sink``."""
        self._pending = data
        self._wake.set()
        return False

    def stuck(self, seconds: float) -> bool:
        """See ``Sink``: here ``Connection.send`` itself gives up."""
        del seconds
        return False

    @property
    def seconds_unacked(self) -> float:
        """See ``Sink``."""
        return self._connection.line.seconds_unacked

    @property
    def unacked_bytes(self) -> int:
        """See ``Sink``."""
        return self._connection.line.unacked_bytes

    def end(self, reason: str, error: Exception | None) -> None:
        """See ``Sink``."""
        del reason
        self._error = error
        self._wake.set()

    async def run(self, source: Source) -> None:
        """See ``Sink``. Raises the error that *source* ended with, and StuckError."""
        self._connection.on_gone = lambda: source.end(GONE)
        if self._connection.gone:
            source.end(GONE)
        else:
            source.go_on()
        while not source.ended:
            if self._pending is None:
                self._wake.clear()
                await self._wake.wait()
            else:
                await self._connection.send(self._pending)
                self._pending = None
                source.go_on()
        if self._error is not None:
            raise self._error
        await self._connection.finish()


def make_sink(
    choice: Choice, connection: Connection, chunks: Chunks, finishing: set[asyncio.Task[None]]
) -> FastSink | PortableSink:
    """The fast one where the server offers our extension and *choice* does not forbid it.

    *finishing* keeps what is left of streams that have ended.
    """
    if choice != "portable" and connection.line.transport is not None:
        framing = chunks if connection.chunked else Unframed()
        return FastSink(connection.line, framing, connection.send_timeout, finishing)
    if choice == "fast":
        log.warning("GATEWAY_SINK=fast can't be had: the server does not offer %s", EXTENSION)
    return PortableSink(connection)
