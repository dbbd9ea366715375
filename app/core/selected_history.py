"""The history of a selection that is not exactly one feed: a projection of one feed, or a merge of several.

Must live here: which revisions of the feeds the selection's readers may see, and as what. Must not: whether a feed's
own history is complete (``feed``); tasks, and asking etcd for progress (``app.watch.selected_channel``).

Theory of operation
    *A projection* is made of one feed. Each revision of the feed becomes the events that lie in the selection, at once.
    The tip is the feed's tip, read when a reader looks: a quiet selection inside a busy feed wakes nobody, and its
    readers still move on. They lack nothing, however much the feed's log has forgotten meanwhile.

    *A merge* is made of several feeds, and has one order: that of one watch of the union. An event at revision r of one
    feed proves nothing about another feed. So a revision waits until the tip of every feed has reached it. A tip moves
    by the feed's own events, or by progress that etcd has proven.

    *The view.* The feeds' views run ahead of each other, and waiting for one common revision would never end under
    constant writes. So the merge takes the feeds' views as they are. Its *start* is the greatest of their revisions.
    The feeds that are below the start bring their events up to the start into the view, and nobody sees the view before
    all of them have reached the start.

    *Generations.* If a feed begins a new generation, the selection does too, for the same reason. If a feed's log
    forgets a revision that still waits, the selection starts anew, ``lagged``. It does so when every feed has reached
    the newest revision of that time: while one feed stands still, the views, with all their keys, would be taken in
    vain, once for each length of the other feed's log.

    *Outages.* When all feeds are live again, some may have changes that the others have not reached. The readers lack
    these changes, which may be as old as the outage. So the selection is not live before it has released them, nor
    while it starts anew.

    *Memory.* Views and logs of a selection hold the feeds' own items and events. The log of a selection holds no batch
    that the log of a feed has evicted, so that the feeds count the bytes of every value that a selection holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from .awaiting_parts import AwaitingParts
from .events import REFERENCE, Batch, Event
from .history import History
from .log import EVERYTHING, Bounds, Log, MayKeep, keep_all
from .readable_history import OlderHistory
from .reasons import ResetReason
from .selection import Ranges
from .snapshot import Snapshot
from .staleness import Outage
from .view import View


def _nothing() -> None:
    pass


class Part:
    """The part of a selection that lies in one feed. Receives the feed's events in its ranges (``Follower``)."""

    __slots__ = ("_owner", "generation", "history", "older", "ranges", "waiting")

    def __init__(self, owner: SelectedHistory, history: History, older: OlderHistory, ranges: Ranges) -> None:
        self._owner = owner
        self.history = history
        self.older = older
        self.ranges = ranges
        self.generation = -1  # of the feed's log, when the selection last started from it
        self.waiting: deque[Batch] = deque()  # revisions that not every feed has reached

    def leave(self) -> None:
        """Refer to the selection no more. The feed has forgotten this follower. Idempotent."""
        self._owner = None  # type: ignore[assignment]  # nothing is called any more

    def publish(self, batch: Batch, now: float) -> None:
        """See ``Follower``."""
        self._owner.take(self, batch, now)

    def advance(self, now: float) -> None:
        """See ``Follower``."""
        self._owner.advance(now)

    def forget(self) -> None:
        """See ``Follower``."""
        self._owner.trim()

    def restart(self) -> None:
        """See ``Follower``."""
        self._owner.restart()

    def note_staleness(self) -> None:
        """See ``Follower``."""
        self._owner.note_staleness()

    def project(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return what the part sees of the feed's *batches*."""
        found: list[Batch] = []
        for batch in batches:
            events = [event for event in batch.events if any(one.contains(event.key) for one in self.ranges)]
            if events:
                found.append(Batch(batch.revision, events, shared=True))
        return found


class SelectedHistory(AwaitingParts[Part]):
    """See the module. Readers follow it as they follow a feed's ``History``.

    Args:
        sources: of each feed: its history, its older history, and the selection's ranges in it.
        bounds: of the log.
        on_change: called when readers may have something to read.
        on_wait: called when ``awaited`` has changed.
    """

    def __init__(
        self,
        sources: Sequence[tuple[History, OlderHistory, Ranges]],
        bounds: Bounds,
        on_change: Callable[[], None],
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__([Part(self, history, older, ranges) for history, older, ranges in sources], on_wait)
        self._feed_logs = [history.log for history, _, _ in sources]
        # The log of a projection's only feed.
        self._feed_log = self._feed_logs[0] if len(sources) == 1 else None
        self._looked_at: list[int] = []  # the tips of the feeds when the selection last looked
        self.reason: ResetReason = "initial"
        self._on_change = on_change
        self._log = Log(bounds)
        self._view: View | None = None
        # The revision at which the view begins to be consistent. Readers see the view from then on.
        self._start = 0
        self._started = False
        # A feed's log has forgotten a revision that waited. The selection starts anew when every feed has reached this
        # revision; 0 if nothing was forgotten.
        self._lagged_at = 0
        # Readers have been able to see the present generation, and so its reason.
        self._seen = False
        # The ranges that are stale, and since when; after an outage, until everything is released that arrived in it.
        self._stale: tuple[Ranges, float] | None = None
        self._unreleased: Outage | None = None  # the last outage, until then
        self._now = 0.0
        self._may_keep: MayKeep = keep_all

    # --- following the feeds ------------------------------------------------------------------------------------------

    def follow(self, now: float) -> None:
        """Begin to follow the feeds, once."""
        self._now = now
        self._follow_feeds()
        self.note_staleness()
        self.restart()

    def leave(self) -> None:
        """Stop following the feeds, and drop everything. Idempotent."""
        self._leave_feeds()
        self._drop()
        for part in self.parts:
            part.leave()
        self._await(frozenset())
        # These refer to the channel, which refers to this history: the two would wait for the garbage collector.
        self._on_change = self._on_wait = _nothing
        self.ask_before_keeping(keep_all)

    def take(self, part: Part, batch: Batch, now: float) -> None:
        """Take the next revision of one part."""
        self._now = now
        if self._lagged_at and not self._lags:
            self.restart()  # from views that have this change
            return
        if self._view is None or not self._continues:
            self._update_awaited()  # this feed may be where the selection starts anew, while another one is not
            return
        if batch.revision <= self._start:
            # The start is not reached yet: another feed's view was taken at a higher revision.
            self._view.apply(batch)
        else:
            part.waiting.append(batch)
        self._go_on()

    def advance(self, now: float) -> None:
        """Release what no longer waits: the tip of a feed has moved."""
        self._now = now
        if self._lagged_at and not self._lags:
            self.restart()  # from views that have this change
            return
        if self._view is not None and self._continues:
            self._go_on()
        else:
            self._update_awaited()

    def restart(self) -> None:
        """Start anew from the feeds' views if a feed has begun a new generation, or has dropped its view."""
        if all(part.history.joinable for part in self.parts):
            if (self._view is None or not self._continues) and not self._lags:
                self._take_views()
                self._go_on()
        elif not self._same_generations or any(part.history.view is None for part in self.parts):
            # The rest of an old state must not come, and the feed that is replaced does not count its values any more.
            self._drop()
        self._update_awaited()
        self._on_change()

    def note_staleness(self) -> None:
        """Find out which ranges are stale: a feed has become stale or live."""
        stale = [(part, since) for part in self.parts if (since := part.history.stale_since) is not None]
        if stale:
            ranges = sorted((one for part, _ in stale for one in part.ranges), key=lambda one: one.name)
            self._stale = tuple(ranges), min(since for _, since in stale)
        self._unreleased = self.outage
        self._end_outage()
        self._on_change()

    def _end_outage(self) -> None:
        """Be live if no feed is stale, and everything is released that arrived while one was.

        Before the selection has started anew, its readers lack even the state that a feed came back with.
        """
        if not self._started or not self._continues:
            return
        if self._unreleased is not None and not self._waits_since(self._unreleased.ended_at):
            self._unreleased = None
        if self._unreleased is None and not any(part.history.stale for part in self.parts):
            self._stale = None

    def _waits_since(self, time: float) -> bool:
        """Whether a change waits that had arrived at *time*."""
        waiting = [part for part in self.parts if part.waiting]
        arrived_at = [part.history.log.lacks_since(part.waiting[0].revision - 1) for part in waiting]
        return any(one is not None and one <= time for one in arrived_at)

    @property
    def _continues(self) -> bool:
        """Whether the selection has everything that its feeds have published since its start."""
        return not self._lagged_at and self._same_generations

    @property
    def _lags(self) -> bool:
        """Whether the selection waits for a feed before it starts anew, because a log has forgotten what waited.

        A new generation of a feed ends that: its revisions may be lower.
        """
        return self._lagged_at > self._proven and self._same_generations

    @property
    def _same_generations(self) -> bool:
        return all(part.generation == part.history.log.generation for part in self.parts)

    def _go_on(self) -> None:
        tip = self._proven
        changed = False
        if not self._started and tip >= self._start:
            changed = self._started = self._seen = True
            self._log.restart(self._start)
        if self._started:
            changed |= self._release(tip)
        if self._stale is not None:
            self._end_outage()
        if self._lag():
            return
        self._update_awaited()
        if changed:
            self._on_change()

    def _lag(self) -> bool:
        """Return whether a feed's log has forgotten a revision that waits. Then the selection starts anew."""
        if not any(part.waiting and part.waiting[0].revision <= part.history.log.floor for part in self.parts):
            return False
        self._lagged_at = max(part.history.log.tip for part in self.parts)
        self._drop()
        self.restart()
        return True

    def _update_awaited(self) -> None:
        """Find out which feeds must move, and wait for them."""
        awaited: frozenset[Part] = frozenset()
        if self._lags:
            awaited = frozenset(part for part in self.parts if part.history.log.tip < self._lagged_at)
        elif self._feed_log is None and self._view is not None and self._continues:
            last = [part.waiting[-1].revision for part in self.parts if part.waiting]
            newest = max(last, default=0) if self._started else self._start
            awaited = frozenset(part for part in self.parts if part.history.log.tip < newest)
        self._await(awaited)

    def _take_views(self) -> None:
        known = [part for part in self.parts if part.generation not in (-1, part.history.log.generation)]
        reasons: list[ResetReason] = [part.history.reason for part in known]
        if self._lagged_at:
            reasons.append("lagged")
        if not self._seen:
            reasons.insert(0, self.reason)  # no reader has received it
        if reasons:
            # Only "restored" says that cursors of the old history are worthless.
            self.reason = "restored" if "restored" in reasons else reasons[0]
        blocks = []
        self._start = 0
        for part in self.parts:
            view, log = part.history.view, part.history.log
            assert view is not None, "a history that may be joined has a view"
            blocks += view.within(part.ranges)
            self._start = max(self._start, view.revision)
            part.generation = log.generation
            part.waiting.clear()
        # The ranges of a part are in the order of their keys, but the parts' ranges may lie between each other's.
        blocks.sort(key=lambda block: block.items[0].key)
        self._view = View(Snapshot(self._start, blocks), self._may_keep)
        self._lagged_at = 0
        self._started = self._seen = False

    def _drop(self) -> None:
        self._view = None
        self._started = False
        self._log.clear()
        for part in self.parts:
            part.waiting.clear()

    def _release(self, tip: int) -> bool:
        """Publish what waits, up to *tip*. Return whether there was anything."""
        released = False
        while (revision := self._first_waiting) <= tip:
            if self._unreleased is not None:
                self._end_outage()
            outage = self._unreleased
            at = self._now if outage is None else min(self._now, outage.ended_at)
            events: list[Event] = []
            for part in self.parts:
                if part.waiting and part.waiting[0].revision == revision:
                    events += part.waiting.popleft().events
            batch = Batch(revision, events, shared=True)
            assert self._view is not None, "events wait only for a view"
            self._log.append(batch, at)
            self._view.apply(batch)
            released = True
        if released:
            self._log.forget(self._feeds_floor)
        return released

    @property
    def _first_waiting(self) -> int:
        return min((part.waiting[0].revision for part in self.parts if part.waiting), default=1 << 63)

    @property
    def _proven(self) -> int:
        """The revision up to which every feed is complete."""
        return min(part.history.log.tip for part in self.parts)

    # --- for readers (``app.core.readable_history``) ------------------------------------------------------------------

    @property
    def log(self) -> Log:
        """The log, as far as the feeds have proven it."""
        # Each delivery reads this about five times, and to look costs 9 us with three feeds. So look only if the tip of
        # a feed has moved: whatever else changes what there is to see comes with a tip.
        if self._feed_log is not None:
            if self._feed_log.tip != self._log.tip:
                self._look()
        elif self._looked_at != [log.tip for log in self._feed_logs]:
            self._look()
        return self._log

    def _look(self) -> None:
        """Move the tip as far as the feeds have proven it, and forget what the feeds' logs have forgotten."""
        self._looked_at = [log.tip for log in self._feed_logs]
        # The log of another generation than the feeds' must stand still: its readers lack what came in between.
        if self._started and self._continues:
            self._log.advance(min(self._proven, self._first_waiting - 1))
            self._log.forget(self._feeds_floor)

    @property
    def view(self) -> View | None:
        """The current keys and values. None until they are known at one revision."""
        return self._view if self._started else None

    @property
    def joinable(self) -> bool:
        """Whether a new reader may receive the view."""
        return self._started and self._continues and all(part.history.joinable for part in self.parts)

    @property
    def stale(self) -> bool:
        """See ``ReadableHistory``: whether a range is stale."""
        return self._stale is not None

    @property
    def stale_ranges(self) -> Ranges:
        """The ranges that are stale. After an outage they stay so until everything is released that arrived in it."""
        return self._stale[0] if self._stale is not None else ()

    @property
    def stale_since(self) -> float | None:
        """Since when the first of the ranges is stale, in seconds since 1970; None while all are live."""
        return self._stale[1] if self._stale is not None else None

    @property
    def cluster_id(self) -> int:
        """The cluster's id."""
        return self.parts[0].history.cluster_id

    @property
    def restores(self) -> int:
        """The number of histories that have ended."""
        return sum(part.history.restores for part in self.parts)

    @property
    def ended_revision(self) -> int:
        """See ``ReadableHistory``. All feeds of a process know the same."""
        return self.parts[0].history.ended_revision

    @property
    def outage(self) -> Outage | None:
        """The last time in which a feed was stale."""
        found = [part.history.outage for part in self.parts if part.history.outage is not None]
        return max(found, key=lambda outage: outage.ended_at, default=None)

    def lacks_since(self, revision: int) -> float | None:
        """See ``ReadableHistory``."""
        arrived_at, outage = self.log.lacks_since(revision), self.outage
        return arrived_at if arrived_at is None or outage is None else outage.oldest(arrived_at)

    def covers(self, revision: int) -> bool:
        """Whether the log has all events that a reader at *revision* lacks.

        If the feeds' logs have more history, it is added to the log, as much as fits.
        """
        log = self.log
        floor = self._feeds_floor
        if log.covers(revision) or revision < floor or not self._started or not self._continues:
            return log.covers(revision)
        if revision < log.overfull:
            return False  # to find that out again would stop all streams, for each client that returns
        found: dict[int, list[Event]] = {}
        for part in self.parts:
            for batch in part.project(part.history.log.after(floor, EVERYTHING)):
                found.setdefault(batch.revision, []).extend(batch.events)
        older = [Batch(revision, found[revision], shared=True) for revision in sorted(found)]
        log.prepend(older, floor, self._now)
        return log.covers(revision)

    @property
    def _feeds_floor(self) -> int:
        return max(part.history.log.floor for part in self.parts)

    def promises(self, revision: int) -> bool:
        """See ``OlderHistory``: each feed has the history or reads it, and at least one feed still reads.

        If all feeds have the history, ``covers`` has tried it, and the history exceeds the bounds of the log.
        """
        lacking = [part for part in self.parts if not part.history.log.covers(revision)]
        return bool(lacking) and all(part.older.promises(revision) for part in lacking)

    def why_not(self, revision: int) -> ResetReason:
        """See ``OlderHistory``."""
        for part in self.parts:
            if not part.history.log.covers(revision) and not part.older.promises(revision):
                return part.older.why_not(revision)
        return "lagged"

    def trim(self, now: float = 0.0) -> None:
        """Drop what is too old from the log, and what the feeds' logs have forgotten, also if it waits."""
        self._now = max(self._now, now)
        if self._continues:
            self._lag()
        self._look()
        self._log.trim(self._now)

    # --- memory -------------------------------------------------------------------------------------------------------

    @property
    def bytes(self) -> int:
        """Memory that counts for the selection, beside what its feeds count: references, and what is encoded."""
        waiting = sum(len(part.waiting) for part in self.parts)
        references = len(self._view) + 2 * waiting if self._view is not None else 0
        return self._log.bytes + self._log.cached_bytes + self.encoded + REFERENCE * references

    @property
    def encoded(self) -> int:
        """Bytes that ``reclaim_encoded`` would free."""
        return self._view.encoded if self._view is not None else 0

    def ask_before_keeping(self, may_keep: MayKeep) -> None:
        """Set the function that is asked before encoded bytes are kept."""
        self._may_keep = self._log.may_keep = may_keep

    def reclaim_encoded(self) -> int:
        """Drop what the view has encoded. Return the bytes freed."""
        return self._view.reclaim() if self._view is not None else 0
