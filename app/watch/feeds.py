"""The feeds of the process: at most one per range. A feed lives while a channel holds it; a pinned feed always."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from ..core.always_true import AlwaysTrue
from ..core.errors import PinUnavailableError, TooLargeError
from ..core.feed import State
from ..core.keys import KeyRange
from ..core.reasons import CloseReason
from ..core.selection import Ranges
from ..ports import Clock, Draw, Etcd
from .feed import Feed
from .limits import Limits
from .memory import FeedMemory
from .snapshot_scheduler import SnapshotScheduler
from .statistics import PinStatistics

logger = logging.getLogger("gateway.feed")

# Seconds before a range that was too large is read again: every attempt costs etcd a Range of the whole range. Also the
# seconds before a pin that has failed starts again.
PAUSE = 30.0


@dataclass(slots=True)
class Pin:
    """A pinned range."""

    range: KeyRange
    settled: bool = False  # it was live once, or could not be held: readiness does not wait for it any more
    trouble: str = ""  # why it cannot be held; empty while it is
    retry_at: float = 0.0  # monotonic seconds

    def fail(self, trouble: str) -> None:
        """Record, and log once, that the gateway cannot hold the pin."""
        if trouble != self.trouble:
            logger.warning("pin unavailable", extra={"range": str(self.range), "reason": trouble})
        self.settled, self.trouble = True, trouble

    def succeed(self) -> None:
        """Record that the pin is live."""
        if self.trouble:
            logger.info("pin available", extra={"range": str(self.range)})
        self.settled, self.trouble = True, ""


class FeedsOwner(Protocol):
    """What the feeds report to ``Channels``. *holders*: the channels that hold the feed."""

    def feed_failed(self, holders: Collection[Ranges], reason: CloseReason) -> None:
        """A feed has ended by itself. The subscribers of its channels must be closed for *reason*."""

    def view_reclaimed(self, holders: Collection[Ranges]) -> None:
        """A feed has freed its view. The readers of its channels must not hold any part of that view."""


class Feeds(AlwaysTrue):
    """See the module. *pins*: the ranges that are followed as long as the process lives."""

    def __init__(
        self,
        etcd: Etcd,
        limits: Limits,
        pins: Iterable[KeyRange],
        *,
        memory: FeedMemory,
        scheduler: SnapshotScheduler,
        owner: FeedsOwner,
        clock: Clock,
        draw: Draw,
    ) -> None:
        self._etcd = etcd
        self._limits = limits
        self._memory = memory
        self._scheduler = scheduler
        self._owner = owner
        self._clock = clock
        self._draw = draw
        self._feeds: dict[KeyRange, Feed] = {}
        self._holders: dict[KeyRange, dict[Ranges, None]] = {}
        self._too_large: dict[KeyRange, float] = {}  # range -> monotonic time until which it is not tried again
        self.pins = {one: Pin(one) for one in pins}
        self._made: list[Feed] = []  # and not started
        self._ended: set[Feed] = set()  # their tasks may still run
        self.started = 0
        self.events = 0  # published by all feeds, ended ones included
        self._stopping = False

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Iterator[Feed]:
        """Iterate over a copy: a feed may end meanwhile."""
        return iter(list(self._feeds.values()))

    def __contains__(self, watched: KeyRange) -> bool:
        return watched in self._feeds

    def get(self, watched: KeyRange) -> Feed | None:
        """Return the feed of a range, or None."""
        return self._feeds.get(watched)

    def joinable(self, watched: KeyRange) -> bool:
        """Whether a range has a feed that new readers may join."""
        feed = self._feeds.get(watched)
        return feed is not None and feed.history.joinable

    def holders(self, watched: KeyRange) -> Collection[Ranges]:
        """Return the channels that hold the feed of a range."""
        return self._holders.get(watched, {})

    # --- holding ------------------------------------------------------------------------------------------------------

    def check(self, watched: KeyRange) -> None:
        """Raise PinUnavailableError or TooLargeError if the feed of this range could not serve anybody now."""
        pin = self.pins.get(watched)
        if pin is not None and pin.trouble:
            raise PinUnavailableError(
                f"{watched} is pinned (GATEWAY_PIN), and the gateway cannot hold it now: retry later",
                cause=f"{watched}: {pin.trouble}",
            )
        if self._too_large and self._clock() < self._too_large.get(watched, 0.0):
            raise TooLargeError(
                f"{watched} did not fit in the memory that all feeds share (GATEWAY_MAX_FEED_BYTES): "
                "follow a smaller range"
            )

    def hold(self, watched: KeyRange, holder: Ranges) -> Feed:
        """Hold the feed of a range for a channel. Make one if there is none; ``start`` starts it."""
        feed = self._feeds.get(watched)
        if feed is None:
            feed = self._make(watched)
        self._holders[watched][holder] = None
        return feed

    def start(self, *, has_cursor: bool) -> None:
        """Start the feeds that were made and not started, after their first subscriber is registered."""
        made, self._made = self._made, []
        for feed in made:
            # A pin starts as if a cursor waited, so that all clients resume after a rollout of the gateway.
            if feed.state is State.IDLE:
                feed.start(backfill=has_cursor or feed.pinned)

    def release(self, watched: KeyRange, holder: Ranges) -> None:
        """Release the feed of a range. End it if nothing else holds it. Idempotent."""
        holders = self._holders.get(watched)
        if holders is None or holder not in holders:
            return
        del holders[holder]
        if not holders and (self._stopping or watched not in self.pins):
            self.end(self._feeds[watched], "idle")

    def end(self, feed: Feed, reason: CloseReason | Literal["idle", "shutdown"]) -> None:
        """End a feed. Its channels must have ended, or end next."""
        del self._feeds[feed.range]
        del self._holders[feed.range]
        feed.stop()
        self._ended.add(feed)
        logger.info("feed stop", extra={"range": str(feed.range), "reason": reason})

    def _make(self, watched: KeyRange) -> Feed:
        feed = Feed(
            watched,
            self._etcd,
            self._limits,
            pinned=watched in self.pins,
            memory=self._memory,
            scheduler=self._scheduler,
            owner=self,
            clock=self._clock,
            draw=self._draw,
        )
        self._feeds[watched] = feed
        self._holders[watched] = {}
        self.started += 1
        self._made.append(feed)
        logger.info("feed start", extra={"range": str(watched)})
        return feed

    # --- reports from feeds (``app.watch.feed.FeedOwner``) -----------------------------------------------------------

    def published(self, events: int) -> None:
        """See ``FeedOwner``."""
        self.events += events

    def view_reclaimed(self, feed: Feed) -> None:
        """See ``FeedOwner``."""
        self._owner.view_reclaimed(self.holders(feed.range))

    def restored(self) -> None:
        """See ``FeedOwner``: restart every feed, because the cluster's history has been replaced."""
        for feed in self:
            feed.restored()

    def failed(self, feed: Feed, reason: CloseReason) -> None:
        """See ``FeedOwner``. Remember when the range may be tried again."""
        if self._feeds.get(feed.range) is not feed:
            return
        holders = list(self._holders[feed.range])
        self.end(feed, reason)
        if reason == TooLargeError.close_reason:
            self._too_large[feed.range] = self._clock() + PAUSE
        pin = self.pins.get(feed.range)
        if pin is not None:
            pin.fail(feed.trouble or reason)
            pin.retry_at = self._clock() + PAUSE
        self._owner.feed_failed(holders, reason)

    # --- running ------------------------------------------------------------------------------------------------------

    def check_all(self) -> None:
        """Check all feeds, and start the pins that have no feed. ``Channels`` calls this once a second."""
        now = self._clock()
        for feed in self:
            feed.check_staleness()
        self._too_large = {watched: until for watched, until in self._too_large.items() if until > now}
        for watched, pin in self.pins.items():
            pinned = self._feeds.get(watched)
            if pinned is None:
                if now >= pin.retry_at and not self._stopping:
                    self._make(watched)
                    self.start(has_cursor=True)
            elif pinned.denied:
                pin.fail(pinned.trouble)
            elif pinned.state is State.LIVE:
                pin.succeed()
        self._reserve()

    def _reserve(self) -> None:
        """Let the pins reserve room for their next states, unless a pin has no state: it needs the room more."""
        pinned = [self._feeds.get(watched) for watched in self.pins]
        wanted = all(feed is not None and (feed.denied or feed.history.view is not None) for feed in pinned)
        for feed in pinned:
            if feed is not None:
                feed.reserve(wanted=wanted)

    def pin_statistics(self) -> tuple[PinStatistics, ...]:
        """Return how each pin is: for readiness, ``/v1/feeds`` and the metrics."""
        return tuple(
            PinStatistics(
                one,
                "unavailable" if pin.trouble else "held" if pin.settled else "waiting",
                pin.trouble or ("" if pin.settled or one not in self._feeds else self._feeds[one].trouble),
            )
            for one, pin in self.pins.items()
        )

    def stop_pins(self) -> None:
        """End the pinned feeds as soon as no channel holds them, because the gateway stops."""
        self._stopping = True
        for watched in self.pins:
            if watched in self._feeds and not self._holders[watched]:
                self.end(self._feeds[watched], "shutdown")

    async def join_ended(self) -> None:
        """Wait until the tasks of the feeds that have ended are over."""
        feeds, self._ended = self._ended, set()
        for feed in feeds:
            await feed.join()
