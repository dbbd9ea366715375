"""Whether what one subscriber has been given is current: the other half of being live, beside etcd's proof.

Must live here: how far behind a subscriber is, in seconds, and when that is too far to be called live. Must not:
clocks, sockets (``app.stream.delivery``); what it is sent (``app.core.reader``).

Theory of operation
    Two things keep a revision from a subscriber. The log has it, and it was not sent: its age is known, because the log
    notes when each batch came. Or it was sent, and the client's system has not taken it: the kernel keeps up to twice
    GATEWAY_SEND_BUFFER for each connection. What is written now will be taken when all in front of it is, so by as much
    later as the oldest byte that is not taken has waited already. The sum of both is how old the client's view will
    be when it reads what is written now. At 50 kB/s under 1,200 changes of 10 kB, a bookmark that knew of neither said
    "live" while the oldest missing revision was 53 s old.

    What the client's own system has taken counts as given: nobody but the client knows what it reads of that.
"""

from __future__ import annotations

# Marks in the time after which a subscriber is late: how exactly it is known how long bytes have waited.
STEPS = 4


class Freshness:
    """Of one subscriber. ``late``: it lacks something older than *limit* seconds; not so again below half of that.

    Args:
        limit: seconds, GATEWAY_STALE_AFTER.
    """

    __slots__ = ("_limit", "_marks", "behind", "late", "mark_due")

    def __init__(self, limit: float) -> None:
        self._limit = limit
        # Bytes written before that time: a few, however much is written. A list: an empty deque has 600 bytes.
        self._marks: list[tuple[int, float]] = []
        self.mark_due = float("-inf")  # the time from which on ``wrote`` is to be told of a write
        self.behind = 0.0  # seconds, when last updated
        self.late = False

    def wrote(self, before: int, now: float) -> None:
        """Something is written, after *before* bytes since the stream began."""
        marks = self._marks
        marks.append((before, now))
        self.mark_due = now + self._limit / STEPS
        while len(marks) > 1 and now - marks[1][1] > self._limit:
            del marks[0]

    def update(self, now: float, *, lacks_since: float | None, written: int, unacked_bytes: int) -> bool:
        """``late``, as of *now*.

        Args:
            now: the log's clock.
            lacks_since: when the oldest batch came that it was not sent; None: it was sent all.
            written: bytes since the stream began.
            unacked_bytes: those of them that its system has not taken.
        """
        missing = 0.0 if lacks_since is None else max(0.0, now - lacks_since)
        self.behind = missing
        if unacked_bytes:
            self.behind += self._waiting(now, written - unacked_bytes)
        else:
            self._marks.clear()
            self.mark_due = float("-inf")
        self.late = self.behind > (self._limit / 2 if self.late else self._limit)
        return self.late

    def _waiting(self, now: float, taken: int) -> float:
        """For how long, at the most, the oldest byte after the first *taken* has been waiting."""
        oldest = 0.0
        for before, at in reversed(self._marks):
            oldest = now - at
            if before <= taken:
                break
        return oldest
