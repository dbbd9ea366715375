"""Members that wait for the event loop's time, and take turns: long work that must not delay short work.

Must live here: who is served next, and for how long. Must not: what a member does with its turn; the event loop
(``app.stream.snapshot_queue``).

Theory of operation
    In each turn of the loop, members are served one after the other, until their part of the turn is used up. A member
    that wants more goes to the end of the queue. Their part is measured: it is SHARE of the turn, and the rest is what
    the loop has done for others since it last served members. So a loop with other work spends most of its time on
    that, and a loop without other work spends all of its time on members.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from .always_true import AlwaysTrue

# The part of a turn of the loop that members may take.
SHARE = 0.3
# Seconds that members may take of any turn, however short it is. A turn costs 20 us by itself, and a message from etcd
# needs about three turns until its events are written.
LEAST = 0.0005
# Seconds that members may take of one turn at most, however long the loop was busy with others. With 5 ms, an event's
# three turns took 9 to 13 ms of CPU at the 99th percentile on a loaded machine, while 5,000 clients joined. With 1 ms
# they took 5 to 9 (docs/decisions/0042).
MOST = 0.001


class Member(Protocol):
    """Waits for its turn. Only the queue sets ``queued``: whether the member waits."""

    queued: bool

    def take_turn(self) -> None:
        """Do a small part of the work. A member that wants more adds itself again."""


class RoundRobin(AlwaysTrue):
    """See the module.

    Args:
        clock: monotonic seconds, fine enough to measure a turn.
    """

    __slots__ = ("_clock", "_ended", "_waiting")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: OrderedDict[Member, None] = OrderedDict()
        self._ended: float | None = None  # when the last turn ended; None if no member was left

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, member: Member) -> None:
        """Put *member* at the end of the queue, unless it waits already."""
        member.queued = True
        self._waiting.setdefault(member)

    def discard(self, member: Member) -> None:
        """Remove *member*. Idempotent."""
        member.queued = False
        self._waiting.pop(member, None)

    def turn(self) -> None:
        """Serve members for their part of a turn of the loop, but at least one."""
        began = self._clock()
        others = began - self._ended if self._ended is not None else 0.0
        until = began + min(max(others * SHARE / (1 - SHARE), LEAST), MOST)
        now = began
        while self._waiting and now < until:
            member, _ = self._waiting.popitem(last=False)
            member.queued = False
            member.take_turn()
            now = self._clock()
        self._ended = now if self._waiting else None
