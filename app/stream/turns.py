"""Work that clients bring in bursts, such as joins and leaves: so much in each turn of the event loop, the rest later.

When 5,000 clients were disconnected together, the loop ended their streams in one turn, and an event for another client
waited for 220 ms.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable

from ..core.always_true import AlwaysTrue

# Joins and leaves in a turn of the loop: about 2 ms of its time each.
JOINS, LEAVES = 10, 50


class Turns(AlwaysTrue):
    """Lets *most* pieces of work go in each turn of the event loop. The others wait, in order.

    A piece of work that comes alone goes at once.
    """

    __slots__ = ("_left", "_most", "_scheduled", "_waiting")

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = most  # in this turn
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False  # the next turn is planned

    def __len__(self) -> int:
        """Return how many pieces of work wait."""
        return len(self._waiting)

    def give(self, go: Callable[[], None]) -> None:
        """Call *go* now if this turn has time for it, otherwise in a later turn."""
        if self._take():
            go()
        else:
            self._waiting.append(go)

    async def wait(self) -> None:
        """Return at once if this turn has time for the caller's work, otherwise in a later turn."""
        if not self._take():
            turn = asyncio.Event()
            self._waiting.append(turn.set)
            await turn.wait()

    def finish(self) -> None:
        """Let all go that waits, and whatever comes later, because the process ends."""
        self._most = self._left = sys.maxsize
        self._serve()

    def _take(self) -> bool:
        if not self._scheduled:
            self._plan()
        if not self._left:
            return False
        self._left -= 1
        return True

    def _plan(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._left = self._most
        if self._waiting:
            self._plan()
            self._serve()

    def _serve(self) -> None:
        while self._waiting and self._left:
            self._left -= 1
            self._waiting.popleft()()
