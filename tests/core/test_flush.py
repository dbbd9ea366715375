"""``app.core.flush``: a flush makes the same mirror as all the events that it replaces."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.events import Batch, Delete, Event, KeyValue
from app.core.flush import Flush, coalesce

EPOCH = "0000000a"
REPRESENTATION = ("ndjson", "auto", EPOCH, False)


def put(revision: int, key: bytes = b"/a", value: bytes = b"v") -> KeyValue:
    """A put."""
    return KeyValue(key, value, revision, revision, 1)


def applied(events: Sequence[Event], state: dict[bytes, Event] | None = None) -> dict[bytes, Event]:
    """The mirror that *events* make."""
    mirror = dict(state or {})
    for event in events:
        mirror.pop(event.key, None)
        if isinstance(event, KeyValue):
            mirror[event.key] = event
    return mirror


changes = st.lists(st.dictionaries(st.sampled_from([b"/a", b"/b", b"/c"]), st.booleans(), min_size=1), max_size=12)


def history(changes: Sequence[dict[bytes, bool]]) -> list[Batch]:
    """One revision for each of *changes*: True is a put, False is a delete."""
    return [
        Batch(number, [put(number, key) if alive else Delete(key, number) for key, alive in change.items()])
        for number, change in enumerate(changes, 1)
    ]


@given(before=changes, passage=changes)
def test_a_flush_makes_the_mirror_that_all_events_make(
    before: Sequence[dict[bytes, bool]], passage: Sequence[dict[bytes, bool]]
) -> None:
    """Each changed key comes once, with its newest event, in the order of revisions. Deletes come too."""
    state = applied([event for batch in history(before) for event in batch.events])
    batches = history(passage)
    every = [event for batch in batches for event in batch.events]
    coalesced = coalesce(batches)

    assert applied(coalesced, state) == applied(every, state)
    assert {event.key for event in coalesced} == {event.key for event in every}
    assert len({event.key for event in coalesced}) == len(coalesced)
    assert [event.mod_revision for event in coalesced] == sorted(event.mod_revision for event in coalesced)


def test_a_key_that_came_and_went_is_deleted() -> None:
    """The client may have the key from an earlier flush that was cut off, so the delete is sent."""
    assert coalesce([Batch(5, [put(5)]), Batch(6, [Delete(b"/a", 6)])]) == [Delete(b"/a", 6)]


@pytest.mark.parametrize("form", ["sse", "ndjson"])
@pytest.mark.parametrize("piece_size", [1, 600, 1 << 20])
def test_one_id_at_the_end(monkeypatch: pytest.MonkeyPatch, form: str, piece_size: int) -> None:
    """In however many pieces a flush is sent: ``more`` on all events but the last, and there the only id."""
    monkeypatch.setattr("app.core.flush.PIECE_SIZE", piece_size)
    batches = [Batch(revision, [put(revision, b"/%d" % revision)]) for revision in range(11, 16)]
    flush = Flush(batches, 10, 17, lambda _size: True)
    representation = (form, "auto", EPOCH, False)
    data = b"".join(flush.frame(number, representation) for number in range(len(flush.pieces))).decode()

    assert len(flush.pieces) == {1: 5, 600: 3, 1 << 20: 1}[piece_size]
    if form == "sse":
        blocks = data.removesuffix("\n\n").split("\n\n")
        assert [block.splitlines()[2:] for block in blocks] == [[]] * 4 + [[f"id: {EPOCH}-17"]]
        items = [json.loads(block.splitlines()[1].removeprefix("data: ")) for block in blocks]
    else:
        items = [json.loads(line) for line in data.splitlines()]
        assert [item.get("cursor") for item in items] == [None] * 4 + [f"{EPOCH}-17"]
    assert [item["mod_revision"] for item in items] == [11, 12, 13, 14, 15]
    assert [item.get("more", False) for item in items] == [True] * 4 + [False]


def test_without_values() -> None:
    """``keys_only`` leaves the values out."""
    flush = Flush([Batch(11, [put(11, value=b"secret")])], 10, 11, lambda _size: True)

    assert b"secret" in flush.frame(0, REPRESENTATION)
    assert b"secret" not in flush.frame(0, ("ndjson", "auto", EPOCH, True))


def test_bytes_are_kept_while_the_log_has_the_fold() -> None:
    """Readers that are flushed together share the bytes. Later only references are kept, however slow a reader is."""
    flush = Flush([Batch(11, [put(11)])], 10, 11, lambda _size: True)
    first = flush.frame(0, REPRESENTATION)

    assert flush.frame(0, REPRESENTATION) is first
    assert flush.bytes == len(first)
    flush.forget()
    assert flush.frame(0, REPRESENTATION) == first
    assert flush.bytes == 0


def test_what_finds_no_room_is_not_kept() -> None:
    """Nothing is kept if there is no room, or if making room ended the flush."""
    refused = Flush([Batch(11, [put(11)])], 10, 11, lambda _size: False)
    assert refused.frame(0, REPRESENTATION)
    assert refused.bytes == 0

    def make_room(_size: int) -> bool:
        ended.forget()
        return True

    ended = Flush([Batch(11, [put(11)])], 10, 11, make_room)
    assert ended.frame(0, REPRESENTATION)
    assert ended.bytes == 0
