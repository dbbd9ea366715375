"""``app.core.reader``: the messages of one subscriber, applied to the mirror that a client would have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.core.cursor import NOTHING, UNREADABLE, Cursor, parse_cursor
from app.core.events import Batch, Delete, Event, KeyValue
from app.core.feed import FeedCore
from app.core.feed_messages import Batches, Created, Probed, Progress, Restored, SnapshotTaken, Start, WantBackfill
from app.core.keys import KeyRange
from app.core.log import Bounds
from app.core.reader import Phase, Reader, Wants
from app.core.selection import Selection
from app.core.slow_reader import MAX_LAGS
from app.core.snapshot import Snapshot
from app.core.staleness import Outage

SELECTION = Selection((KeyRange("prefix", b"/a/"),))
EPOCH = "00000001"
PLENTY = 1 << 40
pytestmark = pytest.mark.usefixtures("one_item_blocks")
KEYS = (b"/a/1", b"/a/2", b"/a/3", b"/a/\xff")


def epoch_of(cluster_id: int, _selection: Selection) -> str:
    """An epoch that shows its cluster."""
    return f"{cluster_id:08x}"


def put(revision: int, key: bytes = b"/a/1", value: bytes = b"v") -> KeyValue:
    """A first put."""
    return KeyValue(key, value, revision, revision, 1)


def batches(*revisions: int) -> Batches:
    """A put in each of *revisions*."""
    return Batches(tuple(Batch(revision, [put(revision)]) for revision in revisions))


def put_next(core: FeedCore, revision: int, key: bytes = b"/a/1") -> KeyValue:
    """The put that etcd would send at *revision*, from what the feed knows of the key."""
    assert core.history.view is not None
    for old in core.history.view.snapshot(core.history.log.tip).items:
        if old.key == key:
            return KeyValue(key, b"v", old.create_revision, revision, old.version + 1)
    return put(revision, key)


def say(core: FeedCore, *revisions: int) -> None:
    """Publish a put in each of *revisions*."""
    for revision in revisions:
        core.handle(Batches((Batch(revision, [put_next(core, revision)]),)), 0.0)


def live(*items: KeyValue, revision: int = 100, bounds: Bounds | None = None) -> FeedCore:
    """A live feed that began with a snapshot."""
    core = FeedCore(bounds or Bounds(), reach_back=50)
    core.handle(Start(backfill=False), 0.0)
    core.handle(Created(revision), 0.0)
    core.handle(SnapshotTaken(Snapshot.of(revision, items, block_bytes=1), 1), 0.0)
    return core


def restore(core: FeedCore, *items: KeyValue, revision: int = 50, cluster_id: int = 2) -> None:
    """Another history replaces the feed's."""
    core.handle(Restored(), 0.0)
    core.handle(Created(revision), 0.0)
    core.handle(SnapshotTaken(Snapshot.of(revision, items, block_bytes=1), cluster_id), 0.0)


def reader(
    core: FeedCore,
    cursor: Cursor | None = None,
    *,
    selection: Selection = SELECTION,
    form: str = "ndjson",
    snapshot: bool = True,
    heartbeat: float = 15.0,
    for_gateway: bool = False,
    min_revision: int = 0,
) -> Reader:
    """A reader as the stream makes it."""
    return Reader(
        core.history,
        core.backfill,
        selection,
        epoch_of,
        form=form,
        cursor=cursor,
        snapshot=snapshot,
        heartbeat=heartbeat,
        for_gateway=for_gateway,
        min_revision=min_revision,
    )


def resets(one: Reader) -> list[str]:
    """The reasons of the reader's resets so far."""
    return list(one._counts.resets.elements())


def parse(stream: bytes, form: str = "ndjson") -> list[dict[str, Any]]:
    """The JSON objects of whole blocks; an SSE block's id becomes the member "cursor", as in NDJSON."""
    if form == "ndjson":
        return [json.loads(line) for line in stream.splitlines() if line]
    found = []
    for block in stream.decode().removesuffix("\n\n").split("\n\n") if stream else []:
        lines = [line.partition(": ") for line in block.split("\n") if not line.startswith(":")]
        if lines:
            fields = {name: value for name, _, value in lines}
            found.append(json.loads(fields["data"]) | ({"cursor": fields["id"]} if "id" in fields else {}))
    return found


def words(stream: bytes) -> list[str]:
    """NDJSON in short form: ``put@5``, ``delete@5``, ``synced@5``, ``reset:lagged``."""
    return [
        f"reset:{item['reason']}"
        if item["type"] == "reset"
        else f"{item['type']}@{item.get('mod_revision', item.get('revision'))}"
        for item in parse(stream)
    ]


class Mirror:
    """A client: keys with the revisions that wrote them, and its last cursor."""

    def __init__(self) -> None:
        self.state: dict[str, int] = {}
        self.cursor: Cursor | None = None
        self.seen: list[tuple[str, str, int]] = []

    def take(self, item: dict[str, Any]) -> None:
        """Apply one event."""
        kind = item["type"]
        if kind == "reset":
            self.state = {}
            assert item["cursor"].endswith("-0"), "until the state is whole, the client holds nothing"
        elif kind in ("put", "delete"):
            self.seen.append((kind, item["key"], item["mod_revision"]))
            if kind == "put":
                self.state[item["key"]] = item["mod_revision"]
            else:
                self.state.pop(item["key"], None)
        if "cursor" in item:
            self.cursor = parse_cursor(item["cursor"])


# --- properties ------------------------------------------------------------------------------------------------------

change = st.dictionaries(st.sampled_from(KEYS), st.booleans(), min_size=1)
sizes = st.sampled_from([0, 1, 300, 700, 2000, PLENTY])


class ReaderMachine(RuleBasedStateMachine):
    """One reader, one mirror, and everything that may happen to the feed between two reads.

    ``histories`` holds the state after each revision, per epoch: the state that a mirror with that cursor must have.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cluster = 1
        self.histories: dict[str, dict[int, dict[str, int]]] = {EPOCH: {}}
        self.now: dict[bytes, KeyValue] = {}

    @initialize(form=st.sampled_from(["sse", "ndjson"]), keys=st.sets(st.sampled_from(KEYS)))
    def begin(self, form: str, keys: set[bytes]) -> None:
        """Begin with a feed with a small log, and a reader that joins it."""
        items = [put(90, key) for key in sorted(keys)]
        self.core = live(*items, bounds=Bounds(batches=4, bytes=3000))
        self.now = {item.key: item for item in items}
        self.form, self.mirror = form, Mirror()
        self.note()
        self.reader = reader(self.core, form=form)

    def shown(self) -> dict[str, int]:
        """The current state, with keys as clients see them."""
        return {("L2Ev/w==" if key == KEYS[3] else key.decode()): item.mod_revision for key, item in self.now.items()}

    def note(self) -> None:
        """Record the true state at the tip."""
        self.histories[epoch_of(self.cluster, SELECTION)][self.core.history.log.tip] = self.shown()

    @rule(change=change, gap=st.integers(1, 3))
    def write(self, change: dict[bytes, bool], gap: int) -> None:
        """Publish a revision of puts and deletes."""
        revision = self.core.history.log.tip + gap
        events: list[Event] = []
        for key, value in change.items():
            if value:
                self.now[key] = put_next(self.core, revision, key)
                events.append(self.now[key])
            elif self.now.pop(key, None) is not None:
                events.append(Delete(key, revision))
        if events:
            before, tip = self.histories[epoch_of(self.cluster, SELECTION)], self.core.history.log.tip
            before |= dict.fromkeys(range(tip, revision), before[tip])
            self.core.handle(Batches((Batch(revision, events),)), 0.0)
            self.note()

    @rule(by=st.integers(1, 3))
    def progress(self, by: int) -> None:
        """Publish revisions that do not concern the range."""
        for _ in range(by):
            self.core.handle(Progress(self.core.history.log.tip + 1, trusted=True), 0.0)
            self.note()

    @rule(size=sizes)
    def shed(self, size: int) -> None:
        """Memory is short: a reader that lags may fall out of the log."""
        self.core.history.log.reclaim(size)

    @rule(back=st.integers(0, 20), same=st.booleans())
    def restore(self, back: int, same: bool) -> None:
        """Begin another history, of another cluster, or (recognised by its revisions) of this one with a new epoch."""
        self.cluster += 1
        revision = max(1, self.core.history.log.tip - back)
        self.now = {KEYS[0]: put(revision)} if same else {}
        self.histories[epoch_of(self.cluster, SELECTION)] = {}
        restore(self.core, *self.now.values(), revision=revision, cluster_id=self.cluster)
        self.note()

    @rule(size=sizes)
    def read(self, size: int) -> None:
        """At every cursor the mirror is the true state of that revision, and cursors only advance."""
        for item in parse(self.reader.read(size), self.form):
            before = self.mirror.cursor
            self.mirror.take(item)
            if "cursor" in item and item["type"] != "reset":
                cursor = self.mirror.cursor
                assert cursor is not None
                assert cursor.epoch is not None
                assert self.mirror.state == self.histories[cursor.epoch][cursor.revision]
                assert before is not None
                assert before.epoch == cursor.epoch
                assert before.revision <= cursor.revision
        if self.reader.synced:
            assert self.mirror.cursor is not None
            assert self.mirror.cursor.revision <= self.reader.revision

    @rule()
    def read_to_the_end(self) -> None:
        """A reader that keeps up reaches the feed's revision."""
        for _ in range(100):
            if not self.step():
                break
        assert self.mirror.state == self.shown()
        assert (self.reader.synced, self.reader.phase) == (True, Phase.FOLLOWING)
        assert (self.reader.revision, self.reader.behind) == (self.core.history.log.tip, 0)

    def step(self) -> bool:
        """Read on; False if there is nothing to read."""
        cursor, revision = self.mirror.cursor, self.reader.revision
        self.read(300)
        return (cursor, revision) != (self.mirror.cursor, self.reader.revision) or self.reader.phase is Phase.SNAPSHOT

    @precondition(lambda self: self.reader.synced)
    @rule()
    def beat(self) -> None:
        """A bookmark is never ahead of the sent events: at its id, the mirror is whole."""
        (bookmark,) = parse(self.reader.heartbeat(stale=False), self.form)
        self.mirror.take(bookmark)
        cursor = self.mirror.cursor
        assert cursor is not None
        assert cursor.epoch is not None
        assert self.mirror.state == self.histories[cursor.epoch][cursor.revision]

    @rule()
    def come_back(self) -> None:
        """The connection breaks between two blocks; the client reconnects with its cursor."""
        if self.mirror.cursor is not None:
            self.reader = reader(self.core, self.mirror.cursor, form=self.form)
            self.reader.refuse_backfill()

    @invariant()
    def before_it_is_synced_it_has_no_cursor(self) -> None:
        """A reset takes the cursor away until the state is whole."""
        if hasattr(self, "reader") and self.reader.phase is Phase.SNAPSHOT:
            assert self.mirror.cursor is not None
            assert self.mirror.cursor.empty
            assert not self.reader.synced


TestReader = ReaderMachine.TestCase
TestReader.settings = settings(stateful_step_count=40)


@given(
    keys=st.integers(0, 6),
    news=st.integers(0, 6),
    cursor=st.sampled_from([None, Cursor(EPOCH, 100), Cursor(EPOCH, 103)]),
    form=st.sampled_from(["sse", "ndjson"]),
    slices=st.lists(sizes, max_size=30),
)
def test_any_slices_make_the_same_stream(
    keys: int, news: int, cursor: Cursor | None, form: str, slices: Sequence[int]
) -> None:
    """However much a socket accepts at a time, the bytes are the same."""
    core = live(*[put(90, b"/a/%d" % index) for index in range(keys)])
    core.handle(Progress(103, trusted=True), 0.0)
    for revision in range(104, 104 + news):
        core.handle(Batches((Batch(revision, [put_next(core, revision), put_next(core, revision, b"/a/2")]),)), 0.0)

    def read_all(sizes: Sequence[int]) -> tuple[bytes, int]:
        one = reader(core, cursor, form=form)
        sent = b"".join([one.read(size) for size in [*sizes, *[PLENTY] * 12]])
        assert one.synced
        return sent, one.delivered

    assert read_all(slices) == read_all([])


@given(revision=st.integers(95, 110))
def test_a_resume_brings_exactly_what_came_after(revision: int) -> None:
    """A resume brings exactly the later changes, wherever the cursor is in the log, even between revisions."""
    core = live()
    news = [101, 103, 106]
    say(core, *news)
    core.handle(Progress(108, trusted=True), 0.0)
    one = reader(core, Cursor(EPOCH, revision))
    one.refuse_backfill()
    found = words(one.read(PLENTY) + one.read(PLENTY))
    if revision < 100:
        assert found == ["reset:lagged", "put@106", "synced@108"]
    elif revision <= 108:
        assert found == [f"put@{new}" for new in news if new > revision] + ["synced@108"]
    else:
        assert (found, one.wants) == ([], Wants.LINEARIZABLE)


# --- joining ---------------------------------------------------------------------------------------------------------


def test_a_first_join() -> None:
    """A first join brings a reset with its reason, the state, and "synced": to the letter."""
    core = live(put(90), put(95, b"/a/2"))
    one = reader(core)
    assert (one.phase, one.asked) == (Phase.WAITING, None)
    assert (one.read(PLENTY) + one.read(PLENTY)).decode() == (
        '{"type":"reset","reason":"initial","ranges":["prefix=/a/"],"cluster_id":"1","cursor":"00000001-0"}\n'
        '{"type":"put","key":"/a/1","value":"v","create_revision":90,"mod_revision":90,"version":1}\n'
        '{"type":"put","key":"/a/2","value":"v","create_revision":95,"mod_revision":95,"version":1}\n'
        '{"type":"synced","revision":100,"heartbeat":15,"cursor":"00000001-100"}\n'
    )
    assert (one.phase, one.synced, one.wants) == (Phase.FOLLOWING, True, Wants.NOTHING)
    assert (resets(one), one.delivered, one.revision) == (["initial"], 2, 100)
    assert one.read(PLENTY) == b""


def test_then_changes() -> None:
    """After "synced", each revision comes once, and the position advances."""
    core = live()
    one = reader(core)
    one.read(PLENTY)
    say(core, 101, 103)
    assert one.behind == 2
    assert words(one.read(1)) == ["put@101"]
    assert (one.revision, one.behind) == (101, 1)
    assert words(one.read(PLENTY)) == ["put@103"]
    assert one.read(PLENTY) == b""
    assert (one.revision, one.behind, one.delivered) == (103, 0, 2)


def test_a_quiet_range_moves_the_position() -> None:
    """A quiet range gets nothing, but its next bookmark is at the revision up to which the feed is complete."""
    core = live()
    one = reader(core)
    one.read(PLENTY)
    core.handle(Progress(150, trusted=True), 0.0)
    assert parse(one.heartbeat(stale=False))[0]["cursor"] == "00000001-100"
    assert one.read(PLENTY) == b""
    assert parse(one.heartbeat(stale=False))[0]["cursor"] == "00000001-150"


def test_it_waits_for_a_feed_that_has_nothing() -> None:
    """Before the first snapshot, a reader gets neither state nor reset."""
    core = FeedCore(Bounds(), 50)
    one = reader(core)
    assert (one.read(PLENTY), one.phase, one.wants) == (b"", Phase.WAITING, Wants.NOTHING)
    core.handle(Start(backfill=False), 0.0)
    core.handle(Created(100), 0.0)
    assert one.read(PLENTY) == b""
    core.handle(SnapshotTaken(Snapshot.of(100, []), 1), 0.0)
    assert words(one.read(PLENTY)) == ["reset:initial", "synced@100"]


@pytest.mark.parametrize("cursor", [None, Cursor(EPOCH, 103)])
def test_nobody_new_is_given_what_is_in_doubt(cursor: Cursor | None) -> None:
    """Present readers stay.

    A new reader waits for the new history, and gets a reset if its cursor is of the old one.
    """
    core = live(put(90))
    say(core, 103)
    there = reader(core)
    there.read(PLENTY)
    core.handle(Restored(), 0.0)
    comes = reader(core, cursor)
    assert (there.read(PLENTY), comes.read(PLENTY)) == (b"", b"")
    assert (there.phase, comes.phase) == (Phase.FOLLOWING, Phase.WAITING)
    core.handle(Created(50), 0.0)
    core.handle(SnapshotTaken(Snapshot.of(50, [put(40)]), 2), 0.0)
    assert words(there.read(PLENTY)) == ["reset:restored", "put@40", "synced@50"]
    assert words(comes.read(PLENTY)) == ["reset:cursor-lost" if cursor else "reset:initial", "put@40", "synced@50"]


@pytest.mark.parametrize("before", [True, False])
def test_a_cursor_that_waited_through_a_restore(before: bool) -> None:
    """A restore that keeps the cluster's id also keeps the epoch.

    A cursor that waited must not be taken for one of the new history.
    """
    core = live(put(90))
    if not before:
        core.handle(Restored(), 0.0)
    waits = reader(core, Cursor(EPOCH, 105))
    assert waits.read(PLENTY) == b""
    if before:
        core.handle(Restored(), 0.0)
    core.handle(Created(110), 0.0)
    core.handle(SnapshotTaken(Snapshot.of(110, [put(95)]), 1), 0.0)
    assert words(waits.read(PLENTY)) == ["reset:restored", "put@95", "synced@110"]
    assert words(reader(core, Cursor(EPOCH, 110)).read(PLENTY)) == ["synced@110"]


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        (NOTHING, "initial"),
        (Cursor(EPOCH, 0), "initial"),
        (Cursor("ffffffff", 0), "initial"),
        (UNREADABLE, "cursor-lost"),
        (Cursor("ffffffff", 100), "cursor-lost"),
    ],
)
def test_a_cursor_that_is_none_of_ours(cursor: Cursor, reason: str) -> None:
    """A client without a mirror loses nothing, so its reset is initial.

    A client with a foreign cursor is notified of the loss.
    """
    one = reader(live(), cursor)
    assert words(one.read(PLENTY)) == [f"reset:{reason}", "synced@100"]
    assert resets(one) == [reason]


def test_a_resume_has_no_reset() -> None:
    """A resume brings the missed changes, and then "synced", without a reset."""
    core = live(put(90))
    say(core, 101, 103)
    one = reader(core, Cursor(EPOCH, 101))
    assert one.asked == 101
    assert words(one.read(PLENTY)) == ["put@103"]
    assert not one.synced
    assert words(one.read(PLENTY)) == ["synced@103"]
    assert (one.synced, resets(one), one.delivered) == (True, [], 1)


def test_a_cursor_ahead_that_the_feed_reaches() -> None:
    """A cursor ahead of the feed, but not of etcd, is valid: when the feed has caught up, the reader goes on."""
    core = live()
    one = reader(core, Cursor(EPOCH, 105))
    assert (one.read(PLENTY), one.wants) == (b"", Wants.LINEARIZABLE)
    one.give_linearizable(105)
    assert (one.read(PLENTY), one.wants) == (b"", Wants.CATCH_UP)
    say(core, 105)
    assert words(one.read(PLENTY)) == ["synced@105"]
    assert (one.wants, resets(one)) == (Wants.NOTHING, [])


def test_a_cursor_ahead_of_etcd_is_of_another_history() -> None:
    """The cursor is above etcd's linearizable revision, so a backup was restored."""
    one = reader(live(put(90)), Cursor(EPOCH, 105))
    one.read(PLENTY)
    one.give_linearizable(104)
    assert words(one.read(PLENTY)) == ["reset:restored", "put@90", "synced@100"]


def test_a_cursor_ahead_that_cannot_be_proven() -> None:
    """A snapshot that is new enough replaces the unproven cursor.

    Later events from before the snapshot are not sent again.
    """
    core = live(put(90))
    one = reader(core, Cursor(EPOCH, 105))
    one.read(PLENTY)
    one.give_linearizable(107)
    one.give_snapshot(Snapshot.of(106, [put(104, b"/a/2")]))
    assert words(one.read(PLENTY)) == ["reset:unproven", "put@104", "synced@106"]
    assert (one.read(PLENTY), one.revision) == (b"", 106), (
        "the reader keeps the snapshot's revision, although the feed is behind it"
    )
    say(core, 104, 106)
    assert (one.read(PLENTY), one.revision) == (b"", 106)
    say(core, 107)
    assert words(one.read(PLENTY)) == ["put@107"]


def test_a_state_that_comes_too_late_is_dropped() -> None:
    """The feed reaches the cursor while the state is read: the reader, which may live for days, keeps neither."""
    core = live(put(90))
    one = reader(core, Cursor(EPOCH, 105))
    one.read(PLENTY)
    one.give_linearizable(107)
    say(core, 105)
    assert words(one.read(PLENTY)) == ["synced@105"]
    one.give_snapshot(Snapshot.of(106, [put(104, b"/a/2")]))
    assert (one.asked, one._offered) == (None, None)


def test_a_cursor_below_the_log_asks_for_history() -> None:
    """A reader whose history is refused gets a reset with the reason."""
    core = live()
    one = reader(core, Cursor(EPOCH, 99))
    assert (one.read(PLENTY), one.wants) == (b"", Wants.BACKFILL)
    one.refuse_backfill()
    assert words(one.read(PLENTY)) == ["reset:lagged", "synced@100"]
    assert one.wants is Wants.NOTHING


def test_a_cursor_below_the_log_waits_for_promised_history() -> None:
    """While the feed reads the history that a cursor needs, the reader waits; then it resumes."""
    core = live(put(90))
    one = reader(core, Cursor(EPOCH, 80))
    one.read(PLENTY)
    core.backfill.handle(WantBackfill(80), 0.0)
    one.refuse_backfill()
    assert (one.read(PLENTY), one.wants) == (b"", Wants.NOTHING)
    core.backfill.handle(Created(100), 0.0)
    core.backfill.handle(batches(90), 0.0)
    core.backfill.handle(Progress(100, trusted=True), 0.0)
    core.backfill.handle(Probed("ok"), 0.0)
    assert words(one.read(PLENTY) + one.read(PLENTY)) == ["put@90", "synced@100"]
    assert resets(one) == []


# --- resets ----------------------------------------------------------------------------------------------------------


def test_who_lags_is_reset_in_the_same_stream() -> None:
    """The missed changes are gone from the log: the reader gets the state instead, and goes on."""
    core = live(bounds=Bounds(batches=2))
    one = reader(core)
    one.read(PLENTY)
    say(core, 101, 102)
    assert words(one.read(1)) == ["put@101"]
    say(core, 103, 104)
    assert words(one.read(PLENTY)) == ["reset:lagged", "put@104", "synced@104"]
    say(core, 105)
    assert words(one.read(PLENTY)) == ["put@105"]
    assert resets(one) == ["initial", "lagged"]


def test_who_lags_too_often_is_given_nothing_more() -> None:
    """The log has outrun the reader three times without the reader catching up: the stream is to be closed."""
    core = live(bounds=Bounds(batches=2))
    one = reader(core)
    one.read(PLENTY)
    for turn in range(MAX_LAGS):
        assert not one.too_slow
        say(core, *range(101 + 3 * turn, 104 + 3 * turn))
        said = one.read(1)
        if turn < MAX_LAGS - 1:
            assert words(said)[0] == "reset:lagged"
            while one.phase is Phase.SNAPSHOT:
                one.read(1)
    assert (said, one.too_slow) == (b"", True)
    say(core, 120, 121, 122)
    assert (one.read(PLENTY), one.read(PLENTY)) == (b"", b"")
    assert resets(one) == ["initial", "lagged", "lagged"]


def test_the_last_revision_that_is_covered_does_not_lag() -> None:
    """A reader exactly at the log's floor lacks nothing."""
    core = live(bounds=Bounds(batches=2))
    one = reader(core)
    one.read(PLENTY)
    say(core, 101)
    one.read(PLENTY)
    say(core, 102, 103)
    assert words(one.read(PLENTY)) == ["put@102", "put@103"]


def test_another_history_resets_who_follows_and_who_is_being_sent_the_state() -> None:
    """After a restore, the rest of a half-sent state is dropped, and the new state has the new epoch."""
    core = live(put(90), put(90, b"/a/2"))
    follows, begins = reader(core), reader(core)
    follows.read(PLENTY)
    assert words(begins.read(1)) == ["reset:initial", "put@90"]
    assert begins.phase is Phase.SNAPSHOT
    restore(core, put(40, b"/a/3"))
    for one in (follows, begins):
        assert parse(one.read(PLENTY))[0]["cursor"] == "00000002-0"
        assert (one.revision, one.synced, resets(one)) == (50, True, ["initial", "restored"])


@pytest.mark.parametrize("dropped", [False, True])
def test_no_block_of_a_history_that_has_ended(dropped: bool) -> None:
    """All blocks are encoded already, but the state is no longer true: ``read`` says ``reset`` first."""
    core = live(put(90), put(90, b"/a/2"), put(90, b"/a/3"))
    for _ in range(4):
        reader(core).read(PLENTY)
    first, one = reader(core), reader(core)
    while not first.synced:
        first.read(PLENTY)
    assert words(one.read(1)) == ["reset:initial", "put@90"]
    assert words(b"".join(one.read_blocks(PLENTY))) == ["put@90"]
    assert one.read_blocks(PLENTY) == [], "the last block comes with `synced`"
    other = reader(core)
    other.read(1)
    if dropped:
        core.history.view = None
    else:
        restore(core, put(40, b"/a/3"))
    assert other.read_blocks(PLENTY) == []
    assert words(other.read(1)) == ([] if dropped else ["reset:restored", "put@40", "synced@50"])
    assert (one.delivered, other.delivered) == (2, 1 if dropped else 2)


def test_what_happens_during_a_snapshot_comes_after_it() -> None:
    """The state is of one revision, whatever the feed does while the state is sent."""
    core = live(put(90), put(90, b"/a/2"))
    one = reader(core)
    found = words(one.read(1))
    core.handle(Batches((Batch(101, [Delete(b"/a/2", 101), put_next(core, 101)]),)), 0.0)
    for _ in range(3):
        found += words(one.read(1))
    assert found == ["reset:initial", "put@90", "put@90", "synced@100", "delete@101", "put@101"]


def test_without_state_only_changes() -> None:
    """With ``snapshot=0``, a first join is not a reset.

    A later reset reports that something was lost, but brings no state.
    """
    core = live(put(90), bounds=Bounds(batches=1))
    one = reader(core, snapshot=False)
    assert words(one.read(PLENTY)) == ["synced@100"]
    say(core, 101)
    assert words(one.read(PLENTY)) == ["put@101"]
    say(core, 102, 103)
    assert words(one.read(PLENTY)) == ["reset:lagged", "synced@103"]
    assert resets(one) == ["lagged"]


# --- heartbeats, staleness, first and last messages ------------------------------------------------------------------


def test_a_bookmark_only_when_the_mirror_is_whole() -> None:
    """Before "synced", and again during a reset, a heartbeat has no id: it is a comment."""
    core = live(put(90), put(90, b"/a/2"), bounds=Bounds(batches=1))
    one = reader(core, form="sse")
    assert one.heartbeat(stale=False) == b": waiting\n"
    one.read(1)
    assert one.heartbeat(stale=False) == b": waiting\n"
    one.read(PLENTY)
    for stale, word in ((False, "live"), (True, "stale")):
        assert one.heartbeat(stale=stale).decode() == (
            f'event: bookmark\ndata: {{"type":"bookmark","revision":100,"state":"{word}"}}\nid: 00000001-100\n\n'
        )
    say(core, 101, 102)
    assert parse(one.heartbeat(stale=False), "sse")[0]["cursor"] == "00000001-100", (
        "a bookmark must not be ahead of the sent events"
    )
    one.read(1)
    assert one.phase is Phase.SNAPSHOT
    assert one.heartbeat(stale=False) == b": waiting\n"
    assert reader(core).heartbeat(stale=False) == b"\n"


def lacks(one: Reader) -> float | None:
    """The reader's ``lacks_since``; a function, because mypy takes a property for a constant."""
    return one.lacks_since


def test_what_it_lacks_has_come_at_some_time() -> None:
    """From ``synced`` on, the log knows when each missing revision came."""
    core = live(bounds=Bounds(batches=3))
    one = reader(core)
    assert lacks(one) is None
    one.read(PLENTY)
    assert lacks(one) is None
    for second, revision in enumerate((101, 102, 103)):
        core.handle(Batches((Batch(revision, [put_next(core, revision)]),)), 10.0 + second)
    assert lacks(one) == 10.0
    one.read(1)
    assert (one.revision, lacks(one)) == (101, 11.0)
    one.read(PLENTY)
    assert lacks(one) is None
    core.history.outage = Outage(proven_at=2.0, ended_at=12.0)
    for revision in (104, 105):
        core.handle(Batches((Batch(revision, [put_next(core, revision)]),)), 12.0 if revision == 104 else 13.0)
    assert lacks(one) == 2.0, "it came when an outage ended, and may have been committed when the outage began"
    one.read(1)
    assert (one.revision, lacks(one)) == (104, 13.0)
    one.read(PLENTY)
    core.history.outage = None
    other = reader(core, Cursor(EPOCH, 103))
    assert lacks(other) is None
    other.read(1)
    assert not other.synced
    assert lacks(other) is None, "the changes of a resume may be old, and are not reported as live"
    for revision in range(106, 111):
        core.handle(Batches((Batch(revision, [put_next(core, revision)]),)), 20.0)
    assert lacks(one) == float("-inf"), "the log no longer has the revision"
    core.history.log.restart(110)
    assert lacks(one) is None, "another generation: a reset comes next"


def test_staleness_is_told_once() -> None:
    """Staleness is sent once; a client assumes live at first."""
    one = reader(live())
    one.read(PLENTY)
    assert one.tell_staleness((), None) == b""
    (stale,) = parse(one.tell_staleness(SELECTION.ranges, "2026-01-01T00:00:00Z", age=10))
    assert stale == {
        "type": "status", "state": "stale", "since": "2026-01-01T00:00:00Z", "age": 10, "ranges": ["prefix=/a/"],
    }  # fmt: skip
    assert one.tell_staleness(SELECTION.ranges, "2026-01-01T00:00:00Z") == b""
    assert parse(one.tell_staleness((), None)) == [{"type": "status", "state": "live", "ranges": ["prefix=/a/"]}]
    assert one.tell_staleness((), None) == b""


@pytest.mark.parametrize("since", [None, "2026-01-01T00:00:00Z"])
def test_staleness_is_told_anew_after_synced(since: str | None) -> None:
    """ "synced" implies live, so a stale or changed state is sent again after it."""
    core = live(bounds=Bounds(batches=1))
    one = reader(core)
    one.read(PLENTY)
    assert one.tell_staleness(SELECTION.ranges, "2026-01-01T00:00:00Z")
    say(core, 101, 102)
    one.read(PLENTY)
    assert parse(one.tell_staleness(SELECTION.ranges if since else (), since))[0]["state"] == (
        "stale" if since else "live"
    )
    assert one.tell_staleness(SELECTION.ranges if since else (), since) == b""


def test_a_stream_that_begins_stale_says_so_at_once() -> None:
    """The status follows "synced", but may come in another chunk: a gateway below must not be live in between."""
    core = live()
    core.history.note_staleness(5.0, None)
    for for_gateway, state in ((True, {"state": "stale"}), (False, {})):
        (synced,) = [
            one for one in parse(reader(core, for_gateway=for_gateway).read(PLENTY)) if one["type"] == "synced"
        ]
        assert synced == {"type": "synced", "revision": 100, "heartbeat": 15, **state, "cursor": "00000001-100"}


def test_who_was_told_stale_by_synced_is_told_live() -> None:
    """etcd comes back before ``status`` has said that the stream is stale: for the gateway below it is, by then."""
    core = live()
    core.history.note_staleness(5.0, None)
    edge, client = reader(core, for_gateway=True), reader(core)
    for one in (edge, client):
        one.read(PLENTY)
    core.history.note_staleness(None, None)
    assert parse(edge.tell_staleness((), None)) == [{"type": "status", "state": "live", "ranges": ["prefix=/a/"]}]
    assert (edge.tell_staleness((), None), client.tell_staleness((), None)) == (b"", b"")


def test_the_last_words() -> None:
    """The last messages tell the position, if there is one, the reason of the end, and when to reconnect."""
    one = reader(live())
    close = {"type": "close", "reason": "drain", "retry_ms": 500}
    assert parse(one.close("drain", 500, stale=False)) == [close]
    one.read(PLENTY)
    bookmark = {"type": "bookmark", "revision": 100, "state": "stale", "cursor": "00000001-100"}
    assert parse(one.close("drain", 500, stale=True)) == [bookmark, close]
    away = one.close("unavailable", 500, stale=False, detail="etcd is away")
    assert parse(away)[-1] == {**close, "reason": "unavailable", "detail": "etcd is away"}


def test_the_first_words() -> None:
    """The first bytes are the greeting of the format."""
    assert reader(live(), form="sse").greet("gw-1", 3000) == b"retry: 3000\n: connected gw-1\n"
    assert reader(live()).greet("gw-1", 3000) == b""


@pytest.mark.parametrize(("heartbeat", "text"), [(15.0, '"heartbeat":15,'), (0.5, '"heartbeat":0.5,')])
def test_a_heartbeat_in_whole_seconds_is_a_whole_number(heartbeat: float, text: str) -> None:
    """A heartbeat in whole seconds has no fraction, as in the docs."""
    assert text in reader(live(), heartbeat=heartbeat).read(PLENTY).decode()


def test_everybody_is_sent_the_same_bytes() -> None:
    """A revision is encoded once for all readers of one encoding; another encoding has its own bytes."""
    core = live()
    one, other = reader(core), reader(core)
    base64 = reader(core, selection=Selection(SELECTION.ranges, "base64"))
    for each in (one, other, base64):
        each.read(PLENTY)
    say(core, 101)
    found = one.read(PLENTY)
    assert other.read(PLENTY) is found
    assert parse(base64.read(PLENTY))[0]["key_encoding"] == "base64"


def test_the_last_cursor_is_the_newest_one() -> None:
    """Progress wakes no stream. One that ends says how far it is complete, or it would come back with an old cursor."""
    core = live(put(90))
    one, behind, old = reader(core), reader(core), reader(core)
    for each in (one, behind, old):
        while each.read(PLENTY):
            pass
    core.handle(Progress(150, trusted=True), 0.0)
    assert parse(one.close("drain", 500, stale=False))[0]["cursor"] == f"{EPOCH}-150"
    say(core, 151)
    assert parse(behind.close("drain", 500, stale=False))[0]["cursor"] == f"{EPOCH}-100", "it lacks 151"
    restore(core, revision=200)

    assert parse(old.close("drain", 500, stale=False))[0]["cursor"] == f"{EPOCH}-100"
