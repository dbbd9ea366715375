"""``app.watch.channels``: which streams share a channel, when channels linger and end, and how many there may be."""

from __future__ import annotations

import pytest

from app.core.errors import OverCapacityError, UnavailableError
from app.core.keys import KeyRange
from app.ports import Condition
from app.watch.selected_channel import SelectedChannel
from app.watch.subscriber import Subscriber
from tests.support.feeds import followed
from tests.support.waiting import eventually
from tests.watch.world import SVC, StubEtcd, World

OTHER, THIRD = KeyRange("prefix", b"/other/"), KeyRange("prefix", b"/third/")
KEY = KeyRange("key", b"/svc/a")


def channel_of(subscriber: Subscriber) -> SelectedChannel:
    """The channel, which must not be a feed."""
    assert isinstance(subscriber.channel, SelectedChannel)
    return subscriber.channel


async def joinable(*subscribers: Subscriber) -> None:
    """Return once all may be served."""

    async def so() -> bool:
        return all(subscriber.channel.history.joinable for subscriber in subscribers)

    await eventually(so)


async def test_equal_selections_share_a_channel() -> None:
    """Whatever the order of the ranges, and whatever lies inside another; the feeds end with the last channel."""
    world = World()
    one, other = world.subscribe(SVC, OTHER), world.subscribe(OTHER, KEY, SVC)
    alone = world.subscribe(SVC)
    assert one.channel is other.channel
    assert (len(world.registry.feeds), len(world.etcd.open)) == (2, 2)
    await joinable(one, alone)
    assert one.channel.keys == 1
    one.release()
    other.release()
    assert [feed.range for feed in world.registry.feeds] == [SVC]
    assert channel_of(one).bytes == 0
    alone.release()
    await world.empty()


async def test_a_feed_that_fails_ends_the_channels_on_it() -> None:
    """One denied range ends the whole stream; the other feed's readers notice nothing."""
    world = World()
    merged, single = world.subscribe(SVC, OTHER), world.subscribe(OTHER)
    await joinable(merged, single)
    feed = world.registry.feeds.get(SVC)
    assert feed is not None
    feed._fail("revoked")
    assert (merged.closing, single.closing) == ("revoked", None)
    assert [feed.range for feed in world.registry.feeds] == [OTHER]
    merged.release()
    single.release()
    await world.empty()


async def test_the_limit_of_channels() -> None:
    """Lingering channels give way; with none left, a new selection is refused by its own code."""
    world = World(linger=1000.0, max_channels=2)
    world.subscribe(SVC).release()
    held = [world.subscribe(KEY), world.subscribe(OTHER)]
    assert world.registry.channel((SVC,)) is None
    with pytest.raises(OverCapacityError, match="GATEWAY_MAX_CHANNELS is 2") as refused:
        world.subscribe(SVC)
    assert refused.value.code == "too-many-channels"
    held.append(world.subscribe(OTHER))
    for subscriber in held:
        subscriber.release()
    await world.registry.aclose()
    await world.empty()


async def test_the_limit_of_feeds_counts_each_range_of_a_merge() -> None:
    """A lingering channel whose feed is needed does not take the feed with it."""
    world = World(linger=1000.0, max_feeds=2)
    world.subscribe(SVC).release()
    merged = world.subscribe(SVC, OTHER)
    assert {feed.range for feed in world.registry.feeds} == {SVC, OTHER}
    with pytest.raises(OverCapacityError) as refused:
        world.subscribe(OTHER, KEY)
    assert refused.value.code == "too-many-feeds"
    world.subscribe(OTHER).release()
    merged.release()
    await world.registry.aclose()
    await world.empty()


async def test_a_feed_that_nobody_holds_lingers() -> None:
    """A new subscriber finds a lingering feed unchanged; otherwise the feed ends when its linger time is over."""
    world = World(linger=1000.0)
    registry, channels = world.registry, world.registry.channels
    first = world.subscribe()
    await world.told(first)
    feed = followed(first)
    first.release()
    assert registry.statistics((SVC,)).feeds[0].lingering
    second = world.subscribe()
    assert followed(second) is feed
    assert not registry.statistics((SVC,)).feeds[0].lingering
    assert channels._linger_timers == {}
    second.release()
    channels._linger_timers[(SVC,)].cancel()
    channels._expire((SVC,))
    await world.empty()


async def test_a_new_range_takes_the_place_of_one_that_lingers() -> None:
    """A new range replaces the range that has lingered longest."""
    world = World(linger=1000.0, max_feeds=2)
    for watched in (SVC, OTHER):
        world.subscribe(watched).release()
    third = world.subscribe(THIRD)
    assert [feed.range for feed in list(world.registry.feeds)] == [OTHER, THIRD]
    held = world.subscribe(OTHER)
    with pytest.raises(OverCapacityError, match="GATEWAY_MAX_FEEDS is 2") as refused:
        world.subscribe(SVC)
    assert refused.value.code == "too-many-feeds"
    again = world.subscribe(THIRD)  # an existing range needs no place
    for subscriber in (third, held, again):
        subscriber.release()
    for watched in (OTHER, THIRD):
        world.registry.channels._expire((watched,))
    await world.empty()


async def test_an_etcd_out_of_reach_refuses_whom_no_feed_can_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber whose range has a state is served from that state."""
    world = World()
    served = world.subscribe()
    await world.told(served)
    down = Condition("127.0.0.1:2379", "", "down", 0.0, "connection refused")
    monkeypatch.setattr(StubEtcd, "condition", down)
    second = world.subscribe()
    with pytest.raises(UnavailableError):
        world.subscribe(OTHER)
    assert world.registry.feeds.get(OTHER) is None
    served.release()
    second.release()
    await world.empty()
