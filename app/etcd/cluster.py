"""Which cluster the gateway follows, and how far its history is known. Every answer of etcd is compared with both.

A linearizable revision or raft term below the highest one known when the read began means that the history has been
replaced: etcd was restored, and every feed is notified.

A different cluster id alone does not prove a restore. The endpoint may lead to the wrong cluster: the list of endpoints
is wrong, or a name or address was reassigned. Such an endpoint must not replace every client's mirror with other data,
and the gateway must not alternate between two clusters. So the endpoint is skipped. The gateway accepts that another
cluster has replaced its own only after no member of its own was available for a while.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from ..core.ended_histories import EndedHistories
from ..core.witnessed_history import HistoryProgress, WitnessedHistory
from ..ports import Clock

logger = logging.getLogger("gateway.etcd")


class ForeignClusterError(ConnectionError):
    """An answer came from a cluster that the gateway does not follow. Nothing in the answer may be used."""


class Cluster:
    """See the module.

    Args:
        replace_after: seconds without an answer of our cluster after which another cluster may replace it.
    """

    def __init__(self, *, replace_after: float, clock: Clock) -> None:
        self._replace_after = replace_after
        self._clock = clock
        self._seen_at = -math.inf
        self._restored: list[Callable[[], None]] = []
        self.ended = EndedHistories()
        # The number of histories that this process has seen end.
        self.replaced = 0
        self.id = 0
        # The highest values known in this history.
        self.revision = 0
        self.term = 0
        # The highest raft index that any member has reported as applied.
        self.applied = 0
        # What the first read of the present connection found, and when that read began; None before the first answer.
        self._first: tuple[HistoryProgress, float] | None = None

    @property
    def highest(self) -> HistoryProgress:
        """The highest values known in this history."""
        return HistoryProgress(self.revision, self.term, self.applied)

    @property
    def known(self) -> tuple[int, int]:
        """The highest known (revision, raft term)."""
        return self.revision, self.term

    @property
    def witnessed(self) -> WitnessedHistory | None:
        """What the gateway has seen of the present history; None while it knows no connection or no cluster."""
        if self._first is None or not self.id:
            return None
        return WitnessedHistory(self.id, *self._first, self.highest)

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Call *callback* whenever etcd's history turns out to have been replaced."""
        self._restored.append(callback)

    def note(self, header: Any) -> None:
        """Take note of the header of any answer.

        Raises:
            ForeignClusterError: the answer comes from another cluster.
        """
        if header.cluster_id:
            if not self.id:
                self.id = header.cluster_id
            if header.cluster_id != self.id:
                raise ForeignClusterError(self._foreign(header))
            self._seen_at = self._clock()
        self.revision = max(self.revision, header.revision)

    def note_linearizable(self, before: tuple[int, int], header: Any) -> None:
        """Take note of the header of a linearizable answer.

        *before*: the highest (revision, term) that was known when the read began. Neither can have fallen since, unless
        etcd was restored. Raises as ``note``.
        """
        highest = self.revision
        # Another answer has shown the restore already, of several that the reads of that moment bring.
        noticed = highest < before[0] or self.term < before[1]
        self.note(header)
        if not noticed and (header.revision < before[0] or header.raft_term < before[1]):
            logger.warning(
                "etcd's history went back: etcd was restored", extra={"revision": header.revision, "was": before[0]}
            )
            self._end_history(highest, header)
        self.term = max(self.term, header.raft_term)

    def note_applied(self, index: int) -> None:
        """Take note of the raft index that a member has applied; 0 if the member does not report one."""
        self.applied = max(self.applied, index)

    def compare_first(
        self, before: HistoryProgress, header: Any, *, applied: int, committed: int, asked_at: float
    ) -> None:
        """Compare what a new connection has found first, by a linearizable read, with what was known *before* the read.

        *header*: of the answer; None if the gateway's user may make no call that tells how far the history has come.
        *applied*, *committed*: the member's raft indexes *after* the read; 0 if the member does not report them.
        *asked_at*: when the read began.

        After the read, the member has committed everything that any member had applied before. A restore begins a new
        raft log, so the index also reveals a restore whose revision has already passed ours. A feed that knows no event
        of its range has no other sign of such a restore.

        A member that has caught up by a snapshot of the raft log reports the applied index and the raft term from
        before the snapshot until it applies its next entry (seen with 3.4.23, 3.5.1 and 3.5.16). So neither proves a
        restore then.
        """
        found = HistoryProgress(0, 0, 0)
        if header is not None:
            found = HistoryProgress(header.revision, header.raft_term, committed)
            if 0 < applied < before.raft_index <= committed:
                found = found._replace(raft_term=0)
            if found.fell_below(before):
                logger.warning(
                    "etcd's history went back: etcd was restored", extra={"is": str(found), "was": str(before)}
                )
                self._end_history(before.revision, header)
            self.term = header.raft_term  # the reads on this connection are compared with it
        self._first = found, asked_at

    def admit(self, header: Any, *, tried_all: bool) -> str | None:
        """Return why a new link's member may not be used; None if it may.

        *tried_all*: the other endpoints were tried too, and none led to our cluster.
        """
        if header is None:
            return None
        if header.cluster_id not in (0, self.id) and self.id:
            if not tried_all or self._clock() - self._seen_at < self._replace_after:
                return self._foreign(header)
            logger.warning(
                "another cluster has taken the place of the one that the gateway followed",
                extra={"was": f"{self.id:x}", "is": f"{header.cluster_id:x}"},
            )
            self.id = header.cluster_id
            self._start_anew(header)
        self.note(header)
        return None

    def _foreign(self, header: Any) -> str:
        return f"the endpoint is a member of another cluster, {header.cluster_id:x}; this gateway follows {self.id:x}"

    def _end_history(self, highest: int, header: Any) -> None:
        """Begin the history of *header*. *highest*: the highest revision that was known of the one before."""
        self.ended.note(self.id, max(highest, header.revision - 1))
        self._start_anew(header)

    def _start_anew(self, header: Any) -> None:
        self.replaced += 1
        self.revision, self.term, self.applied = header.revision, header.raft_term, 0
        for callback in self._restored:
            callback()
