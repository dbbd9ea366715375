"""Measure one peer once: each function starts the peer, loads it, and returns figures by name.

CPU is the reliable figure: compare seconds only within a run, where both sides were disturbed alike.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial

from benchmarks.cost import cpu_seconds, descriptors, resident_kib
from benchmarks.load import Arrivals, Load, load
from benchmarks.peers import KEY, Peer, Published
from benchmarks.peers.etcd import burst_of_puts, gateway_at, json_gateway_at
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import etcd_client
from tests.support.waiting import eventually

Start = Callable[[], AbstractAsyncContextManager[Peer]]
Figures = dict[str, float]

# Seconds for started work to settle: connections accepted, buffers filled, garbage collected.
SETTLE = 1.0
# Seconds between single events: by then every peer has finished the event before.
PAUSE = 0.1


async def one_at_a_time(
    peer: Peer, readers: Load, events: int, *, every: float = 0.0
) -> tuple[list[Published], list[Arrivals]]:
    """Publish the next event once every client has the previous one, and at least *every* seconds after it."""
    first = await peer.next_number()
    await readers.expect(first, events)
    published: list[Published] = []
    for number in range(first, first + events):
        published.append(await peer.publish())
        await readers.served(number)
        await asyncio.sleep(max(PAUSE, published[-1].sent + every - time.monotonic()))
    return published, await readers.arrivals()


async def fan_out(start: Start, subscribers: int, events: int) -> Figures:
    """Send one event at a time to many: CPU per delivery, the last client served, memory of an idle client."""
    async with start() as peer:
        before = resident_kib(peer.pid)
        async with load(peer, subscribers) as readers:
            await asyncio.sleep(SETTLE)
            idle = resident_kib(peer.pid)
            used = cpu_seconds(peer.pid)
            published, arrivals = await one_at_a_time(peer, readers, events)
            used = cpu_seconds(peer.pid) - used
    last = [came.last - event.sent for event, came in zip(published, arrivals, strict=True)]
    return {
        "CPU a delivery (us)": 1e6 * used / events / subscribers,
        "last served after (ms)": 1e3 * statistics.median(last),
        "memory a subscriber (KiB)": (idle - before) / subscribers,
    }


async def herd(start: Start, subscribers: int) -> Figures:
    """Let many join at the same time, and then leave at the same time: CPU of a join and of a leave.

    One client stays, so that everything which all share is there already. A client has joined when it has the state.
    """
    async with start() as peer, load(peer, 1):
        await asyncio.sleep(SETTLE)
        before = descriptors(peer.pid)
        begun = cpu_seconds(peer.pid)
        async with load(peer, subscribers):
            joined = cpu_seconds(peer.pid)
        await eventually(partial(_closed, peer.pid, before))
        left = cpu_seconds(peer.pid)
    return {
        "CPU a join and a leave (us)": 1e6 * (left - begun) / subscribers,
        "CPU a join (us)": 1e6 * (joined - begun) / subscribers,
        "CPU a leave (us)": 1e6 * (left - joined) / subscribers,
    }


async def _closed(pid: int, before: int) -> bool:
    return descriptors(pid) <= before


async def burst(start: Start, subscribers: int, events: int) -> Figures:
    """Send many events to many, as fast as they can be published."""
    async with start() as peer, load(peer, subscribers) as readers:
        events = min(events, peer.burst_size)
        await asyncio.sleep(SETTLE)
        await readers.expect(await peer.next_number(), events)
        used, begun = cpu_seconds(peer.pid), time.monotonic()
        await peer.burst(events)
        arrivals = await readers.arrivals()
        used = cpu_seconds(peer.pid) - used
    return {
        "deliveries a second": events * subscribers / (max(came.last for came in arrivals) - begun),
        "CPU a delivery (us)": 1e6 * used / events / subscribers,
    }


async def beside_slow_ones(start: Start, subscribers: int, events: int, slow: int) -> Figures:
    """Send one event at a time beside *slow* clients that read at 1 KiB a second: how the fast clients are served."""
    async with start() as peer, AsyncExitStack() as others, load(peer, subscribers) as readers:
        if slow:
            await others.enter_async_context(load(peer, slow, bytes_per_second=1024))
        # 200 KiB: from here on the slow clients are minutes behind.
        await readers.expect(await peer.next_number(), 1000)
        await peer.burst(1000)
        await readers.arrivals()
        await asyncio.sleep(SETTLE)
        published, arrivals = await one_at_a_time(peer, readers, events)
    p99 = [came.p99 - event.sent for event, came in zip(published, arrivals, strict=True)]
    return {"p99 (ms)": 1e3 * statistics.median(p99)}


async def ingest(subscribers: int, puts: int) -> Figures:
    """Make as many puts as etcd accepts, from a separate process, with *subscribers* (0: without a gateway)."""
    async with EmbeddedEtcd() as etcd, AsyncExitStack() as stack:
        if subscribers:
            peer = await stack.enter_async_context(gateway_at(etcd))
            readers = await stack.enter_async_context(load(peer, subscribers))
            await readers.expect(await peer.next_number(), puts)
        writer = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.writer", etcd.endpoint, str(puts)), stdout=asyncio.subprocess.PIPE
        )
        said, _ = await writer.communicate()
        begun, ended = (float(word) for word in said.split())
        figures = {"puts a second": puts / (ended - begun)}
        if subscribers:
            arrivals = await readers.arrivals()  # raises if an event is missing, or a reset came in between
            figures["behind the last (ms)"] = 1e3 * (max(came.last for came in arrivals) - ended)
    return figures


async def end_to_end(subscribers: int, events: int) -> Figures:
    """Measure from a put to a gRPC watch client, and to the first and the last client behind the gateway, at once."""
    async with EmbeddedEtcd() as etcd, gateway_at(etcd) as peer, load(peer, subscribers) as readers:
        watcher = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.watcher", etcd.endpoint, KEY, str(events)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert watcher.stdout is not None
        await watcher.stdout.readline()
        await asyncio.sleep(SETTLE)
        published, arrivals = await one_at_a_time(peer, readers, events)
        direct = [float(line) for line in (await watcher.stdout.read()).split()]
        await watcher.wait()
    sent = [event.sent for event in published]
    acknowledged = [event.acknowledged for event in published]

    def median(since: list[float], until: list[float]) -> float:
        return 1e3 * statistics.median(to - at for at, to in zip(since, until, strict=True))

    first, last = [came.first for came in arrivals], [came.last for came in arrivals]
    return {
        "put to its acknowledgement (ms)": median(sent, acknowledged),
        "put to a direct watch (ms)": median(sent, direct),
        "put to the first (ms)": median(sent, first),
        "put to the last (ms)": median(sent, last),
        "acknowledgement to a direct watch (ms)": median(acknowledged, direct),
        "acknowledgement to the first (ms)": median(acknowledged, first),
    }


async def at_etcd(through: str, subscribers: int, events: int) -> Figures:
    """Measure etcd's CPU and memory while *subscribers* follow *through* ``gateway`` or etcd's own ``json``."""
    async with EmbeddedEtcd() as etcd, etcd_client(etcd.endpoint) as kv:
        await burst_of_puts(kv, 100)
        before = resident_kib(etcd.pid)
        start = gateway_at if through == "gateway" else json_gateway_at
        async with start(etcd) as peer, load(peer, subscribers) as readers:
            await asyncio.sleep(SETTLE)
            used = cpu_seconds(etcd.pid)
            # All sides get the same rate: an idle etcd uses some ms of CPU a second.
            await one_at_a_time(peer, readers, events, every=0.5)
            used = cpu_seconds(etcd.pid) - used
            held = resident_kib(etcd.pid)
    return {"CPU an event (ms)": 1e3 * used / events, "memory grew by (MiB)": (held - before) / 1024}
