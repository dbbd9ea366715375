"""The memory of an answer of ``/v1/kv``, from before its first byte is read until the answer owns it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

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


class AnswerMemory:
    """As ``answer_memory``, for an answer of another gateway: its length is known before it is in memory.

    ``hold``: the present hold.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.hold: Hold

    async def __aenter__(self) -> AnswerMemory:
        self.hold = await reserve(self._budget, Use.ANSWER, PAGE_BYTES, timeout=RESERVE_TIMEOUT)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is not None:
            self.hold.release()

    async def need(self, size: int) -> None:
        """Reserve *size* bytes in all, now. While they were waited for, the other gateway would hold the body, too, and
        small answers would wait behind them.

        Raises:
            OverCapacityError: the bytes are not free; nothing is held.
        """
        if size > self.hold.size and not self.hold.grow(size - self.hold.size):
            self.hold.release()
            self.hold = await reserve(self._budget, Use.ANSWER, size, timeout=0)
