"""Reading a feed's history below its log's floor again, for joiners with old cursors, beside the feed's own life.

Must live here: what of etcd's history is read, when it is proven, and when it is given up. Must not: the feed's own
watch, its view, its generations (``feed``): a follower is told the same whether or not somebody asks for history.

Theory of operation
    A second, temporary watch opens ``reach_back`` revisions before the log's tip, whatever the one cursor, so that the
    rest of a herd, a little older, resumes from the same read. What it says is held back. It has said enough when
    everything up to the log's floor has come, and it meets what the feed knows:

    * a log with batches: the watch must come to the first of them, exactly as the log holds it;
    * an empty log: an event at the floor or above, or trusted progress, ends the read; the anchor must have come.

    Then the watch is closed, and a count-only Range just below its start must still answer: nothing was compacted under
    it. At last, every key's last event must be what the next one in the log, or the view, follows from. What is proven
    goes in front of the log.

    Anything else ends the read, and nothing more: whoever waited for it is reset. The next read begins later, or is for
    less than half of what this one was for: a read that is too long for its time is not begun again and again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .events import Batch, Event
from .feed_messages import (
    AwaitProof,
    BackfillInput,
    CloseWatch,
    Commands,
    EndProof,
    NoRoom,
    OpenWatch,
    Probe,
    Probed,
    Stop,
    StreamKind,
    SyncTimeout,
    WantBackfill,
)
from .history import History
from .log import Bounds
from .multiplex import Batches, Compacted, Created, Lost, Progress, Refused
from .reasons import ResetReason
from .state_table import Transition, find_action, transition

# Seconds from one read of a feed to the next. After each that failed the wait doubles, up to the second figure.
INTERVAL = 10.0
LONGEST_INTERVAL = 600.0
# Times that one read is begun anew: a stream that broke, a compaction that went past its start.
TRIES = 3
EVERYTHING = 1 << 62  # bytes


class Stage(Enum):
    """Where the read is."""

    RESTING = "resting"
    OPENING = "opening"
    READING = "reading"
    CONFIRMING = "confirming"


@dataclass(slots=True)
class Reading:
    """History under way. Everything above ``floor``, and up to ``said``, has come and is held."""

    generation: int  # of the log, when it began
    newest: int  # the newest cursor that it is for: when it can't serve that, it serves nobody
    reach: int  # the floor that it began with
    floor: int
    stream_kind: StreamKind = "catch-up"
    said: int = 0
    tries: int = 1
    held: list[Batch] = field(default_factory=list)
    bytes: int = 0

    def release(self) -> None:
        """Hold nothing."""
        self.held, self.bytes = [], 0


@dataclass(frozen=True, slots=True)
class Failure:
    """The last read, if it failed: why, and for whom it was."""

    reason: ResetReason
    floor: int
    distance: int  # revisions that it was to read


class Backfill:
    """See the module. ``handle`` is the only way in. Of *history* only the old end of its log is changed."""

    def __init__(self, history: History, bounds: Bounds, reach_back: int) -> None:
        self._history = history
        self._bounds = bounds
        self._reach_back = reach_back
        self.stage = Stage.RESTING
        # Somebody with a cursor waited for the feed's start: as soon as it is live, history is to be read.
        self.owed = False
        self._reading: Reading | None = None
        self._failure: Failure | None = None
        self._failures = 0  # one after the other
        self._not_before = float("-inf")

    @property
    def bytes(self) -> int:
        """Memory that is held back until it is proven."""
        return self._reading.bytes if self._reading is not None else 0

    def may_begin(self, revision: int, now: float, *, trusted: bool) -> bool:
        """Whether ``WantBackfill`` for a cursor at *revision* is worth it: in reach, provable, not in vain before.

        *trusted*: whether progress is. An empty log can't be met by an event, as long as there is none.
        """
        log = self._history.log
        return (
            self.stage is Stage.RESTING
            and (trusted or len(log) > 0)
            and revision >= max(log.tip - self._reach_back, self._history.oversized_revision)
            and len(log) < self._bounds.batches
            and log.bytes < self._bounds.bytes
            and (now >= self._not_before or self._is_much_less(log.floor - revision))
        )

    def _is_much_less(self, distance: int) -> bool:
        return self._failure is not None and distance <= self._failure.distance // 2

    def promises(self, revision: int) -> bool:
        """Whether a reader at *revision*, below the log's floor, may be served when the read is done."""
        reading = self._reading
        return reading is not None and self._is_current(reading) and revision >= reading.floor

    def why_not(self, revision: int) -> ResetReason:
        """Why a cursor at *revision*, below the log's floor, is not served.

        What ended the history that it knows of; or etcd has compacted it; or reading it failed; or it is out of reach.
        """
        ended = self._history.why_ended(revision)
        if ended is not None:
            return ended
        failure = self._failure
        return failure.reason if failure is not None and revision >= failure.floor else "lagged"

    def handle(self, given: BackfillInput, now: float) -> Commands:
        """Take one input; returns what is to be done, in order: with a watch and a time-out of its own.

        Raises:
            InvalidTransitionError: the stage does not know this input; nothing was changed.
        """
        return find_action(TABLE, self.stage, given)(self, given, now)

    def abandon(self, now: float) -> None:
        """Give up whatever is under way, by an error of ours: the caller closes what is open."""
        if self._reading is not None:
            self._give_up("unproven", now)

    def _is_current(self, reading: Reading) -> bool:
        return reading.generation == self._history.log.generation

    def _now_reading(self) -> Reading:
        assert self._reading is not None, "not at rest"
        return self._reading

    # --- its beginning -----------------------------------------------------------------------------------------------

    def _begin(self, given: WantBackfill, now: float) -> Commands:
        self.owed = False
        log = self._history.log
        start = max(1, log.tip - self._reach_back, self._history.oversized_revision + 1)
        newest = log.floor if given.revision is None else given.revision
        if given.revision is not None and now < self._not_before:
            start = max(start, given.revision + 1)  # only as far as must be: further was too much
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

    # --- what its watch says -----------------------------------------------------------------------------------------

    def _created(self, _given: Created, _now: float) -> Commands:
        self.stage = Stage.READING
        return (AwaitProof(),)  # the wait for its turn is not of its own making

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
        """The first batch above the floor: here it meets what the feed knows."""
        log, reading = self._history.log, self._now_reading()
        first = log.first
        if first is not None:
            proven = (batch.revision, batch.events) == (first.revision, first.events)
        else:
            proven = batch.revision > log.tip  # otherwise progress had said that there is nothing
        if not proven:
            return self._give_up("restored", now)
        reading.said = batch.revision - 1  # the batch itself is the log's: gone from there, it would be nowhere
        return self._confirm(now)

    def _progress(self, given: Progress, now: float) -> Commands:
        reading = self._now_reading()
        if not given.trusted:
            return ()
        first = self._history.log.first
        if first is not None and given.revision >= first.revision:
            return self._give_up("restored", now)  # it would have come before
        reading.said = max(reading.said, given.revision)
        return self._end_at_floor(now)

    def _end_at_floor(self, now: float) -> Commands:
        """All is said; but where the log has batches, the watch must come to the first of them."""
        log = self._history.log
        return self._confirm(now) if log.first is None and self._now_reading().said >= log.floor else ()

    def _compacted(self, given: Compacted, now: float) -> Commands:
        reading = self._now_reading()
        self._history.note_compacted(given.revision)
        reading.floor = max(reading.floor, given.revision)
        if reading.floor > reading.newest:
            return self._give_up("compacted", now)
        return self._again("compacted", now)

    def _refused(self, _given: Refused, now: float) -> Commands:
        return self._give_up("unproven", now)

    def _lost(self, given: Lost, now: float) -> Commands:
        reading = self._now_reading()
        if given.too_large and reading.stream_kind == "dedicated":
            # The message was certainly of this watch, and will be the next time.
            history = self._history
            history.oversized_revision = max(history.oversized_revision, history.log.floor)
            return self._give_up("lagged", now)
        if given.too_large:
            reading.stream_kind = "dedicated"
        return self._again("unproven", now)

    def _fit(self) -> bool:
        """Forget old ends that would not fit the log; whether what is left is of use to anybody."""
        reading, log = self._now_reading(), self._history.log
        size, count = self._bounds.bytes - log.bytes, self._bounds.batches - len(log)
        drop = 0
        while drop < len(reading.held) and (reading.bytes > size or len(reading.held) - drop > count):
            reading.bytes -= reading.held[drop].size
            reading.floor = reading.held[drop].revision
            drop += 1
        del reading.held[:drop]
        return reading.floor <= reading.newest

    # --- its proof ---------------------------------------------------------------------------------------------------

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
            return self._give_up("lagged", now)  # the log has gone on without it
        if not self._joins():
            return self._give_up("restored", now)
        log.prepend(reading.held, min(reading.floor, log.floor), now)
        self._failure, self._failures = None, 0
        self._not_before = now + INTERVAL
        return self._rest()

    def _joins(self) -> bool:
        """Whether what the feed knows follows from what was read: its anchor came, and each key goes on from it."""
        reading, history = self._now_reading(), self._history
        view, log = history.view, history.log
        assert view is not None, "history is read below a view"
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

    # --- its end -----------------------------------------------------------------------------------------------------

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
        """The feed has ended, or the generation that it was read for: that is not a failure."""
        return self._rest()


_B, _S = Backfill, Stage

TABLE: dict[tuple[Stage, type], Transition[Stage]] = {
    (_S.RESTING, WantBackfill): transition(_B._begin, _S.OPENING),
    (_S.RESTING, Stop): transition(_B._ignore, _S.RESTING),
    (_S.OPENING, WantBackfill): transition(_B._join, _S.OPENING),
    (_S.OPENING, Created): transition(_B._created, _S.READING),
    (_S.OPENING, Progress): transition(_B._ignore, _S.OPENING),
    (_S.OPENING, Compacted): transition(_B._compacted, _S.OPENING, _S.RESTING),
    (_S.OPENING, Refused): transition(_B._refused, _S.RESTING),
    (_S.OPENING, Lost): transition(_B._lost, _S.OPENING, _S.RESTING),
    (_S.OPENING, SyncTimeout): transition(_B._timed_out, _S.RESTING),
    (_S.OPENING, NoRoom): transition(_B._no_room, _S.RESTING),
    (_S.OPENING, Stop): transition(_B._stop, _S.RESTING),
    (_S.READING, WantBackfill): transition(_B._join, _S.READING),
    (_S.READING, Batches): transition(_B._batches, _S.READING, _S.CONFIRMING, _S.RESTING),
    (_S.READING, Progress): transition(_B._progress, _S.READING, _S.CONFIRMING, _S.RESTING),
    (_S.READING, Compacted): transition(_B._compacted, _S.OPENING, _S.RESTING),
    (_S.READING, Refused): transition(_B._refused, _S.RESTING),
    (_S.READING, Lost): transition(_B._lost, _S.OPENING, _S.RESTING),
    (_S.READING, SyncTimeout): transition(_B._timed_out, _S.RESTING),
    (_S.READING, NoRoom): transition(_B._no_room, _S.RESTING),
    (_S.READING, Stop): transition(_B._stop, _S.RESTING),
    # Its watch is closed.
    (_S.CONFIRMING, WantBackfill): transition(_B._join, _S.CONFIRMING),
    (_S.CONFIRMING, Probed): transition(_B._probed, _S.RESTING),
    (_S.CONFIRMING, SyncTimeout): transition(_B._timed_out, _S.RESTING),
    (_S.CONFIRMING, NoRoom): transition(_B._no_room, _S.RESTING),
    (_S.CONFIRMING, Stop): transition(_B._stop, _S.RESTING),
}
