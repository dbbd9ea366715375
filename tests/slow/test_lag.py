"""Readers that fall behind the feed: they keep their place in the log, are reset beyond it, and not for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from app.embedded import EmbeddedEtcd
from tests.slow.clients import closing, resets, slow, stuck, to_the_end
from tests.support.etcd import EtcdClient
from tests.support.gateway import gateway
from tests.support.streams import Event, Mirror, Stream

pytestmark = pytest.mark.etcd


async def up_to(stream: Stream, revision: int, mirror: Mirror) -> list[Event]:
    """Events until the mirror is at *revision*."""
    found: list[Event] = []
    while not mirror.synced or mirror.revision < revision:
        event = await stream.next_event()
        assert event is not None, found[-1:]
        mirror.apply(event)
        found.append(event)
    return found


async def test_a_stalled_reader_keeps_its_place_and_catches_up_in_large_writes(
    etcd: EmbeddedEtcd, kv: EtcdClient
) -> None:
    """Everything that the log covers, in order, with no reset; what piled up comes in few writes."""
    async with gateway(etcd.endpoint) as server:
        client = await stuck(server.base, "prefix=/svc/")
        async with closing(client):
            mirror = Mirror()
            await up_to(client, 1, mirror)
            revisions = [
                revision
                for _ in range(20)
                for revision in await asyncio.gather(*(kv.put(f"/svc/{n}", "x" * 300) for n in range(100)))
            ]
            sizes: list[int] = []
            chunk = client.chunk

            async def measured() -> bytes:
                data = await chunk()
                sizes.append(len(data))
                return data

            client.chunk = measured  # type: ignore[method-assign]
            events = await up_to(client, max(revisions), mirror)

    assert [event.data["mod_revision"] for event in events if event.type == "put"] == sorted(revisions)
    assert resets(events) == []
    # 2,000 events of 430 bytes: the first of them came one by one, and filled the buffers.
    assert sum(size for size in sizes if size > 40_000) > 0.5 * sum(sizes)


async def test_beyond_the_log_the_state_comes_again_in_the_same_stream(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """However often, as long as the reader catches up between: it is slow at times, not too slow."""
    async with gateway(etcd.endpoint, settings={"GATEWAY_LOG_BATCHES": "5"}) as server:
        client = await stuck(server.base, "prefix=/svc/")
        async with closing(client):
            mirror = Mirror()
            await up_to(client, 1, mirror)
            for _ in range(5):
                for n in range(40):
                    last = await kv.put(f"/svc/{n % 3}", str(n) * 10_000)
                # Twice is possible: the first snapshot may have begun while the puts went on, and ended behind the log.
                assert resets(await up_to(client, last, mirror)) in (["lagged"], ["lagged", "lagged"])
            _revision, truth = await kv.state("/svc/")

    assert mirror.resets[0] == "initial"
    assert {key: item["value"] for (key, _), item in mirror.state.items()} == {
        key.decode(): kv.value.decode() for key, kv in truth.items()
    }


@contextlib.asynccontextmanager
async def writing(kv: EtcdClient, size: int, pause: float) -> AsyncIterator[None]:
    """Meanwhile, a put of *size* bytes every *pause* seconds."""

    async def write() -> None:
        while True:
            await kv.put("/svc/busy", "y" * size)
            await asyncio.sleep(pause)

    task = asyncio.create_task(write())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.slow
async def test_one_that_the_log_always_outruns_is_closed(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Not sent snapshots for ever: three in all, and then ``too-slow``, with its place and the time to come back."""
    for n in range(20):
        await kv.put(f"/svc/{n}", "x" * 30_000)
    settings = {"GATEWAY_LOG_BATCHES": "5", "GATEWAY_MIN_RATE": "0"}
    async with gateway(etcd.endpoint, settings=settings) as server, writing(kv, 10_000, 0.01):
        client = await slow(server.base, "prefix=/svc/", 500_000)
        async with closing(client):
            events = await to_the_end(client)

    assert resets(events) == ["initial", "lagged", "lagged"]
    bookmark, close = events[-2:]
    assert (bookmark.type, close.type, close.data["reason"]) == ("bookmark", "close", "too-slow")
    assert not (bookmark.id or "").endswith("-0")
    assert 3_750 <= close.data["retry_ms"] <= 5_000
    assert client.retry == close.data["retry_ms"]
