"""``app.core.block_reader``: however its blocks are asked for, a reader gets the whole snapshot once, in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.block_reader import BlockReader
from app.core.events import KeyValue
from app.core.selection import Selection
from app.core.snapshot import Snapshot
from app.core.view import View

SELECTION = Selection(())
PLENTY = 1 << 30
pytestmark = pytest.mark.usefixtures("one_item_blocks")


def view_of(count: int) -> View:
    """A view of *count* keys, each of them in a block of its own."""
    items = [KeyValue(b"/a/%03d" % number, b"v" * number, 1, 1, 1) for number in range(count)]
    return View(Snapshot.of(1, items, block_bytes=1))


def plain(view: View) -> list[bytes]:
    """The blocks of the view's snapshot, as they are on the wire."""
    return [view.frame(block, "sse", "auto") for block in view.snapshot(1).blocks]


@given(
    count=st.integers(0, 12),
    encoded=st.integers(0, 12),
    asks=st.lists(st.one_of(st.none(), st.integers(0, 400)), max_size=30),
)
def test_any_way_to_ask_brings_the_same_bytes(count: int, encoded: int, asks: list[int | None]) -> None:
    """None asks for one block; a number for as many encoded ones as fit. Only the first *encoded* are encoded."""
    view = view_of(count)
    snapshot = view.snapshot(1)
    for block in snapshot.blocks[:encoded]:
        view.frame(block, "sse", "auto")
    reader = BlockReader(snapshot, SELECTION, "sse")
    got: list[bytes] = []
    items = 0
    for size in [*asks, *[None] * count]:
        if size is None:
            frame, found = reader.read(view)
            got += [frame] if frame else []
        else:
            frames, found = reader.read_encoded(view, size)
            assert sum(map(len, frames)) <= size
            assert not frames or not reader.over, "the last block comes with what follows it"
            got += frames
        items += found

    assert reader.over
    assert got == plain(view_of(count))
    assert items == count


def test_what_is_not_encoded_waits_for_its_turn() -> None:
    """To encode a block takes 2 ms: one call of ``read`` encodes one block, and ``read_encoded`` none."""
    view = view_of(5)
    first, second = (BlockReader(view.snapshot(1), SELECTION, "sse") for _ in range(2))

    assert first.read_encoded(view, PLENTY) == ([], 0)
    frames = [first.read(view)[0] for _ in range(3)]
    assert second.read_encoded(view, PLENTY) == (frames, 3)
    assert second.read_encoded(view, PLENTY) == ([], 0)


def test_everybody_gets_the_same_objects() -> None:
    """Nothing is copied for a reader: 5,000 of them get 2 MB each."""
    view = view_of(4)
    frames = plain(view)
    reader = BlockReader(view.snapshot(1), SELECTION, "sse")

    assert all(one is other for one, other in zip(reader.read_encoded(view, PLENTY)[0], frames, strict=False))
