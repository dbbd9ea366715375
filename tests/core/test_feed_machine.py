"""``FeedCore`` against a simulated etcd: in every sequence, a reader sees exactly etcd's events, or is reset.

A read of history must not disturb the feed: a *twin*, which never reads history, gets the same inputs from the same
etcd, and must return the same commands.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.core.backfill import TABLE as HISTORY_TABLE
from app.core.backfill import Stage
from app.core.events import Event, KeyValue
from app.core.feed import TABLE, FeedCore, State
from app.core.feed_messages import (
    AwaitProof,
    BackfillInput,
    Batches,
    CloseWatch,
    Command,
    Compacted,
    Created,
    EndProof,
    FeedInput,
    Lost,
    NoRoom,
    OpenWatch,
    Probe,
    Probed,
    Progress,
    Refused,
    Restored,
    Retry,
    RetryDue,
    SnapshotFailed,
    SnapshotTaken,
    Start,
    Stop,
    StreamKind,
    SyncTimeout,
    TakeSnapshot,
    TellRestored,
    WantBackfill,
)
from app.core.log import Bounds
from app.core.proof import Oversized
from app.core.snapshot import Snapshot
from tests.core.etcd_model import History, SimulatedWatch, Store

REACH_BACK = 8
# etcd's 1,000 revisions a round, and the feed's knowledge of that number, made so small that tests reach it.
BATCH_REVISIONS = 4
BOUNDS = Bounds(batches=5, bytes=5800, age=50.0)

STARTING = (State.IDLE, State.OPENING, State.SNAPSHOTTING, State.START_RETRY)
HISTORY_MOVES = (
    "register", "register", "send created", "apply", "sync", "sync", "fill", "clear", "deliver", "deliver", "deliver",
    "say progress", "overtake", "lose", "lose for a neighbour", "refuse", "time out", "no room", "answer probe",
    "answer probe", "give probe", "give probe", "fail probe",
)  # fmt: skip


class Reader:
    """A naive reader: a generation, a revision, and a dict; it records every event that it gets."""

    def __init__(self, core: FeedCore, revision: int, state: dict[bytes, KeyValue]) -> None:
        self.core = core
        self.generation = core.history.log.generation
        self.joined = self.revision = revision
        self.state = state
        self.seen: list[tuple[int, tuple[Event, ...]]] = []

    def read(self, size: int) -> bool:
        """Read about *size* bytes of what there is; False if the reader must join anew."""
        log = self.core.history.log
        if self.generation != log.generation or not log.covers(self.revision):
            return False
        found = log.after(self.revision, size)
        for batch in found:
            assert batch.revision > self.revision, "revisions come in order, and none comes twice"
            self.revision = batch.revision
            self.seen.append((batch.revision, batch.events))
            for event in batch.events:
                if isinstance(event, KeyValue):
                    self.state[event.key] = event
                else:
                    self.state.pop(event.key, None)
        if not found:
            self.revision = max(self.revision, log.tip)
        return True


class FeedMachine(RuleBasedStateMachine):
    """Executes the core's commands as ``app.watch.feed`` does, against a ``Store`` on which hypothesis plays tricks."""

    def __init__(self) -> None:
        super().__init__()
        self.core = FeedCore(BOUNDS, REACH_BACK)
        self.twin = FeedCore(BOUNDS, REACH_BACK)  # the twin never gets a request for history
        self.store = Store(progress_trusted=True, loses_deletes=False, batch_revisions=BATCH_REVISIONS)
        self.now = 0.0
        self.watch: SimulatedWatch | None = None
        self.stream_kind: StreamKind = "live"
        self.in_vain = 0  # streams in a row that the feed's own messages broke while it caught up
        # The generation began because a message was too large: perhaps that of its newest revision.
        self.unanchored = False
        self.snapshot: Literal["none", "asked", "half", "ready"] = "none"
        self.page: tuple[History, int, list[KeyValue]] | None = None
        self.taken: SnapshotTaken | None = None
        self.probe: int | None = None
        self.probed: Probed | None = None
        self.retry = False
        self.sync_timer = False
        self.history: SimulatedWatch | None = None  # the watch that reads the history below the log
        self.history_from: History | None = None
        self.history_stream_kind: StreamKind = "backfill"
        self.history_probe: int | None = None
        self.history_probed: Probed | None = None
        self.history_timer = False
        self.highest = 1  # the highest revision that this process has seen
        self.known_cluster = 0
        self.heard: History | None = None  # the history in which the process last noticed a restore
        # The history that the feed's present log generation shows; None before the first.
        self.lineage: History | None = None
        self.taken_from: History | None = None
        self.generation = 0
        self.settled = 0
        # The one thing that no feed can know: a restore that no process saw, after an anchor that proves nothing.
        self.excused = False
        self.readers: list[Reader] = []

    # --- the shell ---------------------------------------------------------------------------------------------------

    def handle(self, given: FeedInput) -> None:
        """Handle an input as ``Feed.handle`` does, and check every step against the table."""
        core, watch = self.core, self.watch
        before, tip, floor = core.state, core.history.log.tip, core.history.log.floor
        oversized = core._oversized is Oversized.CERTAIN
        commands = core.handle(given, self.now)
        assert core.state in TABLE[before, type(given)].leads_to
        assert self.twin.handle(given, self.now) == commands
        if isinstance(given, Lost) and core.state is State.OPENING:
            assert given.too_large, "only a message over the limit starts a feed anew"
            assert self.stream_kind == "dedicated", "the feed must not request its own message over the limit again"
        if core.state is State.LIVE or isinstance(given, SnapshotTaken):
            self.in_vain = 0
        if isinstance(given, SnapshotTaken):
            self.unanchored = oversized
        if core.history.log.generation != self.generation:
            assert isinstance(given, SnapshotTaken)
            self.generation, self.lineage, self.excused = core.history.log.generation, self.taken_from, False
            self.settled = given.snapshot.revision
        elif watch is not None and watch.history not in (None, self.lineage):
            went_on = core.state is State.LIVE and before is not State.LIVE
            if self.lineage is not None and (went_on or (tip, floor) != (core.history.log.tip, core.history.log.floor)):
                self.judge_continuation(watch.history, tip)
        if TellRestored() in commands:
            assert watch is not None
            assert self.excused or watch.history is not self.lineage, "no other feed may be reset in vain"
        for command in commands:
            self.execute(command)
        if not core.history.joinable or core.state is State.CLOSED:
            if core.backfill.stage is not Stage.RESTING:
                self.tell(Stop())
        elif core.owes_backfill:
            self.tell(WantBackfill())

    def tell(self, given: BackfillInput) -> None:
        """Handle an input as ``RunningBackfill.handle`` does, and check every step against its table."""
        core = self.core
        before = core.backfill.stage
        commands = core.backfill.handle(given, self.now)
        assert core.backfill.stage in HISTORY_TABLE[before, type(given)].leads_to
        for command in commands:
            match command:
                case OpenWatch(start, stream_kind):
                    self.history_stream_kind, self.history = stream_kind, SimulatedWatch(self.store, start)
                    assert start >= 1
                    assert stream_kind != "live"
                case CloseWatch():
                    self.history = None
                case AwaitProof():
                    self.history_timer = True
                case EndProof():
                    self.history_timer, self.history_probe, self.history_probed = False, None, None
                case Probe(revision):
                    assert self.history_probe is None
                    self.history_probe = revision
                case _:
                    pytest.fail(f"{command} for history")

    def judge_continuation(self, history: History | None, tip: int) -> None:
        """The feed goes on with *history* in a generation that began in another history: was that provably right?"""
        lineage = self.lineage
        assert history is not None
        assert lineage is not None
        if self.excused or (history.current >= tip and history.between(1, tip) == lineage.between(1, tip)):
            self.lineage = history
            return
        published = [(r, events) for r, events in lineage.between(self.settled, tip)]
        state = lineage.state(self.settled)
        if published:
            revision, events = published[-1]
            same = history.at(revision) == events
        else:
            revision = max((item.mod_revision for item in state.values()), default=0)
            events = tuple(item for item in state.values() if item.mod_revision == revision)
            same = set(events) <= set(history.at(revision))
        gone = all(not isinstance(event, KeyValue) for event in events) and self.store.loses_deletes
        compacted = self.store.compacted()
        assert (
            not revision
            or tip - revision > REACH_BACK
            or revision < compacted
            # One history reports a compaction, and the feed restarts after it. Then etcd is restored to a second
            # history, with an older compaction, unseen by any process: both histories may be right, and nothing is
            # promised (two restores).
            or revision <= self.core.history.compacted
            or (self.unanchored and not published)
            or (revision == compacted and gone)
            or same
        ), "a change of history was silently continued"
        self.excused = True

    def execute(self, command: Command) -> None:
        """Execute a command as ``Feed._execute`` does."""
        match command:
            case OpenWatch(start, stream_kind):
                self.close_watch()
                if (self.stream_kind, stream_kind) == ("dedicated", "live"):
                    self.in_vain = 0  # the suspicion is cleared, or the feed began anew
                self.stream_kind = stream_kind
                self.watch = SimulatedWatch(self.store, start)
            case CloseWatch():
                self.close_watch()
            case TakeSnapshot():
                assert self.snapshot == "none"
                self.snapshot = "asked"
            case Probe(revision):
                assert self.probe is None
                assert self.probed is None
                assert revision >= 1
                self.probe = revision
            case TellRestored():
                self.say_restored()  # to all feeds of the process, and so to this one
            case Retry(attempt):
                assert attempt >= 0
                self.retry = True
            case AwaitProof():
                assert self.core.state is State.CATCHING_UP
                self.sync_timer = True
            case EndProof():
                self.sync_timer = False

    def close_watch(self) -> None:
        """Close the watch, and drop everything that was requested for it."""
        self.watch = None
        self.snapshot, self.page, self.taken = "none", None, None
        self.probe = self.probed = None
        self.retry = False

    # --- the process notices revisions and restores in responses -----------------------------------------------------

    def note(self, revision: int) -> None:
        """Take note of any response's header, as ``Upstream._note`` does."""
        self.highest = max(self.highest, revision)
        known, self.known_cluster = self.known_cluster, self.store.cluster_id
        if known not in (0, self.store.cluster_id):
            self.highest = revision
            self.say_restored()

    def note_linearizable(self) -> None:
        """Take note of a linearizable response, as ``Upstream._note_linearizable`` does."""
        revision, highest = self.store.history.current, self.highest
        self.note(revision)
        if revision < highest and self.highest == highest:
            self.highest = revision
            self.say_restored()

    def say_restored(self) -> None:
        """Report a restore, as ``Feed.restored`` does."""
        self.heard = self.store.history
        if self.core.state not in (State.IDLE, State.CLOSED):
            self.handle(Restored())

    # --- fixtures ----------------------------------------------------------------------------------------------------

    @initialize(
        trusted=st.booleans(),
        loses=st.booleans(),
        reach=st.booleans(),
        writes=st.integers(0, 12),
        compacted=st.integers(0, 12),
        fit=st.sampled_from([None, None, 2, 3, 5]),
    )
    def begin(self, trusted: bool, loses: bool, reach: bool, writes: int, compacted: int, fit: int | None) -> None:
        """Begin with an etcd of some version, with some history, and a subscriber that wants the feed."""
        self.store.message_events = fit
        self.store.progress_trusted = trusted
        self.store.loses_deletes = loses
        for index in range(writes):
            self.store.write([(index % 4, index % 5 != 3)])
        self.store.compact(compacted)
        self.handle(Start(reach))

    # --- etcd --------------------------------------------------------------------------------------------------------

    @rule(operations=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=3))
    def write(self, operations: list[tuple[int, bool]]) -> None:
        """A client writes one transaction."""
        self.store.write(operations)

    @rule(operations=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
    def write_much(self, operations: list[tuple[int, bool]]) -> None:
        """A client writes one revision for each operation."""
        for operation in operations:
            self.store.write([operation])

    @rule(back=st.integers(0, 6))
    def compact(self, back: int) -> None:
        """A client compacts, mostly near the end."""
        self.store.compact(self.store.history.current - back)

    @rule()
    def compact_at_anchor(self) -> None:
        """A client compacts exactly at the last revision that the feed knows."""
        last = self.core.history.log.last
        if last is not None:
            self.store.compact(last.revision)

    @rule()
    def compact_at_tip(self) -> None:
        """A client compacts just after the feed's tip, where a resume starts."""
        self.store.compact(self.core.history.log.tip + 1)

    @rule(
        back=st.integers(0, 12),
        operations=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=14),
        keep_cluster=st.sampled_from([True, True, False]),
    )
    def restore(self, back: int, operations: list[tuple[int, bool]], keep_cluster: bool) -> None:
        """etcd is restored from a backup, and may have passed its old revision before the process notices."""
        self.store.restore(max(1, self.store.history.current - back), keep_cluster=keep_cluster)
        for operation in operations:
            self.store.write([operation])
        if self.watch is not None and self.watch.history is not None:
            self.watch.lost = True
            self.watch.queue.clear()
        if self.history is not None and self.history.history is not None:
            self.history.lost = True
            self.history.queue.clear()
        if self.history_probed is not None:
            self.tell(Probed("failed"))
        if self.taken is not None or self.probed is not None:
            self.fail_read()  # an answer under way was lost with the connection

    # --- the watch ---------------------------------------------------------------------------------------------------

    def has(self, **wanted: Any) -> bool:
        """Whether there is a watch with these attributes."""
        return self.watch is not None and all(getattr(self.watch, name) == value for name, value in wanted.items())

    @property
    def held(self) -> SimulatedWatch:
        """The watch, which exists."""
        assert self.watch is not None
        return self.watch

    @precondition(lambda self: self.has(history=None))
    @rule(lag=st.integers(0, 4))
    def register(self, lag: int) -> None:
        """etcd registers the watch."""
        self.held.register(lag)

    @precondition(lambda self: self.has(open=True, created_sent=False))
    @rule()
    def send_created(self) -> None:
        """etcd sends ``created``."""
        self.held.send_created()

    @precondition(lambda self: self.has(open=True))
    @rule(count=st.integers(1, 6))
    def apply(self, count: int) -> None:
        """The member catches up."""
        self.held.apply(count)

    @precondition(lambda self: self.has(open=True, synced=False))
    @rule()
    def sync(self) -> None:
        """The member serves the watch from history."""
        self.held.sync()

    @precondition(lambda self: self.has(open=True, full=False) and self.held.answer is not None)
    @rule()
    def clear_late(self) -> None:
        """etcd answers the request that a late message caused."""
        self.held.clear()

    @precondition(lambda self: self.has(open=True, created_sent=True))
    @rule(full=st.booleans())
    def fill(self, full: bool) -> None:
        """The stream's channel becomes full, or is no longer full."""
        self.held.full = full

    @precondition(lambda self: self.has(created_sent=True, lost=False) and len(self.held.queue) > 0)
    @rule()
    def deliver(self) -> None:
        """The next response arrives."""
        watch = self.held
        given = watch.queue.popleft()
        match given:
            case Created(revision):
                watch.created_given = True
                self.note(revision)
            case Batches(found):
                self.note(found[-1].revision if found else 0)
            case Progress(revision):
                self.note(revision)
            case Compacted():
                self.note(0)
            case Lost():
                self.in_vain += self.core.state in (State.CATCHING_UP, State.CONFIRMING)
        if self.watch is watch:
            self.handle(given)

    @precondition(lambda self: self.has(open=True, synced=True, created_sent=True))
    @rule()
    def say_progress(self) -> None:
        """A progress answer comes in its order."""
        self.held.say_progress()

    @precondition(lambda self: self.has(open=True, created_given=True) and not self.store.progress_trusted)
    @rule()
    def overtaking_progress(self) -> None:
        """An on-demand answer of an old member overtakes the events that it covers."""
        history = self.held.history
        assert history is not None
        self.note(history.current)
        self.handle(Progress(history.current, trusted=False))

    @precondition(lambda self: self.watch is not None and self.held.history is not None)
    @rule()
    def lose(self) -> None:
        """The stream breaks; messages under way on it are lost."""
        self.held.ended = True
        self.handle(Lost("broken"))

    @precondition(
        lambda self: self.watch is not None and self.held.history is not None and self.stream_kind != "dedicated"
    )
    @rule()
    def lose_for_a_neighbour(self) -> None:
        """A message that was too large for the stream was for another watch on it."""
        self.held.ended = True
        self.handle(Lost("too large", too_large=True))

    @precondition(lambda self: self.has(open=True, created_given=False))
    @rule()
    def refuse(self) -> None:
        """etcd refuses the watch."""
        self.held.ended = True
        self.handle(Refused("permission denied"))

    # --- the watch of a backfill --------------------------------------------------------------------------------------

    @precondition(lambda self: self.core.backfill.stage is not Stage.RESTING)
    @rule(move=st.sampled_from(HISTORY_MOVES), number=st.integers(0, 6))
    def move_history(self, move: str, number: int) -> None:
        """Do one of the moves that can happen to the watch that reads history, if the move is possible now."""
        if self.history_probe is not None or self.history_probed is not None:
            self.move_history_probe(move)
        elif move in ("time out", "no room"):
            self.tell(SyncTimeout() if move == "time out" else NoRoom())
        elif self.history is None:
            pytest.fail("a backfill that is not resting must wait for something")
        elif self.history.history is None:
            if move == "register":
                self.history.register(min(number, 4))
        elif move == "deliver":
            self.deliver_history(self.history)
        elif move in ("lose", "lose for a neighbour", "refuse"):
            self.break_history(self.history, move)
        elif self.history.open:
            self.move_open_history(self.history, move, number)

    def move_history_probe(self, move: str) -> None:
        """Do a move with the final probe of a backfill."""
        if move == "answer probe" and self.history_probe is not None:
            self.note_linearizable()
            revision, self.history_probe = self.history_probe, None
            if revision is not None:
                compacted, current = self.store.compacted(), self.store.history.current
                self.history_probed = Probed(
                    "compacted" if revision < compacted else "future" if revision > current else "ok"
                )
        elif move == "give probe" and self.history_probed is not None:
            self.tell(self.history_probed)
        elif move in ("fail probe", "time out", "no room"):
            given: dict[str, BackfillInput] = {"fail probe": Probed("failed"), "time out": SyncTimeout()}
            self.tell(given.get(move, NoRoom()))

    def move_open_history(self, watch: SimulatedWatch, move: str, number: int) -> None:
        """Do a move of etcd's with the open watch of a backfill."""
        match move:
            case "send created" if not watch.created_sent:
                watch.send_created()
            case "apply":
                watch.apply(number)
            case "sync" if not watch.synced:
                watch.sync()
            case "fill" if watch.created_sent:
                watch.full = not watch.full
            case "clear" if watch.answer is not None and not watch.full:
                watch.clear()
            case "say progress" if watch.synced and watch.created_sent:
                watch.say_progress()
            case "overtake" if watch.created_given and not self.store.progress_trusted:
                assert watch.history is not None
                self.note(watch.history.current)
                if self.history is watch:
                    self.tell(Progress(watch.history.current, trusted=False))

    def break_history(self, watch: SimulatedWatch, move: str) -> None:
        """End the watch of a backfill early."""
        if move == "lose":
            self.tell(Lost("broken"))
        elif move == "refuse" and watch.open and not watch.created_given:
            self.tell(Refused("permission denied"))
        elif move == "lose for a neighbour" and self.history_stream_kind != "dedicated":
            self.tell(Lost("too large", too_large=True))

    def deliver_history(self, watch: SimulatedWatch) -> None:
        """Deliver the next response of a backfill's watch."""
        if not watch.created_sent or watch.lost or not watch.queue:
            return
        given = watch.queue.popleft()
        match given:
            case Created(revision) | Progress(revision):
                watch.created_given = True
                self.note(revision)
            case Batches(found):
                self.note(found[-1].revision if found else 0)
            case Compacted():
                self.note(0)
        if self.history is watch:
            self.tell(given)

    # --- reads -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.snapshot == "asked")
    @rule()
    def read_first_page(self) -> None:
        """Read the first half of a snapshot, which pins the snapshot's revision."""
        self.note_linearizable()
        if self.snapshot == "asked":
            history = self.store.history
            items = sorted(history.state(history.current).values(), key=lambda item: item.key)
            self.page = (history, history.current, items[:1])
            self.snapshot = "half"

    @precondition(lambda self: self.snapshot == "half")
    @rule()
    def read_last_page(self) -> None:
        """Read the second half of the snapshot, at the same revision."""
        assert self.page is not None
        self.note_linearizable()
        if self.snapshot != "half":
            return
        history, revision, items = self.page
        present = self.store.history
        unheard = history is not present and self.heard is not present
        if unheard or not self.store.compacted() <= revision <= present.current:
            self.fail_read()  # two pages of different histories, without a sign of it, cannot reach the core
            return
        known = {item.key for item in items}
        rest = [item for item in present.state(revision).values() if item.key not in known]
        self.taken = SnapshotTaken(Snapshot.of(revision, [*rest, *items], block_bytes=1), self.store.cluster_id)
        self.taken_from = history
        self.snapshot = "ready"

    @precondition(lambda self: self.taken is not None)
    @rule()
    def give_snapshot(self) -> None:
        """The snapshot arrives."""
        taken, self.taken, self.snapshot = self.taken, None, "none"
        assert taken is not None
        self.handle(taken)

    @precondition(lambda self: self.probe is not None)
    @rule()
    def answer_probe(self) -> None:
        """etcd answers a probe."""
        self.note_linearizable()
        revision, self.probe = self.probe, None
        if revision is None:
            return
        if revision < self.store.compacted():
            self.probed = Probed("compacted")
        else:
            self.probed = Probed("future" if revision > self.store.history.current else "ok")

    @precondition(lambda self: self.probed is not None)
    @rule()
    def give_probe(self) -> None:
        """The answer to the probe arrives."""
        probed, self.probed = self.probed, None
        assert probed is not None
        self.handle(probed)

    @precondition(lambda self: self.snapshot != "none" or self.probe is not None or self.probed is not None)
    @rule()
    def fail_read(self) -> None:
        """A read fails."""
        probing = self.snapshot == "none"
        self.snapshot, self.page, self.taken = "none", None, None
        self.probe = self.probed = None
        self.handle(Probed("failed") if probing else SnapshotFailed())

    @rule()
    def read_elsewhere(self) -> None:
        """Another feed of this process reads: the response may show a restore."""
        self.note_linearizable()

    # --- time --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.retry)
    @rule()
    def retry_due(self) -> None:
        """The backoff ends."""
        self.retry = False
        self.handle(RetryDue())

    @precondition(lambda self: self.sync_timer)
    @rule()
    def time_out(self) -> None:
        """No proof came in time."""
        self.sync_timer = False
        self.handle(SyncTimeout())

    @rule(seconds=st.sampled_from([1.0, 11.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes, and the registry's tick trims the log."""
        self.now += seconds
        self.core.history.log.trim(self.now)
        self.twin.history.log.trim(self.now)

    @rule(size=st.integers(1, 1500))
    def shed(self, size: int) -> None:
        """Memory is short, and the log gives some back."""
        self.core.history.log.reclaim(size)
        self.twin.history.log.reclaim(size)

    # --- readers -----------------------------------------------------------------------------------------------------

    @rule(back=st.integers(0, 14))
    def want_backfill(self, back: int) -> None:
        """A client with an old cursor joins, as in ``Feed.want_backfill``."""
        core = self.core
        revision = max(0, core.history.log.floor - back)
        if core.may_backfill(revision, self.now, trusted=self.store.progress_trusted):
            assert core.state is State.LIVE
            self.tell(WantBackfill(revision))
            assert core.backfill.promises(revision)
        elif core.backfill.promises(revision):
            self.tell(WantBackfill(revision))

    @precondition(lambda self: self.core.history.joinable)
    @rule(back=st.integers(1, 8), steps=st.integers(0, 14), lag=st.integers(0, 2))
    def read_history(self, back: int, steps: int, lag: int) -> None:
        """A client with an old cursor joins, and nothing goes wrong for some steps.

        *lag* is that of the member that serves the read.
        """
        self.core.backfill._not_before = float("-inf")  # as if time had passed, and the log had not grown old
        self.want_backfill(back)
        for _ in range(steps):
            if self.history is not None and self.history.history is None:
                self.history.register(lag)
            elif not self.step_of_history():
                return

    @precondition(lambda self: self.core.history.joinable)
    @rule()
    def join(self) -> None:
        """A reader without a cursor joins."""
        self.readers.append(self.fresh_reader())

    @precondition(lambda self: self.core.history.joinable and self.core.history.log.tip > self.core.history.log.floor)
    @rule(data=st.data())
    def join_with_cursor(self, data: st.DataObject) -> None:
        """A reader joins whose mirror is exact at a revision that the log covers."""
        revision = data.draw(st.integers(self.core.history.log.floor, self.core.history.log.tip))
        assert self.lineage is not None
        self.readers.append(Reader(self.core, revision, dict(self.lineage.state(revision))))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), size=st.integers(1, 2000))
    def read(self, data: st.DataObject, size: int) -> None:
        """A reader reads on, or is reset."""
        index = data.draw(st.integers(0, len(self.readers) - 1))
        if not self.readers[index].read(size) and self.core.history.joinable:
            self.readers[index] = self.fresh_reader()

    def fresh_reader(self) -> Reader:
        """A reader that gets the state."""
        view = self.core.history.view
        assert view is not None
        snapshot = view.snapshot(self.core.history.log.tip)
        return Reader(self.core, snapshot.revision, {item.key: item for item in snapshot.items})

    # --- some steps without a fault ----------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 14))
    def go_on(self, steps: int) -> None:
        """Nothing goes wrong for some steps."""
        for _ in range(steps):
            if not self.step():
                return

    def step(self) -> bool:
        """Do the next thing that a healthy etcd would do; False if there is none."""
        watch = self.watch
        if watch is not None and watch.lost:
            self.lose()
        elif self.retry:
            self.retry_due()
        elif self.snapshot == "asked":
            self.read_first_page()
        elif self.snapshot == "half":
            self.read_last_page()
        elif self.snapshot == "ready":
            self.give_snapshot()
        elif self.probe is not None:
            self.answer_probe()
        elif self.probed is not None:
            self.give_probe()
        elif watch is not None and self.step_of(watch):
            return True
        else:
            return self.step_of_history()
        return True

    def step_of_history(self) -> bool:
        """Do the next thing that a healthy etcd would do for a backfill; False if there is none."""
        watch = self.history
        if self.history_probe is not None or self.history_probed is not None:
            self.move_history_probe("answer probe" if self.history_probe is not None else "give probe")
        elif watch is None:
            return False
        elif watch.lost:
            self.tell(Lost("broken"))
        elif watch.history is None:
            watch.register(0)
        elif not watch.created_sent:
            watch.send_created()
        elif watch.queue:
            self.deliver_history(watch)
        elif watch.member < watch.history.current:
            watch.apply(100)
        elif not watch.synced and not watch.ended:
            watch.sync()
        elif self.store.progress_trusted and not watch.asked and not watch.ended:
            watch.asked = True
            watch.say_progress()
        else:
            self.tell(SyncTimeout())
        return True

    def step_of(self, watch: SimulatedWatch) -> bool:
        """Do the next thing that a healthy etcd would do for a watch; False if there is none."""
        if watch.history is None:
            watch.register(0)
        elif not watch.created_sent:
            watch.send_created()
        elif watch.full:
            watch.full = False
        elif watch.queue:
            self.deliver()
        elif watch.answer is not None and not watch.ended:
            watch.clear()
        elif watch.ended:
            return False
        elif watch.member < watch.history.current:
            watch.apply(100)
        elif not watch.synced:
            watch.sync()
        elif self.core.state is State.CATCHING_UP:
            if self.store.progress_trusted and not watch.asked:
                watch.asked = True
                watch.say_progress()
            else:
                self.time_out()
        elif self.core.state is State.LIVE and self.stream_kind != "live":
            watch.say_progress()
        else:
            return False
        return True

    # --- invariants --------------------------------------------------------------------------------------------------

    @invariant()
    def waits_for_something(self) -> None:
        """No state waits for something that cannot come."""
        match self.core.state:
            case State.OPENING | State.CATCHING_UP | State.LIVE:
                assert self.watch is not None
            case State.SNAPSHOTTING:
                assert self.watch is not None
                assert self.snapshot != "none"
            case State.CONFIRMING:
                assert self.watch is not None
                assert self.probe is not None or self.probed is not None
            case State.START_RETRY | State.WATCH_RETRY:
                assert self.watch is None
                assert self.retry
        assert not self.sync_timer or self.core.state is State.CATCHING_UP
        stage = self.core.backfill.stage
        assert self.history_timer == (stage is not Stage.RESTING)
        assert (self.history is not None) == (stage in (Stage.OPENING, Stage.READING))
        probing = self.history_probe is not None or self.history_probed is not None
        assert probing == (stage is Stage.CONFIRMING)

    @invariant()
    def followers_notice_nothing(self) -> None:
        """A backfill changes nothing for followers: they read what the twin's followers would read."""
        core, twin = self.core, self.twin
        assert (core.state, core.history.unproven, core.history.reason, core.history.restores) == (
            twin.state, twin.history.unproven, twin.history.reason, twin.history.restores
        )  # fmt: skip
        assert (core.history.log.generation, core.history.log.tip) == (
            twin.history.log.generation,
            twin.history.log.tip,
        )
        assert core.history.log.floor <= twin.history.log.floor, "no reader falls out of the log because of a backfill"
        assert core.history.log.after(twin.history.log.floor, 1 << 30) == twin.history.log.after(
            twin.history.log.floor, 1 << 30
        )
        if core.history.view is not None and twin.history.view is not None:
            assert (
                core.history.view.snapshot(core.history.log.tip).items
                == twin.history.view.snapshot(twin.history.log.tip).items
            )

    @invariant()
    def what_is_too_large_is_given_up(self) -> None:
        """The feed requests a too large message at most three times, and then takes a snapshot.

        The first request is on a shared stream, the second on a dedicated one, and the third if the second left out
        history.
        """
        assert self.in_vain <= 3

    @invariant()
    def doubt_keeps_joiners_away(self) -> None:
        """A feed that starts anew gives its old view to no new reader."""
        if self.core.state in STARTING:
            assert not self.core.history.joinable

    @invariant()
    def memory_is_bounded(self) -> None:
        """The log and the held batches keep to their bounds, except for one revision that is larger alone."""
        core = self.core
        assert len(core.history.log) <= BOUNDS.batches
        assert core.history.log.bytes <= BOUNDS.bytes or len(core.history.log) == 1
        held = core.backfill.bytes
        if core._proof is not None:
            assert core._proof.bytes == sum(batch.size for batch in core._proof.held)
            assert core._proof.bytes <= BOUNDS.bytes or len(core._proof.held) == 1
            held += core._proof.bytes
        assert core.bytes == core.history.log.bytes + held + (
            core.history.view.bytes if core.history.view is not None else 0
        )
        assert core.backfill.bytes <= BOUNDS.bytes

    @invariant()
    def view_is_exact(self) -> None:
        """The view is etcd's state at the view's revision, and still is at the log's tip."""
        view, lineage = self.core.history.view, self.lineage
        if view is None or lineage is None or self.excused:
            return
        items = {item.key: item for item in view.snapshot(self.core.history.log.tip).items}
        assert items == lineage.state(view.revision)
        assert self.core.history.log.tip <= lineage.current
        assert items == lineage.state(self.core.history.log.tip)
        assert view.bytes == sum(item.size for item in items.values())

    @invariant()
    def log_is_exact(self) -> None:
        """The log holds exactly the range's events between its floor and its tip."""
        log, lineage = self.core.history.log, self.lineage
        if lineage is None or self.excused:
            return
        found = [(batch.revision, batch.events) for batch in log.after(log.floor, 1 << 30)]
        assert found == lineage.between(log.floor, log.tip)

    @invariant()
    def readers_are_exact(self) -> None:
        """A reader within one generation has seen each event of the range once, in order, and mirrors the range."""
        if self.lineage is None or self.excused:
            return
        for reader in self.readers:
            if reader.generation == self.generation:
                assert reader.seen == self.lineage.between(reader.joined, reader.revision)
                assert reader.state == self.lineage.state(reader.revision)

    def teardown(self) -> None:
        """Without further faults, the feed reaches etcd's revision; after a stop, it holds nothing."""
        if self.core.state is State.IDLE:
            return
        for _ in range(300):
            if not self.step():
                break
            self.check()
        assert self.core.state is State.LIVE
        assert self.stream_kind == "live"
        assert self.core.history.joinable
        assert self.core.history.view is not None
        if not self.excused:
            items = {item.key: item for item in self.core.history.view.snapshot(self.core.history.log.tip).items}
            assert items == self.store.history.state(self.store.history.current)
        assert self.core.backfill.stage is Stage.RESTING
        self.handle(Stop())
        assert self.watch is None
        assert self.core._proof is None
        assert self.core.state.name == "CLOSED"  # by name: mypy still believes the LIVE above

    def check(self) -> None:
        """Check all invariants."""
        self.waits_for_something()
        self.followers_notice_nothing()
        self.what_is_too_large_is_given_up()
        self.doubt_keeps_joiners_away()
        self.memory_is_bounded()
        self.view_is_exact()
        self.log_is_exact()


def test_readers_see_what_happened_or_are_reset() -> None:
    """In any sequence of everything that an etcd can do, the feed is exact or begins a new generation."""
    run_state_machine_as_test(
        FeedMachine,
        settings=settings(
            stateful_step_count=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
        ),
    )


# The steps that may come between a request for history and its proof, in short sequences: the machine above seldom gets
# there.
MOMENTS = st.one_of(
    st.tuples(st.just("ask"), st.integers(1, 8)),
    st.tuples(st.just("ask"), st.integers(1, 8)),
    st.tuples(st.just("history"), st.integers(1, 8)),
    st.tuples(st.just("history"), st.integers(1, 8)),
    st.tuples(st.just("live"), st.integers(1, 12)),
    st.tuples(st.just("write"), st.integers(0, 255)),
    st.tuples(st.just("compact"), st.integers(0, 8)),
    st.tuples(st.just("compact where it starts"), st.integers(0, 2)),
    st.tuples(st.just("shed"), st.integers(1, 1500)),
    st.tuples(st.just("grow old"), st.just(0)),
    st.tuples(st.just("restore"), st.integers(0, 255)),
    st.tuples(st.just("lag"), st.integers(0, 3)),
)


class Moments(FeedMachine):
    """The same etcd and feed, driven step by step."""

    def live(self) -> None:
        """Reach the live state without a fault."""
        while self.core.state is not State.LIVE:
            self.step()

    def pass_moment(self, kind: str, number: int) -> None:
        """Do one of ``MOMENTS``."""
        match kind:
            case "ask":
                self.core.backfill._not_before = float("-inf")  # as if time had passed
                self.want_backfill(number)
            case "history":
                for _ in range(number):
                    self.step_of_history()
            case "live":
                for _ in range(number):
                    if self.watch is None or self.watch.lost or self.core.state is not State.LIVE:
                        self.step()  # nothing comes on a broken stream
                    elif not self.step_of(self.watch):
                        break
            case "write":
                for key in range(4):
                    if number & (1 << key):
                        self.store.write([(key, bool(number & (16 << key)))])
            case "compact":
                self.compact(number)
            case "compact where it starts" if self.history is not None:
                self.store.compact(self.history.start + number)
            case "shed":
                self.shed(number)
            case "grow old":
                self.pass_time(60.0)
            case "lag" if self.history is not None and self.history.history is None:
                self.history.register(number)
            case "restore":
                operations = [(key, bool(number & (16 << key))) for key in range(4) if number & (1 << key)]
                self.restore(number % 5, operations, keep_cluster=True)


@settings(max_examples=settings().max_examples * 4)  # each is short
@given(
    writes=st.integers(4, 24),
    trusted=st.booleans(),
    loses=st.booleans(),
    reach=st.booleans(),
    moments=st.lists(MOMENTS, min_size=4, max_size=30),
)
def test_history_is_exact_or_is_not_given(
    writes: int, trusted: bool, loses: bool, reach: bool, moments: list[tuple[str, int]]
) -> None:
    """A live feed that reads history has etcd's own history in its log, and otherwise goes on like its twin."""
    machine = Moments()
    machine.begin(trusted, loses, reach, writes, 0, None)
    machine.live()
    for kind, number in moments:
        machine.pass_moment(kind, number)
        machine.check()
    machine.teardown()


def test_a_delete_lost_where_history_starts_is_not_missed() -> None:
    """A compaction exactly at the start silently removes the delete (etcd #18089).

    Only the Range request below reveals that.
    """
    machine = Moments()
    machine.begin(True, True, False, 0, 0, None)
    for key, put in [(0, True), (0, False), *[(3, True)] * REACH_BACK]:  # the last key is not in the range
        machine.store.write([(key, put)])
    machine.live()
    machine.pass_moment("ask", REACH_BACK)
    assert machine.history is not None
    machine.store.compact(machine.history.start)
    floor = machine.core.history.log.floor
    while machine.core.backfill.stage is not Stage.RESTING:
        machine.step_of_history()
        machine.check()
    assert (machine.core.history.log.floor, machine.core.backfill.why_not(floor - 1)) == (floor, "compacted")
