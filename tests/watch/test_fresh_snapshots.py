"""``app.watch.fresh_snapshots``: snapshots that readers ahead of a channel share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from app.core.block_reader import BlockReader
from app.core.events import KeyValue
from app.core.keys import KeyRange
from app.core.selection import Selection
from app.core.snapshot import Snapshot
from tests.support.feeds import followed
from tests.support.waiting import eventually
from tests.watch.world import SVC, A, World, settled


class NeverRead:
    """An etcd's ``snapshot`` that is never answered."""

    def __init__(self) -> None:
        self.began = asyncio.Event()

    async def __call__(
        self, _ranges: Sequence[KeyRange], budget: Callable[[int], None], *, newest: bool = False
    ) -> tuple[Snapshot, int]:
        """See ``app.ports.Etcd``."""
        del budget, newest
        self.began.set()
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_closed_feed_reads_no_fresh_snapshot() -> None:
    """No owner would release the snapshot's memory."""
    world = World()
    subscriber = world.subscribe(has_cursor=False)
    await world.told(subscriber)
    feed = followed(subscriber)
    subscriber.release()
    before = world.etcd.snapshots
    assert await feed.fresh_snapshot(100) is None
    assert world.etcd.snapshots == before
    await world.empty()


async def test_a_feed_that_stops_while_a_fresh_snapshot_is_read_fails_nobody() -> None:
    """The read is cancelled, but not the reader that waits for it. A reader that is cancelled stays cancelled."""
    world = World()
    subscriber = world.subscribe(has_cursor=False)
    await world.told(subscriber)
    read = NeverRead()
    world.etcd.snapshot = read  # type: ignore[method-assign]
    waiting, leaving = (asyncio.create_task(followed(subscriber).fresh_snapshot(100)) for _ in range(2))
    await read.began.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    subscriber.release()
    assert await waiting is None
    await world.empty()


async def test_a_feed_that_stops_as_a_fresh_snapshot_arrives_keeps_none() -> None:
    """Between the end of the read and the turn of the reader that waits for it."""
    world = World()
    subscriber = world.subscribe(has_cursor=False)
    await world.told(subscriber)
    feed = followed(subscriber)
    waiting = asyncio.create_task(feed.fresh_snapshot(100))
    await asyncio.sleep(0)
    assert feed._fresh.task is not None
    feed._fresh.task.add_done_callback(lambda _task: subscriber.release())
    await waiting
    del waiting
    await asyncio.sleep(0)
    assert feed._fresh._latest is None
    assert world.registry.channels.memory.bytes == 0
    await world.empty()


async def test_a_worthless_snapshot_is_not_kept_while_another_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two may not fit in memory together. A reader that left meanwhile kept it until a full garbage collection."""
    world = World()
    subscriber = world.subscribe(has_cursor=False)
    await world.told(subscriber)
    feed, memory = followed(subscriber), world.registry.channels.memory
    without = memory.bytes
    assert await feed.fresh_snapshot(100) is not None
    read = NeverRead()
    monkeypatch.setattr(world.etcd, "snapshot", read)
    waiting = asyncio.create_task(feed.fresh_snapshot(101))
    await read.began.wait()
    feed._fresh.forget()
    assert memory.bytes == without
    subscriber.release()
    await waiting
    await world.empty()


async def test_a_fresh_snapshot_counts_while_a_slow_reader_holds_its_blocks() -> None:
    """The snapshot is dropped for further readers after a while. Its values stay in memory until the last one ends."""
    world = World()
    subscriber = world.subscribe(has_cursor=False)
    await world.told(subscriber)
    feed, memory = followed(subscriber), world.registry.channels.memory
    without = memory.bytes
    snapshot = await feed.fresh_snapshot(100)
    assert snapshot is not None
    reader = BlockReader(snapshot, Selection((SVC,)), "sse")
    del snapshot
    feed._fresh.forget()
    await asyncio.sleep(0)  # asyncio lets go of the read's result
    assert memory.bytes == without + A.size
    del reader

    assert memory.bytes == without
    subscriber.release()
    await world.empty()


async def test_a_read_that_began_in_an_earlier_generation_is_not_shared() -> None:
    """etcd may have been restored since: the state would be of the history that has ended."""
    world = World()
    subscriber = world.subscribe(has_cursor=False)
    await world.told(subscriber)
    feed, read = followed(subscriber), world.etcd.snapshot
    began, goes_on = asyncio.Event(), asyncio.Event()
    states = [Snapshot.of(100, [KeyValue(b"/svc/old", b"", 1, 1, 1)]), Snapshot.of(100, [A])]

    async def slow(
        _ranges: Sequence[KeyRange], budget: Callable[[int], None], *, newest: bool = False
    ) -> tuple[Snapshot, int]:
        if not newest:
            return await read((), budget)
        state = states.pop(0)
        began.set()
        await goes_on.wait()
        return state, 1

    world.etcd.snapshot = slow  # type: ignore[method-assign]
    early = asyncio.create_task(feed.fresh_snapshot(100))
    await began.wait()
    feed.restored()
    await eventually(settled(feed))
    late = asyncio.create_task(feed.fresh_snapshot(100))
    await asyncio.sleep(0)
    goes_on.set()
    assert await early is None
    found = await late
    assert found is not None
    assert found.items == [A]
    subscriber.release()
    await world.empty()
