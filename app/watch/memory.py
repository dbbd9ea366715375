"""The memory that all feeds share: one budget counts what each feed holds; when it is full, feeds free memory."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from ..core.budget import Budget, Hold, Use

# Logs give way to encoded data until encoded data has one eighth of the budget. Without this share, each joiner's state
# would be encoded anew.
ENCODED_SHARE = 8
# To find what can be spared, all feeds and channels are looked at: 2 ms for 2,000 channels. One event lacks some
# hundred bytes. So logs give at least this part of the budget at a time, and the next events find room. But what all
# logs hold may be less than that, and readers that are a little behind need it: logs give no more than SPARED of it
# beyond what is lacking.
STEPS, SPARED = 128, 16


class Holder(Protocol):
    """A feed or a channel, as the memory sees it. Each ``reclaim`` method returns the number of bytes that it freed."""

    @property
    def unproven_bytes(self) -> int:
        """Bytes of older history that is being read and not proven yet."""

    @property
    def encoded_bytes(self) -> int:
        """Bytes of encoded data that the view holds."""

    @property
    def log_bytes(self) -> int:
        """Bytes that the log holds."""

    def reclaim_unproven(self) -> int:
        """Drop the history that is not proven yet."""

    def reclaim_encoded(self) -> int:
        """Drop the encoded data."""

    def reclaim_view(self) -> int:
        """Drop a view that is about to be replaced, and the room that is reserved for the next one."""

    def reclaim_log(self, size: int) -> int:
        """Drop about *size* bytes of the log, oldest first."""


class FeedMemory:
    """See the module.

    Args:
        budget: the budget of the whole process; it also counts pages and REST answers.
        holders: returns the feeds, and the channels that are made from feeds.
        expire_oldest: ends the channel that has lingered longest, but not the given holder; returns whether one ended.
    """

    def __init__(
        self, budget: Budget, holders: Callable[[], Collection[Holder]], expire_oldest: Callable[[Holder], bool]
    ) -> None:
        self.budget = budget
        self._holders = holders
        self._expire_oldest = expire_oldest
        budget.make_room = self._make_room_for_requests

    @property
    def bytes(self) -> int:
        """The bytes that all feeds hold, including what is being read for them."""
        return self.budget.of(Use.FEED)

    def hold(self) -> Hold:
        """Return an empty hold for a feed or a channel."""
        return self.budget.hold(Use.FEED)

    def reserve(self, hold: Hold, size: int) -> None:
        """Let *hold* have *size* bytes. More bytes than it has must be free: nothing gives way to a reserve."""
        if size < hold.size:
            hold.set(size)
        else:
            hold.grow(size - hold.size, _make_no_room)

    def has_room(self) -> bool:
        """Return whether everything that is held fits, without freeing anything."""
        return self.budget.lacks() <= 0

    def settle(self, holder: Holder) -> bool:
        """Make room for what *holder* holds now, if possible. Return whether everything fits."""
        return self.budget.settle(lambda more: self._make_room_for(holder, more))

    def grow(self, holder: Holder, hold: Hold, size: int) -> bool:
        """Reserve *size* more bytes that *holder* needs, making room if possible. Return whether they are reserved."""
        return hold.grow(size, lambda more: self._make_room_for(holder, more))

    def grow_encoded(self, holder: Holder, hold: Hold, size: int) -> bool:
        """Reserve *size* more bytes that *holder* can do without. Return whether they are reserved.

        If the budget is full, logs give way to encoded data up to an eighth of the budget.
        """
        if hold.grow(size, _make_no_room):
            return True
        if size + sum(other.encoded_bytes for other in self._holders()) > self.budget.limit // ENCODED_SHARE:
            return False
        return hold.grow(size, lambda more: self._reclaim_logs(more, but=holder))

    def _make_room_for(self, holder: Holder, size: int) -> None:
        """Free *size* bytes for *holder*, from what can be spared most to what can be spared least.

        Lingering channels end first; then unproven history, encoded data, the view that *holder* will replace (or the
        room that it reserves for the next view), logs, and REST answers are dropped.
        """
        while self.budget.lacks(size) > 0 and self._expire_oldest(holder):
            pass
        if self.budget.lacks(size) <= 0:
            return  # without a look at all feeds and channels
        self._reclaim_unproven(size)
        self._reclaim_encoded(size)
        if self.budget.lacks(size) > 0:
            holder.reclaim_view()
        self._reclaim_logs(size)
        for answer in self.budget.holds(Use.ANSWER):
            if self.budget.lacks(size) > 0 and not answer.outside:
                answer.revoke()

    def _make_room_for_requests(self, size: int) -> None:
        """Free *size* bytes for pages and REST answers, from what they may take from feeds."""
        self._reclaim_unproven(size)
        self._reclaim_encoded(size)
        self._reclaim_logs(size)

    def _reclaim_unproven(self, size: int) -> None:
        for holder in sorted(self._holders(), key=lambda held: -held.unproven_bytes):
            if self.budget.lacks(size) <= 0 or holder.unproven_bytes == 0:
                break  # to end a read that holds nothing would free nothing
            holder.reclaim_unproven()

    def _reclaim_encoded(self, size: int) -> None:
        for holder in sorted(self._holders(), key=lambda held: -held.encoded_bytes):
            if self.budget.lacks(size) <= 0 or holder.reclaim_encoded() == 0:
                break

    def _reclaim_logs(self, size: int, *, but: Holder | None = None) -> None:
        lacks = self.budget.lacks(size)
        if lacks <= 0:
            return
        holders = sorted(self._holders(), key=lambda held: -held.log_bytes)
        step = min(self.budget.limit // STEPS, sum(holder.log_bytes for holder in holders) // SPARED)
        size += max(0, step - lacks)
        for holder in holders:
            lacks = self.budget.lacks(size)
            if lacks <= 0:
                break
            if holder is not but:
                holder.reclaim_log(lacks)


def _make_no_room(_size: int) -> None:
    """Free nothing."""
