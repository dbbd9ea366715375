"""``app.core.awaiting_parts``: the feeds that a merge waits for tell when their tips move, and no other feed does."""

from __future__ import annotations

from app.core.awaiting_parts import AwaitingParts
from app.core.events import Batch
from app.core.history import History
from app.core.keys import KeyRange
from app.core.log import Bounds
from app.core.selection import Ranges
from app.core.snapshot import Snapshot


class Part:
    """A part that counts how often its feed's tip has moved."""

    def __init__(self) -> None:
        self.ranges: Ranges = (KeyRange("prefix", b"/"),)
        self.history = History(Bounds())
        self.history.install(Snapshot.of(1, []), 1, oversized=False)
        self.moves = 0

    def publish(self, batch: Batch, now: float) -> None:
        """See ``Follower``."""

    def advance(self, now: float) -> None:
        """See ``Follower``."""
        del now
        self.moves += 1

    def forget(self) -> None:
        """See ``Follower``."""

    def restart(self) -> None:
        """See ``Follower``."""

    def note_staleness(self) -> None:
        """See ``Follower``."""


class Merge(AwaitingParts[Part]):
    """A merge that does what a test tells it."""

    def __init__(self) -> None:
        self.waits: list[int] = []  # how many parts were awaited after each change
        super().__init__([Part(), Part()], lambda: self.waits.append(len(self.awaited)))
        self.follow = self._follow_feeds
        self.leave = self._leave_feeds
        self.wait = self._await


def test_a_feed_tells_only_the_parts_that_wait_for_it() -> None:
    """Each part follows another feed. Both feeds move, and one of them is awaited."""
    merge = Merge()
    merge.follow()
    first, second = merge.parts
    merge.wait(frozenset({first}))
    for part in merge.parts:
        part.history.advance(2, 0.0)
    assert (first.moves, second.moves) == (1, 0)
    merge.wait(frozenset({second}))
    for part in merge.parts:
        part.history.advance(3, 0.0)
    assert (first.moves, second.moves) == (1, 1)


def test_the_owner_hears_of_changes_only() -> None:
    """To wait again for the same parts changes nothing."""
    merge = Merge()
    merge.follow()
    for awaited in (merge.parts, merge.parts, merge.parts[:1], [], []):
        merge.wait(frozenset(awaited))
    assert merge.waits == [2, 1, 0]


def test_a_merge_that_has_left_hears_nothing() -> None:
    """A feed lives on without its followers."""
    merge = Merge()
    merge.follow()
    merge.wait(frozenset(merge.parts))
    for _ in range(2):
        merge.leave()
    for part in merge.parts:
        part.history.advance(2, 0.0)
        assert (len(part.history.followers), part.moves) == (0, 0)
