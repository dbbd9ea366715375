"""A feed's first and last moments: subscribers come or go in the middle of them, and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.core.keys import KeyRange
from app.core.refcounts import RefCounts
from app.core.selection import Ranges
from app.gateway import Gateway
from app.settings import load
from app.watch.subscriber import Subscriber
from tests.cases.clients import Client, exact, feed_of, is_held, joined, true
from tests.cases.valve import valve
from tests.integration.test_release import OF_A_CONNECTION, all_released, ranges, reconnects
from tests.support.asgi_client import OURS, released
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.fake_etcd import FakeEtcd
from tests.support.feeds import followed
from tests.support.gateway import gateway
from tests.support.proxy import proxy
from tests.support.waiting import HANG, eventually

SVC = KeyRange("prefix", b"/svc/")


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_the_last_leaves_while_the_snapshot_is_paged(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive feed reads the remaining pages for nobody, and then opens a watch that nobody will ever release."""
    for start in range(0, 12_000, 100):
        await kv.transact({f"/svc/{n:05}": "x" * 500 for n in range(start, start + 100)})
    settings = {"GATEWAY_LINGER": "0s"}
    async with valve(etcd.endpoint) as between, gateway(between.endpoint, settings=settings) as server:
        client = Client()
        between.arm(400_000, "freeze")
        await client.join(server.base)
        async with asyncio.timeout(HANG):
            await between.shut.wait()
        asked = await ranges(etcd)
        await client.leave(crash=True)

        async def forgotten() -> bool:
            return await feed_of(server.base) == {}

        await eventually(forgotten)
        between.heal()
        await eventually(lambda: all_released(server, etcd))
        # A new subscriber starts the feed anew, and gets all keys.
        async with joined(server.base, "prefix=/svc/029") as (other,):
            assert len(other.mirror.state) == 100
            # 100 keys are pages of 16, 64 and 20, and a new connection asks for one key. Three large pages were left.
            assert await ranges(etcd) - asked <= 4 + OF_A_CONNECTION * max(0, await reconnects(server) - 1)
        await eventually(lambda: all_released(server, etcd))


@pytest.fixture(name="fake")
async def _fake() -> AsyncIterator[FakeEtcd]:
    async with FakeEtcd() as fake:
        fake.put(b"/svc/a", b"1")
        yield fake


def hold(gateway: Gateway) -> Subscriber:
    """Subscribe; the test chooses when, and when to release."""
    return gateway.registry.subscribe((SVC,), address="", user_agent="", request_id="", has_cursor=False)


@pytest.mark.parametrize("first", ["join", "end"])
async def test_a_join_in_the_turn_of_the_linger_s_end(fake: FakeEtcd, first: str) -> None:
    """A naive linger timer that has fired ends the feed under a new subscriber, or leaves two feeds for one range."""
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0.05}))
    async with gateway.running():
        loop = asyncio.get_running_loop()
        for _ in range(5):
            before = hold(gateway)
            kept = followed(before)
            await eventually(lambda feed=kept: true(feed.core.history.joinable))  # type: ignore[misc]
            before.release()
            timer = gateway.registry.channels._linger_timers[(SVC,)]
            turn: list[str] = []
            taken: list[Subscriber] = []

            def join(turn: list[str] = turn, taken: list[Subscriber] = taken) -> None:
                turn.append("join")
                taken.append(hold(gateway))
                loop.call_soon(turn.append, "next turn")

            loop.call_at(timer.when() + (-1e-9 if first == "join" else 1e-9), join)
            loop.call_at(timer.when(), turn.append, "end")
            await eventually(lambda turn=turn: true("next turn" in turn))  # type: ignore[misc]
            assert turn.index("next turn") == 2, "the join and the end of the linger must be due in the same turn"
            (subscriber,) = taken
            assert (followed(subscriber) is followed(before)) == (first == "join")
            # Whichever feed it is, it is the registered one, follows etcd and gets the event.
            assert list(gateway.registry.feeds) == [followed(subscriber)]
            revision = fake.put(b"/svc/a", b"2")
            feed = followed(subscriber)
            await eventually(lambda feed=feed, at=revision: true(feed.core.history.log.tip >= at))  # type: ignore[misc]
            assert feed.core.history.view is not None
            await eventually(lambda: true((fake.open_watchers, fake.open_streams) == (1, 1)))
            subscriber.release()
            await released(gateway, fake)
            counts: RefCounts[Ranges] = gateway.registry.channels._counts
            assert (len(counts), gateway.registry.channels._linger_timers, gateway.registry._subscribers) == (0, {}, {})
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith(OURS)] == []


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_a_lingering_feed_that_turned_stale_is_joined(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive cache serves a stale view as if it were live, or never recovers after a subscriber joins."""
    await kv.put("/svc/a", "1")
    settings = {"GATEWAY_LINGER": "60s", "GATEWAY_STALE_AFTER": "500ms"}
    async with proxy(etcd.endpoint) as between, gateway(between.endpoint, settings=settings) as server:
        async with joined(server.base):
            pass
        between.cut()
        await kv.transact({"/svc/a": None, "/svc/b": "2"})

        async def stale() -> bool:
            return (await feed_of(server.base)).get("state") == "stale"

        await eventually(stale)
        client = Client()
        await client.join(server.base)
        try:
            await eventually(lambda: true(any(event.type == "status" for event in client.events)))
            told = [event.data.get("state") for event in client.events if event.type in ("synced", "status")]
            assert told == [None, "stale"], "the client must be told at once that its view may be stale"
            assert [key for key, _ in client.mirror.state] == ["/svc/a"]
            between.heal()
            await exact([client], kv)
            await eventually(lambda: true(client.events[-1].data.get("state") == "live"))
            await eventually(lambda: is_held(etcd, 1))
        finally:
            await client.leave()
        assert client.resets == ["initial"]
        assert await feed_of(server.base)
    assert len([line for line in server.lines if line["message"] == "feed start"]) == 1
    await eventually(lambda: is_held(etcd, 0))
