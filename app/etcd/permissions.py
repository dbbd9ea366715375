"""Revoked permissions: etcd checks permissions when a watch is created, and never again.

So a running watch outlives its role, its user, and the password that it was created with (seen on 3.4.23, 3.5.1 and
3.5.16). The gateway therefore audits open watches: it asks KV for their ranges in turn, and cancels a watch whose range
KV denies.
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

# Seconds between two audits, however many watches there are.
PACE = 1.0
# Seconds between two audits of one watch, at least.
INTERVAL = 10.0


class PermittedWatch(Protocol):
    """A watch as the ``PermissionChecker`` sees it."""

    range: KeyRange
    permitted_at: float | None  # when etcd last permitted the watch; None while the watch is not open

    def revoke(self, reason: str) -> None:
        """Cancel the watch at etcd, and notify its owner."""


class Permitted(Protocol):
    """Asks KV. Raises GatewayError if there is no answer."""

    async def __call__(self, watched: KeyRange, *, serializable: bool = False) -> bool:
        """Return whether the gateway may read the range."""


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
        """Audit watches, for ever."""
        while True:
            await asyncio.sleep(PACE)
            watch = self._due()
            if watch is not None:
                try:
                    await self._audit(watch)
                except Exception:
                    logger.exception("audit failed", extra={"range": str(watch.range)})

    def _due(self) -> PermittedWatch | None:
        """Return the watch whose last audit is the oldest, if that audit is old enough."""
        due: PermittedWatch | None = None
        oldest = self._clock() - self._interval
        for watch in self._watches:
            if watch.permitted_at is not None and watch.permitted_at <= oldest:
                due, oldest = watch, watch.permitted_at
        return due

    async def _audit(self, watch: PermittedWatch) -> None:
        asked_at = self._clock()
        try:
            # Ask only the present member first: that costs the other members nothing. A denial ends the watch only if
            # the cluster confirms it.
            permitted = await self._permitted(watch.range, serializable=True) or await self._permitted(watch.range)
        except GatewayError:
            permitted = True  # etcd is out of reach or busy: that says nothing about roles
        finally:
            # Also after a defect. Otherwise this watch would stay the next one to audit, and no other would get a turn.
            if watch.permitted_at is not None:  # the watch was neither cancelled nor moved meanwhile
                watch.permitted_at = asked_at
        if watch.permitted_at is not None and not permitted:
            watch.revoke("etcd no longer permits this watch")
