"""The memory of an answer of ``/v1/kv``, from before its first byte is read until the answer owns it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..core.budget import PAGE_BYTES, Budget, Hold, Use
from ..memory import reserve

# Seconds that a read waits for memory before it is refused.
RESERVE_TIMEOUT = 0.5


@asynccontextmanager
async def answer_memory(budget: Budget, size: int = PAGE_BYTES) -> AsyncIterator[Hold]:
    """Reserve *size* bytes. The hold is released only if the block raises: otherwise the block has made its owner.

    Raises:
        OverCapacityError: the bytes did not become free in time; nothing is held.
    """
    hold = await reserve(budget, Use.ANSWER, size, timeout=RESERVE_TIMEOUT)
    try:
        yield hold
    except BaseException:
        hold.release()
        raise
