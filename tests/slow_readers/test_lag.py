"""Readers that fall behind the feed: they keep their place in the log, are reset beyond the log, but not for ever."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator
from datetime import datetime

import httpx
import pytest

from tests.cases.clients import feed_of
from tests.slow_readers.clients import closing, resets, slow, stuck, to_the_end
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.streams import Event, Mirror, Stream, watch
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd


async def up_to(stream: Stream, revision: int, mirror: Mirror) -> list[Event]:
    """The events until the mirror is at *revision*."""
    found: list[Event] = []
    while not mirror.synced or mirror.revision < revision:
        event = await stream.next_event()
        assert event is not None, found[-1:]
        mirror.apply(event)
        found.append(event)
    return found


async def has_heard(server: GatewayProcess, revision: int) -> bool:
    """Whether the feed has reached that revision: from then on its readers are behind."""
    return int((await feed_of(server.base))["revision"]) >= revision


async def test_a_stalled_reader_keeps_its_place_and_catches_up_in_large_writes(
    etcd: EmbeddedEtcd, kv: EtcdClient
) -> None:
    """A stalled reader gets all that the log covers, in order, with no reset; the backlog comes in few writes."""
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
            await eventually(lambda: has_heard(server, max(revisions)))
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
    # 2,000 events of 430 bytes: the first events came one by one, and filled the buffers.
    assert sum(size for size in sizes if size > 40_000) > 0.5 * sum(sizes)


async def test_beyond_the_log_the_state_comes_again_in_the_same_stream(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A reader beyond the log gets the snapshot again in its stream, however often, as long as it catches up in
    between: it is slow at times, not too slow.
    """
    async with gateway(etcd.endpoint, settings={"GATEWAY_LOG_BATCHES": "5"}) as server:
        client = await stuck(server.base, "prefix=/svc/")
        async with closing(client):
            mirror = Mirror()
            await up_to(client, 1, mirror)
            for _ in range(5):
                for n in range(40):
                    last = await kv.put(f"/svc/{n % 3}", str(n) * 10_000)
                await eventually(functools.partial(has_heard, server, last))
                # Two resets are possible: the first snapshot may have begun during the puts, and ended beyond the log.
                assert resets(await up_to(client, last, mirror)) in (["lagged"], ["lagged", "lagged"])
            _revision, truth = await kv.state("/svc/")

    assert mirror.resets[0] == "initial"
    assert {key: item["value"] for (key, _), item in mirror.state.items()} == {
        key.decode(): kv.value.decode() for key, kv in truth.items()
    }


@pytest.mark.wall_clock
@pytest.mark.parametrize("sink", ["fast", "portable"])
@pytest.mark.parametrize("form", ["sse", "ndjson"])
async def test_who_lacks_what_is_old_is_told_so(etcd: EmbeddedEtcd, kv: EtcdClient, sink: str, form: str) -> None:
    """A reader that misses old events gets one `stale`, and `live` when it has caught up; another reader is live all
    the time.

    A client that does not read has what its buffers hold; the events that it misses are then older than
    GATEWAY_STALE_AFTER (5 s).
    """
    query = f"prefix=/svc/&format={form}"
    settings = {
        "GATEWAY_SINK": sink,
        "GATEWAY_SEND_BUFFER": "16KiB",
        "GATEWAY_STALE_AFTER": "5s",
        "GATEWAY_SEND_TIMEOUT": "1h",
    }
    async with gateway(etcd.endpoint, settings=settings) as server:
        began = int(time.time())
        client = await stuck(server.base, query)
        async with closing(client), await watch(server.base, query) as quick:
            await quick.until("synced")
            await client.until("synced")
            for n in range(60):
                last = await kv.put(f"/svc/{n}", "x" * 20_000)

            async def behind() -> bool:
                async with httpx.AsyncClient(base_url=server.base, trust_env=False) as http:
                    (feed,) = (await http.get("/v1/feeds")).json()["feeds"]
                return bool(feed["lag"] > 0)

            await eventually(behind)
            await asyncio.sleep(6)  # meanwhile, the missed events grow old
            told = [event for event in await beyond(client, last) if event.type not in ("put", "delete")]
            beside = await quick.changes(60)
            beside += [(await quick.until("bookmark"))[-1] for _ in range(2)]

    states = [(event.type, event.data["state"]) for event in told]
    first, back = states.index(("status", "stale")), states.index(("status", "live"))
    assert [state for kind, state in states if kind == "status"] == ["stale", "live"]
    assert {state for _, state in states[first:back]} == {"stale"}
    assert {state for _, state in states[back:]} == {"live"}
    since = datetime.fromisoformat(told[first].data["since"]).timestamp()
    # `since` is an estimate, and may be earlier than the first missed event, but not than the stream's beginning.
    assert began <= since <= time.time() - 1.5
    assert {event.data.get("state", "live") for event in beside} == {"live"}


async def beyond(stream: Stream, last: int) -> list[Event]:
    """The events up to the second bookmark after the change of revision *last*."""
    found = await stream.changes(1)
    while found[-1].data.get("mod_revision") != last:
        event = await stream.next_event(60)
        assert event is not None, found[-1:]
        found.append(event)
    for _ in range(2):
        found += await stream.until("bookmark")
    return found


@contextlib.asynccontextmanager
async def writing(kv: EtcdClient, size: int, pause: float) -> AsyncIterator[None]:
    """In the background, put *size* bytes every *pause* seconds."""

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
    """A reader that the log always outruns gets three snapshots, then `too-slow`, with its cursor and a retry delay."""
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
