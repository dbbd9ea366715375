"""Whoever asks for history never costs those who follow; and whoever waits for anything is told in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.cases.clients import Client, joined, true
from tests.support.fake_etcd import FakeEtcd, Watcher
from tests.support.gateway import STALE_SOON, gateway
from tests.support.streams import watch
from tests.support.waiting import eventually

# The proof of a history never comes in these tests: whether this is long does not matter to those who follow.
SETTINGS = {"GATEWAY_SYNC_TIMEOUT": "2s", "GATEWAY_LINGER": "60s"}


class SlowEtcd(FakeEtcd):
    """One whose history up to ``slow_up_to`` takes for ever to read, as over a link that is too narrow for it."""

    slow_up_to = 0

    def is_held(self, watcher: Watcher) -> bool:
        """See ``FakeEtcd``."""
        return watcher.next <= self.slow_up_to or super().is_held(watcher)

    def creates(self) -> int:
        """Watches that were ever asked for."""
        return len(self.asked.creates)


@pytest.fixture(name="fake")
async def _fake() -> AsyncIterator[SlowEtcd]:
    async with SlowEtcd() as fake:
        fake.put(b"/svc/a", b"0")
        yield fake


async def old_client(fake: SlowEtcd, base: str) -> Client:
    """Somebody whose cursor is from before what takes for ever to read."""
    old = Client()
    await old.adopt(base)
    for n in range(20):
        fake.slow_up_to = fake.put(b"/svc/a", b"%d" % n)
    return old


async def test_an_old_cursor_costs_those_who_follow_nothing(fake: SlowEtcd) -> None:
    """While it waits in vain, they are told what happens; then it is reset, and the next like it at once."""
    async with gateway(fake.endpoint, settings=SETTINGS) as server:
        old = await old_client(fake, server.base)
        async with joined(server.base) as (follower,):
            await old.join(server.base)
            await fake.until(lambda: fake.creates() == 2)
            for n in range(3):
                revision = fake.put(b"/svc/b", b"%d" % n)
                await eventually(lambda at=revision: true(follower.mirror.revision >= at))  # type: ignore[misc]
            await eventually(lambda: true(old.mirror.synced))
            assert old.resets == ["unproven"]
            await old.leave()
            again = Client()
            again.cursor = f"{(old.cursor or '').partition('-')[0]}-2"
            await again.join(server.base)
            await eventually(lambda: true(again.mirror.synced))
            await again.leave()
            assert again.resets == ["unproven"]
            assert fake.creates() == 2, "the same is not read again at once"
            revision = fake.put(b"/svc/b", b"end")
            await eventually(lambda: true(follower.mirror.revision >= revision))

        assert (follower.resets, follower.mirror.changes) == (["initial"], 4)
        assert await feed_watchers(fake) == 1


async def feed_watchers(fake: SlowEtcd) -> int:
    """Those that etcd is left with."""
    await fake.until(lambda: fake.open_watchers == 1)
    return fake.open_watchers


async def test_a_start_for_an_old_cursor_costs_those_who_join_nothing(fake: SlowEtcd) -> None:
    """The feed starts for the one with a cursor; all the others are served from its first snapshot at once."""
    settings = SETTINGS | {"GATEWAY_SYNC_TIMEOUT": "60s"}
    async with gateway(fake.endpoint, settings=settings) as server:
        old = await old_client(fake, server.base)
        await old.join(server.base)
        await fake.until(lambda: fake.creates() == 2)
        async with joined(server.base, count=3) as others:
            revision = fake.put(b"/svc/b", b"1")
            for other in others:
                await eventually(lambda one=other, at=revision: true(one.mirror.revision >= at))  # type: ignore[misc]
            assert old.resets == [], "it waits still"
            fake.slow_up_to = 0
            fake.release()
            await eventually(lambda: true(old.mirror.revision >= revision))
        await old.leave()

        assert (old.resets, old.mirror.changes) == ([], 21)
        assert [other.resets for other in others] == [["initial"]] * 3


async def test_many_histories_take_turns(fake: SlowEtcd) -> None:
    """More ranges than may read at a time: the rest waits, and what etcd holds for it is bounded."""
    ranges = [f"/r{n:03}/" for n in range(60)]
    for prefix in ranges:
        fake.put(f"{prefix}a".encode(), b"0")
    async with gateway(fake.endpoint, settings=SETTINGS | {"GATEWAY_SYNC_TIMEOUT": "60s"}) as server:
        clients = [Client(f"prefix={prefix}") for prefix in ranges]
        for client in clients:
            await client.adopt(server.base)
        for prefix in ranges:
            fake.slow_up_to = fake.put(f"{prefix}a".encode(), b"1")
        for client in clients:
            await client.join(server.base)
        await fake.until(lambda: fake.open_watchers == len(ranges) + 32)
        fake.slow_up_to = 0
        fake.release()
        for client in clients:
            await eventually(lambda one=client: true(one.mirror.synced))  # type: ignore[misc]
            await client.leave()
        await fake.until(lambda: fake.open_watchers == len(ranges))

        assert [(client.resets, client.mirror.changes) for client in clients] == [([], 1)] * len(ranges)


async def test_a_joiner_of_a_feed_in_doubt_is_told(fake: SlowEtcd) -> None:
    """etcd leaves during a fresh start's snapshot: those who had a view keep it, and nobody waits for ever."""
    async with (
        gateway(fake.endpoint, settings=STALE_SOON) as server,
        joined(server.base) as (follower,),
    ):
        fake.hold_ranges()
        fake.hold()
        for n in range(3):
            revision = fake.put(b"/svc/a", b"%d" % n)
        fake.compact(revision)
        fake.release()
        await fake.until(lambda: fake.ranges_in_flight > 0)
        streams = [await watch(server.base, "prefix=/svc/") for _ in range(2)]
        ahead = await watch(server.base, "prefix=/svc/", {"Last-Event-ID": f"{(follower.cursor or '')[:9]}999"})
        fake.fail_ranges(100)  # those that are under way, too
        await fake.stop()
        for stream in (*streams, ahead):
            events = await stream.until("close")
            assert events[-1].data["reason"] == "unavailable"
            assert [event.type for event in events if event.type in ("reset", "put", "synced")] == []
            await stream.close()
        async with httpx.AsyncClient(base_url=server.base, trust_env=False) as http:  # the next need not wait at all
            assert (await http.get("/v1/watch?prefix=/svc/")).status_code == 503
        assert follower.resets == ["initial"]


async def test_a_cursor_that_nobody_can_judge_is_told(fake: SlowEtcd) -> None:
    """Ahead of a feed that is served, while etcd is away: a state older than the cursor must not be shown."""
    async with gateway(fake.endpoint, settings=STALE_SOON) as server, joined(server.base) as (follower,):
        cursor = f"{(follower.cursor or '')[:9]}999"
        fake.hold_ranges()
        ahead = await watch(server.base, "prefix=/svc/", {"Last-Event-ID": cursor})
        fake.fail_ranges(100)  # those that are under way, too
        await fake.stop()
        events = await ahead.until("close")
        await ahead.close()

    assert events[-1].data["reason"] == "unavailable"
    assert [event.type for event in events if event.type in ("reset", "put", "synced")] == []
