"""The limit on connections, and which connection is closed at the limit. File descriptors run out before memory does.

A connection is *busy* from the end of a request's head to the end of its answer, and idle otherwise. At the limit, a
new connection evicts the connection that has been idle longest, so that clients that send nothing keep nobody out. If
hundreds arrive at once, a connection is the oldest before its request has been read: it is spared, once. Long
requests (a stream, a read) are admitted only while *spare* connections are left for short ones: probes, metrics,
refusals. The connections that the gateway itself has, to its upstream gateway, leave room for fewer clients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .errors import OverCapacityError

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """The connections at one moment, and how many were evicted since the process began."""

    connections: int
    busy: int
    limit: int
    evicted: int


class Capacity(Generic[C]):
    """Counts the connections that are reported to it. It does not know the connections of another server.

    Args:
        limit: how many connections there may be, the gateway's own included.
        own: returns how many the gateway itself has, beyond those that are reserved anyway.
    """

    __slots__ = ("_evicting", "_idle", "_own", "connections", "evicted", "limit", "spare")

    def __init__(self, limit: int, spare: int, own: Callable[[], int] = lambda: 0) -> None:
        self.limit = limit
        self.spare = spare
        self._own = own
        self.connections = 0
        self.evicted = 0
        self._idle: dict[C, bool] = {}  # whether each was spared; the one that has been idle longest comes first
        self._evicting: set[C] = set()  # evicted, and not closed yet

    @property
    def busy(self) -> int:
        """The number of connections that serve a request."""
        return self.connections - len(self._idle) - len(self._evicting)

    @property
    def room(self) -> int:
        """How many connections clients may have."""
        return max(0, self.limit - self._own())

    @property
    def has_room(self) -> bool:
        """Whether a long request may be admitted. The connection of that request already counts as busy."""
        return self.busy <= self.room - self.spare

    def statistics(self) -> ConnectionStatistics:
        """Return the current counts."""
        return ConnectionStatistics(self.connections, self.busy, self.room, self.evicted)

    def arrive(self, connection: C, has_unread: Callable[[C], bool] = lambda _connection: False) -> C | None:
        """Count a new, idle connection. Return the connection to evict: the new one itself if all others are busy.

        *has_unread*: whether a connection has sent something that was not read yet.
        """
        self.connections += 1
        self._idle[connection] = False
        if self.connections - len(self._evicting) <= self.room:
            return None
        victim = self._idle_longest(has_unread)
        # Many connections may arrive before one victim is closed: each must evict another.
        del self._idle[victim]
        self._evicting.add(victim)
        self.evicted += 1
        return victim

    def mark_busy(self, connection: C) -> None:
        """Mark *connection* busy: its request has arrived."""
        self._idle.pop(connection, None)

    def mark_idle(self, connection: C) -> None:
        """Mark *connection* idle: its answer is sent."""
        self._idle[connection] = False

    def leave(self, connection: C) -> None:
        """Stop counting *connection*, which the client or the gateway has closed. Call this once per connection."""
        self.connections -= 1
        self._idle.pop(connection, None)
        self._evicting.discard(connection)

    def _idle_longest(self, has_unread: Callable[[C], bool]) -> C:
        """Return the connection to evict. One that has a request in its socket is spared once, and comes last."""
        while True:
            oldest = next(iter(self._idle))
            if self._idle[oldest] or not has_unread(oldest):
                return oldest
            del self._idle[oldest]
            self._idle[oldest] = True

    def check(self) -> None:
        """Raise OverCapacityError unless there is room for a long request."""
        if not self.has_room:
            raise OverCapacityError(
                f"{self.busy} connections are in use; the limit of open files allows {max(0, self.room - self.spare)}: "
                "retry later",
                code="too-many-connections",
            )
