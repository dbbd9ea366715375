"""Connections to the tier above: over TCP, with or without TLS, or over a Unix socket.

A name may have several addresses, and the first may be dead. So the next address is tried beside the one that has not
answered for a moment, and the first connection counts (RFC 8305). asyncio's own loop can do that
(``happy_eyeballs_delay``), and uvloop's cannot.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

import httpx

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
# Opens a connection to where a URL leads. Raises httpx.TransportError.
Dial = Callable[[httpx.URL], Awaitable[Streams]]

# Seconds for a connection to be made, TLS included.
CONNECT_TIMEOUT = 5.0
# Seconds that an address has before the next one is tried beside it.
STAGGER = 0.25


def unix(path: str) -> Dial:
    """Return what connects to a Unix socket, whatever the URL."""

    async def dial(_url: httpx.URL) -> Streams:
        try:
            return await asyncio.open_unix_connection(path)
        except OSError as error:
            raise httpx.ConnectError(str(error)) from None

    return dial


def tcp(tls: ssl.SSLContext | None) -> Dial:
    """Return what connects to a URL's host and port. *tls*: for https."""
    if tls is not None:
        tls.set_alpn_protocols(["http/1.1"])

    async def dial(url: httpx.URL) -> Streams:
        context = tls if url.scheme == "https" else None
        port = url.port or (80 if context is None else 443)

        def connect(address: str) -> Awaitable[Streams]:
            name = url.host if context is not None else None
            return asyncio.open_connection(address, port, ssl=context, server_hostname=name)

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
                return await first([str(address[0]) for *_, address in found], connect)
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {CONNECT_TIMEOUT:g} s") from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from None

    return dial


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


def _discard(task: asyncio.Task[Streams]) -> None:
    """Close a connection that came too late."""
    if not task.cancelled() and task.exception() is None:
        _, writer = task.result()
        writer.transport.abort()
