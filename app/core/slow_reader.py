"""How slow a reader may be: one policy for each stream.

Must live here: when a reader is too slow. Must not: when one write is stuck (``stall_timer``), how long the client must
stay away (``retry_penalty``); sockets, tasks, clocks (``app.stream.delivery``); the content of the stream
(``app.core.reader``).

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

# Bytes a second at which a reader must take a snapshot. A 56 kbit/s modem took 7 KiB/s; the slowest mobile networks
# take 16.
MIN_RATE = 16 * 1024
# A reader that the log has outrun this often, without catching up in between, will not catch up.
MAX_LAGS = 3


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
