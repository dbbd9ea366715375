"""Members that wait for the event loop's time, and take turns: long work that must not delay short work.

Must live here: who is served next. Must not: what a member does with its turn; the event loop
(``app.stream.snapshot_queue``).

Theory of operation
    In each turn of the loop, members are served one after the other, until their part of the turn is used up
    (``app.core.turn_share``). A member that wants more goes to the end of the queue.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from .always_true import AlwaysTrue
from .turn_share import TurnShare

# Seconds of a turn of the loop that members may take at least, and at most (``TurnShare``). With at most 5 ms, an
# event's three turns took 9 to 13 ms of CPU at the 99th percentile on a loaded machine, while 5,000 clients joined.
# With 1 ms they took 5 to 9 (docs/decisions/0042).
LEAST, MOST = 0.0005, 0.001


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

    __slots__ = ("_clock", "_share", "_waiting")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: OrderedDict[Member, None] = OrderedDict()
        self._share = TurnShare(clock, least=LEAST, most=MOST)

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
        until = self._share.begin()
        while self._waiting:
            member, _ = self._waiting.popitem(last=False)
            member.queued = False
            member.take_turn()
            if self._clock() >= until:
                break
        self._share.end(more=bool(self._waiting))
