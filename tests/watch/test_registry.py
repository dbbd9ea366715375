"""``app.watch.registry``: who may subscribe, within which limits and quotas, and how all subscribers end."""

from __future__ import annotations

import asyncio

import pytest

from app.core.errors import DrainingError, OverCapacityError
from app.core.feed import State
from app.core.keys import KeyRange
from app.core.quotas import Caller, Quotas, QuotaSettings
from app.core.selection import canonical
from app.watch import registry as module
from app.watch.subscriber import Subscriber
from tests.support.feeds import followed
from tests.support.waiting import eventually
from tests.watch.world import SVC, StubWatch, World

OTHER, PINNED = KeyRange("prefix", b"/other/"), KeyRange("prefix", b"/pinned/")


async def test_all_of_one_range_share_a_feed() -> None:
    """The feed ends with its last subscriber, and each range has its own feed."""
    world = World()
    registry = world.registry
    first, second, other = world.subscribe(), world.subscribe(), world.subscribe(OTHER)
    assert followed(first) is followed(second)
    assert followed(other) is not followed(first)
    assert (len(registry), registry.feeds.started) == (3, 2)
    assert registry.subscribers((SVC,)) == [first, second]
    assert registry.subscribers() == [first, second, other]
    first.release()
    assert registry.feeds.get(SVC) is followed(second)
    second.release()
    assert registry.feeds.get(SVC) is None
    assert followed(second).state is State.CLOSED
    assert list(registry.feeds) == [followed(other)]
    other.release()
    await world.empty()


async def test_no_more_subscribers_than_may_be() -> None:
    """Subscribers that are leaving count until they have left."""
    world = World(max_subscribers=1)
    only = world.subscribe()
    only.close("max-age")
    with pytest.raises(OverCapacityError, match="GATEWAY_MAX_SUBSCRIBERS is 1") as refused:
        world.registry.check((SVC,))
    assert refused.value.code == "too-many-subscribers"
    only.release()
    world.registry.check((SVC,))
    await world.empty()


async def test_streams_that_have_not_left_a_failed_channel_keep_no_room_for_it() -> None:
    """At the hub, the workers' streams count until they leave. Meanwhile another range may take the feed's place."""
    world = World(serves_workers=True, max_feeds=1)
    registry = world.registry
    leaving = registry.admit((SVC,), caller=None, has_cursor=False)
    feed = followed(leaving)
    feed._fail("unavailable")
    assert leaving.closing == "unavailable"
    held = world.subscribe(OTHER)
    with pytest.raises(OverCapacityError) as refused:
        registry.admit((SVC,), caller=None, has_cursor=False)
    assert refused.value.code == "too-many-feeds"
    for subscriber in (leaving, held):
        subscriber.release()
    await world.empty()


async def test_a_denial_by_etcd_reaches_who_is_leaving() -> None:
    """A slow client that takes the rest before its ``drain`` may not read on if etcd's roles deny the range."""
    world = World()
    leaving = world.subscribe()
    leaving.close("drain")
    followed(leaving)._fail("revoked")

    assert leaving.closing == "revoked"
    leaving.release()
    await world.empty()


async def test_a_quota_is_held_from_the_join_to_the_release() -> None:
    """What is refused holds nothing; a release, or the end of a feed, gives the quota back, once."""
    world = World(linger=0.0)
    quotas = world.registry.quotas = Quotas(QuotaSettings(identity_streams=2, identity_selections=1))
    caller, other = Caller("token:a", "10.0.0.1"), Caller("token:b", "10.0.0.1")

    def join(caller: Caller, watched: KeyRange = SVC) -> Subscriber:
        return world.registry.subscribe(
            (watched,), address="", user_agent="", request_id="", has_cursor=False, caller=caller
        )

    first, second = join(caller), join(caller)
    for refuse in (join, lambda who: world.registry.check((SVC,), who), lambda who: join(who, OTHER)):
        with pytest.raises(OverCapacityError, match="GATEWAY_IDENTITY_STREAMS is 2"):
            refuse(caller)
    third = join(other)
    assert len(quotas.identities) == 2
    first.release()
    first.release()
    with pytest.raises(OverCapacityError, match="GATEWAY_IDENTITY_SELECTIONS is 1"):
        join(caller, OTHER)
    assert world.registry.feeds.get(OTHER) is None
    feed = followed(second)
    world.registry.feeds.failed(feed, "too-large")  # its subscribers leave by themselves
    for left in (second, third):
        left.release()
    assert len(quotas.identities) == 0
    join(caller, OTHER).release()
    await world.empty()


async def test_the_feeds_of_an_identity_are_counted_without_pins() -> None:
    """Each distinct range counts once, however many selections have it; a range inside a pin costs nothing."""
    world = World(linger=0.0, pins=(PINNED,))
    quotas = world.registry.quotas = Quotas(QuotaSettings(identity_feeds=2))
    caller, other = Caller("token:a", "10.0.0.1"), Caller("token:b", "10.0.0.1")
    inside = KeyRange("prefix", PINNED.name + b"a/")

    def join(*ranges: KeyRange, who: Caller = caller) -> Subscriber:
        return world.registry.subscribe(
            canonical(ranges), address="", user_agent="", request_id="", has_cursor=False, caller=who
        )

    held = [join(SVC), join(SVC, OTHER), join(inside), join(SVC, inside)]
    third = KeyRange("prefix", b"/third/")
    for ranges in ((third,), (third, inside)):
        with pytest.raises(OverCapacityError, match="would follow 3 distinct ranges; GATEWAY_IDENTITY_FEEDS is 2"):
            join(*ranges)
    assert world.registry.feeds.get(third) is None
    join(third, who=other).release()
    with pytest.raises(OverCapacityError, match="would follow 3 distinct ranges"):  # though it holds nothing
        join(SVC, OTHER, third, who=other)
    held.pop(1).release()
    join(third).release()
    for subscriber in held:
        subscriber.release()
    assert len(quotas.identities) == 0
    await world.registry.aclose()
    await world.empty()


async def test_a_drain_sends_all_away_and_lets_nobody_in() -> None:
    """Lingering feeds end at once; the subscribers are asked to leave, spread over the window."""
    world = World(linger=1000.0, drain_window=0.1, drain_pace=1e6)
    world.subscribe(OTHER).release()
    members = [world.subscribe() for _ in range(3)]
    assert world.registry.drain() >= 0.0
    assert [feed.range for feed in list(world.registry.feeds)] == [SVC]
    with pytest.raises(DrainingError):
        world.subscribe()

    async def asked() -> bool:
        return [member.closing for member in members] == ["drain"] * 3

    await eventually(asked)
    for member in members:
        member.release()
    await world.empty()


async def test_those_whose_turn_has_not_come_are_sent_away_too() -> None:
    """At the end of a stop's time, the remaining subscribers are asked to leave, too."""
    world = World(drain_window=1000.0, drain_pace=0.001)
    members = [world.subscribe() for _ in range(3)]
    assert world.registry.drain() > 0
    world.registry.close_all()
    assert [member.closing for member in members] == ["drain"] * 3
    await world.registry.aclose()
    assert list(world.registry.feeds) == []
    assert [followed(member).state for member in members] == [State.CLOSED] * 3
    for member in members:
        member.release()  # its feed is gone: the release does nothing
    assert len(world.registry) == 0


async def test_readers_drop_what_their_feed_gives_up() -> None:
    """Otherwise a half-sent part of the old state would keep its memory."""
    world = World()
    with_reader, without = world.subscribe(), world.subscribe()
    dropped: list[str] = []

    class Reader:
        def drop_snapshot(self) -> None:
            dropped.append("snapshot")

    with_reader.reader = Reader()  # type: ignore[assignment]
    world.registry.feeds.view_reclaimed(followed(with_reader))
    assert dropped == ["snapshot"]
    with_reader.release()
    without.release()
    await world.empty()
    world.registry.feeds.view_reclaimed(followed(with_reader))
    assert dropped == ["snapshot"], "only the first reclaim may reach the readers: a feed that has ended has none"


async def test_staleness_is_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Staleness is checked again and again, and the registry awaits the feeds that have ended."""
    monkeypatch.setattr(module, "TICK", 0.0)
    world = World()
    subscriber = world.subscribe()
    await world.told(subscriber)
    looked = asyncio.Event()
    monkeypatch.setattr(followed(subscriber), "check_staleness", looked.set)
    running = asyncio.create_task(world.registry.run())
    await looked.wait()
    subscriber.release()

    async def joined() -> bool:
        return not world.registry.feeds._ended

    await eventually(joined)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await world.empty()


async def test_what_is_stale_is_stale_during_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last streams stay for GATEWAY_DRAIN_WINDOW. If etcd is lost meanwhile, they must not say `live`."""
    world = World(pins=[SVC], stale_after=5.0)
    subscriber = world.subscribe()
    await world.told(subscriber)
    feed, registry = followed(subscriber), world.registry
    registry.drain()
    registry.channels.check_all()
    stale = [feed.stale_ranges]
    later = world.clock() + 6.0
    monkeypatch.setattr(StubWatch, "proven_at", lambda _watch, _reached: None)
    feed._clock = lambda: later
    registry.channels.check_all()
    assert [*stale, feed.stale_ranges] == [(), (SVC,)]
    subscriber.release()
    registry.channels.check_all()
    assert len(registry.feeds) == 0, "a pin does not start again"
    await world.empty()
