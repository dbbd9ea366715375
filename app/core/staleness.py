"""Whether a feed is current: the first condition of "live".

Must live here: when etcd last proved that the feed lacks nothing, and from when on the feed is stale. Must not: clocks,
what proves it (``app.core.linearizable_reads``), what the gateway has not sent to one subscriber
(``app.core.freshness``).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outage:
    """A time in which a feed was stale.

    Args:
        proven_at: the last proof before: everything that came later may have been committed just after it.
        ended_at: when the feed became live again.
    """

    proven_at: float
    ended_at: float

    def oldest(self, arrived_at: float) -> float:
        """Return a time before which a batch that arrived at *arrived_at* was not committed.

        A batch of the outage arrives at its end. To measure its age from then on would call a subscriber "live" that
        lacks it.
        """
        return min(arrived_at, self.proven_at) if arrived_at <= self.ended_at else arrived_at


class Staleness:
    """The age of etcd's last proof, and since when that age has been too high.

    The caller passes the present time: *now* in seconds of the clock of the proofs, *wall* in seconds since 1970.

    Args:
        limit: seconds, GATEWAY_STALE_AFTER.
        withdraws: the upstream may withdraw a proof, which then is older than the last one. A gateway does when it
            becomes stale itself. A proof of etcd stays true.
    """

    def __init__(self, limit: float, now: float, *, withdraws: bool) -> None:
        self._limit = limit
        self._withdraws = withdraws
        self._proven_at = now
        # The time (since 1970) of the last proof before the feed became stale; None while it is live.
        self.since: float | None = None
        self._stale_from = now  # the same time by the clock of the proofs
        self.outage: Outage | None = None  # the last one that has ended

    def note(self, proven_at: float | None) -> None:
        """Record a proof that nothing is missing that was committed before *proven_at*; None: there is no proof."""
        if proven_at is not None:
            self._proven_at = proven_at if self._withdraws else max(self._proven_at, proven_at)

    def age(self, now: float) -> float:
        """Return the seconds since the last proof."""
        return now - self._proven_at

    def update(self, now: float, wall: float, *, has_view: bool) -> bool:
        """Become stale or live, and return whether that is a change. Without a view, a feed is stale at any age."""
        age = self.age(now)
        stale = age > self._limit or not has_view
        if stale == (self.since is not None):
            return False
        self.since = wall - age if stale else None
        if stale:
            self._stale_from = now - age
        else:
            self.outage = Outage(self._stale_from, now)
        return True
