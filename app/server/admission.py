"""The admission of new connections, and the eviction of idle ones at the limit of open files."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from ..core.capacity import Capacity
from ..stream.transport import has_unread

logger = logging.getLogger("gateway.http")

# Seconds between log lines about evicted connections.
EVICTIONS = 60.0


class Connection(Protocol):
    """The part of a client's connection that admission needs."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    def give_way(self) -> None:
        """Close the connection: another connection takes its place."""


class Admission:
    """Admits connections as far as there is room, for all servers of the process together."""

    def __init__(self, capacity: Capacity[Connection]) -> None:
        self.capacity = capacity
        self._said = float("-inf")

    def let_in(self, connection: Connection) -> None:
        """Admit a new connection. If there is no room, evict the connection that has been idle longest."""
        victim = self.capacity.arrive(connection, lambda oldest: has_unread(oldest.transport))
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
