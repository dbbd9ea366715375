"""``app.core.flush_reader``: a reader gets the pieces of a flush once, in order, and the position with the last."""

from __future__ import annotations

import pytest

from app.core.events import Batch, KeyValue
from app.core.flush import PIECE_SIZE, Flush
from app.core.flush_reader import FlushReader

REPRESENTATION = ("ndjson", "auto", "0123abcd", False)


def flush_of(count: int) -> Flush:
    """A flush of so many events, each of which fills a piece."""
    value = b"v" * PIECE_SIZE
    batches = [Batch(number, [KeyValue(b"/%d" % number, value, number, number, 1)]) for number in range(2, 2 + count)]
    return Flush(batches, 1, 1 + count, lambda _size: True)


@pytest.mark.parametrize("count", [1, 3])
def test_a_reader_gets_each_piece_once(count: int) -> None:
    """Two readers share the flush, and its bytes, and each has its own place in it."""
    flush = flush_of(count)
    readers = [FlushReader(flush) for _ in range(2)]
    for reader in readers:
        found: list[bytes] = []
        events = 0
        while not reader.over:
            data, more = reader.read(REPRESENTATION)
            found.append(data)
            events += more
        assert found == [flush.frame(number, REPRESENTATION) for number in range(count)]
        assert (events, reader.start, reader.end) == (count, 1, 1 + count)
        assert [b'"cursor"' in data for data in found] == [False] * (count - 1) + [True]
