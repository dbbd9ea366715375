"""How slow a reader may be: a ``SlowReaderPolicy`` for each stream, a ``StallTimer`` for each write, and the process's
``RetryPenalty`` for those who were too slow.

Must live here: when a reader is too slow, when it is stuck, and how long it is told to stay away. Must not: sockets,
tasks, clocks (``app.stream.delivery``); what it is sent (``app.core.reader``).

Theory of operation
    A reader may be slower than its feed for as long as it likes while the log covers it: it costs the others nothing.
    What costs is the state: one that never gets to the end of it, or is always reset again before it has caught up,
    would be sent snapshots for ever. So a snapshot must be taken at a minimum rate, with a pause forgiven, and only
    so many may be needed in a row.

    Only seconds spent writing count: those in which the gateway waited for the reader. What the reader waited for etcd,
    or for its turn behind a thousand others, is not held against it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from .sized import Sized

# Bytes a second that a state must be taken at: 56 kbit/s modems had 7 KiB/s, the slowest mobile networks have 16.
MIN_RATE = 16 * 1024
# A reader that the log outran so many times, without having caught up between, will not catch up.
MAX_LAGS = 3
# A write is given up when nothing is taken for GATEWAY_SEND_TIMEOUT, and after so many times that in any case: one who
# takes a byte now and then holds buffers for no longer.
MAX_SEND_TIMEOUTS = 10


class SlowReaderPolicy:
    """Whether one stream's reader is fast enough.

    Args:
        pause: seconds without taking anything that are forgiven, in each snapshot.
        min_rate: bytes a second that a snapshot must be taken at; 0 is off.
    """

    __slots__ = ("_in_snapshot", "_lags", "_min_rate", "_pause", "_taken", "_waited")

    def __init__(self, pause: float = 30.0, min_rate: int = MIN_RATE) -> None:
        self._pause = pause
        self._min_rate = min_rate
        self._in_snapshot = False
        self._taken = 0
        self._waited = 0.0
        self._lags = 0

    @property
    def too_slow(self) -> bool:
        """Whether it is to be closed for that."""
        if self._lags >= MAX_LAGS:
            return True
        return self._in_snapshot and bool(self._min_rate) and self._waited > self._pause + self._taken / self._min_rate

    @property
    def behind_a_reset(self) -> bool:
        """Whether it was reset and has not caught up since: what its stream has cost was in vain if it ends now."""
        return self._in_snapshot or self._lags > 0

    def begin_snapshot(self) -> None:
        """A state is about to be written."""
        self._in_snapshot, self._taken, self._waited = True, 0, 0.0

    def end_snapshot(self) -> None:
        """All of it was handed out: the log comes after it."""
        self._in_snapshot = False

    def wrote(self, size: int, seconds: float) -> None:
        """A write of *size* bytes took so long."""
        self._taken += size
        self._waited += seconds

    def lag(self) -> None:
        """The log has outrun it."""
        self._lags += 1

    def catch_up(self) -> None:
        """It has been handed all that there is."""
        self._lags = 0


class StallTimer:
    """With one write that is not taken at once: whether it is given up.

    Args:
        send_timeout: seconds in which something must be taken.
        unacked_bytes: bytes that are not taken yet.
    """

    __slots__ = ("_idle", "_send_timeout", "_untaken", "_waited")

    def __init__(self, send_timeout: float, unacked_bytes: int) -> None:
        self._send_timeout = send_timeout
        self._untaken = unacked_bytes
        self._idle = 0.0
        self._waited = 0.0

    def ends(self, unacked_bytes: int, seconds: float) -> bool:
        """Look again, *seconds* after the last time."""
        self._waited += seconds
        self._idle = 0.0 if unacked_bytes < self._untaken else self._idle + seconds
        self._untaken = unacked_bytes
        # A thousandth less: looks that add up to the time-out are it, however they were rounded.
        return max(self._idle, self._waited / MAX_SEND_TIMEOUTS) > 0.999 * self._send_timeout


@dataclass(frozen=True, slots=True)
class Offence:
    """How often lately, and until when it was told to stay away."""

    count: int
    until: float


class RetryPenalty(Sized):
    """The clients that were too slow lately, and how often: a bounded memory that forgets.

    It only says what ``retry_ms`` a stream that is closed carries. Nobody is refused for it: behind a proxy, or a NAT,
    one address is many clients.

    Args:
        first, cap: the wait after the first time, and the longest (milliseconds).
        forget: seconds after a wait in which one time is forgotten.
        size: how many are remembered; the least recent go first.
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
        """*who* was too slow, again perhaps: the milliseconds to stay away, each time twice as many.

        A quarter of it is drawn (*draw* is uniform in [0, 1)), so that those who were cut off together spread out, and
        still each wait is longer than the one before, up to the cap.
        """
        old = self._offences.pop(who, None)
        count = 1
        if old is not None:
            forgotten = int(max(0.0, now - old.until) / self._forget)
            count += max(0, old.count - forgotten)
        # Counted no further than what the cap makes of it: a client that was slow all day is not slow for ever.
        count = min(count, 1 + max(0, (self._cap // self._first).bit_length()))
        wait = int(min(self._cap, self._first << (count - 1)) * (0.75 + 0.25 * draw))
        self._offences[who] = Offence(count, now + wait / 1000)
        while len(self._offences) > self._size:
            self._offences.popitem(last=False)
        return wait
