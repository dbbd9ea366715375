"""The memory of a subscriber at rest, on the server of production: what the process has allocated for each stream."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
import tracemalloc
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvloop
from uvicorn.server import ServerState

from app.core.capacity import Capacity
from app.gateway import Gateway
from app.main import create_app
from app.server.admission import Admission
from app.server.run import make_config
from app.settings import load
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import eventually

# Streams before the measurement, so that what all share is there; rounds, and streams in each of them.
WARM, ROUNDS, MEASURED = 50, 4, 100
# Bytes that are allocated for each stream, and blocks of the interpreter's allocator. Measured with CPython 3.11.7:
# 2,520 and 18.
# While a stream kept uvicorn's protocol: 5,713 and 52.
BYTES, BLOCKS = 2900, 22
REQUEST = b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nHost: gateway\r\nUser-Agent: " + 60 * b"x" + b"\r\n\r\n"


@contextlib.contextmanager
def sockets(count: int) -> Iterator[list[socket.socket]]:
    """Clients that have not connected yet."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.setblocking(False)
        yield found


async def join(clients: list[socket.socket], port: int, gateway: Gateway) -> None:
    """Let clients join, and wait until all streams have the state."""
    loop = asyncio.get_running_loop()
    wanted = len(gateway.registry.subscribers()) + len(clients)
    for each in clients:
        await loop.sock_connect(each, ("127.0.0.1", port))
        each.send(REQUEST)

    async def synced() -> bool:
        subscribers = gateway.registry.subscribers()
        return len(subscribers) == wanted and all(one.reader is not None and one.reader.synced for one in subscribers)

    await eventually(synced)


async def beat(gateway: Gateway) -> None:
    """Let each stream send a bookmark, as the heartbeat does."""
    for each in gateway.registry.subscribers():
        each.send_bookmark()
    await asyncio.sleep(0)


async def footprint() -> tuple[float, float]:
    """Return the bytes and the blocks that are allocated for a stream.

    They are those of the round with the least: the tables that all streams share grow in some rounds, and other parts
    of the process allocate, too. Time stands still for the gateway: on a slow machine each stream joins at its own
    time, and has a slot of the timers for itself, which took up to 1,000 bytes.
    """
    found_bytes, found_blocks = list[int](), list[int]()
    async with FakeEtcd() as fake:
        fake.put(b"/svc/a", b"1")
        settings = load({"etcd": fake.endpoint, "linger": 0})
        gateway = Gateway(settings, clock=lambda: 1000.0)
        config = make_config(create_app(gateway=gateway), settings, Admission(Capacity(1000, 10)))
        config.load()
        make: Any = config.http_protocol_class
        state = ServerState()
        async with gateway.running():
            server = await asyncio.get_running_loop().create_server(
                partial(make, config=config, server_state=state, app_state={}), "127.0.0.1", 0
            )
            port = server.sockets[0].getsockname()[1]
            with sockets(WARM + ROUNDS * MEASURED) as clients:
                await join(clients[:WARM], port, gateway)
                await beat(gateway)
                tracemalloc.start()
                try:
                    for begin in range(WARM, len(clients), MEASURED):
                        gc.collect()
                        allocated, blocks = tracemalloc.get_traced_memory()[0], sys.getallocatedblocks()
                        await join(clients[begin : begin + MEASURED], port, gateway)
                        await beat(gateway)
                        gc.collect()
                        found_bytes.append(tracemalloc.get_traced_memory()[0] - allocated)
                        found_blocks.append(sys.getallocatedblocks() - blocks)
                finally:
                    tracemalloc.stop()
            await eventually(lambda: asyncio.sleep(0, not state.connections))
            server.close()
    return min(found_bytes) / MEASURED, min(found_blocks) / MEASURED


def test_a_subscriber_at_rest_is_small() -> None:
    """Nothing is left of the request, of its task and of uvicorn's protocol, and equal streams share what is equal."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        allocated, blocks = runner.run(footprint())
    assert allocated <= BYTES
    assert blocks <= BLOCKS
