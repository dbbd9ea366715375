"""An event loop with its own clock, which jumps to the next timer when nothing else is left to do.

Waiting for a timer takes no real time, and takes exactly the timer's seconds on the virtual clock, on any machine. Only
for code that waits for timers and for other tasks: the loop would poll a socket once, and then move the time on.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.SelectSelector):
    """A selector that never waits: the time that it would have waited passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """The ready sockets; if there is none, *timeout* passes at once."""
        ready = super().select(0)
        if not ready:
            if timeout is None:
                msg = "everything waits, and nothing will ever happen"
                raise RuntimeError(msg)
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """The event loop of the module's docstring."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    @property
    def now(self) -> float:
        """Seconds since the loop was made."""
        return self._jumping.now

    def time(self) -> float:
        """The clock of the loop's timers."""
        return self._jumping.now


def virtually(work: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """Run *work* to its end; return its result and the virtual seconds that it took."""

    async def timed() -> tuple[T, float]:
        result = await work
        return result, round(now(), 6)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(timed())


def now() -> float:
    """The running loop's time: the clock of the code under test."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.now
