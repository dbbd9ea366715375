"""The registry: one feed per distinct range, shared by reference count, ended after a linger.

``subscribe`` is the only way in, and its lease the only way out: release is synchronous and happens once, on whatever
way the stream ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.core.budget import Budget, Hold, Use
from app.core.drain import Drain
from app.core.errors import DrainingError, NoRoomError, OverCapacityError, TooLargeError
from app.core.keys import KeyRange
from app.core.refcounts import Acquired, RefCounts
from app.core.sized import Sized
from app.ports import Clock, Draw, Etcd
from app.watch.feed import Feed
from app.watch.limits import Limits
from app.watch.statistics import RegistryStatistics, SubscriberStatistics
from app.watch.subscriber import Subscriber

log = logging.getLogger("gateway.feed")

T = TypeVar("T")

# Seconds between looks at staleness and at the age of logs.
TICK = 1.0
# Of the bytes of feeds: what is encoded may take so much from logs. Without it each joiner's state is encoded anew.
ENCODED_SHARE = 8
# Seconds that a state which did not fit beside others waits for these to be read.
READING_PATIENCE = 10.0
# Seconds before a range that was too large is read again: every try costs etcd a Range of all of it.
TOO_LARGE_PAUSE = 30.0
# Seconds between the groups of streams that are sent away at a drain.
DRAIN_TICK = 0.05


class Lease:
    """One subscriber's hold on a feed: a context manager, or ``release`` from wherever the stream ends."""

    __slots__ = ("_held", "_registry", "subscriber")

    def __init__(self, registry: Registry, subscriber: Subscriber) -> None:
        self._registry = registry
        self._held = True
        self.subscriber = subscriber

    def __enter__(self) -> Subscriber:
        return self.subscriber

    def __exit__(self, *_exc_info: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go; synchronous, and as often as one likes."""
        if self._held:
            self._held = False
            self._registry.release(self.subscriber)


def _nothing(_size: int) -> None:
    """No room is made."""


class Registry(Sized):
    """See the module."""

    def __init__(self, etcd: Etcd, limits: Limits, *, budget: Budget, clock: Clock, draw: Draw) -> None:
        self._etcd = etcd
        self.limits = limits
        self.budget = budget
        budget.make_room = self._shed
        self._clock = clock
        self._draw = draw
        self._counts: RefCounts[KeyRange] = RefCounts()
        self._feeds: dict[KeyRange, Feed] = {}
        self._subscribers: dict[Feed, dict[Subscriber, None]] = {}
        self._linger_timers: dict[KeyRange, asyncio.TimerHandle] = {}
        self._ending: set[Feed] = set()
        self._too_large: dict[KeyRange, float] = {}  # until when they are not tried again
        self._reading = 0  # states that are being read
        self._none_reads = asyncio.Event()
        self._turn = asyncio.Lock()  # of those that did not fit beside others
        self._total = 0
        self.draining = False
        self._drained_at = 0.0
        self.feeds_started = 0
        self.events = 0  # published by all feeds there were

    # --- subscribing -------------------------------------------------------------------------------------------------

    def subscribe(
        self, watched: KeyRange, *, address: str, user_agent: str, request_id: str, has_cursor: bool
    ) -> Lease:
        """Hold the feed of *watched*, starting it if need be, until the lease is released.

        Raises:
            DrainingError, OverCapacityError, UnavailableError: before anything is held.
        """
        self.check(watched)
        known = self._feeds.get(watched)
        feed = known if known is not None else self._make(watched)
        subscriber = Subscriber(feed, address, user_agent, request_id, self._clock())
        # What may raise is done by now: from here on it is held, by a feed that everybody knows.
        if known is None and self._full:
            oldest = self._counts.oldest_lingering()
            assert oldest is not None, "checked"
            self._expire(oldest)
        acquired = self._counts.acquire(watched)
        if acquired is Acquired.STARTED:
            self._feeds[watched] = feed
            self._subscribers[feed] = {}
            self.feeds_started += 1
            log.info("feed start", extra={"range": str(watched)})
        elif acquired is Acquired.REVIVED:
            self._linger_timers.pop(watched).cancel()
        self._subscribers[feed][subscriber] = None
        self._total += 1
        if acquired is Acquired.STARTED:
            feed.start(reach=has_cursor)
        return Lease(self, subscriber)

    def check(self, watched: KeyRange) -> None:
        """Whether ``subscribe`` would have it now; holds, starts and ends nothing.

        Raises:
            DrainingError, OverCapacityError, UnavailableError: it would not.
        """
        if self.draining:
            raise DrainingError("this instance is about to stop")
        if self._total >= self.limits.max_subscribers:
            raise OverCapacityError(
                f"{self._total} subscribers, GATEWAY_MAX_SUBSCRIBERS is {self.limits.max_subscribers}",
                code="too-many-subscribers",
            )
        if watched not in self._counts and self._full and self._counts.oldest_lingering() is None:
            raise OverCapacityError(
                f"{len(self._counts)} distinct ranges are followed, GATEWAY_MAX_FEEDS is {self.limits.max_feeds}",
                code="too-many-feeds",
            )
        if self._clock() < self._too_large.get(watched, 0.0):
            raise TooLargeError(f"{watched} did not fit the memory that all feeds may hold together")
        condition = self._etcd.condition
        feed = self._feeds.get(watched)
        if condition.state == "down" and (feed is None or not feed.core.joinable):
            raise condition.error()

    @property
    def _full(self) -> bool:
        return len(self._counts) >= self.limits.max_feeds

    def _make(self, watched: KeyRange) -> Feed:
        return Feed(watched, self._etcd, self.limits, memory=self, clock=self._clock, draw=self._draw)

    def release(self, subscriber: Subscriber) -> None:
        """Synchronous and, by its one caller, the lease, once per subscriber."""
        self._total -= 1
        feed = subscriber.feed
        members = self._subscribers.get(feed)
        if members is None or subscriber not in members:
            return  # the feed failed, and took all its leases with it
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

    def _end(self, feed: Feed, reason: str) -> None:
        del self._feeds[feed.range]
        del self._subscribers[feed]
        feed.stop()
        self._ending.add(feed)
        log.info("feed stop", extra={"range": str(feed.range), "reason": reason})

    # --- memory and counts (``app.watch.feed.Memory``) ---------------------------------------------------------------

    def hold(self) -> Hold:
        """See ``Memory``."""
        return self.budget.hold(Use.FEED)

    def has_room(self) -> bool:
        """See ``Memory``."""
        return self.budget.lacks() <= 0

    def published(self, events: int) -> None:
        """See ``Memory``."""
        self.events += events

    def settle(self, feed: Feed) -> bool:
        """See ``Memory``."""
        return self.budget.settle(lambda more: self._make_room_for(feed, more))

    def grow(self, feed: Feed, hold: Hold, size: int) -> bool:
        """See ``Memory``."""
        return hold.grow(size, lambda more: self._make_room_for(feed, more))

    def keep(self, feed: Feed, hold: Hold, size: int) -> bool:
        """See ``Memory``. Of a full budget, logs leave what is encoded an eighth."""
        if hold.grow(size, _nothing):
            return True
        if (
            size + sum(other.core.encoded for other in self._feeds.values())
            > self.limits.max_feed_bytes // ENCODED_SHARE
        ):
            return False
        return hold.grow(size, lambda more: self._shed_logs(more, but=feed))

    def _make_room_for(self, feed: Feed, size: int) -> None:
        """Lingering feeds go first, and history that is not proven; then what is encoded, what *feed* will replace,
        logs, and REST answers.
        """
        while self.budget.lacks(size) > 0:
            oldest = self._counts.oldest_lingering()
            if oldest is None or self._feeds[oldest] is feed:
                break
            self._expire(oldest)
        self._shed_unproven(size)
        self._shed_encoded(size)
        if self.budget.lacks(size) > 0 and feed.give_up_view():
            for subscriber in self._subscribers.get(feed, ()):
                if subscriber.reader is not None:
                    subscriber.reader.let_go()
        self._shed_logs(size)
        for answer in self.budget.holds(Use.ANSWER):
            if self.budget.lacks(size) > 0 and not answer.outside:
                answer.revoke()

    def _shed(self, size: int) -> None:
        """What pages and answers may take from feeds."""
        self._shed_unproven(size)
        self._shed_encoded(size)
        self._shed_logs(size)

    def _shed_unproven(self, size: int) -> None:
        for feed in sorted(self._feeds.values(), key=lambda held: -held.core.history.bytes):
            if self.budget.lacks(size) <= 0 or feed.shed_unproven() == 0:
                break

    def _shed_encoded(self, size: int) -> None:
        for feed in sorted(self._feeds.values(), key=lambda held: -held.core.encoded):
            if self.budget.lacks(size) <= 0 or feed.shed_encoded() == 0:
                break

    def _shed_logs(self, size: int, *, but: Feed | None = None) -> None:
        for feed in sorted(self._feeds.values(), key=lambda held: -held.core.log.bytes):
            lacks = self.budget.lacks(size)
            if lacks <= 0:
                break
            if feed is not but:
                feed.shed_log(lacks)

    async def read(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """See ``Memory``.

        The first attempt is made beside others. Where they do not fit together each gives back what it has read, and
        they read one after the other: whoever waits holds nothing.
        """
        try:
            return await self._attempt(attempt)
        except NoRoomError:
            if not self._reading and not self._turn.locked():
                raise
        async with self._turn:
            for last in (False, False, True):
                await self._until_none_reads()
                try:
                    return await self._attempt(attempt)
                except NoRoomError:
                    if last or not self._reading:
                        raise
        raise AssertionError("the last attempt returns or raises")  # pragma: no cover

    async def _attempt(self, attempt: Callable[[], Awaitable[T]]) -> T:
        self._reading += 1
        self._none_reads.clear()
        try:
            return await attempt()
        finally:
            self._reading -= 1
            if not self._reading:
                self._none_reads.set()

    async def _until_none_reads(self) -> None:
        """Not for ever: there may always be others, which begin later."""
        if self._reading:
            try:
                async with asyncio.timeout(READING_PATIENCE):
                    await self._none_reads.wait()
            except TimeoutError:
                pass

    @property
    def bytes(self) -> int:
        """What all feeds hold, what is being read for them included."""
        return self.budget.of(Use.FEED)

    def failed(self, feed: Feed, reason: str) -> None:
        """A feed that ended by itself."""
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
        """Look after staleness and age, for as long as the registry is used."""
        while True:
            await asyncio.sleep(TICK)
            for feed in list(self._feeds.values()):
                feed.check_staleness()
            now = self._clock()
            self._too_large = {watched: until for watched, until in self._too_large.items() if until > now}
            await self._join_ended()

    def restored(self) -> None:
        """The cluster's history is another one: every feed starts anew."""
        for feed in list(self._feeds.values()):
            feed.restored()

    def drain(self) -> float:
        """Let nobody in any more, and ask the subscribers to leave, one after the other; the seconds until all are."""
        if not self.draining:
            self.draining = True
            for watched in list(self._linger_timers):
                self._expire(watched)
            # In a drawn order: those who follow one range come to the others over the whole time.
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
        """Those whose turn has not come, too."""
        for subscriber in self.subscribers():
            subscriber.close(DrainingError.close_reason)

    async def aclose(self) -> None:
        """End every feed, whoever holds it."""
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

    # --- looking at it -----------------------------------------------------------------------------------------------

    def feeds(self) -> list[Feed]:
        """The live feeds."""
        return list(self._feeds.values())

    def feed(self, watched: KeyRange) -> Feed | None:
        """The live feed of a range."""
        return self._feeds.get(watched)

    def subscribers(self, feed: Feed | None = None) -> list[Subscriber]:
        """All subscribers, or those of a feed."""
        if feed is not None:
            return list(self._subscribers.get(feed, ()))
        return [subscriber for members in self._subscribers.values() for subscriber in members]

    def statistics(self, only: KeyRange | None = None) -> RegistryStatistics:
        """What it holds now, of all feeds or of the feed of one range."""
        return RegistryStatistics(
            feeds=tuple(
                feed.statistics(
                    subscribers=len(members), lag=max((subscriber.behind for subscriber in members), default=0)
                )
                for feed, members in self._subscribers.items()
                if only is None or feed.range == only
            ),
            subscribers=self._total,
            bytes=self.bytes,
            draining=self.draining,
            feeds_started=self.feeds_started,
            events=self.events,
        )

    def subscriber_statistics(self, watched: KeyRange) -> list[SubscriberStatistics]:
        """Those who follow one range."""
        feed = self._feeds.get(watched)
        return [subscriber.statistics(self._clock()) for subscriber in self._subscribers.get(feed, ())] if feed else []

    def __len__(self) -> int:
        """Subscribers, those that are leaving included."""
        return self._total
