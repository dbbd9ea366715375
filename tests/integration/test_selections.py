"""Pins, projections, merges and ``keys_only``, with real etcds.

Where etcd's progress cannot be trusted, the tests pin everything: several ranges on one stream are then refused unless
one pin has all of them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core.versions import progress_is_trusted
from tests.integration.test_faults import Follower
from tests.integration.test_operations import restore, shell
from tests.integration.test_release import WATCHERS
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.gateway import STALE_SOON, UNPROVEN_SOON, GatewayProcess, gateway
from tests.support.metrics import etcd_metric
from tests.support.proxy import proxy
from tests.support.streams import Event, Stream, request, watch, watch_synced
from tests.support.waiting import eventually

pytestmark = [pytest.mark.etcd, pytest.mark.trust]

THREE = "prefix=/svc/&key=/one&prefix=/config/"
RANGES = ["prefix=/config/", "key=/one", "prefix=/svc/"]
Version = tuple[int, int, int]


@pytest.fixture(name="settings")
def _settings(version: Version) -> dict[str, str]:
    """The settings with which several ranges are served by this etcd."""
    return {} if progress_is_trusted(version) else {"GATEWAY_PIN": "/"}


@pytest.fixture(name="server")
async def _server(etcd: EmbeddedEtcd, settings: dict[str, str]) -> AsyncIterator[GatewayProcess]:
    """A gateway in front of ``etcd``."""
    async with gateway(etcd.endpoint, settings=settings) as running:
        yield running


@asynccontextmanager
async def following(server: GatewayProcess, query: str = THREE) -> AsyncIterator[Follower]:
    """A follower with a mirror."""
    follower = Follower(await watch(server.base, query))
    try:
        await eventually(lambda: synced(follower))
        yield follower
    finally:
        await follower.close()


async def synced(follower: Follower) -> bool:
    """Whether the mirror is synced."""
    return follower.mirror.synced


async def exact(follower: Follower, kv: EtcdClient) -> bool:
    """Whether the mirror of the three ranges equals etcd."""
    _revision, everything = await kv.state("")
    return follower.holds({key: item for key, item in everything.items() if key.startswith((b"/svc/", b"/config/"))
                           or key == b"/one"})  # fmt: skip


def briefly(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    """The key, the revision, ``more``, and the revision of the id, of each event."""
    return [
        (
            event.data["key"],
            event.data["mod_revision"],
            event.data.get("more", False),
            event.id and int(event.id.partition("-")[2]),
        )
        for event in events
    ]


async def test_a_transaction_over_several_ranges_is_one_revision(server: GatewayProcess, kv: EtcdClient) -> None:
    """All events but the last have ``more``, only the last has the id; the ranges are sorted; ``synced`` comes once."""
    for key in ("/svc/a", "/one", "/config/a", "/config/b"):
        last = await kv.put(key, "1")
    # A pin may lag behind etcd.
    async with await watch(server.base, f"{THREE}&min_revision={last}") as stream:
        reset, *items, end = await stream.until("synced")
        assert reset.data["ranges"] == RANGES
        assert [item.data["key"] for item in items] == ["/config/a", "/config/b", "/one", "/svc/a"]
        assert end.data["revision"] >= last
        revision = await kv.transact({"/svc/b": "2", "/other": "2", "/one": "2", "/config/a": None, "/ones": "2"})
        changes = await stream.changes(3)
        alone = await kv.put("/svc/c", "3")
        changes += await stream.changes(1)
        quiet = (await stream.until("bookmark"))[-1]

    found = briefly(changes)
    assert {key for key, *_ in found[:3]} == {"/svc/b", "/one", "/config/a"}
    assert [rest for _key, *rest in found[:3]] == [[revision, True, None]] * 2 + [[revision, False, revision]]
    assert found[3] == ("/svc/c", alone, False, alone)
    assert quiet.data["revision"] >= alone


async def test_a_cursor_resumes_here_and_at_another_gateway(
    etcd: EmbeddedEtcd, server: GatewayProcess, settings: dict[str, str], kv: EtcdClient
) -> None:
    """From the middle of a stream of several ranges: exactly the rest, in the same order, and no reset."""
    async with await watch(server.base, THREE) as stream:
        await stream.until("synced")
        for n in range(4):
            await kv.transact({"/svc/a": str(n), "/config/a": str(n)})
            await kv.put("/one", str(n))
        changes = await stream.changes(12)
    middle = next(change.id for change in changes[4:] if change.id)
    rest = changes[changes.index(next(change for change in changes if change.id == middle)) + 1 :]
    async with gateway(etcd.endpoint, settings=settings) as other:
        for base in (server.base, other.base):
            # The order of the ranges in the query does not matter.
            query = f"key=/one&prefix=/config/&prefix=/svc/&last_event_id={middle}"
            async with await watch(base, query) as stream:
                *again, end = await stream.until("synced")
            assert [event.id for event in again] == [event.id for event in rest]
            assert sorted(briefly(again)) == sorted(briefly(rest))
            assert end.data["revision"] >= rest[-1].data["mod_revision"]
            async with await watch(base, f"prefix=/svc/&last_event_id={middle}") as stream:
                assert (await stream.until("reset"))[-1].data["reason"] == "cursor-lost", "another request's cursor"


async def test_the_cursor_of_a_list_starts_a_watch(server: GatewayProcess, kv: EtcdClient) -> None:
    """Of a range, and of a list of keys only; other ranges have moved etcd on."""
    await kv.put("/svc/a", "1")
    await kv.put("/other", "1")
    for query, names in [("prefix=/svc/", ["/svc/a"]), ("prefix=/svc/&keys_only=1", ["/svc/a"])]:
        answer = await request(f"{server.base}/v1/kv?{query}", {"Connection": "close"})
        await answer.close()
        body = json.loads(answer.body)
        assert [item["key"] for item in body["kvs"]] == names
        assert all(("value" in item) != ("keys_only" in query) for item in body["kvs"])
        async with await watch(server.base, f"{query}&last_event_id={body['cursor']}") as stream:
            assert [event.type for event in await stream.until("synced")] == ["synced"]
            revision = await kv.put("/svc/a", "2")
            (change,) = await stream.changes(1)
        assert briefly([change]) == [("/svc/a", revision, False, revision)]


async def test_keys_only(server: GatewayProcess, kv: EtcdClient) -> None:
    """Every put, without its value, in the state and live; deletes as ever. Its cursor is not that of the values."""
    revision = await kv.put("/svc/a", "1", lease=0)
    # A pin may not have received the put yet.
    async with await watch(server.base, f"prefix=/svc/&keys_only=1&min_revision={revision}") as stream:
        _reset, item, end = await stream.until("synced")
        first = await kv.put("/svc/a", "2")
        second = await kv.put("/svc/a", "2")
        await kv.delete("/svc/a")
        changes = await stream.changes(3)
    assert item.data["version"] == 1
    assert [change.data["mod_revision"] for change in changes] == [first, second, second + 1]
    assert not any("value" in event.data for event in [item, *changes])
    async with await watch(server.base, f"prefix=/svc/&last_event_id={end.id}") as stream:
        assert (await stream.until("reset"))[-1].data["reason"] == "cursor-lost"


async def test_etcd_killed_and_back(etcd: EmbeddedEtcd, settings: dict[str, str], kv: EtcdClient) -> None:
    """``status`` names the stale ranges, sorted; then the stream goes on without a reset, and has missed nothing."""
    await kv.put("/svc/a", "1")
    async with (
        gateway(etcd.endpoint, settings={**settings, **STALE_SOON}) as server,
        await watch_synced(server.base, THREE) as stream,
    ):
        await kv.transact({"/svc/a": "2", "/config/a": "2"})
        await stream.changes(2)
        await kv.settle()
        await etcd.kill()
        stale = (await stream.until_status("stale"))[-1]
        assert stale.data["since"]
        while stale.data["ranges"] != RANGES:  # the others were proven later
            stale = (await stream.until_status("stale"))[-1]
        await etcd.restart()
        async with etcd_client(etcd.endpoint) as again:
            revision = await again.transact({"/svc/a": None, "/one": "3"})
            alone = await again.put("/svc/b", "4")
        changes = await stream.changes(3)
        live = await until_state(stream, "live")
    assert [rest for _key, *rest in briefly(changes)] == [
        [revision, True, None],
        [revision, False, revision],
        [alone, False, alone],
    ]
    assert live.data.get("ranges", RANGES) == RANGES


async def until_state(stream: Stream, state: str) -> Event:
    """The first event that reports *state*."""
    while True:
        event = (await stream.until("status", "bookmark"))[-1]
        if event.data["state"] == state:
            return event


async def test_compacted_while_cut_off(etcd: EmbeddedEtcd, settings: dict[str, str], kv: EtcdClient) -> None:
    """Events of one range that etcd compacted meanwhile: one reset of all ranges, with its reason, and the state."""
    async with (
        proxy(etcd.endpoint) as between,
        gateway(between.endpoint, settings=settings) as server,
        following(server) as follower,
    ):
        await kv.put("/svc/a", "1")
        await eventually(lambda: exact(follower, kv))
        between.cut()
        await kv.put("/svc/a", "2")
        await kv.delete("/svc/a")
        await kv.put("/config/a", "2")
        await kv.compact(await kv.put("/other", "1"))
        between.heal()
        await eventually(lambda: exact(follower, kv))
        await kv.transact({"/svc/b": "3", "/one": "3"})
        await eventually(lambda: exact(follower, kv))
        assert follower.mirror.resets[0] == "initial"
        assert set(follower.mirror.resets[1:]) == {"compacted"}


async def test_a_restore(etcd: EmbeddedEtcd, settings: dict[str, str], kv: EtcdClient, tmp_path: Path) -> None:
    """etcd goes back: one reset of all ranges, ``restored``, and the state."""
    await kv.put("/svc/kept", "1")
    status, said = await shell(etcd, tmp_path, "etcdctl snapshot save backup.db")
    assert status == 0, said
    async with gateway(etcd.endpoint, settings=settings) as server, following(server) as follower:
        for n in range(20):
            await kv.transact({"/svc/lost": str(n), "/config/lost": str(n)})
        await eventually(lambda: exact(follower, kv))
        await restore(etcd, tmp_path)
        async with etcd_client(etcd.endpoint) as again:
            await again.put("/one", "new")
            await eventually(lambda: exact(follower, again))
        assert follower.mirror.resets == ["initial", "restored"]


async def test_what_an_old_etcd_refuses(etcd: EmbeddedEtcd, version: Version, kv: EtcdClient) -> None:
    """Several ranges need progress that can be trusted, or a pin that has them all; EventSource gets the 501 too."""
    await kv.put("/svc/a/1", "1")
    await kv.put("/svc/b/1", "1")
    async with gateway(etcd.endpoint, settings={"GATEWAY_PIN": "/svc/"}) as server:
        # Before the gateway knows the member, it would have to guess.
        await eventually(lambda: is_ready(server))
        for headers in ({}, {"Accept": "text/event-stream"}):
            answer = await request(f"{server.base}/v1/watch?{THREE}", {**headers, "Connection": "close"})
            if not progress_is_trusted(version):
                problem = json.loads(answer.body)
                assert (answer.status, problem["code"]) == (501, "ranges-need-pin")
                for word in (".".join(map(str, version)), "3.5.8", "GATEWAY_PIN"):
                    assert word in problem["detail"]
            else:
                assert answer.status == 200
            await answer.close()
        async with await watch(server.base, "prefix=/svc/a/&prefix=/svc/b/") as stream:
            events = await stream.until("synced")
            assert [event.data["key"] for event in events[1:-1]] == ["/svc/a/1", "/svc/b/1"]
            revision = await kv.transact({"/svc/a/1": "2", "/svc/b/1": "2", "/svc/c": "2"})
            changes = await stream.changes(2)
        assert [rest for _key, *rest in briefly(changes)] == [[revision, True, None], [revision, False, revision]]


async def is_ready(server: GatewayProcess) -> bool:
    """Whether the gateway is ready."""
    async with httpx.AsyncClient(base_url=server.base, trust_env=False) as http:
        return (await http.get("/readyz")).status_code == httpx.codes.OK


async def feeds(server: GatewayProcess) -> dict[str, Any]:
    """What ``/v1/feeds`` reports."""
    async with httpx.AsyncClient(base_url=server.base, trust_env=False) as http:
        found: dict[str, Any] = (await http.get("/v1/feeds")).json()
    return found


async def watchers(etcd: EmbeddedEtcd, count: int) -> bool:
    """Whether etcd has that many watchers. A pin that starts has a second one, which reads history.

    Where progress cannot be trusted, nothing proves that there is no history: the second one stays until
    ``GATEWAY_SYNC_TIMEOUT``, so the tests set ``UNPROVEN_SOON``.
    """
    return await etcd_metric(etcd.endpoint, WATCHERS) == count


async def no_channel(server: GatewayProcess) -> bool:
    """Whether every channel has ended."""
    found = (await feeds(server))["channels"]
    return not found


async def opened(stack: AsyncExitStack, server: GatewayProcess, queries: Sequence[str]) -> list[Stream]:
    """A synced stream of each query."""
    streams = [await stack.enter_async_context(await watch(server.base, query)) for query in queries]
    for stream in streams:
        await stream.until("synced")
    return streams


@pytest.mark.slow
async def test_a_thousand_narrow_ranges_of_one_pin(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """One watcher at etcd, whatever clients ask; and each stream gets its own events only."""
    pinned = {"GATEWAY_PIN": "/svc/", **UNPROVEN_SOON}
    async with gateway(etcd.endpoint, settings=pinned) as server, AsyncExitStack() as stack:
        streams = await opened(stack, server, [f"prefix=/svc/{n:04}/" for n in range(1000)])
        await eventually(lambda: watchers(etcd, 1))
        last = 0
        for n in range(0, 1000, 100):
            last = await kv.put(f"/svc/{n:04}/k", str(n))
        for n in range(0, 1000, 100):
            (change,) = await streams[n].changes(1)
            assert change.data["value"] == str(n)
        # A stream without any event moves on too.
        while (await streams[1].until("bookmark"))[-1].data["revision"] < last:
            pass
        found = await feeds(server)
        assert [(feed["range"], feed["channels"], feed["subscribers"]) for feed in found["feeds"]] == [
            ("prefix=/svc/", 1000, 1000)
        ]
        await eventually(lambda: watchers(etcd, 1))
        await stack.aclose()

        await eventually(lambda: no_channel(server))
        assert [feed["pinned"] for feed in (await feeds(server))["feeds"]] == [True]
        assert await etcd_metric(etcd.endpoint, WATCHERS) == 1


async def test_two_hundred_streams_of_three_ranges(
    etcd: EmbeddedEtcd, settings: dict[str, str], kv: EtcdClient
) -> None:
    """Three watchers at etcd, and none after the linger; with a pin, the pin's one all the time."""
    most, least = (1, 1) if settings else (3, 0)
    async with gateway(etcd.endpoint, settings=settings | UNPROVEN_SOON) as server, AsyncExitStack() as stack:
        streams = await opened(stack, server, [THREE] * 200)
        await eventually(lambda: watchers(etcd, most))
        revision = await kv.transact({"/svc/a": "1", "/config/a": "1"})
        for stream in streams:
            assert [change[3] for change in briefly(await stream.changes(2))] == [None, revision]
        assert [channel["subscribers"] for channel in (await feeds(server))["channels"]] == [200]
        assert await etcd_metric(etcd.endpoint, WATCHERS) == most
        await stack.aclose()
        await eventually(lambda: watchers(etcd, least))
        await eventually(lambda: no_channel(server))
