"""Proof that the present member is in touch with its cluster: linearizable reads, while anybody watches.

Every linearizable read of the process counts. If there was none for a while, the ``QuorumChecker`` makes one, so that
there is at least one in every half of GATEWAY_STALE_AFTER. ``app.core.linearizable_reads`` decides what a read proves,
and when the next read is due. If a member does not answer a read, or its watches stay below the read's revision, the
link fails, and the upstream goes to the next endpoint.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from aetcd import rpc

from ..core.keys import KeyRange
from ..core.linearizable_reads import LinearizableReads
from ..ports import Clock
from .cluster import ForeignClusterError
from .convert import timed_out
from .hints import explain
from .link import Link
from .login import REFUSALS, LoginError

logger = logging.getLogger("gateway.etcd")

# Seconds between two attempts at one read. A new leader refuses reads for a moment; that is not a reason to leave the
# member.
PAUSE = 0.5
# The key to read while nobody watches. If the user may not read the key, the member asks its cluster before it refuses.
ANY_KEY = b"\0"
CUT_OFF = "the member is cut off from its cluster"


class QuorumWatch(Protocol):
    """A watch as the ``QuorumChecker`` sees it."""

    range: KeyRange
    permitted_at: float | None  # when etcd last permitted the watch; None while the watch is not open


class QuorumChecker:
    """See the module. ``run`` is a task of each link.

    Args:
        watches: the watches that somebody wants.
        known: returns the highest known (revision, raft term).
        note: receives what ``known`` returned before each read, and the header of the read's answer.
    """

    def __init__(
        self,
        linearizable_reads: LinearizableReads,
        watches: Iterable[QuorumWatch],
        known: Callable[[], tuple[int, int]],
        note: Callable[[tuple[int, int], Any], None],
        *,
        clock: Clock,
    ) -> None:
        self._linearizable_reads = linearizable_reads
        self._watches = watches
        self._known = known
        self._note = note
        self._clock = clock
        self._wake = asyncio.Event()
        self._due_now = False
        # When reads began to be needed, or when the last read ended without a revision.
        self._since: float | None = None
        # Ranges whose watches are open, although the user may not read their keys. Cleared when no other range is left.
        self._denied: set[KeyRange] = set()
        self.ranges_total = 0

    def watching(self) -> None:
        """Record that somebody watches: reads are needed from now on."""
        if self._since is None:
            self._since = self._clock()
            self._wake.set()

    def check_now(self) -> None:
        """Request a read at once, after a read timed out: it was too large, or the member has lost its cluster."""
        self._due_now = True
        self._wake.set()

    async def run(self, link: Link) -> None:
        """Make each read when it is due, until the link fails."""
        self._due_now = False
        while not link.failed.done():
            self._wake.clear()
            try:
                async with asyncio.timeout(self._due()):
                    await self._wake.wait()
            except TimeoutError:
                pass
            if self._due() == 0.0:
                self._due_now = False
                if not await self._prove(link) and self._since is not None:
                    self._since = self._clock()
            self._leave_if_stalled(link)

    def _due(self) -> float | None:
        """Return the seconds until the next read; None while no read is needed."""
        if self._due_now:
            return 0.0
        if next(iter(self._watches), None) is None:
            self._since = None
        return None if self._since is None else self._linearizable_reads.due(self._clock(), self._since)

    async def _prove(self, link: Link) -> bool:
        """Return whether a read gave a revision, after retries if needed. If no read is answered, the link fails."""
        timeout = self._linearizable_reads.answer_timeout
        deadline = self._clock() + timeout
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
                    # The member answers, and it asked its cluster first. Only the revision is still missing.
                    if watched is None:
                        break
                    self._denied.add(watched)
                elif timed_out(error):
                    reason = f"{CUT_OFF}: no linearizable read in {timeout:g} s"
                else:
                    reason = explain(link.endpoint, error)
            else:
                self._linearizable_reads.note(asked_at, response.header.revision)
                link.ask_for_progress()
                return True
            if self._clock() + PAUSE >= deadline:
                if reason:
                    link.fail(reason)
                break
            await asyncio.sleep(PAUSE)
        return False

    def _choose(self) -> KeyRange | None:
        """Return a watched range whose first key the user may read; None if no watch is open."""
        open_ranges = [watch.range for watch in self._watches if watch.permitted_at is not None]
        self._denied.intersection_update(open_ranges)
        allowed = next((watched for watched in open_ranges if watched not in self._denied), None)
        if allowed is None and open_ranges:
            self._denied.clear()
            return open_ranges[0]
        return allowed

    def _leave_if_stalled(self, link: Link) -> None:
        """Fail the link if its watches stay below a revision that a read has proven.

        Behind one name, reads and watches may go to two members, and the watches' member may be the one that is cut
        off.
        """
        overdue = self._linearizable_reads.overdue(self._clock())
        if overdue is None:
            return
        for stream in link.pool.streams:
            if stream.is_stalled(overdue.revision, overdue.asked_at):
                link.fail(f"{CUT_OFF}: its watches stand at {stream.revision}, the cluster was at {overdue.revision}")
                return
