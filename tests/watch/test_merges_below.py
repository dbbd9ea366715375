"""``app.watch.merges_below``: what a gateway below has said holds for a while, and leaves nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.core.events import Batch, KeyValue
from app.core.feed_messages import Progress
from app.core.keys import KeyRange
from app.core.selection import canonical
from app.watch.feed import Feed
from app.watch.merges_below import MergesBelow
from app.watch.subscriber import Subscriber
from tests.support.feeds import followed
from tests.support.waiting import eventually
from tests.watch.world import SVC, StubEtcd, World, settled

OTHER = KeyRange("prefix", b"/other/")
BOTH = canonical((SVC, OTHER))


class Below:
    """A gateway with a stream of each of two ranges, at a gateway of its own."""

    def __init__(self) -> None:
        self.world = World()
        self.merges = MergesBelow(self.world.registry, self.world.etcd)
        self.streams: list[Subscriber] = []
        self.bookmarks = 0

    async def join(self) -> tuple[Feed, Feed]:
        """Follow both ranges."""
        self.streams = [self.world.subscribe(one) for one in (SVC, OTHER)]
        for stream in self.streams:
            stream.owner = self
            await eventually(settled(followed(stream)))
        return followed(self.streams[0]), followed(self.streams[1])

    def on_bookmark_due(self) -> bool:
        """See ``SubscriberOwner``."""
        self.bookmarks += 1
        return True

    def on_close(self) -> None:
        """See ``SubscriberOwner``."""

    def on_expiry(self) -> None:
        """See ``SubscriberOwner``."""

    async def told(self, count: int) -> None:
        """Return as soon as so many bookmarks were due."""

        async def so() -> bool:
            return self.bookmarks == count

        await eventually(so)

    async def leave(self) -> None:
        """End the streams. Nothing is left."""
        self.merges.stop()
        self.merges.stop()
        assert (self.merges._merges, self.merges._tellers, self.merges._timer) == ({}, {}, None)
        for stream in self.streams:
            assert len(followed(stream).tip_followers) == len(followed(stream).history.followers) == 0
            stream.owner = None
            stream.release()
        await self.world.empty()


def put(feed: Feed, revision: int) -> None:
    """An event in the feed's range."""
    feed.history.publish(
        Batch(revision, [KeyValue(feed.range.name + b"%d" % revision, b"", revision, revision, 1)]), 0.0
    )


async def test_quiet_ranges_are_hastened_and_their_tips_told() -> None:
    """As soon as another range has an event."""
    below = Below()
    svc, other = await below.join()
    put(svc, 101)
    assert other._merges_waiting == 0, "nobody merges the two"
    below.merges.note(BOTH, below.streams)
    assert other._merges_waiting == 1, "a tip that the gateway below may have reached"
    other.handle(Progress(101, trusted=True))
    assert (svc._merges_waiting, other._merges_waiting) == (0, 0)
    await below.told(1)
    put(svc, 102)
    assert other._merges_waiting == 1
    below.merges.note(BOTH, below.streams)
    assert other._merges_waiting == 1, "once, however often the gateway below says so"
    assert len(other.tip_followers) == 1
    await below.leave()


async def test_what_a_gateway_below_has_said_holds_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so again while its merge waits. Without that, nothing is left, and nothing looks any more."""
    monkeypatch.setattr("app.watch.merges_below.LEASE", 0.05)
    below = Below()
    svc, other = await below.join()
    put(svc, 101)
    below.merges.note(BOTH, below.streams)
    assert other._merges_waiting == 1

    async def forgotten() -> bool:
        return below.merges._timer is None

    await eventually(forgotten)
    assert other._merges_waiting == 0
    await below.leave()


async def test_streams_that_have_ended_are_forgotten() -> None:
    """Each look drops them. The other streams of the merge go on."""
    below = Below()
    svc, _ = await below.join()
    again = below.world.subscribe(SVC)
    below.merges.note(BOTH, [*below.streams, again])
    again.release()
    assert len(svc.tip_followers) == 2
    below.merges._look()
    assert len(svc.tip_followers) == 1
    await below.leave()


async def test_a_feed_that_has_begun_anew_is_hastened() -> None:
    """The merge is made of the present feeds when the gateway below says it again."""
    below = Below()
    svc, _ = await below.join()
    below.merges.note(BOTH, below.streams)
    below.streams.pop().release()
    below.streams.append(below.world.subscribe(OTHER))
    below.streams[1].owner = below
    other = followed(below.streams[1])
    await eventually(settled(other))
    below.merges.note(BOTH, below.streams)
    put(svc, 101)
    assert other._merges_waiting == 1
    await below.leave()


async def test_merges_that_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without streams here, beyond the limit of channels, where progress proves nothing, and after the end."""
    below = Below()
    await below.join()
    below.merges.note(BOTH, [])
    below.merges.note(BOTH, below.streams[:1])
    assert not below.merges._merges, "the others' events do not come here"
    with monkeypatch.context() as untrusted:
        untrusted.setattr(StubEtcd, "progress_trusted", False)
        below.merges.note(BOTH, below.streams)
    assert not below.merges._merges
    below.world.registry.limits = replace(below.world.registry.limits, max_channels=0)
    below.merges.note(BOTH, below.streams)
    assert not below.merges._merges
    below.merges.stop()
    below.merges.note(BOTH, below.streams)
    assert not below.merges._tellers
    await below.leave()


async def test_a_drain_holds_up_no_merge() -> None:
    """Its streams stay for GATEWAY_DRAIN_WINDOW. Meanwhile the gateway below cannot ask for progress itself."""
    below = Below()
    svc, other = await below.join()
    below.merges.note(BOTH, below.streams)
    below.world.registry.drain()
    put(svc, 101)
    assert other._merges_waiting == 1
    other.handle(Progress(101, trusted=True))
    await below.told(1)
    await below.leave()


async def test_a_gateway_above_is_told_of_the_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who follows etcd asks etcd. What comes from above is passed on."""
    monkeypatch.setattr(StubEtcd, "is_gateway", True)
    below = Below()
    svc, other = await below.join()
    put(svc, 101)
    below.merges.note(BOTH, below.streams[1:])
    assert below.world.etcd.told == [BOTH], "also if another worker has the other stream"
    assert other._merges_waiting == 0
    other.handle(Progress(101, trusted=True))
    await below.told(1)
    await below.leave()
