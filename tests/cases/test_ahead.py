"""A cursor that is ahead of its replica: the replica lags, the range is quiet, or the cursor is forged."""

from __future__ import annotations

import asyncio
import time

import pytest

from app.core.versions import progress_is_trusted
from tests.cases.clients import Client, exact, feed_of, joined, true
from tests.integration.test_release import held_at_etcd, ranges
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.proxy import proxy
from tests.support.streams import watch
from tests.support.waiting import eventually

pytestmark = [pytest.mark.etcd, pytest.mark.trust]

# A slow replica has this long to catch up before it may abort the wait.
PATIENT = {"GATEWAY_SYNC_TIMEOUT": "60s", "GATEWAY_HEARTBEAT": "300ms"}


def revision_of(cursor: str | None) -> int:
    """The revision in a cursor."""
    return int((cursor or "").partition("-")[2])


async def test_the_replica_lags(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive replica resets a cursor that is newer than its own revision, or reports synced at that older revision."""
    await kv.put("/svc/a", "0")
    async with (
        proxy(etcd.endpoint) as between,
        gateway(etcd.endpoint) as ahead,
        gateway(between.endpoint, settings=PATIENT) as behind,
        joined(behind.base) as (resident,),
        joined(ahead.base) as (client,),
    ):
        between.freeze()
        revision = await kv.put("/svc/a", "1")
        await eventually(lambda: true(client.mirror.revision == revision))
        await client.leave()
        await client.join(behind.base)
        await eventually(lambda: true(client.beats >= 2))
        assert [event.type for event in client.events if event.type != "status"] == []
        between.heal()
        await eventually(lambda: true(client.mirror.synced))

        (synced,) = [event for event in client.events if event.type == "synced"]
        assert synced.data["revision"] >= revision
        await kv.put("/svc/b", "2")
        await exact([client, resident], kv)
        assert (client.resets, resident.resets) == (["initial"], ["initial"])


async def test_the_replica_hears_everything_later(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive replica sends the events between its own revision and the cursor again, or sends none at all."""
    await kv.put("/svc/a", "0")
    async with (
        proxy(etcd.endpoint) as between,
        gateway(etcd.endpoint) as ahead,
        gateway(between.endpoint, settings=PATIENT) as behind,
        joined(behind.base) as (resident,),
        joined(ahead.base) as (client,),
    ):
        between.delay = 0.2
        for n in range(3):
            revision = await kv.transact({"/svc/a": str(n), f"/svc/{n}": "x"})
            await eventually(lambda at=revision: true(client.mirror.revision >= at))  # type: ignore[misc]
            await client.leave()
            await client.join(behind.base)
            await eventually(lambda: true(client.mirror.synced))
            assert client.mirror.revision >= revision
            await client.leave()
            await client.join(ahead.base)
        await exact([client, resident], kv)

        assert client.resets == ["initial"]
        assert client.mirror.changes == resident.mirror.changes == 6


async def test_quiet_here_while_the_other_replica_moved_on(
    etcd: EmbeddedEtcd, kv: EtcdClient, version: tuple[int, int, int]
) -> None:
    """A naive replica resets a cursor that another replica's progress moved: it assumes that etcd was restored."""
    await kv.put("/svc/a", "0")
    settings = PATIENT if progress_is_trusted(version) else {**PATIENT, "GATEWAY_SYNC_TIMEOUT": "1s"}
    async with (
        proxy(etcd.endpoint) as between,
        gateway(etcd.endpoint) as ahead,
        gateway(between.endpoint, settings=settings) as behind,
        joined(behind.base),
        joined(ahead.base) as (client,),
    ):
        between.freeze()
        for n in range(20):
            revision = await kv.put("/other", str(n))
        if progress_is_trusted(version):
            await eventually(lambda: true(client.mirror.revision >= revision))
            await client.leave()
        else:
            await client.leave()
            await client.adopt(ahead.base)  # without trusted progress, only a REST list gives a newer cursor
        assert revision_of(client.cursor) >= revision
        await client.join(behind.base)
        await eventually(lambda: true(client.beats >= 2))
        assert [event.type for event in client.events if event.type != "status"] == []
        between.heal()
        await eventually(lambda: true(client.mirror.synced))
        assert client.mirror.revision >= revision
        await kv.put("/svc/a", "1")
        await exact([client], kv)

        if progress_is_trusted(version):
            assert client.resets == ["initial"]
        else:
            assert client.resets in ([], ["unproven"])


async def test_two_hundred_forged_cursors(server: GatewayProcess, etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive gateway asks etcd once for each cursor that is ahead of it, so any client can make it flood etcd."""
    await kv.put("/svc/a", "1")
    async with joined(server.base) as (honest,):
        epoch = (honest.cursor or "").partition("-")[0]
        before, began = await ranges(etcd), time.monotonic()
        forged = [{"Last-Event-ID": f"{epoch}-{10**15 + n}"} for n in range(200)]
        streams = await asyncio.gather(*(watch(server.base, "prefix=/svc/", headers) for headers in forged))
        found = await asyncio.gather(*(stream.until("synced") for stream in streams))
        asked, seconds = await ranges(etcd) - before, time.monotonic() - began

        assert {events[0].data["reason"] for events in found} == {"restored"}
        assert {tuple(event.data.get("key") for event in events) for events in found} == {(None, "/svc/a", None)}
        # At most one read a second, plus the one that may be under way.
        assert asked <= seconds + 2
        assert await held_at_etcd(etcd) == (1, 1)
        await asyncio.gather(*(stream.close() for stream in streams))
        await kv.put("/svc/a", "2")
        await exact([honest], kv)

        assert honest.resets == ["initial"]
        assert (await feed_of(server.base))["subscribers"] == 1


async def test_a_forged_cursor_for_a_feed_that_must_start(server: GatewayProcess, kv: EtcdClient) -> None:
    """A naive gateway opens its watch at the cursor: etcd accepts a future start, and stays silent for ever."""
    await kv.put("/svc/a", "1")
    client = Client()
    await client.adopt(server.base)
    client.cursor = f"{(client.cursor or '').partition('-')[0]}-{10**15}"
    await client.join(server.base)
    try:
        await eventually(lambda: true(client.mirror.synced))
        await kv.put("/svc/b", "2")
        await exact([client], kv)
    finally:
        await client.leave()

    assert client.resets == ["restored"]
