"""The memory that all feeds share: what each holds is counted in one budget, and who gives way when that is full."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from ..core.budget import Budget, Hold, Use

# Of the bytes of feeds: what is encoded may take so much from logs. Without it each joiner's state is encoded anew.
ENCODED_SHARE = 8


class Holder(Protocol):
    """A feed, as the memory sees it. Each ``reclaim`` returns the bytes that were given back."""

    @property
    def unproven_bytes(self) -> int:
        """Older history that is being read, and not proven yet."""

    @property
    def encoded_bytes(self) -> int:
        """What its view has encoded."""

    @property
    def log_bytes(self) -> int:
        """What its log holds."""

    def reclaim_unproven(self) -> int:
        """Give up what is not proven."""

    def reclaim_encoded(self) -> int:
        """Drop what is encoded."""

    def reclaim_view(self) -> int:
        """Drop a state that is about to be replaced."""

    def reclaim_log(self, size: int) -> int:
        """Drop about *size* bytes of the log, oldest first."""


class FeedMemory:
    """See the module.

    Args:
        budget: of the whole process; pages and REST answers are held in it, too.
        feeds: all feeds that there are.
        expire_oldest: ends the feed that has lingered longest, unless that is the given one; whether it did.
    """

    def __init__(
        self, budget: Budget, feeds: Callable[[], Collection[Holder]], expire_oldest: Callable[[Holder], bool]
    ) -> None:
        self.budget = budget
        self._feeds = feeds
        self._expire_oldest = expire_oldest
        budget.make_room = self._make_room_for_requests

    @property
    def bytes(self) -> int:
        """What all feeds hold, what is being read for them included."""
        return self.budget.of(Use.FEED)

    def hold(self) -> Hold:
        """An empty hold, for a feed."""
        return self.budget.hold(Use.FEED)

    def has_room(self) -> bool:
        """Whether all that is held fits, without anybody giving anything back."""
        return self.budget.lacks() <= 0

    def settle(self, feed: Holder) -> bool:
        """Make room for what *feed* holds by now, where that can be; whether all fits."""
        return self.budget.settle(lambda more: self._make_room_for(feed, more))

    def grow(self, feed: Holder, hold: Hold, size: int) -> bool:
        """Reserve *size* more bytes that *feed* needs; makes room where that can be."""
        return hold.grow(size, lambda more: self._make_room_for(feed, more))

    def grow_encoded(self, feed: Holder, hold: Hold, size: int) -> bool:
        """Reserve *size* more bytes that *feed* can do without.

        Of a full budget, logs leave what is encoded an eighth.
        """
        if hold.grow(size, _make_no_room):
            return True
        if size + sum(other.encoded_bytes for other in self._feeds()) > self.budget.limit // ENCODED_SHARE:
            return False
        return hold.grow(size, lambda more: self._reclaim_logs(more, but=feed))

    def _make_room_for(self, feed: Holder, size: int) -> None:
        """Lingering feeds go first, and history that is not proven; then what is encoded, what *feed* will replace,
        logs, and REST answers.
        """
        while self.budget.lacks(size) > 0 and self._expire_oldest(feed):
            pass
        self._reclaim_unproven(size)
        self._reclaim_encoded(size)
        if self.budget.lacks(size) > 0:
            feed.reclaim_view()
        self._reclaim_logs(size)
        for answer in self.budget.holds(Use.ANSWER):
            if self.budget.lacks(size) > 0 and not answer.outside:
                answer.revoke()

    def _make_room_for_requests(self, size: int) -> None:
        """What pages and answers may take from feeds."""
        self._reclaim_unproven(size)
        self._reclaim_encoded(size)
        self._reclaim_logs(size)

    def _reclaim_unproven(self, size: int) -> None:
        for feed in sorted(self._feeds(), key=lambda held: -held.unproven_bytes):
            if self.budget.lacks(size) <= 0 or feed.reclaim_unproven() == 0:
                break

    def _reclaim_encoded(self, size: int) -> None:
        for feed in sorted(self._feeds(), key=lambda held: -held.encoded_bytes):
            if self.budget.lacks(size) <= 0 or feed.reclaim_encoded() == 0:
                break

    def _reclaim_logs(self, size: int, *, but: Holder | None = None) -> None:
        for feed in sorted(self._feeds(), key=lambda held: -held.log_bytes):
            lacks = self.budget.lacks(size)
            if lacks <= 0:
                break
            if feed is not but:
                feed.reclaim_log(lacks)


def _make_no_room(_size: int) -> None:
    """Nobody gives way."""
