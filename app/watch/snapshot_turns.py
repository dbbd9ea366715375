"""Reading snapshots beside each other while they fit, and in turn when they don't."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..core.errors import NoRoomError

T = TypeVar("T")

# Seconds that a snapshot which did not fit beside others waits for these to be read.
READING_TIMEOUT = 10.0


class SnapshotTurns:
    """The turns of all feeds of a process."""

    def __init__(self) -> None:
        self._reading = 0  # snapshots that are being read
        self._none_reads = asyncio.Event()
        self._turn = asyncio.Lock()  # of those that did not fit beside others

    async def read(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What *attempt* returns, which reads a snapshot; it is made again when the snapshot did not fit beside others.

        The first attempt is made beside others. Where they do not fit together each gives back what it has read, and
        they read one after the other: whoever waits holds nothing.

        Raises:
            TooLargeError: it does not fit.
        """
        try:
            return await self._attempt(attempt)
        except NoRoomError:
            if not self._reading and not self._turn.locked():
                raise
        async with self._turn:
            for last in (False, False, True):
                await self._until_none_reads()
                try:
                    return await self._attempt(attempt)
                except NoRoomError:
                    if last or not self._reading:
                        raise
        raise AssertionError("the last attempt returns or raises")  # pragma: no cover

    async def _attempt(self, attempt: Callable[[], Awaitable[T]]) -> T:
        self._reading += 1
        self._none_reads.clear()
        try:
            return await attempt()
        finally:
            self._reading -= 1
            if not self._reading:
                self._none_reads.set()

    async def _until_none_reads(self) -> None:
        """Not for ever: there may always be others, which begin later."""
        if self._reading:
            try:
                async with asyncio.timeout(READING_TIMEOUT):
                    await self._none_reads.wait()
            except TimeoutError:
                pass
