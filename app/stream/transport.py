"""A client's connection below ASGI: whether it takes more, which bytes the client has not acknowledged, and how to drop
the connection together with those bytes.
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

# Seconds between looks at whether the last bytes of a stream are acknowledged: a round trip at first, then longer.
FIRST_LOOK, LAST_LOOK = 0.005, 0.25
# Of Linux's struct tcp_info: tcpi_retransmits, the third byte, and tcpi_last_ack_recv, the 13th of its 32-bit words.
TCP_INFO = struct.Struct("=2xB5x48xI")
# Where ``GatewayProtocol`` puts the ``ClientTransport`` in the scope's extensions, as ``client``.
EXTENSION = "etcd_watch_gateway"
# The version, as ASGI has it, whose bodies are not chunked.
HTTP_1_0 = "1.0"


def nothing() -> None:
    """A callback for when nobody listens."""


class ClientTransport:
    """What ASGI does not tell of one connection. The protocol keeps ``ready`` and ``lost``, and calls back.

    On a server that does not offer our extension there is no ``transport``: then nothing is known, and a stuck stream
    ends when its response returns.
    """

    __slots__ = ("lost", "on_lost", "on_ready", "ready", "take_over", "transport")

    def __init__(self, transport: asyncio.Transport | None, take_over: Callable[[], None] = nothing) -> None:
        self.transport = transport
        self.take_over = take_over  # has the server forget the request, and leave the rest of the body to us
        self.ready = True  # the kernel has taken all that was written, and the connection is open
        self.lost = False
        self.on_ready: Callable[[], None] = nothing
        self.on_lost: Callable[[], None] = nothing

    @staticmethod
    def claim(scope: Scope) -> ClientTransport:
        """The transport of a request's client, which from now on is ready only when the kernel has all of a write.

        By default the transport is ready below 64 KiB, and a client that does not read would hold two writes here.
        What the kernel has keeps the connection busy meanwhile.
        """
        client = client_of(scope)
        # uvloop raises for a connection that is closed: its client left while the answer was read.
        if client.transport is not None and not client.transport.is_closing():
            client.transport.set_write_buffer_limits(high=0)
        return client

    def pause(self) -> None:
        """The kernel has not taken all that was written."""
        self.ready = False

    def resume(self) -> None:
        """The kernel has taken all that was written."""
        if not self.lost:
            self.ready = True
            self.on_ready()

    def lose(self) -> None:
        """The connection is closed."""
        self.ready, self.lost = False, True
        self.on_lost()

    def leave(self) -> None:
        """Call nobody back any more."""
        self.on_ready = self.on_lost = nothing

    async def until_acked(self, send_timeout: float) -> None:
        """Wait until the client's kernel has all bytes, or the connection is closed. If the client takes nothing for
        *send_timeout*, the connection is dropped.

        A server that closes at once leaves what the client does not take to its kernel, which keeps that for minutes.
        """
        stall = StallTimer(send_timeout, self.unacked_bytes)
        pause = FIRST_LOOK
        while self.unacked_bytes and not self.lost:
            await asyncio.sleep(pause)
            if stall.ends(self.unacked_bytes, pause):
                self.abort()
                await asyncio.sleep(0)  # lets the server notice
                return
            pause = min(2 * pause, LAST_LOOK)

    @property
    def buffered(self) -> int:
        """Bytes that the kernel has not taken."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    @property
    def unacked_bytes(self) -> int:
        """Bytes that the client's kernel has not taken, as far as this system can tell.

        The kernel asks for more only when a third of its buffer is free: without a look into that buffer, a client
        that takes 1 KiB a second would seem stuck for 40 s.
        """
        sock = self._socket()
        if sock is None:
            return 0
        if sys.platform != "linux":
            return self.buffered
        (queued,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
        return self.buffered + int(queued)

    @property
    def unread(self) -> bool:
        """Whether the client has sent bytes that nobody has read yet."""
        sock = self._socket()
        if sock is None:
            return False
        (waiting,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
        return bool(waiting)

    @property
    def seconds_unacked(self) -> float:
        """Seconds for which the client's system has acknowledged nothing, while the kernel sends to it again and again.

        A write does not tell that a client has vanished (asleep, or behind a NAT that forgot it): heartbeats fit the
        kernel's buffer for hours, and the kernel gives up after 15 minutes (tcp_retries2). A client that is there but
        does not read acknowledges, so for such a client this is 0.
        """
        sock = self._socket()
        if sock is None or sys.platform != "linux":
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
        """Drop the connection, by RST.

        SO_LINGER of 0 s makes the difference. Otherwise the kernel keeps what the client does not take (83 KB for each
        connection were seen), and tries to send it for minutes.
        """
        transport = self.transport
        if transport is None:
            return
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def client_of(scope: Scope) -> ClientTransport:
    """The transport of a request's client; one that knows nothing on a server that does not offer our extension."""
    client: ClientTransport | None = (scope.get("extensions") or {}).get(EXTENSION, {}).get("client")
    return client if client is not None else ClientTransport(None)
