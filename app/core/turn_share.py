"""The part of the event loop's time that long work may take, so that short work does not wait for long work.

Must live here: for how long work may go on in one turn of the loop. Must not: the work; the event loop.

Theory of operation
    Long work is done in slices, at most one in each turn of the loop. Its part is measured: a slice is SHARE of the
    turn, and the rest is what the loop has done for others since the last slice. So a loop with other work spends most
    of its time on that, and a loop without other work spends all of its time on the long work. Work that must end soon,
    and has gone on for long, gets LATE_SHARE.
"""

from __future__ import annotations

from collections.abc import Callable

# The part of a turn of the loop that long work may take.
SHARE = 0.3
# Its part if it is late, and the seconds of such a slice at most: the loop may have been busy for a second.
LATE_SHARE, LATE_MOST = 2 / 3, 0.02


class TurnShare:
    """See the module.

    Args:
        clock: monotonic seconds, fine enough to measure a turn.
        least: seconds that a slice may take of any turn, however short it is. A turn costs 20 us by itself, and a
            message from etcd needs about three turns until its events are written.
        most: seconds that a slice may take, however long the loop was busy with others.
    """

    __slots__ = ("_clock", "_ended", "_least", "_most")

    def __init__(self, clock: Callable[[], float], *, least: float, most: float) -> None:
        self._clock = clock
        self._least = least
        self._most = most
        self._ended: float | None = None  # when the last slice ended; None if no work was left

    def begin(self, *, late: bool = False) -> float:
        """Begin a slice. Return the clock's time at which the slice must end.

        *late*: the slice is LATE_SHARE of the turn, and LATE_MOST at most.
        """
        began = self._clock()
        others = began - self._ended if self._ended is not None else 0.0
        share, most = (LATE_SHARE, LATE_MOST) if late else (SHARE, self._most)
        return began + min(max(others * share / (1 - share), self._least), most)

    def end(self, *, more: bool) -> None:
        """End the slice. *more*: work is left for the next turn."""
        self._ended = self._clock() if more else None
