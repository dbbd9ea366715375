"""``app.core.events``: the types of etcd's history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.events import BATCH_OVERHEAD, ITEM_OVERHEAD, Batch, Delete, Event, KeyValue, batches
from app.core.snapshot import Snapshot

PUT = KeyValue(b"k", b"value", 2, 7, 3, 9)


def test_an_item_is_its_fields() -> None:
    """Items are equal if every field is equal; any difference makes them unequal."""
    assert KeyValue(b"k", b"value", 2, 7, 3, 9) == PUT
    others: list[object] = [
        KeyValue(b"j", b"value", 2, 7, 3, 9),
        KeyValue(b"k", b"other", 2, 7, 3, 9),
        KeyValue(b"k", b"value", 1, 7, 3, 9),
        KeyValue(b"k", b"value", 2, 8, 3, 9),
        KeyValue(b"k", b"value", 2, 7, 4, 9),
        KeyValue(b"k", b"value", 2, 7, 3),
        Delete(b"k", 7),
        "k",
    ]
    assert all(other != PUT for other in others)
    assert len({PUT, KeyValue(b"k", b"value", 2, 7, 3, 9)}) == 1


def test_a_delete_is_its_key_and_revision() -> None:
    """A delete equals only the same delete."""
    assert Delete(b"k", 7) == Delete(b"k", 7)
    assert len({Delete(b"k", 7), Delete(b"k", 7), Delete(b"k", 8), Delete(b"j", 7)}) == 3
    assert Delete(b"k", 7) != PUT


def test_memory_is_counted_with_its_overhead() -> None:
    """A batch and a snapshot count the bytes of their events, overhead included."""
    assert PUT.size == 6 + ITEM_OVERHEAD
    assert Delete(b"k", 7).size == 1 + ITEM_OVERHEAD
    assert Batch(7, [PUT, Delete(b"j", 7)]).size == 7 + 2 * ITEM_OVERHEAD + BATCH_OVERHEAD
    assert Snapshot.of(7, [PUT, PUT]).size == 2 * PUT.size
    assert Snapshot.of(7, []).size == 0


def test_they_name_themselves() -> None:
    """The text of an event is readable in a failing test."""
    assert (repr(PUT), repr(Delete(b"k", 7)), repr(Batch(7, [PUT]))) == (
        "KeyValue(b'k'@7)",
        "Delete(b'k'@7)",
        "Batch(7, 1 events)",
    )


events = st.lists(st.integers(1, 6)).map(
    lambda revisions: [Delete(b"%d" % i, r) for i, r in enumerate(sorted(revisions))]
)


@given(events)
def test_each_revision_becomes_one_batch(found: list[Event]) -> None:
    """No event is lost, moved or divided."""
    cut = list(batches(found))
    assert [event for batch in cut for event in batch.events] == found
    assert all(event.mod_revision == batch.revision for batch in cut for event in batch.events)
    revisions = [batch.revision for batch in cut]
    assert revisions == sorted(set(revisions))


def test_falling_revisions_are_no_history() -> None:
    """A watch never goes back: falling revisions are refused, and nothing of them is published."""
    with pytest.raises(ValueError, match="revision 2 comes after the higher revision 3"):
        list(batches([Delete(b"a", 3), Delete(b"b", 2)]))
