"""The life of one watched range, as a state machine over the range's history.

Must live here: every decision about when a feed's history is complete, continues, or must start anew. Must not: the
history that readers see (``history``); the details of a watch's proof (``proof``); history below the log's floor
(``backfill``); tasks, timers, gRPC: the shell (``app.watch.feed``) executes the returned commands and reports the
outcomes as inputs.

Theory of operation
    *Fresh start.* The feed first opens a watch "from now", and then takes the snapshot at a revision R. It drops the
    watch's events up to R. Such a watch was never slow, so no compaction can remove an event before etcd sends it. (A
    watch opened at R+1 *after* the snapshot can lose a delete exactly at a compaction revision: etcd #18089, seen on
    3.4.23, 3.5.1.)

    *Old cursors.* A separate watch reads the history below the log's floor (``backfill``). Whatever the result, the
    feed continues as if no client had asked.

    *After a break.* An anchor is a revision whose events the feed knows. The watch restarts *at* the anchor and must
    bring the same events again: that proves that the history is the same and that nothing was lost. The anchor may be
    unusable: compacted, or more than ``reach_back`` revisions old, so that etcd would have to scan them all. The watch
    then restarts at C+1, where C is the log's tip. The feed holds the watch's batches until they are complete, and
    accepts them only if a Range at revision C still succeeds.

    *A message over the limit* breaks its stream, and the error does not name the watch. So every watch of that stream
    continues on a dedicated stream. If a dedicated stream breaks for the same reason, its watch is the cause. The feed
    does not request the same events a third time, but makes a fresh start. The other watches have proven themselves by
    then and return to a shared stream.

    *A watch that may be slow* (``Batches.slow``, at versions that lose events of slow watches when a compaction
    intervenes) restarts as after a break. The feed does not publish what the watch brought while it may have been
    slow. The anchor is recent, because the first late message is itself correct. The anchor proves what the next
    watch brings. If the anchor comes late too, a Range at its revision must also succeed, because before 3.5.13 a full
    channel also hides that the anchor is compacted. Each restart brings up to 1,000 revisions in one round of etcd's
    (100 ms), so a flood of events does not hold up the feed.

    *At all times*, an event must be the next one of its key: a put of an absent key has version 1, and a put of a
    present key has the next version. Two restores in one break can leave everything else looking unchanged, and nothing
    else reveals lost puts and deletes.

    All other cases end in a fresh start and a new log generation. Every reader notices the new generation by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial

from .backfill import Backfill, Stage
from .ended_histories import EndedHistories
from .events import Batch, Delete
from .feed_messages import (
    AwaitProof,
    Batches,
    CloseWatch,
    Commands,
    Compacted,
    Created,
    EndProof,
    FeedInput,
    Lost,
    OpenWatch,
    Probe,
    Probed,
    Progress,
    Refused,
    Reset,
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
    TellRestored,
)
from .history import History
from .log import Bounds
from .proof import Anchor, Oversized, Plan, Proof
from .reasons import ResetReason
from .state_table import Transition, find_action, transition

# On Python 3.11 a member of an enum costs 0.10 us, a name of the module 0.015 us. Each message of etcd asks for it.
MAYBE = Oversized.MAYBE


class State(Enum):
    """The state of a feed."""

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
    """See the module. All inputs go through ``handle``; ``backfill`` has its own. Readers look at ``history``.

    Args:
        reach_back: the number of revisions of history that may be read.
        reach: returns how many of them can be read where the watch comes from; all by default. It is asked for each
            read, because an edge may learn its tier after it has made the feed.
        resets_told: the watch comes from another gateway, which says ``Reset`` if its history does not go on. A watch
            that restarts need not overlap then.
        ended: see ``History``.

    Three values describe the feed's watch:

    ``_proof``      what the watch still has to prove, from OPENING to CONFIRMING; None in every other state;
    ``_oversized``  whether a message over the limit belonged to this watch;
    ``_clear_at``   while LIVE with ``_oversized`` MAYBE: the doubt ends when the watch reaches this revision.
    """

    def __init__(
        self,
        bounds: Bounds,
        reach_back: int,
        reach: Callable[[int], int] = int,
        *,
        resets_told: bool = False,
        ended: EndedHistories | None = None,
    ) -> None:
        self._bounds = bounds
        # After a break, the distance of an anchor that the watch may start at.
        self._overlap = -1 if resets_told else reach_back
        self.state = State.IDLE
        self.history = History(bounds, ended)
        self.backfill = Backfill(self.history, bounds, partial(reach, reach_back))
        self._proof: Proof | None = None
        self._oversized = Oversized.NO
        self._clear_at = 0
        self._attempt = 0

    @property
    def bytes(self) -> int:
        """Memory that counts for the feed: the view, the log, and the batches that are held back."""
        return self.history.bytes + (self._proof.bytes if self._proof is not None else 0) + self.backfill.bytes

    @property
    def owes_backfill(self) -> bool:
        """Whether the feed is live now, and a subscriber with a cursor has waited for that."""
        return self.backfill.owed and self.state is State.LIVE and self.backfill.stage is Stage.RESTING

    def may_backfill(self, revision: int, now: float, *, trusted: bool) -> bool:
        """Whether ``WantBackfill`` for a cursor at *revision* is worthwhile."""
        return self.state is State.LIVE and self.backfill.may_begin(revision, now, trusted=trusted)

    def handle(self, given: FeedInput, now: float) -> Commands:
        """Take one input. Return the commands to execute, in order.

        Raises:
            InvalidTransitionError: the state does not accept this input; nothing was changed.
        """
        before = self.state
        action = find_action(TABLE, before, given)
        if isinstance(given, Restored):
            self.history.note_restored()
            if self.history.unproven is not None:
                self.history.unproven = "restored"  # the state to come is of another history, whatever its reason was
        commands = action(self, given, now)
        if before is State.CATCHING_UP and self.state is not State.CATCHING_UP:
            commands = (EndProof(), *commands)
        return commands

    # --- starting ----------------------------------------------------------------------------------------------------

    def _start(self, given: Start, _now: float) -> Commands:
        self.backfill.owed = given.backfill
        return self._begin()

    def _begin(self) -> Commands:
        """Make a fresh start."""
        if self._oversized is MAYBE:
            self._oversized = Oversized.NO  # a watch from now on does not request the message that was too large
        self._proof = Proof(Plan.SNAPSHOT, self._bounds.bytes)
        self.state = State.OPENING
        return (OpenWatch(0),)

    def _start_anew(self, reason: ResetReason) -> Commands:
        if reason == "restored":
            self.history.note_restored()
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
        return () if self._hold_unless_slow(given) else self._retry(State.START_RETRY)

    def _snapshot_taken(self, given: SnapshotTaken, now: float) -> Commands:
        proof, history = self._proving(), self.history
        history.install(given.snapshot, given.cluster_id, oversized=self._oversized is Oversized.CERTAIN)
        self._oversized = Oversized.NO
        if proof.slow:
            return self._resume()
        self._become_live()
        return self._publish_all(proof.held_after(history.log.tip), now)

    # --- catching up -------------------------------------------------------------------------------------------------

    def _resume(self) -> Commands:
        """Continue after a break: at the anchor if etcd need not scan too far, otherwise after the tip."""
        anchor = self.history.anchor
        if anchor is not None and self.history.log.tip - anchor.revision <= self._overlap:
            return self._open(Plan.OVERLAP, anchor.revision, anchor.revision - 1, anchor.revision)
        return self._resume_after_tip()

    def _resume_after_tip(self) -> Commands:
        tip = self.history.log.tip
        return self._open(Plan.PROBE, tip + 1, tip, tip)

    def _open(self, plan: Plan, start: int, floor: int, target: int) -> Commands:
        # An overlap has to reach only the anchor: the range has no event between the anchor and the tip, however many
        # revisions lie there.
        stream_kind: StreamKind = "live" if self._oversized is Oversized.NO else "dedicated"
        self._proof = Proof(plan, self._bounds.bytes, start, floor, target, stream_kind)
        self.state = State.CATCHING_UP
        return (EndProof(), OpenWatch(start, stream_kind))

    def _proving(self) -> Proof:
        assert self._proof is not None, "called only in states in which the watch still has to prove itself"
        return self._proof

    def _caught_created(self, given: Created, _now: float) -> Commands:
        proof = self._proving()
        proof.created = True
        proof.target = max(proof.target, given.revision)
        if proof.plan is Plan.PROBE and given.revision < proof.start:
            # The store has no revision after the tip: this watch was never slow.
            return self._confirm()
        return (AwaitProof(),)

    def _caught_batches(self, given: Batches, now: float) -> Commands:
        proof = self._proving()
        proof.slow, proof.late = given.slow, given.late
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
            anew = self._start_anew("restored")
            # A feed that knows no event within reach, or whose anchor is compacted, cannot notice.
            return (*anew, TellRestored()) if anchor.contradicts(found[0]) else anew
        after = [batch for batch in found[1:] if batch.revision > anchor.snapshot_revision]
        if after and after[0].revision <= history.log.tip:
            # Trusted progress ruled out any event up to the tip: this is another history.
            return self._start_anew("restored")
        if proof.late:
            proof.floor = anchor.revision
            return self._confirm() if proof.hold(after) else self._start_anew("lagged")
        last = found[-1]
        if proof.slow and last.revision <= history.log.tip:
            # These batches bring nothing new. The next watch must not repeat them, so it starts at the last of them.
            history.anchor = Anchor(last.revision, last.events, True, anchor.snapshot_revision)
        self._become_live()
        return self._go_on(after, now, slow=proof.slow)

    def _caught_progress(self, given: Progress, _now: float) -> Commands:
        proof = self._proving()
        if not given.trusted or not proof.created or given.revision < proof.target:
            return ()
        if proof.plan is Plan.OVERLAP:
            return self._start_anew(self._why_no_anchor())
        proof.slow = False
        return self._confirm()

    def _why_no_anchor(self) -> ResetReason:
        """Return why the watch did not bring the anchor, although progress has passed it.

        Either this history never had the anchor, or the anchor is a delete, and a compaction exactly at its revision
        removed it. Such a compaction keeps puts, so a missing put reveals another history.
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
        return () if self._hold_unless_slow(given) else self._start_anew("lagged")

    def _hold_unless_slow(self, given: Batches) -> bool:
        """Hold the watch's batches while a Range is in progress. Return False if they are too much.

        The Range was requested earlier, so it proves nothing about the batches of a watch that may be slow. The feed
        does not hold such batches: the next watch brings them.
        """
        proof = self._proving()
        proof.slow |= given.slow
        return proof.slow or proof.hold(given.batches)

    def _probed(self, given: Probed, now: float) -> Commands:
        proof = self._proving()
        if given.outcome == "compacted":
            return self._start_anew("compacted")
        if given.outcome == "future":
            return self._start_anew("restored")
        if given.outcome == "failed":
            return self._retry(State.WATCH_RETRY)
        self._become_live()
        return self._go_on(proof.held_after(self.history.log.tip), now, slow=proof.slow)

    # --- live --------------------------------------------------------------------------------------------------------

    def _become_live(self) -> None:
        proof, self._proof = self._proof, None
        self.state = State.LIVE
        self._attempt = 0
        self._clear_at = proof.target if proof is not None else 0

    def _live_batches(self, given: Batches, now: float) -> Commands:
        return self._resume() if given.slow else self._publish_all(given.batches, now)

    def _go_on(self, proven: Sequence[Batch], now: float, *, slow: bool) -> Commands:
        """Publish the batches *proven*. If etcd may serve the watch from history (*slow*), resume at the anchor."""
        commands = self._publish_all(proven, now)
        return self._resume() if slow and self.state is State.LIVE else commands

    def _publish_all(self, found: Sequence[Batch], now: float) -> Commands:
        for batch in found:
            if not self.history.publish(batch, now):
                return self._start_anew("restored")
        return self._share_stream_when_clear()

    def _live_progress(self, given: Progress, now: float) -> Commands:
        if given.trusted:
            self.history.advance(given.revision, now)
        # Progress that comes too early proves nothing. The move then costs more, but loses nothing.
        return self._share_stream_when_clear(given.revision)

    def _share_stream_when_clear(self, said: int = 0) -> Commands:
        """Move the watch from a dedicated stream to a shared one, as after a break. *said*: the progress's revision."""
        if self._oversized is MAYBE and max(self.history.log.tip, said) >= self._clear_at:
            self._oversized = Oversized.NO
            return self._resume()
        return ()

    def _live_compacted(self, given: Compacted, _now: float) -> Commands:
        """Handle a compaction that overtook a slow watch."""
        self.history.note_compacted(given.revision)
        if given.revision > self.history.log.tip:
            return self._start_anew("compacted")
        return self._resume_after_tip()

    def _retry_watch(self, _given: FeedInput, _now: float) -> Commands:
        return self._retry(State.WATCH_RETRY)

    def _lost(self, given: Lost, _now: float) -> Commands:
        if given.too_large and self._oversized is MAYBE:
            self._oversized = Oversized.CERTAIN  # the watch had the stream to itself
            return self._start_anew("lagged")
        if given.too_large:
            self._oversized = MAYBE
        return self._retry(State.WATCH_RETRY)

    def _retry_due_to_watch(self, _given: FeedInput, _now: float) -> Commands:
        return self._resume()

    def _restored(self, _given: FeedInput, _now: float) -> Commands:
        return self._start_anew("restored")

    def _reset(self, given: Reset, _now: float) -> Commands:
        return self._start_anew(given.reason)

    def _stop(self, _given: FeedInput, _now: float) -> Commands:
        self._proof = None
        self.history.drop()  # the feed's objects refer to each other: the collector may free them much later
        self.state = State.CLOSED
        return (CloseWatch(),)


_F, _S = FeedCore, State

TABLE: dict[tuple[State, type], Transition[State]] = {
    (_S.IDLE, Start): transition(_F._start, _S.OPENING),
    (_S.IDLE, Stop): transition(_F._stop, _S.CLOSED),
    # First a fresh watch, then the snapshot.
    (_S.OPENING, Created): transition(_F._opened, _S.SNAPSHOTTING),
    (_S.OPENING, Refused): transition(_F._retry_start, _S.START_RETRY),
    (_S.OPENING, Compacted): transition(_F._retry_start, _S.START_RETRY),
    (_S.OPENING, Lost): transition(_F._retry_start, _S.START_RETRY),
    (_S.OPENING, Reset): transition(_F._retry_start, _S.START_RETRY),
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
    (_S.SNAPSHOTTING, Reset): transition(_F._retry_start, _S.START_RETRY),
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
    (_S.CATCHING_UP, Reset): transition(_F._reset, _S.OPENING),
    (_S.CATCHING_UP, Restored): transition(_F._restored, _S.OPENING),
    (_S.CATCHING_UP, Stop): transition(_F._stop, _S.CLOSED),
    (_S.CONFIRMING, Probed): transition(_F._probed, _S.LIVE, _S.CATCHING_UP, _S.OPENING, _S.WATCH_RETRY),
    (_S.CONFIRMING, Batches): transition(_F._hold_for_probe, _S.CONFIRMING, _S.OPENING),
    (_S.CONFIRMING, Progress): transition(_F._ignore, _S.CONFIRMING),
    (_S.CONFIRMING, Compacted): transition(_F._caught_compacted, _S.CATCHING_UP, _S.OPENING),
    (_S.CONFIRMING, Refused): transition(_F._retry_watch, _S.WATCH_RETRY),
    (_S.CONFIRMING, Lost): transition(_F._lost, _S.WATCH_RETRY, _S.OPENING),
    (_S.CONFIRMING, Reset): transition(_F._reset, _S.OPENING),
    (_S.CONFIRMING, Restored): transition(_F._restored, _S.OPENING),
    (_S.CONFIRMING, Stop): transition(_F._stop, _S.CLOSED),
    # Live, and the inputs that may end that.
    (_S.LIVE, Batches): transition(_F._live_batches, _S.LIVE, _S.OPENING, _S.CATCHING_UP),
    (_S.LIVE, Progress): transition(_F._live_progress, _S.LIVE, _S.CATCHING_UP),
    (_S.LIVE, Compacted): transition(_F._live_compacted, _S.CATCHING_UP, _S.OPENING),
    (_S.LIVE, Refused): transition(_F._retry_watch, _S.WATCH_RETRY),
    (_S.LIVE, Lost): transition(_F._lost, _S.WATCH_RETRY, _S.OPENING),
    (_S.LIVE, Reset): transition(_F._reset, _S.OPENING),
    (_S.LIVE, Restored): transition(_F._restored, _S.OPENING),
    (_S.LIVE, Stop): transition(_F._stop, _S.CLOSED),
    (_S.WATCH_RETRY, RetryDue): transition(_F._retry_due_to_watch, _S.CATCHING_UP),
    (_S.WATCH_RETRY, Restored): transition(_F._restored, _S.OPENING),
    (_S.WATCH_RETRY, Stop): transition(_F._stop, _S.CLOSED),
}
