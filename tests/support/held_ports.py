"""Ports that a test's server keeps while it is down.

A test kills a server, and starts it again on the same port. Meanwhile the port is free, and ``free_ports`` gave it to
another test that ran beside: the first server never came back.
"""

from __future__ import annotations

import errno
import socket

from app.dev.etcd import PortTakenError


class HeldPorts:
    """Keeps ports of 127.0.0.1 from ``free_ports``, until ``close``.

    A port is bound, and nobody listens on it: connections are refused, as if nobody had it. A server that sets
    SO_REUSEADDR, as Go's and asyncio's do, can bind it nevertheless, and listen.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def hold(self, *ports: int) -> None:
        """Keep *ports*, too. Raises PortTakenError if somebody has one of them already."""
        for port in ports:
            held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                held.bind(("127.0.0.1", port))
                self._sockets.append(held)
            except OSError as error:
                held.close()
                if error.errno == errno.EADDRINUSE:
                    raise PortTakenError(f"another process has port {port}") from error
                raise

    def close(self) -> None:
        """Keep none any more. Idempotent."""
        for held in self._sockets:
            held.close()
        self._sockets.clear()
