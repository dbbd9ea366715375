"""Long work on many streams, done in slices: so much in each turn of the event loop (``app.core.turn_share``).

One pass over 5,000 streams would block the event loop, and the events of all other streams.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from ..core.turn_share import TurnShare
from ..ports import Clock

logger = logging.getLogger("gateway.stream")

T = TypeVar("T")

# Seconds of a slice at least and at most. With 0.5 ms for each slice, an event of another stream came after 3.3 ms
# (median) instead of 1.9 while a role was taken away from 500 of 5,000 streams (docs/decisions/0042).
LEAST, MOST = 0.0001, 0.0005
# Seconds after which a slice may take longer than MOST: revoked clients must not read on for more than a second. On a
# loop with turns of 4 ms, 20,000 streams of as many identities (20 us each) took 3.6 s with MOST to the end.
LATE = 0.4


class Slices(Generic[T]):
    """Calls *do* for each of *items*: the first slice at once, the others in later turns of the loop.

    An error of one item is logged, and keeps no other item from its call.
    """

    __slots__ = ("_clock", "_do", "_items", "_late_at", "_share", "running")

    def __init__(self, items: Iterable[T], do: Callable[[T], None], clock: Clock) -> None:
        self._items = iter(items)
        self._do = do
        self._clock = clock
        self._late_at = clock() + LATE
        self._share = TurnShare(clock, least=LEAST, most=MOST)
        self.running = True
        self._slice()

    def stop(self) -> None:
        """Leave the rest undone, and hold nothing any more: who asks whether it is running may keep this object."""
        self._items, self._do = iter(()), _nothing
        self.running = False

    def _slice(self) -> None:
        until = self._share.begin(late=self._clock() >= self._late_at)
        for item in self._items:
            try:
                self._do(item)
            except Exception:
                logger.exception("work on one of many streams failed")
            if self._clock() >= until:
                self._share.end(more=True)
                asyncio.get_running_loop().call_soon(self._slice)
                return
        self.stop()


def _nothing(_item: object) -> None:
    """Do nothing."""
