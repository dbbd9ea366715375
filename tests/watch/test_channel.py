"""``app.watch.channel``: projections and merges at run time."""

from __future__ import annotations

from typing import cast

import pytest

from app.core.errors import OverCapacityError, RangesNeedPinError
from app.core.keys import KeyRange
from app.core.selection import canonical
from app.watch.channel import SelectedChannel
from app.watch.subscriber import Subscriber
from tests.support.waiting import eventually
from tests.watch.world import SVC, StubEtcd, World

OTHER = KeyRange("prefix", b"/other/")
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


async def test_a_merge_needs_progress_that_can_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused for good where it cannot be; a running merge is stale, and ends. A single range goes on."""
    world = World(stale_after=5.0)
    merged, single = world.subscribe(SVC, OTHER), world.subscribe(SVC)
    await joinable(merged, single)
    channel = channel_of(merged)
    monkeypatch.setattr(StubEtcd, "progress_trusted", False)
    with pytest.raises(RangesNeedPinError) as refused:
        world.subscribe(SVC, KeyRange("prefix", b"/third/"))
    assert (refused.value.status, refused.value.code) == (501, "ranges-need-pin")
    channel.check()
    assert (channel.stale_ranges, channel.must_close) == (canonical((SVC, OTHER)), False)
    assert channel.stale_since is not None
    now = world.clock()
    channel._clock = lambda: now + 6.0
    assert channel.must_close
    monkeypatch.setattr(StubEtcd, "progress_trusted", True)
    channel.check()
    assert channel.stale_ranges == ()
    assert not channel.must_close
    merged.release()
    single.release()
    await world.empty()


async def test_the_state_of_the_feeds_is_the_state_of_the_channel() -> None:
    """Stale as soon as one feed is; the ranges say which."""
    world = World()
    merged = world.subscribe(SVC, OTHER)
    await joinable(merged)
    channel = channel_of(merged)
    assert (channel.stale_ranges, channel.trouble) == ((), "")
    feed = world.registry.feeds.get(OTHER)
    assert feed is not None
    feed.stale_since, feed.trouble = 12.0, "no answer"
    assert (channel.stale_ranges, channel.stale_since, channel.trouble) == ((OTHER,), 12.0, "no answer")
    merged.release()
    await world.empty()


async def test_a_reader_ahead_of_a_merge() -> None:
    """Every feed asks for progress, and the snapshot is of all ranges."""
    world = World()
    merged = world.subscribe(SVC, OTHER)
    await joinable(merged)
    channel = channel_of(merged)
    channel.await_catch_up(1)
    feeds = list(world.registry.feeds)
    assert [feed._readers_ahead for feed in feeds] == [1, 1]
    channel.await_catch_up(-1)
    assert await channel.linearizable_revision() == 100
    snapshot = await channel.fresh_snapshot(100)
    assert snapshot is not None
    assert snapshot.revision == 100
    del snapshot
    merged.release()
    assert await channel.fresh_snapshot(100) is None
    await world.empty()


async def test_feeds_are_hastened_while_a_merge_waits_for_them() -> None:
    """And not any longer."""
    world = World()
    merged = world.subscribe(SVC, OTHER)
    await joinable(merged)
    one, other = (cast("object", feed) for feed in world.registry.feeds)
    channel = channel_of(merged)
    channel._haste(set(world.registry.feeds))
    assert [feed._merges_waiting for feed in world.registry.feeds] == [1, 1]
    channel._haste({feed for feed in world.registry.feeds if feed is one})
    assert [feed._merges_waiting for feed in world.registry.feeds] == [1, 0]
    merged.release()
    assert other is not one
    await world.empty()
