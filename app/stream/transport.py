"""A client's connection below ASGI: whether it takes more, which bytes the client has not acknowledged, and how to
abort the connection together with those bytes.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from typing import Any, Protocol

from starlette.types import Scope

from ..core.capacity import Capacity
from ..core.stall_timer import StallTimer

# Seconds between checks whether the last bytes of a stream are acknowledged: first about a round trip, then longer.
FIRST_LOOK, LAST_LOOK = 0.005, 0.25
# Two fields of Linux's struct tcp_info: tcpi_retransmits, the third byte, and tcpi_last_ack_recv, the 13th of its
# 32-bit words.
TCP_INFO = struct.Struct("=2xB5x48xI")
# The entry of the scope's extensions in which ``GatewayProtocol`` puts the ``ClientTransport``, as ``client``.
EXTENSION = "etcd_watch_gateway"
# ASGI's name of the HTTP version that has no chunked bodies.
HTTP_1_0 = "1.0"


class Server(Protocol):
    """The server's protocol of a connection, as a stream sees it."""

    def head_of(self, lines: bytes) -> bytes:
        """Return the head of a stream with these header lines. It says that the connection ends with the stream: a
        proxy would send its next request on a connection that seems reusable, and the request would be lost.
        """

    def take_over(self) -> None:
        """Discard the request, and leave the rest of the body, and the connection, to the ``ClientTransport``."""


class Listener(Protocol):
    """Who sends an answer. An object, because a bound method is 64 bytes for each subscriber."""

    def on_ready(self) -> None:
        """Take notice that the kernel has taken all written bytes."""

    def on_lost(self) -> None:
        """Take notice that the connection is closed."""


class ClientTransport(asyncio.Protocol):
    """The state of one connection that ASGI does not show.

    The server's protocol reports to it until a stream takes over the connection. Then it is the transport's protocol
    itself, and nothing is left of the server: uvicorn's protocol, parser and request hold 22 KiB.

    On a server without our extension, ``transport`` is None. Then nothing is known about the connection, and a stuck
    stream ends when its response returns.
    """

    __slots__ = (
        "_capacity", "_connections", "half_closed", "held", "listener", "lost", "ready", "server", "transport",
    )  # fmt: skip

    def __init__(self, transport: asyncio.Transport | None, server: Server | None = None) -> None:
        self.transport = transport
        self.server = server  # None after a stream has taken over the connection
        self.ready = True  # the kernel has taken all written bytes, and the connection is open
        self.lost = False
        self.half_closed = False  # the client sends nothing more, and may still read
        self.held = False  # an answer is held for long: a half-close counts as a disconnect, as it does for a stream
        self.listener: Listener | None = None
        self._connections: set[Any] | None = None
        self._capacity: Capacity[Any] | None = None

    @staticmethod
    def claim(scope: Scope) -> ClientTransport:
        """Return the transport of a request's client. From now on it is ready only when the kernel has all of a write.

        By default a transport is ready while it buffers less than 64 KiB, and a client that does not read would hold
        two writes in the process. The bytes in the kernel keep the connection busy between two writes.
        """
        client = client_of(scope)
        # uvloop raises for a closed connection: the client disconnected while the gateway read the answer from etcd.
        if client.transport is not None and not client.transport.is_closing():
            client.transport.set_write_buffer_limits(high=0)
        return client

    def pause_writing(self) -> None:
        """Record that the kernel has not taken all written bytes."""
        self.ready = False

    def resume_writing(self) -> None:
        """Record that the kernel has taken all written bytes, and tell the listener."""
        if not self.lost:
            self.ready = True
            if self.listener is not None:
                self.listener.on_ready()

    def lose(self) -> None:
        """Record that the connection is closed, and tell the listener.

        The server's protocol holds this object. If this object went on to hold the protocol, both would wait for the
        garbage collector, with everything that they hold.
        """
        self.ready, self.lost = False, True
        if self.listener is not None:
            self.listener.on_lost()
        self.server = None

    # --- the protocol of a connection that a stream has taken over ----------------------------------------------------

    def take_from_server(self, connections: set[Any], capacity: Capacity[Any]) -> None:
        """Become the transport's protocol.

        Args:
            connections: uvicorn's open connections. A server that stops waits until there are none.
            capacity: counts the connection until it is lost.
        """
        assert self.transport is not None, "only a server with our extension leaves a connection to a stream"
        self.server = None
        self._connections, self._capacity = connections, capacity
        connections.add(self)
        self.transport.set_protocol(self)

    def shutdown(self) -> None:
        """Do nothing. uvicorn calls this when it stops; by then, the gateway has begun to end the streams."""

    @staticmethod
    def data_received(_data: bytes) -> None:  # static, because a transport keeps a bound method: 64 bytes
        """Discard what the client sends: a stream is the last answer on its connection."""

    def eof_received(self) -> None:
        """Let the transport close: a client's half-close ends a stream."""
        self.half_closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything: the client disconnected, or the gateway closed the connection."""
        del exc
        assert self._connections is not None, "the transport calls this after a stream has taken over"
        assert self._capacity is not None, "set together with the connections"
        self._connections.discard(self)
        self._capacity.leave(self)
        self.lose()

    # --- what the kernel knows ----------------------------------------------------------------------------------------

    async def until_acked(self, send_timeout: float) -> None:
        """Wait until the client's kernel has all bytes, or the connection is closed. If the client takes nothing for
        *send_timeout* seconds, abort the connection.

        A server that closes at once leaves the bytes that the client does not take to the server's kernel, which keeps
        them for minutes.
        """
        stall = StallTimer(send_timeout, self.unacked_bytes)
        pause = FIRST_LOOK
        while self.unacked_bytes and not self.lost:
            await asyncio.sleep(pause)
            if stall.ends(self.unacked_bytes, pause):
                self.abort()
                await asyncio.sleep(0)  # gives the server a turn to notice
                return
            pause = min(2 * pause, LAST_LOOK)

    @property
    def empty(self) -> bool:
        """Whether the connection is open and takes a small write without waiting: nothing is before it.

        ``claim`` may have taken the transport's room for an earlier answer on this connection; this returns the room.
        """
        transport = self.transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return False
        transport.set_write_buffer_limits()
        return True

    @property
    def buffered(self) -> int:
        """Bytes that the kernel has not taken from the transport."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    @property
    def unacked_bytes(self) -> int:
        """Bytes that the client's kernel has not acknowledged, as far as this system can tell.

        The kernel of the gateway asks for more bytes only when a third of its buffer is free. If only the transport's
        buffer counted, a client that takes 1 KiB a second would seem stuck for 40 s.

        Under TLS these are encrypted bytes, 22 more for each write. Of a connection that closes as soon as the kernel
        has all bytes, only the bytes are known that the kernel does not have.
        """
        sock = self._socket()
        if sock is None or sys.platform != "linux":
            return self.buffered if not self.lost else 0
        (queued,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
        return self.buffered + int(queued)

    @property
    def unread(self) -> bool:
        """Whether the client has sent bytes that the process has not read yet."""
        transport = self.transport
        return transport is not None and not transport.is_closing() and has_unread(transport)

    @property
    def seconds_unacked(self) -> float:
        """Seconds since the client's system acknowledged anything, while the kernel retransmits; otherwise 0.

        A write does not show that a client has vanished (asleep, or behind a NAT that forgot the connection).
        Heartbeats fit into the kernel's buffer for hours, and the kernel drops the connection only after 15 minutes
        (tcp_retries2). A client that is present but does not read still acknowledges, so its value is 0.
        """
        sock = self._socket()
        if sock is None or sys.platform != "linux" or sock.family == socket.AF_UNIX:
            return 0.0
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
        retransmits, milliseconds = TCP_INFO.unpack(info)
        return milliseconds / 1000 if retransmits else 0.0

    def _socket(self) -> socket.socket | None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return None
        sock: socket.socket | None = transport.get_extra_info("socket")
        return sock

    def abort(self) -> None:
        """Abort the connection with an RST.

        SO_LINGER of 0 s causes the RST. Without it the kernel keeps the bytes that the client does not take (83 KB for
        each connection were seen), and tries to send them for minutes.
        """
        transport = self.transport
        if transport is None:
            return
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def has_unread(transport: asyncio.BaseTransport) -> bool:
    """Whether the system has received bytes of the client that the process has not read."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    (waiting,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
    return bool(waiting)


def client_of(scope: Scope) -> ClientTransport:
    """Return the transport of a request's client, or one that knows nothing if the server lacks our extension."""
    client: ClientTransport | None = (scope.get("extensions") or {}).get(EXTENSION, {}).get("client")
    return client if client is not None else ClientTransport(None)
