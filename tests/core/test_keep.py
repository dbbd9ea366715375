"""What is encoded is kept only where there is room for it, and is the same bytes either way."""

from __future__ import annotations

import pytest

from app.core.events import Batch, KeyValue
from app.core.log import Bounds, Log
from app.core.snapshot import Snapshot
from app.core.view import View

ITEMS = [KeyValue(b"/a/%d" % n, b"x" * 100, n + 1, n + 1, 1) for n in range(10)]
WORDING = ("sse", "auto", "01234567")


def refuse(_size: int) -> bool:
    """There is no room."""
    return False


def test_a_view_without_room() -> None:
    """Each reader's blocks are encoded for it."""
    roomy, full = View(Snapshot.of(20, ITEMS)), View(Snapshot.of(20, ITEMS), refuse)
    for _ in range(2):
        frames = [[view.frame(block, "sse", "auto") for block in view.snapshot(20).blocks] for view in (roomy, full)]
        assert frames[0] == frames[1]
    assert roomy.encoded > 0
    assert (full.encoded, full.bytes) == (0, sum(item.size for item in ITEMS))


def test_a_view_that_sheds_while_it_asks_for_room() -> None:
    """Room for the bodies may be made of what this very view has encoded."""
    view = View(Snapshot.of(20, ITEMS, block_bytes=1), lambda _size: view.reclaim() >= 0)
    for block in view.snapshot(20).blocks:
        view.frame(block, "sse", "auto")
    assert view.encoded == view.reclaim() > 0
    assert view.bytes == sum(item.size for item in ITEMS)


def log_of(*revisions: int) -> Log:
    """A put in each of *revisions*."""
    log = Log(Bounds())
    log.restart(1)
    for revision in revisions:
        log.append(Batch(revision, [KeyValue(b"/a/k", b"x" * 100, 2, revision, revision)]), 0.0)
    return log


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_log_without_room(size: int) -> None:
    """The frames are not kept; what is passed on is, once for all who stand at one place, and is counted apart."""
    roomy, full = log_of(2, 3, 4), log_of(2, 3, 4)
    held = full.bytes
    full.may_keep = refuse
    expected, found = roomy.slice(1, size, WORDING), full.slice(1, size, WORDING)
    assert expected is not None
    assert found is not None
    assert (found.data, found.end) == (expected.data, expected.end)
    assert (full.bytes, full.passing) == (held, len(found.data))
    assert full.slice(1, size, WORDING) is found
    full.append(Batch(5, [KeyValue(b"/a/k", b"", 2, 5, 5)]), 0.0)
    assert full.passing == 0


def test_a_log_that_sheds_while_it_asks_for_room() -> None:
    """A batch that goes meanwhile is not counted any more."""
    log = log_of(2, 3, 4)
    log.may_keep = lambda _size: log.reclaim(1) >= 0
    assert log.slice(1, 1 << 20, WORDING) is not None
    assert len(log) == 1
    assert log.bytes == sum(entry.size for entry in log._entries)


def test_a_log_that_is_cleared() -> None:
    """Its position stays: who stands there has all."""
    log = log_of(2, 3, 4)
    held = log.bytes
    assert log.clear() == held
    assert (log.bytes, log.passing, len(log), log.tip, log.floor) == (0, 0, 0, 4, 4)
