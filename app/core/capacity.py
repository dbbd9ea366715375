"""How many connections there may be, and which of them gives way: descriptors end before memory does.

A connection is *busy* from the end of a request's head to the end of its answer, and idle otherwise. At the limit the
one that has been idle longest gives way to a new one, so that clients who send nothing keep nobody out. What takes long
(a stream, a read) is admitted only while *spare* connections are left for what is short: probes, metrics, refusals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from .errors import OverCapacityError

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """Connections at one moment, and how many have given way since the process began."""

    connections: int
    busy: int
    limit: int
    evicted: int


class Capacity(Generic[C]):
    """Counts the connections that it is told of; those of another server it never hears of."""

    __slots__ = ("_idle", "connections", "evicted", "limit", "spare")

    def __init__(self, limit: int, spare: int) -> None:
        self.limit = limit
        self.spare = spare
        self.connections = 0
        self.evicted = 0
        self._idle: dict[C, None] = {}  # the one that has been idle longest is first

    @property
    def busy(self) -> int:
        """Connections with a request."""
        return self.connections - len(self._idle)

    @property
    def roomy(self) -> bool:
        """Whether there is room for what takes long, those that are busy now included."""
        return self.busy <= self.limit - self.spare

    def statistics(self) -> ConnectionStatistics:
        """Counts now."""
        return ConnectionStatistics(self.connections, self.busy, self.limit, self.evicted)

    def arrive(self, connection: C) -> C | None:
        """A new one, idle. Returns the one that gives way to it: itself, if all others are busy."""
        self.connections += 1
        self._idle[connection] = None
        if self.connections <= self.limit:
            return None
        victim = next(iter(self._idle))
        self.evicted += 1
        return victim

    def occupy(self, connection: C) -> None:
        """Its request has come."""
        self._idle.pop(connection, None)

    def rest(self, connection: C) -> None:
        """Its answer is sent."""
        self._idle[connection] = None

    def leave(self, connection: C) -> None:
        """It has gone, or was closed by us. Once for each."""
        self.connections -= 1
        self._idle.pop(connection, None)

    def check(self) -> None:
        """Raises OverCapacityError unless there is room for what takes long."""
        if not self.roomy:
            raise OverCapacityError(
                f"{self.busy} connections are in use, and the limit of open files allows {self.limit - self.spare}",
                code="too-many-connections",
            )
