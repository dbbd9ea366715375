"""The timers of all streams. A stream's timer need not be exact.

10,000 streams at rest (a heartbeat of 15 s each, and 200 checks every 0.25 s) cost 3.5 ms of CPU a second with this
wheel, and 58 bytes each. With ``loop.call_at`` for each stream they cost 26 ms a second, and 654 bytes each, on uvloop.
See decision 14.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Protocol

from ..ports import Clock

# Seconds of a slot. Heartbeats, timeouts and ages last seconds: a client does not notice a twentieth of a second.
SLOT = 0.05
# Seconds of a turn of the event loop that the calls of a slot may take: an event needs about three turns until it is
# written. Of 5,000 streams that have joined together, the heartbeats of one slot took up to 15 ms, and a call 30 us.
SLICE = 0.0005
# The slot of an object whose slot has come, and which is about to be called.
DUE = -1


class Timed(Protocol):
    """An object that the wheel calls. Only the wheel sets ``slot``: the slot in which the object waits, DUE, or 0."""

    slot: int

    def tick(self, now: float) -> None:
        """Handle the end of the wait. *now* is in seconds of the wheel's clock."""


# The number of a slot, and what waits in it. All that wait share the one number, which is an object of 32 bytes.
Slot = tuple[int, dict[Timed, None]]


class TimerWheel:
    """One timer of the event loop for each slot of 50 ms, however many objects wait in that slot."""

    __slots__ = ("_clock", "_passed", "_slots")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slots: dict[int, Slot] = {}
        self._passed = 0  # the latest slot that has been called

    def set(self, timed: Timed, when: float) -> None:
        """Call *timed* at *when*, or up to one slot later. This replaces the time that was set before.

        A time in the past means the next slot. It never means the slot that is being called now: that slot would not
        end.
        """
        slot = max(int(when / SLOT), self._passed) + 1
        if timed.slot == slot:
            return
        self.unset(timed)
        found = self._slots.get(slot)
        if found is None:
            found = self._slots[slot] = (slot, {})
            pause = slot * SLOT - self._clock()
            asyncio.get_running_loop().call_later(max(pause, 0.0), self._turn, slot)
        timed.slot, waiting = found
        waiting[timed] = None

    def unset(self, timed: Timed) -> None:
        """Cancel the call of *timed*, if one is set."""
        found = self._slots.get(timed.slot)
        if found is not None:
            found[1].pop(timed, None)
        timed.slot = 0

    def _turn(self, slot: int) -> None:
        _, waiting = self._slots.pop(slot)
        for timed in waiting:
            timed.slot = DUE
        self._call(slot, iter(waiting))

    def _call(self, slot: int, due: Iterator[Timed]) -> None:
        until = self._clock() + SLICE
        # uvloop counts whole milliseconds, so its timer may fire a millisecond early, when nothing would be due yet.
        now = max(self._clock(), slot * SLOT)
        self._passed = max(self._passed, slot, int(now / SLOT))
        for timed in due:
            if timed.slot != DUE:  # unset, or set again, since the slot has come
                continue
            timed.slot = 0
            timed.tick(now)
            if self._clock() >= until:
                asyncio.get_running_loop().call_soon(self._call, slot, due)
                return
