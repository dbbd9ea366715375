"""Revoked permissions: etcd asks for a permission when a watch is created, and never again.

So a running watch outlives its role, its user, and the password it came with (seen on 3.4.23, 3.5.1 and 3.5.16). Open
watches are audited: KV is asked for their ranges in turn, and a watch whose range KV denies is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from ..core.errors import GatewayError
from ..core.keys import KeyRange
from ..ports import Clock

logger = logging.getLogger("gateway.etcd")

# Seconds between two questions, however many watches there are.
PACE = 1.0
# Seconds between two questions for one range, at least.
INTERVAL = 10.0


class PermittedWatch(Protocol):
    """A watch as the ``PermissionChecker`` sees it."""

    range: KeyRange
    permitted_at: float | None  # when etcd last said that it may be; None while it is not open

    def revoke(self, reason: str) -> None:
        """Cancel it at etcd, and say so to whom it belongs."""


class Permitted(Protocol):
    """Asks KV; raises GatewayError when there is no answer."""

    async def __call__(self, watched: KeyRange, *, serializable: bool = False) -> bool:
        """Whether the range may be read."""


class PermissionChecker:
    """See the module. ``run`` must be a task."""

    def __init__(
        self, watches: Iterable[PermittedWatch], permitted: Permitted, *, interval: float, clock: Clock
    ) -> None:
        self._watches = watches
        self._permitted = permitted
        self._interval = max(PACE, min(INTERVAL, interval))
        self._clock = clock

    async def run(self) -> None:
        """Ask, for ever."""
        while True:
            await asyncio.sleep(PACE)
            watch = self._due()
            if watch is not None:
                try:
                    await self._audit(watch)
                except Exception:
                    logger.exception("audit failed", extra={"range": str(watch.range)})

    def _due(self) -> PermittedWatch | None:
        """The watch that was not asked for longest, if that is long enough ago."""
        due: PermittedWatch | None = None
        oldest = self._clock() - self._interval
        for watch in self._watches:
            if watch.permitted_at is not None and watch.permitted_at <= oldest:
                due, oldest = watch, watch.permitted_at
        return due

    async def _audit(self, watch: PermittedWatch) -> None:
        asked_at = self._clock()
        try:
            # Its own member first, which costs nobody else anything; only the cluster's word ends a watch.
            permitted = await self._permitted(watch.range, serializable=True) or await self._permitted(watch.range)
        except GatewayError:
            permitted = True  # etcd is away, or busy: that says nothing about roles
        finally:
            # Also after a defect: the watch would stay the one to be asked for, and no other would have its turn.
            if watch.permitted_at is not None:  # neither let go nor moved meanwhile
                watch.permitted_at = asked_at
        if watch.permitted_at is not None and not permitted:
            watch.revoke("etcd no longer permits it")
