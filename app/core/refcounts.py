"""Who holds which range: reference counts, and the linger of those that nobody holds.

Must live here: when a feed starts, lingers, is revived, and ends. Must not: feeds, tasks, timers.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from .sized import Sized

K = TypeVar("K", bound=Hashable)


class Acquired(Enum):
    """What an ``acquire`` found."""

    STARTED = "started"  # start a feed
    JOINED = "joined"  # others hold it
    REVIVED = "revived"  # it lingered: stop its timer


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts at one moment."""

    held: int
    lingering: int
    holders: int


class RefCounts(Sized, Generic[K]):
    """Counts per key; a key with count 0 lingers, in the order in which they began to."""

    def __init__(self) -> None:
        self._held: dict[K, int] = {}
        self._lingering: dict[K, None] = {}

    def __len__(self) -> int:
        """Keys that have a feed."""
        return len(self._held) + len(self._lingering)

    def __contains__(self, key: K) -> bool:
        return key in self._held or key in self._lingering

    def count(self, key: K) -> int:
        """Holders of *key*."""
        return self._held.get(key, 0)

    def acquire(self, key: K) -> Acquired:
        """One more holder."""
        if key in self._held:
            self._held[key] += 1
            return Acquired.JOINED
        self._held[key] = 1
        if key in self._lingering:
            del self._lingering[key]
            return Acquired.REVIVED
        return Acquired.STARTED

    def release(self, key: K) -> bool:
        """One holder less; True when it was the last and the key begins to linger.

        Raises:
            KeyError: nobody holds it.
        """
        if self._held[key] > 1:
            self._held[key] -= 1
            return False
        del self._held[key]
        self._lingering[key] = None
        return True

    def expire(self, key: K) -> bool:
        """The linger of *key* is over; True when its feed must stop, False when it was revived meanwhile."""
        if key not in self._lingering:
            return False
        del self._lingering[key]
        return True

    def drop(self, key: K) -> int:
        """The feed of *key* is gone, whoever holds it; how many held it."""
        self._lingering.pop(key, None)
        return self._held.pop(key, 0)

    def oldest_lingering(self) -> K | None:
        """The key that has lingered longest: the first to go when room is needed."""
        return next(iter(self._lingering), None)

    def statistics(self) -> Statistics:
        """Counts now."""
        return Statistics(len(self._held), len(self._lingering), sum(self._held.values()))
