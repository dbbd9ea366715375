"""What was verified is remembered, and bounded."""

from __future__ import annotations

from app.access.lru_cache import MAX_ENTRIES, LruCache


def test_the_least_recently_used_gives_way() -> None:
    """A value that was asked for stays longer than one that was not."""
    known: LruCache[int] = LruCache()
    for number in range(MAX_ENTRIES):
        known.put(number.to_bytes(32, "big"), number)
    assert known.get((0).to_bytes(32, "big")) == 0
    known.put(b"new", 7)

    assert len(known) == MAX_ENTRIES
    assert known.get((0).to_bytes(32, "big")) == 0
    assert known.get((1).to_bytes(32, "big")) is None
    assert known.get(b"new") == 7
    known.clear()
    assert (len(known), known.get(b"new")) == (0, None)
