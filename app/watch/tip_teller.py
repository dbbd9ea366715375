"""Tells one stream of a gateway below how far its range is proven, each time that this moves."""

from __future__ import annotations

import asyncio

from .subscriber import Subscriber

# Seconds between two bookmarks of a stream at least. etcd is asked for progress no more often.
PACE = 0.005
# Seconds between two tries at most while the stream cannot say how far it is: it may wait for its state for minutes.
# With a try every PACE, 30 such streams took 4 % of a core.
LONGEST_PAUSE = 0.32


class TipTeller:
    """See the module. ``stop`` releases everything.

    Args:
        stream: of the gateway below.
        until: when it may end, in the loop's time; the caller looks.
    """

    __slots__ = ("_next", "_pause", "_stream", "_timer", "_told", "until")

    def __init__(self, stream: Subscriber, until: float) -> None:
        self._stream = stream
        self.until = until
        self._told = (-1, 0)  # the generation and the revision that the stream knows
        self._next = 0.0
        self._pause = PACE  # before the next try; doubled by each try that fails
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to follow the tip."""
        self._stream.channel.follow_tip(self)

    def stop(self) -> None:
        """Follow the tip no more. Idempotent."""
        self._stream.channel.leave_tip(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wake(self) -> None:
        """See ``Listener``: the tip may have moved."""
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._next:
            self._tell()
        else:
            self._timer = loop.call_at(self._next, self._tell)

    def _tell(self) -> None:
        self._timer = None
        if self._stream.released:
            self.stop()
            return
        log = self._stream.channel.history.log
        reached = (log.generation, log.tip)
        if reached <= self._told:
            return
        if log.last is not None and log.last.revision == log.tip:
            self._told = reached  # the event itself says so
            return
        loop = asyncio.get_running_loop()
        self._next = loop.time() + PACE
        if self._stream.send_bookmark():
            self._told, self._pause = reached, PACE
        else:
            self._timer = loop.call_later(self._pause, self._tell)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
