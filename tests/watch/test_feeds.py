"""``app.watch.feeds``: one feed per range, held by channels, and pins that live as long as the process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from app.core.errors import PinUnavailableError, TooLargeError
from app.core.events import Batch, KeyValue
from app.core.feed import State
from app.core.feed_messages import Batches, Lost, Refused, RetryDue
from app.core.keys import KeyRange
from app.core.snapshot import Snapshot
from app.watch import feeds as module
from tests.support.feeds import followed
from tests.support.waiting import eventually
from tests.watch.world import SVC, A, World, settled

INSIDE, OTHER = KeyRange("prefix", b"/svc/x/"), KeyRange("prefix", b"/other/")


async def live(world: World) -> None:
    """Return once the pinned feed is live and has read its older history, and the registry knows that."""

    async def so() -> bool:
        world.registry.feeds.check_all()
        feed = world.registry.feeds.get(SVC)
        return feed is not None and world.registry.feeds.pins[SVC].settled and await settled(feed)()

    await eventually(so)


def too_large(world: World) -> Callable[..., Awaitable[tuple[Snapshot, int]]]:
    """What replaces the read of a snapshot, for a state that can never fit."""

    async def read(_ranges: Sequence[KeyRange], budget: Callable[[int], None], *, newest: bool) -> tuple[Snapshot, int]:
        del newest
        budget(world.registry.channels.memory.budget.limit + 1)
        raise AssertionError("the budget has room for more than its limit")

    return read


async def test_a_pin_lives_without_subscribers_and_serves_all_inside() -> None:
    """With everything pinned, the number of watches at etcd is a constant."""
    world = World(pins=[SVC])
    assert not world.registry.feeds.pins[SVC].settled
    await live(world)
    members = [world.subscribe(SVC), world.subscribe(INSIDE), world.subscribe(INSIDE, KeyRange("key", b"/svc/a"))]
    assert len(world.registry.feeds) == len(world.etcd.open) == 1
    (feed,) = world.registry.statistics().feeds
    assert (feed.pinned, len(feed.holders), feed.subscribers, feed.lingering) == (True, 3, 3, False)
    for member in members:
        member.release()
    (feed,) = world.registry.statistics().feeds
    assert (feed.holders, feed.subscribers, feed.lingering) == ((), 0, False)
    assert len(world.etcd.open) == 1
    await world.registry.aclose()
    await world.empty()


async def test_a_wider_range_has_its_own_watch() -> None:
    """A pin has only a part of it."""
    world = World(pins=[SVC])
    await live(world)
    wide = world.subscribe(KeyRange("prefix", b"/s"))
    assert len(world.registry.feeds) == 2
    wide.release()
    assert len(world.registry.feeds) == 1
    await world.registry.aclose()
    await world.empty()


async def test_a_pin_that_does_not_fit_is_unavailable_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranges get no watches of their own; readiness does not wait for it."""
    world = World(pins=[SVC])
    pin = world.registry.feeds.pins[SVC]
    with monkeypatch.context() as patch:
        patch.setattr(world.etcd, "snapshot", too_large(world))
        world.registry.feeds.check_all()

        async def failed() -> bool:
            return pin.trouble != ""

        await eventually(failed)
    assert pin.settled
    with pytest.raises(PinUnavailableError) as refused:
        world.subscribe(INSIDE)
    assert refused.value.code == "pin-unavailable"
    assert len(world.registry.feeds) == 0
    now = world.clock()
    world.registry.feeds._clock = lambda: now + module.PAUSE + 1
    await live(world)
    world.subscribe(INSIDE).release()
    await world.registry.aclose()
    await world.empty()


async def test_a_denied_pin_is_named_and_does_not_hold_up_readiness() -> None:
    """It is tried again: somebody may grant the role."""
    world = World(pins=[SVC])
    world.registry.feeds.check_all()
    feed = world.registry.feeds.get(SVC)
    assert feed is not None
    feed._from_watch(Refused("etcdserver: permission denied", denied=True))
    world.registry.feeds.check_all()
    pin = world.registry.feeds.pins[SVC]
    assert (pin.settled, pin.trouble) == (True, "etcdserver: permission denied")
    with pytest.raises(PinUnavailableError):
        world.subscribe(INSIDE)

    async def live_again() -> bool:
        world.registry.feeds.check_all()
        return not pin.trouble

    await eventually(live_again)
    await world.registry.aclose()
    await world.empty()


async def test_a_pin_reserves_its_bytes_twice_while_there_is_room() -> None:
    """A fresh start has room beside the old view, whatever other ranges have taken meanwhile."""
    world = World(pins=[SVC])
    await live(world)
    feed = world.registry.feeds.get(SVC)
    assert feed is not None
    memory = world.registry.channels.memory
    world.registry.feeds.check_all()
    assert world.registry.statistics().feeds[0].reserved == A.size
    assert memory.bytes == feed.core.bytes + A.size

    # Other ranges never get the reserve, but the next state does.
    other = memory.hold()
    rest = memory.budget.limit - memory.bytes
    assert not other.grow(rest + 1, lambda _more: None)
    assert other.grow(rest, lambda _more: None)
    before = world.etcd.snapshots
    feed.restored()

    async def live_again() -> bool:
        return world.etcd.snapshots > before and feed.state is State.LIVE

    assert not feed.history.view_reclaimed
    await eventually(live_again)
    assert feed.history.reason == "restored"
    assert world.registry.statistics().feeds[0].reserved == 0
    world.registry.feeds.check_all()
    assert world.registry.statistics().feeds[0].reserved == A.size
    other.release()
    await world.registry.aclose()
    await world.empty()


async def test_a_pin_that_has_no_room_for_both_gives_up_its_old_state(caplog: pytest.LogCaptureFixture) -> None:
    """Its readers get `stale`, then `reset`. Without room, nothing is reserved."""
    world = World(pins=[SVC])
    memory = world.registry.channels.memory
    other = memory.hold()
    assert other.grow(memory.budget.limit - A.size, lambda _more: None)
    await live(world)
    feed = world.registry.feeds.get(SVC)
    assert feed is not None
    world.registry.feeds.check_all()
    assert world.registry.statistics().feeds[0].reserved == 0
    before = world.etcd.snapshots
    feed.restored()

    async def live_again() -> bool:
        return world.etcd.snapshots > before and feed.state is State.LIVE

    await eventually(live_again)
    assert "feed gives up its old state for the new one" in caplog.messages
    assert "feed stale" in caplog.messages
    other.release()
    await world.registry.aclose()
    await world.empty()


async def test_no_pin_reserves_while_another_has_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the reserve of a pin that was read first could keep the next one out for ever."""
    world = World(pins=[SVC, OTHER])
    budget = world.registry.channels.memory.budget
    size = budget.limit // 2
    read = world.etcd.snapshot

    async def large(ranges: Sequence[KeyRange], take: Callable[[int], None], *, newest: bool) -> tuple[Snapshot, int]:
        del newest
        if ranges[0] == SVC:
            return await read(ranges, take)
        await let.wait()
        take(size)
        return Snapshot.of(100, [KeyValue(b"/other/a", b"x" * (size - 300), 90, 90, 1)]), 1

    let = asyncio.Event()
    monkeypatch.setattr(world.etcd, "snapshot", large)
    await live(world)
    assert [feed.reserved for feed in world.registry.statistics().feeds] == [0, 0]
    let.set()

    async def both() -> bool:
        world.registry.feeds.check_all()
        return [pin.state for pin in world.registry.feeds.pin_statistics()] == ["held", "held"]

    await eventually(both)
    world.registry.feeds.check_all()
    # Only the small one has room for its next state.
    assert [feed.reserved for feed in world.registry.statistics().feeds] == [A.size, 0]
    await world.registry.aclose()
    await world.empty()


async def test_a_pin_grows_into_its_reserve() -> None:
    """A pin must not fail because of what it reserves for later."""
    world = World(pins=[SVC])
    await live(world)
    feed = world.registry.feeds.get(SVC)
    assert feed is not None
    await eventually(settled(feed))  # history that is not proven yet would be dropped before the reserve
    world.registry.feeds.check_all()
    memory = world.registry.channels.memory
    needed = memory.hold()
    assert memory.grow(feed, needed, memory.budget.limit - feed.core.bytes)
    assert world.registry.statistics().feeds[0].reserved == 0
    needed.release()
    await world.registry.aclose()
    await world.empty()


async def test_lingering_channels_inside_a_pin_give_way_to_the_pin() -> None:
    """The pin does not end with them, unlike the feed of a range that nobody pinned."""
    world = World(pins=[SVC], linger=1000.0)
    await live(world)
    feed = world.registry.feeds.get(SVC)
    assert feed is not None
    memory = world.registry.channels.memory
    world.subscribe(SVC).release()
    world.subscribe(INSIDE).release()
    await asyncio.sleep(0)
    now = world.registry.statistics()
    assert (now.channels, now.channels_lingering) == (2, 2)
    needed = memory.hold()
    assert memory.grow(feed, needed, memory.budget.limit - feed.core.bytes)
    assert world.registry.statistics().channels == 0
    assert world.registry.feeds.get(SVC) is feed
    needed.release()
    await world.registry.aclose()
    await world.empty()


async def test_a_feed_is_started_after_its_first_subscriber_is_registered() -> None:
    """Otherwise a feed that fails at once would find nobody to tell."""
    world = World()
    feeds = world.registry.feeds
    feed = feeds.hold(SVC, (SVC,))
    assert feed.state.value == "idle"
    feeds.release(SVC, (SVC,))
    feeds.start(has_cursor=False)
    assert feed.state.value == "closed"
    await asyncio.sleep(0)
    await world.empty()


async def test_a_range_that_is_too_large_is_not_read_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The range's subscribers are notified; after a pause the range is tried again."""
    world = World()
    with monkeypatch.context() as patch:
        patch.setattr(world.etcd, "snapshot", too_large(world))
        subscriber = world.subscribe(has_cursor=False)
        await world.told(subscriber)
    assert subscriber.closing == "too-large"
    assert list(world.registry.feeds) == []
    subscriber.release()
    await world.empty()
    with pytest.raises(TooLargeError):
        world.subscribe()
    now = world.clock()
    world.registry.feeds._clock = lambda: now + module.PAUSE + 1
    world.subscribe().release()
    await world.empty()


async def test_a_feed_that_proves_a_restore_tells_every_feed() -> None:
    """One feed finds another event at a revision that it knows. Another one has no event that it could compare."""
    world = World()
    finds, quiet = (world.subscribe(watched) for watched in (SVC, OTHER))
    for member in (finds, quiet):
        await world.told(member)
    feed = followed(finds)
    feed.handle(Lost("broken"))
    feed.handle(RetryDue())
    feed.handle(Batches((Batch(A.mod_revision, [KeyValue(b"/svc/z", b"", 90, A.mod_revision, 1)]),)))
    assert [followed(member).history.joinable for member in (finds, quiet)] == [False, False]
    for member in (finds, quiet):
        await world.told(member)
        assert (followed(member).history.reason, member.closing) == ("restored", None)
        member.release()
    await world.empty()


async def test_a_restore_is_told_to_every_feed() -> None:
    """After a restore each feed starts anew, and keeps its readers."""
    world = World()
    members = [world.subscribe(watched) for watched in (SVC, OTHER)]
    for member in members:
        await world.told(member)
    world.registry.feeds.restored()
    assert [followed(member).history.joinable for member in members] == [False, False]
    for member in members:
        await world.told(member)
        assert (followed(member).history.reason, member.closing) == ("restored", None)
        member.release()
    await world.empty()
