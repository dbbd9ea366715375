"""A feed's history of its range, as readers see it: the view, the log, and whether new readers may join.

Must live here: everything that a reader needs of a feed. Must not: when the history is proven or ends (``feed``), how
older history is read for old cursors (``backfill``).
"""

from __future__ import annotations

from .ended_histories import EndedHistories
from .events import Batch
from .followers import Followers
from .log import Bounds, Log, MayKeep, keep_all
from .proof import Anchor
from .reasons import ResetReason
from .snapshot import Snapshot
from .staleness import Outage
from .view import View


class History:
    """See the module. Readers look at it; the feed and the backfill change it.

    Args:
        ended: the histories that the process knows to have ended. The default is for a process of one feed.
    """

    def __init__(self, bounds: Bounds, ended: EndedHistories | None = None) -> None:
        self.log = Log(bounds)
        self._ended = ended if ended is not None else EndedHistories()
        self.view: View | None = None
        # The view was dropped to free memory; the next one is not read yet.
        self.view_reclaimed = False
        self.cluster_id = 0
        # Since when (seconds since 1970) etcd has not proven that the history is current; None while it is live.
        self.stale_since: float | None = None
        self.outage: Outage | None = None  # the last time in which the history was stale
        # Why the log's generation began: the reason that readers of an older generation receive.
        self.reason: ResetReason = "initial"
        # Why this history is not known to continue. None while it does. While a reason is set, new readers do not
        # receive the view. The next generation begins with this reason.
        self.unproven: ResetReason | None = None
        # The number of histories that have ended. A cursor that came before the last end belongs to an ended history.
        self.restores = 0
        # The revision of the last snapshot. The watch may repeat events up to it.
        self.snapshot_revision = 0
        # The newest revision whose events are known; None if there is none.
        self.anchor: Anchor | None = None
        # A watch that starts at or below this revision meets a message over the limit.
        self.oversized_revision = 0
        self.compacted = 0  # the greatest compaction revision that etcd has reported
        self.events = 0  # the number of events published
        self.followers = Followers()  # the selections that are made from this history
        self._may_keep: MayKeep = keep_all

    # --- for readers -------------------------------------------------------------------------------------------------

    @property
    def joinable(self) -> bool:
        """Whether a new reader may receive the view."""
        return self.view is not None and self.unproven is None

    @property
    def stale(self) -> bool:
        """See ``ReadableHistory``."""
        return self.stale_since is not None

    @property
    def ended_revision(self) -> int:
        """See ``ReadableHistory``."""
        return self._ended.revision(self.cluster_id)

    def covers(self, revision: int) -> bool:
        """Whether the log has all events that a reader at *revision* lacks."""
        return self.log.covers(revision)

    def lacks_since(self, revision: int) -> float | None:
        """See ``ReadableHistory``."""
        arrived_at = self.log.lacks_since(revision)
        return arrived_at if arrived_at is None or self.outage is None else self.outage.oldest(arrived_at)

    def why_ended(self, revision: int) -> ResetReason | None:
        """Return why a cursor at *revision* cannot continue: the reason that ended its history, or ``compacted``.

        None if neither applies. Then the history may still be readable.
        """
        if self.reason != "initial" and revision < self.snapshot_revision:
            return self.reason
        return "compacted" if revision < self.compacted else None

    # --- memory ------------------------------------------------------------------------------------------------------

    @property
    def bytes(self) -> int:
        """Memory that counts for the history."""
        return self.log.bytes + self.log.cached_bytes + (self.view.bytes if self.view is not None else 0)

    @property
    def encoded(self) -> int:
        """Bytes that ``reclaim_encoded`` would free."""
        return self.view.encoded if self.view is not None else 0

    def ask_before_keeping(self, may_keep: MayKeep) -> None:
        """Set the function that is asked before encoded bytes are kept."""
        self._may_keep = self.log.may_keep = may_keep

    def reclaim_encoded(self) -> int:
        """Drop what the view has encoded. Return the bytes freed."""
        return self.view.reclaim() if self.view is not None else 0

    def reclaim_view(self) -> int:
        """Drop the log, and a view that new readers no longer receive. Return the bytes freed.

        The old and the new view of a large range do not fit in memory together. Readers wait meanwhile. The new
        generation begins with a ``reset`` for all of them.
        """
        if self.view is None or self.unproven is None:
            return 0
        freed = self.view.bytes + self.log.clear()
        self.view, self.view_reclaimed = None, True
        self.followers.restart()
        return freed

    def drop(self) -> None:
        """Drop all keys, values and events, because the feed has ended. Its readers send what they have begun."""
        self.view = self.anchor = None
        self.log.clear()

    # --- for the feed ------------------------------------------------------------------------------------------------

    def note_staleness(self, since: float | None, outage: Outage | None) -> None:
        """Record that the history is stale *since* then or, with None, that *outage* has ended. The shell knows."""
        self.stale_since, self.outage = since, outage
        self.followers.note_staleness()

    def note_compacted(self, revision: int) -> None:
        """Record that etcd has compacted up to *revision*. A member that lags reports a lower revision."""
        self.compacted = max(self.compacted, revision)

    def note_restored(self) -> None:
        """Record that the history has ended: its readers have cursors up to the log's tip."""
        self.restores += 1
        self._ended.note(self.cluster_id, self.log.tip)

    def install(self, snapshot: Snapshot, cluster_id: int, *, oversized: bool) -> None:
        """Begin a new generation with *snapshot*. *oversized*: the snapshot replaces a message over the limit."""
        tip = self.log.tip
        self.reason = self.unproven or "initial"
        if self.cluster_id not in (0, cluster_id) or snapshot.revision < tip:
            # A snapshot is linearizable. So etcd was restored, whatever the reason for this snapshot.
            self.reason = "restored"
        if self.reason == "restored":
            # Count the restore again: a client that came while the new history was being read brought a cursor of the
            # old one.
            self.note_restored()
            if self.cluster_id == cluster_id:
                # Other gateways may have followed the old history for longer than this one.
                self._ended.note(cluster_id, snapshot.revision - 1)
        self.unproven = None
        self.cluster_id = cluster_id
        self.view, self.view_reclaimed = View(snapshot, self._may_keep), False
        self.log.restart(snapshot.revision)
        self.snapshot_revision = snapshot.revision
        if oversized or self.reason == "restored":
            self.oversized_revision = snapshot.revision if oversized else 0
        # The oversized revision may be the newest one in the snapshot, so this snapshot gives no anchor.
        self.anchor = None if oversized else _newest(snapshot)
        self.followers.restart()

    def advance(self, revision: int, now: float) -> None:
        """Take trusted progress: the history is complete up to *revision*."""
        if revision > self.log.tip:
            self.log.advance(revision)
            self.followers.advance(now)

    def publish(self, batch: Batch, now: float) -> bool:
        """Publish the next batch. Return False, and change nothing, if *batch* cannot come next in this history."""
        log, view = self.log, self.view
        assert view is not None, "a snapshot comes before the first batch"
        if batch.revision <= log.tip:
            # A watch never goes back, except to repeat what the snapshot covers.
            return batch.revision <= self.snapshot_revision
        if not view.follows(batch):
            return False
        log.append(batch, now)
        view.apply(batch)
        self.anchor = Anchor(batch.revision, batch.events, True, batch.revision)
        self.events += len(batch.events)
        if len(self.followers):
            self.followers.publish(batch, now)
        return True


def _newest(snapshot: Snapshot) -> Anchor | None:
    """Return the newest revision in *snapshot* as an anchor; None if the snapshot is empty."""
    items = snapshot.items
    newest = max((item.mod_revision for item in items), default=0)
    if not newest:
        return None
    return Anchor(newest, [item for item in items if item.mod_revision == newest], False, snapshot.revision)
