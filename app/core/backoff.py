"""Delays between retries: exponential, capped, with jitter from a random number that the caller passes in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """The delays of one kind of retry. ``first`` and ``cap`` are seconds."""

    first: float = 0.05
    cap: float = 2.0

    def delay(self, attempt: int, draw: float) -> float:
        """Return the seconds to wait before retry number *attempt* (from 0).

        Half of the delay is fixed and half is random, so that many clients spread out. *draw*: uniform in [0, 1).
        """
        ceiling = min(self.cap, self.first * 2.0 ** min(attempt, 32))
        return ceiling * (0.5 + 0.5 * draw)


# Of a watch that is denied: somebody has to grant the permission first. The first retries come as soon as others: a
# user or a token may just have been changed.
DENIED = Backoff(cap=5.0)
