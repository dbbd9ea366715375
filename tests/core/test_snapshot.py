"""``app.core.snapshot``: all items once, by key, in blocks small enough for a single write."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core import snapshot as module
from app.core.encoding import event_body
from app.core.events import ITEM_OVERHEAD, KeyValue
from app.core.frames import snapshot_frame
from app.core.snapshot import MAX_BYTES, Block, Snapshot, blocks_of


def item(key: int, size: int = 0) -> KeyValue:
    """An item whose value has *size* bytes."""
    return KeyValue(b"%06d" % key, b"v" * size, 1, 1, 1)


def wire_size(block: Block) -> int:
    """The bytes that count for the size of a block."""
    return sum(one.wire_size for one in block.items)


@given(st.dictionaries(st.integers(0, 9999), st.integers(0, 3000), max_size=40), st.integers(1, 5000))
def test_every_item_is_in_one_block(sizes: dict[int, int], most_bytes: int) -> None:
    """Items are sorted by key; no block exceeds the maximum, unless it is a single item."""
    items = [item(key, size) for key, size in sizes.items()]
    blocks = blocks_of(items, most_bytes)
    assert [one for block in blocks for one in block.items] == sorted(items, key=lambda one: one.key)
    for block in blocks:
        assert block.size == sum(one.size for one in block.items)
        assert wire_size(block) <= most_bytes or len(block.items) == 1
    for block, after in pairwise(blocks):
        assert wire_size(block) + after.items[0].wire_size > most_bytes, "a block must be as full as possible"


def test_a_block_has_not_too_many_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of items in a block is bounded even if they are small: encoding takes the event loop's time."""
    monkeypatch.setattr(module, "MAX_ITEMS", 3)
    assert [len(block.items) for block in blocks_of(map(item, range(7)), 1 << 20)] == [3, 3, 1]


@pytest.mark.parametrize("revision", [5, 10**9])
def test_a_block_fills_one_write(revision: int) -> None:
    """A block has about as many bytes in a stream as it may have: half as many would be twice as many writes."""
    items = [KeyValue(b"/svc/%06d" % number, 40 * b"v", revision, revision, 1) for number in range(1000)]
    first, *_ = blocks_of(items, MAX_BYTES)
    frame = snapshot_frame([event_body(one, "auto") for one in first.items], "sse")
    assert 0.9 * MAX_BYTES < len(frame) < 1.1 * MAX_BYTES


def test_a_snapshot_is_its_blocks() -> None:
    """A snapshot's items and size are those of its blocks; an empty snapshot has none."""
    snapshot = Snapshot.of(9, [item(2, 10), item(1, 20)], block_bytes=1)
    assert (snapshot.revision, len(snapshot.blocks)) == (9, 2)
    assert [one.key for one in snapshot.items] == [b"000001", b"000002"]
    assert snapshot.size == 30 + 2 * (6 + ITEM_OVERHEAD)
    empty = Snapshot.of(9, [])
    assert (empty.blocks, empty.items, empty.size) == ([], [], 0)


def numbered(count: int, size: int) -> Snapshot:
    """Some items in blocks of *size* bytes; the newest is in the middle."""
    items = [KeyValue(b"/a/%03d" % n, b"", 2 + n, 2 + (n * 7) % count, 1) for n in range(count)]
    return Snapshot.of(1, items, size)


@given(st.integers(1, 40), st.integers(200, 2000), st.integers(-1, 41), st.integers(1, 45))
def test_a_page_has_the_items_from_its_start_on(count: int, size: int, start: int, limit: int) -> None:
    """However the items are divided into blocks; a block that is wanted whole is shared."""
    snapshot = numbered(count, size)
    first = b"/a/%03d" % start if start >= 0 else b""
    pages = list(snapshot.page(first, limit))
    found = [item for block in pages for item in block.items]

    assert found == [item for item in snapshot.items if item.key >= first][:limit]
    assert all(block in snapshot.blocks for block in pages[1:-1])
    assert all(block.size == sum(item.size for item in block.items) for block in pages)


@given(st.integers(0, 40), st.integers(200, 2000))
def test_count_and_newest(count: int, size: int) -> None:
    """They are those of all items, and stay."""
    snapshot = numbered(count, size)
    for _ in range(2):
        assert snapshot.count == count
        assert snapshot.newest == max((item.mod_revision for item in snapshot.items), default=0)
