"""The least that a server in Python can spend on a subscriber: it answers every client with the same bytes.

``python -m benchmarks.peers.bare PORT``. uvloop, one callback, no HTTP parser; it publishes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any, cast

import uvloop

from app.dev.etcd import free_ports
from benchmarks.peers import Peer, get
from benchmarks.peers.etcd import listening

BODY = b'retry: 3000\n: connected bare\nevent: synced\ndata: {"type":"synced","revision":1}\n\n'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (
    len(BODY),
    BODY,
)


class Answering(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer. The request of a subscriber comes in one piece."""
        del data
        self._transport.write(ANSWER)


@contextlib.asynccontextmanager
async def bare() -> AsyncIterator[Peer]:
    """This module, as a process."""
    [port] = free_ports(1)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.peers.bare", str(port))
    try:
        await listening(port)
        yield Peer(
            pid=process.pid,
            port=port,
            request=get("/"),
            ready="event: synced",
            mark='"mod_revision":',
            next_number=_publishes_nothing,
            publish=_publishes_nothing,
            burst=_publishes_nothing,
        )
    finally:
        process.kill()
        await process.wait()


async def _publishes_nothing(*_arguments: object) -> Any:
    raise NotImplementedError("this peer only answers")


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
