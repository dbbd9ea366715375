"""Reads that are shared: whoever asks the same while one is under way waits for the *next*, together.

The one under way began before they asked, so its answer could be older than their question: not linearizable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

from ..core.sized import Sized

T = TypeVar("T")


class _Flight:
    __slots__ = ("next", "waiting")

    def __init__(self) -> None:
        self.next: asyncio.Future[Any] | None = None
        self.waiting = 0


class SharedReads(Sized):
    """``run(key, read)`` returns what *read* returns, from a run of it that began after the call.

    A requester that is cancelled does not cancel the others'; when none is left, the next run is not started.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._flights)

    async def run(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """See the class; raises what *read* raises, to each of its requesters."""
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
            del future  # whoever keeps the error of a cancelled requester would keep the others' result with it
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
                except Exception as error:  # every requester is told
                    future.set_exception(error)
                    future.exception()  # retrieved: they may all have gone
                else:
                    future.set_result(result)
                    del result
                del future  # and with it the result, which is only theirs who waited
        finally:
            if flight.next is not None:
                flight.next.cancel()
            del self._flights[key]

    async def aclose(self) -> None:
        """Cancel what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
