"""``app.core.view`` against a naive dict."""

from __future__ import annotations

import gc
import tracemalloc
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.core.deflate import HEADER
from app.core.encoding import event_body
from app.core.events import Batch, Delete, Event, KeyValue
from app.core.frames import GZIP, LIST, snapshot_frame
from app.core.keys import KeyRange
from app.core.snapshot import MAX_BYTES, MAX_ITEMS, Block, Snapshot, blocks_of
from app.core.table_memory import whole_size
from app.core.view import View
from tests.core.etcd_model import History
from tests.support.size import size

changes = st.lists(
    st.dictionaries(
        st.sampled_from([b"a", b"bb", b"c", b"d"]), st.one_of(st.none(), st.binary(max_size=9)), min_size=1
    ),
    max_size=12,
)


def batch(revision: int, change: dict[bytes, bytes | None]) -> Batch:
    """One revision of puts, and of deletes where the value is None (also of absent keys)."""
    events: list[Event] = [
        Delete(key, revision) if value is None else KeyValue(key, value, revision, revision, 1)
        for key, value in change.items()
    ]
    return Batch(revision, events)


def folded(state: dict[bytes, KeyValue], revision: int, change: dict[bytes, bytes | None]) -> Batch:
    """*change* as a batch; also applied to *state*."""
    made = batch(revision, change)
    for event in made.events:
        if isinstance(event, KeyValue):
            state[event.key] = event
        else:
            state.pop(event.key, None)
    return made


@given(changes, changes)
def test_a_view_is_the_state_that_its_history_makes(
    before: Sequence[dict[bytes, bytes | None]], after: Sequence[dict[bytes, bytes | None]]
) -> None:
    """Applying batches to a snapshot gives the same as a dict; the bytes are those of the present items."""
    state: dict[bytes, KeyValue] = {}
    for revision, change in enumerate(before, start=2):
        folded(state, revision, change)
    base = 1 + len(before)
    view = View(Snapshot.of(base, list(state.values())))
    given_out: list[tuple[Snapshot, list[KeyValue]]] = []
    for revision, change in enumerate(after, start=base + 1):
        snapshot = view.snapshot(view.revision)
        given_out.append((snapshot, list(snapshot.items)))
        view.apply(folded(state, revision, change))
        assert view.revision == revision
        assert {item.key: item for item in view.snapshot(revision).items} == state
        assert len(view) == len(state)
        assert view.bytes == sum(item.size for item in state.values()) == view.snapshot(revision).size
    # No batch changed a snapshot that a reader already had.
    assert all(list(snapshot.items) == items for snapshot, items in given_out)


KEYS = st.sampled_from([b"/a/1", b"/a/2", b"/b"])
HISTORIES = st.lists(
    st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=3))), min_size=1, max_size=3), max_size=12
)


@given(HISTORIES, st.integers(0, 12))
def test_every_revision_follows_from_the_one_before(
    operations: Sequence[Sequence[tuple[bytes, bytes | None]]], begun: int
) -> None:
    """Wherever a view began in a history, events that come in order always follow."""
    history = History()
    for transaction in operations:
        history.commit(transaction)
    base = min(1 + begun, history.current)
    view = View(Snapshot.of(base, list(history.state(base).values())))
    for revision, events in history.between(base, history.current):
        made = Batch(revision, events)
        assert view.follows(made)
        view.apply(made)


@pytest.mark.parametrize(
    ("event", "follows"),
    [
        (KeyValue(b"a", b"", 2, 9, 5), True),
        (KeyValue(b"a", b"", 2, 9, 4), False),  # already put
        (KeyValue(b"a", b"", 2, 9, 6), False),  # a put is missing
        (KeyValue(b"a", b"", 9, 9, 1), False),  # a delete is missing
        (KeyValue(b"a", b"", 3, 9, 5), False),  # deleted, and put as often again
        (Delete(b"a", 9), True),
        (KeyValue(b"b", b"", 9, 9, 1), True),
        (KeyValue(b"b", b"", 8, 9, 2), False),  # its first put is missing
        (Delete(b"b", 9), False),
    ],
)
def test_what_follows(event: Event, follows: bool) -> None:
    """An event follows by its key's version, which etcd starts anew when the key is created."""
    view = View(Snapshot.of(8, [KeyValue(b"a", b"", 2, 7, 4)]))
    assert view.follows(Batch(9, [KeyValue(b"c", b"", 9, 9, 1), event])) is follows
    assert (view.revision, len(view)) == (8, 1), "only asked"


@pytest.mark.parametrize(
    ("events", "follows"),
    [
        ([Delete(b"a", 9), KeyValue(b"a", b"", 9, 9, 1)], True),
        ([Delete(b"a", 9), KeyValue(b"a", b"", 2, 9, 5)], False),  # the key was deleted
        ([KeyValue(b"a", b"", 2, 9, 5), Delete(b"a", 9)], True),
        ([KeyValue(b"b", b"", 9, 9, 1), Delete(b"b", 9)], True),
        ([KeyValue(b"a", b"", 2, 9, 5), Delete(b"a", 9), Delete(b"a", 9)], False),
    ],
)
def test_what_follows_of_one_key(events: Sequence[Event], follows: bool) -> None:
    """A revision may write a key more than once (``tests/contract``)."""
    assert View(Snapshot.of(8, [KeyValue(b"a", b"", 2, 7, 4)])).follows(Batch(9, events)) is follows


def test_one_snapshot_is_shared_until_the_next_batch() -> None:
    """The items are listed once for all joining readers; the first snapshot is the one that etcd sent."""
    first = Snapshot.of(5, [KeyValue(b"a", b"1", 2, 2, 1)])
    view = View(first)
    assert view.snapshot(5) is first
    view.apply(batch(7, {b"b": b"2"}))
    second = view.snapshot(7)
    assert second is not first
    assert view.snapshot(7) is second
    assert [item.key for item in second.items] == [b"a", b"b"]


def test_progress_moves_a_snapshot_without_copying_it() -> None:
    """Progress advances the tip but not the state: the snapshot has another revision and the same blocks."""
    view = View(Snapshot.of(5, [KeyValue(b"a", b"1", 2, 2, 1)]))
    moved = view.snapshot(9)
    assert moved.revision == 9
    assert moved.blocks is view.snapshot(5).blocks
    assert view.revision == 5


def test_the_items_are_the_history_s_own() -> None:
    """View, log and snapshot share the same objects: so each is encoded only once."""
    item = KeyValue(b"a", b"1", 2, 2, 1)
    view = View(Snapshot.of(1, []))
    view.apply(Batch(2, [item]))
    assert view.snapshot(2).items[0] is item


def frames(view: View, snapshot: Snapshot, form: str = "sse") -> list[bytes]:
    """The frames that a reader gets of a snapshot."""
    return [view.frame(block, form, "auto") for block in snapshot.blocks]


def whole(items: Sequence[KeyValue], form: str = "sse") -> bytes:
    """The same bytes, made at once."""
    return snapshot_frame([event_body(item, "auto") for item in items], form)


def wire_size(block: Block) -> int:
    """The bytes that count for the size of a block."""
    return sum(item.wire_size for item in block.items)


@given(st.lists(st.integers(0, 3 * MAX_BYTES // 2), max_size=12), st.integers(0, 2 * MAX_ITEMS + 1))
@example([], 0)
@example([MAX_BYTES], MAX_ITEMS)
def test_blocks_are_the_items_by_key(sizes: list[int], small: int) -> None:
    """Blocks are neither long nor large, unless a single item is large."""
    items = [KeyValue(b"l%03d" % index, b"x" * size, 1, 1, 1) for index, size in enumerate(sizes)]
    items += [KeyValue(b"%05d" % index, b"", 1, 1, 1) for index in range(small)]
    blocks = blocks_of(reversed(items), MAX_BYTES)
    assert [item for block in blocks for item in block.items] == sorted(items, key=lambda item: item.key)
    for block in blocks:
        assert block.size == sum(item.size for item in block.items)
        assert 0 < len(block.items) <= MAX_ITEMS
        assert wire_size(block) <= MAX_BYTES or len(block.items) == 1
    for one, other in pairwise(blocks):
        full = len(one.items) == MAX_ITEMS or wire_size(one) + other.items[0].wire_size > MAX_BYTES
        assert full, "every block but the last must be full"


# Enough and large enough keys to divide and merge parts of five items or 1,000 bytes.
MANY = st.lists(
    st.dictionaries(
        st.integers(0, 40).map(b"%02d".__mod__),
        st.one_of(st.none(), st.sampled_from([b"", b"x" * 100, b"x" * 500, b"x" * 1500])),
        min_size=1,
        max_size=20,
    ),
    max_size=8,
)


@given(MANY, st.sampled_from(["sse", "ndjson"]))
def test_a_view_of_many_parts(history: Sequence[dict[bytes, bytes | None]], form: str) -> None:
    """A large view behaves as a small one does; and snapshots that readers have stay unchanged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.core.view.MAX_BYTES", 1000)
        for module in ("view", "snapshot"):
            patch.setattr(f"app.core.{module}.MAX_ITEMS", 5)
        state: dict[bytes, KeyValue] = {}
        view = View(Snapshot.of(1, []))
        given_out: list[tuple[Snapshot, list[KeyValue]]] = []
        for revision, change in enumerate(history, start=2):
            view.apply(folded(state, revision, change))
            snapshot = view.snapshot(revision)
            items = [state[key] for key in sorted(state)]
            assert snapshot.items == items
            assert all(mine is own for mine, own in zip(snapshot.items, items, strict=True)), "not copies"
            given_out.append((snapshot, items))
            for given, of in given_out[-2:]:
                assert b"".join(frames(view, given, form)) == whole(of, form)
            for block in snapshot.blocks:
                assert 0 < len(block.items) <= 5
                assert wire_size(block) <= 1000 or len(block.items) == 1
            tables = tables_of(view)
            bodies = sum(len(event_body(item, "auto")) for item in items)
            kept = sum(len(data) for table in tables for data in table.values())
            assert kept == bodies + len(whole(items, form)), "replaced blocks are not kept"
            assert view.encoded == sum(map(whole_size, tables))
            assert view.bytes == sum(item.size for item in items) + view.encoded
            assert len(view) == len(items)
        for given, of in given_out:
            assert given.items == of
        given_back = view.encoded
        assert (view.reclaim(), view.encoded) == (given_back, 0)
        items = [state[key] for key in sorted(state)]
        assert b"".join(frames(view, view.snapshot(view.revision), form)) == whole(items, form)


@given(MANY, st.sampled_from([("0",), ("1", "2"), ("",), ("00", "1", "30"), ("05",)]), st.integers(0, 8))
def test_the_items_of_some_ranges(
    history: Sequence[dict[bytes, bytes | None]], names: Sequence[str], read_at: int
) -> None:
    """They are by key, in blocks of the usual size, whether or not parts were written since the last snapshot."""
    ranges = tuple(KeyRange("key" if len(name) == 2 else "prefix", name.encode()) for name in names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.core.view.MAX_BYTES", 1000)
        for module in ("view", "snapshot"):
            patch.setattr(f"app.core.{module}.MAX_ITEMS", 5)
        state: dict[bytes, KeyValue] = {}
        view = View(Snapshot.of(1, []))
        for revision, change in enumerate(history, start=2):
            view.apply(folded(state, revision, change))
            if revision == read_at:
                view.snapshot(revision)
            blocks = view.within(ranges)
            wanted = [state[key] for key in sorted(state) if any(one.contains(key) for one in ranges)]
            assert [item for block in blocks for item in block.items] == wanted
            for block in blocks:
                assert 0 < len(block.items) <= 5
                assert wire_size(block) <= 1000 or len(block.items) == 1
        whole_view = view.snapshot(view.revision).blocks
        assert view.within((KeyRange("prefix", b""),)) == whole_view, "blocks inside a range are shared"


def test_what_nothing_was_written_to_is_shared() -> None:
    """A put makes one new block and one new frame; the other blocks are shared."""
    items = [KeyValue(b"%05d" % index, b"x" * 100, 1, 1, 1) for index in range(2000)]
    view = View(Snapshot.of(1, items))
    before = view.snapshot(1)
    first = frames(view, before)
    view.apply(batch(2, {b"00000": b"new"}))
    after = view.snapshot(2)
    assert len(before.blocks) > 3
    assert [one is other for one, other in zip(before.blocks, after.blocks, strict=True)].count(False) == 1
    again = frames(view, after)
    assert [one is other for one, other in zip(first, again, strict=True)].count(False) == 1
    assert all(one is other for one, other in zip(frames(view, after), again, strict=True))


def test_many_new_keys_are_divided_before_somebody_joins() -> None:
    """Many new keys are divided before a reader joins: otherwise that reader would wait until all keys are sorted."""
    view = View(Snapshot.of(1, []))
    for number in range(10):
        view.apply(batch(2 + number, {b"%05d" % (1000 * key + number): b"" for key in range(MAX_ITEMS)}))
    assert max(map(len, view._parts)) <= 2 * MAX_ITEMS
    assert len(view.snapshot(11).items) == 10 * MAX_ITEMS


def test_blocks_do_not_stay_small() -> None:
    """Blocks merge after nearly all of their items were deleted."""
    items = [KeyValue(b"%05d" % index, b"x" * 100, 1, 1, 1) for index in range(20_000)]
    view = View(Snapshot.of(1, items))
    assert len(view.snapshot(1).blocks) > 50
    view.apply(batch(2, {item.key: None for index, item in enumerate(items) if index % 1000}))
    assert len(view.snapshot(2).blocks) == 1
    view.apply(batch(3, {item.key: None for item in items[::1000]}))
    assert view.snapshot(3).blocks == []
    view.apply(batch(4, {b"": b"first"}))
    assert [item.key for item in view.snapshot(4).items] == [b""]


def test_a_small_block_is_not_merged_into_a_full_one() -> None:
    """Blocks merge only where the result is no larger than a block may be: otherwise it would be divided again."""
    large = [KeyValue(b"a%d" % index, b"x" * (MAX_BYTES - 1000), 1, 1, 1) for index in range(2)]
    small = [KeyValue(b"b%d" % index, b"x" * 800, 1, 1, 1) for index in range(3)]
    view = View(Snapshot.of(1, [*large, *small]))
    before = [len(block.items) for block in view.snapshot(1).blocks]
    view.apply(batch(2, {b"b2": None}))
    after = view.snapshot(2).blocks
    assert before == [1, 1, 3]
    assert [len(block.items) for block in after] == [1, 1, 2]
    assert all(wire_size(block) <= MAX_BYTES for block in after)


def test_a_block_of_another_view_is_not_its_own() -> None:
    """A block of a feed's earlier history has the same key, but another encoding."""
    old = View(Snapshot.of(9, [KeyValue(b"a", b"old", 1, 1, 1)]))
    new = View(Snapshot.of(2, [KeyValue(b"a", b"new", 1, 1, 1)]))
    (before,) = frames(old, old.snapshot(9))
    (now,) = frames(new, new.snapshot(2))
    encoded = new.encoded
    assert frames(new, old.snapshot(9)) == [before] != [now]
    assert new.encoded == encoded


def tables_of(view: View) -> list[Mapping[Any, Any]]:
    """All that the view keeps encoded."""
    return [*view._bodies.values(), *view._frames.values(), *view._replaced_frames.values()]


def test_a_block_is_deflated_once_and_counted_once() -> None:
    """A frame with gzip, and a part of a list, are kept like every frame: counted with their size, and given back."""
    view = View(Snapshot.of(9, [KeyValue(b"/a/%d" % n, b"text " * 99, n + 1, n + 1, 1) for n in range(9)]))
    (block,) = view.snapshot(9).blocks
    plain, frame, part = (
        view.frame(block, "sse", "auto"),
        view.frame(block, "sse" + GZIP, "auto"),
        view.deflated_items(block, "auto", keys_only=False),
    )
    assert zlib.decompressobj(wbits=31).decompress(HEADER + frame) == plain
    assert part.plain == view.frame(block, LIST, "auto")
    assert len(frame) < len(plain) / 6
    encoded, held = view.encoded, view.bytes
    assert view.frame(block, "sse" + GZIP, "auto") is frame
    assert view.deflated_items(block, "auto", keys_only=False) is part
    assert (view.encoded, view.bytes) == (encoded, held)

    assert encoded == sum(map(whole_size, tables_of(view)))
    kept = sum(len(data) for table in tables_of(view) for data in table.values())
    bodies = sum(len(event_body(item, "auto")) for item in block.items)
    assert kept == bodies + len(plain) + len(frame) + len(part) + len(part.plain)
    view.apply(Batch(10, [Delete(b"/a/0", 10)]))
    del block
    assert view.encoded == sum(map(whole_size, tables_of(view)))
    left = sum(len(data) for table in tables_of(view) for data in table.values())
    assert left == bodies - len(event_body(KeyValue(b"/a/0", b"text " * 99, 1, 1, 1), "auto")), "all is given back"
    view.frame(view.snapshot(10).blocks[0], "ndjson" + GZIP, "auto")
    assert view.reclaim() > 0
    assert (view.encoded, view.bytes) == (0, sum(item.size for item in view.snapshot(10).items))


def test_a_block_that_is_replaced_stays_deflated_for_those_who_hold_it() -> None:
    """A herd joins a busy range: what each of 1,000 readers has to be sent is deflated once, and counted that long."""
    view = View(Snapshot.of(9, [KeyValue(b"/a/%d" % n, b"text " * 99, n + 1, n + 1, 1) for n in range(9)]))
    held, other = view.snapshot(9), View(Snapshot.of(8, [KeyValue(b"/a/0", b"other" * 99, 8, 8, 1)])).snapshot(8)
    before = view.frame(held.blocks[0], "sse" + GZIP, "auto")
    view.apply(Batch(10, [Delete(b"/a/0", 10)]))
    after, foreign = (
        view.frame(held.blocks[0], "ndjson" + GZIP, "auto"),
        view.frame(other.blocks[0], "sse" + GZIP, "auto"),
    )
    assert view.encoded == sum(map(whole_size, tables_of(view)))
    assert len(view._bodies["auto", False]) == 8, "the items are not the latest, so they are not kept"
    assert view.frame(held.blocks[0], "sse" + GZIP, "auto") is before
    assert view.frame(held.blocks[0], "ndjson" + GZIP, "auto") is after
    assert view.frame(other.blocks[0], "sse" + GZIP, "auto") is foreign
    del held
    assert view.encoded == sum(map(whole_size, tables_of(view)))
    assert [list(table.values()) for table in view._replaced_frames.values()] == [[foreign]]

    assert view.reclaim() > 0
    again = view.frame(other.blocks[0], "sse" + GZIP, "auto")
    assert (view.encoded, again) == (sum(map(whole_size, tables_of(view))), foreign)
    del other
    assert (view.encoded, view.bytes) == (0, sum(item.size for item in view.snapshot(10).items))


# --- encoded bytes are kept only while there is room, and are the same in both cases ----------------------------------

ROOMY_ITEMS = [KeyValue(b"/a/%d" % n, b"x" * 100, n + 1, n + 1, 1) for n in range(10)]


def test_a_view_without_room() -> None:
    """Without room, each reader's blocks are encoded for that reader."""
    roomy, full = View(Snapshot.of(20, ROOMY_ITEMS)), View(Snapshot.of(20, ROOMY_ITEMS), lambda _size: False)
    for _ in range(2):
        frames = [[view.frame(block, "sse", "auto") for block in view.snapshot(20).blocks] for view in (roomy, full)]
        assert frames[0] == frames[1]
    assert roomy.encoded > 0
    assert (full.encoded, full.bytes) == (0, sum(item.size for item in ROOMY_ITEMS))


def test_a_view_that_reclaims_while_it_asks_for_room() -> None:
    """A view may get the room for its encoded bodies by dropping its own encoded bodies."""
    view = View(Snapshot.of(20, ROOMY_ITEMS, block_bytes=1), lambda _size: view.reclaim() >= 0)
    for block in view.snapshot(20).blocks:
        view.frame(block, "sse", "auto")
    assert view.encoded == view.reclaim() > 0
    assert view.bytes == sum(item.size for item in ROOMY_ITEMS)


@pytest.mark.sized
@pytest.mark.parametrize(
    ("keys", "length"), [(1, 0), (1, 1000), (300, 30), (size(1000, long=3000), 0), (size(1000, long=3000), 100)]
)
def test_a_view_counts_the_memory_of_what_is_encoded(keys: int, length: int) -> None:
    """The objects and their places, too: with values of 30 bytes, a view took a quarter more than it counted."""
    items = [KeyValue(b"/a/%06d" % n, length * b"x", 1000 + n, 2000 + n, n + 1) for n in range(keys)]
    view = View(Snapshot.of(9000, items))
    blocks = view.snapshot(9000).blocks

    def encode() -> None:
        for encoding, keys_only in (("auto", False), ("base64", True)):
            for block in blocks:
                view.frame(block, "sse", encoding, keys_only=keys_only)

    encode()  # what is made once for all views does not count, nor what coverage.py keeps of lines that are new to it
    view.reclaim()
    gc.collect()
    tracemalloc.start()
    try:
        encode()
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert used == pytest.approx(view.encoded, rel=0.04, abs=160)
