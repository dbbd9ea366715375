"""Measure what selections cost that are not exactly one feed's range: projections of a pin, and merges."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx

from benchmarks.cost import cpu_seconds
from benchmarks.load import load
from benchmarks.measure import SETTLE, Figures, one_at_a_time
from benchmarks.peers import get
from benchmarks.peers.etcd import WRITERS, gateway_at
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.waiting import eventually

PIN = "/pin/"
# Events a second in the pin.
RATE = 1000
# An etcd whose progress can be trusted, which a merge needs: `python tools/etcds.py .cache/etcd` downloads it.
TRUSTED = Path(".cache/etcd/3.5.16")


class Follower(asyncio.Protocol):
    """A client that follows one prefix, and counts the events."""

    def __init__(self, prefix: str) -> None:
        self._request = get(f"/v1/watch?prefix={prefix}&snapshot=0")
        self.synced = asyncio.Event()
        self.events = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count. The gateway writes an event of this size in one piece."""
        self.events += data.count(b"event: put")
        if b"event: synced" in data:
            self.synced.set()


async def put_at_rate(kv: EtcdClient, channels: int, events: int) -> None:
    """Put *events* values at ``RATE``, spread over the prefixes of *channels* channels."""
    begun = time.monotonic()
    left = iter(range(events))

    async def write() -> None:
        for number in left:
            await asyncio.sleep(max(0.0, begun + number / RATE - time.monotonic()))
            await kv.put(f"{PIN}{number % channels:04}/key", "10.0.0.7:8080;weight=1;zone=a;")

    await asyncio.gather(*(write() for _ in range(WRITERS)))


async def channels_on_a_pin(channels: int, events: int) -> Figures:
    """Let one client follow each of *channels* prefixes inside one pin. Every event is for one of the clients."""
    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(EmbeddedEtcd())
        kv = await stack.enter_async_context(etcd_client(etcd.endpoint))
        peer = await stack.enter_async_context(gateway_at(etcd, {"GATEWAY_PIN": PIN}))
        loop = asyncio.get_running_loop()
        followers = [Follower(f"{PIN}{number:04}/") for number in range(channels)]
        for follower in followers:
            transport, _ = await loop.create_connection(lambda one=follower: one, "127.0.0.1", peer.port)  # type: ignore[misc]
            stack.callback(transport.abort)
            await follower.synced.wait()
        await asyncio.sleep(SETTLE)
        used = cpu_seconds(peer.pid)
        await put_at_rate(kv, channels, events)
        async with asyncio.timeout(30):
            while (seen := sum(one.events for one in followers)) < events:  # noqa: ASYNC110 -- another process sends
                await asyncio.sleep(0.01)
        assert seen == events, f"{seen} deliveries of {events} events"
        return {"CPU an event (us)": 1e6 * (cpu_seconds(peer.pid) - used) / events}


async def merge(query: str, events: int, *, busy: bool = False) -> Figures:
    """Measure from a put to the subscriber of *query*. *busy*: meanwhile, another process puts as fast as it can."""
    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(EmbeddedEtcd(folder=TRUSTED))
        peer = await stack.enter_async_context(gateway_at(etcd))
        # A merge is refused until the gateway knows etcd's version.
        await eventually(partial(is_ready, peer.port))
        if busy:
            command = (sys.executable, "-m", "benchmarks.writer", etcd.endpoint, str(1 << 40), "/other")
            writer = await asyncio.create_subprocess_exec(*command)
            stack.push_async_callback(writer.wait)
            stack.callback(writer.kill)

        async def first_version() -> int:
            return 1

        # Other keys move the revision, so the events are told apart by the key's version.
        subscribed = replace(peer, request=get(f"/v1/watch?{query}"), mark='"version":', next_number=first_version)
        readers = await stack.enter_async_context(load(subscribed, 1))
        await asyncio.sleep(SETTLE)
        began, before = time.monotonic(), await peer.next_number()
        published, arrivals = await one_at_a_time(subscribed, readers, events)
        written = (await peer.next_number() - before) / (time.monotonic() - began)
    waits = [came.last - event.sent for event, came in zip(published, arrivals, strict=True)]
    return {"put to the subscriber (ms)": 1e3 * statistics.median(waits), "writes a second": written}


async def is_ready(port: int) -> bool:
    """Whether the gateway at *port* is ready."""
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}/readyz")).is_success
