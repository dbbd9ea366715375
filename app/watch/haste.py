"""The feeds that one merge waits for."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.awaiting_parts import AwaitingParts, P
from ..core.selection import Ranges
from .feed import Feed


class Haste:
    """Lets the feeds that a merge waits for ask for progress as fast as etcd's streams allow, and no others."""

    __slots__ = ("_feeds",)

    def __init__(self) -> None:
        self._feeds: set[Feed] = set()

    def follow(self, merge: AwaitingParts[P], sources: Iterable[tuple[Feed, Ranges]]) -> None:
        """Hasten the feeds that *merge* waits for now. *sources*: its feeds, in the order of its parts."""
        parts = zip(sources, merge.parts, strict=True)
        self.want(feed for (feed, _), part in parts if part in merge.awaited)

    def want(self, feeds: Iterable[Feed]) -> None:
        """Hasten these feeds from now on, and no others."""
        wanted = set(feeds)
        for feed in wanted - self._feeds:
            feed.hasten(1)
        for feed in self._feeds - wanted:
            feed.hasten(-1)
        self._feeds = wanted
