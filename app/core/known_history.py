"""What a gateway that follows other gateways knows of etcd's history, and when that proves a restore."""

from __future__ import annotations

import math
from dataclasses import replace

from .witnessed_history import HistoryProgress, WitnessedHistory

NOTHING = HistoryProgress(0, 0, 0)


class KnownHistory:
    """The highest progress that any gateway above has reported, and when it was known.

    A report proves a restore if its first read found less than was known before that read began. Gateways lag behind
    each other, so a report whose read may have begun earlier proves nothing. After a proof, such a report counts for
    nothing: it may be of the ended history, from a gateway that has not noticed.
    """

    def __init__(self) -> None:
        self.highest = NOTHING
        self._reported: WitnessedHistory | None = None  # the last report that counts
        self._cluster_id = 0
        self._known_since = -math.inf  # when ``highest`` was known, in monotonic seconds
        self._began_before = -math.inf  # when the read began that has proven the last restore

    def take(self, report: WitnessedHistory, now: float) -> int | None:
        """Take a report that came at *now*. Return the highest revision of the history that it proves to have ended.

        None if it proves nothing. After a proof, the report's history is the known one.
        """
        highest, same_cluster = self.highest, report.cluster_id == self._cluster_id
        if same_cluster and report.first_at < self._began_before:
            return None
        ended = same_cluster and report.first_at > self._known_since and report.first.fell_below(highest)
        self._reported = report
        if ended or not same_cluster:
            self._cluster_id, self.highest, self._known_since = report.cluster_id, report.highest, now
            self._began_before = report.first_at if ended else -math.inf
        elif (risen := highest.raised_to(report.highest)) != highest:
            self.highest, self._known_since = risen, now
        return highest.revision if ended else None

    def witnessed(self) -> WitnessedHistory | None:
        """Return what to report to gateways below; None while nothing is known."""
        return replace(self._reported, highest=self.highest) if self._reported is not None else None
