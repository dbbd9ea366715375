"""The life of one watched range, as a state machine over its view and its log.

Must live here: every decision about when a feed's history is complete, continues, or must start anew. Must not: what
lies below the log's floor (``backfill``); tasks, timers, gRPC: the shell (``app.watch.feed``) executes the returned
commands and feeds the outcomes back.

Theory of operation
    *Fresh start.* The watch is opened "from now" first, then the snapshot is taken at R; what the watch said up to R
    is dropped. Such a watch was never behind, so no compaction can eat an event before it is sent (a watch opened at
    R+1 *after* the snapshot can lose a delete exactly at a compaction revision: etcd #18089, seen on 3.4.23, 3.5.1).

    *Cursors from before.* What lies below the log's floor is read beside all this, by a watch of its own
    (``backfill``): whatever comes of that, the feed is served and goes on as if nobody had asked.

    *After a break.* An anchor is a revision whose events we know. The watch restarts *at* it and must bring it again
    as we know it: that proves the same history with nothing lost. Without one (compacted, or more than ``reach_back``
    revisions ago: etcd would have to scan them all), it restarts at C+1, C = the log's tip, is held until complete,
    and is accepted only if a Range at revision C still answers.

    *A message over the limit* breaks its stream, and does not say whose it was. So every watch that was on it goes on
    with a stream to itself; one whose own stream breaks so again is the cause. What lies between is then not asked for
    a third time: it is a fresh start. The others have proven themselves by then, and go back to a shared stream.

    *A watch that may be behind* (``Batches.behind``, at versions that lose events of slow watches when a compaction
    comes between) starts again as after a break, and what it brought then is not published. Its anchor is recent: the
    late message that comes first is right in itself. What the next watch brings is proven by the anchor in it; if that
    came late, too, by a Range at the anchor's revision as well, because before 3.5.13 a full channel also hides that
    the anchor is compacted. Each round brings up to 1,000 revisions in a round of etcd's (100 ms), so a flood does not
    hold up the feed.

    *All the while*, what comes must be what comes next: a key that was not there has version 1, one that was has the
    next. Two restores in one break can make all else look as before, and lost puts and deletes show by nothing else.

    Anything else ends in a fresh start and a new log generation, which every reader notices by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from app.core.backfill import Backfill, Stage
from app.core.events import Batch, Delete, Event
from app.core.feed_messages import (
    AwaitProof,
    CloseWatch,
    Commands,
    EndProof,
    FeedInput,
    InvalidTransitionError,
    Lane,
    OpenWatch,
    Probe,
    Probed,
    Reason,
    Restored,
    Retry,
    RetryDue,
    SnapshotFailed,
    SnapshotTaken,
    Start,
    Stop,
    SyncTimeout,
    TakeSnapshot,
)
from app.core.log import Bounds, Log, MayKeep, keep_all
from app.core.multiplex import Batches, Compacted, Created, Lost, Progress, Refused
from app.core.view import View


class State(Enum):
    """Where a feed is in its life."""

    IDLE = "idle"
    OPENING = "opening"
    SNAPSHOTTING = "snapshotting"
    CATCHING_UP = "catching-up"
    CONFIRMING = "confirming"
    LIVE = "live"
    START_RETRY = "start-retry"
    WATCH_RETRY = "watch-retry"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Anchor:
    """A revision whose events we know, to be seen again after a break.

    ``exact``: *events* are all of them. Otherwise they are those that a snapshot still held, and what lies between
    ``revision`` and ``settled`` (the snapshot's revision) is known as state only.
    """

    revision: int
    events: Sequence[Event]
    exact: bool
    settled: int

    def matches(self, batch: Batch) -> bool:
        """Whether *batch* is this revision as we know it."""
        if batch.revision != self.revision:
            return False
        if self.exact:
            return batch.events == self.events
        return all(event in batch.events for event in self.events)


class Plan(Enum):
    """How a watch that starts in the past proves itself."""

    OVERLAP = "overlap"
    PROBE = "probe"


@dataclass(slots=True)
class CatchUp:
    """A watch under way that started in the past."""

    plan: Plan
    start: int
    floor: int  # nothing above it may be compacted while we read
    target: int  # complete when everything up to it was said
    lane: Lane
    created: bool = False
    behind: bool = False  # the last that came says so: etcd may still serve the watch from history
    late: bool = False  # the last that came did


class FeedCore:
    """See the module. ``handle`` is the only way in; ``history`` has its own. ``log``, ``view`` and ``state`` are for
    readers to look at.
    """

    def __init__(self, bounds: Bounds, reach_back: int) -> None:
        self._bounds = bounds
        self._reach_back = reach_back
        self.state = State.IDLE
        self.log = Log(bounds)
        self.view: View | None = None
        self.history = Backfill(self, bounds, reach_back)
        self.cluster_id = 0
        # Why the log's generation began: what a reader of an older one is told.
        self.reason: Reason = "initial"
        self._next_reason: Reason = "initial"
        # The view's history may not continue: nobody new is given it.
        self.doubted = False
        # There was a view; it is gone until the next one is read.
        self.gave_up_view = False
        self._may_keep: MayKeep = keep_all
        self._anchor: Anchor | None = None
        self._settled = 0  # the snapshot's revision: up to it a watch may repeat what the snapshot holds
        self._catch_up: CatchUp | None = None
        self._held: list[Batch] = []
        self._held_bytes = 0
        self._attempt = 0
        self._behind = False  # the watch was a slow one before there was a snapshot
        self._move_at = 0  # when the watch has said so much, it goes to a live stream; 0: it is on one
        self._suspect = False  # a message over the limit may have been ours: a stream of its own, until it is clear
        self._oversized = False  # it was: the next snapshot stands for it
        self._compacted = 0  # the greatest compaction revision that etcd has told us of
        # How many histories it has known to end: a cursor that came before the last did is of an ended one.
        self.restores = 0
        self.events_in = 0

    @property
    def encoded(self) -> int:
        """Bytes that ``shed_encoded`` can give back."""
        return self.view.encoded if self.view is not None else 0

    @property
    def anchor(self) -> Anchor | None:
        """The newest revision whose events are known; None where nothing is."""
        return self._anchor

    def keep(self, may_keep: MayKeep) -> None:
        """Have *may_keep* asked before anything encoded is kept."""
        self._may_keep = self.log.may_keep = may_keep

    def shed_encoded(self) -> int:
        """Do without what the view has encoded; bytes given back."""
        return self.view.shed() if self.view is not None else 0

    def give_up_view(self) -> int:
        """Let go of a view that nobody new is given any more, and of its log; bytes given back.

        Both views of a large range do not fit the memory. Readers wait then: the new generation begins with a ``reset``
        for all of them.
        """
        if self.view is None or not self.doubted:
            return 0
        given = self.view.bytes + self.log.clear()
        self.view, self.gave_up_view = None, True
        return given

    @property
    def joinable(self) -> bool:
        """Whether a joiner may be given what the view holds."""
        return self.view is not None and not self.doubted

    @property
    def bytes(self) -> int:
        """Memory it is counted with: view, log, and what is held back."""
        log, view = self.log, self.view.bytes if self.view is not None else 0
        return view + log.bytes + log.passing + self._held_bytes + self.history.bytes

    @property
    def owes_history(self) -> bool:
        """Whether it is live at last, and somebody with a cursor has waited for that."""
        return self.history.owed and self.state is State.LIVE and self.history.stage is Stage.RESTING

    def promises_history(self, revision: int) -> bool:
        """Whether a reader at *revision*, below the log's floor, may still be served when more history is read."""
        return self.history.promises(revision)

    def may_read_history(self, revision: int, now: float, *, trusted: bool) -> bool:
        """Whether ``WantHistory`` for a cursor at *revision* is worth it."""
        return self.state is State.LIVE and self.history.may_begin(revision, now, trusted=trusted)

    def note_compacted(self, revision: int) -> None:
        """etcd has told us so; a member that lags says less."""
        self._compacted = max(self._compacted, revision)

    def why_no_history(self, revision: int) -> Reason:
        """Why a cursor below the log's floor is not resumed.

        What ended the history that it knows of; or etcd has compacted it; or reading it failed; or it is out of reach.
        """
        if self.reason != "initial" and revision < self._settled:
            return self.reason
        return "compacted" if revision < self._compacted else self.history.why_not(revision)

    def handle(self, given: FeedInput, now: float) -> Commands:
        """Take one input; returns what is to be done, in order.

        Raises:
            InvalidTransitionError: the state does not know this input; nothing was changed.
        """
        before = self.state
        entry = TABLE.get((before, type(given)))
        if entry is None:
            msg = f"{type(given).__name__} in state {before.value}"
            raise InvalidTransitionError(msg)
        if isinstance(given, Restored):
            self.restores += 1
        commands = entry.action(self, given, now)
        if before is State.CATCHING_UP and self.state is not State.CATCHING_UP:
            commands = (EndProof(), *commands)
        return commands

    # --- starting ----------------------------------------------------------------------------------------------------

    def _start(self, given: Start, _now: float) -> Commands:
        self.history.owed = given.reach
        return self._begin()

    def _begin(self) -> Commands:
        """A fresh start."""
        self._catch_up = None
        self._suspect = False  # a watch from now on asks for nothing that was too large
        self._behind = False
        self._release_held()
        self.state = State.OPENING
        return (OpenWatch(0),)

    def _start_anew(self, reason: Reason) -> Commands:
        if reason == "restored":
            self.restores += 1
        self.doubted = True
        self._next_reason = reason
        self._attempt = 0
        return (CloseWatch(), *self._begin())

    def _ignore(self, _given: FeedInput, _now: float) -> Commands:
        return ()

    def _opened(self, _given: FeedInput, _now: float) -> Commands:
        self.state = State.SNAPSHOTTING
        return (TakeSnapshot(),)

    def _retry_start(self, _given: FeedInput, _now: float) -> Commands:
        self._release_held()
        self.state = State.START_RETRY
        self._attempt += 1
        return (CloseWatch(), Retry(self._attempt - 1))

    def _retry_due_to_start(self, _given: FeedInput, _now: float) -> Commands:
        return self._begin()

    def _hold_for_snapshot(self, given: Batches, now: float) -> Commands:
        self._behind |= given.behind
        if self._behind:
            return ()  # the next watch brings it
        if not self._hold(given.batches):
            return self._retry_start(given, now)
        return ()

    def _snapshot_behind_watch(self, given: SnapshotTaken, now: float) -> Commands:
        self._install(given)
        if self._behind:
            self._release_held()
            return self._resume()
        held, tip = self._take_held(), self.log.tip
        self._become_live()
        return self._publish_all([batch for batch in held if batch.revision > tip], now)

    def _install(self, given: SnapshotTaken) -> None:
        snapshot, tip = given.snapshot, self.log.tip
        self.view = View(snapshot, self._may_keep)
        self.gave_up_view = False
        self.log.restart(snapshot.revision)
        if self.cluster_id not in (0, given.cluster_id) or snapshot.revision < tip:
            # A snapshot is linearizable: etcd was restored, whatever made us take it.
            self._next_reason = "restored"
        self.cluster_id = given.cluster_id
        self.reason = self._next_reason
        # Once more: who came while the new history was being read came with a cursor of the old one.
        self.restores += self.reason == "restored"
        self.doubted = False
        self._settled = snapshot.revision
        if self._oversized or self.reason == "restored":
            self.history.unreadable = snapshot.revision if self._oversized else 0
        items = snapshot.items
        newest = max((item.mod_revision for item in items), default=0)
        self._anchor = (
            Anchor(newest, [item for item in items if item.mod_revision == newest], False, snapshot.revision)
            if newest and not self._oversized  # it may be the very revision that does not fit
            else None
        )
        self._oversized = False

    # --- catching up -------------------------------------------------------------------------------------------------

    def _resume(self) -> Commands:
        """Go on after a break: at the anchor if etcd need not scan too far for it, otherwise behind the tip."""
        anchor = self._anchor
        if anchor is not None and self.log.tip - anchor.revision <= self._reach_back:
            return self._open(Plan.OVERLAP, anchor.revision, anchor.revision - 1, anchor.revision)
        return self._resume_behind_tip()

    def _resume_behind_tip(self) -> Commands:
        return self._open(Plan.PROBE, self.log.tip + 1, self.log.tip, self.log.tip)

    def _open(self, plan: Plan, start: int, floor: int, target: int) -> Commands:
        self._release_held()
        # Between an anchor and the tip the range has no other event, however many revisions lie there.
        lane: Lane = "alone" if self._suspect else "live"
        self._catch_up = CatchUp(plan, start, floor, target, lane)
        self._move_at = 0
        self.state = State.CATCHING_UP
        return (EndProof(), OpenWatch(start, lane))

    def _pending(self) -> CatchUp:
        assert self._catch_up is not None, "only in CATCHING_UP and CONFIRMING"
        return self._catch_up

    def _caught_created(self, given: Created, _now: float) -> Commands:
        pending = self._pending()
        pending.created = True
        pending.target = max(pending.target, given.revision)
        if pending.plan is Plan.PROBE and given.revision < pending.start:
            # Nothing lies between: this watch was never behind.
            return self._confirm()
        return (AwaitProof(),)

    def _caught_batches(self, given: Batches, now: float) -> Commands:
        pending = self._pending()
        pending.behind, pending.late = given.behind, given.late
        if not given.batches:
            return ()
        if pending.plan is Plan.OVERLAP:
            return self._check_overlap(given.batches, now)
        if not self._hold(given.batches):
            return self._start_anew("lagged")
        if given.batches[-1].revision >= pending.target:
            return self._confirm()
        return ()

    def _check_overlap(self, found: Sequence[Batch], now: float) -> Commands:
        anchor, pending = self._anchor, self._pending()
        assert anchor is not None, "an overlap has an anchor"
        if not anchor.matches(found[0]):
            return self._start_anew("restored")
        after = [batch for batch in found[1:] if batch.revision > anchor.settled]
        if after and after[0].revision <= self.log.tip:
            # Progress had said that nothing is there: another history.
            return self._start_anew("restored")
        if pending.late:
            pending.floor = anchor.revision
            return self._confirm() if self._hold(after) else self._start_anew("lagged")
        last = found[-1]
        if pending.behind and last.revision <= self.log.tip:
            # Nothing is new, so that the next watch would bring the same: it starts where this one came to.
            self._anchor = Anchor(last.revision, last.events, True, anchor.settled)
        self._become_live()
        return self._go_on(after, now, behind=pending.behind)

    def _caught_progress(self, given: Progress, _now: float) -> Commands:
        pending = self._pending()
        if not given.trusted or not pending.created or given.revision < pending.target:
            return ()
        if pending.plan is Plan.OVERLAP:
            return self._start_anew(self._why_no_anchor())
        pending.behind = False
        return self._confirm()

    def _why_no_anchor(self) -> Reason:
        """The anchor would have come before: it never was, or it is a delete that a compaction exactly there took.

        A compaction exactly there keeps puts, so that a put that does not come tells of another history.
        """
        assert self._anchor is not None, "an overlap has an anchor"
        deleted = all(isinstance(event, Delete) for event in self._anchor.events)
        return "unproven" if deleted else "restored"

    def _caught_compacted(self, given: Compacted, _now: float) -> Commands:
        pending = self._pending()
        self.note_compacted(given.revision)
        if given.revision > self.log.tip:
            return self._start_anew("compacted")
        if pending.plan is Plan.OVERLAP:
            return self._resume_behind_tip()
        return self._start_anew("compacted")

    def _sync_timeout(self, _given: FeedInput, _now: float) -> Commands:
        return self._start_anew("unproven")

    def _confirm(self) -> Commands:
        self.state = State.CONFIRMING
        return (Probe(max(1, self._pending().floor)),)

    def _hold_for_probe(self, given: Batches, _now: float) -> Commands:
        pending = self._pending()
        pending.behind |= given.behind
        if pending.behind:
            return ()  # the probe, which was asked for before, says nothing of this; the next watch brings it
        return () if self._hold(given.batches) else self._start_anew("lagged")

    def _probed(self, given: Probed, now: float) -> Commands:
        pending = self._pending()
        if given.outcome == "compacted":
            return self._start_anew("compacted")
        if given.outcome == "future":
            return self._start_anew("restored")
        if given.outcome == "failed":
            return self._retry_watch(given, now)
        held, tip = self._take_held(), self.log.tip
        self._become_live()
        return self._go_on([batch for batch in held if batch.revision > tip], now, behind=pending.behind)

    # --- live --------------------------------------------------------------------------------------------------------

    def _become_live(self) -> None:
        pending, self._catch_up = self._catch_up, None
        self.state = State.LIVE
        self._attempt = 0
        self._move_at = pending.target if pending is not None and pending.lane != "live" else 0

    def _live_batches(self, given: Batches, now: float) -> Commands:
        return self._resume() if given.behind else self._publish_all(given.batches, now)

    def _go_on(self, proven: Sequence[Batch], now: float, *, behind: bool) -> Commands:
        """Publish what is proven; a watch that may be behind it starts again from there."""
        commands = self._publish_all(proven, now)
        return self._resume() if behind and self.state is State.LIVE else commands

    def _publish_all(self, found: Sequence[Batch], now: float) -> Commands:
        assert self.view is not None, "published before a snapshot"
        for batch in found:
            if batch.revision > self.log.tip:
                if not self.view.follows(batch):
                    return self._start_anew("restored")
                self._publish(batch, self.view, now)
            elif batch.revision > self._settled:
                # A watch never goes back, but for what the snapshot covers: this is not our history.
                return self._start_anew("restored")
        return self._move_when_caught_up()

    def _publish(self, batch: Batch, view: View, now: float) -> None:
        self.log.append(batch, now)
        view.apply(batch)
        self._anchor = Anchor(batch.revision, batch.events, True, batch.revision)
        self.events_in += len(batch.events)

    def _live_progress(self, given: Progress, _now: float) -> Commands:
        if given.trusted:
            self.log.advance(given.revision)
        # Said too early it proves nothing, but then the move costs more, and nothing is lost.
        return self._move_when_caught_up(given.revision)

    def _move_when_caught_up(self, said: int = 0) -> Commands:
        """From a stream to itself to a live one, as after a break."""
        if self._move_at and max(self.log.tip, said) >= self._move_at:
            self._suspect = False
            return self._resume()
        return ()

    def _live_compacted(self, given: Compacted, _now: float) -> Commands:
        """A slow watch that compaction overtook."""
        self.note_compacted(given.revision)
        if given.revision > self.log.tip:
            return self._start_anew("compacted")
        return self._resume_behind_tip()

    def _retry_watch(self, _given: FeedInput, _now: float) -> Commands:
        self._release_held()
        self.state = State.WATCH_RETRY
        self._attempt += 1
        return (CloseWatch(), Retry(self._attempt - 1))

    def _lost(self, given: Lost, now: float) -> Commands:
        if not given.too_large or not self._suspect:
            self._suspect |= given.too_large
            return self._retry_watch(given, now)
        # It was alone on its stream.
        self._oversized = True
        return self._start_anew("lagged")

    def _retry_due_to_watch(self, _given: FeedInput, _now: float) -> Commands:
        return self._resume()

    def _restored(self, _given: FeedInput, _now: float) -> Commands:
        return self._start_anew("restored")

    def _stop(self, _given: FeedInput, _now: float) -> Commands:
        self._release_held()
        self.state = State.CLOSED
        return (CloseWatch(),)

    # --- what is held back until it is proven ------------------------------------------------------------------------

    def _hold(self, found: Sequence[Batch]) -> bool:
        """Keep batches aside. Says False when they no longer fit."""
        self._held.extend(found)
        self._held_bytes += sum(batch.size for batch in found)
        # One revision may be larger than the bound; two that together are must not both be.
        return self._held_bytes <= self._bounds.bytes or len(self._held) == 1

    def _take_held(self) -> list[Batch]:
        held = self._held
        self._release_held()
        return held

    def _release_held(self) -> None:
        self._held, self._held_bytes = [], 0


@dataclass(frozen=True, slots=True)
class Entry:
    """What a state makes of an input, and where that may lead. The tests hold the actions to it; the docs draw it."""

    action: Callable[..., Commands]
    leads_to: tuple[State, ...]


def _entry(action: Callable[..., Commands], *leads_to: State) -> Entry:
    return Entry(action, leads_to)


_F, _S = FeedCore, State

TABLE: dict[tuple[State, type], Entry] = {
    (_S.IDLE, Start): _entry(_F._start, _S.OPENING),
    (_S.IDLE, Stop): _entry(_F._stop, _S.CLOSED),
    # A fresh watch first, then the snapshot.
    (_S.OPENING, Created): _entry(_F._opened, _S.SNAPSHOTTING),
    (_S.OPENING, Refused): _entry(_F._retry_start, _S.START_RETRY),
    (_S.OPENING, Compacted): _entry(_F._retry_start, _S.START_RETRY),
    (_S.OPENING, Lost): _entry(_F._retry_start, _S.START_RETRY),
    (_S.OPENING, Progress): _entry(_F._ignore, _S.OPENING),
    (_S.OPENING, Restored): _entry(_F._ignore, _S.OPENING),
    (_S.OPENING, Stop): _entry(_F._stop, _S.CLOSED),
    (_S.SNAPSHOTTING, SnapshotTaken): _entry(_F._snapshot_behind_watch, _S.LIVE, _S.CATCHING_UP, _S.OPENING),
    (_S.SNAPSHOTTING, SnapshotFailed): _entry(_F._retry_start, _S.START_RETRY),
    (_S.SNAPSHOTTING, Batches): _entry(_F._hold_for_snapshot, _S.SNAPSHOTTING, _S.START_RETRY),
    (_S.SNAPSHOTTING, Progress): _entry(_F._ignore, _S.SNAPSHOTTING),
    (_S.SNAPSHOTTING, Compacted): _entry(_F._retry_start, _S.START_RETRY),
    (_S.SNAPSHOTTING, Refused): _entry(_F._retry_start, _S.START_RETRY),
    (_S.SNAPSHOTTING, Lost): _entry(_F._retry_start, _S.START_RETRY),
    (_S.SNAPSHOTTING, Restored): _entry(_F._retry_start, _S.START_RETRY),
    (_S.SNAPSHOTTING, Stop): _entry(_F._stop, _S.CLOSED),
    (_S.START_RETRY, RetryDue): _entry(_F._retry_due_to_start, _S.OPENING),
    (_S.START_RETRY, Restored): _entry(_F._ignore, _S.START_RETRY),
    (_S.START_RETRY, Stop): _entry(_F._stop, _S.CLOSED),
    # A watch that started in the past proves itself.
    (_S.CATCHING_UP, Created): _entry(_F._caught_created, _S.CATCHING_UP, _S.CONFIRMING),
    (_S.CATCHING_UP, Batches): _entry(_F._caught_batches, _S.CATCHING_UP, _S.CONFIRMING, _S.LIVE, _S.OPENING),
    (_S.CATCHING_UP, Progress): _entry(_F._caught_progress, _S.CATCHING_UP, _S.CONFIRMING, _S.OPENING),
    (_S.CATCHING_UP, Compacted): _entry(_F._caught_compacted, _S.CATCHING_UP, _S.OPENING),
    (_S.CATCHING_UP, SyncTimeout): _entry(_F._sync_timeout, _S.OPENING),
    (_S.CATCHING_UP, Refused): _entry(_F._retry_watch, _S.WATCH_RETRY),
    (_S.CATCHING_UP, Lost): _entry(_F._lost, _S.WATCH_RETRY, _S.OPENING),
    (_S.CATCHING_UP, Restored): _entry(_F._restored, _S.OPENING),
    (_S.CATCHING_UP, Stop): _entry(_F._stop, _S.CLOSED),
    (_S.CONFIRMING, Probed): _entry(_F._probed, _S.LIVE, _S.CATCHING_UP, _S.OPENING, _S.WATCH_RETRY),
    (_S.CONFIRMING, Batches): _entry(_F._hold_for_probe, _S.CONFIRMING, _S.OPENING),
    (_S.CONFIRMING, Progress): _entry(_F._ignore, _S.CONFIRMING),
    (_S.CONFIRMING, Compacted): _entry(_F._caught_compacted, _S.OPENING),
    (_S.CONFIRMING, Refused): _entry(_F._retry_watch, _S.WATCH_RETRY),
    (_S.CONFIRMING, Lost): _entry(_F._lost, _S.WATCH_RETRY, _S.OPENING),
    (_S.CONFIRMING, Restored): _entry(_F._restored, _S.OPENING),
    (_S.CONFIRMING, Stop): _entry(_F._stop, _S.CLOSED),
    # Live, and what may end that.
    (_S.LIVE, Batches): _entry(_F._live_batches, _S.LIVE, _S.OPENING, _S.CATCHING_UP),
    (_S.LIVE, Progress): _entry(_F._live_progress, _S.LIVE, _S.CATCHING_UP),
    (_S.LIVE, Compacted): _entry(_F._live_compacted, _S.CATCHING_UP, _S.OPENING),
    (_S.LIVE, Refused): _entry(_F._retry_watch, _S.WATCH_RETRY),
    (_S.LIVE, Lost): _entry(_F._lost, _S.WATCH_RETRY, _S.OPENING),
    (_S.LIVE, Restored): _entry(_F._restored, _S.OPENING),
    (_S.LIVE, Stop): _entry(_F._stop, _S.CLOSED),
    (_S.WATCH_RETRY, RetryDue): _entry(_F._retry_due_to_watch, _S.CATCHING_UP),
    (_S.WATCH_RETRY, Restored): _entry(_F._restored, _S.OPENING),
    (_S.WATCH_RETRY, Stop): _entry(_F._stop, _S.CLOSED),
}
