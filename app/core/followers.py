"""Which selections follow a feed's history, found by the key of an event.

A pin may have 5,000 followers, each of another prefix. The cost of an event depends on the length of its key, never on
the number of followers: one lookup for each length that a followed prefix has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from .always_true import AlwaysTrue
from .events import Batch, Event
from .keys import KeyRange
from .selection import Ranges


class Follower(Protocol):
    """A part of a selection that lies in one feed."""

    @property
    def ranges(self) -> Ranges:
        """The ranges of the part: no two have a key in common."""

    def publish(self, batch: Batch, now: float) -> None:
        """Take the events of one revision that lie in ``ranges``; the feed's history has them already."""

    def advance(self, now: float) -> None:
        """The history is known to be complete up to a higher revision."""

    def forget(self) -> None:
        """The history's log has evicted batches to free memory."""

    def restart(self) -> None:
        """The history has begun a new generation, or has dropped its view."""

    def note_staleness(self) -> None:
        """The history has become stale or live."""


class Followers(AlwaysTrue):
    """The followers of one history."""

    __slots__ = ("_all", "_awaiting", "_by_key", "_by_prefix", "_lengths")

    def __init__(self) -> None:
        self._all: dict[Follower, None] = {}
        self._awaiting: dict[Follower, None] = {}  # the followers that must know when the tip moves
        self._by_prefix: dict[bytes, dict[Follower, None]] = {}
        self._by_key: dict[bytes, dict[Follower, None]] = {}
        self._lengths: dict[int, int] = {}  # of the prefixes, and how many have this length

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Follower]:
        """Iterate over a copy: a follower may leave meanwhile."""
        return iter(list(self._all))

    def add(self, follower: Follower) -> None:
        """Pass events to *follower* from now on."""
        self._all[follower] = None
        for one in follower.ranges:
            table = self._table(one)
            if one.name not in table:
                table[one.name] = {}
                self._count_length(one, 1)
            table[one.name][follower] = None

    def discard(self, follower: Follower) -> None:
        """Pass nothing to *follower* any more. Idempotent."""
        if follower not in self._all:
            return
        del self._all[follower]
        self._awaiting.pop(follower, None)
        for one in follower.ranges:
            table = self._table(one)
            del table[one.name][follower]
            if not table[one.name]:
                del table[one.name]
                self._count_length(one, -1)

    def publish(self, batch: Batch, now: float) -> None:
        """Pass *batch* on: to each follower the events in its ranges, and nothing if there is none."""
        found: dict[Follower, list[Event]] = {}
        for event in batch.events:
            for follower in self._of(event.key):
                found.setdefault(follower, []).append(event)
        for follower, events in found.items():
            follower.publish(Batch(batch.revision, events, shared=True), now)
        self.advance(now)

    def await_tip(self, follower: Follower, *, wanted: bool) -> None:
        """Set whether *follower* must know when the tip moves. All others look when they need the tip."""
        if wanted and follower in self._all:
            self._awaiting[follower] = None
        else:
            self._awaiting.pop(follower, None)

    def advance(self, now: float) -> None:
        """See ``Follower``: tell the followers that await the tip."""
        for follower in list(self._awaiting):
            follower.advance(now)

    def forget(self) -> None:
        """See ``Follower``."""
        for follower in self:
            follower.forget()

    def restart(self) -> None:
        """See ``Follower``."""
        for follower in self:
            follower.restart()

    def note_staleness(self) -> None:
        """See ``Follower``."""
        for follower in self:
            follower.note_staleness()

    def _table(self, one: KeyRange) -> dict[bytes, dict[Follower, None]]:
        return self._by_prefix if one.kind == "prefix" else self._by_key

    def _count_length(self, one: KeyRange, change: int) -> None:
        if one.kind == "prefix":
            count = self._lengths.pop(len(one.name), 0) + change
            if count:
                self._lengths[len(one.name)] = count

    def _of(self, key: bytes) -> Iterator[Follower]:
        for length in self._lengths:
            if length <= len(key):
                yield from self._by_prefix.get(key[:length], ())
        yield from self._by_key.get(key, ())
