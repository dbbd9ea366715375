"""Which selections have holders: reference counts, and the linger of selections without holders.

Must live here: when a channel opens, lingers, is revived, and ends. Must not: channels, tasks, timers.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import Generic, TypeVar

from .always_true import AlwaysTrue

K = TypeVar("K", bound=Hashable)


class Acquired(Enum):
    """The result of ``acquire``."""

    STARTED = "started"  # open a channel
    JOINED = "joined"  # the key has other holders
    REVIVED = "revived"  # the key lingered: stop its timer


class RefCounts(AlwaysTrue, Generic[K]):
    """The number of holders of each key. A key without holders lingers; the first to linger comes first."""

    def __init__(self) -> None:
        self._held: dict[K, int] = {}
        self._lingering: dict[K, None] = {}

    def __len__(self) -> int:
        """The number of keys that have a channel."""
        return len(self._held) + len(self._lingering)

    def __contains__(self, key: K) -> bool:
        return key in self._held or key in self._lingering

    def acquire(self, key: K) -> Acquired:
        """Add one holder."""
        if key in self._held:
            self._held[key] += 1
            return Acquired.JOINED
        self._held[key] = 1
        if key in self._lingering:
            del self._lingering[key]
            return Acquired.REVIVED
        return Acquired.STARTED

    def release(self, key: K) -> bool:
        """Remove one holder. Return True if it was the last one, so that the key begins to linger.

        Raises:
            KeyError: *key* has no holder.
        """
        if self._held[key] > 1:
            self._held[key] -= 1
            return False
        del self._held[key]
        self._lingering[key] = None
        return True

    def expire(self, key: K) -> bool:
        """End the linger of *key*. Return True if its channel must end, False if the key was revived meanwhile."""
        if key not in self._lingering:
            return False
        del self._lingering[key]
        return True

    def drop(self, key: K) -> int:
        """Remove *key*, whose channel is gone. Return how many holders it had."""
        self._lingering.pop(key, None)
        return self._held.pop(key, 0)

    def held(self, key: K) -> bool:
        """Whether *key* has a holder."""
        return key in self._held

    def lingering(self) -> list[K]:
        """Return the keys without holders. The one that has lingered longest comes first."""
        return list(self._lingering)

    def oldest_lingering(self) -> K | None:
        """Return the key that has lingered longest: it is evicted first when room is needed."""
        return next(iter(self._lingering), None)
