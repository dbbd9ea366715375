"""``app.watch.selected_channel``: projections and merges at run time."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import weakref

import pytest

from app.core.errors import RangesNeedPinError, TooLargeError
from app.core.events import Batch, KeyValue
from app.core.feed_messages import Progress
from app.core.keys import KeyRange
from app.core.log import Bounds, Log
from app.core.selection import canonical
from app.watch.feed import Feed
from app.watch.selected_channel import OVERHEAD, RANGE_OVERHEAD
from tests.support.collector import no_collector
from tests.support.size import size
from tests.support.waiting import HANG, eventually, soon
from tests.watch.test_channels import KEY, OTHER, channel_of, joinable
from tests.watch.test_notifier import Calling
from tests.watch.world import SVC, StubEtcd, StubWatch, World, settled


async def test_a_merge_needs_progress_that_can_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused for good where it cannot be; a running merge is stale, and ends. A single range goes on."""
    world = World(stale_after=5.0)
    merged, single = world.subscribe(SVC, OTHER), world.subscribe(SVC)
    await joinable(merged, single)
    channel = channel_of(merged)
    monkeypatch.setattr(StubEtcd, "progress_trusted", False)
    monkeypatch.setattr(StubEtcd, "watch_version", "3.5.1")
    with pytest.raises(RangesNeedPinError) as refused:
        world.subscribe(SVC, KeyRange("prefix", b"/third/"))
    assert (refused.value.status, refused.value.code) == (501, "ranges-need-pin")
    assert "this etcd is 3.5.1: " in str(refused.value), "the version of the member that serves the watches"
    with monkeypatch.context() as connecting:
        connecting.setattr(StubEtcd, "member_known", False)
        world.subscribe(SVC, KeyRange("prefix", b"/third/")).release()  # it waits until the member is known
        channel.check()
        assert channel.stale_ranges == ()
    channel.check()
    assert (channel.stale_ranges, channel.must_close) == (canonical((SVC, OTHER)), False)
    assert channel.stale_since is not None
    now = world.clock()
    channel._clock = lambda: now + 6.0
    assert channel.must_close
    channel._stopped = True
    assert not channel.must_close, "it has ended already"
    channel._stopped = False
    monkeypatch.setattr(StubEtcd, "progress_trusted", True)
    channel.check()
    assert channel.stale_ranges == ()
    assert not channel.must_close
    merged.release()
    single.release()
    await world.empty()


def pass_time(monkeypatch: pytest.MonkeyPatch, feed: Feed, seconds: float, *, proven: bool) -> None:
    """Let *seconds* pass for one feed. *proven*: at the end etcd proves that the feed is current."""
    now = feed._clock() + seconds
    monkeypatch.setattr(feed, "_clock", lambda: now)
    monkeypatch.setattr(StubWatch, "proven_at", lambda _watch, _reached: now if proven else None)
    feed.check_staleness()


async def test_a_merge_is_not_live_before_it_has_sent_what_came_in_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not anybody asks for its state during the outage: a read that comes later must not be called live."""
    world = World()
    merged = world.subscribe(SVC, OTHER)
    await joinable(merged)
    channel = channel_of(merged)
    feeds = sorted(world.registry.feeds, key=lambda feed: feed.range != SVC)
    woken = asyncio.Event()
    channel.notifier.add(listener := Calling(woken.set))
    pass_time(monkeypatch, feeds[1], 40.0, proven=False)
    async with asyncio.timeout(HANG):
        await woken.wait()
    feeds[0].history.publish(Batch(101, [KeyValue(b"/svc/b", b"", 101, 101, 1)]), 0.0)
    pass_time(monkeypatch, feeds[1], 5.0, proven=True)
    assert feeds[1].stale_since is None
    assert list(channel.stale_ranges) == [OTHER], "/svc/b is as old as the outage, and waits"
    await asyncio.sleep(0)
    woken.clear()
    feeds[1].history.advance(101, 0.0)
    assert (channel.stale_ranges, channel.stale_since) == ((), None)
    async with asyncio.timeout(HANG):
        await woken.wait()
    channel.notifier.discard(listener)
    merged.release()
    await world.empty()


async def test_the_state_of_the_feeds_is_the_state_of_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stale as soon as one feed is; the ranges say which."""
    world = World()
    merged = world.subscribe(SVC, OTHER)
    await joinable(merged)
    channel = channel_of(merged)
    assert (channel.stale_ranges, channel.trouble) == ((), "")
    feed = world.registry.feeds.get(OTHER)
    assert feed is not None
    woken = asyncio.Event()
    feed.notifier.add(listener := Calling(woken.set))
    feed.trouble = "no answer"
    pass_time(monkeypatch, feed, 40.0, proven=False)
    async with asyncio.timeout(HANG):
        await woken.wait()
    feed.notifier.discard(listener)
    assert (channel.stale_ranges, channel.stale_since, channel.trouble) == ((OTHER,), feed.stale_since, "no answer")
    merged.release()
    await world.empty()


async def test_a_reader_ahead_of_a_merge() -> None:
    """Every feed asks for progress, and the snapshot is of all ranges."""
    world = World()
    merged = world.subscribe(SVC, OTHER)
    await joinable(merged)
    channel = channel_of(merged)
    listener = Calling(asyncio.Event().set)
    channel.await_tip(listener)
    feeds = list(world.registry.feeds)
    assert [len(feed.tip_notifier) for feed in feeds] == [1, 1]
    channel.ignore_tip(listener)
    assert [len(feed.tip_notifier) for feed in feeds] == [0, 0]
    assert await channel.linearizable_revision() == 100
    snapshot = await channel.fresh_snapshot(100)
    assert snapshot is not None
    assert snapshot.revision == 100
    del snapshot
    merged.release()
    assert await channel.fresh_snapshot(100) is None
    await world.empty()


async def test_a_channel_keeps_no_snapshot_that_was_read_before_its_feed_gave_up_its_view() -> None:
    """The feed needs the memory for its next state. A feed that is a channel drops its own snapshot, too."""
    world = World()
    merged = world.subscribe(SVC, OTHER)
    await joinable(merged)
    feed, memory = next(iter(world.registry.feeds)), world.registry.channels.memory
    for one in world.registry.feeds:
        await eventually(settled(one))  # what a feed has read of older history counts, too
    await soon(lambda: not channel_of(merged)._accounting)
    without = memory.bytes
    assert await channel_of(merged).fresh_snapshot(100) is not None
    await asyncio.sleep(0)  # asyncio lets go of the read's result
    assert memory.bytes > without
    world.registry.feeds.view_reclaimed(feed)
    assert memory.bytes == without
    merged.release()
    await world.empty()


async def test_feeds_are_hastened_while_a_merge_waits_for_them() -> None:
    """And not any longer."""
    world = World()
    merged = world.subscribe(SVC, OTHER)
    await joinable(merged)
    channel = channel_of(merged)
    feeds = sorted(world.registry.feeds, key=lambda feed: feed.range != SVC)
    feeds[0].history.publish(Batch(101, [KeyValue(b"/svc/b", b"", 101, 101, 1)]), 0.0)
    assert [feed._merges_waiting for feed in feeds] == [0, 1]
    assert world.etcd.told == [canonical((SVC, OTHER))], "a gateway above sends the progress by itself then"
    feeds[1].history.advance(101, 0.0)
    assert [feed._merges_waiting for feed in feeds] == [0, 0]
    assert channel.history.log.tip == 101
    feeds[1].history.publish(Batch(102, [KeyValue(b"/other/b", b"", 102, 102, 1)]), 0.0)
    assert [feed._merges_waiting for feed in feeds] == [1, 0]
    merged.release()
    assert [feed._merges_waiting for feed in feeds] == [0, 0]
    await world.empty()


async def test_a_reader_ahead_is_woken_as_soon_as_the_tip_has_moved() -> None:
    """It does not wait until it may read the state afresh."""
    world = World(pins=[SVC])
    narrow = world.subscribe(KEY)
    await joinable(narrow)
    channel = channel_of(narrow)
    feed = channel.sources[0][0]
    await eventually(settled(feed))
    woken = asyncio.Event()
    listener = Calling(woken.set)
    channel.await_tip(listener)
    feed.handle(Progress(200, trusted=True))
    async with asyncio.timeout(HANG):
        await woken.wait()
    assert channel.history.log.tip == 200
    channel.ignore_tip(listener)
    narrow.release()
    await world.registry.aclose()
    await world.empty()


async def test_a_channel_that_does_not_fit_is_closed_and_its_feed_goes_on() -> None:
    """Whoever follows the pin itself did nothing. The channel is not opened again for a while."""
    world = World(pins=[SVC])
    wide = world.subscribe(SVC)
    await joinable(wide)
    await world.told(wide)
    memory = world.registry.channels.memory
    memory.budget.limit = memory.bytes + 10
    narrow = world.subscribe(KEY)

    async def closed() -> bool:
        return narrow.closing is not None

    await eventually(closed)
    assert (narrow.closing, wide.closing) == ("too-large", None)
    assert world.registry.channel((KEY,)) is None
    with pytest.raises(TooLargeError, match="key=/svc/a did not fit"):
        world.subscribe(KEY)
    world.registry.channels._too_large[hash((KEY,))] = 0.0
    memory.budget.limit = 1 << 20
    again = world.subscribe(KEY)
    await joinable(again)
    for subscriber in (narrow, wide, again):
        subscriber.release()
    await world.registry.aclose()
    await world.empty()


@pytest.mark.sized
@pytest.mark.parametrize(
    ("ranges", "length", "channels"),
    [(1, 4, size(50, long=200)), (32, 20, size(12, long=50)), (32, 1500, size(8, long=20))],
)
async def test_a_channel_counts_all_its_memory(ranges: int, length: int, channels: int) -> None:
    """Many channels inside one pin must not take memory that no budget counts, whatever ranges clients choose."""
    world = World(pins=[SVC], max_subscribers=1000, max_channels=1000)
    world.registry.channels.memory.budget.limit = 1 << 30
    first = world.subscribe(KEY)  # warms up what all channels share
    await joinable(first)

    def held() -> tuple[int, int]:
        gc.collect()
        return tracemalloc.get_traced_memory()[0], world.registry.channels.memory.bytes

    tracemalloc.start()
    try:
        used, counted = held()
        subscribers = [
            world.subscribe(
                *(KeyRange("prefix", b"/svc/%d/%d/".ljust(length, b".") % (number, one)) for one in range(ranges))
            )
            for number in range(channels)
        ]
        await joinable(*subscribers)
        await asyncio.sleep(0)
        used, counted = (now - before for now, before in zip(held(), (used, counted), strict=True))
    finally:
        tracemalloc.stop()
    assert 0 < used <= counted
    names = sum(len(one.name) for subscriber in subscribers for one in subscriber.channel.ranges)
    least = channels * (OVERHEAD + ranges * RANGE_OVERHEAD) + names
    assert least <= counted < least + 1024  # the pin may have reserved room for its next state meanwhile
    for subscriber in (first, *subscribers):
        subscriber.release()
    await world.registry.aclose()
    await world.empty()


@pytest.mark.sized
def test_a_batch_of_known_events_counts_all_its_memory() -> None:
    """The events are a feed's own; the batch, its tuple and its entry in the channel's log are not."""
    event = KeyValue(b"/svc/a", b"1", 90, 90, 1)
    log = Log(Bounds(batches=10_000))
    log.restart(0)
    gc.collect()
    tracemalloc.start()
    try:
        for revision in range(1, size(1000, long=4000) + 1):
            log.append(Batch(revision, [event], shared=True), 0.0)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0 < used <= log.bytes * 1.1  # numbers above 256 are objects, too


async def test_an_ended_selection_is_freed() -> None:
    """A client chooses the names of its ranges, and can end 7,000 selections of 48 kB before the collector looks."""
    world = World()
    with no_collector():
        merged = world.subscribe(SVC, KeyRange("prefix", b"/other/"))
        await joinable(merged)
        channel = weakref.ref(merged.channel)
        merged.release()
        del merged
        await world.registry.aclose()
        assert channel() is None
    await world.empty()


async def test_an_ended_feed_is_freed() -> None:
    """A feed and its parts were 38 objects in cycles. The collector looks after 700,000 objects: 500 clients with 32
    ranges each left 180 MB, and the next 500 as much again.
    """
    world = World()
    with no_collector():
        single, merged = world.subscribe(SVC), world.subscribe(SVC, KeyRange("prefix", b"/other/"))
        await world.told(single)
        await joinable(merged)
        feeds = [weakref.ref(feed) for feed in world.registry.feeds]
        single.release()
        merged.release()
        del single, merged
        await world.registry.aclose()
        assert [feed() for feed in feeds] == [None, None]
    await world.empty()


async def test_an_ended_feed_keeps_no_data() -> None:
    """Nothing waits for the garbage collector: a view may have a hundred megabytes, which no budget counts any more."""
    world = World()
    with no_collector():
        wide, merged = world.subscribe(SVC), world.subscribe(SVC, KeyRange("prefix", b"/other/"))
        await joinable(wide, merged)
        held = [weakref.ref(view.snapshot(100)) for each in (wide, merged) if (view := each.channel.history.view)]
        del view
        assert [snapshot() is not None for snapshot in held] == [True, True]
        wide.release()
        merged.release()
        await world.registry.aclose()
        assert [snapshot() for snapshot in held] == [None, None]
    await world.empty()
