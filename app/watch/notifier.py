"""Wake readers: one pass over all listeners, however many batches have arrived since the last pass.

A pass costs about one send per reader (5 to 10 us), and etcd's messages arrive one by one. With one pass per message,
10,000 messages a second would make the gateway fall behind by seconds with 100 readers. So after a pass, no pass begins
for twice the time that the pass took, up to MAX_PAUSE. What arrives in that time leaves in one write per reader. After
a quiet time, the next pass runs at the end of the loop's present turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from ..core.always_true import AlwaysTrue

# Seconds that a pass takes of one turn of the loop, in which the loop serves nothing else. A listener takes about 8 us,
# and five times as long if all readers are reset at once and each begins a snapshot.
SLICE = 0.004
# Listeners between two looks at the clock.
LOOK = 50
# The maximum seconds between two passes. A pass over thousands of readers takes longer, but the loop serves others
# between the pass's slices.
MAX_PAUSE = 0.005


class Listener(Protocol):
    """An object that a pass wakes. The object itself, because a bound method would be 64 bytes for each subscriber."""

    def wake(self) -> None:
        """Look what there is to read."""


class Notifier(AlwaysTrue):
    """All listeners; each pass wakes all of them. Adding, discarding and notifying are O(1)."""

    __slots__ = ("_listening", "_next", "_pending", "_rest", "_spent")

    def __init__(self) -> None:
        self._listening: dict[Listener, None] = {}
        self._pending = False  # a pass must begin
        self._rest: Iterator[Listener] | None = None  # listeners that the present pass has still to wake
        self._spent = 0.0  # seconds that the present pass has spent in listeners
        self._next = 0.0  # the loop's time at which the next pass may begin

    def add(self, listener: Listener) -> None:
        """Wake *listener* in every pass from now on, until it is discarded."""
        self._listening[listener] = None

    def discard(self, listener: Listener) -> None:
        """Remove *listener*. The present pass may still wake it."""
        self._listening.pop(listener, None)

    def __len__(self) -> int:
        return len(self._listening)

    def notify(self) -> None:
        """Begin a pass soon, because there is something to read."""
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
        rest = self._rest
        assert rest is not None, "a pass is under way"
        loop = asyncio.get_running_loop()
        began = now = loop.time()
        some: tuple[Listener, ...] = ()
        try:
            while now - began < SLICE:
                some = tuple(islice(rest, LOOK))
                for listener in some:
                    listener.wake()
                now = loop.time()
                if len(some) < LOOK:
                    break
        finally:
            self._spent += loop.time() - began
            self._end_slice(loop, over=len(some) < LOOK)

    def _end_slice(self, loop: asyncio.AbstractEventLoop, *, over: bool) -> None:
        if not over:
            loop.call_soon(self._go_on)
            return
        self._rest = None
        self._next = loop.time() + min(2 * self._spent, MAX_PAUSE)
        if self._pending:
            self._schedule()
