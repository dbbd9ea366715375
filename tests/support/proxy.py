"""A TCP proxy that can be cut: between a gateway and its etcd, or between a client and its gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from .connections import Connections


class Proxy:
    """Forwards connections to one address.

    ``cut`` refuses and breaks connections. ``freeze`` lets connections hang (a black hole). ``half_close`` closes the
    client's direction; the other direction stays open. The proxy waits ``delay`` seconds before it forwards data.
    """

    def __init__(self, target: str, host: str = "127.0.0.1") -> None:
        self._host = host
        self.lead_to(target)
        self._server: asyncio.Server | None = None
        self._connections = Connections(self.accept)
        self._writers: set[asyncio.StreamWriter] = set()
        self._upstreams: set[asyncio.StreamWriter] = set()
        self._ended: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self.delay = 0.0
        self.connections = 0

    @property
    def endpoint(self) -> str:
        """The address where the proxy listens."""
        assert self._server is not None
        return f"http://{self._host}:{self._server.sockets[0].getsockname()[1]}"

    def lead_to(self, target: str) -> None:
        """Forward the connections that are made from now on to *target*, as a Service may."""
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)

    def cut(self) -> None:
        """Break the open connections and refuse new ones."""
        self._refusing = True
        for writer in list(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Forward nothing, and close nothing."""
        self._flowing.clear()

    def half_close(self) -> None:
        """Send the target end-of-file on every open connection, as if the client had finished sending."""
        for writer in self._upstreams - self._ended:
            if not writer.is_closing():
                self._ended.add(writer)
                # the other side reset the connection, and asyncio has not noticed yet
                with contextlib.suppress(OSError):
                    writer.write_eof()

    def heal(self) -> None:
        """Forward and accept again."""
        self._refusing = False
        self.delay = 0.0
        self._flowing.set()

    async def flow(self) -> None:
        """Wait until the proxy is not frozen."""
        await self._flowing.wait()

    async def pass_on(self, data: bytes, sink: asyncio.StreamWriter, *, answer: bool) -> None:
        """Forward *data* to *sink*; *answer* is True for data from the target. A subclass may change the data."""
        del answer
        sink.write(data)
        await sink.drain()

    async def start(self) -> None:
        """Begin."""
        self._server = await self.listen()

    async def listen(self) -> asyncio.Server:
        """Let ``_connections`` have the clients' connections. A subclass may listen elsewhere."""
        return await asyncio.start_server(self._connections.accept, self._host, 0)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the target. A subclass may take another way."""
        return await asyncio.open_connection(*self._target)

    async def stop(self) -> None:
        """Close the listener and all connections."""
        assert self._server is not None
        await self._connections.close(self._server)
        for task in list(self._tasks):
            task.cancel()  # its end closes both connections
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward a client's connection."""
        self.connections += 1
        if self._refusing:
            writer.transport.abort()
            return
        try:
            upstream_reader, upstream_writer = await self.connect()
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, upstream_writer}
        self._upstreams.add(upstream_writer)
        for source, sink in ((reader, upstream_writer), (upstream_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self.flow()
                if sink in self._ended:
                    continue
                await self.pass_on(data, sink, answer=sink not in self._upstreams)
        except ConnectionError:
            pass
        finally:
            for group in (self._writers, self._upstreams, self._ended):
                group.discard(sink)
            sink.transport.abort()


@contextlib.asynccontextmanager
async def proxy(target: str) -> AsyncIterator[Proxy]:
    """A proxy in front of *target*."""
    running = Proxy(target)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
