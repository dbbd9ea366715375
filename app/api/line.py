"""A connection below ASGI: what of our bytes its client has not taken, and how it is dropped together with them."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios

from starlette.types import Scope

# Where ``GatewayProtocol`` puts its transport in the scope's extensions.
EXTENSION = "etcd_watch_gateway"


class Line:
    """What ASGI has no word for: what of our bytes the client has not taken, and to drop it together with them.

    On a server without our extension nothing is known, and a stuck stream ends by its return.
    """

    def __init__(self, scope: Scope) -> None:
        self._transport: asyncio.Transport | None = scope.get("extensions", {}).get(EXTENSION, {}).get("transport")
        if self._transport is not None:
            # The next write waits until the kernel has all of the one before. By default it would wait for 64 KiB only,
            # and one who does not read hold two writes here; what the kernel has keeps the line busy meanwhile.
            self._transport.set_write_buffer_limits(high=0)

    @property
    def buffered(self) -> int:
        """Bytes that the kernel has not taken."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    @property
    def untaken(self) -> int:
        """Bytes that the client's kernel has not taken, as far as this system can tell.

        The kernel asks for more only when a third of its buffer is free: without a look into it, a client of
        1 KiB a second would seem stuck for 40 s.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return 0
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is None or sys.platform != "linux":
            return self.buffered
        (queued,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
        return self.buffered + int(queued)

    def abort(self) -> None:
        """Drop the connection, by RST.

        Without the lingering of no time it would be closed: the kernel keeps what the client does not take (83 KB each
        were seen) and tries to get rid of it for minutes.
        """
        transport = self._transport
        if transport is None:
            return
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
