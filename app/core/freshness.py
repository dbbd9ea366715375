"""Whether the data that one subscriber has is current: the second condition of "live", beside etcd's proof.

Must live here: the age of what a subscriber lacks, and when it is too old for "live". Must not: clocks, sockets
(``app.stream.delivery``); the content of the stream (``app.core.reader``).

Theory of operation
    There are two reasons why a subscriber lacks a revision. First, the gateway has not sent it yet. Its age is known,
    because the log notes when each batch arrived. Second, the gateway has sent it, and the client's system has not
    acknowledged it: the kernel keeps up to twice GATEWAY_SEND_BUFFER for each connection. The client's system takes
    bytes in order. So the bytes that are written now arrive later by about as long as the oldest unacknowledged byte
    has waited already. The sum of both ages is how old the client's view will be when the client reads what is written
    now. A bookmark that counted neither said "live" while the oldest missing revision was 53 s old (at 50 kB/s under
    1,200 changes of 10 kB).

    Bytes that the client's system has acknowledged count as delivered: only the client knows how many of them it has
    read.
"""

from __future__ import annotations

# The number of marks within the time limit: more marks measure more exactly how long bytes have waited.
STEPS = 4


class Freshness:
    """The freshness of one subscriber.

    ``stale``: the subscriber lacks something older than *limit* seconds. It stays stale until that age is at most half
    of the limit.

    Args:
        limit: seconds, GATEWAY_STALE_AFTER.
    """

    __slots__ = ("_limit", "_marks", "age", "mark_due", "stale")

    def __init__(self, limit: float) -> None:
        self._limit = limit
        # Pairs of numbers in a row: bytes written before a time, that time. There are a few pairs, however much is
        # written. Each subscriber at rest has one pair: 56 bytes in a flat tuple, 150 in a list of tuples.
        self._marks: tuple[float, ...] = ()
        # The shell must report the first write after this time to ``wrote``.
        self.mark_due = float("-inf")
        self.age = 0.0  # seconds, at the last update
        self.stale = False

    def wrote(self, before: int, now: float) -> None:
        """Record a write at *now*, after *before* bytes of the stream."""
        marks = (*self._marks, before, now)
        self.mark_due = now + self._limit / STEPS
        while len(marks) > 2 and now - marks[3] > self._limit:
            marks = marks[2:]
        self._marks = marks

    def update(self, now: float, *, lacks_since: float | None, written: int, unacked_bytes: int) -> bool:
        """Update ``stale``, and return it.

        Args:
            now: the log's clock.
            lacks_since: when the oldest batch arrived that was not sent; None: all were sent.
            written: bytes since the stream began.
            unacked_bytes: how many of those bytes the client's system has not acknowledged.
        """
        missing = 0.0 if lacks_since is None else max(0.0, now - lacks_since)
        self.age = missing
        if unacked_bytes:
            self.age += self._waiting(now, written - unacked_bytes)
        else:
            self._marks = ()
            self.mark_due = float("-inf")
        self.stale = self.age > (self._limit / 2 if self.stale else self._limit)
        return self.stale

    def _waiting(self, now: float, taken: int) -> float:
        """Return the seconds, at most, that the oldest byte after the first *taken* bytes has been waiting."""
        oldest = 0.0
        for index in range(len(self._marks) - 2, -1, -2):
            oldest = now - self._marks[index + 1]
            if self._marks[index] <= taken:
                break
        return oldest
