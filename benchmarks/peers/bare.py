"""The least that a server in Python can spend on a subscriber: it answers every client with the same bytes.

``python -m benchmarks.peers.bare PORT SIZE``. uvloop, one callback, no HTTP parser; it publishes nothing. An answer has
SIZE bytes of filling.
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
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Answering(asyncio.Protocol):
    """One connection."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer. The request of a subscriber comes in one piece."""
        del data
        self._transport.write(self._answer)


@contextlib.asynccontextmanager
async def bare(size: int = 0) -> AsyncIterator[Peer]:
    """This module, as a process. *size*: bytes of filling in each answer."""
    [port] = free_ports(1)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.peers.bare", str(port), str(size))
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


async def _serve(port: int, size: int) -> None:
    filling = b": %b\n" % bytes(size).replace(b"\0", b".") if size else b""
    body = filling + BODY
    answer = b"%b%x\r\n%b\r\n" % (HEAD, len(body), body)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answering(answer), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
