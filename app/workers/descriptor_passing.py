"""Open connections go from the hub to a worker over a socket of their own (SCM_RIGHTS).

The hub keeps its own descriptor of a connection until the worker has said that it took it. If the worker dies before,
nobody has read from the connection, and the hub passes it to another worker: no client waits in vain.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Literal

from ..ports import Clock

# Which port the client has connected to.
Port = Literal["clients", "operators"]
_BYTES: dict[Port, bytes] = {"clients": b"c", "operators": b"o"}
_PORTS: dict[bytes, Port] = {byte: port for port, byte in _BYTES.items()}
# Connections that are taken in one turn of the event loop. At the limit of open files each one evicts another, which is
# closed some turns later: RESERVE has room for so many.
AT_ONCE = 8


class ConnectionSender:
    """The hub's end."""

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._sock = sock
        self._clock = clock
        self._given: deque[tuple[socket.socket, Port, float]] = deque()  # and not taken yet
        self._taken = 0

    def give(self, connection: socket.socket, port: Port) -> bool:
        """Pass a connection. Return whether that was possible: otherwise the caller still owns the connection."""
        try:
            socket.send_fds(self._sock, [_BYTES[port]], [connection.fileno()])
        except OSError:  # the worker takes none now, or has gone
            return False
        self._given.append((connection, port, self._clock()))
        return True

    @property
    def waiting(self) -> tuple[int, float]:
        """How many connections the worker has not taken yet, and for how many seconds the oldest waits."""
        return len(self._given), self._clock() - self._given[0][2] if self._given else 0.0

    def taken(self, count: int) -> None:
        """The worker has taken *count* connections since it began."""
        while self._taken < count:
            self._taken += 1
            connection, _port, _since = self._given.popleft()
            connection.close()

    def close(self) -> list[tuple[socket.socket, Port]]:
        """Close this end. Return the connections that the worker has not taken, which the caller now owns."""
        self._sock.close()
        left = [(connection, port) for connection, port, _since in self._given]
        self._given.clear()
        return left


class ConnectionReceiver:
    """The worker's end.

    Args:
        take: called with each connection.
        taken: called with the number of all connections so far, before any of the last ones is read from.
    """

    def __init__(
        self, sock: socket.socket, take: Callable[[socket.socket, Port], None], taken: Callable[[int], None]
    ) -> None:
        self._sock = sock
        self._take = take
        self._say = taken
        self.count = 0

    def receive(self) -> bool:
        """Take what the hub has passed. Return False if the hub has gone."""
        found: list[tuple[socket.socket, Port]] = []
        there, before = True, self.count
        with contextlib.suppress(BlockingIOError):
            while self.count - before < AT_ONCE:
                byte, descriptors, _flags, _address = socket.recv_fds(self._sock, 1, 1)
                if not byte:
                    there = False
                    break
                self.count += 1
                # Without a free descriptor, the kernel gives none. The hub then closes the connection.
                found += [(socket.socket(fileno=one), _PORTS[byte]) for one in descriptors]
        if self.count > before:
            self._say(self.count)
        for connection, port in found:
            self._take(connection, port)
        return there

    def close(self) -> None:
        """Close this end."""
        self._sock.close()
