"""The registry: who subscribes to the channels, within the limits and the quotas, until the gateway drains.

``subscribe`` and, for the streams of workers, ``admit`` are the only ways in, and the subscriber's ``release`` is the
only way out. The release is synchronous and happens once, however the stream ends. What the subscribers share is in
``channels``.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..core.always_true import AlwaysTrue
from ..core.budget import Budget
from ..core.errors import DrainingError, OverCapacityError
from ..core.keys import KeyRange
from ..core.quotas import Caller, Quotas, Wanted
from ..core.reasons import CloseReason
from ..core.selection import Ranges
from ..ports import Clock, Draw, Etcd, Hub
from .channel import Channel
from .channels import Channels
from .draining import Draining
from .limits import Limits
from .selected_channel import SelectedChannel
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
        self._hub = hub
        self._serves_workers = serves_workers
        self.limits = limits
        self.quotas = quotas
        self._clock = clock
        self.channels = Channels(etcd, limits, pins, owner=self, budget=budget, clock=clock, draw=draw)
        self.feeds = self.channels.feeds
        self._subscribers: dict[Ranges, dict[Subscriber, None]] = {}  # those of each channel that has any
        self._leaving: dict[Subscriber, None] = {}  # those whose channel has failed, until they are released
        self._total = 0
        self._admitted: Counter[Ranges] = Counter()  # at the hub: the workers' streams of each selection
        self._on_release = self._release  # one bound method for all subscribers: each one is 64 bytes
        self.draining = False
        self._draining = Draining(limits, clock=clock, draw=draw)
        self._checked_at = math.inf  # monotonic seconds; before ``run`` nothing is overdue

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
        counted: bool = True,
    ) -> Subscriber:
        """Hold the channel of *ranges* until the subscriber is released. Open a channel if there is none.

        Args:
            caller: whose quotas the subscriber counts for, until it is released.
            counted: whether it counts for GATEWAY_MAX_SUBSCRIBERS, and in the metrics.

        Raises:
            DrainingError, OverCapacityError, UnavailableError, TooLargeError, RangesNeedPinError: before anything is
                held.
        """
        self.check_if_overdue()
        counted = counted and not self._serves_workers
        self.check(ranges, caller, counts=counted)
        since = self._clock()
        channel = self.channels.hold(ranges, reads=True)
        release = self._on_release
        subscriber = Subscriber(channel, address, user_agent, request_id, since, release, caller, counted=counted)
        self._register(subscriber, has_cursor=has_cursor)
        return subscriber

    def admit(self, ranges: Ranges, *, caller: Caller | None, has_cursor: bool) -> Subscriber:
        """Hold the channel of *ranges* for a stream of a worker, which reads it there. Raises as ``subscribe``."""
        self.check(ranges, caller, counts=True)
        since = self._clock()
        channel = self.channels.hold(ranges, reads=False)
        subscriber = Subscriber(channel, "", "", "", since, self._on_release, caller)
        self._register(subscriber, has_cursor=has_cursor)
        return subscriber

    def _register(self, subscriber: Subscriber, *, has_cursor: bool) -> None:
        """Register a subscriber that holds its channel. Everything that may raise comes before this."""
        channel, caller = subscriber.channel, subscriber.caller
        if caller is not None and self.quotas is not None:
            self.quotas.acquire(caller, self._wanted(channel.ranges, channel.watched), subscriber.since)
        self._subscribers.setdefault(channel.ranges, {})[subscriber] = None
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
        if caller is not None and self.quotas is not None:
            self.quotas.check(caller, self._wanted(ranges, self.channels.watched(ranges)), self._clock())
        if counts is None:
            counts = not self._serves_workers
        if counts:
            self._check_limits(ranges)
        self.channels.check(ranges)

    def _check_limits(self, ranges: Ranges) -> None:
        """Raise OverCapacityError unless one more stream of *ranges* fits when lingering channels have ended."""
        if self._total >= self.limits.max_subscribers:
            raise OverCapacityError(
                f"{self._total} streams are open; GATEWAY_MAX_SUBSCRIBERS is {self.limits.max_subscribers}: "
                "retry later",
                code="too-many-subscribers",
            )
        # At the hub a worker's stream opens a channel, too, and only the selections of the clients count.
        followed: Counter[Ranges] | Channels = self._admitted if self._serves_workers else self.channels
        full = len(followed) >= self.limits.max_channels and not self.channels.has_lingering
        if full and ranges not in followed:
            raise OverCapacityError(
                f"{len(followed)} distinct selections are followed; GATEWAY_MAX_CHANNELS is "
                f"{self.limits.max_channels}: retry later, or follow the same ranges as others",
                code="too-many-channels",
            )

    def _wanted(self, ranges: Ranges, watched: Ranges) -> Wanted:
        return Wanted(ranges, tuple(one for one in watched if one not in self.feeds.pins))

    def _release(self, subscriber: Subscriber) -> None:
        """Release what the subscriber holds. Synchronous; called once per subscriber."""
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
            self._leaving.pop(subscriber, None)
            return  # the channel has failed, and its subscribers were removed with it
        del members[subscriber]
        if not members:
            del self._subscribers[ranges]
        self.channels.release(ranges)

    def expire_lingering(self) -> None:
        """End all channels that linger."""
        self.channels.expire_lingering()

    # --- reports from channels (``app.watch.channels.ChannelsOwner``) ------------------------------------------------

    def channel_failed(self, ranges: Ranges, reason: CloseReason) -> None:
        """See ``ChannelsOwner``."""
        members = self._subscribers.pop(ranges, {})
        self._leaving |= members
        for subscriber in members:
            subscriber.close(reason)

    def view_reclaimed(self, ranges: Ranges) -> None:
        """See ``ChannelsOwner``."""
        for subscriber in self._subscribers.get(ranges, ()):
            if subscriber.reader is not None:
                subscriber.reader.drop_snapshot()

    # --- running -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start the pins. Then check, once a second for ever, how stale and how old everything is."""
        while True:
            self._check_all()
            await self.channels.join_ended()
            await asyncio.sleep(TICK)

    def _check_all(self) -> None:
        self._checked_at = self._clock()
        self.channels.check_all()

    def check_if_overdue(self) -> None:
        """Check now if the process stood still. A request that waited meanwhile is read before the timers run.

        Without this, the request would be told ``live``, as the feeds were before.
        """
        if self._clock() > self._checked_at + 2 * TICK:
            self._check_all()

    def drain(self) -> float:
        """Refuse new subscribers, and close the present ones over time. Return the seconds until all are closed."""
        if not self.draining:
            self.draining = True
            self.channels.stop()
            self._draining.begin(self.subscribers())
        return self._draining.seconds

    def close_all(self) -> None:
        """Close all subscribers, including those whose turn has not come."""
        for subscriber in self.subscribers():
            subscriber.close(DrainingError.close_reason)

    async def aclose(self) -> None:
        """End every channel and every feed, even one with subscribers."""
        self.drain()
        self.close_all()
        self._subscribers.clear()
        self._leaving.clear()
        await self.channels.aclose()

    # --- inspection --------------------------------------------------------------------------------------------------

    def channel(self, ranges: Ranges) -> Channel | None:
        """Return the channel of *ranges*, or None."""
        return self.channels.get(ranges)

    def subscribers(self, ranges: Ranges | None = None) -> list[Subscriber]:
        """Return all subscribers, or only those of one channel."""
        if ranges is not None:
            return list(self._subscribers.get(ranges, ()))
        return [subscriber for members in self._subscribers.values() for subscriber in members]

    def readers(self) -> list[Subscriber]:
        """Return all who may still be sent values: ``subscribers``, and those who leave a channel that has failed."""
        return [*self.subscribers(), *self._leaving]

    def statistics(self, only: Ranges | None = None) -> RegistryStatistics:
        """Return what the registry holds now. *only*: of the feeds, just those of this channel."""
        watched = None if only is None else self.channels.watched(only)
        feeds = [feed for feed in self.feeds if watched is None or feed.range in watched]
        # A channel may have thousands of subscribers, and hold several feeds: look at each subscriber once.
        lags = {ranges: self._lag(ranges) for feed in feeds for ranges in self.feeds.holders(feed.range)}
        return RegistryStatistics(
            channels=len(self.channels),
            channels_lingering=sum(not self._streams(channel.ranges) for channel in self.channels),
            feeds=tuple(
                feed.statistics(
                    holders=(holders := tuple(self.feeds.holders(feed.range))),
                    subscribers=sum(map(self._streams, holders)),
                    lag=max((lags[ranges] for ranges in holders), default=0),
                )
                for feed in feeds
            ),
            subscribers=self._total,
            bytes=self.channels.memory.bytes,
            bytes_max=self.channels.memory.budget.limit,
            draining=self.draining,
            feeds_started=self.feeds.started,
            events=self.feeds.events,
            pins=self.feeds.pin_statistics(),
        )

    def _streams(self, ranges: Ranges) -> int:
        members = self._subscribers.get(ranges, ())
        return sum(one.counted for one in members)

    def _lag(self, ranges: Ranges) -> int:
        return max((subscriber.behind for subscriber in self._subscribers.get(ranges, ())), default=0)

    def channel_statistics(self, only: Ranges | None = None) -> list[ChannelStatistics]:
        """Return what ``/v1/feeds`` reports about all channels, or about the channel of these ranges alone."""
        return [self._describe(channel) for channel in self.channels if only is None or channel.ranges == only]

    def _describe(self, channel: Channel) -> ChannelStatistics:
        return ChannelStatistics(
            ranges=channel.ranges,
            feeds=channel.watched,
            revision=channel.history.log.tip,
            keys=channel.keys,
            bytes=channel.bytes if isinstance(channel, SelectedChannel) else 0,
            state="stale" if channel.stale_ranges else "live" if channel.history.joinable else "waiting",
            trouble=channel.trouble,
            subscribers=self._streams(channel.ranges),
            lag=self._lag(channel.ranges),
        )

    def subscriber_statistics(self, ranges: Ranges) -> list[SubscriberStatistics]:
        """Return what ``/v1/feeds`` reports about the subscribers of one channel."""
        return [subscriber.statistics(self._clock()) for subscriber in self._subscribers.get(ranges, ())]

    def __len__(self) -> int:
        """Return the number of subscribers, including those that are leaving."""
        return self._total
