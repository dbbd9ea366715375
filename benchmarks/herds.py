"""Measure a herd: many clients that join one cold range with a large state within a second.

CPU and ratios are reliable. Compare seconds only within a run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace

import httpx

from benchmarks.cost import cpu_seconds
from benchmarks.load import Load, load
from benchmarks.measure import SETTLE, Figures
from benchmarks.peers import Peer, Published, get
from benchmarks.peers.bare import bare
from benchmarks.peers.etcd import WRITERS, gateway_at
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client

# The range of the herd. With this value, an item has ITEM bytes on the wire: 2 MB for 10,000 keys.
RANGE, VALUE = "/herd/", b"10.0.0.7:8080;weight=1;zone=a;" + 60 * b"."
ITEM = 212
# Seconds between live events, how many of them are published before the clients' arrivals are asked for, and how many
# are published while no herd is there.
EVERY, TOGETHER, ALONE = 0.02, 10, 150


async def fill(kv: EtcdClient, keys: int) -> None:
    """Put the state of the herd's range."""
    left = iter(range(keys))

    async def write() -> None:
        for number in left:
            await kv.put(f"{RANGE}{number:06}", VALUE)

    await asyncio.gather(*(write() for _ in range(WRITERS)))


async def sent_by(etcd: EmbeddedEtcd) -> float:
    """Bytes that etcd has sent to its clients, by its own count."""
    async with httpx.AsyncClient() as client:
        lines = (await client.get(f"{etcd.endpoint}/metrics")).text.splitlines()
    return next(
        float(line.split()[1]) for line in lines if line.startswith("etcd_network_client_grpc_sent_bytes_total")
    )


async def live_p99(peer: Peer, readers: Load, during: Coroutine[None, None, None]) -> float:
    """Publish an event every 20 ms until *during* ends. Return seconds: the 99th percentile of the events' own p99.

    An event does not wait until the one before has arrived, so a stall counts for every event that it delays. The time
    runs from etcd's acknowledgement of the put, which on a busy disk takes longer than everything else.
    """
    waits: list[float] = []
    first = await peer.next_number()
    over = asyncio.create_task(during)
    while not over.done():
        await readers.expect(first, TOGETHER)
        first += TOGETHER
        begun = time.monotonic()
        published: list[Published] = []
        for number in range(TOGETHER):
            await asyncio.sleep(max(0.0, begun + number * EVERY - time.monotonic()))
            published.append(await peer.publish())
        arrivals = await readers.arrivals()
        waits += [came.p99 - event.acknowledged for event, came in zip(published, arrivals, strict=True)]
    await over
    return sorted(waits)[int(0.99 * len(waits))]


async def gateway_herd(joining: int, keys: int, live: int) -> Figures:
    """Let *joining* clients join a cold range of *keys* keys within a second. *live* clients follow another range."""
    async with EmbeddedEtcd() as etcd, etcd_client(etcd.endpoint) as kv, gateway_at(etcd) as peer:
        await fill(kv, keys)
        sent = await sent_by(etcd)
        await kv.state(RANGE)
        state = await sent_by(etcd) - sent
        async with AsyncExitStack() as herd, load(peer, live) as readers:
            await asyncio.sleep(SETTLE)
            alone = await live_p99(peer, readers, asyncio.sleep(ALONE * EVERY))
            synced = 0.0

            async def join() -> None:
                nonlocal synced
                of_range = replace(peer, request=get(f"/v1/watch?prefix={RANGE}"))
                await herd.enter_async_context(load(of_range, joining, joins_per_second=joining))
                synced = time.monotonic()

            sent, used, begun = await sent_by(etcd), cpu_seconds(peer.pid), time.monotonic()
            beside = await live_p99(peer, readers, join())
            return {
                "last synced after (ms)": 1e3 * (synced - begun),
                "p99 of live events (ms)": 1e3 * beside,
                "p99 without the herd (ms)": 1e3 * alone,
                "states read from etcd": (await sent_by(etcd) - sent) / state,
                "CPU a client (us)": 1e6 * (cpu_seconds(peer.pid) - used) / joining,
            }


async def bare_herd(joining: int, keys: int) -> Figures:
    """Send as many bytes to as many clients, from a server that does nothing else."""
    async with bare(keys * ITEM) as peer:
        begun, used = time.monotonic(), cpu_seconds(peer.pid)
        async with load(peer, joining, joins_per_second=joining):
            return {
                "last synced after (ms)": 1e3 * (time.monotonic() - begun),
                "CPU a client (us)": 1e6 * (cpu_seconds(peer.pid) - used) / joining,
            }
