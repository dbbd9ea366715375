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
from collections.abc import Callable

from starlette.types import Scope

from ..core.slow_reader import StallTimer

# Seconds between checks whether the last bytes of a stream are acknowledged: first about a round trip, then longer.
FIRST_LOOK, LAST_LOOK = 0.005, 0.25
# Two fields of Linux's struct tcp_info: tcpi_retransmits, the third byte, and tcpi_last_ack_recv, the 13th of its
# 32-bit words.
TCP_INFO = struct.Struct("=2xB5x48xI")
# The entry of the scope's extensions in which ``GatewayProtocol`` puts the ``ClientTransport``, as ``client``.
EXTENSION = "etcd_watch_gateway"
# ASGI's name of the HTTP version that has no chunked bodies.
HTTP_1_0 = "1.0"


def nothing() -> None:
    """Do nothing: the callback while nobody listens."""


class ClientTransport:
    """The state of one connection that ASGI does not show. The protocol sets ``ready`` and ``lost``, and calls back.

    On a server without our extension, ``transport`` is None. Then nothing is known about the connection, and a stuck
    stream ends when its response returns.
    """

    __slots__ = ("half_closed", "head_of", "held", "lost", "on_lost", "on_ready", "ready", "take_over", "transport")

    def __init__(
        self,
        transport: asyncio.Transport | None,
        take_over: Callable[[], None] = nothing,
        head_of: Callable[[bytes], bytes] = bytes,
    ) -> None:
        self.transport = transport
        self.take_over = take_over  # makes the server discard the request and leave the rest of the body to us
        # Returns the head that the server would send before a stream, from the header lines of the stream.
        self.head_of = head_of
        self.ready = True  # the kernel has taken all written bytes, and the connection is open
        self.lost = False
        self.half_closed = False  # the client sends nothing more, and may still read
        self.held = False  # an answer is held for long: a half-close counts as a disconnect, as it does for a stream
        self.on_ready: Callable[[], None] = nothing
        self.on_lost: Callable[[], None] = nothing

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

    def pause(self) -> None:
        """Record that the kernel has not taken all written bytes."""
        self.ready = False

    def resume(self) -> None:
        """Record that the kernel has taken all written bytes, and call ``on_ready``."""
        if not self.lost:
            self.ready = True
            self.on_ready()

    def lose(self) -> None:
        """Record that the connection is closed, call ``on_lost``, and let go of the protocol, which holds this object.

        Otherwise each closed connection would wait for the garbage collector, with everything that it holds.
        """
        self.ready, self.lost = False, True
        self.on_lost()
        self.take_over, self.head_of = nothing, bytes

    def leave(self) -> None:
        """Remove both callbacks."""
        self.on_ready = self.on_lost = nothing

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
        sock = self._socket()
        if sock is None:
            return False
        (waiting,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
        return bool(waiting)

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


def client_of(scope: Scope) -> ClientTransport:
    """Return the transport of a request's client, or one that knows nothing if the server lacks our extension."""
    client: ClientTransport | None = (scope.get("extensions") or {}).get(EXTENSION, {}).get("client")
    return client if client is not None else ClientTransport(None)
