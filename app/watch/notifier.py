"""Waking readers: whoever waits is woken by the next ``notify``; one that reads meanwhile misses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Notifier:
    """Callbacks of those who wait now, each called once: O(1) to wait, O(waiting) to notify."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[Callable[[], None], None] = {}

    def add(self, wake: Callable[[], None]) -> None:
        """Have *wake* called at the next ``notify``."""
        self._waiting[wake] = None

    def discard(self, wake: Callable[[], None]) -> None:
        """It does not wait any more."""
        self._waiting.pop(wake, None)

    def notify(self) -> None:
        """Wake all who wait."""
        waiting, self._waiting = self._waiting, {}
        for wake in waiting:
            wake()


class Bell:
    """One reader's place to wait: rung by a notifier, or when its time is up."""

    __slots__ = ("_future", "_loop", "_notifier")

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """End the wait."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, timeout: float) -> None:
        """Until it rings, at most *timeout* seconds. Nothing that happens before the first await is missed."""
        self._future = self._loop.create_future()
        self._notifier.add(self.ring)
        timer = self._loop.call_later(max(timeout, 0.0), self.ring)
        try:
            await self._future
        finally:
            timer.cancel()
            self._notifier.discard(self.ring)
            self._future = None
