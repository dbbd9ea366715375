"""The event loop of a process, and work beside it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds for which a thread keeps the interpreter's lock although another thread waits for it. With Python's 5 ms, a
# turn of the event loop waited for 18 ms (90th percentile) while 5,000 tokens were parsed; with 0.5 ms it waits for 2.
USUAL, SHORT = sys.getswitchinterval(), 0.0005


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, on uvloop if it is installed."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    # uvloop has no wheel for some platforms and for new interpreters.
    with contextlib.suppress(ImportError):
        loop_factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(work())


class Beside:
    """Threads that compute while the event loop runs. There is one object for the process: ``BESIDE``."""

    def __init__(self) -> None:
        self._running = 0

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Return what *function* returns. A thread calls it, and gives the interpreter's lock back soon."""
        self._running += 1
        sys.setswitchinterval(SHORT)
        try:
            return await asyncio.to_thread(function, *arguments)
        finally:
            self._running -= 1
            if not self._running:
                sys.setswitchinterval(USUAL)


BESIDE = Beside()
