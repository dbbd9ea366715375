"""``app.core.selected_history``: a projection or a merge shows exactly what one watch of its ranges would show."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.core.cursor import Cursor
from app.core.ended_histories import EndedHistories
from app.core.events import Batch, Delete, Event, KeyValue
from app.core.feed import FeedCore, State
from app.core.feed_messages import Batches, Compacted, Created, Progress, RetryDue, SnapshotTaken, Start
from app.core.frames import Format
from app.core.history import History
from app.core.keys import KeyRange
from app.core.log import Bounds
from app.core.reader import Reader, Wants
from app.core.reasons import ResetReason
from app.core.selected_history import Part, SelectedHistory
from app.core.selection import Ranges, Selection, canonical, divide
from app.core.snapshot import Block, Snapshot
from app.core.staleness import Outage
from app.core.view import View

KEYS = [b"/a/1", b"/a/2", b"/a/b/1", b"/b/1", b"/b/2", b"/c"]
PINS = [KeyRange("prefix", b"/a/")]
RANGES = [
    KeyRange("prefix", b"/a/"),
    KeyRange("prefix", b"/a/b/"),
    KeyRange("key", b"/a/1"),
    KeyRange("prefix", b"/b/"),
    KeyRange("key", b"/b/2"),
    KeyRange("key", b"/c"),
]
EVERYTHING = 1 << 60
EPOCH = "0123abcd"
FORMS: tuple[Format, ...] = ("sse", "ndjson")


class NoOlder:
    """No older history is ever read."""

    def promises(self, _revision: int) -> bool:
        """See ``Older``."""
        return False

    def why_not(self, _revision: int) -> ResetReason:
        """See ``Older``."""
        return "lagged"


class Store:
    """An etcd: the state and the events of each revision."""

    def __init__(self) -> None:
        self.revision = 1
        self.items: dict[bytes, KeyValue] = {}
        self.states: list[dict[bytes, KeyValue]] = [{}, {}]
        self.events: dict[int, list[Event]] = {}

    def write(self, keys: list[bytes], *, deletes: bool) -> None:
        """Put or delete keys in one transaction."""
        self.revision += 1
        events: list[Event] = []
        for key in keys:
            old = self.items.get(key)
            if not deletes:
                created, version = (old.create_revision, old.version) if old else (self.revision, 0)
                self.items[key] = KeyValue(key, b"%d" % self.revision, created, self.revision, version + 1)
                events.append(self.items[key])
            elif old is not None:
                del self.items[key]
                events.append(Delete(key, self.revision))
        self.states.append(dict(self.items))
        if events:
            self.events[self.revision] = events

    def within(self, ranges: Ranges, revision: int) -> dict[bytes, KeyValue]:
        """The state of some ranges at a revision."""
        return {key: item for key, item in self.states[revision].items() if any(one.contains(key) for one in ranges)}

    def batch(self, ranges: Ranges, revision: int) -> list[Event]:
        """The events of a revision in some ranges."""
        return [event for event in self.events.get(revision, ()) if any(one.contains(event.key) for one in ranges)]


class Feed:
    """A feed's history, and how far it has come."""

    def __init__(self, store: Store, watched: KeyRange) -> None:
        self.store, self.range = store, watched
        self.history = History(Bounds(batches=4))
        self.at = 0

    def start(self, reason: ResetReason | None) -> None:
        """Begin a new generation at the store's revision."""
        self.history.unproven = reason
        self.at = self.store.revision
        items = self.store.within((self.range,), self.at).values()
        self.history.install(Snapshot.of(self.at, items), 1, oversized=False)

    def deliver(self, revisions: int, now: float, *, progress: bool) -> None:
        """Publish the events of some more revisions, and perhaps prove that the rest of them is complete."""
        for _ in range(min(revisions, self.store.revision - self.at)):
            self.at += 1
            events = self.store.batch((self.range,), self.at)
            if events:
                assert self.history.publish(Batch(self.at, events), now)
        if progress:
            self.history.advance(self.at, now)


class Client:
    """A subscriber: its reader, and the mirror that it builds from the reader's bytes, compared with the store."""

    def __init__(
        self, store: Store, ranges: Ranges, history: SelectedHistory | History, cursor: int | None = None
    ) -> None:
        self.store, self.ranges, self.history = store, ranges, history
        older = history if isinstance(history, SelectedHistory) else NoOlder()
        self.reader = Reader(
            history,
            older,
            Selection(ranges),
            lambda _cluster, _selection: EPOCH,
            form="ndjson",
            cursor=None if cursor is None else Cursor(EPOCH, cursor),
            snapshot=True,
            heartbeat=1.0,
        )
        self.revision = 0 if cursor is None else cursor
        self.mirror = {} if cursor is None else self.truth(cursor)
        self.generation = -1  # in which the mirror was last exact
        self.resets: list[str] = []
        self.building: dict[str, Any] | None = None
        self.pending: list[dict[str, Any]] = []

    def read(self) -> None:
        """Take what there is, and one heartbeat."""
        while data := self.reader.read(200) or self._ask():
            for line in data.splitlines():
                self.take(json.loads(line))
        if self.reader.synced:
            self.generation = self.reader._generation
            self.take(json.loads(self.reader.heartbeat(stale=False)))

    def _ask(self) -> bytes:
        """Refuse history below the floor, as the channel does if no feed can read it."""
        if self.reader.wants is Wants.BACKFILL:
            self.reader.refuse_backfill()
            return self.reader.read(200)
        return b""

    def take(self, event: dict[str, Any]) -> None:
        """Apply one event, and compare."""
        cursor = event.pop("cursor", None)
        kind = event.pop("type")
        if kind == "reset":
            self.reset(event["reason"])
        elif kind in ("synced", "bookmark"):
            assert (self.pending, cursor) == ([], f"{EPOCH}-{event['revision']}")
            assert event["revision"] >= self.revision
            assert kind == "synced" or self.building is None
            if self.building is not None:
                self.mirror, self.building = self.building, None
            self.revision = event["revision"]
            assert self.mirror == self.truth(self.revision)
        elif self.building is not None:
            assert (kind, cursor, list(self.building) < [event["key"]]) == ("put", None, True)
            self.building[event["key"]] = event
        else:
            self.change(kind, event, cursor)

    def reset(self, reason: str) -> None:
        """Begin a state. In the same generation only a reader that lacks an evicted event may be reset."""
        log = self.history.log
        if self.reader._generation == self.generation:
            lacking = range(self.revision + 1, log.floor + 1)
            assert any(self.store.batch(self.ranges, revision) for revision in lacking), reason
        self.resets.append(reason)
        self.building, self.pending = {}, []

    def change(self, kind: str, event: dict[str, Any], cursor: str | None) -> None:
        """Take one change. The last one of a revision completes it, and no other has a cursor."""
        more = event.pop("more", False)
        self.pending.append(event)
        assert cursor == (None if more else f"{EPOCH}-{event['mod_revision']}")
        if kind == "put":
            self.mirror[event["key"]] = event
        else:
            del self.mirror[event["key"]]
        if not more:
            found, self.pending = self.pending, []
            assert self.revision < found[0]["mod_revision"] == event["mod_revision"]
            self.revision = event["mod_revision"]
            written = self.store.batch(self.ranges, self.revision)
            assert sorted(one["key"] for one in found) == sorted(one.key.decode() for one in written)
            assert self.mirror == self.truth(self.revision)

    def truth(self, revision: int) -> dict[str, Any]:
        """The range's content at *revision*, as it is on the wire."""
        return {
            item.key.decode(): {
                "key": item.key.decode(),
                "value": item.value.decode(),
                "create_revision": item.create_revision,
                "mod_revision": item.mod_revision,
                "version": item.version,
            }
            for item in self.store.within(self.ranges, revision).values()
        }


def key_of(event: Event) -> bytes:
    """The key of an event."""
    return event.key


class SelectionMachine(RuleBasedStateMachine):
    """Feeds that run at different speeds and start anew; the selection's readers never see anything impossible."""

    @initialize(
        pinned=st.booleans(), chosen=st.lists(st.sampled_from(RANGES), min_size=1, max_size=4), started=st.booleans()
    )
    def begin(self, pinned: bool, chosen: list[KeyRange], started: bool) -> None:
        """Choose a selection, and its feeds."""
        self.now = 0.0
        self.store = Store()
        self.store.write(KEYS[:4], deletes=False)
        self.ranges = canonical(chosen)
        parts = divide(self.ranges, PINS if pinned else [])
        self.feeds = [Feed(self.store, watched) for watched in parts]
        if started:
            for feed in self.feeds:
                feed.start(None)
                self.store.write([KEYS[0]], deletes=False)
        self.changes = 0
        self.selected = SelectedHistory(
            [(feed.history, NoOlder(), part) for feed, part in zip(self.feeds, parts.values(), strict=True)],
            Bounds(batches=6),
            self.change,
        )
        self.selected.follow(self.now)
        self.reader = Client(self.store, self.ranges, self.selected)
        self.idle = Client(self.store, self.ranges, self.selected)

    def change(self) -> None:
        """The selection tells that there may be something to read."""
        self.changes += 1

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True), deletes=st.booleans())
    def write(self, keys: list[bytes], deletes: bool) -> None:
        """A transaction at etcd."""
        self.store.write(keys, deletes=deletes)

    @rule(number=st.integers(0, 3), revisions=st.integers(1, 4), progress=st.booleans())
    def deliver(self, number: int, revisions: int, progress: bool) -> None:
        """etcd's events reach one feed."""
        feed = self.feeds[number % len(self.feeds)]
        if feed.history.joinable:
            self.now += 1.0
            feed.deliver(revisions, self.now, progress=progress)

    @rule(number=st.integers(0, 3), reason=st.sampled_from(["lagged", "restored", "unproven"]))
    def start_anew(self, number: int, reason: ResetReason) -> None:
        """A feed begins a new generation, or its first."""
        feed = self.feeds[number % len(self.feeds)]
        feed.start(reason if feed.history.view is not None or feed.history.unproven else None)

    @rule(number=st.integers(0, 3), reclaim=st.booleans())
    def fail(self, number: int, reclaim: bool) -> None:
        """The history of a feed is not known to continue, and its view may be dropped."""
        feed = self.feeds[number % len(self.feeds)]
        if feed.history.view is not None:
            feed.history.unproven = "lagged"
            if reclaim:
                feed.history.reclaim_view()

    @rule(number=st.integers(0, 3))
    def forget(self, number: int) -> None:
        """A feed's log is evicted to free memory."""
        history = self.feeds[number % len(self.feeds)].history
        history.log.reclaim(1 << 30)
        history.followers.forget()
        self.check()

    @rule()
    def check(self) -> None:
        """The channel looks once a second. Then nothing waits that the log of its feed has forgotten."""
        self.selected.trim(self.now)
        for part in self.selected.parts:
            if part.waiting and part.generation == part.history.log.generation:
                assert part.waiting[0].revision > part.history.log.floor

    @rule()
    def read(self) -> None:
        """A subscriber that keeps up reads now and then."""
        self.reader.read()

    @rule()
    def read_late(self) -> None:
        """A second subscriber reads much more rarely."""
        self.idle.read()

    @precondition(lambda self: self.selected.joinable)
    @rule(back=st.integers(0, 12))
    def resume(self, back: int) -> None:
        """A cursor from before the channel existed resumes if the feeds' logs have the rest."""
        revision = max(1, self.selected.log.tip - back)
        if self.selected.covers(revision):
            client = Client(self.store, self.ranges, self.selected, revision)
            client.read()
            ended = self.selected.ended_revision
            assert client.resets == (["restored"] if revision <= ended else [])
            assert client.revision == self.selected.log.tip
        else:
            assert revision < self.selected.log.floor
            assert not self.selected.promises(revision), "nobody would ever serve it"

    @rule()
    def everything_arrives(self) -> None:
        """When every feed has told everything, the selection has too."""
        for feed in self.feeds:
            if not feed.history.joinable:
                feed.start("lagged" if feed.history.view is not None or feed.history.unproven else None)
            feed.deliver(EVERYTHING, self.now, progress=True)
        assert self.selected.joinable
        assert not self.selected.awaited
        assert self.selected.log.tip == self.store.revision
        self.reader.read()
        assert self.reader.revision == self.store.revision

    @invariant()
    def holds_no_more_than_its_feeds(self) -> None:
        """A selection holds no batch that a feed has evicted, and it waits only for feeds that lag."""
        if not hasattr(self, "selected"):
            return
        if self.selected.joinable:
            floor = max(feed.history.log.floor for feed in self.feeds)
            held = self.selected.log.first
            assert held is None or held.revision > floor
        for feed, part in zip(self.feeds, self.selected.parts, strict=True):
            if part in self.selected.awaited:
                assert feed.history.log.tip < self.store.revision
        if len(self.feeds) == 1 and self.selected.joinable:
            assert not self.selected.awaited, "a projection never waits"

    def teardown(self) -> None:
        """Nothing is left at the feeds."""
        if hasattr(self, "selected"):
            self.selected.leave()
            self.selected.leave()
            for feed in self.feeds:
                assert len(feed.history.followers) == 0
            assert (self.selected.bytes, self.selected.awaited) == (0, frozenset())


TestSelection = SelectionMachine.TestCase
TestSelection.settings = settings(stateful_step_count=40)


def selection(
    store: Store, *ranges: KeyRange, on_change: Callable[[], None] = lambda: None
) -> tuple[SelectedHistory, list[Feed]]:
    """A merge of live feeds, one for each range."""
    feeds = [Feed(store, one) for one in ranges]
    for feed in feeds:
        feed.start(None)
    selected = SelectedHistory([(feed.history, NoOlder(), (feed.range,)) for feed in feeds], Bounds(), on_change)
    selected.follow(0.0)
    return selected, feeds


A, B = KeyRange("prefix", b"/a/"), KeyRange("prefix", b"/b/")


def test_a_transaction_over_two_ranges_is_one_revision() -> None:
    """It is released when both feeds have it, and never half."""
    store = Store()
    selected, (one, other) = selection(store, A, B)
    store.write([b"/a/1", b"/b/1"], deletes=False)
    one.deliver(1, 1.0, progress=False)
    assert (len(selected.log), bool(selected.awaited)) == (0, True)
    assert [part in selected.awaited for part in selected.parts] == [False, True]
    other.deliver(1, 2.0, progress=False)
    assert [batch.events for batch in selected.log.after(0, EVERYTHING)] == [tuple(store.events[2])]
    assert (selected.log.tip, bool(selected.awaited)) == (2, False)


def test_an_event_of_one_range_says_nothing_about_another() -> None:
    """It waits until the other's progress is proven, however long that takes."""
    store = Store()
    selected, (one, other) = selection(store, A, B)
    store.write([b"/a/1"], deletes=False)
    one.deliver(1, 1.0, progress=False)
    assert (selected.log.tip, len(selected.log)) == (1, 0)
    other.deliver(1, 2.0, progress=True)
    assert (selected.log.tip, len(selected.log)) == (2, 1)


def test_a_quiet_projection_of_a_busy_feed_moves_on_and_wakes_nobody() -> None:
    """Its bookmarks follow the feed's tip."""
    store, woken = Store(), []
    feed = Feed(store, KeyRange("prefix", b"/"))
    feed.start(None)
    selected = SelectedHistory([(feed.history, NoOlder(), (A,))], Bounds(), lambda: woken.append(1))
    selected.follow(0.0)
    woken.clear()
    store.write([b"/b/1"], deletes=False)
    feed.deliver(1, 1.0, progress=False)
    assert (selected.log.tip, len(selected.log), woken) == (2, 0, [])
    store.write([b"/a/1"], deletes=False)
    feed.deliver(1, 1.0, progress=False)
    assert (selected.log.tip, len(selected.log), woken) == (3, 1, [1])


@pytest.mark.parametrize(("reasons", "reason"), [(["lagged"], "lagged"), (["lagged", "restored"], "restored")])
def test_a_new_generation_of_a_feed_is_one_of_the_selection(reasons: list[ResetReason], reason: ResetReason) -> None:
    """With its reason; a restore is never hidden by another reason."""
    store = Store()
    selected, feeds = selection(store, A, B)
    generation = selected.log.generation
    for feed in feeds[: len(reasons)]:
        feed.history.unproven = "lagged"
    for feed, why in zip(feeds, reasons, strict=False):
        feed.start(why)
    assert selected.joinable
    assert (selected.log.generation, selected.reason) == (generation + 1, reason)


def test_a_selection_is_as_stale_as_its_feeds() -> None:
    """One feed that is stale is enough."""
    selected, (one, other) = selection(Store(), A, B)
    assert not selected.stale
    other.history.note_staleness(5.0, None)
    assert (selected.stale, selected.stale_ranges, selected.stale_since) == (True, (B,), 5.0)
    one.history.note_staleness(4.0, None)
    assert (selected.stale_ranges, selected.stale_since) == ((A, B), 4.0)
    for feed in (other, one):
        feed.history.note_staleness(None, Outage(4.0, 6.0))
    assert (selected.stale, selected.stale_ranges, selected.stale_since) == (False, (), None)


def test_a_selection_that_begins_in_an_outage_is_stale() -> None:
    """It has not been told: it looks when it begins to follow."""
    feed = Feed(Store(), A)
    feed.start(None)
    feed.history.note_staleness(5.0, None)
    selected = SelectedHistory([(feed.history, NoOlder(), (A,))], Bounds(), lambda: None)
    selected.follow(0.0)
    assert selected.stale_ranges == (A,)


def test_a_log_that_forgets_what_waits() -> None:
    """The selection starts anew, and says that it lagged."""
    store = Store()
    selected, (one, other) = selection(store, A, B)
    for _ in range(6):
        store.write([b"/a/1"], deletes=False)
        one.deliver(1, 1.0, progress=False)
    assert not selected.joinable
    other.deliver(6, 1.0, progress=True)
    assert (selected.joinable, selected.reason) == (True, "lagged")


@pytest.mark.parametrize("aged", [False, True])
def test_what_waits_does_not_outlive_the_log_that_counts_it(aged: bool) -> None:
    """No event comes any more. The log forgets for want of memory, or by its age, at which the channel's check looks.

    The merge counts only a reference for each value: the memory was given to others, and was not free.
    """
    store = Store()
    selected, (one, _other) = selection(store, A, B)
    for _ in range(2):
        store.write([b"/a/1"], deletes=False)
    one.deliver(2, 1.0, progress=False)
    assert [len(part.waiting) for part in selected.parts] == [2, 0]
    if aged:
        one.history.log.trim(1e9)
        selected.trim(2.0)
    else:
        one.history.log.reclaim(1 << 30)
        one.history.followers.forget()
    assert [len(part.waiting) for part in selected.parts] == [0, 0]
    assert (selected.joinable, selected.bytes) == (False, 0)


def test_what_waits_goes_with_the_view_of_its_feed() -> None:
    """A feed gives up its view, and its log, because its next state needs the memory."""
    store = Store()
    selected, (one, _other) = selection(store, A, B)
    store.write([b"/a/1"], deletes=False)
    one.deliver(1, 1.0, progress=False)
    one.history.unproven = "lagged"
    assert one.history.reclaim_view()
    assert [len(part.waiting) for part in selected.parts] == [0, 0]


def test_a_merge_that_lags_takes_no_views_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a feed stands still, the other one's log forgets what waits, again and again."""
    store, taken = Store(), list[int]()
    selected, (one, other) = selection(store, A, B)
    within = View.within

    def counted(view: View, ranges: Ranges) -> list[Block]:
        taken.append(store.revision)
        return within(view, ranges)

    monkeypatch.setattr(View, "within", counted)
    for _ in range(40):
        store.write([b"/a/1"], deletes=False)
        one.deliver(1, 1.0, progress=False)
        assert [part in selected.awaited for part in selected.parts] == [False, True], "it is asked for its progress"
    assert (taken, selected.joinable, selected.bytes) == ([], False, 0)
    other.deliver(1, 1.0, progress=True)
    assert (taken, selected.joinable) == ([], False)
    other.deliver(39, 1.0, progress=True)
    assert (taken, selected.joinable, selected.reason) == ([41, 41], True, "lagged")


def test_a_merge_that_lags_starts_with_a_new_generation() -> None:
    """After a restore the revisions are lower: the merge does not wait for those that are lost."""
    store = Store()
    selected, (one, other) = selection(store, A, B)
    for _ in range(6):
        store.write([b"/a/1"], deletes=False)
        one.deliver(1, 1.0, progress=False)
    assert not selected.joinable
    store.revision = 3
    for feed in (one, other):
        feed.start("restored")
    assert (selected.joinable, selected.reason, selected.log.tip) == (True, "restored", 3)


def test_a_merge_that_lags_does_not_await_a_feed_that_has_come_so_far() -> None:
    """It awaited such a feed until all feeds had come so far: etcd was asked for progress in vain."""
    machine = SelectionMachine()
    machine.begin(pinned=True, started=True, chosen=[A, B, KeyRange("key", b"/c")])
    for _ in range(4):
        machine.write([b"/a/1"], deletes=False)
    _busy, quiet, other = machine.selected.parts
    machine.deliver(number=0, revisions=7, progress=False)  # its log forgets what waits
    assert machine.selected.awaited == {quiet, other}
    machine.deliver(number=2, revisions=7, progress=True)
    assert machine.selected.awaited == {quiet}


def test_a_merge_that_ends_while_it_lags_waits_for_nothing() -> None:
    """The shell would let etcd be asked for progress of the quiet feed for as long as others follow that feed."""
    store = Store()
    feeds = [Feed(store, one) for one in (A, B)]
    for feed in feeds:
        feed.start(None)
    told: list[int] = []
    selected = SelectedHistory(
        [(feed.history, NoOlder(), (feed.range,)) for feed in feeds],
        Bounds(),
        lambda: None,
        lambda: told.append(len(selected.awaited)),
    )
    selected.follow(0.0)
    for _ in range(6):
        store.write([b"/a/1"], deletes=False)
        feeds[0].deliver(1, 1.0, progress=False)
    assert told == [1]
    selected.leave()
    assert (told, selected.awaited) == ([1, 0], frozenset())


def test_the_feeds_count_the_values() -> None:
    """A selection counts references and what it has encoded, not the values once more."""
    store = Store()
    selected, (one, other) = selection(store, A, B)
    large = KeyValue(b"/a/1", b"v" * 100_000, 2, 2, 1)
    store.write([b"/a/1"], deletes=False)
    assert one.history.publish(Batch(2, [large]), 1.0)
    other.deliver(1, 1.0, progress=True)
    assert selected.bytes < 1000
    assert selected.view is not None
    (block,) = selected.view.snapshot(2).blocks
    encoded = len(selected.view.frame(block, "sse", "auto"))
    assert selected.encoded >= encoded
    assert selected.bytes >= selected.encoded
    assert selected.reclaim_encoded() >= encoded
    assert selected.bytes < 1000


def test_the_log_stands_still_while_a_feed_has_begun_anew_and_another_cannot_be_joined() -> None:
    """Its readers lack what came in between, so no cursor of theirs may move on."""
    store = Store()
    selected, (one, other) = selection(store, A, B)
    store.write([b"/a/1"], deletes=False)
    other.deliver(1, 1.0, progress=True)
    other.history.unproven = "lagged"
    one.start("lagged")
    assert (selected.log.tip, selected.joinable) == (1, False)
    other.start("lagged")
    assert (selected.log.tip, selected.joinable) == (2, True)


def projection(store: Store, *ranges: KeyRange) -> tuple[SelectedHistory, Feed, list[int]]:
    """A projection of a feed of everything, and how often its readers were woken."""
    woken: list[int] = []
    feed = Feed(store, KeyRange("prefix", b"/"))
    feed.start(None)
    selected = SelectedHistory([(feed.history, NoOlder(), ranges)], Bounds(), lambda: woken.append(1))
    selected.follow(0.0)
    woken.clear()
    return selected, feed, woken


def test_a_quiet_reader_lacks_nothing_that_a_busy_feed_forgets() -> None:
    """At 1,000 events a second a pin's log forgets within seconds, but a reader is woken only by its heartbeat."""
    store = Store()
    selected, feed, woken = projection(store, A)
    client = Client(store, (A,), selected)
    client.read()
    for _ in range(10):
        store.write([b"/b/1"], deletes=False)
        feed.deliver(1, 1.0, progress=False)
    assert (client.reader.lacks_since, woken) == (None, [])
    client.read()
    assert (client.resets, client.revision) == (["initial"], 11)


def test_history_that_exceeds_the_log_of_a_merge_is_not_promised() -> None:
    """Each feed has it, but not both fit in the merge's own log: the reader is reset, and does not wait for ever."""
    store = Store()
    feeds = [Feed(store, A), Feed(store, B)]
    for feed in feeds:
        feed.start(None)
    selected = SelectedHistory([(feed.history, NoOlder(), (feed.range,)) for feed in feeds], Bounds(4), lambda: None)
    selected.follow(0.0)
    for key in [b"/a/1", b"/b/1"] * 3:
        store.write([key], deletes=False)
        for feed in feeds:
            feed.deliver(1, 1.0, progress=True)
    assert [feed.history.covers(1) for feed in feeds] == [True, True]
    assert (selected.covers(1), selected.promises(1)) == (False, False)
    client = Client(store, (A, B), selected, 1)
    client.read()
    assert (client.resets, client.revision) == (["lagged"], 7)


def test_history_that_does_not_fit_is_not_projected_for_each_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """With three full logs it cost 140 ms: 1,000 clients that return would stop all streams for minutes."""
    store = Store()
    feeds = [Feed(store, A), Feed(store, B)]
    for feed in feeds:
        feed.start(None)
    for key in [b"/a/1", b"/b/1"] * 3:
        store.write([key], deletes=False)
        for feed in feeds:
            feed.deliver(1, 1.0, progress=True)
    selected = SelectedHistory([(feed.history, NoOlder(), (feed.range,)) for feed in feeds], Bounds(4), lambda: None)
    selected.follow(0.0)
    projected: list[Part] = []
    project = Part.project

    def project_and_count(self: Part, batches: Sequence[Batch]) -> list[Batch]:
        projected.append(self)
        return project(self, batches)

    monkeypatch.setattr(Part, "project", project_and_count)
    assert [selected.covers(revision) for revision in (1, 1, 2)] == [False] * 3
    assert projected == selected.parts
    assert selected.covers(3), "as much is added as fits"
    # An event evicts the oldest one. No cursor below it fits either.
    store.write([b"/a/1"], deletes=False)
    for feed in feeds:
        feed.deliver(1, 1.0, progress=True)
    assert not selected.covers(3)
    assert selected.covers(4)
    assert projected == selected.parts
    # A new generation has room.
    feeds[0].start("lagged")
    for key in [b"/a/1", b"/b/1"]:
        store.write([key], deletes=False)
        for feed in feeds:
            feed.deliver(1, 1.0, progress=True)
    assert selected.log.reclaim(1)
    assert selected.covers(8)


class Reading(NoOlder):
    """Older history is being read."""

    def promises(self, revision: int) -> bool:
        """See ``Older``."""
        return revision >= 1

    def why_not(self, _revision: int) -> ResetReason:
        """See ``Older``."""
        return "compacted"


def test_history_is_promised_while_every_feed_that_lacks_it_reads() -> None:
    """And the feed that does not read says why there is no history."""
    store = Store()
    one, other = Feed(store, A), Feed(store, B)
    one.start(None)
    store.write([b"/a/1"], deletes=False)
    other.start(None)
    selected = SelectedHistory(
        [(one.history, NoOlder(), (A,)), (other.history, Reading(), (B,))], Bounds(), lambda: None
    )
    selected.follow(0.0)
    one.deliver(1, 1.0, progress=True)
    assert not selected.covers(1)
    assert selected.promises(1)
    assert not selected.promises(0)
    assert selected.why_not(0) == "lagged"
    other.history.log.prepend([], 1, 1.0)
    assert selected.covers(1)


def test_a_restore_that_no_reader_has_seen_is_not_hidden() -> None:
    """Another feed starts anew, for another reason, before the merge has reached its start."""
    store = Store()
    selected, (one, other) = selection(store, A, B)
    store.write([b"/a/1"], deletes=False)
    one.start("restored")
    assert (selected.view, selected.reason) == (None, "restored")
    other.start("lagged")
    assert (selected.joinable, selected.reason) == (True, "restored")
    one.start("lagged")
    assert (selected.joinable, selected.reason) == (True, "lagged")


def test_a_merge_that_waits_wakes_nobody() -> None:
    """While it waits, etcd is asked up to 200 times a second: each answer would wake every reader."""
    store = Store()
    woken: list[int] = []
    selected, (one, other) = selection(store, A, B, on_change=lambda: woken.append(1))
    woken.clear()
    for key in (b"/c", b"/c", b"/a/1"):
        store.write([key], deletes=False)
    one.deliver(3, 1.0, progress=False)
    assert selected.awaited == {selected.parts[1]}
    for tip in (2, 3):
        other.history.advance(tip, 1.0)
        assert (woken, selected.log.tip) == ([], tip)
    other.history.advance(4, 1.0)
    assert (woken, selected.awaited, selected.log.tip) == ([1], frozenset(), 4)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"), st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True), st.booleans()
        ),
        st.tuples(st.just("deliver"), st.integers(1, 4), st.booleans()),
        st.tuples(st.just("start anew"), st.sampled_from(["lagged", "restored"]), st.booleans()),
        st.tuples(st.just("resume"), st.integers(0, 9), st.booleans()),
    ),
    min_size=1,
    max_size=25,
)


@given(operations=OPERATIONS, narrow=st.sampled_from(RANGES[1:]), keys_only=st.booleans(), form=st.sampled_from(FORMS))
def test_a_projected_stream_has_the_bytes_of_a_dedicated_watch(
    operations: list[tuple[str, Any, bool]], narrow: KeyRange, keys_only: bool, form: Format
) -> None:
    """Events, states, ids, all bytes, with resumes and new generations. Only the tips may differ in between."""
    store = Store()
    store.write(KEYS[:4], deletes=False)
    pin, alone = Feed(store, KeyRange("prefix", b"")), Feed(store, narrow)
    ended = EndedHistories()  # as in a process: the pin's tip is the higher one when both begin a new generation
    for feed in (pin, alone):
        feed.history = History(Bounds(), ended)
        feed.start(None)
    projected = SelectedHistory([(pin.history, NoOlder(), (narrow,))], Bounds(), lambda: None)
    projected.follow(0.0)

    def reader(history: SelectedHistory | History, cursor: Cursor | None) -> Reader:
        selection = Selection((narrow,), keys_only=keys_only)
        return Reader(
            history,
            NoOlder(),
            selection,
            lambda _cluster, _selection: EPOCH,
            form=form,
            cursor=cursor,
            snapshot=True,
            heartbeat=1.0,
        )

    pairs = [(reader(projected, None), reader(alone.history, None))]
    for kind, what, flag in operations:
        if kind == "write":
            store.write(what, deletes=flag)
        elif kind == "deliver":
            for feed in (pin, alone):
                feed.deliver(what, 1.0, progress=flag)
        elif kind == "start anew":
            for feed in (pin, alone):
                feed.start(what)
        else:
            cursor = Cursor(EPOCH, max(1, alone.history.log.tip - what))
            pairs.append((reader(projected, cursor), reader(alone.history, cursor)))
        for one, other in pairs:
            assert everything(one) == everything(other)
    for feed in (pin, alone):
        feed.deliver(EVERYTHING, 1.0, progress=True)
    for one, other in pairs:
        assert everything(one) == everything(other)
        assert one.heartbeat(stale=False) == other.heartbeat(stale=False)


def everything(reader: Reader) -> bytes:
    """All bytes for a reader, but for the revision of ``synced``: the tip of a wider feed may be ahead."""
    found = b""
    while data := reader.read(1000):
        found += data
    return b"".join(re.split(rb'(?:event: synced\ndata: )?\{"type":"synced".*\n(?:id: .*\n\n)?', found))


def test_a_merge_looks_at_its_feeds_only_when_a_tip_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 readers that receive one event would each pay for it five times."""
    store = Store()
    selected, (one, other) = selection(store, A, B)
    looks: list[int] = []
    look = SelectedHistory._look

    def look_and_count(self: SelectedHistory) -> None:
        looks.append(1)
        look(self)

    monkeypatch.setattr(SelectedHistory, "_look", look_and_count)
    store.write([b"/a/1"], deletes=False)
    one.deliver(1, 1.0, progress=False)
    other.deliver(1, 1.0, progress=True)
    for _ in range(10):
        assert selected.log.tip == 2
    assert len(looks) == 1
    for feed in (one, other):
        feed.history.advance(7, 1.0)
    for _ in range(10):
        assert selected.log.tip == 7
    assert len(looks) == 2


def test_a_merge_holds_back_what_came_in_an_outage() -> None:
    """All feeds are live again, and one has a change that another has not reached: the merge's readers lack it."""
    store = Store()
    feeds = [Feed(store, A), Feed(store, B)]
    for feed in feeds:
        feed.start(None)
    told: list[bool] = []  # whether the selection was stale
    selected = SelectedHistory(
        [(feed.history, NoOlder(), (feed.range,)) for feed in feeds], Bounds(), lambda: told.append(selected.stale)
    )
    selected.follow(0.0)
    one, other = feeds
    for feed, proven_at in ((one, 4.0), (other, 5.0)):
        feed.history.note_staleness(proven_at, None)
    for time, writes in ((30.0, 2), (31.0, 1)):
        for _ in range(writes):
            store.write([b"/a/1"], deletes=False)
        one.deliver(writes, time, progress=False)
        if time == 30.0:
            one.history.note_staleness(None, Outage(4.0, 20.0))
            assert selected.stale_ranges == (B,)
            other.history.note_staleness(None, Outage(5.0, 30.0))

    assert (selected.log.tip, selected.stale_ranges, selected.stale_since) == (1, (B,), 5.0)
    other.deliver(1, 32.0, progress=True)
    assert (selected.log.tip, selected.stale_ranges) == (2, (B,))
    del told[:]
    assert selected.lacks_since(1) == 5.0, "it is as old as the outage, whenever it was released"
    other.deliver(2, 33.0, progress=True)
    assert (selected.log.tip, selected.stale_ranges) == (4, ())
    assert told == [False], "the readers are woken, and see that it is live"
    assert selected.lacks_since(3) == 33.0
    assert selected.lacks_since(4) is None


class Member:
    """A feed of a merge. What its range loses while it is in doubt is in its next state, and in no event."""

    def __init__(self, world: Members, name: str) -> None:
        self.world, self.range = world, KeyRange("prefix", f"/{name}/".encode())
        self.keys = [f"/{name}/{number}".encode() for number in range(3)]
        self.core = FeedCore(Bounds(), reach_back=50)
        self.core.handle(Start(backfill=False), 0.0)

    def doubt(self) -> None:
        """The watch may have missed something."""
        if self.core.state in (State.LIVE, State.SNAPSHOTTING):
            self.core.handle(Compacted(self.world.revision + 50), 0.0)

    def create(self) -> None:
        """The next watch is created."""
        if self.core.state is State.START_RETRY:
            self.core.handle(RetryDue(), 0.0)
        if self.core.state is State.OPENING:
            self.core.handle(Created(self.world.revision), 0.0)

    def take(self) -> None:
        """The next state is read. All keys have changed meanwhile."""
        if self.core.state is State.SNAPSHOTTING:
            items = [self.world.put(key) for key in self.keys]
            self.core.handle(SnapshotTaken(Snapshot.of(self.world.revision, items, block_bytes=1), 1), 0.0)

    def write(self) -> None:
        """A key changes."""
        if self.core.state is State.LIVE:
            item = self.world.put(self.keys[0])
            self.core.handle(Batches((Batch(item.mod_revision, [item]),)), 0.0)

    def prove(self) -> None:
        """Everything has come, to all feeds."""
        for each in self.world.members:
            if each.core.state is State.LIVE:
                each.core.handle(Progress(self.world.revision, trusted=True), 0.0)

    def reclaim(self) -> None:
        """The feed gives up its view for its next state, and its readers what they hold of it."""
        if self.core.history.reclaim_view():
            for each in self.world.readers:
                each.drop_snapshot()

    def shed(self) -> None:
        """The feed's log gives up its memory."""
        self.core.history.log.reclaim(1 << 30)
        self.core.history.followers.forget()


ANEW = (Member.doubt, Member.create, Member.take, Member.prove)


class Members:
    """Two feeds, their merge, and its readers, each with the mirror of its client: keys and their revisions."""

    def __init__(self) -> None:
        self.revision = self.began = 1  # of etcd; at which the youngest generation of a feed began
        self.items: dict[bytes, KeyValue] = {}
        self.written: list[tuple[int, str]] = []
        self.readers: list[Reader] = []
        self.mirrors: list[dict[str, int]] = []
        self.members = [Member(self, "a"), Member(self, "b")]
        for step in ANEW[1:]:
            self.each((0, 1), step)
        sources = [(each.core.history, each.core.backfill, (each.range,)) for each in self.members]
        self.merge = SelectedHistory(sources, Bounds(), lambda: None)
        self.merge.follow(0.0)
        self.join()

    def each(self, numbers: Sequence[int], step: Callable[[Member], None]) -> None:
        """Let the same happen to some members."""
        for number in numbers:
            step(self.members[number])

    def put(self, key: bytes) -> KeyValue:
        """Write a key."""
        self.revision += 1
        old = self.items.get(key)
        created, version = (old.create_revision, old.version) if old else (self.revision, 0)
        self.items[key] = KeyValue(key, b"v", created, self.revision, version + 1)
        self.written.append((self.revision, key.decode()))
        return self.items[key]

    def join(self) -> None:
        """A reader comes, and takes a little."""
        ranges = tuple(each.range for each in self.members)
        self.readers.append(
            Reader(
                self.merge,
                self.merge,
                Selection(ranges),
                lambda _cluster, _selection: EPOCH,
                form="ndjson",
                cursor=None,
                snapshot=True,
                heartbeat=1.0,
            )
        )
        self.mirrors.append({})
        self.read()

    def read(self, size: int = 1) -> bool:
        """Let each reader take a little. Return whether any got something."""
        self.began = max(each.core.history.snapshot_revision for each in self.members)
        said = [each.read(size) for each in self.readers]
        for data, mirror in zip(said, self.mirrors, strict=True):
            self._take(data, mirror)
        return any(said)

    def read_all(self) -> None:
        """Let each reader take all that there is."""
        while self.read(1 << 20):
            pass

    def _take(self, data: bytes, mirror: dict[str, int]) -> None:
        for event in map(json.loads, data.splitlines()):
            if event["type"] == "reset":
                mirror.clear()
            elif event["type"] == "put":
                mirror[event["key"]] = event["mod_revision"]
            elif event["type"] == "synced":
                assert event["revision"] >= self.began, "the state was replaced"
                assert mirror == self.truth(event["revision"]), "a part is missing"

    def truth(self, revision: int) -> dict[str, int]:
        """All keys at a revision."""
        return {key: written for written, key in self.written if written <= revision}


OF_ONE = (*ANEW, Member.reclaim, Member.shed, Member.write)
RUNS = (ANEW, (*ANEW[:2], Member.reclaim, *ANEW[2:]), (*ANEW, Member.doubt))
STEPS: st.SearchStrategy[tuple[Callable[[Members], object], ...]] = st.one_of(
    st.sampled_from((Members.join, Members.read, Members.read_all)).map(lambda step: (step,)),
    st.builds(
        lambda steps, numbers: tuple(partial(Members.each, numbers=numbers, step=step) for step in steps),
        st.one_of(st.sampled_from(OF_ONE).map(lambda step: (step,)), st.sampled_from(RUNS)),
        st.sampled_from(((0,), (1,), (0, 1))),
    ),
)


@given(st.lists(STEPS, max_size=12))
def test_what_a_merge_calls_complete_is_the_newest_state(
    steps: list[tuple[Callable[[Members], object], ...]],
) -> None:
    """Whatever happens to the members between two reads: at ``synced`` a client has the whole state of the merge.

    ``tests/core/test_history.py`` has the same for one feed.
    """
    world = Members()
    for step in itertools.chain.from_iterable(steps):
        step(world)
    for end in ANEW[1:]:
        world.each((0, 1), end)
    world.read_all()
    assert all(each.synced for each in world.readers)
    assert all(mirror == world.truth(world.revision) for mirror in world.mirrors)


@pytest.mark.parametrize("first", [0, 1])
def test_no_state_of_a_merge_is_completed_after_a_member_was_replaced(first: int) -> None:
    """Another member is still in doubt. After a restore, the client had `synced` on the history that had ended."""
    world = Members()
    world.each((0, 1), Member.doubt)
    for step in ANEW[1:3]:
        world.each((first,), step)
    world.read_all()
    assert not world.readers[0].synced
    assert world.merge.bytes == 0, "the values of the old state are counted by nobody"
    for step in ANEW[1:]:
        world.each((1 - first,), step)
    world.read_all()
    assert world.readers[0].synced
    assert world.mirrors == [world.truth(world.revision)]


@pytest.mark.parametrize("lagged", [False, True], ids=["compacted", "lagged"])
def test_a_merge_is_not_live_before_it_has_started_anew(*, lagged: bool) -> None:
    """A feed returns with a state that another feed has not reached: the readers lack all of it."""
    store = Store()
    selected, (one, other) = selection(store, A, B)
    one.history.note_staleness(5.0, None)
    for _ in range(6):
        store.write([b"/a/1"], deletes=False)
    if lagged:
        one.deliver(6, 64.0, progress=False)  # its log has only four
    else:
        one.start("compacted")
    one.history.note_staleness(None, Outage(4.0, 65.0))
    assert (selected.joinable, selected.stale_ranges) == (False, (A,))
    other.deliver(5, 66.0, progress=True)
    assert (selected.joinable, selected.stale_ranges) == (False, (A,))
    other.deliver(1, 67.0, progress=True)
    assert (selected.joinable, selected.stale_ranges) == (True, ())


def test_a_projection_of_one_key_does_not_read_the_whole_pin() -> None:
    """After 1,000 writes to a pin of 100,000 keys, to sort all that was written stopped the streams for 75 ms."""
    store = Store()
    feed = Feed(store, KeyRange("prefix", b"/"))
    store.write([b"/a/%05d" % number for number in range(5000)], deletes=False)
    feed.start(None)
    for number in range(0, 5000, 100):
        store.write([b"/a/%05d" % number], deletes=False)
        feed.deliver(1, 1.0, progress=False)
    view = feed.history.view
    assert view is not None
    written = view._blocks.count(None)
    assert written > 5
    selected = SelectedHistory([(feed.history, NoOlder(), (KeyRange("key", b"/a/00100"),))], Bounds(), lambda: None)
    selected.follow(0.0)
    assert selected.view is not None
    assert [item.mod_revision for item in selected.view.snapshot(selected.log.tip).items] == [4]
    assert view._blocks.count(None) == written
