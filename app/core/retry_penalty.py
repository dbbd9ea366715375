"""How long the clients that were too slow must stay away."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from .always_true import AlwaysTrue


@dataclass(frozen=True, slots=True)
class Offence:
    """How often a client was too slow lately, and until when it must stay away."""

    count: int
    until: float


class RetryPenalty(AlwaysTrue):
    """The clients that were too slow lately, and how often. The memory is bounded, and forgets.

    The penalty only sets the ``retry_ms`` of a stream that is closed. The gateway refuses no client for it: behind a
    proxy or a NAT, one address stands for many clients.

    Args:
        first, cap: the wait after the first time, and the longest (milliseconds).
        forget: seconds after a wait in which one time is forgotten.
        size: how many clients are remembered; the least recent are dropped first.
    """

    def __init__(self, *, first: int = 5_000, cap: int = 300_000, forget: float = 300.0, size: int = 4096) -> None:
        self._first = first
        self._cap = cap
        self._forget = forget
        self._size = size
        self._offences: OrderedDict[Hashable, Offence] = OrderedDict()

    def __len__(self) -> int:
        return len(self._offences)

    def add(self, who: Hashable, now: float, draw: float) -> int:
        """Record that *who* was too slow. Return the milliseconds to stay away: twice as many each time.

        A quarter of the wait is random (*draw* is uniform in [0, 1)), so that clients that were cut off together spread
        out. Each wait is still longer than the one before, up to the cap.
        """
        old = self._offences.pop(who, None)
        count = 1
        if old is not None:
            forgotten = int(max(0.0, now - old.until) / self._forget)
            count += max(0, old.count - forgotten)
        # Count no further than the cap needs, so that a client that was slow all day is not penalised for ever.
        count = min(count, 1 + max(0, (self._cap // self._first).bit_length()))
        wait = int(min(self._cap, self._first << (count - 1)) * (0.75 + 0.25 * draw))
        self._offences[who] = Offence(count, now + wait / 1000)
        while len(self._offences) > self._size:
            self._offences.popitem(last=False)
        return wait
