"""Whether a feed is current: the first condition of "live".

Must live here: when etcd last proved that the feed lacks nothing, and from when on the feed is stale. Must not: clocks,
what proves it (``app.core.linearizable_reads``), what the gateway has not sent to one subscriber
(``app.core.freshness``).
"""

from __future__ import annotations


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
        return True
