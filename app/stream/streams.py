"""The state that all streams of the process share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..core.capacity import Capacity
from ..core.cursor import Cursor
from ..core.reader import Reader
from ..core.retry_penalty import RetryPenalty
from ..core.selection import Selection
from ..core.slow_reader import SlowReaderPolicy
from ..ports import Clock, Draw, Etcd
from ..watch.channel import Channel
from ..watch.registry import Registry
from ..watch.subscriber import Subscriber
from .counters import Counters
from .framing import Chunks
from .recheck import Recheck
from .sink import Choice
from .snapshot_queue import SnapshotQueue
from .timers import TimerWheel
from .turns import JOINS, LEAVES, Turns

# Milliseconds. Each client reconnects after a random time in this interval, so that not all reconnect at once.
RETRY_MS = (1000, 5000)


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """The part of ``app.settings.Settings`` that streams need."""

    heartbeat: float  # seconds, like all times here
    send_timeout: float
    sync_timeout: float
    stale_after: float
    max_age: float  # 0 is off
    min_rate: int  # bytes a second; 0 is off
    sink: Choice


class Streams:
    """See the module.

    Args:
        epoch_of: derives the epoch of cursors from the cluster's id and a selection.
        instance: the gateway's name, for greetings.
        wall: returns the wall clock's seconds, with which expiries are compared.
        tier: returns the gateway's tier; None until that is known.
    """

    def __init__(
        self,
        registry: Registry,
        etcd: Etcd,
        epoch_of: Callable[[int, Selection], str],
        settings: StreamSettings,
        *,
        instance: str,
        clock: Clock,
        draw: Draw,
        capacity: Capacity[Any],
        wall: Clock,
        tier: Callable[[], int | None] = lambda: 0,
    ) -> None:
        self.registry = registry
        self.capacity = capacity
        self.etcd = etcd
        self.epoch_of = epoch_of
        self.settings = settings
        self.instance = instance
        self.tier = tier
        self.clock = clock
        self.wall = wall
        self.draw = draw
        self.counters = Counters()
        self._make_policy = partial(SlowReaderPolicy, settings.send_timeout, settings.min_rate)
        self.chunks = Chunks()
        self.timers = TimerWheel(clock)
        self.snapshots = SnapshotQueue(clock)
        self.joins = Turns(JOINS)
        self.leaves = Turns(LEAVES)
        self.recheck = Recheck(registry, clock)
        self.retry_penalty = RetryPenalty()
        self.held: set[asyncio.Event] = set()  # for each refused EventSource that is held open: set to end it
        self.finishing: set[asyncio.Task[None]] = set()  # of ended streams whose last bytes are not acknowledged

    def reader(
        self,
        channel: Channel,
        selection: Selection,
        *,
        form: str,
        cursor: Cursor | None,
        snapshot: bool,
        interval: float = 0.0,
        min_revision: int = 0,
        for_gateway: bool = False,
    ) -> Reader:
        """Return a reader of *channel*, with the settings that all streams use."""
        settings = self.settings
        return Reader(
            channel.history,
            channel.older,
            selection,
            self.epoch_of,
            form=form,
            cursor=cursor,
            snapshot=snapshot,
            heartbeat=settings.heartbeat,
            make_policy=self._make_policy,
            counts=self.counters.handed,
            interval=interval,
            min_revision=min_revision,
            for_gateway=for_gateway,
        )

    def retry_ms(self, factor: int = 1) -> int:
        """Draw the milliseconds after which a client should reconnect: *factor* times as long as usual.

        The more streams wait for their turn to send a snapshot, the longer.
        """
        low, high = RETRY_MS
        return int(factor * self.snapshots.retry_factor * (low + int((high - low) * self.draw())))

    def penalize(self, subscriber: Subscriber) -> int:
        """Record that a subscriber was too slow. Return the milliseconds for which its client must stay away."""
        host = subscriber.address.rpartition(":")[0]
        # Not the ranges themselves: they may have 48 KiB, and thousands of clients are remembered.
        who = (host, hash(subscriber.channel.ranges))
        return self.retry_penalty.add(who, self.clock(), self.draw())

    def drain(self) -> None:
        """End the refused EventSources that are held open. The registry ends the streams."""
        for event in self.held:
            event.set()

    async def aclose(self) -> None:
        """End the streams that wait for it, and wait for the tasks of the ended ones. Their connections are closed."""
        self.joins.finish()
        self.leaves.finish()
        await asyncio.gather(*self.finishing)
