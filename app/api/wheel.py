"""One timer for all streams: whoever asks is called at a time that need not be exact."""

from __future__ import annotations

import asyncio
import heapq
from typing import Protocol

from app.ports import Clock

# Seconds between turns. Heartbeats, time-outs and ages are seconds; a client does not see a twentieth of one.
TURN = 0.05


class Rider(Protocol):
    """Who is called; ``seat`` is the wheel's own note of when."""

    seat: int

    def tick(self, now: float) -> None:
        """Its time has come."""


class Wheel:
    """Calls riders back; O(1) to set and to unset, one timer of the loop however many there are."""

    __slots__ = ("_clock", "_order", "_passed", "_seats", "_timer")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seats: dict[int, dict[Rider, None]] = {}
        self._order: list[int] = []  # a heap of the seats' numbers
        self._passed = 0  # the seat whose turn it was last
        self._timer: asyncio.TimerHandle | None = None

    def set(self, rider: Rider, when: float) -> None:
        """Have *rider* called at *when*, or up to a turn later; instead of what was set before.

        A time that is over means the next turn: never the one under way, which would not end.
        """
        seat = max(int(when / TURN), self._passed) + 1
        if rider.seat == seat:
            return
        self.unset(rider)
        riders = self._seats.get(seat)
        if riders is None:
            riders = self._seats[seat] = {}
            heapq.heappush(self._order, seat)
            if self._order[0] == seat:
                self._wind()
        riders[rider] = None
        rider.seat = seat

    def unset(self, rider: Rider) -> None:
        """Do not call *rider*."""
        riders = self._seats.get(rider.seat)
        if riders is not None:
            riders.pop(rider, None)
        rider.seat = 0

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
                riders = self._seats.pop(heapq.heappop(self._order))
                for rider in riders:
                    rider.seat = 0
                for rider in riders:
                    if not rider.seat:
                        rider.tick(now)
        finally:
            self._wind()
