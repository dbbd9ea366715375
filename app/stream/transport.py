"""A connection below ASGI: whether it takes more, what of our bytes its client has not taken, and how it is dropped
together with them.
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

from app.core.slow_reader import StallTimer

# Seconds between the first looks at whether the last words of a stream were taken: a round trip, then longer.
FIRST_LOOK, LAST_LOOK = 0.005, 0.25
# Of Linux's struct tcp_info: tcpi_retransmits, the third byte, and tcpi_last_ack_recv, the 13th of its 32-bit words.
TCP_INFO = struct.Struct("=2xB5x48xI")
# Where ``GatewayProtocol`` puts its line in the scope's extensions.
EXTENSION = "etcd_watch_gateway"
# The version, as ASGI has it, whose bodies are not chunked.
HTTP_1_0 = "1.0"


def nothing() -> None:
    """Nobody wants to hear of it."""


class ClientTransport:
    """What ASGI has no word for, of one connection; the protocol keeps ``ready`` and calls back.

    Without a transport, on a server that does not offer our extension, nothing is known, and a stuck stream ends by its
    return.
    """

    __slots__ = ("lost", "on_lost", "on_ready", "ready", "take_over", "transport")

    def __init__(self, transport: asyncio.Transport | None, take_over: Callable[[], None] = nothing) -> None:
        self.transport = transport
        self.take_over = take_over  # the server is to forget the request, and leave the rest of the body to us
        self.ready = True  # the kernel has taken all that was written, and the connection is there
        self.lost = False
        self.on_ready: Callable[[], None] = nothing
        self.on_lost: Callable[[], None] = nothing

    @staticmethod
    def of(scope: Scope) -> ClientTransport:
        """The line of a request, claimed: its next write waits until the kernel has all of the one before.

        By default it would wait for 64 KiB only, and one who does not read hold two writes here; what the kernel has
        keeps the line busy meanwhile.
        """
        line = line_of(scope)
        # uvloop raises for a connection that is no more: its client left while the answer was read.
        if line.transport is not None and not line.transport.is_closing():
            line.transport.set_write_buffer_limits(high=0)
        return line

    def pause(self) -> None:
        """The kernel has not taken all."""
        self.ready = False

    def resume(self) -> None:
        """Now it has."""
        if not self.lost:
            self.ready = True
            self.on_ready()

    def lose(self) -> None:
        """The connection is no more."""
        self.ready, self.lost = False, True
        self.on_lost()

    def leave(self) -> None:
        """Nobody listens any more."""
        self.on_ready = self.on_lost = nothing

    async def until_acked(self, send_timeout: float) -> None:
        """Until the client's kernel has all, or the connection is gone; dropped when nothing is taken for so long.

        A server that closes at once leaves what the client does not take to the kernel, which keeps it for minutes.
        """
        patience = StallTimer(send_timeout, self.unacked_bytes)
        pause = FIRST_LOOK
        while self.unacked_bytes and not self.lost:
            await asyncio.sleep(pause)
            if patience.ends(self.unacked_bytes, pause):
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

        The kernel asks for more only when a third of its buffer is free: without a look into it, a client of
        1 KiB a second would seem stuck for 40 s.
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
        """Whether its client has sent what nobody has read yet."""
        sock = self._socket()
        if sock is None:
            return False
        (waiting,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
        return bool(waiting)

    @property
    def seconds_unacked(self) -> float:
        """Seconds for which the client's system acknowledged nothing, though something is sent to it again and again.

        Of one that vanished (asleep, or behind a NAT that forgot it) a send tells nothing: heartbeats fit the kernel's
        buffer for hours, and it gives up after 15 minutes (tcp_retries2). One that is there and does not read
        acknowledges, and is none of this.
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

        Without the lingering of no time it would be closed: the kernel keeps what the client does not take (83 KB each
        were seen) and tries to get rid of it for minutes.
        """
        transport = self.transport
        if transport is None:
            return
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def line_of(scope: Scope) -> ClientTransport:
    """The line of a request, as it is; on a server that does not offer our extension one without a transport."""
    line: ClientTransport | None = (scope.get("extensions") or {}).get(EXTENSION, {}).get("line")
    return line if line is not None else ClientTransport(None)
