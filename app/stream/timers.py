"""The timers of all streams: each stream is called at a time that need not be exact.

10,000 streams at rest (a heartbeat of 15 s each, and 200 looks every 0.25 s) cost 3.5 ms of CPU a second and 58 bytes
each; with ``loop.call_at`` for each stream they cost 26 ms and 654 bytes, on uvloop. See decision 14.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from ..ports import Clock

# Seconds of a slot. Heartbeats, time-outs and ages are seconds; a client does not see a twentieth of one.
SLOT = 0.05


class Timed(Protocol):
    """What the wheel calls. ``slot`` is the wheel's own: the number of the slot that this waits in, 0 for none."""

    slot: int

    def tick(self, now: float) -> None:
        """Its time has come."""


class TimerWheel:
    """One timer of the loop for each slot of 50 ms, however many wait in that slot."""

    __slots__ = ("_clock", "_passed", "_slots")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slots: dict[int, dict[Timed, None]] = {}
        self._passed = 0  # the latest slot that was called

    def set(self, timed: Timed, when: float) -> None:
        """Call *timed* at *when*, or up to a slot later. This replaces what was set before.

        A time that is over means the next slot. It never means the slot that is being called, which would not end.
        """
        slot = max(int(when / SLOT), self._passed) + 1
        if timed.slot == slot:
            return
        self.unset(timed)
        waiting = self._slots.get(slot)
        if waiting is None:
            waiting = self._slots[slot] = {}
            pause = slot * SLOT - self._clock()
            asyncio.get_running_loop().call_later(max(pause, 0.0), self._turn, slot)
        waiting[timed] = None
        timed.slot = slot

    def unset(self, timed: Timed) -> None:
        """Do not call *timed*."""
        waiting = self._slots.get(timed.slot)
        if waiting is not None:
            waiting.pop(timed, None)
        timed.slot = 0

    def _turn(self, slot: int) -> None:
        waiting = self._slots.pop(slot)
        # uvloop counts whole milliseconds, so its timer may come a millisecond early, when nothing would be due yet.
        now = max(self._clock(), slot * SLOT)
        self._passed = max(self._passed, slot, int(now / SLOT))
        for timed in waiting:
            timed.slot = 0
        for timed in waiting:
            if not timed.slot:
                timed.tick(now)
