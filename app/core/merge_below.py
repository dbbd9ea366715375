"""A merge at a gateway below this one: for which of its ranges the merge waits.

Must live here: which ranges the merge waits for. Must not: a view, a log, or readers, which the gateway below has
(``selected_history``); asking etcd, and telling the gateway below (``app.watch.merges_below``).

The gateway below holds a revision of one range back until all other ranges are proven up to that revision. This gateway
has every event first. So it knows for what the merge will wait before the gateway below can ask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .awaiting_parts import AwaitingParts
from .events import Batch
from .history import History
from .selection import Ranges


class Part:
    """One range of the merge. Receives the feed's events in the range (``Follower``)."""

    __slots__ = ("_owner", "history", "newest", "ranges")

    def __init__(self, owner: MergeBelow, history: History, ranges: Ranges) -> None:
        self._owner = owner
        self.history = history
        self.ranges = ranges
        self.newest = history.log.tip  # the range's newest revision that all other ranges must reach

    def publish(self, batch: Batch, now: float) -> None:
        """See ``Follower``."""
        del now
        self.newest = batch.revision
        self._owner.look()

    def advance(self, now: float) -> None:
        """See ``Follower``."""
        del now
        self._owner.look()

    def forget(self) -> None:
        """See ``Follower``. Nothing is held here."""

    def restart(self) -> None:
        """See ``Follower``. The revisions of the new generation may be lower: etcd may have been restored."""
        self.newest = self.history.log.tip
        self._owner.look()

    def note_staleness(self) -> None:
        """See ``Follower``. The gateway below hears of it by its streams."""


class MergeBelow(AwaitingParts[Part]):
    """See the module.

    Args:
        sources: of each range: the history of its feed, and the range.
        on_wait: called when ``awaited`` has changed.
    """

    def __init__(self, sources: Sequence[tuple[History, Ranges]], on_wait: Callable[[], None]) -> None:
        super().__init__([Part(self, history, ranges) for history, ranges in sources], on_wait)

    def follow(self) -> None:
        """Begin to follow the feeds, once."""
        self._follow_feeds()
        self.look()

    def leave(self) -> None:
        """Stop following the feeds, and wait for none. Idempotent."""
        self._leave_feeds()
        self._await(frozenset())

    def look(self) -> None:
        """Find out which feeds must move."""
        newest = max(part.newest for part in self.parts)
        self._await(frozenset(part for part in self.parts if part.history.log.tip < newest))
