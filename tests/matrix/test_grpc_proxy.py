"""What docs/comparison.md says of etcd's grpc-proxy: how many watches clients of one range cost etcd through it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from aetcd import rpc

from app.dev.etcd import free_ports
from tests.integration.test_release import held_at_etcd
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import gateway
from tests.support.streams import watch
from tests.support.waiting import eventually

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd]

CLIENTS = 300
A_CONNECTION = 50  # watch streams on one connection


@contextlib.asynccontextmanager
async def grpc_proxy(etcd: EmbeddedEtcd) -> AsyncIterator[str]:
    """A grpc-proxy in front of this etcd, of the same binary; its address."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    upstream = etcd.endpoint.removeprefix("http://")
    words = [str(etcd.binary), "grpc-proxy", "start", "--endpoints", upstream, "--listen-addr", address]
    process = await asyncio.create_subprocess_exec(*words, stdout=DEVNULL, stderr=DEVNULL)
    try:

        async def answers() -> bool:
            async with grpc.aio.insecure_channel(address) as channel:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await rpc.KVStub(channel).Range(rpc.RangeRequest(key=b"/"))
                    return True
            return False

        await eventually(answers)
        yield address
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def watches(address: str, revisions: list[int]) -> AsyncIterator[None]:
    """A watch stream from each revision, as etcd's own clients would have it."""
    async with contextlib.AsyncExitStack() as stack:
        calls: list[Any] = []
        for number, revision in enumerate(revisions):
            if number % A_CONNECTION == 0:
                options = [("grpc.use_local_subchannel_pool", 1)]
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options))
            call = rpc.WatchStub(channel).Watch()
            calls.append(call)
            asked = rpc.WatchCreateRequest(key=b"/svc/", range_end=b"/svc0", start_revision=revision)
            await call.write(rpc.WatchRequest(create_request=asked))
            assert (await call.read()).created
        yield
        for call in calls:
            call.cancel()


async def test_old_revisions_cost_watches_through_grpc_proxy(
    etcd: EmbeddedEtcd, kv: EtcdClient, figures: Callable[[str], None]
) -> None:
    """The gateway has one watch for all clients, also for those that come back from different revisions."""
    async with gateway(etcd.endpoint) as server, contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(await watch(server.base, "prefix=/svc/"))
        await first.until("synced")
        revisions = [await kv.put("/svc/a", str(number)) for number in range(CLIENTS)]
        await first.changes(CLIENTS)
        assert first.last_id is not None
        epoch = first.last_id.partition("-")[0]
        for revision in revisions:
            query = f"prefix=/svc/&last_event_id={epoch}-{revision - 1}"
            stream = await stack.enter_async_context(await watch(server.base, query))
            (change,) = await stream.changes(1)
            assert change.data["mod_revision"] == revision
        assert await held_at_etcd(etcd) == (1, 1)

    async with grpc_proxy(etcd) as address:
        own, _ = await held_at_etcd(etcd)
        async with watches(address, [0] * CLIENTS):
            now, _ = await held_at_etcd(etcd)
        random.Random(1).shuffle(revisions)  # clients come back in any order
        async with watches(address, revisions):
            opened, _ = await held_at_etcd(etcd)
            for number in range(10):  # events bring watches to one revision, which grpc-proxy may then merge
                await kv.put("/svc/a", str(number))
            merged, _ = await held_at_etcd(etcd)
    figures(f"{CLIENTS} clients through grpc-proxy: from now {now - own:.0f}, from old revisions {opened - own:.0f}, "
            f"after 10 events {merged - own:.0f} watchers at etcd; grpc-proxy's own: {own:.0f}")  # fmt: skip
    assert now - own <= 5
    assert merged - own > 1
