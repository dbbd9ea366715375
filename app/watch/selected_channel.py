"""The channel of a selection that is not exactly one feed, at run time (``app.core.selected_history``)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Protocol

from ..core.errors import TooLargeError
from ..core.readable_history import OlderHistory
from ..core.reasons import CloseReason
from ..core.selected_history import SelectedHistory
from ..core.selection import Ranges
from ..core.snapshot import Snapshot
from ..ports import Clock, Etcd
from .feed import Feed
from .fresh_snapshots import FreshSnapshots
from .haste import Haste
from .limits import Limits
from .memory import FeedMemory
from .notifier import Listener, Notifier
from .snapshot_scheduler import SnapshotScheduler
from .state_reader import StateReader

logger = logging.getLogger("gateway.feed")

# Memory of a channel without any key or event: its objects, and its places in tables. Measured with tracemalloc on
# CPython 3.11: 4.7 KiB with its first subscriber, and a range with a short name.
OVERHEAD = 5 * 1024
# Memory of each range of a channel, beside its name: the object, and its places in tables. Measured as above: 370 to
# 394 bytes.
RANGE_OVERHEAD = 400


class ChannelOwner(Protocol):
    """What a channel reports to ``Channels``."""

    def channel_failed(self, channel: SelectedChannel, reason: CloseReason) -> None:
        """*channel* cannot go on: it must be stopped, and its subscribers closed for *reason*."""


class SelectedChannel:
    """The channel of a selection that is not exactly one feed. ``stop`` releases everything.

    Args:
        ranges: canonical.
        sources: the feeds, which the caller holds, and the ranges in each of them.
    """

    def __init__(
        self,
        ranges: Ranges,
        sources: Sequence[tuple[Feed, Ranges]],
        etcd: Etcd,
        limits: Limits,
        *,
        memory: FeedMemory,
        scheduler: SnapshotScheduler,
        owner: ChannelOwner,
        clock: Clock,
    ) -> None:
        self.ranges = ranges
        self.sources = tuple(sources)
        self.watched: Ranges = tuple(feed.range for feed, _ in sources)
        self.notifier = Notifier()
        self.history = SelectedHistory(
            [(feed.history, feed.older, part) for feed, part in sources], limits.log, self._changed, self._hasten
        )
        self._etcd = etcd
        self._memory = memory
        self._owner = owner
        self._clock = clock
        self._hold = memory.hold()
        self.history.ask_before_keeping(self._keep)
        self._fresh = FreshSnapshots(
            StateReader(ranges, etcd, memory, scheduler, self), self.history, keep=limits.sync_timeout, clock=clock
        )
        self._haste = Haste()
        self._accounting = False
        # Clients choose the ranges: one request may have 48 KiB of names.
        self._fixed = OVERHEAD + sum(len(one.name) + RANGE_OVERHEAD for one in ranges)
        self._started = self._stopped = False
        self._limits = limits
        # Since when the present member's progress cannot be trusted, as a monotonic and as a wall-clock time.
        self._distrusted: tuple[float, float] | None = None

    @property
    def older(self) -> OlderHistory:
        """See ``Channel``."""
        return self.history

    @property
    def merged(self) -> bool:
        """Whether the channel is made of several feeds, so that it needs progress that can be trusted."""
        return len(self.sources) > 1

    @property
    def keys(self) -> int:
        """See ``Channel``."""
        return len(self.history.view) if self.history.view is not None else 0

    def start(self) -> None:
        """Begin to follow the feeds. Idempotent."""
        if self._started:
            return
        self._started = True
        for feed, _ in self.sources:
            feed.channel_notifiers[self.notifier] = None
        self.history.follow(self._clock())

    def stop(self) -> None:
        """Stop following the feeds, and release the memory. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        for feed, _ in self.sources:
            feed.channel_notifiers.pop(self.notifier, None)
        self.history.leave()
        self._fresh.stop()
        self._hold.release()
        self.notifier.notify()

    def check(self) -> None:
        """Drop what is too old, and look whether a merge can go on. ``Channels`` calls this once a second."""
        self._check_trust()
        self.history.trim(self._clock())
        self._fresh.forget_old()
        self._settle()

    def _check_trust(self) -> None:
        distrusted = self.merged and self._etcd.member_known and not self._etcd.progress_trusted
        if distrusted != (self._distrusted is not None):
            self._distrusted = (self._clock(), time.time()) if distrusted else None
            self.notifier.notify()

    @property
    def must_close(self) -> bool:
        """Whether the member's progress was not to be trusted for so long that the merge must end."""
        if self._stopped or self._distrusted is None:
            return False
        return self._clock() - self._distrusted[0] > self._limits.stale_after

    # --- what happens at the feeds ------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Wake the readers. The history calls this in the middle of a feed's step, so the memory is counted later."""
        self.notifier.notify()
        if not self._accounting:
            self._accounting = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _hasten(self) -> None:
        """Let the feeds that others wait for have progress soon, and no other."""
        self._haste.follow(self.history, self.sources)
        if self.history.awaited:
            self._etcd.tell_merged(self.watched)

    @property
    def stale_ranges(self) -> Ranges:
        """See ``Channel``."""
        return self.history.stale_ranges if self._distrusted is None else self.ranges

    @property
    def stale_since(self) -> float | None:
        """See ``Channel``."""
        since = self.history.stale_since
        if self._distrusted is None:
            return since
        return self._distrusted[1] if since is None else min(since, self._distrusted[1])

    @property
    def trouble(self) -> str:
        """See ``Channel``."""
        return next((feed.trouble for feed, _ in self.sources if feed.trouble), "")

    @property
    def denied(self) -> bool:
        """See ``Channel``."""
        return any(feed.denied for feed, _ in self.sources)

    # --- for readers --------------------------------------------------------------------------------------------------

    def want_backfill(self, revision: int) -> bool:
        """See ``Channel``."""
        for feed, _ in self.sources:
            if not feed.history.covers(revision) and not feed.want_backfill(revision):
                return False
        return self.history.promises(revision)

    def await_tip(self, listener: Listener) -> None:
        """See ``Channel``. The tip moves with those of the feeds, and is read when a reader looks."""
        for feed, _ in self.sources:
            feed.await_tip(listener)

    def ignore_tip(self, listener: Listener) -> None:
        """See ``Channel``."""
        for feed, _ in self.sources:
            feed.ignore_tip(listener)

    def follow_tip(self, listener: Listener) -> None:
        """See ``Channel``."""
        for feed, _ in self.sources:
            feed.follow_tip(listener)

    def leave_tip(self, listener: Listener) -> None:
        """See ``Channel``."""
        for feed, _ in self.sources:
            feed.leave_tip(listener)

    async def linearizable_revision(self) -> int:
        """See ``Channel``."""
        return await self._etcd.revision(self.ranges[0])

    async def fresh_snapshot(self, at_least: int) -> Snapshot | None:
        """See ``Channel``."""
        return await self._fresh.get(at_least)

    def forget_snapshot(self) -> None:
        """Keep no fresh snapshot: a feed has given up its view for want of memory."""
        self._fresh.forget()

    # --- memory (``app.watch.memory.Holder``) -------------------------------------------------------------------------

    @property
    def unproven_bytes(self) -> int:
        """See ``app.watch.memory.Holder``."""
        return 0

    @property
    def encoded_bytes(self) -> int:
        """See ``app.watch.memory.Holder``."""
        return self.history.encoded

    @property
    def log_bytes(self) -> int:
        """See ``app.watch.memory.Holder``."""
        return self.history.log.bytes

    @property
    def bytes(self) -> int:
        """Memory that counts for the channel, beside what its feeds count."""
        return 0 if self._stopped else self._fixed + self.history.bytes

    def reclaim_unproven(self) -> int:
        """See ``app.watch.memory.Holder``."""
        return 0

    def reclaim_encoded(self) -> int:
        """See ``app.watch.memory.Holder``."""
        freed = self.history.reclaim_encoded()
        self._account()
        return freed

    def reclaim_view(self) -> int:
        """See ``app.watch.memory.Holder``: the view is replaced only together with a feed's."""
        return 0

    def reclaim_log(self, size: int) -> int:
        """See ``app.watch.memory.Holder``."""
        freed = self.history.log.reclaim(size)
        self._account()
        return freed

    def _account(self) -> None:
        if not self._stopped:
            self._hold.set(self.bytes)

    def _settle(self) -> None:
        """Count the memory, and end the channel if it does not fit: not a feed, whose other readers did nothing."""
        self._accounting = False
        self._account()
        if not self._stopped and not self._memory.settle(self):
            logger.warning("channel too large", extra={"range": " ".join(map(str, self.ranges)), "bytes": self.bytes})
            self._owner.channel_failed(self, TooLargeError.close_reason)

    def _keep(self, size: int) -> bool:
        """Return whether to keep *size* bytes of encoded data. If so, the bytes are counted."""
        self._account()
        return self._memory.grow_encoded(self, self._hold, size)

    async def join(self) -> None:
        """Wait until the tasks of a stopped channel have ended."""
        if self._fresh.task is not None:
            await asyncio.gather(self._fresh.task, return_exceptions=True)
