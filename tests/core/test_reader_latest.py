"""``app.core.reader`` with ``mode=latest`` and with ``min_revision``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from app.core.cursor import Cursor, parse_cursor
from app.core.events import Batch, Delete
from app.core.feed import FeedCore
from app.core.feed_messages import Batches, Progress, Restored
from app.core.log import Bounds
from app.core.reader import Phase, Reader, Wants
from app.core.slow_reader import SlowReaderPolicy
from app.core.snapshot import Snapshot
from tests.core.test_reader import (
    EPOCH,
    KEYS,
    PLENTY,
    SELECTION,
    Mirror,
    ReaderMachine,
    epoch_of,
    live,
    parse,
    put,
    put_next,
    resets,
    restore,
    say,
    words,
)

pytestmark = pytest.mark.usefixtures("one_item_blocks", "one_event_pieces")


@pytest.fixture(scope="module")
def one_event_pieces() -> Iterator[None]:
    """Let a flush have pieces of one event each, so that a few events are enough to be cut between pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.core.flush.PIECE_SIZE", 1)
        yield


def reader(
    core: FeedCore,
    cursor: Cursor | None = None,
    *,
    form: str = "ndjson",
    interval: float = 0.5,
    min_revision: int = 0,
    snapshot: bool = True,
) -> Reader:
    """A reader as the stream makes it."""
    return Reader(
        core.history,
        core.backfill,
        SELECTION,
        epoch_of,
        form=form,
        cursor=cursor,
        snapshot=snapshot,
        heartbeat=15.0,
        interval=interval,
        min_revision=min_revision,
    )


def everything(one: Reader) -> bytes:
    """All that the reader has to send."""
    data = b""
    while more := one.read(PLENTY):
        data += more
    return data


class Client(Mirror):
    """A mirror that keeps a flush aside until its end, as clients must."""

    def __init__(self) -> None:
        super().__init__()
        self.aside: list[dict[str, Any]] = []

    def take(self, item: dict[str, Any]) -> None:
        """Apply one event, or keep it until the events that belong to it have come."""
        if self.aside:
            assert item["type"] in ("put", "delete"), "nothing comes between the events of a flush"
            assert "key" in item
        if item.get("more"):
            assert "cursor" not in item
            self.aside.append(item)
            return
        for each in self.aside:
            super().take(each)
        self.aside = []
        super().take(item)


class LatestMachine(ReaderMachine):
    """``ReaderMachine`` with flushes that everything may happen in the middle of, and with a revision to wait for."""

    mirror: Client

    @initialize(
        form=st.sampled_from(["sse", "ndjson"]),
        keys=st.sets(st.sampled_from(KEYS)),
        interval=st.sampled_from([0.0, 0.5]),
        wanted=st.integers(95, 112),
    )
    def begin(self, form: str, keys: set[bytes], interval: float, wanted: int) -> None:
        """Begin with a feed with a small log, and a reader that joins it."""
        super().begin(form, keys)
        self.interval, self.wanted = interval, wanted
        self.mirror = Client()
        self.join()

    def join(self) -> None:
        """Open a stream at the mirror's cursor."""
        self.reader = reader(
            self.core, self.mirror.cursor, form=self.form, interval=self.interval, min_revision=self.wanted
        )
        self.reader.refuse_backfill()

    @rule()
    def come_back(self) -> None:
        """The connection breaks, perhaps in the middle of a flush; the client reconnects with its cursor."""
        self.mirror.aside = []
        self.join()

    @rule(size=st.just(PLENTY))
    def read(self, size: int) -> None:
        """At every cursor the mirror is the true state, and nothing is synced below the wanted revision."""
        was_flushing = self.reader.flushing
        items = parse(self.reader.read(size), self.form)
        for item in items:
            before = self.mirror.cursor
            self.mirror.take(item)
            if item["type"] == "synced":
                assert item["revision"] >= self.wanted
            if "cursor" in item and item["type"] != "reset":
                cursor = self.mirror.cursor
                assert cursor is not None
                assert cursor.epoch is not None
                assert self.mirror.state == self.histories[cursor.epoch][cursor.revision]
                assert before is None or before.epoch != cursor.epoch or before.revision <= cursor.revision
        if was_flushing:
            assert items, "a flush that has begun goes on to its end, whatever happens to the feed"
        assert self.reader.flushing == (bool(self.mirror.aside))
        assert not (self.reader.flushing and self.reader.at_tip)

    @precondition(lambda self: self.reader.synced and not self.reader.flushing)
    @rule()
    def beat(self) -> None:
        """A bookmark has the id of what was sent, also while changes are held back."""
        super().beat()

    def step(self) -> bool:
        """Read on; False if there is nothing to read."""
        return super().step() or self.reader.flushing

    @rule()
    def read_to_the_end(self) -> None:
        """A reader that keeps up reaches the feed's revision, unless it waits for a later one."""
        for _ in range(100):
            if not self.step():
                break
        if self.core.history.log.tip >= self.wanted and self.reader.wants is Wants.NOTHING:
            assert self.mirror.state == self.shown()
            assert (self.reader.synced, self.reader.phase) == (True, Phase.FOLLOWING)
            assert not self.reader.lacks_revision
            assert (self.reader.revision, self.reader.behind) == (self.core.history.log.tip, 0)


TestLatestReader = LatestMachine.TestCase
TestLatestReader.settings = settings(stateful_step_count=40)


# --- mode=latest -----------------------------------------------------------------------------------------------------


def test_a_flush_has_the_newest_of_each_key() -> None:
    """Three changes of two keys, and one that came and went: one event of each, and the id of the flush's start."""
    core = live(put(90))
    one = reader(core)
    everything(one)
    say(core, 101, 102)
    core.handle(Batches((Batch(103, [put(103, b"/a/2")]), Batch(104, [Delete(b"/a/2", 104)]))), 0.0)
    core.handle(Progress(106, trusted=True), 0.0)
    first = one.read(PLENTY)
    say(core, 107)

    assert words(first) == ["put@102"]
    assert parse(first)[0]["more"]
    assert one.flushing
    last = one.read(PLENTY)
    assert words(last) == ["delete@104"]
    assert parse(last)[0]["cursor"] == f"{EPOCH}-106", "not 107, which the flush does not have"
    assert (one.revision, one.flushing, one.delivered) == (106, False, 3)
    assert words(one.read(PLENTY)) == ["put@107"]


def test_a_flush_is_due_an_interval_after_the_first_change() -> None:
    """The shell must not read before. A quiet stream has nothing to flush."""
    core = live(put(90))
    one = reader(core)
    assert one.flush_due is None, "the state does not wait"
    everything(one)
    assert one.flush_due is None
    core.handle(Batches((Batch(101, [put_next(core, 101)]),)), 7.0)
    core.handle(Batches((Batch(102, [put_next(core, 102)]),)), 7.3)

    assert one.flush_due == 7.5
    everything(one)
    assert one.flush_due is None


def test_every_event_is_sent_at_once_without_the_mode() -> None:
    """``flush_due`` is for ``mode=latest`` only."""
    core = live(put(90))
    one = reader(core, interval=0.0)
    everything(one)
    say(core, 101, 102)

    assert one.flush_due is None
    assert words(one.read(PLENTY)) == ["put@101", "put@102"]


def test_a_resume_is_one_flush_and_synced() -> None:
    """What the cursor lacks comes at once, as a flush; the client is synced at the id of that flush."""
    core = live(put(90))
    say(core, 101, 102, 103)
    one = reader(core, Cursor(EPOCH, 101))

    assert one.flush_due is None
    sent = one.read(PLENTY)
    assert words(sent) == ["put@103", "synced@103"]
    assert [item["cursor"] for item in parse(sent)] == [f"{EPOCH}-103"] * 2


def test_a_cursor_of_one_mode_is_a_cursor_of_the_other() -> None:
    """The mode is not in the epoch: a stream of each mode resumes what the other has begun."""
    core = live(put(90))
    say(core, 101)
    for before, after in ((0.0, 0.5), (0.5, 0.0)):
        one = reader(core, interval=before)
        cursor = parse(everything(one))[-1]["cursor"]
        again = reader(core, parse_cursor(cursor), interval=after)
        assert words(everything(again)) == ["synced@101"]


def test_what_is_held_back_too_long_is_reset() -> None:
    """The log's floor counts in this mode too: ``lagged``, at once."""
    core = live(put(90))
    one = reader(core)
    everything(one)
    say(core, 101, 102, 103)
    core.history.log.reclaim(PLENTY)

    assert one.flush_due is None
    assert words(everything(one))[0] == "reset:lagged"


@pytest.mark.parametrize("change", ["forgotten", "restored"])
def test_a_flush_that_has_begun_is_ended(change: str) -> None:
    """``more`` always has an end, and only then comes the reset."""
    core = live(put(90))
    one = reader(core)
    everything(one)
    core.handle(Batches((Batch(101, [put_next(core, 101), put_next(core, 101, b"/a/2")]),)), 0.0)
    assert words(one.read(PLENTY)) == ["put@101"]
    if change == "forgotten":
        say(core, 102, 103)
        core.history.log.reclaim(PLENTY)
    else:
        restore(core, revision=50)

    last = one.read(PLENTY)
    assert words(last) == ["put@101"]
    assert parse(last)[0]["cursor"] == f"{EPOCH}-101"
    assert words(one.read(PLENTY))[0] == ("reset:lagged" if change == "forgotten" else "reset:restored")


def test_who_takes_whole_flushes_is_not_too_slow() -> None:
    """Only resets without a whole flush in between count: a reader that is outrun now and then has caught up."""
    core = live(put(90), bounds=Bounds(batches=3))
    one = reader(core)
    everything(one)
    for revision in range(101, 151, 5):
        say(core, *range(revision, revision + 4))
        assert words(everything(one))[0] == "reset:lagged"
        say(core, revision + 4)
        assert words(everything(one)) == [f"put@{revision + 4}"]

    assert not one.too_slow


# --- min_revision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot", [True, False])
def test_the_state_waits_for_the_revision(snapshot: bool) -> None:
    """Before, nothing is sent: after a state no id may come before ``synced``."""
    core = live(put(90))
    one = reader(core, interval=0.0, min_revision=102, snapshot=snapshot)
    assert everything(one) == b""
    assert one.lacks_revision
    say(core, 101)
    assert everything(one) == b""
    core.handle(Progress(102, trusted=True), 0.0)

    assert not one.lacks_revision
    assert words(everything(one)) == (["reset:initial", "put@101", "synced@102"] if snapshot else ["synced@102"])


@pytest.mark.parametrize("interval", [0.0, 0.5])
def test_a_resume_goes_on_and_synced_waits(interval: float) -> None:
    """A client that holds a state gets the events; ``synced`` comes at the revision."""
    core = live(put(90))
    say(core, 101)
    one = reader(core, Cursor(EPOCH, 100), interval=interval, min_revision=103)
    assert words(everything(one)) == ["put@101"]
    assert (one.synced, one.lacks_revision) == (False, True)
    say(core, 102)
    assert words(everything(one)) == ["put@102"]
    core.handle(Progress(104, trusted=True), 0.0)

    assert words(everything(one)) == ["synced@104"]
    assert not one.lacks_revision


def test_flushes_keep_their_distance_while_synced_waits() -> None:
    """Only what was missing at the resume comes at once."""
    core = live(put(90))
    one = reader(core, Cursor(EPOCH, 100), min_revision=103)
    everything(one)
    core.handle(Batches((Batch(101, [put_next(core, 101)]),)), 7.0)
    assert one.flush_due == 7.5
    core.handle(Progress(103, trusted=True), 0.0)

    assert one.flush_due is None
    assert words(everything(one)) == ["put@101", "synced@103"]


def test_an_offered_state_below_the_revision_is_not_taken() -> None:
    """A cursor ahead of the feed, whose fresh state is still below the revision that the client wants."""
    core = live(put(90))
    one = reader(core, Cursor(EPOCH, 105), interval=0.0, min_revision=110)
    everything(one)
    one.give_linearizable(120)
    one.give_snapshot(Snapshot.of(106, [put(106)]))
    assert everything(one) == b""
    core.handle(Progress(110, trusted=True), 0.0)

    assert words(everything(one)) == ["synced@110"]


def test_a_lagging_resume_waits_without_being_counted() -> None:
    """Waiting for the revision is not the client's slowness."""
    core = live(put(90))
    one = reader(core, Cursor(EPOCH, 100), interval=0.0, min_revision=110)
    everything(one)
    say(core, 101, 102)
    core.history.log.reclaim(PLENTY)
    for _ in range(5):
        assert one.read(PLENTY) == b""
    assert not one.too_slow
    core.handle(Progress(110, trusted=True), 0.0)

    assert words(everything(one)) == ["reset:lagged", "put@102", "synced@110"]


def test_a_restore_below_the_revision_is_not_shown() -> None:
    """A new history is not synced below the revision either."""
    core = live(put(90))
    one = reader(core, interval=0.0, min_revision=95)
    everything(one)
    restore(core, put(40), revision=50)
    assert everything(one) == b""
    assert (one.lacks_revision, one.synced, one.waits) == (True, True, False)
    assert one.lacks_since == float("-inf"), "its mirror is of an ended history: it is not live"
    core.handle(Progress(95, trusted=True), 0.0)

    assert words(everything(one)) == ["reset:restored", "put@40", "synced@95"]
    assert resets(one) == ["initial", "restored"]


@pytest.mark.parametrize(("revision", "waits"), [(101, False), (110, True)])
def test_a_resume_whose_revision_cannot_come_is_told_in_the_end(revision: int, waits: bool) -> None:
    """The feed comes into doubt when all is sent, so it is not known whether the revision has been reached."""
    core = live(put(90))
    say(core, 101)
    one = reader(core, Cursor(EPOCH, 100), interval=0.0, min_revision=revision)
    assert words(one.read(PLENTY)) == ["put@101"]
    core.handle(Restored(), 0.0)
    assert (one.waits, one.lacks_revision) == (waits, False)

    assert words(everything(one)) == ([] if waits else ["synced@101"])


@pytest.mark.parametrize("cursor", [None, Cursor(EPOCH, 100)])
def test_who_waits_for_a_revision_waits_whatever_the_feed_does(cursor: Cursor | None) -> None:
    """Otherwise a feed that is in doubt now and then would let the stream wait for ever."""
    core = live(put(90))
    one = reader(core, cursor, interval=0.0, min_revision=110)
    waits = []
    for happens in (lambda: None, lambda: core.handle(Restored(), 0.0), lambda: restore(core, revision=50)):
        happens()
        assert everything(one) == b""
        waits.append(one.waits)
    assert waits == [True, True, True]


def test_a_flush_that_only_its_reader_holds_has_a_rate() -> None:
    """A client that trickles costs nothing while the log holds the events; when only its flush holds them, it does."""
    core = live(put(90), bounds=Bounds(batches=4))
    one = reader(core)
    one._make_policy = partial(SlowReaderPolicy, 30.0, 1000)
    everything(one)
    for revision in (101, 102, 103):
        core.handle(Batches((Batch(revision, [put(revision, b"/a/%d" % revision)]),)), 0.0)
    one.read(PLENTY)
    assert one.flushing
    one.wrote(10, 31.0)
    assert not one.too_slow
    say(core, 104, 105)
    assert core.history.log.floor > 100
    assert one.too_slow
    one.wrote(10_000, 0.0)
    assert not one.too_slow
    one.wrote(10, 60.0)
    assert one.too_slow
    while one.flushing:
        one.read(PLENTY)
    assert not one.too_slow
