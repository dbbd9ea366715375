"""``app.core.log`` against a naive list."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.core.events import Batch, Delete, KeyValue
from app.core.frames import GZIP
from app.core.log import Bounds, Log
from tests.support.size import size

EVERYTHING = 1 << 40


def batch(revision: int, events: int = 1, key: int = 8) -> Batch:
    """A batch of *events* deletes of keys of *key* bytes."""
    return Batch(revision, [Delete(b"%d" % index + b"k" * key, revision) for index in range(events)])


class LogMachine(RuleBasedStateMachine):
    """``history`` is a list of everything that ever happened; the log must be its suffix above the floor."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Batch] = []
        self.entered: dict[int, float] = {}
        self.now = 0.0
        self.generation = 0
        # the revision of the join, the current revision, the batches seen
        self.readers: list[tuple[int, int, list[Batch]]] = []

    @initialize(
        batches=st.integers(1, 6), size=st.integers(1, 4000), age=st.sampled_from([5.0, 50.0]), at=st.integers(0, 9)
    )
    def begin(self, batches: int, size: int, age: float, at: int) -> None:
        """Begin a log with some bounds, at some snapshot."""
        self.bounds = Bounds(batches=batches, bytes=size, age=age)
        self.log = Log(self.bounds)
        assert self.log.last is None
        self.restart(at)

    @rule(revision=st.integers(0, 50))
    def restart(self, revision: int) -> None:
        """Begin a new generation: nothing of the old one is left."""
        self.log.restart(revision)
        self.generation += 1
        self.history, self.entered, self.readers = [], {}, []
        self.first = self.log.floor
        assert (len(self.log), self.log.bytes, self.log.floor, self.log.tip) == (0, 0, revision, revision)
        assert self.log.generation == self.generation

    @rule(gap=st.integers(1, 4), events=st.integers(1, 4), key=st.sampled_from([1, 300, 5000]))
    def append(self, gap: int, events: int, key: int) -> None:
        """Append the next revision."""
        new = batch(self.log.tip + gap, events, key)
        self.log.append(new, self.now)
        self.history.append(new)
        self.entered[new.revision] = self.now
        # Whatever its size: readers that keep up must get it.
        assert self.log.last is new
        assert self.log.tip == new.revision

    @rule(back=st.integers(0, 5))
    def append_what_is_no_news(self, back: int) -> None:
        """A revision at or below the tip is refused, and changes nothing."""
        before = (len(self.log), self.log.bytes, self.log.floor, self.log.tip)
        with pytest.raises(ValueError, match="not above the tip"):
            self.log.append(batch(self.log.tip - back), self.now)
        assert before == (len(self.log), self.log.bytes, self.log.floor, self.log.tip)

    @rule(by=st.integers(-5, 5))
    def advance(self, by: int) -> None:
        """Progress moves the tip, never back."""
        tip = self.log.tip
        self.log.advance(tip + by)
        assert self.log.tip == max(tip, tip + by)

    @rule(below=st.integers(0, 8), revisions=st.sets(st.integers(1, 60), max_size=6))
    def prepend(self, below: int, revisions: set[int]) -> None:
        """Prepend proven history below the floor; the batches outside the proven span are left out."""
        floor = max(0, self.log.floor - below)
        if self.history and floor < self.first and self.log.floor > self.first:
            floor = self.log.floor  # in the model, evicted history comes back unchanged
        older = [batch(revision) for revision in sorted(revisions)]
        known = {item.revision for item in self.history}
        if floor < self.first:
            self.history[:0] = [item for item in older if floor < item.revision <= self.first]
        else:
            older = [item for item in self.history if floor < item.revision <= self.log.floor]
        for item in older:
            if floor < item.revision <= self.log.floor:
                self.entered[item.revision] = self.now
        assert known <= {item.revision for item in self.history}
        self.log.prepend(older, floor, self.now)
        self.first = min(self.first, floor)

    @rule(seconds=st.sampled_from([0.0, 1.0, 6.0, 60.0]))
    def trim(self, seconds: float) -> None:
        """Time passes; batches that are too old are dropped, unless a younger batch comes before them."""
        self.now += seconds
        before = self.kept()
        self.log.trim(self.now)
        gone = len(before) - len(self.log)
        assert all(self.now - self.entered[item.revision] > self.bounds.age for item in before[:gone])
        if gone < len(before):
            assert self.now - self.entered[before[gone].revision] <= self.bounds.age

    @rule(size=st.integers(0, 6000))
    def shed(self, size: int) -> None:
        """Memory is short: the log drops its oldest batches, but not the newest one, and no more than requested."""
        before, held = self.kept(), self.log.bytes
        given_back = self.log.reclaim(size)
        assert given_back == held - self.log.bytes
        gone = before[: len(before) - len(self.log)]
        assert given_back == sum(item.size for item in gone)
        if gone:
            assert given_back - gone[-1].size < size
        if given_back < size:
            assert len(self.log) <= 1
        if before:
            assert self.log.last is before[-1]

    @rule()
    def join(self) -> None:
        """A reader joins at the tip."""
        self.readers.append((self.log.tip, self.log.tip, []))

    @rule(data=st.data(), size=st.integers(0, 4000))
    def read(self, data: st.DataObject, size: int) -> None:
        """A reader gets whole revisions in order, at least one if there is one, and about the requested bytes."""
        if not self.readers:
            return
        index = data.draw(st.integers(0, len(self.readers) - 1))
        joined, revision, seen = self.readers[index]
        if not self.log.covers(revision):
            assert revision < self.log.floor
            del self.readers[index]
            return
        found = list(self.log.after(revision, size))
        missing = [item for item in self.history if item.revision > revision]
        assert found == missing[: len(found)]
        assert self.log.behind(revision) == len(missing)
        if missing:
            assert found
            sizes = [sum(event.wire_size for event in item.events) for item in found]  # in a stream, not in memory
            assert sum(sizes[:-1]) < max(size, 1)
            assert len(found) == len(missing) or sum(sizes) >= size
            revision = found[-1].revision
        self.readers[index] = (joined, revision, seen + found)
        assert seen + found == [item for item in self.history if joined < item.revision <= revision]

    def kept(self) -> list[Batch]:
        """The batches in the log."""
        return list(self.log.after(self.log.floor, EVERYTHING))

    @invariant()
    def holds_the_suffix(self) -> None:
        """For every covered revision the log finds exactly the batches after it, as the very same objects."""
        if not hasattr(self, "log"):
            return
        log = self.log
        assert log.floor <= log.tip
        for revision in range(log.floor, log.tip + 2):
            found = log.after(revision, EVERYTHING)
            wanted = [item for item in self.history if item.revision > revision]
            assert len(found) == len(wanted)
            assert all(one is other for one, other in zip(found, wanted, strict=True))
            assert log.behind(revision) == len(wanted)
        assert not log.covers(log.floor - 1)

    @invariant()
    def keeps_to_its_bounds(self) -> None:
        """The log keeps to its bounds in number and bytes, except for a single batch that is larger than the bound."""
        if not hasattr(self, "log"):
            return
        assert len(self.log) <= self.bounds.batches
        assert self.log.bytes <= self.bounds.bytes or len(self.log) == 1
        assert self.log.bytes == sum(item.size for item in self.kept())
        last = self.log.last
        assert last is (self.kept()[-1] if len(self.log) else None)


TestLog = LogMachine.TestCase
TestLog.settings = settings(stateful_step_count=40)


def test_the_newest_batch_stays_whatever_its_size() -> None:
    """A single revision larger than the bound reaches every reader that keeps up; the next revision takes its place."""
    log = Log(Bounds(batches=10, bytes=300, age=10.0))
    log.restart(1)
    log.append(batch(2, events=50), 0.0)
    assert (len(log), log.floor) == (1, 1)
    log.append(batch(3), 0.0)
    assert (len(log), log.floor, log.tip) == (1, 2, 3)


def test_age_takes_the_newest_too() -> None:
    """A quiet log forgets even the newest batch; readers at the tip lose nothing."""
    log = Log(Bounds(age=10.0))
    log.restart(1)
    log.append(batch(5), 0.0)
    log.trim(10.0)
    assert len(log) == 1
    log.trim(10.1)
    assert (len(log), log.bytes, log.floor, log.tip, log.last) == (0, 0, 5, 5, None)
    assert log.covers(5)
    assert not log.covers(4)


@given(size=st.integers(-5, 0))
def test_a_reader_without_room_still_gets_a_revision(size: int) -> None:
    """A reader without room gets at least one batch, so that it never stands still."""
    log = Log(Bounds())
    log.restart(0)
    log.append(batch(1), 0.0)
    log.append(batch(2), 0.0)
    assert [item.revision for item in log.after(0, size)] == [1]


def test_history_that_does_not_fit_loses_its_old_end() -> None:
    """Prepended history is cut where the bounds are reached, and the floor shows the cut."""
    log = Log(Bounds(batches=3))
    log.restart(10)
    log.append(batch(11), 0.0)
    log.prepend([batch(3), batch(5), batch(7), batch(9), batch(12)], 2, 0.0)
    assert [item.revision for item in log.after(log.floor, EVERYTHING)] == [7, 9, 11]
    assert (log.floor, log.covers(5), log.covers(4)) == (5, True, False)


@pytest.mark.parametrize(
    "make_room",
    [lambda log: log.reclaim(1), lambda log: log.clear(), lambda log: log.trim(1000.0), lambda log: log.restart(20)],
    ids=["reclaimed", "cleared", "aged", "restarted"],
)
def test_a_log_is_overfull_until_something_else_makes_room(make_room: Callable[[Log], object]) -> None:
    """Frames count, too, and go with their batches: history may fit again."""
    log = Log(Bounds(batches=3))
    log.restart(10)
    for revision in range(11, 16):
        log.append(batch(revision), 0.0)
    assert (log.overfull, log.floor) == (12, 12)
    make_room(log)
    assert log.overfull == 0


# --- encoded bytes are kept only while there is room, and are the same in both cases ----------------------------------

REPRESENTATION = ("sse", "auto", "01234567", False)


def log_of(*revisions: int) -> Log:
    """A log with a put in each of *revisions*."""
    log = Log(Bounds())
    log.restart(1)
    for revision in revisions:
        log.append(Batch(revision, [KeyValue(b"/a/k", b"x" * 100, 2, revision, revision)]), 0.0)
    return log


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_log_without_room(size: int) -> None:
    """Without room, frames are not kept. Readers at one position share one encoding, which is counted separately."""
    roomy, full = log_of(2, 3, 4), log_of(2, 3, 4)
    held = full.bytes
    full.may_keep = lambda _size: False
    expected, found = roomy.slice(1, size, REPRESENTATION), full.slice(1, size, REPRESENTATION)
    assert expected is not None
    assert found is not None
    assert (found.data, found.end) == (expected.data, expected.end)
    assert (full.bytes, full.cached_bytes) == (held, len(found.data))
    assert full.slice(1, size, REPRESENTATION) is found
    full.append(Batch(5, [KeyValue(b"/a/k", b"", 2, 5, 5)]), 0.0)
    assert full.cached_bytes == 0


def test_a_slice_does_not_grow_because_others_get_gzip() -> None:
    """What is deflated to little is still large for those who get it plain: they get it in as many slices as before."""
    log = Log(Bounds())
    log.restart(1)
    for revision in range(2, 22):
        log.append(Batch(revision, [KeyValue(b"/a/k", b"x" * 10_000, 2, revision, revision)]), 0.0)
    form, *rest = REPRESENTATION
    deflated = log.slice(1, 64_000, (form + GZIP, *rest))  # type: ignore[arg-type]
    assert deflated is not None
    assert deflated.end == 8, "not deflated yet, so nobody knows how small it is"
    again = log.slice(8, 64_000, (form + GZIP, *rest))  # type: ignore[arg-type]
    plain = log.slice(1, 64_000, REPRESENTATION)
    assert plain is not None
    assert again is not None
    assert (plain.end, again.end) == (8, 15)
    assert len(deflated.data) < len(plain.data) / 50


def test_a_log_that_reclaims_while_it_asks_for_room() -> None:
    """A batch that is dropped meanwhile no longer counts."""
    log = log_of(2, 3, 4)
    log.may_keep = lambda _size: log.reclaim(1) >= 0
    assert log.slice(1, 1 << 20, REPRESENTATION) is not None
    assert len(log) == 1
    assert log.bytes == sum(entry.size for entry in log._entries)


def test_a_log_that_forgets_everything_while_it_asks_for_room() -> None:
    """The log of a selection does when its feed's log gives way. The reader gets its bytes all the same."""
    roomy, log = log_of(2, 3, 4), log_of(2, 3, 4)

    def make_room(_size: int) -> bool:
        log.forget(4)
        return True

    log.may_keep = make_room
    expected, found = roomy.slice(1, 1 << 20, REPRESENTATION), log.slice(1, 1 << 20, REPRESENTATION)
    assert expected is not None
    assert found is not None
    assert (found.data, found.end) == (expected.data, expected.end)
    assert (len(log), log.bytes, log.floor) == (0, 0, 4)


def test_a_log_that_forgets_moves_its_floor_only_past_what_it_had() -> None:
    """A reader between the last batch that is forgotten and the first that is kept lacks nothing."""
    log = log_of(2, 3, 7)
    log.forget(1)
    assert (len(log), log.floor) == (3, 1)
    log.forget(5)
    assert (len(log), log.floor) == (1, 3)
    log.forget(6)
    assert (len(log), log.floor) == (1, 3)
    log.forget(9)
    assert (len(log), log.floor, log.bytes) == (0, 7, 0)


def test_a_log_that_is_cleared() -> None:
    """The log's position stays: a reader at that position lacks nothing."""
    log = log_of(2, 3, 4)
    held = log.bytes
    assert log.clear() == held
    assert (log.bytes, log.cached_bytes, len(log), log.tip, log.floor) == (0, 0, 0, 4, 4)


# --- flushes ---------------------------------------------------------------------------------------------------------


def log_at(*revisions: int, bounds: Bounds | None = None) -> Log:
    """A log with a delete in each of *revisions*, which arrives at the second of its number."""
    log = Log(bounds or Bounds())
    log.restart(1)
    for revision in revisions:
        log.append(batch(revision), float(revision))
    return log


def test_a_flush_is_due_an_interval_after_what_is_lacking() -> None:
    """The first batch that the reader lacks counts; nothing is due to a reader that lacks nothing."""
    log = log_at(2, 3, 4)
    assert (log.flush_due(1, 60.0), log.flush_due(2, 0.5), log.flush_due(4, 60.0)) == (62.0, 3.5, None)


@pytest.mark.parametrize(
    ("bounds", "held", "due"),
    [
        (Bounds(batches=8), range(2, 6), 62.0),
        (Bounds(batches=8), range(2, 7), 2.0),  # a fifth batch of eight
        (Bounds(bytes=10 * batch(2).size), range(2, 7), 62.0),
        (Bounds(bytes=10 * batch(2).size), range(2, 8), 2.0),
        (Bounds(age=20.0), [2], 12.0),
    ],
)
def test_a_flush_is_due_before_the_log_forgets(bounds: Bounds, held: range, due: float) -> None:
    """A flush does not wait for its interval once half of a bound is used up: a reset would cost more."""
    assert log_at(*held, bounds=bounds).flush_due(1, 60.0) == due


def test_a_flush_is_due_when_the_floor_comes_near() -> None:
    """The feed's log forgets, or memory is short: the nearer half of the log may be next."""
    log = log_at(20, 30)
    assert log.flush_due(22, 60.0) == 90.0
    log.forget(10)
    assert log.floor == 1
    assert (log.flush_due(20, 60.0), log.flush_due(18, 60.0)) == (90.0, 20.0)


def test_a_flush_of_a_quiet_selection_waits_for_its_interval() -> None:
    """Its reader's position is old, but the reader lacks only what has just come."""
    log = log_at(990)
    log.advance(1000)
    log.forget(900)
    assert log.flush_due(5, 60.0) == 990 + 60.0


def test_readers_at_one_position_share_a_fold() -> None:
    """A flush and its bytes are there once, and counted, until the log moves on."""
    log = log_of(2, 3, 4)
    assert log.flush_from(4) is None
    first = log.flush_from(2)
    assert first is not None
    assert (first.start, first.end) == (2, 4)
    held = len(first.frame(0, REPRESENTATION))
    log.advance(9)
    assert log.flush_from(2) is first, "what it has is complete up to its own end"
    assert log.cached_bytes == held
    assert log.slice(1, 1, REPRESENTATION) is not None
    assert (log.flush_from(2) is first, log.cached_bytes) == (True, held)

    other = log.flush_from(1)
    assert other is not None
    assert (other.end, first.bytes, log.cached_bytes) == (9, 0, 0)
    other.frame(0, REPRESENTATION)
    log.append(batch(10), 0.0)
    assert (other.bytes, log.cached_bytes) == (0, 0)


@pytest.mark.sized
@pytest.mark.parametrize(("events", "length"), [(1, 0), (1, 100), (3, 0), (3, 1000)])
@pytest.mark.parametrize("readers", [0, 1])
def test_a_log_counts_all_its_memory(events: int, length: int, readers: int) -> None:
    """Small changes, too: a log of puts with values of 2 bytes took twice what it counted."""
    log = Log(Bounds(batches=10_000, bytes=1 << 30))
    log.restart(0)
    first = 1_000_000
    gc.collect()
    tracemalloc.start()
    try:
        for revision in range(first, first + size(300, long=1000)):
            puts = [
                KeyValue(b"/svc/%08d" % (events * revision + number), b"%d" % (revision % 7) * length, revision - 1,
                         first + revision, revision)
                for number in range(events)
            ]  # fmt: skip
            log.append(Batch(revision, puts), 0.0)
            if readers:
                log.slice(revision - 1, 1, REPRESENTATION)
        del puts
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert 0.8 * log.bytes < used <= log.bytes


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", [30, 300, 3000])
def test_a_slice_has_about_the_bytes_that_are_asked_for(size: int, *, shared: bool) -> None:
    """Whatever the log counts for a batch: a selection's log counts references, and a slice of it had megabytes."""
    log = Log(Bounds(batches=10_000, bytes=1 << 30))
    log.restart(0)
    for revision in range(1, 2001):
        log.append(Batch(revision, [KeyValue(b"/svc/a", size * b"v", 1, revision, revision)], shared=shared), 0.0)
    wanted = 64 * 1024
    for _ in range(2):  # before and after the frames are kept
        log_slice = log.slice(0, wanted, REPRESENTATION)
        assert log_slice is not None
        assert 0.8 * wanted < len(log_slice.data) < 1.2 * wanted
        log.append(Batch(log.tip + 1, [Delete(b"/svc/b", log.tip + 1)], shared=shared), 0.0)
