"""Measure how much later a merge has each revision behind a hub, an edge, or two edges, than in a single process.

Alone: ``python -m benchmarks.merges RATE EVENTS [below|hub|edges]``.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import sys
import time
from contextlib import AsyncExitStack
from functools import partial

from benchmarks.cost import cpu_seconds
from benchmarks.measure import SETTLE, Figures
from benchmarks.peers import get
from benchmarks.selections import TRUSTED, is_ready
from benchmarks.tiers import edge_of
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.waiting import eventually

BUSY, QUIET = "/busy/", "/quiet/"
REVISION = re.compile(rb'"mod_revision":(\d+)')
# Concurrent writers.
WRITERS = 20


class Merged(asyncio.Protocol):
    """A client that follows both ranges, and notes when each revision arrives."""

    def __init__(self) -> None:
        self.synced = asyncio.Event()
        self.came: dict[int, float] = {}
        self.bookmarks = 0
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(get(f"/v1/watch?prefix={BUSY}&prefix={QUIET}&snapshot=0&format=ndjson"))

    def data_received(self, data: bytes) -> None:
        """Note what came."""
        now = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if b'"type":"put"' in line and (found := REVISION.search(line)):
                self.came[int(found[1])] = now
            elif b'"synced"' in line:
                self.synced.set()


async def put_at(rate: float, events: int, kv: EtcdClient) -> int:
    """Put *events* values into the busy range. Return the last revision."""
    begun = time.monotonic()
    left = iter(range(events))

    async def write() -> None:
        for number in left:
            await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
            await kv.put(f"{BUSY}{number % 100}", "10.0.0.7:8080;weight=1;zone=a;")

    await asyncio.gather(*(write() for _ in range(WRITERS)))
    return (await kv.state("/none"))[0]


async def lateness(rate: float, events: int, *, hub: bool = True, edges: bool = True) -> Figures:
    """Let one client follow each gateway: a single process, a hub with two workers, and edges of the single process."""
    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(EmbeddedEtcd(folder=TRUSTED))
        kv = await stack.enter_async_context(etcd_client(etcd.endpoint))
        gateways: dict[str, GatewayProcess] = {}
        gateways["single"] = await stack.enter_async_context(gateway(etcd.endpoint, quick=False))
        if hub:
            gateways["hub"] = await stack.enter_async_context(
                gateway(etcd.endpoint, settings={"GATEWAY_WORKERS": "2"}, quick=False)
            )
        if edges:
            gateways["edge"] = await stack.enter_async_context(edge_of(gateways["single"]))
            gateways["edge of an edge"] = await stack.enter_async_context(edge_of(gateways["edge"]))
        if hub and edges:
            gateways["edge of a hub"] = await stack.enter_async_context(edge_of(gateways["hub"]))
        for one in gateways.values():
            await eventually(partial(is_ready, one.port))
        loop = asyncio.get_running_loop()
        clients: dict[str, Merged] = {}
        for name, one in gateways.items():
            transport, clients[name] = await loop.create_connection(Merged, "127.0.0.1", one.port)
            stack.callback(transport.abort)
            await clients[name].synced.wait()
        await asyncio.sleep(SETTLE)
        used = {name: cpu_seconds(one.pid) for name, one in gateways.items()}
        last = await put_at(rate, events, kv)
        async with asyncio.timeout(60):
            while any(last not in one.came for one in clients.values()):  # noqa: ASYNC110 -- others send
                await asyncio.sleep(0.01)
        found: Figures = {}
        for name, one in gateways.items():
            found[f"{name}: CPU an event (us)"] = 1e6 * (cpu_seconds(one.pid) - used[name]) / events
        first = clients["single"].came
        for name in list(clients)[1:]:
            late = sorted(1e3 * (at - first[one]) for one, at in clients[name].came.items() if one in first)
            found[f"{name}: later (ms)"] = statistics.median(late)
            found[f"{name}: later, p99 (ms)"] = late[len(late) * 99 // 100]
        return found


if __name__ == "__main__":
    which = sys.argv[3] if len(sys.argv) > 3 else "below"
    figures = asyncio.run(lateness(float(sys.argv[1]), int(sys.argv[2]), hub=which != "edges", edges=which != "hub"))
    for what, figure in figures.items():
        print(f"{what:40}{figure:10.2f}")
