"""``app.watch.feed``: a feed's start and its whole life, also when one of its dependencies raises."""

from __future__ import annotations

import asyncio

import pytest

from app.core.backoff import DENIED, Backoff
from app.core.budget import Hold, Use
from app.core.events import Batch, KeyValue
from app.core.feed_messages import Batches, Created, Lost, Progress, Refused, RetryDue, StreamKind, WatchCallback
from app.core.keys import KeyRange
from app.watch.memory import Holder
from app.watch.subscriber import Subscriber
from tests.support.feeds import followed
from tests.support.waiting import eventually
from tests.watch.test_notifier import recording
from tests.watch.world import A, StubWatch, Trap, World, settled

CALLS = (
    "watch", "snapshot", "probe", "progress_trusted", "condition", "clock", "cancel", "await_proof",
    "proven_at",
)  # fmt: skip


@pytest.mark.parametrize("nth", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("call", CALLS)
async def test_whatever_raises_nobody_waits_and_nothing_is_left(call: str, nth: int) -> None:
    """Two subscribers come and leave, and nothing is left; once the trap is removed, the next subscriber is served."""
    world = World(Trap(call, nth))
    subscribers: list[Subscriber] = []
    for _ in range(2):
        try:
            subscribers.append(world.subscribe())
        except RuntimeError:
            continue
        await world.told(subscribers[-1])
    for subscriber in subscribers:
        if subscriber.closing is None:
            followed(subscriber).check_staleness()
    world.trap.armed = False
    for subscriber in subscribers:
        assert subscriber.closing in (None, "unavailable")
        subscriber.release()
        subscriber.release()
    await world.empty()

    subscriber = world.subscribe()
    await world.told(subscriber)
    assert subscriber.closing is None
    assert followed(subscriber).core.history.log.covers(60)
    subscriber.release()
    await world.empty()


@pytest.mark.parametrize("has_cursor", [True, False])
@pytest.mark.parametrize("call", ["watch", "snapshot", "clock", "condition"])
async def test_what_a_start_needs_is_told_at_once(call: str, has_cursor: bool) -> None:
    """An error at the start is raised to the subscriber before it holds anything, or closes its stream.

    Later subscribers are treated alike.
    """
    world = World(Trap(call, 1))
    for _ in range(3):
        try:
            subscriber = world.subscribe(has_cursor=has_cursor)
        except RuntimeError:
            assert list(world.registry.feeds) == []
        else:
            await world.told(subscriber)
            assert subscriber.closing == "unavailable"
            subscriber.release()
        await world.empty()
    assert world.trap.sprung


async def test_nothing_is_asked_of_etcd_before_it_is_registered() -> None:
    """A constructor starts nothing: a subscriber that comes at that very moment finds the feed."""
    world = World(Trap("", 0))
    found: list[bool] = []

    def watch(watched: KeyRange, start: int, sink: WatchCallback, *, stream_kind: StreamKind) -> StubWatch:
        del stream_kind
        feed = world.registry.feeds.get(watched)
        found.append(feed is not None and world.registry.subscribers((watched,)) != [])
        return StubWatch(world.etcd, start, sink)

    world.etcd.watch = watch  # type: ignore[assignment,method-assign]
    subscriber = world.subscribe()
    assert found == [True]
    subscriber.release()
    await world.empty()


async def test_a_watch_that_is_lost_before_there_is_a_state_is_a_trouble() -> None:
    """Then readers wait for GATEWAY_STALE_AFTER, and not for two minutes.

    So did those at a worker, whose hub may not read a range: the hub ended the worker's stream again and again.
    """
    world = World()
    world.etcd.mute = True
    subscriber = world.subscribe()
    feed = followed(subscriber)
    (watch,) = world.etcd.open
    watch.say(Lost("the upstream gateway: unavailable"))
    assert feed.trouble == "the upstream gateway: unavailable"
    world.etcd.mute = False
    await eventually(settled(feed))
    assert feed.trouble == ""
    (watch,) = world.etcd.open
    watch.say(Lost("the upstream gateway: drain"))
    assert feed.trouble == ""  # there is a state, and nobody waits
    subscriber.release()
    await world.empty()


# --- who is woken -----------------------------------------------------------------------------------------------------


async def test_a_tip_that_progress_moves_wakes_only_who_waits_for_it() -> None:
    """With 5,000 readers a pass takes 13 ms, and etcd's progress comes every few seconds, or ten times a second."""
    world = World()
    subscriber = world.subscribe()
    feed = followed(subscriber)
    await eventually(settled(feed))
    woken: list[str] = []
    feed.notifier.add(recording(woken, "reader"))
    waiting = recording(woken, "waiting")

    async def told() -> bool:
        return "waiting" in woken

    feed.await_tip(waiting)
    feed.handle(Progress(101, trusted=True))
    await eventually(told)
    assert (woken, feed.history.log.tip) == (["waiting"], 101)

    feed.handle(Batches((Batch(102, [KeyValue(b"/svc/b", b"", 102, 102, 1)]),)))
    woken.clear()
    await eventually(told)
    assert sorted(woken) == ["reader", "waiting"]
    feed.ignore_tip(waiting)
    assert len(feed.tip_notifier) == 0
    subscriber.release()
    await world.empty()


# --- a state is counted once ------------------------------------------------------------------------------------------


async def test_a_state_is_counted_once_when_the_feed_takes_it_over() -> None:
    """Counted twice, the state left no room for others; not counted in between, its bytes were given to others."""
    world = World()
    budget = world.registry.channels.memory.budget
    counted: list[int] = []
    subscriber = world.subscribe(has_cursor=False)
    published = world.registry.feeds.published

    def look(events: int) -> None:
        counted.append(budget.of(Use.FEED))
        published(events)

    world.registry.feeds.published = look  # type: ignore[method-assign]
    await world.told(subscriber)
    assert A.size in counted
    assert set(counted) <= {0, A.size}
    subscriber.release()
    await world.empty()


async def test_nobody_gets_the_bytes_of_a_state_while_the_feed_takes_it_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that waits asks the feed for room at that very moment. The feed then counts itself, without the state."""
    world = World()
    memory, pages = world.registry.channels.memory, list[Hold]()
    grow, others = memory.grow, memory.hold()

    def read(holder: Holder, hold: Hold, size: int) -> bool:
        fits = grow(holder, hold, size)
        others.set(memory.budget.limit - size)
        pages.extend(memory.budget.ask(Use.PAGE, size) for _ in range(2))  # the first one is outside the limit
        return fits

    monkeypatch.setattr(memory, "grow", read)
    subscriber = world.subscribe(has_cursor=False)
    await world.told(subscriber)
    assert followed(subscriber).core.bytes == A.size
    assert (memory.budget.lacks(), [page.granted for page in pages]) == (0, [True, False])
    for each in (others, *pages):
        each.release()
    subscriber.release()
    await world.empty()


async def test_a_state_that_the_feed_does_not_want_any_more_is_given_back() -> None:
    """A feed that ends while its state is being read releases the state's memory."""
    world = World()
    held: list[Hold] = []
    grow = world.registry.channels.memory.grow

    def note(holder: Holder, hold: Hold, size: int) -> bool:
        held.append(hold)
        fits = grow(holder, hold, size)
        subscriber.release()
        return fits

    world.registry.channels.memory.grow = note  # type: ignore[method-assign]
    subscriber = world.subscribe(has_cursor=False)
    await world.empty()
    assert [hold.released for hold in held] == [True]


# --- a snapshot for readers ahead of the feed -------------------------------------------------------------------------


async def test_a_fresh_snapshot_is_read_once_for_all_who_need_it() -> None:
    """The shared snapshot is counted for as long as a reader has it."""
    world = World()
    subscriber = world.subscribe(has_cursor=False)
    await world.told(subscriber)
    feed = followed(subscriber)
    before = world.etcd.snapshots
    found = await asyncio.gather(*[feed.fresh_snapshot(100) for _ in range(3)])
    assert world.etcd.snapshots == before + 1
    assert found[0] is not None
    assert all(one is found[0] for one in found)
    assert await feed.fresh_snapshot(100) is found[0], "kept for a while"
    assert world.registry.channels.memory.bytes == feed.core.bytes + A.size
    assert await feed.fresh_snapshot(101) is None, "etcd has not reached this revision"
    del found
    subscriber.release()
    await world.empty()


@pytest.mark.parametrize(("given", "cap"), [(Refused("no", denied=True), DENIED.cap), (Refused("no"), Backoff().cap)])
async def test_a_denied_watch_is_tried_again_less_often(
    given: Refused, cap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server must not be asked every other second for as long as somebody follows the range."""
    world = World()
    subscriber = world.subscribe()
    feed = followed(subscriber)
    delays: list[float] = []
    monkeypatch.setattr(feed, "_draw", lambda: 1.0)
    monkeypatch.setattr(feed._scope, "set_timer", lambda _kind, delay, _call: delays.append(delay))
    for _ in range(12):
        feed._from_watch(given)
        feed.handle(RetryDue())
    assert delays[:3] == [0.05, 0.1, 0.2]
    assert delays[-1] == cap
    feed._from_watch(Created(1))
    assert not feed.denied, "the role was granted, though the state is not read yet"
    subscriber.release()
    await world.empty()
