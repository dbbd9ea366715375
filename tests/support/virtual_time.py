"""An event loop with a clock of its own, which jumps to the next timer when nothing else is to be done.

What takes seconds by timers takes none, and takes exactly what the timers say, on any machine. Only for code that waits
for timers and for other tasks: a socket would be asked once, and then time goes on without it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.SelectSelector):
    """Waits for nothing: the time that it would have waited has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready; otherwise *timeout* is over."""
        ready = super().select(0)
        if not ready:
            if timeout is None:
                msg = "everything waits, and nothing will ever happen"
                raise RuntimeError(msg)
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

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
    """Run *work* to its end; what it returns, and the seconds that it took."""

    async def timed() -> tuple[T, float]:
        result = await work
        return result, round(now(), 6)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(timed())


def now() -> float:
    """The time of the running loop: the clock of what is under test."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.now
