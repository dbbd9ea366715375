"""A simulated etcd for the tests of the feed: its whole history, and every unpleasant behaviour of the real ones.

Must live here: etcd's behaviour, as measured (FIELD-NOTES): compaction, the loss of a delete exactly at the compaction
revision, slow watches, members that lag, answers that overtake events, messages over the limit. Must not live here: how
a feed should react.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from app.core.events import Batch, Delete, Event, KeyValue
from app.core.feed_messages import Batches, Compacted, Created, Lost, Progress, WatchInput

PREFIX = b"/a/"
KEYS = (b"/a/1", b"/a/2", b"/a/3", b"/z")  # the last key is not in the range


class History:
    """Every revision of one etcd. Revision 1 is the empty store."""

    def __init__(self, revisions: Sequence[tuple[Event, ...]] = ()) -> None:
        self.revisions = list(revisions)

    @property
    def current(self) -> int:
        """The newest revision."""
        return 1 + len(self.revisions)

    def at(self, revision: int) -> tuple[Event, ...]:
        """The events of one revision that are in the range."""
        if not 2 <= revision <= self.current:
            return ()
        return tuple(event for event in self.revisions[revision - 2] if event.key.startswith(PREFIX))

    def between(self, after: int, upto: int) -> list[tuple[int, tuple[Event, ...]]]:
        """The range's events of (*after*, *upto*]: a pair for each revision that has events."""
        found = [(revision, self.at(revision)) for revision in range(max(2, after + 1), upto + 1)]
        return [(revision, events) for revision, events in found if events]

    def state(self, revision: int, *, everything: bool = False) -> dict[bytes, KeyValue]:
        """The range's keys and values at *revision*; with *everything*, those of all keys."""
        found: dict[bytes, KeyValue] = {}
        for events in self.revisions[: max(0, revision - 1)]:
            for event in events:
                if isinstance(event, KeyValue):
                    found[event.key] = event
                else:
                    found.pop(event.key, None)
        return found if everything else {key: item for key, item in found.items() if key.startswith(PREFIX)}

    def commit(self, operations: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Commit one transaction: puts, and deletes (value None), even of one key (``tests/contract`` shows how). A
        transaction that changes nothing makes no revision.
        """
        state = self.state(self.current, everything=True)
        revision = self.current + 1
        events: list[Event] = []
        for key, value in operations:
            old = state.pop(key, None)
            if value is not None:
                created, version = (old.create_revision, old.version + 1) if old is not None else (revision, 1)
                state[key] = KeyValue(key, value, created, revision, version)
                events.append(state[key])
            elif old is not None:
                events.append(Delete(key, revision))
        if events:
            self.revisions.append(tuple(events))


class Store:
    """A cluster: a history, its compactions, and the strengths and faults of its version."""

    def __init__(self, *, progress_trusted: bool, loses_deletes: bool, batch_revisions: int) -> None:
        self.history = History()
        self.cluster_id = 1
        self.progress_trusted = progress_trusted
        self.loses_deletes = loses_deletes
        self.batch_revisions = batch_revisions  # etcd's watchBatchMaxRevs
        self.message_events: int | None = None  # the most events that fit a message
        self._compactions: list[tuple[int, int]] = []  # (current revision then, compacted up to)
        self._written = 0

    def write(self, operations: Sequence[tuple[int, bool]]) -> None:
        """Commit a transaction.

        Each operation is the number of a key, and whether the key is put or deleted; no value is ever written twice.
        """
        self._written += 1
        value = b"%d" % self._written
        self.history.commit([(KEYS[number], value if is_put else None) for number, is_put in operations])

    def compact(self, revision: int) -> None:
        """Compact at *revision*, if that is possible."""
        if self.compacted() < revision <= self.history.current:
            self._compactions.append((self.history.current, revision))

    def compacted(self, member: int | None = None) -> int:
        """The compaction revision; with *member*, the one that a member knows whose revision is *member*."""
        return max((c for at, c in self._compactions if member is None or at <= member), default=0)

    def restore(self, revision: int, *, keep_cluster: bool) -> None:
        """Begin another history from a backup of *revision*."""
        self.history = History(self.history.revisions[: revision - 1])
        self._compactions = [(at, c) for at, c in self._compactions if at <= revision]
        self.cluster_id += not keep_cluster


class SimulatedWatch:
    """One watch at one member. Its messages wait in ``queue`` until the test delivers them."""

    def __init__(self, store: Store, start: int) -> None:
        self._store = store
        self.start = start
        self.history: History | None = None  # None: the watch waits for a connection
        self.queue: deque[WatchInput] = deque()
        self.member = 0
        self.created_sent = self.created_given = False
        self.ended = False  # etcd sends nothing more
        self.lost = False  # its stream is broken, and nothing has noticed yet
        self.synced = False
        self.asked = False  # the test asked for progress, and injects no more faults
        self.full = False  # the stream's channel is full: events come late, and the watch is a slow one
        self._next = 0
        self._heard = self._late = False
        # The revision of a late message: the client has asked whether anything was written since. None: no such
        # question.
        self.answer: int | None = None

    @property
    def open(self) -> bool:
        """Whether etcd holds the watch."""
        return self.history is not None and not self.ended and not self.lost

    def register(self, lag: int) -> None:
        """etcd registers the watch, at a member that is *lag* revisions behind."""
        self.history = self._store.history
        self.member = max(1, self.history.current - lag)
        self._next = self.start or self.member + 1
        self.synced = self._next > self.member

    def send_created(self) -> None:
        """Send ``created``.

        Its revision is that of the registration, so events up to that revision may still follow.
        """
        self.created_sent = True
        self.queue.appendleft(Created(self.member))

    def apply(self, count: int) -> None:
        """The member catches up by *count* revisions; a synced watch sends their events at once."""
        assert self.history is not None, "registered"
        for _ in range(count):
            if self.member >= self.history.current:
                return
            self.member += 1
            if self.synced and self.member >= self._next:
                self._next = self.member + 1
                events = self.history.at(self.member)
                if events:
                    self.synced = not self.full
                    self._say([Batch(self.member, events)])
                if self.ended:
                    return

    def sync(self) -> None:
        """Run one round of etcd's syncWatchers, for a watch that lags."""
        assert self.history is not None, "registered"
        compacted = self._store.compacted(self.member)
        # Before 3.5.13, a full channel refuses the "compacted" response, and etcd forgets the response.
        skips = self.full and self._store.loses_deletes
        if self._next < compacted and not skips:
            self.ended = True
            self.queue.append(Compacted(compacted))
            return
        found: list[Batch] = []
        for revision, events in self.history.between(self._next - 1, self.member):
            if len(found) == self._store.batch_revisions:
                self._next = revision
                break
            if revision <= compacted and self._store.loses_deletes:
                left = self.history.state(compacted).values()
                events = tuple(event for event in events if event in left)
            if events:
                found.append(Batch(revision, events))
        else:
            self._next = self.member + 1
            self.synced = True
        if found:
            self._say(found)

    def _say(self, found: Sequence[Batch]) -> None:
        limit = self._store.message_events
        if limit is not None and sum(len(batch.events) for batch in found) > limit:
            self.ended = True
            self.queue.append(Lost("too large", too_large=True))
        else:
            late = self.full and self._store.loses_deletes
            more = len(found) >= self._store.batch_revisions or (self._heard and len(found) > 1) or self._late
            self.queue.append(Batches(tuple(found), more and self._store.loses_deletes, late))
            if late and not self._late:
                self._late = True
                self.answer = self.member
        self._heard = True

    def clear(self) -> None:
        """Answer the question after a late message: either the watch is slow, or it never was."""
        assert self.answer is not None
        if self.member > self.answer:
            self.queue.append(Batches((), slow=True))
        else:
            self._late = False
        self.answer = None

    def say_progress(self) -> None:
        """Send a progress response that can be trusted: it comes after all events that it covers."""
        self.queue.append(Progress(self.member, trusted=True))
