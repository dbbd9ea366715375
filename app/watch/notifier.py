"""Waking readers: one pass over all that listen, however many batches came since the last.

A pass costs about a send a reader (5 to 10 us). What comes between passes is told at the end of the loop's turn. What
comes during one waits for as long as it took: then there is more to tell than passes can, one by one, and what arrives
meanwhile leaves in one write a reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice

# Callbacks of a pass in one turn of the loop: about 4 ms, in which nobody else is served.
SLICE = 500
# Seconds that a pass waits at the most, however long the one that it waited for took.
MAX_PAUSE = 0.05


class Notifier:
    """Callbacks of all that listen, each called in every pass: O(1) to come, to go, and to notify."""

    __slots__ = ("_listening", "_pending", "_rest", "_spent")

    def __init__(self) -> None:
        self._listening: dict[Callable[[], None], None] = {}
        self._pending = False  # a pass is to begin
        self._rest: Iterator[Callable[[], None]] | None = None  # of the pass under way
        self._spent = 0.0  # seconds in callbacks, of the pass under way

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
            asyncio.get_running_loop().call_soon(self._begin)

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
            self._spent += loop.time() - began
            if called == SLICE:
                loop.call_soon(self._go_on)
            else:
                self._rest = None
                if self._pending:
                    loop.call_later(min(self._spent, MAX_PAUSE), self._begin)
