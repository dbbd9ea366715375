"""Waiting for what must become true, without guessing how long that takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

# Seconds that only a hang reaches, on the slowest machine too. Every time-out of a test is this one: a shorter one
# makes a test of the machine's speed.
HANG = 120.0


async def eventually(holds: Callable[[], Awaitable[bool]], timeout: float = HANG) -> None:
    """Return once *holds* does; fail when it never does."""
    async with asyncio.timeout(timeout):
        while not await holds():  # noqa: ASYNC110 -- what is waited for is in other processes
            await asyncio.sleep(0.05)
