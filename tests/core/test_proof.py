"""``app.core.proof``: an anchor recognises itself, and the held events are bounded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.core.events import Batch, Delete, Event, KeyValue
from app.core.proof import Anchor, Plan, Proof

A, B = KeyValue(b"a", b"1", 7, 7, 1), KeyValue(b"b", b"1", 7, 7, 1)


@pytest.mark.parametrize(
    ("events", "exact", "of_snapshot"),
    [
        ((A, B), True, True),
        ((B, A), False, True),
        ((A,), False, False),
        ((A, B, Delete(b"c", 7)), False, True),
        ((A, KeyValue(b"b", b"2", 7, 7, 1)), False, False),
    ],
)
def test_an_anchor_knows_itself_again(events: Sequence[Event], exact: bool, of_snapshot: bool) -> None:
    """Of a revision that a watch sent, every event is known; of a snapshot's revision, only the puts that remain."""
    found = Batch(7, events)
    assert Anchor(7, (A, B), True, 7).matches(found) is exact
    assert Anchor(7, [A, B], False, 9).matches(found) is of_snapshot


DELETED = Delete(b"c", 7)


@pytest.mark.parametrize(
    ("known", "found", "exact", "of_snapshot"),
    [
        ((A, B), (A, B), False, False),
        ((A, B), (B, A), False, False),  # in another order: not the anchor, and no proof either
        ((A, DELETED), (A,), False, False),  # as after a compaction
        ((A, B, Delete(b"b", 7)), (A,), False, False),  # a put and a delete of one key, as after a compaction
        ((Delete(b"b", 7), B), (B,), False, False),
        ((A, B), (A, B, DELETED), True, False),  # the snapshot does not have what is deleted
        ((A, B), (B,), True, True),
        ((A, B), (A, KeyValue(b"b", b"2", 7, 7, 1)), True, True),
        ((A,), (B,), True, True),
        ((DELETED,), (A,), True, False),
    ],
)
def test_what_proves_another_history(
    known: Sequence[Event], found: Sequence[Event], exact: bool, of_snapshot: bool
) -> None:
    """etcd may have compacted or lost deletes of a revision, but no put that is left, and it adds no event."""
    assert Anchor(7, known, True, 7).contradicts(Batch(7, found)) is exact
    assert Anchor(7, known, False, 9).contradicts(Batch(7, found)) is of_snapshot


def test_another_revision_is_no_anchor() -> None:
    """A different revision is not the anchor, and proves nothing: etcd may have lost the anchor."""
    anchor = Anchor(8, (A, B), True, 8)
    assert not anchor.matches(Batch(7, [A, B]))
    assert not anchor.contradicts(Batch(7, [B]))


def test_what_is_held_back_is_bounded() -> None:
    """The held events are bounded in bytes; but a single larger revision is held."""
    giant = Batch(5, [KeyValue(b"k", b"v" * 5000, 5, 5, 1)])
    small = [Batch(revision, [Delete(b"k", revision)]) for revision in (6, 7, 8)]
    proof = Proof(Plan.SNAPSHOT, most_bytes=2000)
    assert proof.hold([giant])
    assert proof.bytes == giant.size
    assert not proof.hold(small[:1])
    proof = Proof(Plan.PROBE, most_bytes=2000)
    assert proof.hold(small)
    assert proof.bytes == sum(batch.size for batch in small)
    assert not proof.hold([giant])
    assert proof.held_after(6) == [*small[1:]]
    assert proof.held_after(8) == []
