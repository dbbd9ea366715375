"""The lifetime of streams, and their last events when the gateway ends them."""

from __future__ import annotations

import pytest

from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import gateway
from tests.support.streams import watch

pytestmark = pytest.mark.etcd


@pytest.mark.one_etcd
async def test_max_age_moves_on_without_loss(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A stream that reaches its maximum age gets its position and a close; with that cursor the next stream continues
    without a reset.
    """
    async with gateway(etcd.endpoint, settings={"GATEWAY_MAX_AGE": "1s", "GATEWAY_LINGER": "1h"}) as server:
        async with await watch(server.base, "prefix=/svc/") as stream:
            *_events, bookmark, close = await stream.until("close")
            assert await stream.next_event() is None
        revision = await kv.put("/svc/a", "1")
        cursor, events = bookmark.id, [bookmark]
        # The put may reach the feed only after the stream has joined, and the stream may reach its maximum age before
        # that.
        while not [event for event in events if event.type == "put"]:
            async with await watch(server.base, "prefix=/svc/", {"Last-Event-ID": cursor or ""}) as again:
                events = await again.until("put", "close")
                cursor = again.last_id

    assert close.data["reason"] == "max-age"
    assert close.id is None
    assert {event.type for event in events} <= {"put", "synced", "bookmark"}
    assert events[-1].data["mod_revision"] == revision


@pytest.mark.one_etcd
async def test_key_and_prefix_of_the_same_name_are_two_feeds(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """The feeds do not share cursors: a cursor of another request is lost, and never gives a wrong mirror."""
    await kv.put("/svc", "1")
    async with (
        gateway(etcd.endpoint) as server,
        await watch(server.base, "key=/svc") as by_key,
        await watch(server.base, "prefix=/svc") as by_prefix,
    ):
        cursor = (await by_key.until("synced"))[-1].id
        other = (await by_prefix.until("synced"))[-1].id
        async with await watch(server.base, "prefix=/svc", {"Last-Event-ID": cursor or ""}) as mixed:
            reset = await mixed.next_event()
        async with await watch(server.base, "prefix=/svc&encoding=base64", {"Last-Event-ID": other or ""}) as recoded:
            recoded_reset = await recoded.next_event()

    assert reset is not None
    assert (reset.type, reset.data["reason"]) == ("reset", "cursor-lost")
    assert recoded_reset is not None
    assert (recoded_reset.type, recoded_reset.data["reason"]) == ("reset", "cursor-lost")


@pytest.mark.one_etcd
async def test_epoch_setting_loses_all_cursors(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """After a restore, operators change GATEWAY_EPOCH: no earlier cursor is resumed."""
    await kv.put("/svc/a", "1")
    async with gateway(etcd.endpoint) as before, await watch(before.base, "prefix=/svc/") as stream:
        cursor = (await stream.until("synced"))[-1].id or ""
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_EPOCH": "restored-1"}) as after,
        await watch(after.base, "prefix=/svc/", {"Last-Event-ID": cursor}) as stream,
    ):
        events = await stream.until("synced")

    assert events[0].data["reason"] == "cursor-lost"
    assert events[-1].id is not None
    assert events[-1].id.partition("-")[0] != cursor.partition("-")[0]


@pytest.mark.one_etcd
async def test_two_replicas_share_cursors(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A cursor from one replica continues on the other."""
    async with (
        gateway(etcd.endpoint) as one,
        gateway(etcd.endpoint) as two,
        await watch(two.base, "prefix=/svc/") as keeps_it_live,
    ):
        await keeps_it_live.until("synced")
        async with await watch(one.base, "prefix=/svc/") as stream:
            await stream.until("synced")
            await kv.put("/svc/a", "1")
            (change,) = await stream.changes(1)
        revision = await kv.put("/svc/a", "2")
        async with await watch(two.base, "prefix=/svc/", {"Last-Event-ID": change.id or ""}) as moved:
            first = await moved.next_event()
            second = await moved.next_event()

    assert first is not None
    assert second is not None
    found = {event.type: event.data.get("mod_revision") for event in (first, second)}
    assert found == {"put": revision, "synced": None}
