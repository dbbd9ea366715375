"""Whatever happens to etcd, a mirror stays right, or reports a reset; no loss is silent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aetcd import rpc

from tests.integration.test_release import held_at_etcd
from tests.support.embedded import EmbeddedCluster, EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.gateway import STALE_SOON, gateway
from tests.support.proxy import proxy
from tests.support.size import size
from tests.support.streams import Mirror, Stream, watch
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.etcd


class Follower:
    """A stream and its mirror, which a separate task feeds."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.mirror = Mirror()
        self.states: list[str] = []
        self.closed = ""  # the reason
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while (event := await self.stream.next_event()) is not None:
            self.mirror.apply(event)
            if event.type in ("status", "bookmark"):
                self.states.append(event.data["state"])
            elif event.type == "close":
                self.closed = event.data["reason"]

    @property
    def in_vain(self) -> bool:
        """Whether the stream ended before it had a state. It does if etcd is out of reach for GATEWAY_STALE_AFTER."""
        return self.closed == "unavailable" and not self.mirror.resets

    async def close(self) -> None:
        """Leave. Raise what the reading raised."""
        self.task.cancel()
        results = await asyncio.gather(self.task, return_exceptions=True)
        await self.stream.close()
        if not isinstance(results[0], asyncio.CancelledError) and results[0] is not None:
            raise results[0]

    def holds(self, state: dict[bytes, Any]) -> bool:
        """Whether the mirror equals etcd."""
        if self.task.done():
            self.task.result()
        found = {name[0].encode(): (data["value"], data["mod_revision"]) for name, data in self.mirror.state.items()}
        return self.mirror.synced and found == {key: (kv.value.decode(), kv.mod_revision) for key, kv in state.items()}


@asynccontextmanager
async def follow(base: str, count: int, prefix: str = "/svc/") -> AsyncIterator[list[Follower]]:
    """Followers of one prefix, each synced."""
    followers = [Follower(await watch(base, f"prefix={prefix}")) for _ in range(count)]

    async def synced() -> bool:
        for number, follower in enumerate(followers):
            if follower.in_vain:  # with a short time to stale, on a busy machine: come back
                await follower.close()
                followers[number] = Follower(await watch(base, f"prefix={prefix}"))
        return all(follower.mirror.synced for follower in followers)

    try:
        await eventually(synced)
        yield followers
    finally:
        for follower in followers:
            await follower.close()


async def _all(conditions: Any) -> bool:
    return all(conditions)


async def becomes(follower: Follower, state: str) -> None:
    """Wait until the stream says so, from now on."""
    follower.states.clear()
    await soon(lambda: state in follower.states)


async def all_hold(followers: list[Follower], kv: EtcdClient, prefix: str = "/svc/") -> bool:
    """Whether every mirror equals etcd now."""
    _revision, state = await kv.state(prefix)
    return all(follower.holds(state) for follower in followers)


async def write(kv: EtcdClient, rng: random.Random, count: int) -> int:
    """Make random puts, deletes and transactions under /svc/; return the last revision."""
    revision = 0
    for n in range(count):
        key = f"/svc/{rng.randrange(50)}"
        way = rng.random()
        if way < 0.6:
            revision = await kv.put(key, str(n))
        elif way < 0.8:
            revision = await kv.delete(key)
        else:
            pairs = {f"/svc/{rng.randrange(50)}": rng.choice([None, str(n)]) for _ in range(4)}
            revision = await kv.transact(pairs)
    return revision


@pytest.mark.slow
@pytest.mark.sized
async def test_a_crowd_of_mirrors(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """After hundreds of random changes at full speed, all mirrors equal etcd, which sees one watcher."""
    async with gateway(etcd.endpoint) as server, AsyncExitStack() as stack:
        await write(kv, random.Random(1), 50)
        followers = await stack.enter_async_context(follow(server.base, size(40, long=500)))
        last = await write(kv, random.Random(2), size(500, long=1000))
        watchers, streams = await held_at_etcd(etcd)
        # First compare the revisions, which is cheap: comparing 500 mirrors takes a second of CPU.
        await eventually(lambda: _all(follower.mirror.revision >= last for follower in followers))
        await eventually(lambda: all_hold(followers, kv))

        assert (watchers, streams) == (1, 1)
        assert {tuple(follower.mirror.resets) for follower in followers} == {("initial",)}
        assert len({follower.mirror.changes for follower in followers}) == 1


@pytest.mark.one_etcd
async def test_etcd_killed_and_restarted_under_load(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """The feed resumes at its anchor: the mirrors equal etcd again, without a reset, with one watcher."""
    async with gateway(etcd.endpoint) as server, AsyncExitStack() as stack:
        followers = await stack.enter_async_context(follow(server.base, 10))
        for turn in range(3):
            await write(kv, random.Random(turn), 100)
            await kv.settle()
            await etcd.kill()
            await etcd.restart()
            await eventually(lambda: _put(kv))
            await write(kv, random.Random(turn + 10), 100)
            await eventually(lambda: all_hold(followers, kv))

        assert await held_at_etcd(etcd) == (1, 1)
        assert {tuple(follower.mirror.resets) for follower in followers} == {("initial",)}


async def _put(kv: EtcdClient) -> bool:
    try:
        await kv.put("/svc/ping", "pong")
    except rpc.AioRpcError:
        return False
    return True


async def test_compacted_while_cut_off(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Events that etcd compacted meanwhile cannot be sent: the client gets a `compacted` reset and the snapshot."""
    async with proxy(etcd.endpoint) as between, gateway(between.endpoint) as server, AsyncExitStack() as stack:
        await write(kv, random.Random(1), 50)
        followers = await stack.enter_async_context(follow(server.base, 5))
        between.cut()
        revision = await write(kv, random.Random(2), 100)
        await kv.compact(revision)
        between.heal()
        await eventually(lambda: all_hold(followers, kv))
        await write(kv, random.Random(3), 20)
        await eventually(lambda: all_hold(followers, kv))

        assert {tuple(follower.mirror.resets) for follower in followers} == {("initial", "compacted")}
        assert await held_at_etcd(etcd) == (1, 1)


@pytest.mark.one_etcd
async def test_cut_off_is_said(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """On a frozen connection (nothing comes, nothing closes) the stream is stale within the bound, and live
    afterwards.
    """
    async with (
        proxy(etcd.endpoint) as between,
        gateway(between.endpoint, settings=STALE_SOON) as server,
        AsyncExitStack() as stack,
    ):
        (follower,) = await stack.enter_async_context(follow(server.base, 1))
        between.freeze()
        await becomes(follower, "stale")
        await kv.put("/svc/a", "meanwhile")
        between.heal()
        await eventually(lambda: all_hold([follower], kv))
        await becomes(follower, "live")

        assert follower.mirror.resets == ["initial"]


async def test_fail_over_to_another_member() -> None:
    """When the used member of three dies, the feed continues on another member, and nothing is lost."""
    async with EmbeddedCluster(3) as cluster:
        endpoints = cluster.endpoints
        async with etcd_client(endpoints[2]) as kv, gateway(",".join(endpoints)) as server, AsyncExitStack() as stack:
            followers = await stack.enter_async_context(follow(server.base, 5))
            await write(kv, random.Random(1), 50)
            await cluster.members[0].kill()
            await eventually(lambda: _put(kv))
            await write(kv, random.Random(2), 50)
            await eventually(lambda: all_hold(followers, kv))

            assert {tuple(follower.mirror.resets) for follower in followers} == {("initial",)}


@pytest.mark.trust
async def test_quiet_feed_survives_a_break(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A feed without any event resumes from its snapshot's newest key, while other ranges' keys change."""
    await kv.put("/quiet/a", "1")
    async with gateway(etcd.endpoint) as server, AsyncExitStack() as stack:
        followers = await stack.enter_async_context(follow(server.base, 3, "/quiet/"))
        await write(kv, random.Random(1), 100)
        await kv.settle()
        await etcd.kill()
        await etcd.restart()
        await eventually(lambda: _put(kv))
        await kv.put("/quiet/b", "2")
        await eventually(lambda: all_hold(followers, kv, "/quiet/"))

        assert {tuple(follower.mirror.resets) for follower in followers} == {("initial",)}


@pytest.mark.one_etcd
async def test_revision_larger_than_a_fragment(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A lease's end deletes 3 MB of keys at one revision: etcd sends fragments, and the gateway sends one revision."""
    lease = (await kv.lease.LeaseGrant(rpc.LeaseGrantRequest(TTL=600))).ID
    for start_at in range(0, 3000, 100):
        operations = [
            rpc.RequestOp(request_put=rpc.PutRequest(key=f"/svc/{n:01000}".encode(), value=b"v", lease=lease))
            for n in range(start_at, start_at + 100)
        ]
        await kv.kv.Txn(rpc.TxnRequest(success=operations))
    async with gateway(etcd.endpoint) as server, AsyncExitStack() as stack:
        (follower,) = await stack.enter_async_context(follow(server.base, 1))
        assert len(follower.mirror.state) == 3000
        await kv.lease.LeaseRevoke(rpc.LeaseRevokeRequest(ID=lease))
        await kv.transact({f"/svc/big{n}": str(n) * 30_000 for n in range(20)})
        await eventually(lambda: all_hold([follower], kv))

        assert follower.mirror.resets == ["initial"]
        assert follower.mirror.changes == 3020
