"""What streams follow: the channel of a selection.

The channel of a single range that etcd is watched for is the ``Feed`` itself. Any other selection has a
``SelectedChannel``: a projection of one feed, or a merge of several.
"""

from __future__ import annotations

from typing import Protocol

from ..core.readable_history import OlderHistory, ReadableHistory
from ..core.selection import Ranges
from ..core.snapshot import Snapshot
from .notifier import Listener, Notifier


class Channel(Protocol):
    """What all subscribers of equal ranges follow."""

    @property
    def ranges(self) -> Ranges:
        """The ranges, canonical."""

    @property
    def watched(self) -> Ranges:
        """The ranges of the feeds that the channel is made from."""

    @property
    def history(self) -> ReadableHistory:
        """What readers see."""

    @property
    def older(self) -> OlderHistory:
        """Reads older history for old cursors."""

    @property
    def notifier(self) -> Notifier:
        """Wakes the readers."""

    @property
    def stale_ranges(self) -> Ranges:
        """The ranges that etcd has not proven current for ``GATEWAY_STALE_AFTER``; empty while all are live."""

    @property
    def stale_since(self) -> float | None:
        """Wall-clock seconds of etcd's last proof for the ranges that are stale; None while all are live."""

    @property
    def trouble(self) -> str:
        """Why the channel is not live; empty if no reason is known."""

    @property
    def denied(self) -> bool:
        """Whether etcd's roles do not let the gateway read all of the ranges, as far as it was last told."""

    @property
    def keys(self) -> int:
        """The number of keys in the view."""

    def want_backfill(self, revision: int) -> bool:
        """Read history back to *revision*, a joiner's cursor below the log's floor. Return whether it can reach it."""

    def await_tip(self, listener: Listener) -> None:
        """Wake *listener* when the tip has moved, until ``ignore_tip``. Meanwhile etcd is asked for progress often.

        A tip that progress moves wakes nobody else.
        """

    def ignore_tip(self, listener: Listener) -> None:
        """Stop waking *listener* for ``await_tip``."""

    def follow_tip(self, listener: Listener) -> None:
        """Wake *listener* when the tip has moved, until ``leave_tip``. Nobody is asked for progress for that."""

    def leave_tip(self, listener: Listener) -> None:
        """Stop waking *listener* for ``follow_tip``. Idempotent."""

    async def linearizable_revision(self) -> int:
        """Return a linearizable revision from a read that began after this call. All waiting readers share the read."""

    async def fresh_snapshot(self, at_least: int) -> Snapshot | None:
        """Return a snapshot at or above *at_least*; None if the read fails, or is out of date. Readers share it."""
