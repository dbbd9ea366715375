"""A clock that nobody sets, and that goes on while the machine sleeps."""

from __future__ import annotations

import time

# Linux' monotonic clock stands still while the machine sleeps, and so does `time.monotonic` of macOS. A mirror that
# measures silence by them would be live after a night without a stream. The monotonic clock of Windows goes on.
_ASLEEP = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def now() -> float:
    """Return the clock's seconds."""
    return time.monotonic() if _ASLEEP is None else time.clock_gettime(_ASLEEP)
