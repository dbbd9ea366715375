"""The end of all streams before the process stops: one after the other, so that not all clients reconnect at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ..core.drain_schedule import DrainSchedule
from ..core.errors import DrainingError
from ..ports import Clock, Draw
from .limits import Limits
from .subscriber import Subscriber

# Seconds between two groups of subscribers that are closed.
TICK = 0.05


class Draining:
    """See the module."""

    def __init__(self, limits: Limits, *, clock: Clock, draw: Draw) -> None:
        self._limits = limits
        self._clock = clock
        self._draw = draw
        self._over_at = 0.0

    @property
    def seconds(self) -> float:
        """The seconds until all subscribers are asked to end."""
        return max(0.0, self._over_at - self._clock())

    def begin(self, subscribers: Iterable[Subscriber]) -> None:
        """Close all *subscribers* over time.

        Random order, so that one range's clients reconnect to other instances spread over the whole window.
        """
        leaving = sorted(subscribers, key=lambda _: self._draw())
        schedule = DrainSchedule(len(leaving), window=self._limits.drain_window, pace=self._limits.drain_pace)
        self._over_at = self._clock() + schedule.seconds
        self._send_away(leaving, schedule, self._clock())

    def _send_away(self, leaving: list[Subscriber], schedule: DrainSchedule, since: float) -> None:
        stay = schedule.count - schedule.due(self._clock() - since)
        going = leaving[stay:]
        del leaving[stay:]
        for subscriber in going:
            subscriber.close(DrainingError.close_reason)
        if leaving:
            asyncio.get_running_loop().call_later(TICK, self._send_away, leaving, schedule, since)
