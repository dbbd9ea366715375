"""A feed's start, and its whole life, when what it needs of the world outside raises: nobody waits, nothing is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

import pytest

from app.core.budget import Budget
from app.core.events import Batch, KeyValue
from app.core.feed import State
from app.core.feed_messages import Lane
from app.core.keys import KeyRange
from app.core.log import Bounds
from app.core.multiplex import Batches, Created, Progress, Sink
from app.core.snapshot import Snapshot
from app.ports import Condition
from app.watch.limits import Limits
from app.watch.registry import Lease, Registry
from tests.support.waiting import eventually

SVC = KeyRange("prefix", b"/svc/")
A = KeyValue(b"/svc/a", b"1", 90, 90, 1)
CALLS = (
    "watch", "snapshot", "probe", "progress_trusted", "condition", "clock", "cancel", "await_proof",
    "proven_at",
)  # fmt: skip


class Trap:
    """Raises at the *nth* time that *call* is made, and from then on while it is armed."""

    def __init__(self, call: str, nth: int) -> None:
        self.call, self.left = call, nth
        self.armed, self.sprung = True, False

    def pass_by(self, call: str) -> None:
        """A call is made."""
        if self.armed and call == self.call:
            self.left -= 1
            if self.left <= 0:
                self.sprung = True
                msg = f"{call} is broken"
                raise RuntimeError(msg)


class StubWatch:
    """One that says at once what it has to say."""

    def __init__(self, etcd: StubEtcd, start: int, sink: Sink) -> None:
        self._etcd = etcd
        self._sink: Sink | None = sink
        etcd.open.add(self)
        loop = asyncio.get_running_loop()
        loop.call_soon(self._say, Created(100))
        if start:
            loop.call_soon(self._say, Batches((Batch(90, [A]),)))
        loop.call_soon(self._say, Progress(100, trusted=True))

    def _say(self, given: Created | Batches | Progress) -> None:
        if self._sink is not None:
            self._sink(given)

    def cancel(self) -> None:
        """See ``app.ports.Watch``."""
        self._sink = None
        self._etcd.open.discard(self)
        self._etcd.trap.pass_by("cancel")

    def await_proof(self, wanted: bool) -> None:
        """See ``app.ports.Watch``."""
        del wanted
        self._etcd.trap.pass_by("await_proof")

    def proven_at(self, reached: int) -> float | None:
        """See ``app.ports.Watch``."""
        del reached
        self._etcd.trap.pass_by("proven_at")
        return time.monotonic()


class StubEtcd:
    """An etcd with one key, written at 90; it is at 100."""

    cluster_id = 1

    def __init__(self, trap: Trap) -> None:
        self.trap = trap
        self.open: set[StubWatch] = set()

    @property
    def progress_trusted(self) -> bool:
        """See ``app.ports.Etcd``."""
        self.trap.pass_by("progress_trusted")
        return True

    @property
    def condition(self) -> Condition:
        """See ``app.ports.Etcd``."""
        self.trap.pass_by("condition")
        return Condition("", "", "ready", 0.0, "")

    def watch(self, _watched: KeyRange, start: int, sink: Sink, *, lane: Lane) -> StubWatch:
        """See ``app.ports.Etcd``."""
        del lane
        self.trap.pass_by("watch")
        return StubWatch(self, start, sink)

    async def snapshot(self, _watched: KeyRange, budget: Callable[[int], None]) -> tuple[Snapshot, int]:
        """See ``app.ports.Etcd``."""
        await asyncio.sleep(0)
        self.trap.pass_by("snapshot")
        budget(A.size)
        return Snapshot.of(100, [A]), self.cluster_id

    async def probe(self, _watched: KeyRange, _revision: int) -> Literal["ok", "compacted", "future"]:
        """See ``app.ports.Etcd``."""
        await asyncio.sleep(0)
        self.trap.pass_by("probe")
        return "ok"

    async def revision(self, _watched: KeyRange) -> int:
        """See ``app.ports.Etcd``."""
        self.trap.pass_by("revision")
        return 100


class World:
    """A registry over it."""

    def __init__(self, trap: Trap) -> None:
        self.trap = trap
        self.etcd = StubEtcd(trap)
        limits = Limits(
            max_subscribers=100,
            max_feeds=10,
            max_feed_bytes=1 << 20,
            linger=0.0,
            log=Bounds(),
            reach_back=50,
            sync_timeout=30.0,
            stale_after=30.0,
            drain_window=1.0,
            drain_pace=100,
        )
        self.registry = Registry(
            self.etcd, limits, budget=Budget(limits.max_feed_bytes), clock=self.clock, draw=lambda: 0.5
        )

    def clock(self) -> float:
        """See ``app.ports.Clock``."""
        self.trap.pass_by("clock")
        return time.monotonic()

    def subscribe(self, *, has_cursor: bool = True) -> Lease:
        """Somebody comes."""
        return self.registry.subscribe(SVC, address="", user_agent="", request_id="", has_cursor=has_cursor)

    async def told(self, lease: Lease) -> None:
        """Return once *lease* is served, or told that it is not."""
        subscriber = lease.subscriber
        feed = subscriber.feed

        async def so() -> bool:
            served = feed.core.joinable and feed.state is State.LIVE and not feed.core.promises_history(60)
            return subscriber.closing is not None or served

        await eventually(so)

    async def empty(self) -> None:
        """Return once nothing is left of anybody."""

        async def so() -> bool:
            tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("feed")]
            return (len(self.registry), self.registry.feeds(), self.registry.bytes, tasks) == (0, [], 0, [])

        await eventually(so)
        registry = self.registry
        assert (len(registry._counts), registry._subscribers, registry._linger_timers) == (0, {}, {})
        assert self.etcd.open == set()


@pytest.mark.parametrize("nth", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("call", CALLS)
async def test_whatever_raises_nobody_waits_and_nothing_is_left(call: str, nth: int) -> None:
    """Two come one after the other and go; and with the trap taken away, the next one is served."""
    world = World(Trap(call, nth))
    leases: list[Lease] = []
    for _ in range(2):
        try:
            leases.append(world.subscribe())
        except RuntimeError:
            continue
        await world.told(leases[-1])
    for lease in leases:
        if lease.subscriber.closing is None:
            lease.subscriber.feed.check_staleness()
    world.trap.armed = False
    for lease in leases:
        assert lease.subscriber.closing in (None, "unavailable")
        lease.release()
        lease.release()
    await world.empty()

    lease = world.subscribe()
    await world.told(lease)
    assert lease.subscriber.closing is None
    assert lease.subscriber.feed.core.log.covers(60)
    lease.release()
    await world.empty()


@pytest.mark.parametrize("has_cursor", [True, False])
@pytest.mark.parametrize("call", ["watch", "snapshot", "clock", "condition"])
async def test_what_a_start_needs_is_told_at_once(call: str, has_cursor: bool) -> None:
    """Raised to the one who comes, before anything is held; or its stream is closed. Later ones are treated alike."""
    world = World(Trap(call, 1))
    for _ in range(3):
        try:
            lease = world.subscribe(has_cursor=has_cursor)
        except RuntimeError:
            assert world.registry.feeds() == []
        else:
            await world.told(lease)
            assert lease.subscriber.closing == "unavailable"
            lease.release()
        await world.empty()
    assert world.trap.sprung


async def test_nothing_is_asked_of_etcd_before_it_is_registered() -> None:
    """A constructor starts nothing: whoever comes at that very moment finds the feed."""
    world = World(Trap("", 0))
    found: list[bool] = []

    def watch(watched: KeyRange, start: int, sink: Sink, *, lane: Lane) -> StubWatch:
        del lane
        feed = world.registry.feed(watched)
        found.append(feed is not None and world.registry.subscribers(feed) != [])
        return StubWatch(world.etcd, start, sink)

    world.etcd.watch = watch  # type: ignore[assignment,method-assign]
    lease = world.subscribe()
    assert found == [True]
    lease.release()
    await world.empty()
