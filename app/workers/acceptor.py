"""Accepts the connections of clients, and gives each one to a worker."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import Callable, Mapping

from .descriptor_passing import Port

logger = logging.getLogger("gateway.workers")

# Connections that are accepted in one turn of the event loop.
AT_ONCE = 64
# Seconds until the next try, when no worker takes a connection, or the process has no descriptor left.
PAUSE, EXHAUSTED = 0.02, 1.0
# The connection is lost, and not the socket that listens.
_LOST = {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}


class Acceptor:
    """See the module. While no worker takes a connection, the kernel keeps the further ones.

    Args:
        listening: the sockets. The caller closes them.
        give: passes a connection to a worker; returns whether one takes it now.
    """

    def __init__(self, listening: Mapping[Port, socket.socket], give: Callable[[socket.socket, Port], bool]) -> None:
        self._listening = dict(listening)
        self._give = give
        self._kept: deque[tuple[socket.socket, Port]] = deque()  # accepted, and not given yet
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        for port, sock in self._listening.items():
            sock.setblocking(False)
            loop.add_reader(sock, self._accept, port)

    def stop(self, port: Port) -> None:
        """Accept nothing more on one socket, and close it. Idempotent."""
        sock = self._listening.pop(port, None)
        if sock is not None:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def close(self) -> None:
        """Accept nothing more, and close what no worker has taken. Idempotent."""
        for port in list(self._listening):
            self.stop(port)
        if self._timer is not None:
            self._timer.cancel()
        for connection, _port in self._kept:
            connection.close()
        self._kept.clear()

    def offer(self, connection: socket.socket, port: Port) -> None:
        """Give a connection to a worker, as soon as one takes it. The acceptor owns it until then."""
        if self._kept or not self._give(connection, port):
            self._kept.append((connection, port))
            self._pause(PAUSE)

    def _accept(self, port: Port) -> None:
        for _ in range(AT_ONCE):
            if self._timer is not None:
                return
            try:
                connection, _address = self._listening[port].accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _LOST:
                    continue
                logger.warning("no connection can be accepted", extra={"reason": error.strerror})
                self._pause(EXHAUSTED)
                return
            self.offer(connection, port)

    def _pause(self, seconds: float) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            for sock in self._listening.values():
                loop.remove_reader(sock)
            self._timer = loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        while self._kept:
            if not self._give(*self._kept[0]):
                self._pause(PAUSE)
                return
            self._kept.popleft()
        self.start()
