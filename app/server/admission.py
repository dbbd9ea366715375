"""The admission of new connections, and the eviction of idle ones at the limit of open files."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import sys
import termios
from typing import Protocol

from ..core.capacity import Capacity

logger = logging.getLogger("gateway.http")

# Seconds between log lines about evicted connections.
EVICTIONS = 60.0


class Connection(Protocol):
    """The part of a client's connection that admission needs."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    def give_way(self) -> None:
        """Close the connection: another connection takes its place."""


def has_unread(connection: Connection) -> bool:
    """Whether the system has received bytes of the client that the gateway has not read."""
    found = connection.transport.get_extra_info("socket")
    if found is None or found.fileno() < 0:
        return False
    unread = fcntl.ioctl(found.fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(unread, sys.byteorder) > 0


class Admission:
    """Admits connections as far as there is room, for all servers of the process together."""

    def __init__(self, capacity: Capacity[Connection]) -> None:
        self.capacity = capacity
        self._said = float("-inf")

    def let_in(self, connection: Connection) -> None:
        """Admit a new connection. If there is no room, evict the connection that has been idle longest."""
        victim = self.capacity.arrive(connection, has_unread)
        if victim is None:
            return
        victim.give_way()
        now = connection.loop.time()
        if now - self._said >= EVICTIONS:
            self._said = now
            logger.warning(
                "at the limit of open files: idle connections are closed",
                extra={
                    "connections": self.capacity.connections,
                    "busy": self.capacity.busy,
                    "closed_so_far": self.capacity.evicted,
                },
            )
