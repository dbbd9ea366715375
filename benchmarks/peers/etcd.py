"""The peers that follow etcd: all get their events by puts to one key."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from app.dev.etcd import free_ports
from benchmarks.peers import KEY, VALUE, Peer, Published, get, timed
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.gateway import gateway as gateway_process

# Concurrent writers of a burst: enough to keep etcd busy.
WRITERS = 100


async def burst_of_puts(kv: EtcdClient, count: int, key: str = KEY) -> None:
    """Make so many puts, many at a time."""
    left = iter(range(count))

    async def write() -> None:
        for _ in left:
            await kv.put(key, VALUE)

    await asyncio.gather(*(write() for _ in range(WRITERS)))


def _described(kv: EtcdClient, **rest: Any) -> Peer:
    async def next_number() -> int:
        return (await kv.state("/none"))[0] + 1

    async def publish() -> Published:
        return await timed(kv.put(KEY, VALUE))

    async def burst(count: int) -> None:
        await burst_of_puts(kv, count)

    return Peer(next_number=next_number, publish=publish, burst=burst, **rest)


@contextlib.asynccontextmanager
async def gateway_at(
    etcd: EmbeddedEtcd, settings: Mapping[str, str] | None = None, before: Sequence[str] = ()
) -> AsyncIterator[Peer]:
    """The gateway, in front of *etcd*; *before*: see ``tests.support.gateway.start``."""
    async with (
        etcd_client(etcd.endpoint) as kv,
        gateway_process(etcd.endpoint, settings=settings, quick=False, before=before) as server,
    ):
        yield _described(
            kv,
            pid=server.pid,
            port=server.port,
            request=get("/v1/watch?prefix=/bench/"),
            ready="event: synced",
            mark='"mod_revision":',
        )


@contextlib.asynccontextmanager
async def gateway() -> AsyncIterator[Peer]:
    """The gateway, with its own etcd."""
    async with EmbeddedEtcd() as etcd, gateway_at(etcd) as peer:
        yield peer


@contextlib.asynccontextmanager
async def gateway_with_workers(count: int) -> AsyncIterator[Peer]:
    """The gateway as a hub and so many workers; with 1, as a single process.

    Neither is a fork of the tests' fork server: a hub's workers then are its children, whose costs count as the hub's.
    """
    async with EmbeddedEtcd() as etcd, gateway_at(etcd, {"GATEWAY_WORKERS": str(count)}, before=("env",)) as peer:
        yield peer


@contextlib.asynccontextmanager
async def gateway_portable() -> AsyncIterator[Peer]:
    """The gateway, through ASGI alone."""
    settings = {"GATEWAY_SINK": "portable"}
    async with EmbeddedEtcd() as etcd, gateway_at(etcd, settings) as peer:
        yield peer


@contextlib.asynccontextmanager
async def naive() -> AsyncIterator[Peer]:
    """FastAPI + sse-starlette + etcd3, one watch and a queue per subscriber: what people write to share the watch."""
    async with EmbeddedEtcd() as etcd, etcd_client(etcd.endpoint) as kv:
        [port] = free_ports(1)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-m", "benchmarks.peers.queues"),
            *(etcd.endpoint.rpartition(":")[2], str(port)),
            env=os.environ,
        )
        try:
            await listening(port)
            yield _described(
                kv,
                pid=process.pid,
                port=port,
                request=get("/watch"),
                ready="event: ready",
                mark='"mod_revision": ',
                burst_size=100,
            )
        finally:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def json_gateway_at(etcd: EmbeddedEtcd) -> AsyncIterator[Peer]:
    """etcd's own JSON gateway, inside etcd: a watch per request."""
    watch = {"create_request": {"key": base64.b64encode(KEY.encode()).decode()}}
    body = json.dumps(watch).encode()
    head = f"POST /v3/watch HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    async with etcd_client(etcd.endpoint) as kv:
        yield _described(
            kv,
            pid=etcd.pid,
            port=int(etcd.endpoint.rpartition(":")[2]),
            request=head.encode() + body,
            ready='"created":true',
            mark='"mod_revision":"',
            burst_size=100,
        )


@contextlib.asynccontextmanager
async def json_gateway() -> AsyncIterator[Peer]:
    """etcd's own JSON gateway, with its own etcd."""
    async with EmbeddedEtcd() as etcd, json_gateway_at(etcd) as peer:
        yield peer


async def listening(port: int) -> None:
    """Wait until a server listens there."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError):
                _reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)
