"""The life of one watched range, as a state machine over its history.

Must live here: every decision about when a feed's history is complete, continues, or must start anew. Must not: what
readers see of it (``history``); how a watch proves itself in detail (``proof``); what lies below the log's floor
(``backfill``); tasks, timers, gRPC: the shell (``app.watch.feed``) executes the returned commands and feeds the
outcomes back.

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
    with a stream to itself; if a watch breaks its own stream so again, that watch is the cause. What lies between is
    then not asked for a third time: it is a fresh start. The others have proven themselves by then, and go back to a
    shared stream.

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

from collections.abc import Sequence
from enum import Enum

from .backfill import Backfill, Stage
from .events import Batch, Delete
from .feed_messages import (
    AwaitProof,
    CloseWatch,
    Commands,
    EndProof,
    FeedInput,
    OpenWatch,
    Probe,
    Probed,
    Restored,
    Retry,
    RetryDue,
    SnapshotFailed,
    SnapshotTaken,
    Start,
    Stop,
    StreamKind,
    SyncTimeout,
    TakeSnapshot,
)
from .history import History
from .log import Bounds
from .multiplex import Batches, Compacted, Created, Lost, Progress, Refused
from .proof import Anchor, Oversized, Plan, Proof
from .reasons import ResetReason
from .state_table import Transition, find_action, transition


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


class FeedCore:
    """See the module. ``handle`` is the only way in; ``backfill`` has its own. ``history`` is for readers to look at.

    Three values say how its watch stands:

    ``_proof``      what the watch still has to prove, from OPENING to CONFIRMING; None in every other state;
    ``_oversized``  whether a message over the limit was of this watch;
    ``_clear_at``   while LIVE, and that may be: the revision that ends the doubt, once the watch has said so much.
    """

    def __init__(self, bounds: Bounds, reach_back: int) -> None:
        self._bounds = bounds
        self._reach_back = reach_back
        self.state = State.IDLE
        self.history = History(bounds)
        self.backfill = Backfill(self.history, bounds, reach_back)
        self._proof: Proof | None = None
        self._oversized = Oversized.NO
        self._clear_at = 0
        self._attempt = 0

    @property
    def bytes(self) -> int:
        """Memory it is counted with: view, log, and what is held back."""
        return self.history.bytes + (self._proof.bytes if self._proof is not None else 0) + self.backfill.bytes

    @property
    def owes_backfill(self) -> bool:
        """Whether it is live at last, and somebody with a cursor has waited for that."""
        return self.backfill.owed and self.state is State.LIVE and self.backfill.stage is Stage.RESTING

    def may_backfill(self, revision: int, now: float, *, trusted: bool) -> bool:
        """Whether ``WantBackfill`` for a cursor at *revision* is worth it."""
        return self.state is State.LIVE and self.backfill.may_begin(revision, now, trusted=trusted)

    def handle(self, given: FeedInput, now: float) -> Commands:
        """Take one input; returns what is to be done, in order.

        Raises:
            InvalidTransitionError: the state does not know this input; nothing was changed.
        """
        before = self.state
        action = find_action(TABLE, before, given)
        if isinstance(given, Restored):
            self.history.restores += 1
        commands = action(self, given, now)
        if before is State.CATCHING_UP and self.state is not State.CATCHING_UP:
            commands = (EndProof(), *commands)
        return commands

    # --- starting ----------------------------------------------------------------------------------------------------

    def _start(self, given: Start, _now: float) -> Commands:
        self.backfill.owed = given.backfill
        return self._begin()

    def _begin(self) -> Commands:
        """A fresh start."""
        if self._oversized is Oversized.MAYBE:
            self._oversized = Oversized.NO  # a watch from now on asks for nothing that was too large
        self._proof = Proof(Plan.SNAPSHOT, self._bounds.bytes)
        self.state = State.OPENING
        return (OpenWatch(0),)

    def _start_anew(self, reason: ResetReason) -> Commands:
        if reason == "restored":
            self.history.restores += 1
        self.history.unproven = reason
        self._attempt = 0
        return (CloseWatch(), *self._begin())

    def _ignore(self, _given: FeedInput, _now: float) -> Commands:
        return ()

    def _opened(self, _given: FeedInput, _now: float) -> Commands:
        self.state = State.SNAPSHOTTING
        return (TakeSnapshot(),)

    def _retry_start(self, _given: FeedInput, _now: float) -> Commands:
        return self._retry(State.START_RETRY)

    def _retry(self, state: State) -> Commands:
        self._proof = None
        self.state = state
        self._attempt += 1
        return (CloseWatch(), Retry(self._attempt - 1))

    def _retry_due_to_start(self, _given: FeedInput, _now: float) -> Commands:
        return self._begin()

    def _hold_for_snapshot(self, given: Batches, _now: float) -> Commands:
        return () if self._hold_unless_behind(given) else self._retry(State.START_RETRY)

    def _snapshot_taken(self, given: SnapshotTaken, now: float) -> Commands:
        proof, history = self._proving(), self.history
        history.install(given.snapshot, given.cluster_id, oversized=self._oversized is Oversized.CERTAIN)
        self._oversized = Oversized.NO
        if proof.behind:
            return self._resume()
        self._become_live()
        return self._publish_all(proof.held_after(history.log.tip), now)

    # --- catching up -------------------------------------------------------------------------------------------------

    def _resume(self) -> Commands:
        """Go on after a break: at the anchor if etcd need not scan too far for it, otherwise after the tip."""
        anchor = self.history.anchor
        if anchor is not None and self.history.log.tip - anchor.revision <= self._reach_back:
            return self._open(Plan.OVERLAP, anchor.revision, anchor.revision - 1, anchor.revision)
        return self._resume_after_tip()

    def _resume_after_tip(self) -> Commands:
        tip = self.history.log.tip
        return self._open(Plan.PROBE, tip + 1, tip, tip)

    def _open(self, plan: Plan, start: int, floor: int, target: int) -> Commands:
        # Between an anchor and the tip the range has no other event, however many revisions lie there.
        stream_kind: StreamKind = "live" if self._oversized is Oversized.NO else "dedicated"
        self._proof = Proof(plan, self._bounds.bytes, start, floor, target, stream_kind)
        self.state = State.CATCHING_UP
        return (EndProof(), OpenWatch(start, stream_kind))

    def _proving(self) -> Proof:
        assert self._proof is not None, "only in states in which a watch has still to prove itself"
        return self._proof

    def _caught_created(self, given: Created, _now: float) -> Commands:
        proof = self._proving()
        proof.created = True
        proof.target = max(proof.target, given.revision)
        if proof.plan is Plan.PROBE and given.revision < proof.start:
            # Nothing lies between: this watch was never behind.
            return self._confirm()
        return (AwaitProof(),)

    def _caught_batches(self, given: Batches, now: float) -> Commands:
        proof = self._proving()
        proof.behind, proof.late = given.behind, given.late
        if not given.batches:
            return ()
        if proof.plan is Plan.OVERLAP:
            return self._check_overlap(given.batches, now)
        if not proof.hold(given.batches):
            return self._start_anew("lagged")
        if given.batches[-1].revision >= proof.target:
            return self._confirm()
        return ()

    def _check_overlap(self, found: Sequence[Batch], now: float) -> Commands:
        history, proof = self.history, self._proving()
        anchor = history.anchor
        assert anchor is not None, "an overlap has an anchor"
        if not anchor.matches(found[0]):
            return self._start_anew("restored")
        after = [batch for batch in found[1:] if batch.revision > anchor.snapshot_revision]
        if after and after[0].revision <= history.log.tip:
            # Progress had said that nothing is there: another history.
            return self._start_anew("restored")
        if proof.late:
            proof.floor = anchor.revision
            return self._confirm() if proof.hold(after) else self._start_anew("lagged")
        last = found[-1]
        if proof.behind and last.revision <= history.log.tip:
            # Nothing is new, so that the next watch would bring the same: it starts where this one came to.
            history.anchor = Anchor(last.revision, last.events, True, anchor.snapshot_revision)
        self._become_live()
        return self._go_on(after, now, behind=proof.behind)

    def _caught_progress(self, given: Progress, _now: float) -> Commands:
        proof = self._proving()
        if not given.trusted or not proof.created or given.revision < proof.target:
            return ()
        if proof.plan is Plan.OVERLAP:
            return self._start_anew(self._why_no_anchor())
        proof.behind = False
        return self._confirm()

    def _why_no_anchor(self) -> ResetReason:
        """The anchor would have come before: it never was, or it is a delete that a compaction exactly there took.

        A compaction exactly there keeps puts, so that a put that does not come tells of another history.
        """
        anchor = self.history.anchor
        assert anchor is not None, "an overlap has an anchor"
        deleted = all(isinstance(event, Delete) for event in anchor.events)
        return "unproven" if deleted else "restored"

    def _caught_compacted(self, given: Compacted, _now: float) -> Commands:
        self.history.note_compacted(given.revision)
        if given.revision <= self.history.log.tip and self._proving().plan is Plan.OVERLAP:
            return self._resume_after_tip()
        return self._start_anew("compacted")

    def _sync_timeout(self, _given: FeedInput, _now: float) -> Commands:
        return self._start_anew("unproven")

    def _confirm(self) -> Commands:
        self.state = State.CONFIRMING
        return (Probe(max(1, self._proving().floor)),)

    def _hold_for_probe(self, given: Batches, _now: float) -> Commands:
        return () if self._hold_unless_behind(given) else self._start_anew("lagged")

    def _hold_unless_behind(self, given: Batches) -> bool:
        """Hold what the watch says while a Range is under way. False when it is too much.

        The Range, which was asked for before, says nothing of what a watch that may be behind brings: the next watch
        brings that.
        """
        proof = self._proving()
        proof.behind |= given.behind
        return proof.behind or proof.hold(given.batches)

    def _probed(self, given: Probed, now: float) -> Commands:
        proof = self._proving()
        if given.outcome == "compacted":
            return self._start_anew("compacted")
        if given.outcome == "future":
            return self._start_anew("restored")
        if given.outcome == "failed":
            return self._retry(State.WATCH_RETRY)
        self._become_live()
        return self._go_on(proof.held_after(self.history.log.tip), now, behind=proof.behind)

    # --- live --------------------------------------------------------------------------------------------------------

    def _become_live(self) -> None:
        proof, self._proof = self._proof, None
        self.state = State.LIVE
        self._attempt = 0
        self._clear_at = proof.target if proof is not None else 0

    def _live_batches(self, given: Batches, now: float) -> Commands:
        return self._resume() if given.behind else self._publish_all(given.batches, now)

    def _go_on(self, proven: Sequence[Batch], now: float, *, behind: bool) -> Commands:
        """Publish what is proven; a watch that may be behind it starts again from there."""
        commands = self._publish_all(proven, now)
        return self._resume() if behind and self.state is State.LIVE else commands

    def _publish_all(self, found: Sequence[Batch], now: float) -> Commands:
        for batch in found:
            if not self.history.publish(batch, now):
                return self._start_anew("restored")
        return self._share_stream_when_clear()

    def _live_progress(self, given: Progress, _now: float) -> Commands:
        if given.trusted:
            self.history.log.advance(given.revision)
        # Said too early it proves nothing, but then the move costs more, and nothing is lost.
        return self._share_stream_when_clear(given.revision)

    def _share_stream_when_clear(self, said: int = 0) -> Commands:
        """From a stream to itself to a shared one, as after a break."""
        if self._oversized is Oversized.MAYBE and max(self.history.log.tip, said) >= self._clear_at:
            self._oversized = Oversized.NO
            return self._resume()
        return ()

    def _live_compacted(self, given: Compacted, _now: float) -> Commands:
        """A slow watch that compaction overtook."""
        self.history.note_compacted(given.revision)
        if given.revision > self.history.log.tip:
            return self._start_anew("compacted")
        return self._resume_after_tip()

    def _retry_watch(self, _given: FeedInput, _now: float) -> Commands:
        return self._retry(State.WATCH_RETRY)

    def _lost(self, given: Lost, _now: float) -> Commands:
        if given.too_large and self._oversized is Oversized.MAYBE:
            self._oversized = Oversized.CERTAIN  # the watch had the stream to itself
            return self._start_anew("lagged")
        if given.too_large:
            self._oversized = Oversized.MAYBE
        return self._retry(State.WATCH_RETRY)

    def _retry_due_to_watch(self, _given: FeedInput, _now: float) -> Commands:
        return self._resume()

    def _restored(self, _given: FeedInput, _now: float) -> Commands:
        return self._start_anew("restored")

    def _stop(self, _given: FeedInput, _now: float) -> Commands:
        self._proof = None
        self.state = State.CLOSED
        return (CloseWatch(),)


_F, _S = FeedCore, State

TABLE: dict[tuple[State, type], Transition[State]] = {
    (_S.IDLE, Start): transition(_F._start, _S.OPENING),
    (_S.IDLE, Stop): transition(_F._stop, _S.CLOSED),
    # A fresh watch first, then the snapshot.
    (_S.OPENING, Created): transition(_F._opened, _S.SNAPSHOTTING),
    (_S.OPENING, Refused): transition(_F._retry_start, _S.START_RETRY),
    (_S.OPENING, Compacted): transition(_F._retry_start, _S.START_RETRY),
    (_S.OPENING, Lost): transition(_F._retry_start, _S.START_RETRY),
    (_S.OPENING, Progress): transition(_F._ignore, _S.OPENING),
    (_S.OPENING, Restored): transition(_F._ignore, _S.OPENING),
    (_S.OPENING, Stop): transition(_F._stop, _S.CLOSED),
    (_S.SNAPSHOTTING, SnapshotTaken): transition(_F._snapshot_taken, _S.LIVE, _S.CATCHING_UP, _S.OPENING),
    (_S.SNAPSHOTTING, SnapshotFailed): transition(_F._retry_start, _S.START_RETRY),
    (_S.SNAPSHOTTING, Batches): transition(_F._hold_for_snapshot, _S.SNAPSHOTTING, _S.START_RETRY),
    (_S.SNAPSHOTTING, Progress): transition(_F._ignore, _S.SNAPSHOTTING),
    (_S.SNAPSHOTTING, Compacted): transition(_F._retry_start, _S.START_RETRY),
    (_S.SNAPSHOTTING, Refused): transition(_F._retry_start, _S.START_RETRY),
    (_S.SNAPSHOTTING, Lost): transition(_F._retry_start, _S.START_RETRY),
    (_S.SNAPSHOTTING, Restored): transition(_F._retry_start, _S.START_RETRY),
    (_S.SNAPSHOTTING, Stop): transition(_F._stop, _S.CLOSED),
    (_S.START_RETRY, RetryDue): transition(_F._retry_due_to_start, _S.OPENING),
    (_S.START_RETRY, Restored): transition(_F._ignore, _S.START_RETRY),
    (_S.START_RETRY, Stop): transition(_F._stop, _S.CLOSED),
    # A watch that started in the past proves itself.
    (_S.CATCHING_UP, Created): transition(_F._caught_created, _S.CATCHING_UP, _S.CONFIRMING),
    (_S.CATCHING_UP, Batches): transition(_F._caught_batches, _S.CATCHING_UP, _S.CONFIRMING, _S.LIVE, _S.OPENING),
    (_S.CATCHING_UP, Progress): transition(_F._caught_progress, _S.CATCHING_UP, _S.CONFIRMING, _S.OPENING),
    (_S.CATCHING_UP, Compacted): transition(_F._caught_compacted, _S.CATCHING_UP, _S.OPENING),
    (_S.CATCHING_UP, SyncTimeout): transition(_F._sync_timeout, _S.OPENING),
    (_S.CATCHING_UP, Refused): transition(_F._retry_watch, _S.WATCH_RETRY),
    (_S.CATCHING_UP, Lost): transition(_F._lost, _S.WATCH_RETRY, _S.OPENING),
    (_S.CATCHING_UP, Restored): transition(_F._restored, _S.OPENING),
    (_S.CATCHING_UP, Stop): transition(_F._stop, _S.CLOSED),
    (_S.CONFIRMING, Probed): transition(_F._probed, _S.LIVE, _S.CATCHING_UP, _S.OPENING, _S.WATCH_RETRY),
    (_S.CONFIRMING, Batches): transition(_F._hold_for_probe, _S.CONFIRMING, _S.OPENING),
    (_S.CONFIRMING, Progress): transition(_F._ignore, _S.CONFIRMING),
    (_S.CONFIRMING, Compacted): transition(_F._caught_compacted, _S.CATCHING_UP, _S.OPENING),
    (_S.CONFIRMING, Refused): transition(_F._retry_watch, _S.WATCH_RETRY),
    (_S.CONFIRMING, Lost): transition(_F._lost, _S.WATCH_RETRY, _S.OPENING),
    (_S.CONFIRMING, Restored): transition(_F._restored, _S.OPENING),
    (_S.CONFIRMING, Stop): transition(_F._stop, _S.CLOSED),
    # Live, and what may end that.
    (_S.LIVE, Batches): transition(_F._live_batches, _S.LIVE, _S.OPENING, _S.CATCHING_UP),
    (_S.LIVE, Progress): transition(_F._live_progress, _S.LIVE, _S.CATCHING_UP),
    (_S.LIVE, Compacted): transition(_F._live_compacted, _S.CATCHING_UP, _S.OPENING),
    (_S.LIVE, Refused): transition(_F._retry_watch, _S.WATCH_RETRY),
    (_S.LIVE, Lost): transition(_F._lost, _S.WATCH_RETRY, _S.OPENING),
    (_S.LIVE, Restored): transition(_F._restored, _S.OPENING),
    (_S.LIVE, Stop): transition(_F._stop, _S.CLOSED),
    (_S.WATCH_RETRY, RetryDue): transition(_F._retry_due_to_watch, _S.CATCHING_UP),
    (_S.WATCH_RETRY, Restored): transition(_F._restored, _S.OPENING),
    (_S.WATCH_RETRY, Stop): transition(_F._stop, _S.CLOSED),
}
