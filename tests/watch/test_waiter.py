"""``app.watch.waiter``: waits for what a channel will show, and leaves nothing when the wait is over."""

from __future__ import annotations

import asyncio

import pytest

from app.core.events import Batch, KeyValue
from app.core.feed_messages import Batches, Progress
from app.core.keys import KeyRange
from app.watch.feed import Feed
from app.watch.selected_channel import SelectedChannel
from app.watch.subscriber import Subscriber
from app.watch.waiter import Waiter
from tests.support.waiting import HANG, eventually
from tests.watch.world import SVC, World, settled

NARROW = KeyRange("prefix", b"/svc/a")


def feed_of(subscriber: Subscriber) -> Feed:
    """The feed of a channel that has one."""
    channel = subscriber.channel
    if isinstance(channel, SelectedChannel):
        return channel.sources[0][0]
    assert isinstance(channel, Feed)
    return channel


def clean(subscriber: Subscriber) -> bool:
    """Whether a wait has left nothing."""
    feed = feed_of(subscriber)
    listening = [subscriber.channel.notifier, feed.notifier, feed.tip_notifier]
    return not any(map(len, listening)) and subscriber.owner is None


async def started(world: World, *ranges: KeyRange) -> Subscriber:
    """A subscriber of a channel that can be read."""
    subscriber = world.subscribe(*ranges)
    assert await Waiter(subscriber).until(lambda: subscriber.channel.history.joinable, HANG)
    assert clean(subscriber)
    return subscriber


@pytest.mark.parametrize("ranges", [(SVC,), (NARROW,)])
async def test_the_first_state(ranges: tuple[KeyRange, ...]) -> None:
    """The wait is over as soon as the channel has a state."""
    world = World(pins=[SVC] if ranges != (SVC,) else [], linger=0.0)
    with await started(world, *ranges) as subscriber:
        assert isinstance(subscriber.channel, SelectedChannel) == (ranges != (SVC,))
    world.registry.feeds.stop_pins()
    await world.empty()


@pytest.mark.parametrize("ranges", [(SVC,), (NARROW,)])
async def test_a_revision_that_changes_nothing_in_the_selection(ranges: tuple[KeyRange, ...]) -> None:
    """The tip of a projection wakes nobody but those who wait for a revision, and etcd is asked for it meanwhile."""
    world = World(pins=[SVC] if ranges != (SVC,) else [])
    with await started(world, *ranges) as subscriber:
        feed, history = feed_of(subscriber), subscriber.channel.history

        await eventually(settled(feed))  # what comes with the history for old cursors wakes everybody
        waiting = asyncio.create_task(Waiter(subscriber).until(lambda: history.log.tip >= 102, HANG, ahead=True))
        await asyncio.sleep(0)
        assert len(feed.tip_notifier) == 1
        feed.handle(Batches((Batch(101, [KeyValue(b"/svc/b", b"", 101, 101, 1)]),)))
        feed.handle(Progress(102, trusted=True))

        assert await waiting
        assert clean(subscriber)
    world.registry.feeds.stop_pins()


async def test_the_time_is_over() -> None:
    """What does not come in time is not there; the condition is asked once more."""
    world = World()
    with await started(world) as subscriber:
        asked = 0

        def never() -> bool:
            nonlocal asked
            asked += 1
            return False

        assert not await Waiter(subscriber).until(never, 0.01, ahead=True)
        assert asked >= 2
        assert clean(subscriber)


async def test_the_subscriber_must_close() -> None:
    """A drain ends the wait at once; a condition that is true already counts more."""
    world = World()
    with await started(world) as subscriber:
        waiting = asyncio.create_task(Waiter(subscriber).until(lambda: False, HANG))
        await asyncio.sleep(0)
        subscriber.close("drain")

        assert not await waiting
        assert not await Waiter(subscriber).until(lambda: False, HANG)
        assert await Waiter(subscriber).until(lambda: True, HANG)
        assert clean(subscriber)


async def test_woken_from_elsewhere() -> None:
    """A client that has gone is not a change of the channel, so its connection wakes the wait."""
    world = World()
    gone = False
    with await started(world) as subscriber:
        waiter = Waiter(subscriber)
        waiting = asyncio.create_task(waiter.until(lambda: gone, HANG))
        await asyncio.sleep(0)
        gone = True
        waiter.wake()

        assert await waiting


async def test_cancelled() -> None:
    """A wait that is cancelled leaves nothing."""
    world = World()
    with await started(world) as subscriber:
        waiting = asyncio.create_task(Waiter(subscriber).until(lambda: False, HANG, ahead=True))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

        assert clean(subscriber)
