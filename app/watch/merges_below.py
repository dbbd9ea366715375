"""Merges that the gateways below make: their quiet ranges are proven before the gateways below ask for it.

A gateway below says that it merges some ranges (``/v1/progress``). For LEASE seconds from then on, its streams of these
ranges get a bookmark as soon as the tip moves. If this gateway follows etcd, it asks etcd for progress of a range as
soon as another range of the merge has a newer event. If it follows a gateway, it tells that gateway of the merge, and
passes on what comes.

A drain changes none of that for the streams that are still there: their gateway cannot ask any more, because nobody
accepts its connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..core.merge_below import MergeBelow
from ..core.selection import Ranges, canonical, divide
from ..ports import Etcd
from .feed import Feed
from .haste import Haste
from .registry import Registry
from .subscriber import Subscriber
from .tip_teller import TipTeller

# Seconds for which what a gateway below has said holds.
LEASE = 30.0


class HastenedMerge:
    """One merge of a gateway below, at a gateway that follows etcd."""

    __slots__ = ("_core", "_haste", "sources", "until")

    def __init__(self, sources: tuple[tuple[Feed, Ranges], ...], until: float) -> None:
        self.sources = sources
        self.until = until
        self._haste = Haste()
        self._core = MergeBelow([(feed.history, ranges) for feed, ranges in sources], self._hasten)

    def start(self) -> None:
        """Begin to follow the feeds."""
        self._core.follow()

    def stop(self) -> None:
        """Follow the feeds no more. Idempotent."""
        self._core.leave()

    def _hasten(self) -> None:
        self._haste.follow(self._core, self.sources)


class MergesBelow:
    """See the module. ``stop`` releases everything."""

    def __init__(self, registry: Registry, etcd: Etcd) -> None:
        self._registry = registry
        self._etcd = etcd
        self._merges: dict[Ranges, HastenedMerge] = {}
        self._tellers: dict[Subscriber, TipTeller] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def note(self, ranges: Ranges, streams: Sequence[Subscriber]) -> None:
        """Record that a gateway below merges *ranges*. *streams*: its streams here, of one of the ranges each."""
        if not streams or self._stopped or not self._etcd.progress_trusted:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + LEASE
        for stream in streams:
            self._tell(stream, until)
        if self._etcd.is_gateway:
            self._etcd.tell_merged(tuple(divide(ranges, self._registry.feeds.pins)))
        else:
            # No other names: the caller may choose any.
            self._hasten(canonical(one for stream in streams for one in stream.channel.ranges), until)
        if self._timer is None:
            self._timer = loop.call_later(LEASE, self._look)

    def stop(self) -> None:
        """Forget all merges, and take no more. Idempotent."""
        self._stopped = True
        self._forget(float("inf"))

    def _tell(self, stream: Subscriber, until: float) -> None:
        teller = self._tellers.get(stream)
        if teller is None:
            teller = self._tellers[stream] = TipTeller(stream, until)
            teller.start()
        teller.until = until

    def _hasten(self, ranges: Ranges, until: float) -> None:
        feeds, divided = self._registry.feeds, divide(ranges, self._registry.feeds.pins)
        found = ((feeds.get(one), part) for one, part in divided.items())
        sources = tuple((feed, part) for feed, part in found if feed is not None)
        merge = self._merges.get(ranges)
        if merge is None or merge.sources != sources:
            if merge is not None:
                self._merges.pop(ranges).stop()
            if len(sources) < 2 or len(self._merges) >= self._registry.limits.max_channels:
                return
            merge = self._merges[ranges] = HastenedMerge(sources, until)
            merge.start()
        merge.until = until

    def _look(self) -> None:
        self._forget(asyncio.get_running_loop().time())

    def _forget(self, now: float) -> None:
        """Forget what does not hold any more. Look again if anything holds."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for ranges in [ranges for ranges, merge in self._merges.items() if merge.until <= now]:
            self._merges.pop(ranges).stop()
        for stream in [stream for stream, teller in self._tellers.items() if teller.until <= now or stream.released]:
            self._tellers.pop(stream).stop()
        if self._merges or self._tellers:
            self._timer = asyncio.get_running_loop().call_later(LEASE, self._look)
