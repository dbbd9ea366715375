"""How current a watch is known to be: linearizable reads on one side, how far the watch got on the other.

An answer on a watch stream proves that the stream lives, not that its member hears of what the cluster commits: a
follower whose disk hangs keeps answering progress requests at the revision where it stopped (seen for 45 s). Only a
linearizable read knows the cluster's revision. A watch that has reached that revision lacks nothing that was committed
before the read was asked for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# Seconds beyond GATEWAY_STALE_AFTER before a member is given up: feeds look at their staleness once a second, and their
# streams say `stale` before the gateway leaves the member.
GRACE = 1.0
# Readings kept in the time for which they matter: clients may cause 1,000 reads a second.
KEPT = 16


@dataclass(frozen=True, slots=True)
class Reading:
    """A linearizable read: the cluster had got to *revision* at some time after *asked_at*."""

    asked_at: float
    revision: int


class Currentness:
    """The latest linearizable reads of the process, and what follows from them. Times are the caller's, in seconds.

    Args:
        stale_after: GATEWAY_STALE_AFTER.
    """

    def __init__(self, stale_after: float) -> None:
        self.interval = stale_after / 2
        # Seconds that a read may take. A read begins at the latest ``interval`` after the last proof, so that it is
        # overdue when feeds have turned stale.
        self.answer_timeout = stale_after - self.interval + GRACE
        self._horizon = stale_after + GRACE
        self.readings: deque[Reading] = deque()

    def note(self, asked_at: float, revision: int) -> None:
        """A linearizable read that was asked for at *asked_at* has answered *revision*."""
        if self.readings and asked_at < self.readings[-1].asked_at + self._horizon / KEPT:
            return
        self.readings.append(Reading(asked_at, revision))
        # One older than the horizon stays: ``overdue`` is the latest of those.
        while len(self.readings) > 1 and self.readings[1].asked_at <= asked_at - self._horizon:
            self.readings.popleft()

    def forget(self) -> None:
        """The history is another one: its revisions count anew."""
        self.readings.clear()

    def due(self, now: float, since: float) -> float:
        """Seconds until the next read should begin, when somebody has needed reads since *since*."""
        last = max(since, self.readings[-1].asked_at) if self.readings else since
        return max(0.0, last + self.interval - now)

    def proven_at(self, reached: int) -> float | None:
        """Nothing committed before this time is missing where everything up to *reached* is known; None: no proof."""
        for reading in reversed(self.readings):
            if reading.revision <= reached:
                return reading.asked_at
        return None

    def overdue(self, now: float) -> Reading | None:
        """The latest reading so old that a member in touch with its cluster has long passed its revision."""
        for reading in reversed(self.readings):
            if reading.asked_at <= now - self._horizon:
                return reading
        return None
