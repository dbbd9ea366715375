"""Known bugs to inject into a gateway. A checker that does not catch them checks nothing.

Each docstring says how the gateway with that bug misbehaves.

Usage: ``python -m tests.consistency.bugs cursor-off-by-one serve …`` runs a gateway with that bug. Each bug replaces
one part of the product in that process; the product knows nothing about the bugs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from app import cli
from app.core import feed, frames, log, reader
from app.core.block_reader import BlockReader
from app.core.cursor import Cursor
from app.core.deflate import stored
from app.core.encoding import event_body
from app.core.ended_histories import EndedHistories
from app.core.etag import ETag
from app.core.events import Batch, Delete
from app.core.feed import FeedCore
from app.core.feed_messages import CloseWatch, Created, OpenWatch, Progress, SyncTimeout
from app.core.gateway_watch import GatewayWatch
from app.core.history import History
from app.core.keys import KeyRange
from app.core.multiplex import Multiplexer
from app.core.reader import Phase, Reader
from app.core.selected_history import Part, SelectedHistory
from app.core.snapshot import Snapshot
from app.core.state_table import Transition
from app.core.view import View
from app.etcd import link
from app.tier.client import tier_of
from app.tier.upstream import MOST_TIERS, GatewayUpstream
from app.watch.task_scope import TaskScope


def _replace(owner: object, name: str, new: object) -> None:
    setattr(owner, name, new)


def _unguarded() -> None:
    """Remove the guard that notices by a key's version that something is missing: it is the last of several guards."""
    _replace(View, "follows", lambda _self, _batch: True)


def resume_at_header() -> None:
    """A feed resumes at a catch-up response's ``header.revision``: the store's, not the watch's (pitfall 1)."""
    _unguarded()
    heard = [0]
    receive = Multiplexer._receive_for

    def receive_and_note(self: Multiplexer, watch: Any, message: Any) -> None:
        if message.events:
            heard[0] = max(heard[0], message.revision)
        receive(self, watch, message)

    def resume(self: FeedCore) -> Any:
        self.history.log.advance(heard[0])
        self.history.anchor = None
        return _live_from(self, self.history.log.tip + 1)

    _replace(Multiplexer, "_receive_for", receive_and_note)
    _replace(FeedCore, "_resume", resume)


def restart_at_compact_revision() -> None:
    """Everything between the feed's tip and the compaction is lost, and no subscriber is notified (pitfall 11)."""
    _unguarded()
    start_anew = FeedCore._start_anew

    def begin(self: FeedCore, reason: Any) -> Any:
        if reason != "compacted":
            return start_anew(self, reason)
        self.history.log.advance(self.history.compacted - 1)
        self.history.anchor = None
        return _live_from(self, self.history.compacted)

    _replace(FeedCore, "_start_anew", begin)


def _live_from(core: FeedCore, start: int) -> Any:
    """Become live on a watch that proved nothing."""
    feed.TABLE[feed.State.LIVE, Created] = Transition(FeedCore._ignore, (feed.State.LIVE,))
    core._become_live()
    return (CloseWatch(), OpenWatch(start))


def cursor_off_by_one() -> None:
    """A resume begins after the first event that the client lacks."""
    resume = Reader._resume
    _replace(Reader, "_resume", lambda self, revision: resume(self, revision + 1))


def deletes_lost_after_reconnect() -> None:
    """The changes during a watch's absence are taken from the state, which shows no deletes."""
    _unguarded()
    check = FeedCore._check_overlap

    def without_deletes(self: FeedCore, found: Sequence[Batch], now: float) -> Any:
        kept = [batch for batch in found[1:] if not any(isinstance(event, Delete) for event in batch.events)]
        return check(self, [found[0], *kept], now)

    _replace(FeedCore, "_check_overlap", without_deletes)


def synced_too_early() -> None:
    """The gateway sends ``synced`` after the first slice of a snapshot."""
    begin = Reader._next_items

    def first_only(self: Reader) -> bytes:
        if self._blocks is not None:
            items = [item for block in self._blocks._snapshot.blocks for item in block.items]
            first = Snapshot.of(self.revision, items[:10])
            self._blocks = BlockReader(first, self._selection, self._form)
        return begin(self)

    _replace(Reader, "_next_items", first_only)


def id_on_every_event() -> None:
    """Every event has an id: a client cut inside a transaction resumes after it, and lacks the rest (pitfall 5)."""

    def frame(batch: Batch, form: str, encoding: str, epoch: str, *, keys_only: bool) -> bytes:
        cursor = f"{epoch}-{batch.revision}".encode()
        parts = []
        for event in batch.events:
            body = event_body(event, encoding, keys_only=keys_only)
            if form.startswith("ndjson"):
                parts.append(body + b',"cursor":"' + cursor + b'"}\n')
            else:
                kind = b"delete" if isinstance(event, Delete) else b"put"
                parts.append(b"event: " + kind + b"\ndata: " + body + b"}\nid: " + cursor + b"\n\n")
        return stored(b"".join(parts)) if form.endswith(frames.GZIP) else b"".join(parts)

    _replace(log, "batch_frame", frame)


def id_ahead_of_its_subscriber() -> None:
    """A bookmark carries the feed's position, for all subscribers.

    A subscriber that lags skips the changes in between when it reconnects.
    """
    heartbeat = Reader.heartbeat

    def broadcast(self: Reader, *, stale: bool) -> bytes:
        position, self.revision = self.revision, self._history.log.tip
        try:
            return heartbeat(self, stale=stale)
        finally:
            self.revision = position

    _replace(Reader, "heartbeat", broadcast)


def untrusted_progress() -> None:
    """The gateway trusts the on-demand progress of old servers, which overtakes events (etcd #15220)."""
    _unguarded()
    _replace(link, "progress_is_trusted", lambda _version: True)

    def publish_all(self: FeedCore, found: Sequence[Batch], now: float) -> Any:
        # Without the guard that would notice, an overtaken event counts as known.
        for batch in found:
            if batch.revision > self.history.log.tip:
                self.history.publish(batch, now)
        return self._share_stream_when_clear()

    _replace(FeedCore, "_publish_all", publish_all)


def cursor_of_another_request() -> None:
    """The gateway ignores the epoch of a cursor."""
    join = Reader._join

    def join_anyhow(self: Reader, size: int) -> bytes:
        if self._asked is not None and self._asked.epoch and self._history.joinable:
            epoch = self._epoch_of(self._history.cluster_id, self._selection)
            self._asked = Cursor(epoch, self._asked.revision)
        return join(self, size)

    _replace(Reader, "_join", join_anyhow)


def restore_not_noticed() -> None:
    """No overlap, and no comparison of revisions or terms: a watch just goes on at its next revision."""
    _unguarded()
    _replace(FeedCore, "_restored", FeedCore._ignore)
    for key, entry in list(feed.TABLE.items()):
        if entry.action.__name__ == "_restored":
            feed.TABLE[key] = Transition(FeedCore._ignore, (key[0],))
    _replace(FeedCore, "_resume", lambda self: _live_from(self, self.history.log.tip + 1))


def cursor_kept_through_a_reset() -> None:
    """A client cut inside a snapshot resumes, over a mirror that it has just emptied."""
    begin, control = Reader._begin_snapshot, frames.control

    def begin_keeping(self: Reader, *args: Any, **options: Any) -> bytes:
        kept = self._cursor() if self.revision else None

        def without(form: str, kind: str, members: dict[str, object], cursor: str | None = None) -> bytes:
            return control(form, kind, members, kept or cursor if kind == "reset" else cursor)

        _replace(reader, "control", without)
        try:
            return begin(self, *args, **options)
        finally:
            _replace(reader, "control", control)

    _replace(Reader, "_begin_snapshot", begin_keeping)


def reader_survives_generation() -> None:
    """A reader takes its position in the old log for a position in the new log."""
    read = Reader.read

    def read_on(self: Reader, size: int) -> bytes:
        if self.phase is Phase.FOLLOWING and self._history.joinable:
            self._generation = self._history.log.generation
        return read(self, size)

    _replace(Reader, "read", read_on)


def cursor_advanced_by_a_time_out() -> None:
    """The feed takes the time-out of a silent watch for proof that nothing happened (apisix PR 12514)."""
    _unguarded()

    def timed_out(self: FeedCore, _given: SyncTimeout, _now: float) -> Any:
        self.history.log.advance(self._proving().target)
        self.history.anchor = None
        return _live_from(self, self.history.log.tip + 1)

    feed.TABLE[feed.State.CATCHING_UP, SyncTimeout] = Transition(timed_out, (feed.State.LIVE,))
    set_timer = TaskScope.set_timer

    def set_earlier(self: TaskScope, kind: type, delay: float, callback: Callable[[], None]) -> None:
        # A watch that lags by more than one response of etcd needs longer than this. Reads of history do not.
        early = kind is SyncTimeout and not self._name.startswith("feed history")
        set_timer(self, kind, 0 if early else delay, callback)

    _replace(TaskScope, "set_timer", set_earlier)


def revision_released_by_an_old_answer() -> None:
    """A merge takes the revision at which a watch was created for progress of this watch, which still owes events.

    No older answer to a progress request can say more than that.
    """
    created = FeedCore._caught_created
    told: dict[History, int] = {}

    def note(self: FeedCore, given: Created, now: float) -> Any:
        told[self.history] = given.revision
        return created(self, given, now)

    def proven(self: SelectedHistory) -> int:
        old = told if len(self.parts) > 1 else {}
        return min(max(part.history.log.tip, old.get(part.history, 0)) for part in self.parts)

    _replace(FeedCore, "_caught_created", note)
    feed.TABLE[feed.State.CATCHING_UP, Created] = Transition(note, (feed.State.CATCHING_UP, feed.State.CONFIRMING))
    _replace(SelectedHistory, "_proven", property(proven))
    _late_parts_come_again()


def transaction_divided_between_ranges() -> None:
    """A merge publishes each range's part of a revision as soon as it comes."""
    _replace(SelectedHistory, "_proven", property(lambda self: max(part.history.log.tip for part in self.parts)))
    _late_parts_come_again()


def _late_parts_come_again() -> None:
    """Publish what comes too late all the same: otherwise the log refuses it, and the feed ends."""
    take = SelectedHistory.take

    def take_late(self: SelectedHistory, part: Part, batch: Batch, now: float) -> None:
        if self._started:
            self._log.tip = min(self._log.tip, batch.revision - 1)
        take(self, part, batch, now)

    _replace(SelectedHistory, "take", take_late)


def projected_tip_that_stands_still() -> None:
    """A selection moves on only by its own events: a quiet one is left behind, until its cursor is compacted."""
    _replace(SelectedHistory, "_look", lambda _self: None)


def merge_survives_generation() -> None:
    """A merge goes on after one of its feeds has begun a new generation: it lacks what came in between."""
    restart = SelectedHistory.restart

    def go_on(self: SelectedHistory) -> None:
        if len(self.parts) > 1 and self._started:
            for part in self.parts:
                if part.history.joinable:
                    part.generation = part.history.log.generation
        restart(self)

    _replace(SelectedHistory, "restart", go_on)


def id_from_the_end_of_a_flush() -> None:
    """A flush of ``mode=latest`` has the channel's revision at its end as its id: what came meanwhile is skipped."""
    next_piece = Reader._next_piece

    def end_at_the_tip(self: Reader) -> bytes:
        if self._flush is not None:
            self._flush._flush.end = max(self._flush.end, self._history.log.tip)
        return next_piece(self)

    _replace(Reader, "_next_piece", end_at_the_tip)


def edge_survives_reset() -> None:
    """An edge goes on after its root's reset: it lacks what the root could not continue with."""
    _unguarded()
    take = GatewayWatch._take

    def deaf(self: GatewayWatch, found: Any) -> Any:
        if found["type"] == "reset":
            self.revision = 0
            return iter(())
        return take(self, found)

    _replace(GatewayWatch, "_take", deaf)


def edge_live_while_its_root_is_stale() -> None:
    """An edge takes an open stream for a proof, and does not hear that its root has lost etcd."""
    _replace(GatewayWatch, "_note_state", lambda _self, _state: None)


def edges_that_follow_each_other() -> None:
    """An edge follows every gateway that answers. Two that fail over to each other are live for ever."""
    _replace(GatewayUpstream, "admit", lambda _self, headers, status: min(tier_of(headers, status) + 1, MOST_TIERS))


def cursor_ahead_of_the_hub() -> None:
    """A worker, or an edge, takes the answer to a progress request for what has come on its stream."""

    async def hasty(self: GatewayUpstream, watched: KeyRange, url: str, _revision: int) -> None:
        revision = await self._progress(str(watched), url)
        for watch in list(self._watches):
            watch._give(Progress(revision, trusted=True))

    _replace(GatewayUpstream, "ask_progress", hasty)


def cursor_of_an_ended_history() -> None:
    """A gateway that has noticed a restore resets its open streams, and resumes whoever was away."""
    _replace(EndedHistories, "revision", lambda _self, _cluster_id: 0)


def etag_without_the_count() -> None:
    """An ``ETag`` names a state by its newest revision alone: a delete of another key leaves it unchanged."""
    _replace(ETag, "opaque", property(lambda self: f"{self.epoch}-{self.newest}-0"))


BUGS: dict[str, Callable[[], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        resume_at_header,
        restart_at_compact_revision,
        cursor_off_by_one,
        deletes_lost_after_reconnect,
        synced_too_early,
        id_on_every_event,
        id_ahead_of_its_subscriber,
        untrusted_progress,
        cursor_of_another_request,
        restore_not_noticed,
        cursor_kept_through_a_reset,
        reader_survives_generation,
        cursor_advanced_by_a_time_out,
        revision_released_by_an_old_answer,
        transaction_divided_between_ranges,
        projected_tip_that_stands_still,
        merge_survives_generation,
        id_from_the_end_of_a_flush,
        edge_survives_reset,
        edge_live_while_its_root_is_stale,
        edges_that_follow_each_other,
        cursor_ahead_of_the_hub,
        cursor_of_an_ended_history,
        etag_without_the_count,
    )
}
# test_bugs_of_tiers.py finds these with gateways in one process, in a second each. The torture finds them, too, in a
# minute: ``python -m tests.consistency.torture --program tests.consistency.bugs BUG`` with
# ``--calm 0 --tiers 1 --kinds "keep the roots from etcd"`` and, for the edges that follow each other,
# ``--calm 0 --circular --kinds "kill a root"``; for the cursor of an ended history, in three minutes, with
# ``--calm 15 --tiers 0 --workers 1 --kinds "restore, lower" "restore, passed" "cut"``.
IN_ONE_PROCESS = {
    "cursor-ahead-of-the-hub", "cursor-of-an-ended-history", "edge-live-while-its-root-is-stale",
    "edges-that-follow-each-other",
}  # fmt: skip


if __name__ == "__main__":
    BUGS[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
