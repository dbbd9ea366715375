"""``app.core.view`` against a naive dict."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.encoding import event_body
from app.core.events import Batch, Delete, Event, KeyValue, Snapshot
from app.core.frames import snapshot_frame
from app.core.view import View
from tests.core.etcd_model import History

changes = st.lists(
    st.dictionaries(
        st.sampled_from([b"a", b"bb", b"c", b"d"]), st.one_of(st.none(), st.binary(max_size=9)), min_size=1
    ),
    max_size=12,
)


def batch(revision: int, change: dict[bytes, bytes | None]) -> Batch:
    """One revision of puts, and of deletes where the value is None (of keys that may not be there, too)."""
    events: list[Event] = [
        Delete(key, revision) if value is None else KeyValue(key, value, revision, revision, 1)
        for key, value in change.items()
    ]
    return Batch(revision, events)


@given(changes, changes)
def test_a_view_is_the_state_that_its_history_makes(
    before: Sequence[dict[bytes, bytes | None]], after: Sequence[dict[bytes, bytes | None]]
) -> None:
    """Folding batches over a snapshot gives what a dict gives; the bytes are those of what is there."""
    state: dict[bytes, KeyValue] = {}

    def fold(revision: int, change: dict[bytes, bytes | None]) -> Batch:
        made = batch(revision, change)
        for event in made.events:
            if isinstance(event, KeyValue):
                state[event.key] = event
            else:
                state.pop(event.key, None)
        return made

    for revision, change in enumerate(before, start=2):
        fold(revision, change)
    base = 1 + len(before)
    view = View(Snapshot(base, list(state.values())))
    given_out: list[tuple[Snapshot, list[KeyValue]]] = []
    for revision, change in enumerate(after, start=base + 1):
        snapshot = view.snapshot(view.revision)
        given_out.append((snapshot, list(snapshot.items)))
        view.apply(fold(revision, change))
        assert view.revision == revision
        assert {item.key: item for item in view.snapshot(revision).items} == state
        assert len(view) == len(state)
        assert view.bytes == sum(item.size for item in state.values()) == view.snapshot(revision).size
    # Nobody's snapshot changed under their hands.
    assert all(list(snapshot.items) == items for snapshot, items in given_out)


KEYS = st.sampled_from([b"/a/1", b"/a/2", b"/b"])
HISTORIES = st.lists(
    st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=3))), min_size=1, max_size=3), max_size=12
)


@given(HISTORIES, st.integers(0, 12))
def test_every_revision_follows_from_the_one_before(
    operations: Sequence[Sequence[tuple[bytes, bytes | None]]], begun: int
) -> None:
    """Wherever in a history the view began: what has come to it in order is never doubted."""
    history = History()
    for transaction in operations:
        history.commit(transaction)
    base = min(1 + begun, history.current)
    view = View(Snapshot(base, list(history.state(base).values())))
    for revision, events in history.between(base, history.current):
        made = Batch(revision, events)
        assert view.follows(made)
        view.apply(made)


@pytest.mark.parametrize(
    ("event", "follows"),
    [
        (KeyValue(b"a", b"", 2, 9, 5), True),
        (KeyValue(b"a", b"", 2, 9, 4), False),  # put already
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
    """By the key's own count, which etcd begins anew when it is created."""
    view = View(Snapshot(8, [KeyValue(b"a", b"", 2, 7, 4)]))
    assert view.follows(Batch(9, [KeyValue(b"c", b"", 9, 9, 1), event])) is follows
    assert (view.revision, len(view)) == (8, 1), "only asked"


@pytest.mark.parametrize(
    ("events", "follows"),
    [
        ([Delete(b"a", 9), KeyValue(b"a", b"", 9, 9, 1)], True),
        ([Delete(b"a", 9), KeyValue(b"a", b"", 2, 9, 5)], False),  # it was deleted
        ([KeyValue(b"a", b"", 2, 9, 5), Delete(b"a", 9)], True),
        ([KeyValue(b"b", b"", 9, 9, 1), Delete(b"b", 9)], True),
        ([KeyValue(b"a", b"", 2, 9, 5), Delete(b"a", 9), Delete(b"a", 9)], False),
    ],
)
def test_what_follows_of_one_key(events: Sequence[Event], follows: bool) -> None:
    """A revision may write a key more than once (``tests/contract``)."""
    assert View(Snapshot(8, [KeyValue(b"a", b"", 2, 7, 4)])).follows(Batch(9, events)) is follows


def test_one_snapshot_is_shared_until_the_next_batch() -> None:
    """However many join, the items are listed once; the first of all is the one that etcd sent."""
    first = Snapshot(5, [KeyValue(b"a", b"1", 2, 2, 1)])
    view = View(first)
    assert view.snapshot(5) is first
    view.apply(batch(7, {b"b": b"2"}))
    second = view.snapshot(7)
    assert second is not first
    assert view.snapshot(7) is second
    assert [item.key for item in second.items] == [b"a", b"b"]


def test_progress_moves_a_snapshot_without_copying_its_items() -> None:
    """The tip went on, the state did not: another revision, the same list."""
    view = View(Snapshot(5, [KeyValue(b"a", b"1", 2, 2, 1)]))
    moved = view.snapshot(9)
    assert moved.revision == 9
    assert moved.items is view.snapshot(5).items
    assert view.revision == 5


def test_the_items_are_the_history_s_own() -> None:
    """View, log and snapshot hold the same objects: that is what makes "encoded once" true."""
    item = KeyValue(b"a", b"1", 2, 2, 1)
    view = View(Snapshot(1, []))
    view.apply(Batch(2, [item]))
    assert view.snapshot(2).items[0] is item


def in_portions(view: View, snapshot: Snapshot, size: int, form: str = "sse") -> list[bytes]:
    """A reader's way through a snapshot."""
    found: list[bytes] = []
    start = 0
    while start < len(snapshot.items):
        portion = view.portion(snapshot, start, size, form, "auto")
        assert portion.items > 0
        found.append(portion.data)
        start += portion.items
    return found


@given(
    st.lists(st.binary(max_size=50), min_size=1, max_size=60),
    st.integers(1, 500),
    st.sampled_from(["sse", "ndjson"]),
    st.booleans(),
)
def test_portions_are_the_snapshot_in_pieces(values: list[bytes], size: int, form: str, changed: bool) -> None:
    """Every item once and in order, of the newest snapshot or of one that the view has left behind."""
    items = [KeyValue(b"%d" % index, value, 1, 1, 1) for index, value in enumerate(values)]
    view = View(Snapshot(1, items))
    snapshot = view.snapshot(1)
    whole = snapshot_frame([event_body(item, "auto") for item in items], form)
    assert b"".join(in_portions(view, snapshot, size, form)) == whole
    if changed:
        view.apply(batch(2, {b"0": b"new", b"1": None}))
    assert b"".join(in_portions(view, snapshot, size, form)) == whole


def test_portions_of_the_newest_snapshot_are_shared_and_counted() -> None:
    """One object for all that come before the next batch; behind it, nothing is left of them."""
    items = [KeyValue(b"%d" % index, b"x" * 100, 1, 1, 1) for index in range(40)]
    bodies = sum(len(event_body(item, "auto")) for item in items)
    view = View(Snapshot(1, items))
    size = view.bytes
    first = in_portions(view, view.snapshot(1), 1000)
    assert (view.bytes, view.encoded) == (size + view.encoded, bodies + sum(map(len, first)))
    second = in_portions(view, view.snapshot(3), 1000)
    assert all(again is before for again, before in zip(second, first, strict=True))
    assert view.encoded == bodies + sum(map(len, first))  # a herd of any size costs no more

    view.apply(batch(4, {b"new": None}))
    assert (view.bytes, view.encoded) == (size + bodies, bodies)


def test_what_is_encoded_can_be_done_without() -> None:
    """Given back, and made again when asked for."""
    items = [KeyValue(b"a", b"x" * 100, 1, 1, 1)]
    view = View(Snapshot(1, items))
    size = view.bytes
    before = in_portions(view, view.snapshot(1), 1000)
    encoded = view.encoded
    assert (view.shed(), view.encoded, view.bytes, view.shed()) == (encoded, 0, size, 0)
    assert in_portions(view, view.snapshot(1), 1000) == before
    assert view.encoded == encoded
