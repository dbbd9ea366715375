"""Delays between tries: exponential, capped, with full jitter, from a number that is passed in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """``delay(attempt, draw)`` in seconds. ``draw`` is uniform in [0, 1)."""

    first: float = 0.05
    cap: float = 2.0

    def delay(self, attempt: int, draw: float) -> float:
        """The wait before try number *attempt* (from 0): half of it fixed, half drawn, so a herd spreads out."""
        ceiling = min(self.cap, self.first * 2.0 ** min(attempt, 32))
        return ceiling * (0.5 + 0.5 * draw)
