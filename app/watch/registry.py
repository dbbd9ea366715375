"""The registry: one feed per distinct range, shared by reference count, ended after the linger time.

``subscribe`` is the only way in, and the subscriber's ``release`` is the only way out. The release is synchronous and
happens once, however the stream ends.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Literal

from ..core.budget import Budget
from ..core.drain import Drain
from ..core.errors import DrainingError, OverCapacityError, TooLargeError
from ..core.keys import KeyRange
from ..core.reasons import CloseReason
from ..core.refcounts import Acquired, RefCounts
from ..core.sized import Sized
from ..ports import Clock, Draw, Etcd
from .feed import Feed
from .limits import Limits
from .memory import FeedMemory
from .snapshot_turns import SnapshotTurns
from .statistics import RegistryStatistics, SubscriberStatistics
from .subscriber import Subscriber

logger = logging.getLogger("gateway.feed")

# Seconds between two checks of the feeds' staleness and of the age of what their logs hold.
TICK = 1.0
# Seconds before a range that was too large is read again: every attempt costs etcd a Range of the whole range.
TOO_LARGE_PAUSE = 30.0
# Seconds between two groups of subscribers that a drain closes.
DRAIN_TICK = 0.05


class Registry(Sized):
    """See the module."""

    def __init__(self, etcd: Etcd, limits: Limits, *, budget: Budget, clock: Clock, draw: Draw) -> None:
        self._etcd = etcd
        self.limits = limits
        self._clock = clock
        self._draw = draw
        self._counts: RefCounts[KeyRange] = RefCounts()
        self._feeds: dict[KeyRange, Feed] = {}
        self.memory = FeedMemory(budget, self._feeds.values, self._expire_oldest)
        self._turns = SnapshotTurns()
        self._subscribers: dict[Feed, dict[Subscriber, None]] = {}
        self._linger_timers: dict[KeyRange, asyncio.TimerHandle] = {}
        self._ending: set[Feed] = set()
        self._too_large: dict[KeyRange, float] = {}  # range -> monotonic time until which it is not tried again
        self._total = 0
        self.draining = False
        self._drained_at = 0.0
        self.feeds_started = 0
        self.events = 0  # published by all feeds, ended ones included

    # --- subscribing -------------------------------------------------------------------------------------------------

    def subscribe(
        self, watched: KeyRange, *, address: str, user_agent: str, request_id: str, has_cursor: bool
    ) -> Subscriber:
        """Hold the feed of *watched* until the subscriber is released. Start a feed if the range has none.

        Raises:
            DrainingError, OverCapacityError, UnavailableError: before anything is held.
        """
        self.check(watched)
        known = self._feeds.get(watched)
        feed = known if known is not None else self._make(watched)
        subscriber = Subscriber(feed, address, user_agent, request_id, self._clock(), self._release)
        # Everything that may raise comes before this line. From here on, the subscriber holds a registered feed.
        if known is None and self._full:
            expired = self._expire_oldest(feed)
            assert expired, "``check`` has found a lingering feed"
        acquired = self._counts.acquire(watched)
        if acquired is Acquired.STARTED:
            self._feeds[watched] = feed
            self._subscribers[feed] = {}
            self.feeds_started += 1
            logger.info("feed start", extra={"range": str(watched)})
        elif acquired is Acquired.REVIVED:
            self._linger_timers.pop(watched).cancel()
        self._subscribers[feed][subscriber] = None
        self._total += 1
        if acquired is Acquired.STARTED:
            feed.start(backfill=has_cursor)
        return subscriber

    def check(self, watched: KeyRange) -> None:
        """Raise what ``subscribe`` would raise now. Holds, starts and ends nothing.

        Raises:
            DrainingError, OverCapacityError, UnavailableError: ``subscribe`` would refuse.
        """
        if self.draining:
            raise DrainingError("this instance is shutting down: reconnect to reach another one")
        if self._total >= self.limits.max_subscribers:
            raise OverCapacityError(
                f"{self._total} streams are open; GATEWAY_MAX_SUBSCRIBERS is {self.limits.max_subscribers}: "
                "retry later",
                code="too-many-subscribers",
            )
        if watched not in self._counts and self._full and self._counts.oldest_lingering() is None:
            raise OverCapacityError(
                f"{len(self._counts)} distinct ranges are followed; GATEWAY_MAX_FEEDS is {self.limits.max_feeds}: "
                "retry later, or follow fewer, wider ranges",
                code="too-many-feeds",
            )
        if self._clock() < self._too_large.get(watched, 0.0):
            raise TooLargeError(
                f"{watched} did not fit in the memory that all feeds share (GATEWAY_MAX_FEED_BYTES): "
                "follow a smaller range"
            )
        condition = self._etcd.condition
        feed = self._feeds.get(watched)
        if condition.state == "down" and (feed is None or not feed.history.joinable):
            raise condition.error()

    @property
    def _full(self) -> bool:
        return len(self._counts) >= self.limits.max_feeds

    def _make(self, watched: KeyRange) -> Feed:
        return Feed(
            watched,
            self._etcd,
            self.limits,
            memory=self.memory,
            turns=self._turns,
            owner=self,
            clock=self._clock,
            draw=self._draw,
        )

    def _release(self, subscriber: Subscriber) -> None:
        """Release the subscriber's feed. Synchronous; called once per subscriber."""
        self._total -= 1
        feed = subscriber.feed
        members = self._subscribers.get(feed)
        if members is None or subscriber not in members:
            return  # the feed has failed, and its subscribers were removed with it
        del members[subscriber]
        watched = feed.range
        if self._counts.release(watched):
            if self.draining or not self.limits.linger:
                self._expire(watched)
            else:
                loop = asyncio.get_running_loop()
                self._linger_timers[watched] = loop.call_later(self.limits.linger, self._expire, watched)

    def _expire(self, watched: KeyRange) -> None:
        timer = self._linger_timers.pop(watched, None)
        if timer is not None:
            timer.cancel()
        if self._counts.expire(watched):
            self._end(self._feeds[watched], "idle")

    def _expire_oldest(self, but: object) -> bool:
        """End the feed that has lingered longest, unless it is *but*. Return whether a feed has ended."""
        oldest = self._counts.oldest_lingering()
        if oldest is None or self._feeds[oldest] is but:
            return False
        self._expire(oldest)
        return True

    def _end(self, feed: Feed, reason: CloseReason | Literal["idle", "shutdown"]) -> None:
        del self._feeds[feed.range]
        del self._subscribers[feed]
        feed.stop()
        self._ending.add(feed)
        logger.info("feed stop", extra={"range": str(feed.range), "reason": reason})

    # --- reports from feeds (``app.watch.feed.FeedOwner``) -----------------------------------------------------------

    def published(self, events: int) -> None:
        """See ``FeedOwner``."""
        self.events += events

    def view_reclaimed(self, feed: Feed) -> None:
        """See ``FeedOwner``."""
        for subscriber in self._subscribers.get(feed, ()):
            if subscriber.reader is not None:
                subscriber.reader.drop_snapshot()

    def failed(self, feed: Feed, reason: CloseReason) -> None:
        """See ``FeedOwner``."""
        if self._feeds.get(feed.range) is not feed:
            return
        timer = self._linger_timers.pop(feed.range, None)
        if timer is not None:
            timer.cancel()
        self._counts.drop(feed.range)
        subscribers = list(self._subscribers[feed])
        self._end(feed, reason)
        for subscriber in subscribers:
            subscriber.close(reason)
        if reason == TooLargeError.close_reason:
            self._too_large[feed.range] = self._clock() + TOO_LARGE_PAUSE

    # --- running -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Check each feed's staleness, and the age of what its log holds, once a second, for ever."""
        while True:
            await asyncio.sleep(TICK)
            for feed in list(self._feeds.values()):
                feed.check_staleness()
            now = self._clock()
            self._too_large = {watched: until for watched, until in self._too_large.items() if until > now}
            await self._join_ended()

    def restored(self) -> None:
        """Restart every feed, because the cluster's history has been replaced."""
        for feed in list(self._feeds.values()):
            feed.restored()

    def drain(self) -> float:
        """Refuse new subscribers, and close the present ones over time. Return the seconds until all are closed."""
        if not self.draining:
            self.draining = True
            for watched in list(self._linger_timers):
                self._expire(watched)
            # Random order, so that one range's clients reconnect to other instances spread over the whole window.
            leaving = sorted(self.subscribers(), key=lambda _: self._draw())
            drain = Drain(len(leaving), window=self.limits.drain_window, pace=self.limits.drain_pace)
            self._drained_at = self._clock() + drain.seconds
            self._send_away(leaving, drain, self._clock())
        return max(0.0, self._drained_at - self._clock())

    def _send_away(self, leaving: list[Subscriber], drain: Drain, since: float) -> None:
        stay = drain.count - drain.due(self._clock() - since)
        going = leaving[stay:]
        del leaving[stay:]
        for subscriber in going:
            subscriber.close(DrainingError.close_reason)
        if leaving:
            asyncio.get_running_loop().call_later(DRAIN_TICK, self._send_away, leaving, drain, since)

    def send_all_away(self) -> None:
        """Close all subscribers, including those whose turn has not come."""
        for subscriber in self.subscribers():
            subscriber.close(DrainingError.close_reason)

    async def aclose(self) -> None:
        """End every feed, even one with subscribers."""
        self.drain()
        self.send_all_away()
        for feed in list(self._feeds.values()):
            self._counts.drop(feed.range)
            self._end(feed, "shutdown")
        await self._join_ended()

    async def _join_ended(self) -> None:
        ended, self._ending = self._ending, set()
        for feed in ended:
            await feed.join()

    # --- inspection --------------------------------------------------------------------------------------------------

    def feeds(self) -> list[Feed]:
        """Return all registered feeds."""
        return list(self._feeds.values())

    def feed(self, watched: KeyRange) -> Feed | None:
        """Return the registered feed of a range, or None."""
        return self._feeds.get(watched)

    def subscribers(self, feed: Feed | None = None) -> list[Subscriber]:
        """Return all subscribers, or only those of *feed*."""
        if feed is not None:
            return list(self._subscribers.get(feed, ()))
        return [subscriber for members in self._subscribers.values() for subscriber in members]

    def statistics(self, only: KeyRange | None = None) -> RegistryStatistics:
        """Return what the registry holds now. *only*: of the feeds, include just the one of this range."""
        return RegistryStatistics(
            feeds=tuple(
                feed.statistics(
                    subscribers=len(members), lag=max((subscriber.behind for subscriber in members), default=0)
                )
                for feed, members in self._subscribers.items()
                if only is None or feed.range == only
            ),
            subscribers=self._total,
            bytes=self.memory.bytes,
            bytes_max=self.memory.budget.limit,
            draining=self.draining,
            feeds_started=self.feeds_started,
            events=self.events,
        )

    def subscriber_statistics(self, watched: KeyRange) -> list[SubscriberStatistics]:
        """Return what ``/v1/feeds`` reports about the subscribers of one range."""
        feed = self._feeds.get(watched)
        return [subscriber.statistics(self._clock()) for subscriber in self._subscribers.get(feed, ())] if feed else []

    def __len__(self) -> int:
        """Return the number of subscribers, including those that are leaving."""
        return self._total
