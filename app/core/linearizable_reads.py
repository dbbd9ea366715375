"""Linearizable reads, and how current a watch provably is by the revision that it has reached.

An answer on a watch stream proves that the stream is alive. It does not prove that the member learns what the cluster
commits: a follower whose disk hangs keeps answering progress requests at the revision where it stopped (seen for 45 s).
Only a linearizable read returns the cluster's revision. A watch that has reached this revision lacks nothing that was
committed before the read was requested.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# Seconds beyond GATEWAY_STALE_AFTER before the gateway leaves a member. Feeds check their staleness once a second, so
# their streams report `stale` before the gateway leaves the member.
GRACE = 1.0
# The number of reads kept for the time in which they matter: clients may cause 1,000 reads a second.
KEPT = 16


@dataclass(frozen=True, slots=True)
class LinearizableRead:
    """A linearizable read: the cluster had reached *revision* at some time after *asked_at*."""

    asked_at: float
    revision: int


class LinearizableReads:
    """The latest linearizable reads of the process, and what they prove. The caller passes all times, in seconds.

    Args:
        stale_after: GATEWAY_STALE_AFTER.
    """

    def __init__(self, stale_after: float) -> None:
        self.interval = stale_after / 2
        # Seconds that a read may take. A read begins at most ``interval`` after the last proof, so that a read which
        # hangs is overdue once feeds have turned stale.
        self.answer_timeout = stale_after - self.interval + GRACE
        self._horizon = stale_after + GRACE
        self.kept: deque[LinearizableRead] = deque()

    def note(self, asked_at: float, revision: int) -> None:
        """Record that a linearizable read, requested at *asked_at*, returned *revision*."""
        if self.kept and asked_at < self.kept[-1].asked_at + self._horizon / KEPT:
            return
        self.kept.append(LinearizableRead(asked_at, revision))
        # Keep one read older than the horizon: ``overdue`` returns the latest of those.
        while len(self.kept) > 1 and self.kept[1].asked_at <= asked_at - self._horizon:
            self.kept.popleft()

    def forget(self) -> None:
        """Drop all reads: etcd has a different history now, in which the same revisions mean other events."""
        self.kept.clear()

    def due(self, now: float, since: float) -> float:
        """Return the seconds until the next read should begin, if reads have been needed since *since*."""
        last = max(since, self.kept[-1].asked_at) if self.kept else since
        return max(0.0, last + self.interval - now)

    def proven_at(self, reached: int) -> float | None:
        """Return a time before which a watch at revision *reached* knows every commit. None if nothing proves that."""
        for read in reversed(self.kept):
            if read.revision <= reached:
                return read.asked_at
        return None

    def overdue(self, now: float) -> LinearizableRead | None:
        """Return the latest read so old that a member in contact with its cluster must have passed its revision."""
        for read in reversed(self.kept):
            if read.asked_at <= now - self._horizon:
                return read
        return None
