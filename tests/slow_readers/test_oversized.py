"""One revision that is larger than a log may be: clients that keep up get it, the others are reset, nothing loops."""

from __future__ import annotations

import asyncio

import pytest

from tests.slow_readers.clients import closing, stuck
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import gateway
from tests.support.streams import Mirror, Stream, watch

pytestmark = pytest.mark.etcd

SMALL_LOG = {"GATEWAY_LOG_BYTES": "64KiB"}
LARGE = 700_000


async def reach(stream: Stream, mirror: Mirror, revision: int) -> None:
    """Read until the mirror has reached the revision."""
    while not mirror.synced or mirror.revision < revision:
        event = await stream.next_event()
        assert event is not None
        mirror.apply(event)


async def test_who_is_current_gets_it(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A client that keeps up gets a large value, and many events in one transaction, whole, without a reset."""
    async with (
        gateway(etcd.endpoint, settings=SMALL_LOG) as server,
        await watch(server.base, "prefix=/svc/") as stream,
    ):
        mirror = Mirror()
        await reach(stream, mirror, 1)
        for n in range(3):
            await reach(stream, mirror, await kv.put("/svc/a", str(n) * LARGE))
            many = {f"/svc/{key}": str(n) * 5_000 for key in range(120)}
            await reach(stream, mirror, await kv.transact(many))

    assert mirror.resets == ["initial"]
    assert mirror.changes == 3 * 121
    assert len(mirror.state) == 121


async def test_a_burst_of_them_ends_in_the_exact_state(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Clients that keep up and one that does not reach the exact state with a few resets; then the streams are
    quiet.
    """
    async with gateway(etcd.endpoint, settings=SMALL_LOG) as server:
        streams = [await watch(server.base, "prefix=/svc/") for _ in range(3)]
        streams.append(await stuck(server.base, "prefix=/svc/"))
        async with closing(*streams):
            mirrors = [Mirror() for _ in streams]
            await asyncio.gather(*(reach(s, m, 1) for s, m in zip(streams, mirrors, strict=True)))
            for n in range(3):  # more puts could outrun a reader three times, which test_lag tests
                last = await kv.put(f"/svc/{n}", str(n) * LARGE)
            await asyncio.gather(*(reach(s, m, last) for s, m in zip(streams, mirrors, strict=True)))
            counts = [len(mirror.resets) for mirror in mirrors]
            # For two quiet heartbeats each stream sends its position, and nothing else.
            for stream in streams:
                assert [event.type for event in await stream.until("bookmark")][-1] == "bookmark"
                assert [event.type for event in await stream.until("bookmark")] == ["bookmark"]
            _revision, truth = await kv.state("/svc/")

    expected = {key.decode(): kv.value.decode() for key, kv in truth.items()}
    assert [{key: item["value"] for (key, _), item in mirror.state.items()} for mirror in mirrors] == [expected] * 4
    assert all(count <= 3 for count in counts), counts
    assert [set(mirror.resets[1:]) <= {"lagged"} for mirror in mirrors] == [True] * 4
