"""The channels of the process: one for each distinct selection of ranges, shared by reference count.

A channel lives while it is held, and lingers afterwards: a client that comes back meanwhile finds the log, and resumes.
A channel holds the feeds that it is made from (``feeds``). The registry decides who may hold a channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from typing import Protocol

from ..core.always_true import AlwaysTrue
from ..core.budget import Budget
from ..core.errors import OverCapacityError, RangesNeedPinError, TooLargeError
from ..core.keys import KeyRange
from ..core.reasons import CloseReason
from ..core.refcounts import Acquired, RefCounts
from ..core.selection import Ranges, divide
from ..core.versions import TRUSTED_PROGRESS
from ..ports import Clock, Draw, Etcd
from .channel import Channel
from .feed import Feed
from .feeds import PAUSE, Feeds
from .limits import Limits
from .memory import FeedMemory, Holder
from .selected_channel import SelectedChannel
from .snapshot_scheduler import SnapshotScheduler


class ChannelsOwner(Protocol):
    """What the channels report to the registry."""

    def channel_failed(self, ranges: Ranges, reason: CloseReason) -> None:
        """The channel of *ranges* has ended by itself. Its subscribers must be closed for *reason*."""

    def view_reclaimed(self, ranges: Ranges) -> None:
        """A feed of the channel of *ranges* has freed its view. The channel's readers must not hold any part of it."""


class Channels(AlwaysTrue):
    """See the module. *pins*: the ranges whose feeds live as long as the process."""

    def __init__(
        self,
        etcd: Etcd,
        limits: Limits,
        pins: Iterable[KeyRange],
        *,
        owner: ChannelsOwner,
        budget: Budget,
        clock: Clock,
        draw: Draw,
    ) -> None:
        self._etcd = etcd
        self._limits = limits
        self._owner = owner
        self._clock = clock
        self.memory = FeedMemory(budget, self._holders_of_memory, self._expire_oldest)
        self._scheduler = SnapshotScheduler()
        self.feeds = Feeds(
            etcd, limits, pins, memory=self.memory, scheduler=self._scheduler, owner=self, clock=clock, draw=draw
        )
        self._channels: dict[Ranges, Channel] = {}
        self._counts: RefCounts[Ranges] = RefCounts()
        self._linger_timers: dict[Ranges, asyncio.TimerHandle] = {}
        self._too_large: dict[int, float] = {}  # channels, by the hash of their ranges, and until when none is opened
        self._ended: set[SelectedChannel] = set()  # their tasks may still run
        self._stopping = False

    def __len__(self) -> int:
        return len(self._channels)

    def __iter__(self) -> Iterator[Channel]:
        """Iterate over a copy: a channel may end meanwhile."""
        return iter(list(self._channels.values()))

    def __contains__(self, ranges: Ranges) -> bool:
        return ranges in self._channels

    def get(self, ranges: Ranges) -> Channel | None:
        """Return the channel of *ranges*, or None."""
        return self._channels.get(ranges)

    def watched(self, ranges: Ranges) -> Ranges:
        """Return the ranges that etcd is watched for. A channel knows its own, so a join compares no pins."""
        channel = self._channels.get(ranges)
        return channel.watched if channel is not None else tuple(divide(ranges, self.feeds.pins))

    # --- holding ------------------------------------------------------------------------------------------------------

    def check(self, ranges: Ranges) -> None:
        """Raise if the channel of *ranges* could not serve anybody now. Opens and ends nothing.

        Raises:
            OverCapacityError, PinUnavailableError, TooLargeError, UnavailableError, RangesNeedPinError: ``hold`` must
                not be called.
        """
        channel = self._channels.get(ranges)
        if channel is not None:
            watched = channel.watched
        else:
            watched = self.watched(ranges)
            self._check_room(watched)
        for one in watched:
            self.feeds.check(one)
        if self._too_large and self._clock() < self._too_large.get(hash(ranges), 0.0):
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

    def _check_room(self, watched: Ranges) -> None:
        """Raise OverCapacityError unless the feeds of a new channel fit when lingering channels have ended."""
        needed = [one for one in watched if one not in self.feeds]
        excess = len(self.feeds) + len(needed) - self._limits.max_feeds
        if needed and excess > 0 and excess > self._idle_feeds(but=watched):
            raise OverCapacityError(
                f"{len(self.feeds)} distinct ranges are followed; GATEWAY_MAX_FEEDS is {self._limits.max_feeds}: "
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

    def hold(self, ranges: Ranges, *, reads: bool) -> Channel:
        """Hold the channel of *ranges*, once for each ``release``. Open it if there is none. ``check`` comes before.

        Call ``feeds.start`` when the holder is registered.

        Args:
            reads: the holder reads the channel here. A channel that nobody has read makes no selection of its feeds,
                and only holds them.
        """
        channel = self._channels.get(ranges)
        if channel is None:
            channel = self._open(ranges, reads=reads)
        elif reads and isinstance(channel, SelectedChannel):
            channel.start()
        if self._counts.acquire(ranges) is Acquired.REVIVED:
            self._linger_timers.pop(ranges).cancel()
        return channel

    def _open(self, ranges: Ranges, *, reads: bool) -> Channel:
        """Open the channel of *ranges*. ``check`` has found room, perhaps after lingering channels have ended."""
        watched = divide(ranges, self.feeds.pins)
        while len(self) >= self._limits.max_channels and self.has_lingering:
            self._expire_first()
        try:
            # Hold the existing feeds first: a lingering channel that ends below may be the only holder of one.
            for one in sorted(watched, key=lambda each: each not in self.feeds):
                while one not in self.feeds and len(self.feeds) >= self._limits.max_feeds:
                    self._expire_first()
                self.feeds.hold(one, ranges)
            channel = self._make(ranges, watched, reads=reads)
        except BaseException:
            for one in watched:
                self.feeds.release(one, ranges)
            raise
        self._channels[ranges] = channel
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
            self._limits,
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

    def release(self, ranges: Ranges) -> None:
        """Release the channel of *ranges*. Without a holder it lingers, then ends. Synchronous."""
        if self._counts.release(ranges):
            if self._stopping or not self._limits.linger:
                self._expire(ranges)
            else:
                loop = asyncio.get_running_loop()
                self._linger_timers[ranges] = loop.call_later(self._limits.linger, self._expire, ranges)

    # --- the end of lingering channels --------------------------------------------------------------------------------

    @property
    def has_lingering(self) -> bool:
        """Whether a channel lingers, so that it gives way to a new one."""
        return self._counts.oldest_lingering() is not None

    def expire_lingering(self) -> None:
        """End all channels that linger."""
        for ranges in list(self._linger_timers):
            self._expire(ranges)

    def _expire(self, ranges: Ranges) -> None:
        if self._counts.expire(ranges):
            self._close(ranges)

    def _expire_first(self) -> None:
        oldest = self._counts.oldest_lingering()
        assert oldest is not None, "``check`` has found a lingering channel"
        self._expire(oldest)

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
        """End a channel that nobody holds, and release its feeds."""
        timer = self._linger_timers.pop(ranges, None)
        if timer is not None:
            timer.cancel()
        channel = self._channels.pop(ranges)
        if isinstance(channel, SelectedChannel):
            channel.stop()
            self._ended.add(channel)
        for one in channel.watched:
            self.feeds.release(one, ranges)

    # --- reports from feeds and channels (``FeedsOwner``, ``ChannelOwner``) -------------------------------------------

    def view_reclaimed(self, holders: Collection[Ranges]) -> None:
        """See ``FeedsOwner``."""
        for ranges in holders:
            channel = self._channels.get(ranges)
            if isinstance(channel, SelectedChannel):
                channel.forget_snapshot()
            self._owner.view_reclaimed(ranges)

    def feed_failed(self, holders: Collection[Ranges], reason: CloseReason) -> None:
        """See ``FeedsOwner``."""
        for ranges in holders:
            self._fail(ranges, reason)

    def channel_failed(self, channel: SelectedChannel, reason: CloseReason) -> None:
        """See ``ChannelOwner``."""
        if reason == TooLargeError.close_reason:
            self._too_large[hash(channel.ranges)] = self._clock() + PAUSE
        self._fail(channel.ranges, reason)

    def _fail(self, ranges: Ranges, reason: CloseReason) -> None:
        self._drop(ranges)
        self._owner.channel_failed(ranges, reason)

    def _drop(self, ranges: Ranges) -> None:
        """End a channel, even one that is held. Its holders must not release it any more."""
        self._counts.drop(ranges)
        self._close(ranges)

    # --- running ------------------------------------------------------------------------------------------------------

    def check_all(self) -> None:
        """Start the pins, and check how stale and how old everything is. The registry calls this once a second."""
        self.feeds.check_all()
        now = self._clock()
        self._too_large = {what: until for what, until in self._too_large.items() if until > now}
        for channel in list(self._selected()):
            channel.check()
            if channel.must_close:
                self._fail(channel.ranges, "unavailable")

    def _selected(self) -> Iterator[SelectedChannel]:
        return (channel for channel in self._channels.values() if isinstance(channel, SelectedChannel))

    def _holders_of_memory(self) -> list[Holder]:
        return [*self.feeds, *self._selected()]

    def stop(self) -> None:
        """End what lingers, and the pins, because the gateway stops. From now on nothing lingers. Idempotent."""
        self._stopping = True
        self.expire_lingering()
        self.feeds.stop_pins()

    async def aclose(self) -> None:
        """End every channel and every feed, even those that are held."""
        for ranges in list(self._channels):
            self._drop(ranges)
        for feed in self.feeds:
            self.feeds.end(feed, "shutdown")
        await self.join_ended()

    async def join_ended(self) -> None:
        """Wait until the tasks of the channels and feeds that have ended are over."""
        channels, self._ended = self._ended, set()
        for channel in channels:
            await channel.join()
        await self.feeds.join_ended()
