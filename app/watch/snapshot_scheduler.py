"""Read snapshots concurrently while they fit in memory together, and one after the other when they do not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..core.errors import NoRoomError

T = TypeVar("T")

# Seconds that a snapshot waits for other reads to end, after it did not fit beside them.
READING_TIMEOUT = 10.0


class SnapshotScheduler:
    """Schedules the snapshots of all feeds of a process."""

    def __init__(self) -> None:
        self._reading = 0  # snapshots that are being read
        self._none_reads = asyncio.Event()
        self._turn = asyncio.Lock()  # taken by a snapshot that did not fit beside others

    async def read(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return the result of *attempt*, which reads a snapshot. Repeat it if the snapshot did not fit beside others.

        The first attempt runs beside others. If the snapshots do not fit together, each attempt frees what it has read,
        and the snapshots are read one after the other. A snapshot that waits holds no memory.

        Raises:
            TooLargeError: the snapshot does not fit.
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
        """Wait until no snapshot is being read, but with a timeout: new reads may begin again and again."""
        if self._reading:
            try:
                async with asyncio.timeout(READING_TIMEOUT):
                    await self._none_reads.wait()
            except TimeoutError:
                pass
