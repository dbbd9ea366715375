"""Proof that the member we use is in touch with its cluster: linearizable reads, while anybody watches.

Every linearizable read of the process counts. The ``QuorumChecker`` makes one when there was none for a while, so that
there is one at least in every half of GATEWAY_STALE_AFTER. ``app.core.currentness`` decides what a read proves, and
when the next one is due. A member that does not answer one, or whose watches stay below its revision, is given up, and
the upstream goes to the next endpoint.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from aetcd import rpc

from ..core.currentness import Currentness
from ..core.keys import KeyRange
from ..ports import Clock
from .cluster import ForeignClusterError
from .hints import explain
from .link import Link
from .login import REFUSALS, LoginError

logger = logging.getLogger("gateway.etcd")

# Seconds between two tries of one read. A new leader refuses reads for a moment, which is no reason to leave.
PAUSE = 0.5
# Asked for while nobody watches. A user that may not read it is refused only after the member has asked its cluster.
ANY_KEY = b"\0"
CUT_OFF = "the member is cut off from its cluster"


class QuorumWatch(Protocol):
    """A watch as the ``QuorumChecker`` sees it."""

    range: KeyRange
    permitted_at: float | None  # when etcd last said that it may be; None while it is not open


class QuorumChecker:
    """See the module. ``run`` is a task of each link.

    Args:
        watches: those that somebody wants.
        known: the highest (revision, raft term) heard of.
        note: sees the header of every answer, with what was known when it was asked for.
    """

    def __init__(
        self,
        currentness: Currentness,
        watches: Iterable[QuorumWatch],
        known: Callable[[], tuple[int, int]],
        note: Callable[[tuple[int, int], Any], None],
        *,
        clock: Clock,
    ) -> None:
        self._currentness = currentness
        self._watches = watches
        self._known = known
        self._note = note
        self._clock = clock
        self._wake = asyncio.Event()
        self._doubted = False
        self._since: float | None = None  # when reads began to be needed, or when the last one was done without
        self._denied: set[KeyRange] = set()  # open, and yet their keys may not be read; until no other is left
        self.ranges_total = 0

    def watching(self) -> None:
        """Somebody watches: reads are needed from now on."""
        if self._since is None:
            self._since = self._clock()
            self._wake.set()

    def doubt(self) -> None:
        """A read was not answered in time: it was too large, or its member has lost its cluster. Find out."""
        self._doubted = True
        self._wake.set()

    async def run(self, link: Link) -> None:
        """Prove, for as long as the link lives."""
        self._doubted = False
        while not link.failed.done():
            self._wake.clear()
            try:
                async with asyncio.timeout(self._due()):
                    await self._wake.wait()
            except TimeoutError:
                pass
            if self._due() == 0.0:
                self._doubted = False
                if not await self._prove(link) and self._since is not None:
                    self._since = self._clock()
            self._leave_if_behind(link)

    def _due(self) -> float | None:
        """Seconds until the next read; None while nobody needs one."""
        if self._doubted:
            return 0.0
        if next(iter(self._watches), None) is None:
            self._since = None
        return None if self._since is None else self._currentness.due(self._clock(), self._since)

    async def _prove(self, link: Link) -> bool:
        """One read with its revision, in however many tries. A member that answers none is given up."""
        patience = self._currentness.answer_timeout
        deadline = self._clock() + patience
        while not link.failed.done():
            watched = self._choose()
            known, asked_at = self._known(), self._clock()
            request = rpc.RangeRequest(key=ANY_KEY if watched is None else watched.start, count_only=True)
            reason = ""
            self.ranges_total += 1
            try:
                response = await link.range(request, max(PAUSE, deadline - asked_at))
                self._note(known, response.header)
            except (LoginError, ForeignClusterError) as error:
                link.fail(str(error))
                break
            except rpc.AioRpcError as error:
                if error.code() in REFUSALS:
                    # It answers, and asked its cluster first; only the revision is still to be had.
                    if watched is None:
                        break
                    self._denied.add(watched)
                elif error.code() is rpc.StatusCode.DEADLINE_EXCEEDED:
                    reason = f"{CUT_OFF}: no linearizable read in {patience:g} s"
                else:
                    reason = explain(link.endpoint, error)
            else:
                self._currentness.note(asked_at, response.header.revision)
                link.ask_for_progress()
                return True
            if self._clock() + PAUSE >= deadline:
                if reason:
                    link.fail(reason)
                break
            await asyncio.sleep(PAUSE)
        return False

    def _choose(self) -> KeyRange | None:
        """A range whose first key may be read."""
        open_ranges = [watch.range for watch in self._watches if watch.permitted_at is not None]
        self._denied.intersection_update(open_ranges)
        allowed = next((watched for watched in open_ranges if watched not in self._denied), None)
        if allowed is None and open_ranges:
            self._denied.clear()
            return open_ranges[0]
        return allowed

    def _leave_if_behind(self, link: Link) -> None:
        """Reads and watches may go to two members, behind one name: then the watches' own may be the one cut off."""
        reading = self._currentness.overdue(self._clock())
        if reading is None:
            return
        for stream in link.pool.streams:
            if stream.stands_still(reading.revision, reading.asked_at):
                link.fail(f"{CUT_OFF}: its watches stand at {stream.revision}, the cluster was at {reading.revision}")
                return
