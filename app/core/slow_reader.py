"""How slow a reader may be.

There is a ``SlowReaderPolicy`` for each stream, a ``StallTimer`` for each write, and one ``RetryPenalty`` in the
process for the clients that were too slow.

Must live here: when a reader is too slow, when it is stuck, and how long it must stay away. Must not: sockets, tasks,
clocks (``app.stream.delivery``); the content of the stream (``app.core.reader``).

Theory of operation
    A reader may be slower than its feed for any length of time while the log covers its position: that costs the others
    nothing. Snapshots do cost something. A reader that never reaches the end of a snapshot, or that is always reset
    again before it has caught up, would be sent snapshots for ever. So a reader must take a snapshot at a minimum rate,
    with one pause forgiven, and may need only a limited number of them in a row. The same rate holds for a flush of
    ``mode=latest`` whose events the log has evicted: only its readers hold them, outside every budget.

    Only seconds spent writing count: those in which the gateway waited for the reader. Time in which the reader waited
    for etcd, or for its turn after a thousand others, does not count against the reader.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from .always_true import AlwaysTrue

# Bytes a second at which a reader must take a snapshot. A 56 kbit/s modem took 7 KiB/s; the slowest mobile networks
# take 16.
MIN_RATE = 16 * 1024
# A reader that the log has outrun this often, without catching up in between, will not catch up.
MAX_LAGS = 3
# A write is aborted when the client takes nothing for GATEWAY_SEND_TIMEOUT, and in any case after this many timeouts,
# so that a client which takes a byte now and then does not hold buffers for longer.
MAX_SEND_TIMEOUTS = 10


class SlowReaderPolicy:
    """Whether one stream's reader is fast enough.

    Args:
        pause: seconds without taking anything that are forgiven in each snapshot, and in each flush.
        min_rate: bytes a second at which a snapshot or a flush must be taken; 0 turns this off.
    """

    __slots__ = ("_in_flush", "_in_snapshot", "_lags", "_min_rate", "_pause", "_taken", "_waited")

    def __init__(self, pause: float = 30.0, min_rate: int = MIN_RATE) -> None:
        self._pause = pause
        self._min_rate = min_rate
        self._in_flush = self._in_snapshot = False
        self._taken = 0
        self._waited = 0.0
        self._lags = 0

    @property
    def too_slow(self) -> bool:
        """Whether the stream must be closed because its reader is too slow."""
        if self._lags >= MAX_LAGS:
            return True
        if not self._min_rate or not (self._in_snapshot or self._in_flush):
            return False
        return self._waited > self._pause + self._taken / self._min_rate

    @property
    def after_a_reset(self) -> bool:
        """Whether the reader was reset and has not caught up since.

        If the stream ends now, everything that it has cost was in vain.
        """
        return self._in_snapshot or self._lags > 0

    @property
    def at_rest(self) -> bool:
        """Whether a new policy would find the same from now on."""
        return not (self._in_snapshot or self._in_flush or self._lags)

    def begin_snapshot(self) -> None:
        """Record that a snapshot is about to be written."""
        self._in_snapshot, self._taken, self._waited = True, 0, 0.0

    def end_snapshot(self) -> None:
        """Record that the whole snapshot was handed out; the log follows."""
        self._in_snapshot = False

    def begin_flush(self) -> None:
        """Record that a flush is about to be written."""
        self._in_flush, self._taken, self._waited = True, 0, 0.0

    def end_flush(self) -> None:
        """Record that the whole flush was handed out."""
        self._in_flush = False

    def wrote(self, size: int, seconds: float) -> None:
        """Record that a write of *size* bytes took so many seconds."""
        self._taken += size
        self._waited += seconds

    def lag(self) -> None:
        """Record that the log has outrun the reader."""
        self._lags += 1

    def catch_up(self) -> None:
        """Record that the reader has been handed everything."""
        self._lags = 0


class StallTimer:
    """Decides whether one write that the client does not take at once is aborted.

    Args:
        send_timeout: seconds in which the client must take something.
        unacked_bytes: bytes that the client has not acknowledged.
    """

    __slots__ = ("_idle", "_send_timeout", "_unacked_bytes", "_waited")

    def __init__(self, send_timeout: float, unacked_bytes: int) -> None:
        self._send_timeout = send_timeout
        self._unacked_bytes = unacked_bytes
        self._idle = 0.0
        self._waited = 0.0

    def ends(self, unacked_bytes: int, seconds: float) -> bool:
        """Whether the write must be aborted, *seconds* after the last call."""
        self._waited += seconds
        self._idle = 0.0 if unacked_bytes < self._unacked_bytes else self._idle + seconds
        self._unacked_bytes = unacked_bytes
        # A thousandth less than the timeout: seconds that add up to the timeout reach it, however they were rounded.
        return max(self._idle, self._waited / MAX_SEND_TIMEOUTS) > 0.999 * self._send_timeout


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
