"""The registry: one channel per distinct selection of ranges, shared by reference count, ended after the linger time.

``subscribe`` is the only way in, and the subscriber's ``release`` is the only way out. The release is synchronous and
happens once, however the stream ends. A channel holds the feeds that it is made from (``feeds``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from ..core.always_true import AlwaysTrue
from ..core.budget import Budget
from ..core.errors import DrainingError, OverCapacityError, RangesNeedPinError, TooLargeError
from ..core.keys import KeyRange
from ..core.quotas import Caller, Quotas, Wanted
from ..core.reasons import CloseReason
from ..core.refcounts import Acquired, RefCounts
from ..core.selection import Ranges, divide
from ..core.versions import TRUSTED_PROGRESS
from ..ports import Clock, Draw, Etcd, Hub
from .channel import Channel
from .draining import Draining
from .feed import Feed
from .feeds import PAUSE, Feeds
from .limits import Limits
from .memory import FeedMemory, Holder
from .selected_channel import SelectedChannel
from .snapshot_scheduler import SnapshotScheduler
from .statistics import ChannelStatistics, RegistryStatistics, SubscriberStatistics
from .subscriber import Subscriber

# Seconds between two checks of the feeds' staleness and of the age of what their logs hold.
TICK = 1.0


class Registry(AlwaysTrue):
    """See the module.

    Args:
        pins: the ranges of ``GATEWAY_PIN``; none lies inside another.
        quotas: what each identity and each address may hold; None if there is no limit.
        hub: admits streams for all workers together; None if this process is not a worker.
        serves_workers: this is the hub. Its streams are the workers', so what counts is what they ``admit``.
    """

    def __init__(
        self,
        etcd: Etcd,
        limits: Limits,
        *,
        pins: Iterable[KeyRange] = (),
        quotas: Quotas | None = None,
        hub: Hub | None = None,
        serves_workers: bool = False,
        budget: Budget,
        clock: Clock,
        draw: Draw,
    ) -> None:
        self._etcd = etcd
        self._hub = hub
        self._serves_workers = serves_workers
        self.limits = limits
        self.quotas = quotas
        self._clock = clock
        self.memory = FeedMemory(budget, self._holders_of_memory, self._expire_oldest)
        self._scheduler = SnapshotScheduler()
        self.feeds = Feeds(
            etcd, limits, pins, memory=self.memory, scheduler=self._scheduler, owner=self, clock=clock, draw=draw
        )
        self._counts: RefCounts[Ranges] = RefCounts()
        self._channels: dict[Ranges, Channel] = {}
        self._subscribers: dict[Ranges, dict[Subscriber, None]] = {}
        self._linger_timers: dict[Ranges, asyncio.TimerHandle] = {}
        self._too_large: dict[int, float] = {}  # channels, by the hash of their ranges, and until when none is opened
        self._ended: set[SelectedChannel] = set()  # their tasks may still run
        self._total = 0
        self._admitted: Counter[Ranges] = Counter()  # at the hub: the workers' streams of each selection
        self._on_release = self._release  # one bound method for all subscribers: each one is 64 bytes
        self.draining = False
        self._draining = Draining(limits, clock=clock, draw=draw)
        self.events = 0  # published by all feeds, ended ones included

    # --- subscribing -------------------------------------------------------------------------------------------------

    async def join(
        self,
        ranges: Ranges,
        *,
        address: str,
        user_agent: str,
        request_id: str,
        has_cursor: bool,
        caller: Caller | None = None,
    ) -> Subscriber:
        """Subscribe, in a worker after the hub has admitted the stream. Raises as ``subscribe``."""
        about: dict[str, Any] = {"address": address, "user_agent": user_agent, "request_id": request_id}
        if self._hub is None:
            return self.subscribe(ranges, **about, has_cursor=has_cursor, caller=caller)
        admission = await self._hub.admit(ranges, caller=caller, has_cursor=has_cursor)
        try:
            subscriber = self.subscribe(ranges, **about, has_cursor=has_cursor)
        except BaseException:
            admission.release()
            raise
        subscriber.admission, admission.on_close = admission, subscriber.close
        if admission.closed is not None:
            subscriber.close(admission.closed)
        return subscriber

    def subscribe(
        self,
        ranges: Ranges,
        *,
        address: str,
        user_agent: str,
        request_id: str,
        has_cursor: bool,
        caller: Caller | None = None,
    ) -> Subscriber:
        """Hold the channel of *ranges* until the subscriber is released. Open a channel if there is none.

        *caller*: whose quotas the subscriber counts for, until it is released.

        Raises:
            DrainingError, OverCapacityError, UnavailableError, TooLargeError, RangesNeedPinError: before anything is
                held.
        """
        self.check(ranges, caller)
        since = self._clock()
        channel = self._channels.get(ranges) or self._open(ranges, reads=True)
        if isinstance(channel, SelectedChannel):
            channel.start()
        release, counted = self._on_release, not self._serves_workers
        subscriber = Subscriber(channel, address, user_agent, request_id, since, release, caller, counted=counted)
        self._hold(subscriber, has_cursor=has_cursor)
        return subscriber

    def admit(self, ranges: Ranges, *, caller: Caller | None, has_cursor: bool) -> Subscriber:
        """Hold the channel of *ranges* for a stream of a worker, which reads it there. Raises as ``subscribe``."""
        self.check(ranges, caller, counts=True)
        since = self._clock()
        channel = self._channels.get(ranges) or self._open(ranges, reads=False)
        subscriber = Subscriber(channel, "", "", "", since, self._on_release, caller)
        self._hold(subscriber, has_cursor=has_cursor)
        return subscriber

    def _hold(self, subscriber: Subscriber, *, has_cursor: bool) -> None:
        """Register a subscriber. Everything that may raise comes before this."""
        channel, caller = subscriber.channel, subscriber.caller
        if caller is not None and self.quotas is not None:
            self.quotas.acquire(caller, self._wanted(channel.ranges, channel.watched), subscriber.since)
        if self._counts.acquire(channel.ranges) is Acquired.REVIVED:
            self._linger_timers.pop(channel.ranges).cancel()
        self._subscribers[channel.ranges][subscriber] = None
        if subscriber.counted:
            self._total += 1
            if self._serves_workers:
                self._admitted[channel.ranges] += 1
        self.feeds.start(has_cursor=has_cursor)

    async def check_join(self, ranges: Ranges, caller: Caller | None) -> None:
        """Raise what ``join`` would raise now. Holds, starts and ends nothing."""
        if self._hub is not None:  # the hub counts for all workers
            await self._hub.check_join(ranges, caller=caller)
            caller = None
        self.check(ranges, caller)

    def check(self, ranges: Ranges, caller: Caller | None = None, *, counts: bool | None = None) -> None:
        """Raise what ``subscribe`` would raise now. Holds, starts and ends nothing.

        *counts*: whether the stream would count for GATEWAY_MAX_SUBSCRIBERS. By default as ``subscribe`` does it.

        Raises:
            DrainingError, OverCapacityError, UnavailableError, TooLargeError, RangesNeedPinError: ``subscribe`` would
                refuse.
        """
        if self.draining:
            raise DrainingError("this instance is shutting down: reconnect to reach another one")
        watched = self._watched(ranges)
        if caller is not None and self.quotas is not None:
            self.quotas.check(caller, self._wanted(ranges, watched), self._clock())
        if counts is None:
            counts = not self._serves_workers
        if counts and self._total >= self.limits.max_subscribers:
            raise OverCapacityError(
                f"{self._total} streams are open; GATEWAY_MAX_SUBSCRIBERS is {self.limits.max_subscribers}: "
                "retry later",
                code="too-many-subscribers",
            )
        if counts:
            self._check_channels(ranges)
        if ranges not in self._channels:
            self._check_feeds(watched)
        for one in watched:
            self.feeds.check(one)
        if self._clock() < self._too_large.get(hash(ranges), 0.0):
            raise TooLargeError(
                f"{', '.join(map(str, ranges))} did not fit in the memory that all feeds share "
                "(GATEWAY_MAX_FEED_BYTES): follow smaller ranges"
            )
        condition = self._etcd.condition
        if condition.state == "down" and not all(self.feeds.joinable(one) for one in watched):
            raise condition.error()
        # While the member is not known, a merge waits, as a single range does.
        if len(watched) > 1 and self._etcd.member_known and not self._etcd.progress_trusted:
            raise RangesNeedPinError(
                f"several ranges on one stream need etcd {TRUSTED_PROGRESS}, and this etcd is "
                f"{self._etcd.watch_version or 'unknown'}: follow each range on its own stream, or ask the operator "
                "to pin a prefix that has all of them (GATEWAY_PIN), or to state the version if etcd keeps it secret "
                "(GATEWAY_ETCD_VERSION)"
            )

    def _watched(self, ranges: Ranges) -> Ranges:
        """Return the ranges that etcd is watched for. A channel knows its own, so a join compares no pins."""
        channel = self._channels.get(ranges)
        return channel.watched if channel is not None else tuple(divide(ranges, self.feeds.pins))

    def _wanted(self, ranges: Ranges, watched: Ranges) -> Wanted:
        return Wanted(ranges, tuple(one for one in watched if one not in self.feeds.pins))

    def _check_channels(self, ranges: Ranges) -> None:
        """Raise OverCapacityError unless a channel of *ranges* fits when lingering channels have ended."""
        followed: Collection[Ranges] = self._admitted if self._serves_workers else self._channels
        full = len(followed) >= self.limits.max_channels and self._counts.oldest_lingering() is None
        if full and ranges not in followed:
            raise OverCapacityError(
                f"{len(followed)} distinct selections are followed; GATEWAY_MAX_CHANNELS is "
                f"{self.limits.max_channels}: retry later, or follow the same ranges as others",
                code="too-many-channels",
            )

    def _check_feeds(self, watched: Iterable[KeyRange]) -> None:
        """Raise OverCapacityError unless the feeds of a new channel fit when lingering channels have ended."""
        needed = [one for one in watched if one not in self.feeds]
        excess = len(self.feeds) + len(needed) - self.limits.max_feeds
        if needed and excess > 0 and excess > self._idle_feeds(but=watched):
            raise OverCapacityError(
                f"{len(self.feeds)} distinct ranges are followed; GATEWAY_MAX_FEEDS is {self.limits.max_feeds}: "
                "retry later, or follow fewer, wider ranges",
                code="too-many-feeds",
            )

    def _idle_feeds(self, but: Iterable[KeyRange]) -> int:
        """Return the number of feeds that end if all lingering channels end. *but*: feeds that are needed."""
        needed = set(but) | set(self.feeds.pins)
        return sum(
            feed.range not in needed and not any(self._counts.held(one) for one in self.feeds.holders(feed.range))
            for feed in self.feeds
        )

    def _open(self, ranges: Ranges, *, reads: bool) -> Channel:
        """Open the channel of *ranges*. ``check`` has found room, perhaps after lingering channels have ended.

        *reads*: somebody will read the channel here. Otherwise it makes no selection of its feeds, and only holds them.
        """
        watched = divide(ranges, self.feeds.pins)
        while not self._serves_workers and len(self._counts) >= self.limits.max_channels:
            self._expire_first()
        try:
            # Hold the existing feeds first: a lingering channel that ends below may be the only holder of one.
            for one in sorted(watched, key=lambda each: each not in self.feeds):
                while one not in self.feeds and len(self.feeds) >= self.limits.max_feeds:
                    self._expire_first()
                self.feeds.hold(one, ranges)
            channel = self._make(ranges, watched, reads=reads)
        except BaseException:
            for one in watched:
                self.feeds.release(one, ranges)
            raise
        self._channels[ranges] = channel
        self._subscribers[ranges] = {}
        return channel

    def _make(self, ranges: Ranges, watched: dict[KeyRange, Ranges], *, reads: bool) -> Channel:
        sources: list[tuple[Feed, Ranges]] = []
        for one, part in watched.items():
            feed = self.feeds.get(one)
            assert feed is not None, "the caller holds the feed"
            sources.append((feed, part))
        if len(sources) == 1 and sources[0][0].ranges == ranges:
            return sources[0][0]
        channel = SelectedChannel(
            ranges,
            sources,
            self._etcd,
            self.limits,
            memory=self.memory,
            scheduler=self._scheduler,
            owner=self,
            clock=self._clock,
        )
        try:
            if reads:
                channel.start()
        except BaseException:
            channel.stop()
            raise
        return channel

    def _release(self, subscriber: Subscriber) -> None:
        """Release the subscriber's channel. Synchronous; called once per subscriber."""
        ranges = subscriber.channel.ranges
        if subscriber.counted:
            self._total -= 1
            if self._serves_workers:
                self._admitted[ranges] -= 1
                if not self._admitted[ranges]:
                    del self._admitted[ranges]
        if subscriber.admission is not None:
            subscriber.admission.release()
        if subscriber.caller is not None and self.quotas is not None:
            self.quotas.release(subscriber.caller, self._wanted(ranges, subscriber.channel.watched))
        members = self._subscribers.get(ranges)
        if members is None or subscriber not in members:
            return  # the channel has failed, and its subscribers were removed with it
        del members[subscriber]
        if self._counts.release(ranges):
            if self.draining or not self.limits.linger:
                self._expire(ranges)
            else:
                loop = asyncio.get_running_loop()
                self._linger_timers[ranges] = loop.call_later(self.limits.linger, self._expire, ranges)

    def _expire(self, ranges: Ranges) -> None:
        if self._counts.expire(ranges):
            self._close(ranges)

    def _expire_first(self) -> None:
        oldest = self._counts.oldest_lingering()
        assert oldest is not None, "``check`` has found a lingering channel"
        self._expire(oldest)

    def expire_lingering(self) -> None:
        """End all channels that linger."""
        for ranges in list(self._linger_timers):
            self._expire(ranges)

    def _expire_oldest(self, but: Holder) -> bool:
        """End the channel that has lingered longest, unless *but* would end with it. Return whether one has ended."""
        stays = isinstance(but, Feed) and but.pinned
        for oldest in self._counts.lingering():
            if stays or but not in self._parts(oldest):
                self._expire(oldest)
                return True
        return False

    def _parts(self, ranges: Ranges) -> list[Holder]:
        """Return all that holds memory for a channel: its feeds, and the channel itself if it is not a feed."""
        channel = self._channels[ranges]
        if isinstance(channel, SelectedChannel):
            return [channel, *(feed for feed, _ in channel.sources)]
        feed = self.feeds.get(ranges[0])
        return [feed] if feed is not None else []

    def _close(self, ranges: Ranges) -> None:
        """End a channel that no subscriber holds, and release its feeds."""
        timer = self._linger_timers.pop(ranges, None)
        if timer is not None:
            timer.cancel()
        channel = self._channels.pop(ranges)
        del self._subscribers[ranges]
        if isinstance(channel, SelectedChannel):
            channel.stop()
            self._ended.add(channel)
        for one in channel.watched:
            self.feeds.release(one, ranges)

    # --- reports from feeds (``app.watch.feed.FeedOwner``) -----------------------------------------------------------

    def published(self, events: int) -> None:
        """See ``FeedOwner``."""
        self.events += events

    def view_reclaimed(self, feed: Feed) -> None:
        """See ``FeedOwner``."""
        for ranges in self.feeds.holders(feed.range):
            for subscriber in self._subscribers.get(ranges, ()):
                if subscriber.reader is not None:
                    subscriber.reader.drop_snapshot()

    def failed(self, feed: Feed, reason: CloseReason) -> None:
        """See ``FeedOwner``."""
        if self.feeds.get(feed.range) is not feed:
            return
        holders = list(self.feeds.holders(feed.range))
        self.feeds.failed(feed, reason)
        for ranges in holders:
            self._close_channel(ranges, reason)

    def channel_failed(self, channel: SelectedChannel, reason: CloseReason) -> None:
        """See ``app.watch.selected_channel.ChannelOwner``."""
        if reason == TooLargeError.close_reason:
            self._too_large[hash(channel.ranges)] = self._clock() + PAUSE
        self._close_channel(channel.ranges, reason)

    def _close_channel(self, ranges: Ranges, reason: CloseReason) -> None:
        """End a channel, and close its subscribers for *reason*."""
        self._counts.drop(ranges)
        subscribers = list(self._subscribers[ranges])
        self._close(ranges)
        for subscriber in subscribers:
            subscriber.close(reason)

    # --- running -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start the pins. Then check, once a second for ever, how stale and how old everything is."""
        while True:
            if not self.draining:
                self.feeds.check_all()
            now = self._clock()
            self._too_large = {what: until for what, until in self._too_large.items() if until > now}
            for channel in list(self._selected()):
                channel.check()
                if channel.must_close:
                    self._close_channel(channel.ranges, "unavailable")
            await self._join_ended()
            await asyncio.sleep(TICK)

    def _selected(self) -> Iterator[SelectedChannel]:
        return (channel for channel in self._channels.values() if isinstance(channel, SelectedChannel))

    def _holders_of_memory(self) -> list[Holder]:
        return [*self.feeds, *self._selected()]

    def restored(self) -> None:
        """Restart every feed, because the cluster's history has been replaced."""
        for feed in self.feeds:
            feed.restored()

    def drain(self) -> float:
        """Refuse new subscribers, and close the present ones over time. Return the seconds until all are closed."""
        if not self.draining:
            self.draining = True
            self.expire_lingering()
            self.feeds.stop_pins()
            self._draining.begin(self.subscribers())
        return self._draining.seconds

    def close_all(self) -> None:
        """Close all subscribers, including those whose turn has not come."""
        for subscriber in self.subscribers():
            subscriber.close(DrainingError.close_reason)

    async def aclose(self) -> None:
        """End every feed, even one with subscribers."""
        self.drain()
        self.close_all()
        for ranges in list(self._channels):
            self._counts.drop(ranges)
            self._close(ranges)
        for feed in self.feeds:
            self.feeds.end(feed, "shutdown")
        await self._join_ended()

    async def _join_ended(self) -> None:
        channels, self._ended = self._ended, set()
        feeds, self.feeds.ended = self.feeds.ended, set()
        for channel in channels:
            await channel.join()
        for feed in feeds:
            await feed.join()

    # --- inspection --------------------------------------------------------------------------------------------------

    def channel(self, ranges: Ranges) -> Channel | None:
        """Return the channel of *ranges*, or None."""
        return self._channels.get(ranges)

    def subscribers(self, ranges: Ranges | None = None) -> list[Subscriber]:
        """Return all subscribers, or only those of one channel."""
        if ranges is not None:
            return list(self._subscribers.get(ranges, ()))
        return [subscriber for members in self._subscribers.values() for subscriber in members]

    def statistics(self, only: Ranges | None = None) -> RegistryStatistics:
        """Return what the registry holds now. *only*: of the feeds, just those of this channel."""
        watched = None if only is None else self._watched(only)
        feeds = [feed for feed in self.feeds if watched is None or feed.range in watched]
        # A channel may have thousands of subscribers, and hold several feeds: look at each subscriber once.
        lags = {ranges: self._lag(ranges) for feed in feeds for ranges in self.feeds.holders(feed.range)}
        return RegistryStatistics(
            channels=len(self._channels),
            channels_lingering=sum(not self._streams(ranges) for ranges in self._subscribers),
            feeds=tuple(
                feed.statistics(
                    holders=(holders := tuple(self.feeds.holders(feed.range))),
                    subscribers=sum(map(self._streams, holders)),
                    lag=max((lags[ranges] for ranges in holders), default=0),
                )
                for feed in feeds
            ),
            subscribers=self._total,
            bytes=self.memory.bytes,
            bytes_max=self.memory.budget.limit,
            draining=self.draining,
            feeds_started=self.feeds.started,
            events=self.events,
            pins=self.feeds.pin_statistics(),
        )

    def _streams(self, ranges: Ranges) -> int:
        members = self._subscribers[ranges]
        return sum(one.counted for one in members) if self._serves_workers else len(members)

    def _lag(self, ranges: Ranges) -> int:
        return max((subscriber.behind for subscriber in self._subscribers[ranges]), default=0)

    def channel_statistics(self, only: Ranges | None = None) -> list[ChannelStatistics]:
        """Return what ``/v1/feeds`` reports about all channels, or about the channel of these ranges alone."""
        return [
            self._describe(ranges, channel)
            for ranges, channel in self._channels.items()
            if only is None or ranges == only
        ]

    def _describe(self, ranges: Ranges, channel: Channel) -> ChannelStatistics:
        return ChannelStatistics(
            ranges=ranges,
            feeds=channel.watched,
            revision=channel.history.log.tip,
            keys=channel.keys,
            bytes=channel.bytes if isinstance(channel, SelectedChannel) else 0,
            state="stale" if channel.stale_ranges else "live" if channel.history.joinable else "waiting",
            trouble=channel.trouble,
            subscribers=self._streams(ranges),
            lag=self._lag(ranges),
        )

    def subscriber_statistics(self, ranges: Ranges) -> list[SubscriberStatistics]:
        """Return what ``/v1/feeds`` reports about the subscribers of one channel."""
        return [subscriber.statistics(self._clock()) for subscriber in self._subscribers.get(ranges, ())]

    def __len__(self) -> int:
        """Return the number of subscribers, including those that are leaving."""
        return self._total
