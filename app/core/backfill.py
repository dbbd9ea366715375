"""The backfill: reads a feed's history below the log's floor again, for subscribers that join with an old cursor.

Must live here: which part of etcd's history is read, when the read is proven, and when it is aborted. Must not: the
feed's own watch, view and generations (``feed``). The feed's subscribers receive the same events whether or not a
backfill runs.

Theory of operation
    The backfill opens a second, temporary watch ``reach()`` revisions before the log's tip. The start does not
    depend on the cursor that asked, so that other clients with slightly older cursors resume from the same read. The
    backfill holds back the batches of this watch. The read is complete when every batch up to the log's floor has
    arrived and the watch meets what the feed knows:

    * The log has batches: the watch must bring the first of them exactly as the log holds it.
    * The log is empty: an event at or above the floor, or trusted progress, completes the read. The read must include
      the anchor.

    The backfill then closes the watch. A count-only Range just below the watch's start must still succeed, which proves
    that etcd compacted nothing during the read. Finally, each key's next event in the log, or else its state in the
    view, must follow from the key's last event in the read. The backfill then prepends the proven batches to the log.

    Any other outcome ends the read and changes nothing else: the subscribers that waited for the read are reset. The
    next read begins after a wait. A read that is at most half as long may begin at once. So a read that is too long for
    its timeout is not repeated again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from .events import Batch, Event
from .feed_messages import (
    AwaitProof,
    BackfillInput,
    Batches,
    CloseWatch,
    Commands,
    Compacted,
    Created,
    EndProof,
    Lost,
    NoRoom,
    OpenWatch,
    Probe,
    Probed,
    Progress,
    Refused,
    Reset,
    Stop,
    StreamKind,
    SyncTimeout,
    WantBackfill,
)
from .history import History
from .log import EVERYTHING, Bounds
from .reasons import ResetReason
from .state_table import Transition, find_action, transition

# Seconds between two reads of one feed. Each failure doubles the wait, up to the second figure.
INTERVAL = 10.0
LONGEST_INTERVAL = 600.0
# How often one read may be started. It is restarted when its stream breaks, or when a compaction passes its start.
TRIES = 3


class Stage(Enum):
    """The stage of the read."""

    RESTING = "resting"
    OPENING = "opening"
    READING = "reading"
    CONFIRMING = "confirming"


@dataclass(slots=True)
class Reading:
    """The read in progress. All batches above ``floor`` and up to ``said`` have arrived and are held."""

    generation: int  # the log's generation when the read began
    newest: int  # the newest cursor that needs the read: a read that cannot serve this cursor is useless
    reach: int  # the floor that the read began with
    floor: int
    stream_kind: StreamKind = "backfill"
    said: int = 0
    tries: int = 1
    held: list[Batch] = field(default_factory=list)
    bytes: int = 0

    def release(self) -> None:
        """Drop the held batches."""
        self.held, self.bytes = [], 0


@dataclass(frozen=True, slots=True)
class Failure:
    """The last read, if it failed: the reason, and the range of revisions that it covered."""

    reason: ResetReason
    floor: int
    distance: int  # in revisions: how much history the read covered


class Backfill:
    """See the module. All inputs go through ``handle``. The backfill changes only the old end of *history*'s log.

    *reach*: returns how many revisions before the log's tip can be read.
    """

    def __init__(self, history: History, bounds: Bounds, reach: Callable[[], int]) -> None:
        self._history = history
        self._bounds = bounds
        self._reach = reach
        self.stage = Stage.RESTING
        # A subscriber with a cursor is waiting for the feed to start: a backfill is due as soon as the feed is live.
        self.owed = False
        self._reading: Reading | None = None
        self._failure: Failure | None = None
        self._failures = 0  # consecutive
        self._not_before = float("-inf")

    @property
    def bytes(self) -> int:
        """Memory of the batches that are held until they are proven."""
        return self._reading.bytes if self._reading is not None else 0

    def may_begin(self, revision: int, now: float, *, trusted: bool) -> bool:
        """Whether ``WantBackfill`` for a cursor at *revision* is worthwhile.

        The cursor must be in reach, and the read must be provable. The wait after the last read must be over, unless
        that read failed and this one is at most half as long.

        Args:
            revision: of the cursor.
            now: seconds.
            trusted: whether etcd's progress is trusted. An empty log has no event for the watch to meet, so that only
                trusted progress can complete the read.
        """
        log = self._history.log
        return (
            self.stage is Stage.RESTING
            and (trusted or len(log) > 0)
            and revision >= max(log.tip - self._reach(), self._history.oversized_revision, self._ended_revision)
            and len(log) < self._bounds.batches
            and log.bytes < self._bounds.bytes
            and (now >= self._not_before or self._is_much_less(log.floor - revision))
        )

    @property
    def _ended_revision(self) -> int:
        """Up to here a read is useless: nobody resumes a cursor of an ended history, and a gateway above resets it."""
        return min(self._history.ended_revision, self._history.log.floor)

    def _is_much_less(self, distance: int) -> bool:
        return self._failure is not None and distance <= self._failure.distance // 2

    def promises(self, revision: int) -> bool:
        """Whether a reader at *revision*, below the log's floor, may be served when the read is complete."""
        reading = self._reading
        return reading is not None and self._is_current(reading) and revision >= reading.floor

    def why_not(self, revision: int) -> ResetReason:
        """Return why a cursor at *revision*, below the log's floor, cannot be served.

        The first that applies: the reason that ended the cursor's history, a compaction in etcd, the failure of the
        last read, or ``lagged`` for a cursor out of reach.
        """
        ended = self._history.why_ended(revision)
        if ended is not None:
            return ended
        failure = self._failure
        return failure.reason if failure is not None and revision >= failure.floor else "lagged"

    def handle(self, given: BackfillInput, now: float) -> Commands:
        """Take one input. Return the commands to execute, in order, with the backfill's own watch and timeout.

        Raises:
            InvalidTransitionError: the stage does not accept this input; nothing was changed.
        """
        return find_action(TABLE, self.stage, given)(self, given, now)

    def abandon(self, now: float) -> None:
        """Abort the read after an internal error. The caller closes the watch and the timers."""
        if self._reading is not None:
            self._give_up("unproven", now)

    def _is_current(self, reading: Reading) -> bool:
        return reading.generation == self._history.log.generation

    def _now_reading(self) -> Reading:
        assert self._reading is not None, "called only while a read is in progress"
        return self._reading

    # --- beginning a read --------------------------------------------------------------------------------------------

    def _begin(self, given: WantBackfill, now: float) -> Commands:
        self.owed = False
        log = self._history.log
        oldest = max(self._history.oversized_revision, self._ended_revision) + 1
        start = max(1, log.tip - self._reach(), oldest)
        newest = log.floor if given.revision is None else given.revision
        if given.revision is not None and now < self._not_before:
            start = max(start, given.revision + 1)  # no older than the cursor needs: a longer read failed
        self._reading = Reading(log.generation, newest, start - 1, start - 1)
        return self._open()

    def _open(self) -> Commands:
        reading = self._now_reading()
        reading.release()
        reading.said = 0
        self.stage = Stage.OPENING
        return (AwaitProof(), OpenWatch(reading.floor + 1, reading.stream_kind))

    def _join(self, given: WantBackfill, _now: float) -> Commands:
        reading = self._now_reading()
        if given.revision is not None:
            reading.newest = max(reading.newest, given.revision)
        return ()

    def _again(self, reason: ResetReason, now: float) -> Commands:
        reading = self._now_reading()
        if reading.tries >= TRIES:
            return self._give_up(reason, now)
        reading.tries += 1
        return self._open()

    # --- messages of the watch ---------------------------------------------------------------------------------------

    def _created(self, _given: Created, _now: float) -> Commands:
        self.stage = Stage.READING
        return (AwaitProof(),)  # restart the timeout: time spent in the queue does not count

    def _ignore(self, _given: BackfillInput, _now: float) -> Commands:
        return ()

    def _batches(self, given: Batches, now: float) -> Commands:
        reading, log = self._now_reading(), self._history.log
        for batch in given.batches:
            if batch.revision > log.floor:
                return self._meet(batch, now)
            reading.held.append(batch)
            reading.bytes += batch.size
            reading.said = batch.revision
        if not self._fit():
            return self._give_up("lagged", now)
        return self._end_at_floor(now)

    def _meet(self, batch: Batch, now: float) -> Commands:
        """Compare the first batch above the floor with what the feed knows."""
        log, reading = self._history.log, self._now_reading()
        first = log.first
        if first is not None:
            proven = (batch.revision, batch.events) == (first.revision, first.events)
        else:
            # The tip of an empty log moves only by trusted progress, which ruled out any event up to the tip.
            proven = batch.revision > log.tip
        if not proven:
            return self._give_up("restored", now)
        # This batch does not count as read: only the log holds it, and the log may evict it before the read is
        # confirmed.
        reading.said = batch.revision - 1
        return self._confirm(now)

    def _progress(self, given: Progress, now: float) -> Commands:
        reading = self._now_reading()
        if not given.trusted:
            return ()
        first = self._history.log.first
        if first is not None and given.revision >= first.revision:
            return self._give_up("restored", now)  # the watch should have brought this batch before the progress
        reading.said = max(reading.said, given.revision)
        return self._end_at_floor(now)

    def _end_at_floor(self, now: float) -> Commands:
        """Confirm the read at the floor, if the log is empty. Otherwise the watch must meet the log's first batch."""
        log = self._history.log
        return self._confirm(now) if log.first is None and self._now_reading().said >= log.floor else ()

    def _compacted(self, given: Compacted, now: float) -> Commands:
        reading = self._now_reading()
        self._history.note_compacted(given.revision)
        reading.floor = max(reading.floor, given.revision)
        if reading.floor > reading.newest:
            return self._give_up("compacted", now)
        return self._again("compacted", now)

    def _reset(self, given: Reset, now: float) -> Commands:
        return self._give_up(given.reason, now)

    def _refused(self, _given: Refused, now: float) -> Commands:
        return self._give_up("unproven", now)

    def _lost(self, given: Lost, now: float) -> Commands:
        reading = self._now_reading()
        if given.too_large and reading.stream_kind == "dedicated":
            # The watch had the stream to itself, so the message was this watch's. The next try would meet it again.
            history = self._history
            history.oversized_revision = max(history.oversized_revision, history.log.floor)
            return self._give_up("lagged", now)
        if given.too_large:
            reading.stream_kind = "dedicated"
        return self._again("unproven", now)

    def _fit(self) -> bool:
        """Drop the oldest held batches that would not fit in the log. Return whether the rest still serves a cursor."""
        reading, log = self._now_reading(), self._history.log
        size, count = self._bounds.bytes - log.bytes, self._bounds.batches - len(log)
        drop = 0
        while drop < len(reading.held) and (reading.bytes > size or len(reading.held) - drop > count):
            reading.bytes -= reading.held[drop].size
            reading.floor = reading.held[drop].revision
            drop += 1
        del reading.held[:drop]
        return reading.floor <= reading.newest

    # --- proving the read --------------------------------------------------------------------------------------------

    def _confirm(self, now: float) -> Commands:
        if not self._fit():
            return self._give_up("lagged", now)
        self.stage = Stage.CONFIRMING
        return (CloseWatch(), AwaitProof(), Probe(max(1, self._now_reading().floor)))

    def _probed(self, given: Probed, now: float) -> Commands:
        if given.outcome != "ok":
            reasons: dict[str, ResetReason] = {"compacted": "compacted", "future": "restored", "failed": "unproven"}
            return self._give_up(reasons[given.outcome], now)
        reading, log = self._now_reading(), self._history.log
        if not self._is_current(reading) or reading.said < log.floor or not self._fit():
            # The log has moved on: it has a new generation, or its new floor lies beyond what was read.
            return self._give_up("lagged", now)
        if not self._joins():
            return self._give_up("restored", now)
        log.prepend(reading.held, min(reading.floor, log.floor), now)
        self._failure, self._failures = None, 0
        self._not_before = now + INTERVAL
        return self._rest()

    def _joins(self) -> bool:
        """Whether the feed's history continues the read: the read has the anchor, and each key's next event follows."""
        reading, history = self._now_reading(), self._history
        view, log = history.view, history.log
        assert view is not None, "a read needs a view to join"
        known = log.after(log.floor, EVERYTHING)
        held = [batch for batch in reading.held if batch.revision <= log.floor]
        anchor = history.anchor
        if not known and anchor is not None and anchor.revision > reading.floor and not any(map(anchor.matches, held)):
            return False
        last: dict[bytes, Event] = {event.key: event for batch in held for event in batch.events}
        for batch in known:
            for event in batch.events:
                old = last.pop(event.key, None)
                if old is not None and not event.follows(old):
                    return False
        return view.holds(last.values())

    # --- ending the read ---------------------------------------------------------------------------------------------

    def _rest(self) -> Commands:
        self._reading = None
        self.stage = Stage.RESTING
        return (EndProof(), CloseWatch())

    def _give_up(self, reason: ResetReason, now: float) -> Commands:
        reading = self._now_reading()
        if self._is_current(reading):
            self._failure = Failure(reason, reading.reach, self._history.log.floor - reading.reach)
        self._not_before = now + min(INTERVAL * 2.0 ** min(self._failures, 32), LONGEST_INTERVAL)
        self._failures += 1
        return self._rest()

    def _timed_out(self, _given: SyncTimeout, now: float) -> Commands:
        return self._give_up("unproven", now)

    def _no_room(self, _given: NoRoom, now: float) -> Commands:
        return self._give_up("lagged", now)

    def _stop(self, _given: Stop, _now: float) -> Commands:
        """End the read without counting a failure: the feed, or the generation that the read was for, has ended."""
        return self._rest()


_B, _S = Backfill, Stage

TABLE: dict[tuple[Stage, type], Transition[Stage]] = {
    (_S.RESTING, WantBackfill): transition(_B._begin, _S.OPENING),
    (_S.RESTING, Stop): transition(_B._ignore, _S.RESTING),
    (_S.OPENING, WantBackfill): transition(_B._join, _S.OPENING),
    (_S.OPENING, Created): transition(_B._created, _S.READING),
    (_S.OPENING, Progress): transition(_B._ignore, _S.OPENING),
    (_S.OPENING, Compacted): transition(_B._compacted, _S.OPENING, _S.RESTING),
    (_S.OPENING, Reset): transition(_B._reset, _S.RESTING),
    (_S.OPENING, Refused): transition(_B._refused, _S.RESTING),
    (_S.OPENING, Lost): transition(_B._lost, _S.OPENING, _S.RESTING),
    (_S.OPENING, SyncTimeout): transition(_B._timed_out, _S.RESTING),
    (_S.OPENING, NoRoom): transition(_B._no_room, _S.RESTING),
    (_S.OPENING, Stop): transition(_B._stop, _S.RESTING),
    (_S.READING, WantBackfill): transition(_B._join, _S.READING),
    (_S.READING, Batches): transition(_B._batches, _S.READING, _S.CONFIRMING, _S.RESTING),
    (_S.READING, Progress): transition(_B._progress, _S.READING, _S.CONFIRMING, _S.RESTING),
    (_S.READING, Compacted): transition(_B._compacted, _S.OPENING, _S.RESTING),
    (_S.READING, Reset): transition(_B._reset, _S.RESTING),
    (_S.READING, Refused): transition(_B._refused, _S.RESTING),
    (_S.READING, Lost): transition(_B._lost, _S.OPENING, _S.RESTING),
    (_S.READING, SyncTimeout): transition(_B._timed_out, _S.RESTING),
    (_S.READING, NoRoom): transition(_B._no_room, _S.RESTING),
    (_S.READING, Stop): transition(_B._stop, _S.RESTING),
    # The backfill's watch is closed in this stage.
    (_S.CONFIRMING, WantBackfill): transition(_B._join, _S.CONFIRMING),
    (_S.CONFIRMING, Probed): transition(_B._probed, _S.RESTING),
    (_S.CONFIRMING, SyncTimeout): transition(_B._timed_out, _S.RESTING),
    (_S.CONFIRMING, NoRoom): transition(_B._no_room, _S.RESTING),
    (_S.CONFIRMING, Stop): transition(_B._stop, _S.RESTING),
}
