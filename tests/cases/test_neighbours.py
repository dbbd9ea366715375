"""Watches that share a stream: an event that hits one watch does not affect the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aetcd import rpc

from tests.cases.clients import Client, exact, is_held, joined, true
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.fake_etcd import FakeEtcd
from tests.support.gateway import gateway
from tests.support.waiting import eventually


@pytest.fixture(name="fake")
async def _fake() -> AsyncIterator[FakeEtcd]:
    async with FakeEtcd() as fake:
        yield fake


@pytest.fixture(name="truth")
async def _truth(fake: FakeEtcd) -> AsyncIterator[EtcdClient]:
    """A client of the fake, for its true state."""
    async with etcd_client(fake.endpoint) as client:
        yield client


async def holds(fake: FakeEtcd, watchers: int, streams: int = 1) -> None:
    """Wait until the fake has so many watchers and streams."""
    await eventually(lambda: true((fake.open_watchers, fake.open_streams) == (watchers, streams)))


def cancel(fake: FakeEtcd, prefix: bytes, reason: str) -> int:
    """Cancel a watch as etcd does: the watcher stays counted, but gets nothing more. Return the watch's id."""
    ((call, watcher),) = [(c, w) for c in fake.calls for w in c.watchers.values() if w.start == prefix]
    watcher.compacted = True
    call.answers.put_nowait(
        rpc.WatchResponse(header=fake.header(), watch_id=watcher.watch_id, canceled=True, cancel_reason=reason)
    )
    return watcher.watch_id


@pytest.mark.parametrize("echo", [True, False], ids=["3.5.1", "newer"])
@pytest.mark.process
async def test_a_refused_create_beside_others(fake: FakeEtcd, truth: EtcdClient, echo: bool) -> None:
    """A naive client waits for an id that never comes, or takes the refusal for another's: both watches hang."""
    fake.put(b"/live/a", b"1")
    async with gateway(fake.endpoint) as server, joined(server.base, "prefix=/live/") as (neighbour,):
        fake.refuse_create("out of order", echo=echo)
        refused, other = Client("prefix=/refused/"), Client("prefix=/other/")
        await asyncio.gather(refused.join(server.base), other.join(server.base))
        try:
            for n in range(20):
                fake.txn([(b"/live/a", b"%d" % n), (b"/refused/a", b"%d" % n), (b"/other/a", b"%d" % n)])
                await asyncio.sleep(0)
            await exact([neighbour], truth, b"/live/")
            await exact([refused], truth, b"/refused/")
            await exact([other], truth, b"/other/")
            await holds(fake, 3)

            assert (neighbour.resets, neighbour.mirror.changes) == (["initial"], 20)
            assert refused.resets == other.resets == ["initial"]
        finally:
            await refused.leave()
            await other.leave()
        await holds(fake, 1)


@pytest.mark.process
async def test_a_watch_that_etcd_cancels_beside_others(fake: FakeEtcd, truth: EtcdClient) -> None:
    """A naive client ends the stream, and with it all its neighbours; or leaves the watcher counted for ever."""
    fake.txn([(b"/live/a", b"1"), (b"/svc/a", b"1")])
    async with (
        gateway(fake.endpoint) as server,
        joined(server.base, "prefix=/live/") as (neighbour,),
        joined(server.base) as (client,),
    ):
        streams = fake.asked.streams
        for n in range(3):
            ended = cancel(fake, b"/svc/", "for a reason of its own")
            for turn in range(5):
                fake.txn([(b"/live/a", b"%d" % turn), (b"/svc/a", b"%d%d" % (n, turn))])
            await exact([neighbour], truth, b"/live/")
            await exact([client], truth)
            assert fake.asked.cancels.count(ended) == 1
        await holds(fake, 2)

        assert fake.asked.streams == streams
        assert neighbour.resets == client.resets == ["initial"]
        assert neighbour.mirror.changes == client.mirror.changes == 15


@pytest.mark.etcd
@pytest.mark.trust
async def test_a_watch_that_compaction_cancels_beside_others(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive client forgets a watch that compaction cancelled: etcd keeps counting its watcher, one more each time."""
    await kv.transact({f"/svc/{n}/a": "1" for n in range(5)} | {"/live/a": "1"})
    # Where nothing proves the history, the gateway reads it for this long before its watches go.
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_SYNC_TIMEOUT": "10s"}) as server,
        joined(server.base, "prefix=/live/") as (neighbour,),
    ):
        clients = [Client(f"prefix=/svc/{n}/") for n in range(5)]
        for client in clients:
            await client.adopt(server.base)
        await kv.put("/other", "1")
        await kv.compact(await kv.put("/live/a", "2"))
        await kv.transact({f"/svc/{n}/a": "2" for n in range(5)} | {"/live/a": "3"})
        try:
            for n, client in enumerate(clients):
                # The gateway asks for history from the first revision on; etcd cancels the watch, and the gateway asks
                # again.
                await client.join(server.base)
                await kv.put("/live/a", f"{n}")
                await exact([client], kv, f"/svc/{n}/".encode())
            await exact([neighbour], kv, b"/live/")
            await eventually(lambda: is_held(etcd, 6))
        finally:
            for client in clients:
                await client.leave()
        await eventually(lambda: is_held(etcd, 1))

        assert {tuple(client.resets) for client in clients} == {("compacted",)}
        assert (neighbour.resets, neighbour.mirror.changes) == (["initial"], 7)


@pytest.mark.process
async def test_a_long_catch_up_beside_live_events(fake: FakeEtcd, truth: EtcdClient) -> None:
    """A naive client has all watches on one stream: live events wait for the history of another client's range."""
    fake.txn([(b"/live/a", b"1"), (b"/big/a", b"1")])
    settings = {"GATEWAY_LOG_BYTES": "64MiB", "GATEWAY_LOG_BATCHES": "10000"}
    async with (
        gateway(fake.endpoint, settings=settings) as server,
        joined(server.base, "prefix=/live/") as (neighbour,),
    ):
        late = Client("prefix=/big/")
        await late.adopt(server.base)
        for n in range(5000):
            fake.put(b"/big/%d" % (n % 50), b"x" * 2000)
        fake.catch_up_revisions = 50
        await late.join(server.base)
        try:
            await fake.until(lambda: sum(create.key == b"/big/" for create in fake.asked.creates) == 2)
            # etcd has one queue for each stream: live events on the same stream would come after all of that history.
            carried = sorted(sorted(watcher.start for watcher in call.watchers.values()) for call in fake.calls)
            assert carried == [[b"/big/"], [b"/big/", b"/live/"]]
            live = [fake.put(b"/live/a", b"%d" % n) for n in range(20)]
            await eventually(lambda: true(neighbour.mirror.revision >= live[-1]))
            await exact([late], truth, b"/big/")
            await exact([neighbour], truth, b"/live/")
            # When all history is read, no watch has a second stream.
            await fake.until(lambda: fake.open_streams == 1)
            last = fake.txn([(b"/live/a", b"end"), (b"/big/0", b"end")])
            await eventually(lambda: true(late.mirror.revision == neighbour.mirror.revision == last))
            await holds(fake, 2)
        finally:
            await late.leave()

        assert neighbour.resets == ["initial"]
        written = sum(event.kv.key.startswith(b"/big/") for events in fake.store.history.values() for event in events)
        assert (late.resets, late.mirror.changes) == ([], written - 1)
