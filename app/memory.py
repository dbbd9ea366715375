"""Wait for memory: the asynchronous side of ``app.core.budget``."""

from __future__ import annotations

import asyncio

from .core.budget import Budget, Hold, Use
from .core.errors import OverCapacityError


async def reserve(budget: Budget, use: Use, size: int, *, timeout: float) -> Hold:
    """Reserve *size* bytes of *budget*; wait for them up to *timeout* seconds. The caller owns the hold.

    Raises:
        OverCapacityError: the bytes did not become free in time; nothing is held.
    """
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    hold = budget.ask(use, size, lambda: None if turn.done() else turn.set_result(None))
    if hold.granted:
        return hold
    try:
        async with asyncio.timeout(timeout):
            await turn
    except TimeoutError:
        hold.release()
        msg = f"reads and feeds hold {budget.held} bytes; GATEWAY_MAX_FEED_BYTES is {budget.limit}: retry later"
        raise OverCapacityError(msg, code="too-many-reads") from None
    except BaseException:
        hold.release()
        raise
    return hold
