"""What a reader follows: the present state and the last revisions of a feed, or of a selection.

Must live here: what a reader needs to know of a history. Must not: how the history comes to be (``history``,
``selected_history``).
"""

from __future__ import annotations

from typing import Protocol

from .log import Log
from .reasons import ResetReason
from .view import View


class ReadableHistory(Protocol):
    """The history that a reader follows: a feed's ``History``, or a ``SelectedHistory``."""

    @property
    def log(self) -> Log:
        """The last revisions."""

    @property
    def view(self) -> View | None:
        """The current keys and values; None while they are not known."""

    @property
    def reason(self) -> ResetReason:
        """Why the log's generation began."""

    @property
    def cluster_id(self) -> int:
        """The id of the cluster that the history belongs to."""

    @property
    def restores(self) -> int:
        """The number of histories that have ended."""

    @property
    def ended_revision(self) -> int:
        """The highest revision that an ended history may have reached: a cursor up to it may belong to that history."""

    @property
    def joinable(self) -> bool:
        """Whether a new reader may receive the view."""

    @property
    def stale(self) -> bool:
        """Whether etcd has not proven for a while that the history is current."""

    def lacks_since(self, revision: int) -> float | None:
        """Return since when a reader at *revision* may lack something, by the log's clock; None if it has everything.

        That is when the oldest batch arrived that the reader lacks. If the history was stale then, the batch may be as
        old as the last proof. Minus infinity if the log has evicted that batch.
        """

    def covers(self, revision: int) -> bool:
        """Whether the log has all events that a reader at *revision* lacks."""


class OlderHistory(Protocol):
    """Reads older history of a feed for old cursors (``backfill``)."""

    def promises(self, revision: int) -> bool:
        """Whether a reader at *revision*, below the log's floor, may be served when the read is complete."""

    def why_not(self, revision: int) -> ResetReason:
        """Return why a cursor at *revision*, below the log's floor, cannot be served."""
