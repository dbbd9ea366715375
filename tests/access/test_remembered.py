"""What was verified is remembered, and bounded."""

from __future__ import annotations

from app.access.remembered import MAX_REMEMBERED, Remembered


def test_the_least_recently_used_gives_way() -> None:
    """A value that was asked for stays longer than one that was not."""
    known: Remembered[int] = Remembered()
    for number in range(MAX_REMEMBERED):
        known.put(number.to_bytes(32, "big"), number)
    assert known.get((0).to_bytes(32, "big")) == 0
    known.put(b"new", 7)

    assert len(known) == MAX_REMEMBERED
    assert known.get((0).to_bytes(32, "big")) == 0
    assert known.get((1).to_bytes(32, "big")) is None
    assert known.get(b"new") == 7
    known.clear()
    assert (len(known), known.get(b"new")) == (0, None)
