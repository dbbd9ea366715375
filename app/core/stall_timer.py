"""When one write to a client is stuck."""

from __future__ import annotations

# A write is aborted when the client takes nothing for GATEWAY_SEND_TIMEOUT, and in any case after this many timeouts,
# so that a client which takes a byte now and then does not hold buffers for longer.
MAX_SEND_TIMEOUTS = 10


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
