"""Servers of tests on asyncio's streams, which leave no connection behind.

The ``wait_closed`` of Python 3.11's servers does not wait for connections. A connection that was accepted in the last
moment of a test was left to the garbage collector, and a later test failed with its "unclosed transport".
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

Take = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# Turns of the event loop, at least, from the look at a listening socket until ``accept`` has the connection.
TURNS = 5


class Connections:
    """The connections of a server, each of which *take* serves. Give ``accept`` to asyncio's ``start_server``."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, until *take* returns or ``close`` is called."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            # asyncio reports a cancelled task of a connection as an error.
            with contextlib.suppress(asyncio.CancelledError):
                await self._take(reader, writer)
        finally:
            self._tasks.discard(task)

    async def close(self, server: asyncio.Server) -> None:
        """Accept nothing more, and wait until no connection of *server* is left."""
        for listener in server.sockets:
            asyncio.get_running_loop().remove_reader(listener.fileno())
        # In these turns the loop makes the connections that it has accepted. A server that is closed meanwhile makes
        # Python 3.11 forget their sockets.
        for _ in range(TURNS):
            await asyncio.sleep(0)
        server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            with contextlib.suppress(AttributeError):  # of a TLS connection that is closed, in Python 3.11
                writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(take: Take, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Let *take* serve the connections to a free port of 127.0.0.1: the port. *tls*: the connections use TLS."""
    connections = Connections(take)
    server = await asyncio.start_server(connections.accept, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        await connections.close(server)


@contextlib.asynccontextmanager
async def serving_at(path: Path, take: Take) -> AsyncIterator[None]:
    """Let *take* serve the connections to the Unix socket *path*."""
    connections = Connections(take)
    server = await asyncio.start_unix_server(connections.accept, path)
    try:
        yield
    finally:
        await connections.close(server)
