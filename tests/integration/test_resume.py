"""A cursor resumes on any replica, as long as etcd has its history; otherwise a reset gives the reason."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from app.core.versions import progress_is_trusted
from tests.integration.test_release import held_at_etcd, is_ready, ranges, surplus
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import UNPROVEN_SOON, gateway
from tests.support.size import size
from tests.support.streams import Event, watch
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd


async def cursor_now(base: str, prefix: str = "/svc/") -> str:
    """The cursor of a REST answer."""
    async with httpx.AsyncClient(base_url=base) as client:
        return str((await client.get("/v1/kv", params={"prefix": prefix})).json()["cursor"])


def timeouts(version: tuple[int, int, int]) -> dict[str, str]:
    """The settings that shorten the wait for a proof, if nothing can prove a history."""
    return {} if progress_is_trusted(version) else UNPROVEN_SOON


@pytest.mark.trust
async def test_fresh_process_resumes_after_a_delete(
    etcd: EmbeddedEtcd, kv: EtcdClient, version: tuple[int, int, int]
) -> None:
    """The range's last event is a delete, and then the keys of other ranges changed: only progress proves the
    delete.
    """
    await kv.put("/svc/a", "1")
    async with gateway(etcd.endpoint, settings=timeouts(version)) as server:
        cursor = await cursor_now(server.base)
        await kv.put("/svc/b", "2")
        deleted = await kv.delete("/svc/a")
        for n in range(10):
            await kv.put("/other", str(n))
        async with await watch(server.base, "prefix=/svc/", {"Last-Event-ID": cursor}) as stream:
            events = await stream.until("synced")

    if progress_is_trusted(version):
        assert [event.data.get("key") for event in events] == ["/svc/b", "/svc/a", None]
        assert events[1].data == {"type": "delete", "key": "/svc/a", "mod_revision": deleted}
    else:
        assert [event.data.get("reason") for event in events if event.type == "reset"] == ["unproven"]
        assert [event.data["key"] for event in events if event.type == "put"] == ["/svc/b"]


@pytest.mark.trust
async def test_cursor_ahead_of_a_quiet_feed(etcd: EmbeddedEtcd, kv: EtcdClient, version: tuple[int, int, int]) -> None:
    """Other ranges moved etcd on, and the feed of a quiet prefix has not noticed: the feed must catch up, or reset."""
    await kv.put("/svc/a", "1")
    settings = timeouts(version)
    async with gateway(etcd.endpoint, settings=settings) as server, await watch(server.base, "prefix=/svc/") as first:
        await first.until("synced")
        last = 0
        for n in range(10):
            last = await kv.put("/other", str(n))
        cursor = await cursor_now(server.base)
        async with await watch(server.base, "prefix=/svc/", {"Last-Event-ID": cursor}) as stream:
            events = await stream.until("synced")

        assert int(cursor.partition("-")[2]) == last
        assert events[-1].data["revision"] >= last
        if progress_is_trusted(version):
            assert [event.type for event in events] == ["synced"]
        else:
            assert [event.data.get("reason") for event in events[:1]] == ["unproven"]
        assert await held_at_etcd(etcd) == (1, 1)


@pytest.mark.trust
async def test_old_cursor_on_a_live_feed(etcd: EmbeddedEtcd, kv: EtcdClient, version: tuple[int, int, int]) -> None:
    """For a cursor below the log's floor, the one watch reaches back if progress is trusted; otherwise it is a
    reset.
    """
    await kv.put("/svc/a", "0")
    async with gateway(etcd.endpoint) as server:
        cursor = await cursor_now(server.base)
        revisions = [await kv.put("/svc/a", str(n)) for n in range(20)]
        async with await watch(server.base, "prefix=/svc/") as live:
            await live.until("synced")
            async with await watch(server.base, "prefix=/svc/", {"Last-Event-ID": cursor}) as stream:
                events = await stream.until("synced")
            revisions.append(await kv.put("/svc/a", "last"))
            (seen_live,) = await live.changes(1)
            assert await held_at_etcd(etcd) == (1, 1)

        assert seen_live.data["mod_revision"] == revisions[-1]
        if progress_is_trusted(version):
            assert [event.data.get("mod_revision") for event in events[:-1]] == revisions[:-1]
        else:
            assert events[0].data["reason"] == "lagged"


@pytest.mark.one_etcd
@pytest.mark.sized
async def test_a_herd_resumes_on_one_range_and_one_watch(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Cursors of various ages come to a fresh process: one Range, one watch, no reset."""
    await kv.put("/svc/a", "0")
    async with gateway(etcd.endpoint) as first:
        epoch = (await cursor_now(first.base)).partition("-")[0]
    revisions = [await kv.put("/svc/a", str(n)) for n in range(50)]
    # The Ranges that prove feeds current are half of this time apart.
    async with gateway(etcd.endpoint, settings={"GATEWAY_STALE_AFTER": "5m"}) as server:
        await eventually(lambda: is_ready(server))  # the Ranges of the gateway's own start have been answered
        before = await ranges(etcd)
        cursors = [f"{epoch}-{revisions[n % 50]}" for n in range(size(300, long=1000))]
        streams = await asyncio.gather(
            *(watch(server.base, "prefix=/svc/", {"Last-Event-ID": cursor}) for cursor in cursors)
        )
        found = await asyncio.gather(*(stream.until("synced") for stream in streams))

        for n, events in enumerate(found):
            assert [event.data["mod_revision"] for event in events if event.type == "put"] == revisions[n % 50 + 1 :]
            assert {event.type for event in events} <= {"put", "synced", "status"}
        # The snapshot's Range, and the count-only probe that proves that nothing was compacted meanwhile.
        assert await surplus(server, etcd, before + 2) <= 0
        assert await held_at_etcd(etcd) == (1, 1)
        await asyncio.gather(*(stream.close() for stream in streams))


async def test_compacted_cursor(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """For history that etcd has compacted, the client gets a reset with the reason."""
    await kv.put("/svc/a", "0")
    async with gateway(etcd.endpoint) as server:
        cursor = await cursor_now(server.base)
        for n in range(10):
            last = await kv.put("/svc/a", str(n))
        await kv.compact(last)
        async with await watch(server.base, "prefix=/svc/", {"Last-Event-ID": cursor}) as stream:
            events = await stream.until("synced")

    assert [event.type for event in events] == ["reset", "put", "synced"]
    assert events[0].data["reason"] == "compacted"
    assert events[-1].data["revision"] >= last


@pytest.mark.one_etcd
async def test_slow_reader_lags(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A reader behind the log gets a `lagged` reset and the snapshot in the same stream; others are not affected."""
    settings = {"GATEWAY_LOG_BATCHES": "5", "GATEWAY_SEND_TIMEOUT": "600s"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        slow = await watch(server.base, "prefix=/svc/", receive_buffer=4096)
        async with await watch(server.base, "prefix=/svc/") as quick:
            await quick.until("synced")
            for n in range(60):
                await kv.put("/svc/a", str(n) * 20_000)
                await quick.changes(1)
            last = await kv.put("/svc/a", "end")
            events: list[Event] = []
            while not events or events[-1].data.get("mod_revision") != last:
                event = await slow.next_event()
                assert event is not None
                events.append(event)
        await slow.close()

    assert [event.data["reason"] for event in events if event.type == "reset"][1:] == ["lagged"]
