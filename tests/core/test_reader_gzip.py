"""``app.core.reader`` with gzip: the same stream, byte for byte, in blocks that all readers share."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.cursor import Cursor
from app.core.deflate import HEADER
from app.core.events import Batch, Delete, Event, KeyValue
from app.core.feed import FeedCore
from app.core.feed_messages import Batches, Progress
from app.core.frames import GZIP
from app.core.log import Bounds
from app.core.reader import Reader
from app.core.selection import Selection
from tests.core.test_reader import EPOCH, KEYS, PLENTY, SELECTION, epoch_of, live, put, put_next, restore

pytestmark = pytest.mark.usefixtures("one_item_blocks")

# Small values, which are stored; text, which is deflated; and bytes that cannot be compressed.
VALUES = (b"v", b"10.0.0.7:8080;" * 60, random.Random(1).randbytes(600))


def reader(core: FeedCore, form: str, cursor: Cursor | None = None, *, selection: Selection, latest: bool) -> Reader:
    """A reader as the stream makes it."""
    return Reader(
        core.history,
        core.backfill,
        selection,
        epoch_of,
        form=form,
        cursor=cursor,
        snapshot=True,
        heartbeat=15.0,
        interval=0.5 * latest,
    )


class Twins:
    """Two readers of one feed, of which one gets gzip, and the bytes that each has received."""

    def __init__(self, core: FeedCore, form: str, cursor: Cursor | None, *, selection: Selection, latest: bool) -> None:
        self.plain = reader(core, form, cursor, selection=selection, latest=latest)
        self.gzip = reader(core, form + GZIP, cursor, selection=selection, latest=latest)
        self.inflater = zlib.decompressobj(wbits=31)
        self.seen = [self.plain.greet("gw-1", 3000), self.gzip.greet("gw-1", 3000)]

    def read_to_the_end(self, size: int = 700) -> None:
        """Let both read all that there is, and compare. How much one read of the second has must not matter."""
        for number, (one, most) in enumerate(((self.plain, 700), (self.gzip, size))):
            while data := one.read(most):
                self.seen[number] += data
        self.compare()

    def say(self, plain: bytes, gzip: bytes) -> None:
        """Both send something that is not of the history, and compare."""
        self.seen[0] += plain
        self.seen[1] += gzip
        self.compare()

    def compare(self) -> None:
        """What the client of the second has inflated is what the client of the first has."""
        assert self.inflater.decompress(self.seen[1]) == self.seen[0]
        self.seen = [b"", b""]


write = st.tuples(
    st.dictionaries(st.sampled_from(KEYS), st.one_of(st.none(), st.sampled_from(VALUES)), min_size=1), st.integers(1, 3)
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), write),
        st.tuples(st.just("read"), st.sampled_from([0, 300, PLENTY])),
        st.tuples(st.sampled_from(["progress", "beat", "stale", "shed", "restore"]), st.none()),
    ),
    max_size=20,
)


def publish(core: FeedCore, change: dict[bytes, bytes | None], gap: int) -> None:
    """Publish a revision; None deletes a key that exists."""
    revision = core.history.log.tip + gap
    assert core.history.view is not None
    present = {item.key for item in core.history.view.snapshot(core.history.log.tip).items}
    events: list[Event] = []
    for key, value in change.items():
        if value is not None:
            old = put_next(core, revision, key)
            events.append(KeyValue(key, value, old.create_revision, revision, old.version))
        elif key in present:
            events.append(Delete(key, revision))
    if events:
        core.handle(Batches((Batch(revision, events),)), 0.0)


@given(
    steps,
    st.sampled_from(["sse", "ndjson"]),
    st.sampled_from([None, Cursor(EPOCH, 100), Cursor(EPOCH, 50)]),
    st.booleans(),
    st.booleans(),
)
def test_a_client_inflates_the_plain_stream(
    history: Sequence[tuple[str, object]], form: str, cursor: Cursor | None, keys_only: bool, latest: bool
) -> None:
    """Whatever happens to a feed, gzip changes no byte: snapshots, events, flushes, resets, bookmarks, ``close``."""
    core = live(put(90), put(91, KEYS[1], VALUES[1]), bounds=Bounds(batches=6, bytes=9000))
    selection = Selection(SELECTION.ranges, keys_only=keys_only)
    twins = Twins(core, form, cursor, selection=selection, latest=latest)
    for each in (twins.plain, twins.gzip):
        each.refuse_backfill()
    cluster = 1
    for step, value in history:
        match step, value:
            case "write", (dict() as change, int() as gap):
                publish(core, change, gap)
            case "read", int() as size:
                twins.read_to_the_end(size)
            case "progress", _:
                core.handle(Progress(core.history.log.tip + 1, trusted=True), 0.0)
        if step not in ("write", "progress"):
            twins.read_to_the_end()  # what comes next depends on how far a reader is
        match step:
            case "beat":
                twins.say(twins.plain.heartbeat(stale=False), twins.gzip.heartbeat(stale=False))
            case "stale":
                told = (SELECTION.ranges, "2026-01-01T00:00:00Z")
                twins.say(twins.plain.tell_staleness(*told), twins.gzip.tell_staleness(*told))
            case "shed":
                core.history.log.reclaim(500)
            case "restore":
                cluster += 1
                restore(core, put(60), cluster_id=cluster)
    twins.read_to_the_end()
    twins.say(twins.plain.close("drain", 500, stale=False), twins.gzip.close("drain", 500, stale=False))


def test_everybody_is_sent_the_same_blocks() -> None:
    """A revision and a block of the state are deflated once, and counted once, whoever reads them."""
    core = live(put(90, value=VALUES[1]))
    log, view = core.history.log, core.history.view
    assert view is not None
    one, other = (reader(core, "sse+gzip", selection=SELECTION, latest=False) for _ in range(2))
    assert one.greet("gw-1", 3000).startswith(HEADER)
    assert reader(core, "ndjson+gzip", selection=SELECTION, latest=False).greet("gw-1", 3000) == HEADER
    first = one.read(PLENTY)
    encoded = view.encoded
    assert first == other.read(PLENTY)
    assert view.encoded == encoded

    publish(core, {KEYS[0]: VALUES[1]}, 1)
    before = log.bytes
    second = one.read(PLENTY)
    assert len(second) < 300 < len(VALUES[1])
    held = log.bytes
    assert held > before
    assert other.read(PLENTY) is second
    assert log.bytes == held
