"""The two ways of a stream's bytes to a client, with one contract (docs/decisions/0009-two-sinks.md).

``FastSink`` writes to the transport below ASGI, in the same turn of the event loop in which there is something to
write. It frames bytes that go to many clients once, and wakes no task. It needs our ASGI extension
(``app.server.protocol``).

``PortableSink`` awaits ASGI's ``send`` in the response's own task, on any server that supports ASGI's lifespan. It
sends each message once, whether the server writes before it waits or after. A server whose ``send`` does not wait hides
a stuck client.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Literal, Protocol

from ..core.stall_timer import StallTimer
from ..ports import spawn
from .connection import Connection
from .framing import Chunks, Unframed
from .transport import EXTENSION, ClientTransport
from .turns import Turns

logger = logging.getLogger("gateway.stream")

Choice = Literal["auto", "portable", "fast"]
SINKS = ("fast", "portable")
# Bytes above which a write is passed on in parts.
LARGE = 16 * 1024
# The reasons of streams that end without a `close` event: the client disconnected, or took nothing.
GONE, STUCK = "client", "send-timeout"


class Source(Protocol):
    """The writer whose bytes a sink sends: a ``Delivery``."""

    ended: bool

    def resume_writing(self) -> None:
        """Continue to write: the sink is ready again."""

    def end(self, reason: str, error: Exception | None = None) -> None:
        """Stop writing, and end the sink too."""


class Sink(Protocol):
    """Takes one write at a time and carries it to the client."""

    name: str

    async def run(self, source: Source) -> None:
        """Send what *source* writes after the head. Return when *source* has ended, or when the sink needs no task."""

    @property
    def ready(self) -> bool:
        """Whether the sink takes a write now. If not, the sink calls ``Source.resume_writing`` as soon as it does."""

    def write(self, data: bytes | memoryview, *more: bytes) -> bool:
        """Take bytes of the body, all of them in one write. Call this only when ready.

        Returns whether the sink is still ready.
        """

    def stuck(self, seconds: float) -> bool:
        """Whether the client is stuck, *seconds* after the previous call. Called now and then while not ready."""

    @property
    def seconds_unacked(self) -> float:
        """See ``ClientTransport.seconds_unacked``."""

    @property
    def unacked_bytes(self) -> int:
        """See ``ClientTransport.unacked_bytes``."""

    def end(self, reason: str, error: Exception | None) -> None:
        """Finish the body; called once. After an *error* of ours, or STUCK, the body stays incomplete instead."""


class FastSink:
    """See the module. ``run`` takes over the connection from ASGI: only this sink and its source remain of the request.

    ``on_lost`` reports the end of the connection. asyncio promises this call once for each connection.
    """

    name = "fast"
    __slots__ = (
        "_client", "_finishing", "_framing", "_head", "_leaves", "_send_timeout", "_source", "_stall", "_transport",
    )  # fmt: skip

    def __init__(
        self,
        client: ClientTransport,
        framing: Chunks | Unframed,
        send_timeout: float,
        finishing: set[asyncio.Task[None]],
        leaves: Turns,
    ) -> None:
        assert client.transport is not None, "FastSink needs our ASGI extension"
        self._client = client
        self._transport = client.transport
        self._framing = framing
        self._send_timeout = send_timeout
        self._finishing = finishing
        self._leaves = leaves
        self._head = b""  # of the response, if it is not sent yet
        self._source: Source | None = None
        self._stall: StallTimer | None = None

    @property
    def ready(self) -> bool:
        """See ``Sink``."""
        return self._client.ready

    def give_head(self, lines: bytes) -> None:
        """Take the header lines of the response, instead of ASGI. The head goes in one write with the first bytes."""
        if self._client.server is not None:  # otherwise the client has gone
            self._head = self._client.server.head_of(lines)

    async def run(self, source: Source) -> None:
        """See ``Sink``. Returns at once: from now on the transport calls back, and no task is needed."""
        self._source = source
        client = self._client
        client.listener = self
        if client.server is not None:
            client.server.take_over()
        if client.lost:
            self._end_source()
            return
        if client.ready:
            source.resume_writing()
        else:  # an earlier answer on this connection is not taken yet: its client may be stuck, too
            self._stall = StallTimer(self._send_timeout, client.unacked_bytes)
        if self._head and not source.ended:
            self._send_head()  # the source has nothing to write yet

    def _send_head(self) -> None:
        head, self._head = self._head, b""
        self._transport.write(head)

    def on_ready(self) -> None:
        """See ``Listener``."""
        if self._source is not None:
            self._source.resume_writing()

    def on_lost(self) -> None:
        """See ``Listener``."""
        if self._source is not None:
            self._leaves.give(self._end_source)

    def _end_source(self) -> None:
        if self._source is not None:
            self._source.end(GONE)

    def write(self, data: bytes | memoryview, *more: bytes) -> bool:
        """See ``Sink``. The transport buffers the bytes that the kernel does not take at once."""
        if more or len(data) > LARGE:
            # One block of a snapshot goes to thousands of clients, but seldom to two in a row. A framed copy for each
            # client took a quarter of the process' own CPU in a herd, and 64 KiB of memory while the client took it.
            head, self._head = self._head, b""
            self._transport.writelines([head, *self._framing.parts(data, *more)])
        else:
            framed = self._framing.of(data)
            if self._head:
                framed, self._head = self._head + framed, b""
            self._transport.write(framed)
        if self._client.ready:
            return True
        self._stall = StallTimer(self._send_timeout, self._client.unacked_bytes)
        return False

    def stuck(self, seconds: float) -> bool:
        """See ``Sink``."""
        return self._stall is not None and self._stall.ends(self._client.unacked_bytes, seconds)

    @property
    def seconds_unacked(self) -> float:
        """See ``Sink``."""
        return self._client.seconds_unacked

    @property
    def unacked_bytes(self) -> int:
        """See ``Sink``."""
        return self._client.unacked_bytes

    def end(self, reason: str, error: Exception | None) -> None:
        """See ``Sink``."""
        self._client.listener = self._source = None
        if error is not None:
            logger.error("stream failed", exc_info=error)
        if error is not None or reason == STUCK:
            self._client.abort()
        elif not self._client.lost and not self._head:  # without a head, the server answers
            task = spawn(self._finish(), name="stream-finish", died=lambda _error: self._client.abort())
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def _finish(self) -> None:
        await self._client.until_acked(self._send_timeout)
        if not self._client.lost:
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

    def write(self, data: bytes | memoryview, *more: bytes) -> bool:
        """See ``Sink``."""
        self._pending = b"".join((data, *more)) if more else data
        self._wake.set()
        return False

    def stuck(self, seconds: float) -> bool:
        """See ``Sink``. Always False: ``Connection.send`` itself detects a stuck client."""
        del seconds
        return False

    @property
    def seconds_unacked(self) -> float:
        """See ``Sink``."""
        return self._connection.client.seconds_unacked

    @property
    def unacked_bytes(self) -> int:
        """See ``Sink``."""
        return self._connection.client.unacked_bytes

    def end(self, reason: str, error: Exception | None) -> None:
        """See ``Sink``."""
        self._error = error
        if reason == STUCK:
            self._connection.drop()
        self._wake.set()

    async def run(self, source: Source) -> None:
        """See ``Sink``. Raises the error that *source* ended with, or StuckError."""
        self._connection.on_gone = lambda: source.end(GONE)
        if self._connection.gone:
            source.end(GONE)
        else:
            source.resume_writing()
        while not source.ended:
            if self._pending is None:
                self._wake.clear()
                await self._wake.wait()
            else:
                await self._connection.send(self._pending)
                self._pending = None
                if not source.ended:
                    source.resume_writing()
        if self._error is not None:
            raise self._error
        await self._connection.finish()


def make_sink(
    choice: Choice, connection: Connection, chunks: Chunks, finishing: set[asyncio.Task[None]], leaves: Turns
) -> FastSink | PortableSink:
    """Return a fast sink if the server offers our extension and *choice* allows it; otherwise a portable sink.

    Args:
        finishing: holds the tasks of ended streams whose last bytes the client has not acknowledged yet.
        leaves: the turns in which streams end whose clients have disconnected.
    """
    if choice != "portable" and connection.client.transport is not None:
        framing = chunks if connection.chunked else Unframed()
        return FastSink(connection.client, framing, connection.send_timeout, finishing, leaves)
    if choice == "fast":
        logger.warning("GATEWAY_SINK=fast is not possible: the server does not offer the ASGI extension %s", EXTENSION)
    return PortableSink(connection)
