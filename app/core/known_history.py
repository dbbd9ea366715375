"""What a gateway that follows other gateways knows of etcd's history, and when that proves a restore."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import compress

from .witnessed_history import HistoryProgress, WitnessedHistory

NOTHING = HistoryProgress(0, 0, 0)
NEVER = (-math.inf,) * len(NOTHING)
# For so many seconds after a value was known, a report that may be older or newer than the value is not believed.
# Whoever is asked again meanwhile answers sooner, or nobody can tell the two apart.
PATIENCE = 10.0


class UnclearHistoryError(Exception):
    """A report has less than is known, and its first read began at about the time at which that was known."""

    def __init__(self) -> None:
        super().__init__("not clear yet whether etcd was restored: the upstream's first read found less than is known")


class KnownHistory:
    """The highest progress that any gateway above has reported, and when each value of it was known.

    A report proves a restore if its first read found less than was known before that read began. Gateways lag behind
    each other, so a report whose read began earlier proves nothing. After a proof, such a report counts for nothing: it
    may be of the ended history, from a gateway that has not noticed.
    """

    def __init__(self) -> None:
        self.highest = NOTHING
        self._reported: WitnessedHistory | None = None  # the last report that counts
        self._cluster_id = 0
        self._known_since: tuple[float, ...] = NEVER  # when each value of ``highest`` was known, in monotonic seconds
        self._began_before = -math.inf  # when the read began that has proven the last restore

    def take(self, report: WitnessedHistory, now: float, *, late: float = 0.0) -> int | None:
        """Take a report that came at *now*. Return the highest revision of the history that it proves to have ended.

        None if it proves nothing. After a proof, the report's history is the known one.

        *late*: the report's first read began at most so many seconds after its ``first_at``.

        Raises:
            UnclearHistoryError: ask again. The report may prove a restore, and counts for nothing.
        """
        highest, same_cluster = self.highest, report.cluster_id == self._cluster_id
        if same_cluster and report.first_at < self._began_before:
            return None
        # Since when each value is known that the first read is below.
        fallen = list(compress(self._known_since, report.first.fallen(highest))) if same_cluster else []
        ended = any(report.first_at > since for since in fallen)
        if not ended and self._is_new(report):
            unclear = [since for since in fallen if report.first_at + late >= since]
            if unclear and now - max(unclear) < PATIENCE:
                raise UnclearHistoryError
        self._reported = report
        if ended or not same_cluster:
            self._cluster_id, self.highest, self._known_since = report.cluster_id, NOTHING, NEVER
            self._began_before = report.first_at if ended else -math.inf
        self._rise(report.highest, now)
        return highest.revision if ended else None

    def _is_new(self, report: WitnessedHistory) -> bool:
        """Whether the report is of another connection to etcd than the last one, whose first read was judged."""
        return self._reported is None or report.first != self._reported.first

    def _rise(self, progress: HistoryProgress, now: float) -> None:
        risen = self.highest.raised_to(progress)
        compared = zip(risen, self.highest, self._known_since, strict=True)
        self._known_since = tuple(now if new > known else since for new, known, since in compared)
        self.highest = risen

    def witnessed(self) -> WitnessedHistory | None:
        """Return what to report to gateways below; None while nothing is known."""
        return replace(self._reported, highest=self.highest) if self._reported is not None else None
