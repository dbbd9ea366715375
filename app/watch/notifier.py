"""Waking readers: one pass over all that listen, however many batches came since the last.

A pass costs about a send a reader (5 to 10 us), and etcd's messages come one by one: each with a pass of its own,
10,000 a second would be behind by seconds with 100 readers. So after a pass the loop is left alone for twice as long
as it took, up to MAX_PAUSE: what arrives meanwhile leaves in one write a reader. After a quiet time the next pass is at
the end of the loop's turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice

# Callbacks of a pass in one turn of the loop: about 4 ms, in which nobody else is served.
SLICE = 500
# Seconds that a pass waits at the most: those over thousands take longer, but between their slices others are served.
MAX_PAUSE = 0.005


class Notifier:
    """Callbacks of all that listen, each called in every pass: O(1) to come, to go, and to notify."""

    __slots__ = ("_listening", "_next", "_pending", "_rest", "_spent")

    def __init__(self) -> None:
        self._listening: dict[Callable[[], None], None] = {}
        self._pending = False  # a pass is to begin
        self._rest: Iterator[Callable[[], None]] | None = None  # of the pass under way
        self._spent = 0.0  # seconds in callbacks, of the pass under way
        self._next = 0.0  # when the next pass may begin

    def add(self, wake: Callable[[], None]) -> None:
        """Have *wake* called in every pass from now on, until it is discarded."""
        self._listening[wake] = None

    def discard(self, wake: Callable[[], None]) -> None:
        """It listens no more; the pass under way may still call it."""
        self._listening.pop(wake, None)

    def notify(self) -> None:
        """Have a pass begin soon: there is something to read."""
        if self._pending or not self._listening:
            return
        self._pending = True
        if self._rest is None:
            self._schedule()

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._next:
            loop.call_soon(self._begin)
        else:
            loop.call_at(self._next, self._begin)

    def _begin(self) -> None:
        self._pending = False
        self._rest = iter(tuple(self._listening))
        self._spent = 0.0
        self._go_on()

    def _go_on(self) -> None:
        assert self._rest is not None, "a pass is under way"
        loop = asyncio.get_running_loop()
        began = loop.time()
        called = 0
        try:
            for wake in islice(self._rest, SLICE):
                called += 1
                wake()
        finally:
            now = loop.time()
            self._spent += now - began
            if called == SLICE:
                loop.call_soon(self._go_on)
            else:
                self._rest = None
                self._next = now + min(2 * self._spent, MAX_PAUSE)
                if self._pending:
                    self._schedule()
