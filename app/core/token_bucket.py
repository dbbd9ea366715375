"""Token buckets, one for each name: at most so many tokens at once, and then so many a second.

Must live here: when a token is free, and which buckets are kept. Must not: clocks, and what a token is for.

A bucket is one number: the moment at which the bucket is full again. Each token that is taken moves that moment away by
the time that one token needs to come back (the generic cell rate algorithm of ATM). So a full bucket needs no memory.
"""

from __future__ import annotations

from .always_true import AlwaysTrue

# The maximum number of buckets. At this number the bucket that was used longest ago is forgotten. A client that has
# more addresses than this is not limited by address anyway. One bucket needs about 200 bytes.
MOST_BUCKETS = 65_536


class TokenBuckets(AlwaysTrue):
    """Buckets of *rate* tokens, to which *rate* tokens a second come back.

    A bucket exists while it is not full. A full bucket is forgotten at the latest one second after its last token was
    taken, at the next ``take`` of any name.
    """

    def __init__(self, rate: int, most: int = MOST_BUCKETS) -> None:
        self._interval = 1.0 / rate  # seconds until one token comes back
        self._span = 1.0  # seconds until an empty bucket is full
        self._most = most
        self._full_at: dict[str, float] = {}  # the name that was used longest ago comes first

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, name: str, now: float) -> float:
        """Return the seconds until the bucket of *name* has a token. Takes none."""
        # The tolerance is for the rounding of the sum of intervals: without it, a full bucket lacks its last token.
        excess = self._full_at.get(name, now) + self._interval - self._span - now
        return excess if excess > self._interval * 1e-3 else 0.0

    def take(self, name: str, now: float) -> None:
        """Take a token of *name*. A bucket without a token stays empty: nobody owes tokens."""
        full_at = max(self._full_at.pop(name, now), now) + self._interval
        self._forget(now)
        self._full_at[name] = min(full_at, now + self._span)

    def _forget(self, now: float) -> None:
        """Forget full buckets, and one more if there are too many."""
        while self._full_at:
            oldest = next(iter(self._full_at))
            if self._full_at[oldest] > now and len(self._full_at) < self._most:
                return
            del self._full_at[oldest]
