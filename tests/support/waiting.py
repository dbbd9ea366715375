"""Wait for a condition without guessing how long it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

# Seconds that only a hang reaches, even on the slowest machine. Every timeout of a test is this one: a shorter timeout
# would make the test depend on the machine's speed.
HANG = 120.0


async def eventually(holds: Callable[[], Awaitable[bool]], timeout: float = HANG) -> None:
    """Return once *holds* returns True; fail if that never happens."""
    pause = 0.001  # most conditions hold soon, and a test has many of them
    async with asyncio.timeout(timeout):
        while not await holds():  # the condition is in other processes
            await asyncio.sleep(pause)
            pause = min(0.2, 2 * pause)  # each question costs CPU: a scrape of etcd 6 ms, a request with httpx 3


async def soon(holds: Callable[[], bool]) -> None:
    """Return once *holds* returns True: a condition of this process."""

    async def so() -> bool:
        return holds()

    await eventually(so)
