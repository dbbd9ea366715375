"""A feed at run time: it executes the core's commands and returns the outcomes to the core. It makes no decisions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any, Protocol

from ..core.backoff import DENIED, Backoff
from ..core.errors import CompactedError, FutureRevisionError, GatewayError, TooLargeError
from ..core.feed import FeedCore, State
from ..core.feed_messages import (
    AwaitProof,
    CloseWatch,
    Command,
    EndProof,
    FeedInput,
    Lost,
    OpenWatch,
    Probe,
    Probed,
    Progress,
    Refused,
    Restored,
    Retry,
    RetryDue,
    SnapshotFailed,
    SnapshotTaken,
    Start,
    Stop,
    SyncTimeout,
    TakeSnapshot,
    TellRestored,
    WatchInput,
)
from ..core.keys import KeyRange
from ..core.log import keep_all
from ..core.reasons import CloseReason
from ..core.selection import Ranges
from ..core.snapshot import Snapshot
from ..core.staleness import Staleness
from ..ports import Clock, Draw, Etcd, Watch
from .backfill import RunningBackfill
from .cancel import cancel_watch
from .fresh_snapshots import FreshSnapshots
from .limits import Limits
from .memory import FeedMemory
from .notifier import Listener, Notifier
from .snapshot_scheduler import SnapshotScheduler
from .state_reader import StateReader
from .statistics import FeedStatistics
from .task_scope import TaskScope

logger = logging.getLogger("gateway.feed")


class FeedOwner(Protocol):
    """What a feed reports to ``Feeds``."""

    def published(self, events: int) -> None:
        """A feed has published *events* more events."""

    def failed(self, feed: Feed, reason: CloseReason) -> None:
        """*feed* has ended by itself: it accepts no new subscriber, and its subscribers must be closed for *reason*."""

    def view_reclaimed(self, feed: Feed) -> None:
        """*feed* has freed its view: its readers must not hold any part of that view."""

    def restored(self) -> None:
        """A feed has proven that etcd has another history."""


class Feed:
    """One watched range, and the channel of exactly this range.

    Call ``start`` after registering the feed. ``stop`` is synchronous and releases everything.
    """

    def __init__(
        self,
        watched: KeyRange,
        etcd: Etcd,
        limits: Limits,
        *,
        pinned: bool = False,
        memory: FeedMemory,
        scheduler: SnapshotScheduler,
        owner: FeedOwner,
        clock: Clock,
        draw: Draw,
    ) -> None:
        self.range = watched
        self.ranges: Ranges = (watched,)
        self.watched = self.ranges
        self.pinned = pinned
        # etcd's roles do not let the gateway watch the range, as far as it was last told.
        self.denied = False
        self.core = FeedCore(limits.log, limits.reach_back, etcd.reach, resets_told=etcd.is_gateway, ended=etcd.ended)
        self.history = self.core.history
        self.older = self.core.backfill
        # All readers; those who ask for progress until the tip moves; those who follow the tip as it moves.
        self.notifier, self.tip_notifier, self.tip_followers = Notifier(), Notifier(), Notifier()
        # Of the channels that are made from this feed: projections and merges.
        self.channel_notifiers: dict[Notifier, None] = {}
        self.started = time.time()
        # Why the feed is not live, for /v1/feeds and for subscribers that wait.
        self.trouble = ""
        self._etcd = etcd
        self._limits = limits
        self._memory = memory
        self._owner = owner
        self._hold = memory.hold()
        # A pinned feed's: room for the next state, so that a fresh start has room beside the present view.
        self._reserve = memory.hold()
        self.history.ask_before_keeping(self._keep)
        self._clock = clock
        self._draw = draw
        self._backoff = Backoff()
        self._watch: Watch | None = None
        self._scope = TaskScope(f"feed {watched}", lambda _error: self._fail("unavailable"))
        self._state = StateReader(self.ranges, etcd, memory, scheduler, self)
        self._fresh = FreshSnapshots(self._state, self.history, keep=limits.sync_timeout, clock=clock)
        self._proof_pending = False
        self._merges_waiting = 0
        self._published = 0  # events
        self.staleness = Staleness(limits.stale_after, clock(), withdraws=etcd.is_gateway)
        self._backfill = RunningBackfill(
            self.core.backfill,
            watched,
            etcd,
            timeout=limits.sync_timeout,
            has_room=self._has_room,
            on_change=self._changed_for_all,
            on_denied=lambda: self._fail("revoked"),
            clock=clock,
        )

    @property
    def state(self) -> State:
        """The state of the core."""
        return self.core.state

    @property
    def backfilling(self) -> bool:
        """Whether a second watch of the range is open, to read history for old cursors."""
        return self._backfill.watching

    # --- inputs ------------------------------------------------------------------------------------------------------

    def start(self, *, backfill: bool) -> None:
        """Start the feed, once. *backfill*: a subscriber has a cursor. If the start fails, subscribers are closed."""
        self.handle(Start(backfill))

    def handle(self, given: FeedInput) -> None:
        """Pass one input to the core, execute its commands, and wake the readers."""
        with self._failing():
            self._step(given)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """If a defect raises an exception, end this feed and close its subscribers. The exception must not reach the
        stream, the task or the caller, which other feeds share.
        """
        try:
            yield
        except Exception:
            logger.exception("feed failed", extra={"range": str(self.range), "state": self.core.state.value})
            self._fail("unavailable")

    def _step(self, given: FeedInput) -> None:
        core = self.core
        before, joinable, generation = core.state, self.history.joinable, self.history.log.generation
        for command in core.handle(given, self._clock()):
            self._execute(command)
        if core.state is State.LIVE:
            self._note_proof()
            began = before is not State.LIVE
            if began:
                self.trouble, self.denied = "", False
                logger.info(
                    "feed live", extra={"range": str(self.range), "revision": self.history.log.tip, "keys": self.keys}
                )
            if began or self._etcd.is_gateway:  # a gateway says itself when it becomes stale
                self._update_staleness()
        if not self.history.joinable:
            self._backfill.stop()
        elif core.owes_backfill:
            self._backfill.want(None)
        if (joinable, generation) != (self.history.joinable, self.history.log.generation):
            self._changed_for_all()
        elif before is core.state is State.LIVE and isinstance(given, Progress):
            # Nothing has changed but the tip. To wake 5,000 readers that have nothing to read takes 13 ms.
            self._tip_moved()
        else:
            self._changed()

    def _changed_for_all(self) -> None:
        """Wake the readers of this feed, and of all channels that are made from this feed."""
        self._changed()
        for notifier in self.channel_notifiers:
            notifier.notify()

    def _changed(self) -> None:
        self._account()
        self._owner.published(self.history.events - self._published)
        self._published = self.history.events
        self.notifier.notify()
        self._tip_moved()

    def _tip_moved(self) -> None:
        self.tip_notifier.notify()
        self.tip_followers.notify()

    def _has_room(self) -> bool:
        self._account()
        return self._memory.has_room()

    def want_backfill(self, revision: int) -> bool:
        """Read history back to *revision*, a joiner's cursor below the log's floor. Return whether it can reach it."""
        core = self.core
        promised = core.backfill.promises(revision)
        # A gateway says itself when a single range is complete.
        trusted = self._etcd.progress_trusted or self._etcd.is_gateway
        if promised or core.may_backfill(revision, self._clock(), trusted=trusted):
            self._backfill.want(revision)
        return core.backfill.promises(revision)

    def restored(self) -> None:
        """Record that the cluster's history has been replaced."""
        if self.core.state not in (State.IDLE, State.CLOSED):
            self.handle(Restored())

    def stop(self) -> None:
        """End the feed: cancel its watch, tasks and timers. Idempotent; works whatever has failed before."""
        if self.core.state is State.CLOSED:
            return
        for command in self.core.handle(Stop(), 0.0):
            self._execute(command)
        self._backfill.end()
        self._scope.end()
        self._fresh.stop()
        self._changed()
        self._hold.release()
        self._reserve.release()
        self.history.ask_before_keeping(keep_all)

    # --- memory ------------------------------------------------------------------------------------------------------

    @property
    def unproven_bytes(self) -> int:
        """See ``app.watch.memory.Holder``."""
        return self.core.backfill.bytes

    @property
    def encoded_bytes(self) -> int:
        """See ``app.watch.memory.Holder``."""
        return self.history.encoded

    @property
    def log_bytes(self) -> int:
        """See ``app.watch.memory.Holder``."""
        return self.history.log.bytes

    def reclaim_unproven(self) -> int:
        """See ``app.watch.memory.Holder``."""
        before = self.unproven_bytes
        self._backfill.make_room()
        self._account()
        return before - self.unproven_bytes

    def reclaim_encoded(self) -> int:
        """See ``app.watch.memory.Holder``."""
        freed = self.history.reclaim_encoded()
        self._account()
        return freed

    def reclaim_log(self, size: int) -> int:
        """See ``app.watch.memory.Holder``."""
        freed = self.history.log.reclaim(size)
        self.history.followers.forget()
        self._account()
        return freed

    def reserve(self, *, wanted: bool) -> None:
        """Keep as many bytes free for the next state as the present state has, or none."""
        view = self.history.view
        if not wanted:
            self._reserve.set(0)
        elif self.core.state is State.LIVE and view is not None:
            self._memory.reserve(self._reserve, view.bytes - view.encoded)

    def reclaim_view(self) -> int:
        """See ``app.watch.memory.Holder``. Without the view, readers get the status ``stale``."""
        self._reserve.set(0)
        freed = self.history.reclaim_view()
        if freed:
            logger.warning(
                "feed gives up its old state for the new one", extra={"range": str(self.range), "bytes": freed}
            )
            self._fresh.forget()
            self._account()
            self._update_staleness()
            self._owner.view_reclaimed(self)
        return freed

    def _account(self) -> None:
        self._hold.set(self.core.bytes)

    def _keep(self, size: int) -> bool:
        """Return whether to keep *size* bytes of encoded data. If so, the bytes are counted."""
        self._account()
        return self._memory.grow_encoded(self, self._hold, size)

    async def join(self) -> None:
        """Wait until the tasks of a stopped feed have ended."""
        tasks: list[asyncio.Task[Any]] = [*self._scope.tasks, *self._backfill.scope.tasks]
        if self._fresh.task is not None:
            tasks.append(self._fresh.task)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _from_watch(self, given: WatchInput) -> None:
        with self._failing():
            self._hear(given)

    def _hear(self, given: WatchInput) -> None:
        if isinstance(given, Refused):
            self.trouble = given.reason or "etcd ended the watch"
            self.denied = given.denied
            logger.warning("watch refused", extra={"range": str(self.range), "reason": self.trouble})
            if given.denied and self.history.view is not None:
                # Neither present nor new subscribers may see this range any more.
                self._fail("revoked")
                return
        elif isinstance(given, Lost) and self.history.view is None:
            self.trouble = given.reason  # a gateway above that has no state either ends its streams
        self.handle(given)
        if isinstance(given, Lost) and given.too_large and self.core.state is State.OPENING:
            logger.warning("the missed events are too large for a watch", extra={"range": str(self.range)})
        if not self._memory.settle(self):
            self._fail_too_large()

    def _fail_too_large(self) -> None:
        logger.warning("feed too large", extra={"range": str(self.range), "bytes": self.core.bytes})
        self._fail(TooLargeError.close_reason)

    def _fail(self, reason: CloseReason) -> None:
        try:
            self.stop()
        finally:  # its subscribers must not follow a closed feed
            self._owner.failed(self, reason)

    # --- commands ----------------------------------------------------------------------------------------------------

    def _execute(self, command: Command) -> None:
        match command:
            case OpenWatch(start, stream_kind):
                self._close_watch()
                self._watch = self._etcd.watch(self.range, start, self._from_watch, stream_kind=stream_kind)
                self._ask_for_proof()
            case CloseWatch():
                self._close_watch()
            case TakeSnapshot():
                self.denied = False  # the watch is created; the state may fail for another reason
                self._scope.spawn(self._take_snapshot())
            case Probe(revision):
                self._scope.spawn(self._probe(revision))
            case TellRestored():
                self._owner.restored()
            case Retry(attempt):
                delay = (DENIED if self.denied else self._backoff).delay(attempt, self._draw())
                self._scope.set_timer(RetryDue, delay, lambda: self.handle(RetryDue()))
            case AwaitProof():
                self._proof_pending = True
                self._ask_for_proof()
                self._scope.set_timer(SyncTimeout, self._limits.sync_timeout, self._sync_timed_out)
            case EndProof():
                self._proof_pending = False
                self._ask_for_proof()
                self._scope.cancel_timer(SyncTimeout)

    def _close_watch(self) -> None:
        """Cancel the watch, and the requests made for its sake: their answers do not matter any more."""
        watch, self._watch = self._watch, None
        cancel_watch(watch)
        self._scope.cancel_tasks()
        self._scope.cancel_timer(RetryDue)

    def _sync_timed_out(self) -> None:
        logger.warning("resume not proven in time", extra={"range": str(self.range)})
        self.handle(SyncTimeout())

    async def _take_snapshot(self) -> None:
        self._reserve.set(0)  # this state is what the room was for
        try:
            snapshot, cluster_id, hold = await self._state.read()
        except TooLargeError as error:
            if _wanted():
                self._note_trouble("snapshot failed", error)
                self._fail_too_large()
        except (GatewayError, CompactedError, FutureRevisionError) as error:
            if _wanted():
                self._note_trouble("snapshot failed", error)
                self.handle(SnapshotFailed())
        else:
            with hold:
                if _wanted():
                    # Counted twice, the state may exceed the budget. Uncounted for a moment, others take its bytes.
                    self._hold.take_over(hold)
                    self.handle(SnapshotTaken(snapshot, cluster_id))

    async def _probe(self, revision: int) -> None:
        try:
            outcome = await self._etcd.probe(self.range, revision)
        except GatewayError as error:
            if _wanted():
                self._note_trouble("probe failed", error)
                self.handle(Probed("failed"))
        else:
            if _wanted():
                self.handle(Probed(outcome))

    def _note_trouble(self, what: str, error: Exception) -> None:
        text = str(error)
        if text != self.trouble:
            logger.warning(what, extra={"range": str(self.range), "reason": text})
        self.trouble = text

    # --- proof and staleness -----------------------------------------------------------------------------------------

    def await_tip(self, listener: Listener) -> None:
        """See ``app.watch.channel.Channel``."""
        self.tip_notifier.add(listener)
        self._ask_for_proof()

    def ignore_tip(self, listener: Listener) -> None:
        """See ``app.watch.channel.Channel``."""
        self.tip_notifier.discard(listener)
        self._ask_for_proof()

    def follow_tip(self, listener: Listener) -> None:
        """See ``app.watch.channel.Channel``."""
        self.tip_followers.add(listener)

    def leave_tip(self, listener: Listener) -> None:
        """See ``app.watch.channel.Channel``."""
        self.tip_followers.discard(listener)

    def _ask_for_proof(self) -> None:
        if self._watch is not None:
            self._watch.await_proof(self._proof_pending or len(self.tip_notifier) > 0)
            self._watch.hasten(self._merges_waiting > 0)

    def hasten(self, change: int) -> None:
        """Count a merge that waits for the feed's tip (+1), or no longer does (-1). While any does, ask very often."""
        self._merges_waiting += change
        self._ask_for_proof()

    def _note_proof(self) -> None:
        if self._watch is not None:
            self.staleness.note(self._watch.proven_at(self.history.log.tip))

    def check_staleness(self) -> None:
        """Become stale or live, and drop what is too old from the log. ``Feeds`` calls this once a second."""
        with self._failing():
            self.history.log.trim(self._clock())
            self._account()
            self._fresh.forget_old()
            self._update_staleness()

    def _update_staleness(self) -> None:
        age = self._proof_age()
        if self.staleness.update(self._clock(), time.time(), has_view=not self.history.view_reclaimed):
            self.history.note_staleness(self.staleness.since, self.staleness.outage)
            state, level = ("live", logging.INFO) if self.stale_since is None else ("stale", logging.WARNING)
            logger.log(level, "feed %s", state, extra={"range": str(self.range), "seconds": round(age, 1)})
            self._changed()

    def _proof_age(self) -> float:
        """Return the seconds since etcd last proved that the feed is current."""
        if self.core.state is State.LIVE:
            self._note_proof()
        return self.staleness.age(self._clock())

    @property
    def stale_since(self) -> float | None:
        """See ``app.watch.channel.Channel``."""
        return self.staleness.since

    @property
    def stale_ranges(self) -> Ranges:
        """See ``app.watch.channel.Channel``."""
        return () if self.staleness.since is None else self.ranges

    # --- for readers ahead of the feed -------------------------------------------------------------------------------

    async def linearizable_revision(self) -> int:
        """Return a linearizable revision from a read that began after this call. All waiting readers share the read."""
        return await self._etcd.revision(self.range)

    async def fresh_snapshot(self, at_least: int) -> Snapshot | None:
        """See ``app.watch.channel.Channel``."""
        return await self._fresh.get(at_least)

    def statistics(self, *, holders: tuple[Ranges, ...], subscribers: int, lag: int) -> FeedStatistics:
        """Return what the feed holds now. The registry knows its *holders*, their *subscribers* and *lag*."""
        return FeedStatistics(
            range=self.range,
            state=self.core.state,
            started=self.started,
            revision=self.history.log.tip,
            keys=self.keys,
            bytes=self.core.bytes,
            staleness=self._proof_age(),
            stale=self.stale_since is not None,
            backfilling=self.backfilling,
            trouble=self.trouble,
            pinned=self.pinned,
            reserved=self._reserve.size,
            holders=holders,
            subscribers=subscribers,
            lag=lag,
        )

    @property
    def keys(self) -> int:
        """The number of keys in the view."""
        return len(self.history.view) if self.history.view is not None else 0


def _wanted() -> bool:
    """Whether the core still waits for this task's answer: the task has not been cancelled.

    An answer can cancel its own task: its header may reveal a restore. No await follows that would raise.
    """
    task = asyncio.current_task()
    return task is None or not task.cancelling()
