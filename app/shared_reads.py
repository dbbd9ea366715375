"""Shared reads: callers that ask for the same key while a read is under way wait together for the *next* read.

The read under way began before they asked, so its answer may be older than their call: it would not be linearizable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

from .core.always_true import AlwaysTrue

T = TypeVar("T")


class _Flight:
    __slots__ = ("next", "waiting")

    def __init__(self) -> None:
        self.next: asyncio.Future[Any] | None = None
        self.waiting = 0


class SharedReads(AlwaysTrue):
    """``run(key, read)`` returns the result of a *read* that began after the call.

    Cancelling one caller does not cancel the read for the others. If no caller is left, the next read does not start.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._flights)

    async def run(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """See the class. Each of its callers gets what *read* raises."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.next = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(self._fly(key, flight, read), name="shared-read")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif flight.next is None:
            flight.next = asyncio.get_running_loop().create_future()
        future = flight.next
        flight.waiting += 1
        try:
            result: T = await asyncio.shield(future)
        except asyncio.CancelledError:
            if flight.next is future:
                flight.waiting -= 1
            raise
        finally:
            del future  # otherwise the traceback of a cancelled caller would keep the others' result in memory
        return result

    async def _fly(self, key: Hashable, flight: _Flight, read: Callable[[], Awaitable[Any]]) -> None:
        try:
            while flight.next is not None and flight.waiting:
                future, flight.next, flight.waiting = flight.next, None, 0
                try:
                    result = await read()
                except asyncio.CancelledError:
                    future.cancel()
                    raise
                except Exception as error:  # every caller gets the error
                    future.set_exception(error)
                    future.exception()  # mark the error as retrieved: all callers may have gone
                else:
                    future.set_result(result)
                    del result
                del future  # and with it the result: only the callers may keep it
        finally:
            if flight.next is not None:
                flight.next.cancel()
            del self._flights[key]

    async def aclose(self) -> None:
        """Cancel the reads that are under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
