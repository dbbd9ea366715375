"""What a feed knows of its range's history, as readers see it: the view, the log, and whether these may be joined.

Must live here: everything that a reader needs of a feed. Must not: when the history is proven or ends (``feed``), how
more of it is read for old cursors (``backfill``).
"""

from __future__ import annotations

from .events import Batch
from .log import Bounds, Log, MayKeep, keep_all
from .proof import Anchor
from .reasons import ResetReason
from .snapshot import Snapshot
from .view import View


class History:
    """See the module. Readers look at it; the feed and the backfill change it."""

    def __init__(self, bounds: Bounds) -> None:
        self.log = Log(bounds)
        self.view: View | None = None
        # There was a view; it is gone until the next one is read.
        self.view_reclaimed = False
        self.cluster_id = 0
        # Why the log's generation began: what a reader of an older one is told.
        self.reason: ResetReason = "initial"
        # Why it is not proven that this history goes on: nobody new is given the view, and the next generation begins
        # for this reason. None: all is well.
        self.unproven: ResetReason | None = None
        # How many histories it has known to end: a cursor that came before the last did is of an ended one.
        self.restores = 0
        self.snapshot_revision = 0  # of the last snapshot: up to it a watch may repeat what the snapshot holds
        # The newest revision whose events are known; None where nothing is.
        self.anchor: Anchor | None = None
        # A watch that starts at or below this revision meets a message over the limit.
        self.oversized_revision = 0
        self.compacted = 0  # the greatest compaction revision that etcd has told us of
        self.events = 0  # that were published
        self._may_keep: MayKeep = keep_all

    # --- for readers -------------------------------------------------------------------------------------------------

    @property
    def joinable(self) -> bool:
        """Whether a joiner may be given what the view holds."""
        return self.view is not None and self.unproven is None

    def why_ended(self, revision: int) -> ResetReason | None:
        """Why a cursor at *revision* has no history to go on with: what ended that history, or etcd has compacted it.

        None when neither is so: then the history could be read.
        """
        if self.reason != "initial" and revision < self.snapshot_revision:
            return self.reason
        return "compacted" if revision < self.compacted else None

    # --- memory ------------------------------------------------------------------------------------------------------

    @property
    def bytes(self) -> int:
        """Memory it is counted with."""
        return self.log.bytes + self.log.passing + (self.view.bytes if self.view is not None else 0)

    @property
    def encoded(self) -> int:
        """Bytes that ``reclaim_encoded`` gives back."""
        return self.view.encoded if self.view is not None else 0

    def ask_before_keeping(self, may_keep: MayKeep) -> None:
        """Have *may_keep* asked before anything encoded is kept."""
        self._may_keep = self.log.may_keep = may_keep

    def reclaim_encoded(self) -> int:
        """Drop what the view has encoded; bytes given back."""
        return self.view.reclaim() if self.view is not None else 0

    def reclaim_view(self) -> int:
        """Drop a view that nobody new is given any more, and its log; bytes given back.

        Both views of a large range do not fit the memory. Readers wait then: the new generation begins with a ``reset``
        for all of them.
        """
        if self.view is None or self.unproven is None:
            return 0
        given = self.view.bytes + self.log.clear()
        self.view, self.view_reclaimed = None, True
        return given

    # --- for the feed ------------------------------------------------------------------------------------------------

    def note_compacted(self, revision: int) -> None:
        """etcd says that it has compacted up to *revision*. A member that lags says less."""
        self.compacted = max(self.compacted, revision)

    def install(self, snapshot: Snapshot, cluster_id: int, *, oversized: bool) -> None:
        """Begin a new generation with *snapshot*. *oversized*: it stands for a message over the limit."""
        tip = self.log.tip
        self.reason = self.unproven or "initial"
        if self.cluster_id not in (0, cluster_id) or snapshot.revision < tip:
            # A snapshot is linearizable: etcd was restored, whatever made us take it.
            self.reason = "restored"
        # Once more: who came while the new history was being read came with a cursor of the old one.
        self.restores += self.reason == "restored"
        self.unproven = None
        self.cluster_id = cluster_id
        self.view, self.view_reclaimed = View(snapshot, self._may_keep), False
        self.log.restart(snapshot.revision)
        self.snapshot_revision = snapshot.revision
        if oversized or self.reason == "restored":
            self.oversized_revision = snapshot.revision if oversized else 0
        # What did not fit may be the snapshot's very newest revision.
        self.anchor = None if oversized else _newest(snapshot)

    def publish(self, batch: Batch, now: float) -> bool:
        """Take in what came next. False: it does not come next in this history, and nothing is changed."""
        log, view = self.log, self.view
        assert view is not None, "published before a snapshot"
        if batch.revision <= log.tip:
            # A watch never goes back, but for what the snapshot covers.
            return batch.revision <= self.snapshot_revision
        if not view.follows(batch):
            return False
        log.append(batch, now)
        view.apply(batch)
        self.anchor = Anchor(batch.revision, batch.events, True, batch.revision)
        self.events += len(batch.events)
        return True


def _newest(snapshot: Snapshot) -> Anchor | None:
    """The newest revision of which *snapshot* holds something."""
    items = snapshot.items
    newest = max((item.mod_revision for item in items), default=0)
    if not newest:
        return None
    return Anchor(newest, [item for item in items if item.mod_revision == newest], False, snapshot.revision)
