"""One timer for all streams: whoever asks is called at a time that need not be exact."""

from __future__ import annotations

import asyncio
import heapq
from typing import Protocol

from app.ports import Clock

# Seconds between turns. Heartbeats, time-outs and ages are seconds; a client does not see a twentieth of one.
TURN = 0.05


class Timed(Protocol):
    """Who is called; ``slot`` is the wheel's own note of when."""

    slot: int

    def tick(self, now: float) -> None:
        """Its time has come."""


class TimerWheel:
    """Calls timed back; O(1) to set and to unset, one timer of the loop however many there are."""

    __slots__ = ("_clock", "_order", "_passed", "_slots", "_timer")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slots: dict[int, dict[Timed, None]] = {}
        self._order: list[int] = []  # a heap of the seats' numbers
        self._passed = 0  # the slot whose turn it was last
        self._timer: asyncio.TimerHandle | None = None

    def set(self, timed: Timed, when: float) -> None:
        """Have *timed* called at *when*, or up to a turn later; instead of what was set before.

        A time that is over means the next turn: never the one under way, which would not end.
        """
        slot = max(int(when / TURN), self._passed) + 1
        if timed.slot == slot:
            return
        self.unset(timed)
        due = self._slots.get(slot)
        if due is None:
            due = self._slots[slot] = {}
            heapq.heappush(self._order, slot)
            if self._order[0] == slot:
                self._wind()
        due[timed] = None
        timed.slot = slot

    def unset(self, timed: Timed) -> None:
        """Do not call *timed*."""
        due = self._slots.get(timed.slot)
        if due is not None:
            due.pop(timed, None)
        timed.slot = 0

    def _wind(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._order:
            pause = self._order[0] * TURN - self._clock()
            self._timer = asyncio.get_running_loop().call_later(max(pause, 0.0), self._turn)

    def _turn(self) -> None:
        self._timer = None
        now = self._clock()
        self._passed = int(now / TURN)
        try:
            while self._order and self._order[0] <= self._passed:
                due = self._slots.pop(heapq.heappop(self._order))
                for timed in due:
                    timed.slot = 0
                for timed in due:
                    if not timed.slot:
                        timed.tick(now)
        finally:
            self._wind()
