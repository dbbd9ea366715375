"""The streams that have more to send than one write: snapshots, and what slow readers have missed.

These streams take turns (``app.core.round_robin``). When 5,000 clients joined a range with 2 MB of state together, and
each stream wrote as soon as its socket was ready, an event reached the subscribers of another range after 4 s.
"""

from __future__ import annotations

import asyncio

from ..core.always_true import AlwaysTrue
from ..core.round_robin import Member, RoundRobin
from ..ports import Clock

# With this many streams in the queue, clients stay away twice as long before they reconnect; with twice as many, three
# times as long; and so on, up to MOST_FACTOR times.
STREAMS_A_FACTOR = 1000
MOST_FACTOR = 6


class SnapshotQueue(AlwaysTrue):
    """Gives turns to the streams that wait, in each turn of the event loop, as long as any waits."""

    __slots__ = ("_members", "_scheduled")

    def __init__(self, clock: Clock) -> None:
        self._members = RoundRobin(clock)
        self._scheduled = False

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: Member) -> None:
        """See ``RoundRobin``. Before the first turn, the loop does what is due already."""
        self._members.add(member)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def discard(self, member: Member) -> None:
        """See ``RoundRobin``."""
        self._members.discard(member)

    def _turn(self) -> None:
        try:
            self._members.turn()
        finally:
            self._scheduled = len(self._members) > 0
            if self._scheduled:
                asyncio.get_running_loop().call_soon(self._turn)

    @property
    def retry_factor(self) -> float:
        """How many times longer than usual a client should stay away, because of the queue."""
        return min(1 + len(self) / STREAMS_A_FACTOR, MOST_FACTOR)
