"""TCP connections to a name, of which one is enough.

A name may have several addresses, and the first may be dead. So the next address is tried beside the one that has not
answered for a moment, and the first connection counts (RFC 8305). asyncio's own loop can do that
(``happy_eyeballs_delay``), and uvloop's cannot.

A daemon thread asks for the addresses. The event loop's own ``getaddrinfo`` cannot be cancelled, and the loop cannot be
closed before it returns, which takes 10 s for each name server that does not answer: a gateway that had lost its name
servers did not end before a SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

# Seconds for a lookup: glibc asks three name servers twice, 5 s each.
LOOKUP_TIMEOUT = 30.0
# Seconds that an address has before the next one is tried beside it.
STAGGER = 0.25

# A lookup that hangs is shared by all who ask meanwhile: one that asks again and again has one thread.
_Lookup = asyncio.Future[list[str] | OSError]
_lookups: dict[tuple[asyncio.AbstractEventLoop, str], _Lookup] = {}


async def connect(host: str, port: int, tls: ssl.SSLContext | None = None, *, timeout: float | None = None) -> Streams:
    """Return a connection to *host*, with TLS if there is a context.

    Args:
        timeout: seconds, without those of the lookup: a name server that does not answer takes 5 s before the next one
            is asked, and whoever gave up just then, and asked again, never had an address.

    Raises:
        TimeoutError: the name's addresses, or the connection, took too long.
        OSError: there is no connection.
    """

    def to(address: str) -> Awaitable[Streams]:
        return asyncio.open_connection(address, port, ssl=tls, server_hostname=host if tls is not None else None)

    async with asyncio.timeout(None if timeout is None else LOOKUP_TIMEOUT):
        addresses = await resolve(host)
    async with asyncio.timeout(timeout):
        return await first(addresses, to)


async def resolve(host: str) -> list[str]:
    """Return the addresses of a name, of which an address itself has one. Raises OSError."""
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    loop = asyncio.get_running_loop()
    lookup = _lookups.get((loop, host))
    if lookup is None:
        lookup = _lookups[loop, host] = loop.create_future()
        try:
            threading.Thread(target=_look_up, args=(loop, host), name="resolve", daemon=True).start()
        except RuntimeError as error:  # the system gives no thread
            del _lookups[loop, host]
            raise OSError(f"the name cannot be looked up: {error}") from None
    found = await asyncio.shield(lookup)
    if isinstance(found, OSError):
        raise type(found)(*found.args)
    return found


def _look_up(loop: asyncio.AbstractEventLoop, host: str) -> None:
    found: list[str] | OSError
    try:
        found = [str(address[0]) for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError as error:
        found = error
    except UnicodeError:
        found = OSError("the name cannot be looked up")
    try:
        loop.call_soon_threadsafe(_found, loop, host, found)
    except RuntimeError:  # the loop is closed
        _lookups.pop((loop, host))


def _found(loop: asyncio.AbstractEventLoop, host: str, found: list[str] | OSError) -> None:
    _lookups.pop((loop, host)).set_result(found)


async def first(addresses: Iterable[str], connect: Callable[[str], Awaitable[Streams]]) -> Streams:
    """Return the first connection that is made. Close any other. Raises the last error if there is none."""
    waiting = deque(dict.fromkeys(addresses))
    if len(waiting) == 1:
        return await connect(waiting[0])
    tasks: list[asyncio.Task[Streams]] = []
    pending: set[asyncio.Task[Streams]] = set()
    winner: asyncio.Task[Streams] | None = None
    error: BaseException = OSError("the name has no address")

    async def attempt(address: str) -> Streams:
        return await connect(address)

    try:
        while waiting or pending:
            if waiting:
                task = asyncio.create_task(attempt(waiting.popleft()), name="dial")
                tasks.append(task)
                pending.add(task)
            stagger = STAGGER if waiting else None
            done, pending = await asyncio.wait(pending, timeout=stagger, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception() or error
                if task.exception() is None:
                    winner = task
                    return task.result()
        raise error
    finally:
        for task in tasks:
            if task is not winner:
                task.cancel()
                task.add_done_callback(_discard)
        del error, tasks  # the error's traceback has this frame: garbage that only a collection would find


def _discard(task: asyncio.Task[Streams]) -> None:
    """Close a connection that came too late."""
    if not task.cancelled() and task.exception() is None:
        _, writer = task.result()
        writer.transport.abort()
