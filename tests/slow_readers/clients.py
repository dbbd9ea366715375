"""Clients that read at a given rate, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from tests.support.streams import Event, Stream, watch
from tests.support.waiting import HANG

# Bytes: with this the kernel buffers only a few KiB for a client that reads nothing.
RECEIVE_BUFFER = 4096
# Seconds: less than the GATEWAY_SEND_TIMEOUT of the tests, after which the gateway cuts a client that reads nothing.
LATE = 0.5

T = TypeVar("T")


class Pace:
    """Whether the clients of a test have read at their rates. They do not while this process gets no core."""

    late = False

    def note(self, seconds: float) -> None:
        """Record that a client has read so many seconds late."""
        self.late |= seconds > LATE


async def at_their_rates(attempt: Callable[[Pace], Awaitable[T]]) -> T:
    """What *attempt* returns. If it fails, and its clients have not read at their rates, it proves nothing: again."""
    while True:
        pace = Pace()
        try:
            return await attempt(pace)
        except (AssertionError, OSError, asyncio.IncompleteReadError):
            if not pace.late:
                raise


async def slow(
    base: str, query: str, rate: float, headers: dict[str, str] | None = None, pace: Pace | None = None
) -> Stream:
    """A strict client that reads *rate* bytes a second: slowness is under test, hence the sleeping."""
    pace = pace or Pace()
    stream = await stuck(base, query, headers)
    clock = asyncio.get_running_loop().time
    started, taken = clock(), 0
    read = stream.reader.readexactly

    async def readexactly(size: int) -> bytes:
        nonlocal taken
        parts: list[bytes] = []
        while size > 0:
            parts.append(await read(min(size, RECEIVE_BUFFER)))
            size -= len(parts[-1])
            taken += len(parts[-1])
            due = max(clock(), started + taken / rate)
            await asyncio.sleep(due - clock())
            pace.note(clock() - due)
        return b"".join(parts)

    stream.reader.readexactly = readexactly  # type: ignore[method-assign, assignment]
    return stream


async def stuck(base: str, query: str, headers: dict[str, str] | None = None) -> Stream:
    """A strict client that reads only the head, until the test asks for more."""
    return await watch(base, query, headers, receive_buffer=RECEIVE_BUFFER)


@contextlib.asynccontextmanager
async def closing(*streams: Stream) -> AsyncIterator[None]:
    """Leave by RST whatever happens, because unread bytes do not matter."""
    try:
        yield
    finally:
        for stream in streams:
            with contextlib.suppress(OSError):  # closed, or aborted by the gateway
                stream.reset()


async def to_the_end(stream: Stream, timeout: float = HANG) -> list[Event]:
    """Read all events until the gateway ends the stream."""
    found: list[Event] = []
    async with asyncio.timeout(timeout):
        while (event := await stream.next_event(timeout)) is not None:
            found.append(event)
    return found


def resets(events: list[Event]) -> list[str]:
    """The reasons of the resets among the events."""
    return [event.data["reason"] for event in events if event.type == "reset"]
