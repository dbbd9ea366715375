"""A client that asks for history never costs the subscribers that follow anything, and every waiting client gets an
answer in the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.cases.clients import Client, joined, true
from tests.support.fake_etcd import FakeEtcd, Watcher
from tests.support.gateway import STALE_SOON, gateway
from tests.support.streams import watch
from tests.support.waiting import eventually

# The history is never proven in these tests: a long timeout makes no difference to the followers.
SETTINGS = {"GATEWAY_SYNC_TIMEOUT": "2s", "GATEWAY_LINGER": "60s"}
# From the first read that etcd holds on, all clients must have come before the gateway leaves etcd, a second later.
STALE_LATER = {"GATEWAY_STALE_AFTER": "8s"}


class SlowEtcd(FakeEtcd):
    """A fake etcd that never finishes reading its history up to ``slow_up_to``, as over a link that is too narrow."""

    slow_up_to = 0

    def is_held(self, watcher: Watcher) -> bool:
        """See ``FakeEtcd``."""
        return watcher.next <= self.slow_up_to or super().is_held(watcher)

    def creates(self) -> int:
        """How many watches of /svc/ were ever requested. The gateway tries a link with a watch, too, on another key."""
        return sum(create.key == b"/svc/" for create in self.asked.creates)


@pytest.fixture(name="fake")
async def _fake() -> AsyncIterator[SlowEtcd]:
    async with SlowEtcd() as fake:
        fake.put(b"/svc/a", b"0")
        yield fake


async def old_client(fake: SlowEtcd, base: str) -> Client:
    """A client whose cursor is older than the history that is never read to its end."""
    old = Client()
    await old.adopt(base)
    for n in range(20):
        fake.slow_up_to = fake.put(b"/svc/a", b"%d" % n)
    return old


async def test_an_old_cursor_costs_those_who_follow_nothing(fake: SlowEtcd) -> None:
    """While an old cursor waits in vain, followers get their events; it is reset, and the next one at once."""
    async with gateway(fake.endpoint, settings=SETTINGS, program=("tests.support.seldom",)) as server:
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
            assert fake.creates() == 2, "a second client must not read the same history again"
            revision = fake.put(b"/svc/b", b"end")
            await eventually(lambda: true(follower.mirror.revision >= revision))

        assert (follower.resets, follower.mirror.changes) == (["initial"], 4)
        assert await feed_watchers(fake) == 1


async def feed_watchers(fake: SlowEtcd) -> int:
    """The watchers that etcd still has."""
    await fake.until(lambda: fake.open_watchers == 1)
    return fake.open_watchers


async def test_a_start_for_an_old_cursor_costs_those_who_join_nothing(fake: SlowEtcd) -> None:
    """The feed starts for the client with a cursor; all others are served at once from its first snapshot."""
    settings = SETTINGS | {"GATEWAY_SYNC_TIMEOUT": "60s"}
    async with gateway(fake.endpoint, settings=settings) as server:
        old = await old_client(fake, server.base)
        await old.join(server.base)
        await fake.until(lambda: fake.creates() == 2)
        async with joined(server.base, count=3) as others:
            revision = fake.put(b"/svc/b", b"1")
            for other in others:
                await eventually(lambda one=other, at=revision: true(one.mirror.revision >= at))  # type: ignore[misc]
            assert old.resets == [], "the client with the old cursor must still wait"
            fake.slow_up_to = 0
            fake.release()
            await eventually(lambda: true(old.mirror.revision >= revision))
        await old.leave()

        assert (old.resets, old.mirror.changes) == ([], 21)
        assert [other.resets for other in others] == [["initial"]] * 3


async def test_many_histories_take_turns(fake: SlowEtcd) -> None:
    """When too many ranges want to read history, the rest wait, and etcd holds a bounded amount for them."""
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
    """etcd leaves during a fresh start's snapshot: subscribers with a view keep it, and no joiner waits for ever."""
    async with (
        gateway(fake.endpoint, settings=STALE_LATER) as server,
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
        fake.fail_ranges(100)  # including those under way
        await fake.stop()
        for stream in (*streams, ahead):
            events = await stream.until("close")
            assert events[-1].data["reason"] == "unavailable"
            assert [event.type for event in events if event.type in ("reset", "put", "synced")] == []
            await stream.close()
        # the next client need not wait at all
        async with httpx.AsyncClient(base_url=server.base, trust_env=False) as http:
            assert (await http.get("/v1/watch?prefix=/svc/")).status_code == 503
        assert follower.resets == ["initial"]


async def test_a_cursor_that_nobody_can_judge_is_told(fake: SlowEtcd) -> None:
    """A cursor ahead of a served feed is refused while etcd is away: a state older than the cursor must not be
    shown.
    """
    async with gateway(fake.endpoint, settings=STALE_SOON) as server, joined(server.base) as (follower,):
        cursor = f"{(follower.cursor or '')[:9]}999"
        fake.hold_ranges()
        ahead = await watch(server.base, "prefix=/svc/", {"Last-Event-ID": cursor})
        fake.fail_ranges(100)  # including those under way
        await fake.stop()
        events = await ahead.until("close")
        await ahead.close()

    assert events[-1].data["reason"] == "unavailable"
    assert [event.type for event in events if event.type in ("reset", "put", "synced")] == []
