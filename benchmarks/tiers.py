"""Measure what etcd sees of a tree of gateways: a root, edges in processes of their own, and many subscribers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks.measure import Figures
from benchmarks.peers.etcd import WRITERS
from benchmarks.selections import Follower
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.gateway import GatewayProcess, gateway, start
from tests.support.metrics import etcd_metric
from tests.support.waiting import eventually

WATCHERS = "etcd_debugging_mvcc_watcher_total"
# Subscribers that join at a time.
JOINING = 100


@asynccontextmanager
async def edge_of(root: GatewayProcess) -> AsyncIterator[GatewayProcess]:
    """An edge that is ready."""
    running = await start(settings={"GATEWAY_PORT": "0", "GATEWAY_UPSTREAM": root.base, "GATEWAY_LINGER": "1s"})
    try:
        await running.listening()
        yield running
    finally:
        await running.stop()


def prefix_of(number: int) -> str:
    """The name of a range."""
    return f"/tiers/{number}/"


async def join(edges: list[GatewayProcess], ranges: int, subscribers: int, stack: AsyncExitStack) -> list[Follower]:
    """Let the subscribers follow their ranges, evenly over edges and ranges, until all are synced."""
    loop = asyncio.get_running_loop()
    followers = [Follower(prefix_of(number // len(edges) % ranges)) for number in range(subscribers)]
    left = iter(range(subscribers))

    async def open_some() -> None:
        for number in left:
            port = edges[number % len(edges)].port
            transport, _ = await loop.create_connection(
                lambda one=followers[number]: one, "127.0.0.1", port  # type: ignore[misc]  # mypy knows no defaults
            )  # fmt: skip
            stack.callback(transport.abort)
            await followers[number].synced.wait()

    await asyncio.gather(*(open_some() for _ in range(JOINING)))
    return followers


async def put_in_each(kv: EtcdClient, ranges: int) -> None:
    """Write one key into each range."""
    left = iter(range(ranges))

    async def write() -> None:
        for number in left:
            await kv.put(f"{prefix_of(number)}key", "v")

    await asyncio.gather(*(write() for _ in range(WRITERS)))


async def watches(edges: int, ranges: int, subscribers: int) -> Figures:
    """Count the watches at etcd, by etcd's own metric, while all subscribers follow, and after all have left."""
    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(EmbeddedEtcd())
        kv = await stack.enter_async_context(etcd_client(etcd.endpoint))
        settings = {"GATEWAY_LINGER": "1s"}
        root = await stack.enter_async_context(gateway(etcd.endpoint, settings=settings, quick=False))
        below = [await stack.enter_async_context(edge_of(root)) for _ in range(edges)]
        async with AsyncExitStack() as clients:
            followers = await join(below, ranges, subscribers, clients)
            found = await etcd_metric(etcd.endpoint, WATCHERS)
            await put_in_each(kv, ranges)

            async def delivered() -> bool:
                return all(follower.events == 1 for follower in followers)

            await eventually(delivered)

        async def left() -> bool:
            return await etcd_metric(etcd.endpoint, WATCHERS) == 0

        await eventually(left)
        after = await etcd_metric(etcd.endpoint, WATCHERS)
        return {"watches at etcd": found, "a range": found / ranges, "after all have left": after}
