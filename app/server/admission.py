"""Which connections are let in, and which give way to them."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from ..core.capacity import Capacity

logger = logging.getLogger("gateway.http")

# Seconds between log lines about connections that give way.
EVICTIONS = 60.0


class Connection(Protocol):
    """A client's connection, as far as admission goes."""

    loop: asyncio.AbstractEventLoop

    def give_way(self) -> None:
        """Close: another connection takes the place."""


class Admission:
    """Lets connections in, for all servers of the process together, as far as there is room."""

    def __init__(self, capacity: Capacity[Connection]) -> None:
        self.capacity = capacity
        self._said = float("-inf")

    def let_in(self, connection: Connection) -> None:
        """A new one; the one that has been idle longest gives way where there is no room."""
        victim = self.capacity.arrive(connection)
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
