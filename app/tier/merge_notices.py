"""What this gateway tells its upstream of its merges, so that the progress of their quiet ranges comes by itself.

The upstream remembers a merge for a while (``app.watch.merges_below``). So it is told again while the merge waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ..core.errors import GatewayError
from ..core.keys import KeyRange
from ..core.selection import Ranges
from ..ports import Clock, spawn

logger = logging.getLogger("gateway.upstream")

# Seconds after which the upstream is told again of a merge that waits. It remembers a merge for three times as long.
TELL_AGAIN = 10.0
# Seconds until a merge is told again that could not be told. Each change would try again: a root that drains takes no
# connections for GATEWAY_DRAIN_WINDOW, and each refused one costs 0.2 ms.
RETRY = 0.25
# Merges that are told in this time at most. Clients choose the names of their ranges: a merge may have 48 KiB of them.
MOST_MERGES = 1000


class MergeNotices:
    """See the module.

    Args:
        send: tells the upstreams of a merge. Raises GatewayError if one of them cannot be told.
    """

    def __init__(self, send: Callable[[Ranges], Awaitable[None]], clock: Clock) -> None:
        self._send = send
        self._clock = clock
        self._told: dict[Ranges, float] = {}  # merges, and when the upstream was told
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, watched: Ranges) -> None:
        """Tell the upstream of a merge of these ranges, unless it was told lately. Does not wait."""
        now, told = self._clock(), self._told
        while told and now - told[oldest := next(iter(told))] >= TELL_AGAIN:
            del told[oldest]
        if len(watched) < 2 or watched in told or len(told) >= MOST_MERGES:
            return
        told[watched] = now
        task = spawn(self._tell(watched), name="upstream merge", died=lambda _error: None)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, watched: Ranges) -> None:
        try:
            await self._send(watched)
        except GatewayError as error:
            logger.debug("a merge was not told", extra={"reason": str(error)})
            told_at = self._told.get(watched)
            await asyncio.sleep(RETRY)
            if self._told.get(watched) == told_at:  # otherwise it was forgotten, and told again
                self._told.pop(watched, None)

    def forget(self, watched: KeyRange) -> None:
        """Forget the merges that a range is in: a stream of it has opened, and its upstream was told of none."""
        for merge in [merge for merge in self._told if watched in merge]:
            del self._told[merge]

    def cancel(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()
