"""A registry over an etcd with one key, in which a test can make any call raise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from app.core.budget import Budget
from app.core.ended_histories import EndedHistories
from app.core.events import Batch, KeyValue
from app.core.feed import State
from app.core.feed_messages import Batches, Created, Progress, StreamKind, WatchCallback, WatchInput
from app.core.keys import KeyRange
from app.core.log import Bounds
from app.core.selection import Ranges, canonical
from app.core.snapshot import Snapshot
from app.ports import Condition, Hub
from app.watch.feed import Feed
from app.watch.limits import Limits
from app.watch.registry import Registry
from app.watch.subscriber import Subscriber
from tests.support.feeds import followed
from tests.support.waiting import eventually

SVC = KeyRange("prefix", b"/svc/")
A = KeyValue(b"/svc/a", b"1", 90, 90, 1)


LIMITS = Limits(
    max_subscribers=100,
    max_feeds=10,
    max_channels=100,
    linger=0.0,
    log=Bounds(),
    reach_back=50,
    sync_timeout=30.0,
    stale_after=30.0,
    drain_window=1.0,
    drain_pace=100,
)


class Trap:
    """Raises at the *nth* call of *call*, and at every later call while the trap is armed."""

    def __init__(self, call: str, nth: int) -> None:
        self.call, self.left = call, nth
        self.armed, self.sprung = True, False

    def pass_by(self, call: str) -> None:
        """Count a call, and raise if it is trapped."""
        if self.armed and call == self.call:
            self.left -= 1
            if self.left <= 0:
                self.sprung = True
                msg = f"{call} is broken"
                raise RuntimeError(msg)


class StubWatch:
    """A watch that sends everything at once, unless etcd is mute."""

    def __init__(self, etcd: StubEtcd, start: int, sink: WatchCallback) -> None:
        self._etcd = etcd
        self._sink: WatchCallback | None = sink
        etcd.open.add(self)
        if etcd.mute:
            return
        loop = asyncio.get_running_loop()
        loop.call_soon(self.say, Created(100))
        if start:
            loop.call_soon(self.say, Batches((Batch(90, [A]),)))
        loop.call_soon(self.say, Progress(100, trusted=True))

    def say(self, given: WatchInput) -> None:
        """Pass something on to the feed."""
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

    def hasten(self, wanted: bool) -> None:
        """See ``app.ports.Watch``."""
        del wanted
        self._etcd.trap.pass_by("hasten")

    def proven_at(self, reached: int) -> float | None:
        """See ``app.ports.Watch``."""
        del reached
        self._etcd.trap.pass_by("proven_at")
        return time.monotonic()


class StubEtcd:
    """An etcd with one key, written at 90; etcd's revision is 100."""

    cluster_id = 1
    is_gateway = False

    def __init__(self, trap: Trap) -> None:
        self.trap = trap
        self.ended = EndedHistories()
        self.witnessed, self.can_be_followed = None, True
        self.open: set[StubWatch] = set()
        self.mute = False  # a watch says nothing by itself
        self.told: list[Ranges] = []  # merges
        self.snapshots = 0  # how many snapshots were read

    def reach(self, most: int) -> int:
        """See ``app.ports.Etcd``."""
        return most

    def tell_merged(self, watched: Ranges) -> None:
        """See ``app.ports.Etcd``."""
        self.told.append(watched)

    @property
    def progress_trusted(self) -> bool:
        """See ``app.ports.Etcd``."""
        self.trap.pass_by("progress_trusted")
        return True

    @property
    def member_known(self) -> bool:
        """See ``app.ports.Etcd``."""
        return True

    watch_version = "3.5.28"

    @property
    def condition(self) -> Condition:
        """See ``app.ports.Etcd``."""
        self.trap.pass_by("condition")
        return Condition("", "", "ready", 0.0, "")

    def watch(self, _watched: KeyRange, start: int, sink: WatchCallback, *, stream_kind: StreamKind) -> StubWatch:
        """See ``app.ports.Etcd``."""
        del stream_kind
        self.trap.pass_by("watch")
        return StubWatch(self, start, sink)

    async def snapshot(
        self, _ranges: Sequence[KeyRange], budget: Callable[[int], None], *, newest: bool = False
    ) -> tuple[Snapshot, int]:
        """See ``app.ports.Etcd``."""
        del newest
        await asyncio.sleep(0)
        self.trap.pass_by("snapshot")
        self.snapshots += 1
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
    """A registry over the stub."""

    def __init__(
        self,
        trap: Trap | None = None,
        *,
        pins: Sequence[KeyRange] = (),
        hub: Hub | None = None,
        serves_workers: bool = False,
        **limited: Any,
    ) -> None:
        self.trap = trap = trap if trap is not None else Trap("", 0)
        self.etcd = StubEtcd(trap)
        limits = replace(LIMITS, **limited)
        self.registry = Registry(
            self.etcd,
            limits,
            pins=pins,
            hub=hub,
            serves_workers=serves_workers,
            budget=Budget(1 << 20),
            clock=self.clock,
            draw=lambda: 0.5,
        )

    def clock(self) -> float:
        """See ``app.ports.Clock``."""
        self.trap.pass_by("clock")
        return time.monotonic()

    def subscribe(self, *ranges: KeyRange, has_cursor: bool = True) -> Subscriber:
        """Add a subscriber: of /svc/, unless it asks for other ranges."""
        return self.registry.subscribe(
            canonical(ranges or (SVC,)), address="", user_agent="", request_id="", has_cursor=has_cursor
        )

    async def told(self, subscriber: Subscriber) -> None:
        """Return once *subscriber* is served or refused."""
        feed = followed(subscriber)

        async def so() -> bool:
            served = feed.core.history.joinable and feed.state is State.LIVE and not feed.core.backfill.promises(60)
            return subscriber.closing is not None or served

        await eventually(so)

    async def empty(self) -> None:
        """Return once no subscriber and no feed is left."""
        registry, channels = self.registry, self.registry.channels

        async def so() -> bool:
            tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("feed")]
            return (len(registry), list(registry.feeds), channels.memory.bytes, tasks) == (0, [], 0, [])

        await eventually(so)
        assert (len(channels), len(channels._counts), channels._linger_timers) == (0, 0, {})
        assert (registry._subscribers, registry._leaving, registry._admitted) == ({}, {}, {})
        assert self.etcd.open == set()


def settled(feed: Feed) -> Callable[[], Awaitable[bool]]:
    """A condition for ``eventually``: the feed is live, and reads no older history."""

    async def holds() -> bool:
        return feed.state is State.LIVE and not feed.core.backfill.promises(60)

    return holds
