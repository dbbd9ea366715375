"""``app.watch.channel``: a feed, a projection and a merge are alike to those who follow them."""

from __future__ import annotations

import asyncio

import pytest

from app.core.keys import KeyRange
from app.core.selection import canonical
from app.watch.feed import Feed
from app.watch.selected_channel import SelectedChannel
from tests.support.waiting import HANG
from tests.watch.test_channels import KEY, OTHER, joinable
from tests.watch.test_notifier import Calling
from tests.watch.world import SVC, World


@pytest.mark.parametrize(
    ("pins", "ranges", "watched", "kind"),
    [
        ([], (SVC,), (SVC,), Feed),
        ([SVC], (KEY,), (SVC,), SelectedChannel),
        ([], (SVC, OTHER), canonical((SVC, OTHER)), SelectedChannel),
    ],
    ids=["feed", "projection", "merge"],
)
async def test_all_kinds_are_alike(
    pins: list[KeyRange], ranges: tuple[KeyRange, ...], watched: tuple[KeyRange, ...], kind: type
) -> None:
    """Whoever follows a channel need not know of how many feeds it is made."""
    world = World(pins=pins)
    subscriber = world.subscribe(*ranges)
    await joinable(subscriber)
    channel = subscriber.channel
    assert isinstance(channel, kind)
    assert (channel.ranges, channel.watched, channel.keys) == (canonical(ranges), watched, 1)
    assert (channel.stale_ranges, channel.stale_since, channel.trouble, channel.denied) == ((), None, "", False)
    assert await channel.linearizable_revision() == 100
    snapshot = await channel.fresh_snapshot(100)
    assert snapshot is not None
    assert snapshot.revision == 100
    del snapshot
    awaiting, following = asyncio.Event(), asyncio.Event()
    one, other = Calling(awaiting.set), Calling(following.set)
    channel.await_tip(one)
    channel.follow_tip(other)
    for feed in world.registry.feeds:
        feed._tip_moved()
    async with asyncio.timeout(HANG):
        await awaiting.wait()
        await following.wait()
    channel.ignore_tip(one)
    channel.leave_tip(other)
    channel.leave_tip(other)
    assert [len(feed.tip_notifier) + len(feed.tip_followers) for feed in world.registry.feeds] == [0] * len(watched)
    subscriber.release()
    await world.registry.aclose()
    await world.empty()
