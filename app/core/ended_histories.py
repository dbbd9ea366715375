"""The histories of etcd that a restore has ended, and the cursors that may belong to one of them.

A restore that keeps the cluster's id counts the same revisions again, for other events. A cursor is only a revision of
its cluster, so up to the highest revision of an ended history nothing tells a cursor of that history from one of the
present history. Such a cursor is never resumed. The price is a ``reset`` for a client that has a cursor of the present
history, and reconnects before etcd has passed that revision.
"""

from __future__ import annotations


class EndedHistories:
    """See the module. All feeds of a process share one object: a feed ends, and the client's cursor stays."""

    def __init__(self) -> None:
        self._revisions: dict[int, int] = {}  # by the cluster's id: another cluster's cursors have another epoch

    def note(self, cluster_id: int, revision: int) -> None:
        """Record that a history has ended, which may have reached *revision*."""
        self._revisions[cluster_id] = max(revision, self.revision(cluster_id))

    def revision(self, cluster_id: int) -> int:
        """Return the highest revision that an ended history may have reached; 0 if none has ended."""
        return self._revisions.get(cluster_id, 0)
