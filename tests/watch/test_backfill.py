"""``app.watch.backfill``: the watches, reads and memory that a read of older history uses, and how the read ends."""

from __future__ import annotations

from typing import Any

import pytest

from app.core.backfill import Stage
from app.core.errors import UnavailableError
from app.core.feed import State
from app.core.feed_messages import Batches, Created, Lost, Progress
from app.core.keys import KeyRange
from app.watch.feed import Feed
from app.watch.subscriber import Subscriber
from tests.support.feeds import followed
from tests.support.waiting import eventually
from tests.watch.world import SVC, World


async def live(world: World, *, has_cursor: bool = False) -> Subscriber:
    """A subscriber of a live feed."""
    subscriber = world.subscribe(has_cursor=has_cursor)

    async def so() -> bool:
        return followed(subscriber).state is State.LIVE

    await eventually(so)
    return subscriber


async def rests(feed: Feed) -> None:
    """Return once no history is being read."""

    async def so() -> bool:
        return feed.core.backfill.stage is Stage.RESTING and not feed.backfilling

    await eventually(so)


async def over(world: World, subscriber: Subscriber) -> None:
    """Release the subscriber, and wait until nothing is left."""
    subscriber.release()
    await world.empty()


async def test_history_is_read_by_a_watch_of_its_own() -> None:
    """The history's watch runs beside the feed's; after the proof it is gone, and the log covers the cursor."""
    world = World()
    subscriber = await live(world)
    feed = followed(subscriber)
    assert not feed.history.log.covers(60)
    assert feed.want_backfill(60)
    assert feed.backfilling
    assert len(world.etcd.open) == 2
    await rests(feed)
    assert feed.history.log.covers(60)
    assert len(world.etcd.open) == 1
    await over(world, subscriber)


async def test_a_cursor_out_of_reach_is_refused_at_once() -> None:
    """A refused cursor costs no request to etcd."""
    world = World()
    subscriber = await live(world)
    assert not followed(subscriber).want_backfill(49)
    assert len(world.etcd.open) == 1
    await over(world, subscriber)


async def test_the_reach_of_the_upstream_is_asked_for_when_history_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pin of an edge starts before the edge knows its tier, and so how far back the tier above reads."""
    world, less = World(), [0]
    monkeypatch.setattr(world.etcd, "reach", lambda most: most - less[-1])
    subscriber = await live(world)
    feed, starts, watch = followed(subscriber), list[int](), world.etcd.watch

    def noted(watched: KeyRange, start: int, *args: Any, **options: Any) -> Any:
        starts.append(start)
        return watch(watched, start, *args, **options)

    monkeypatch.setattr(world.etcd, "watch", noted)
    less.append(5)
    assert not feed.want_backfill(54)
    assert feed.want_backfill(55)
    assert starts == [55]
    await rests(feed)
    await over(world, subscriber)


async def test_a_read_that_is_not_done_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch of the history sends nothing in time, so the read ends. The feed goes on as before."""
    world = World(sync_timeout=0.01)
    subscriber = await live(world)
    feed = followed(subscriber)
    silent(world, monkeypatch)
    assert feed.want_backfill(60)
    await rests(feed)
    assert (feed.state, subscriber.closing) == (State.LIVE, None)
    assert feed.core.backfill.why_not(60) == "unproven"
    await over(world, subscriber)


async def test_a_probe_that_fails_ends_the_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd went out of reach at the last moment: the history is not proven, so it is dropped."""
    world = World()

    async def fail(*_args: object) -> Any:
        raise UnavailableError("etcd is out of reach")

    monkeypatch.setattr(world.etcd, "probe", fail)
    subscriber = await live(world)
    feed = followed(subscriber)
    assert feed.want_backfill(60)
    await rests(feed)
    assert not feed.history.log.covers(60)
    assert feed.core.backfill.why_not(60) == "unproven"
    await over(world, subscriber)


async def test_what_is_not_proven_goes_first_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unproven history is dropped, together with its watch; the feed stays."""
    world = World()
    subscriber = await live(world)
    feed = followed(subscriber)
    silent(world, monkeypatch)
    assert feed.want_backfill(60)
    feed._backfill.handle(Created(100))
    feed._backfill.handle(Batches(()))
    assert feed.core.backfill.stage is Stage.READING
    assert feed.reclaim_unproven() == 0  # nothing has been read, but the read is over
    await rests(feed)
    assert feed.state is State.LIVE
    assert feed.core.backfill.why_not(60) == "lagged"
    await over(world, subscriber)


async def test_a_read_may_end_while_it_is_asked_whether_there_is_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To count what it holds may let others have the bytes, and take the rest from it."""
    world = World()
    subscriber = await live(world)
    feed = followed(subscriber)
    silent(world, monkeypatch)
    assert feed.want_backfill(60)

    def no_room() -> bool:
        feed._backfill._has_room = lambda: False
        feed._backfill.make_room()
        return False

    feed._backfill._has_room = no_room
    feed._backfill.handle(Created(100))
    assert feed.core.backfill.why_not(60) == "lagged"
    assert [one.message for one in caplog.records if one.levelname == "ERROR"] == []
    await rests(feed)
    await over(world, subscriber)


async def test_a_defect_of_ours_ends_the_read_and_not_the_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader that waited for the history gets a reset with the reason."""
    world = World()
    subscriber = await live(world)
    feed = followed(subscriber)
    silent(world, monkeypatch)
    assert feed.want_backfill(60)

    def fail(*_args: object) -> Any:
        raise RuntimeError("seeded")

    monkeypatch.setattr(feed.core.backfill, "handle", fail)
    feed._backfill.handle(Progress(100, trusted=True))
    monkeypatch.undo()
    assert feed.core.backfill.stage is Stage.RESTING
    assert not feed.backfilling
    assert (feed.state, subscriber.closing) == (State.LIVE, None)
    await over(world, subscriber)


async def test_a_feed_that_ends_stops_the_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed that ends stops the read of history, although the history's watch has sent nothing yet."""
    world = World()
    subscriber = await live(world)
    feed = followed(subscriber)
    silent(world, monkeypatch)
    assert feed.want_backfill(60)
    feed._backfill.handle(Lost("broken"))
    assert feed.backfilling, "the read must have begun again"
    await over(world, subscriber)
    assert not feed.backfilling
    assert world.registry.feeds.get(SVC) is None


def silent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, watches send nothing by themselves."""
    watch = world.etcd.watch

    def mute(*args: Any, **options: Any) -> Any:
        opened = watch(*args, **options)
        opened._sink = None
        return opened

    monkeypatch.setattr(world.etcd, "watch", mute)
