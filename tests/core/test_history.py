"""``app.core.history``: when readers may join, why a generation ended, and how a view in doubt is reclaimed."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.cursor import Cursor
from app.core.events import Batch, Delete
from app.core.feed import FeedCore, State
from app.core.feed_messages import Compacted, Created, SnapshotFailed, SnapshotTaken, TakeSnapshot
from app.core.history import History
from app.core.log import Bounds
from app.core.reader import Phase, Reader
from app.core.snapshot import Snapshot
from app.core.state_table import InvalidTransitionError
from tests.core.test_reader import EPOCH, live, put, reader, say, words

LIVE = Snapshot.of(100, [put(90, b"/a/90"), put(95, b"/a/95")])
NEWS = [put(150, b"/a/new")]


def unproven() -> FeedCore:
    """A feed of three keys whose history was compacted away; the snapshot of its fresh start is being read."""
    core = live(put(5, b"/a/1"), put(6, b"/a/2"), put(7, b"/a/3"))
    say(core, 101, 102)
    core.handle(Compacted(120), 0.0)
    assert core.state is State.OPENING
    assert core.handle(Created(150), 0.0) == (TakeSnapshot(),)
    return core


def take(core: FeedCore) -> None:
    """Complete the snapshot."""
    core.handle(SnapshotTaken(Snapshot.of(150, NEWS, block_bytes=1), 1), 0.0)


def read_all(each: Reader) -> list[str]:
    """Everything that a reader has to read now, in short form."""
    said = b""
    while data := each.read(1 << 20):
        said += data
    return words(said)


def test_all_of_it_is_given_back() -> None:
    """View, encoded frames, and log are all released; the position stays, so that a restore can be noticed."""
    core = unproven()
    held, tip = core.bytes, core.history.log.tip
    assert core.history.reclaim_view() == held > 0
    assert (core.bytes, core.history.view, core.history.log.tip, core.history.view_reclaimed) == (0, None, tip, True)
    assert core.history.reclaim_view() == 0
    take(core)
    assert core.state is State.LIVE
    assert not core.history.view_reclaimed


def test_a_state_that_is_not_in_doubt_stays() -> None:
    """A view that is not in doubt keeps serving readers, and memory needs do not reclaim it."""
    core = live(put(5))
    assert core.history.reclaim_view() == 0
    assert core.history.view is not None


def test_who_is_within_a_state_that_is_given_up_is_told_in_the_end() -> None:
    """A reader in the middle of a reclaimed view can get nothing before its ``synced``, so its wait is limited. A
    reader that follows has its mirror, and is only stale.
    """
    core = live(put(5, b"/a/1"), put(6, b"/a/2"))
    within, follows = reader(core), reader(core)
    within.read(1)
    read_all(follows)
    core.handle(Compacted(120), 0.0)
    waits = [within.waits]
    core.history.reclaim_view()
    waits.append(within.waits)
    assert (waits, follows.waits) == ([False, True], False)


def test_readers_wait_and_are_reset() -> None:
    """Readers that follow, that lag, that are in the middle of the state, and that join all wait, and get a reset."""
    core = live(put(5, b"/a/1"), put(6, b"/a/2"), put(7, b"/a/3"))
    behind, within, follows = reader(core), reader(core), reader(core)
    read_all(behind)
    say(core, 101, 102)
    read_all(follows)
    within.read(1)
    core.handle(Compacted(120), 0.0)
    core.handle(Created(150), 0.0)
    joins = reader(core)
    core.history.reclaim_view()
    for each in (behind, within, follows, joins):
        each.drop_snapshot()
        assert read_all(each) == []
    assert words(follows.heartbeat(stale=True)) == ["bookmark@102"]
    assert within.phase is Phase.SNAPSHOT
    take(core)
    for each in (behind, within, follows):
        assert read_all(each) == ["reset:compacted", "put@150", "synced@150"]
    assert read_all(joins) == ["reset:initial", "put@150", "synced@150"]


def test_a_state_that_cannot_be_read_is_tried_again() -> None:
    """A failed snapshot is tried again without the old view."""
    core = unproven()
    core.history.reclaim_view()
    core.handle(SnapshotFailed(), 0.0)
    assert core.state is State.START_RETRY
    assert core.bytes == 0


# --- generations ------------------------------------------------------------------------------------------------------


def history_of(snapshot: Snapshot) -> History:
    """A history that has begun with *snapshot*."""
    history = History(Bounds())
    assert not history.joinable
    history.install(snapshot, 7, oversized=False)
    return history


def test_a_snapshot_begins_a_generation() -> None:
    """A generation may be joined, and its newest revision is one that a watch can be checked against."""
    history = history_of(LIVE)
    assert (history.joinable, history.reason, history.restores, history.cluster_id) == (True, "initial", 0, 7)
    assert (history.log.generation, history.log.floor, history.log.tip, history.snapshot_revision) == (1, 100, 100, 100)
    assert history.anchor is not None
    assert (history.anchor.revision, history.anchor.exact, history.anchor.snapshot_revision) == (95, False, 100)
    assert history_of(Snapshot.of(100, [])).anchor is None


def test_the_next_generation_says_why_it_began() -> None:
    """A generation begins for the reason that made the last one unproven.

    But another cluster, or a lower revision, means a restore.
    """
    for snapshot, cluster_id, reason in [
        (Snapshot.of(200, []), 7, "lagged"),
        (Snapshot.of(200, []), 8, "restored"),
        (Snapshot.of(99, []), 7, "restored"),
    ]:
        history = history_of(LIVE)
        history.unproven = "lagged"
        assert history.why_ended(50) is None
        history.install(snapshot, cluster_id, oversized=False)
        assert (history.reason, history.restores) == (reason, int(reason == "restored"))
        assert history.joinable
        assert history.log.generation == 2


def test_what_did_not_fit_is_not_asked_for_again() -> None:
    """A range that did not fit is not read again, until another history begins, in which it may fit."""
    history = history_of(LIVE)
    history.unproven = "lagged"
    history.install(Snapshot.of(200, [put(150)]), 7, oversized=True)
    assert (history.anchor, history.oversized_revision) == (None, 200)
    history.unproven = "compacted"
    history.install(Snapshot.of(300, [put(250)]), 7, oversized=False)
    assert history.oversized_revision == 200
    history.install(Snapshot.of(50, [put(20)]), 7, oversized=False)
    assert (history.reason, history.oversized_revision) == ("restored", 0)


def test_what_comes_next_is_published() -> None:
    """Log, view and anchor move together; a batch that does not follow changes nothing."""
    history = history_of(LIVE)
    assert history.publish(Batch(98, [put(98)]), 0.0), "the snapshot includes this revision"
    assert history.log.tip == 100
    assert history.publish(Batch(101, [put(101, b"/a/101")]), 0.0)
    assert history.publish(Batch(105, [put(105), put(105, b"/a/2")]), 0.0)
    before = (history.log.tip, history.log.bytes, len(history.view or ()), history.anchor, history.events)
    assert (before[0], before[2], before[4]) == (105, 5, 3)
    assert not history.publish(Batch(103, [put(103)]), 0.0), "a watch never goes back"
    assert not history.publish(Batch(106, [Delete(b"/a/unknown", 106)]), 0.0), "only an existing key can be deleted"
    assert before == (history.log.tip, history.log.bytes, len(history.view or ()), history.anchor, history.events)


def test_why_a_cursor_has_no_history() -> None:
    """A cursor has no history because that history ended, or was compacted; otherwise history can be read."""
    history = history_of(LIVE)
    assert history.why_ended(50) is None
    history.note_compacted(80)
    history.note_compacted(60)  # from a member that lags
    assert [history.why_ended(revision) for revision in (79, 80)] == ["compacted", None]
    history.unproven = "restored"
    history.install(Snapshot.of(200, []), 7, oversized=False)
    assert [history.why_ended(revision) for revision in (79, 199, 200)] == ["restored", "restored", None]


@pytest.mark.parametrize("reclaimed", [False, True])
def test_no_old_state_is_completed_after_it_was_replaced(reclaimed: bool) -> None:
    """A reader is in the middle of a state when the feed starts anew, twice. What it has is never said to be complete:
    with its view dropped for want of memory, ``synced`` came after a part of the state.
    """
    core = live(put(5, b"/a/1"), put(6, b"/a/2"), put(7, b"/a/3"))
    within = reader(core)
    assert words(within.read(1)) == ["reset:initial", "put@5"]
    core.handle(Compacted(120), 0.0)
    core.handle(Created(150), 0.0)
    if reclaimed:
        core.history.reclaim_view()
        within.drop_snapshot()
        assert read_all(within) == []
    take(core)
    core.handle(Compacted(9999), 0.0)
    assert not core.history.joinable
    assert read_all(within) == []
    assert within.waits


def test_a_feed_in_doubt_gives_no_state_to_who_lags() -> None:
    """The view may be of a history that has ended. The reset that follows has the true reason."""
    core = live(put(5, b"/a/1"))
    behind = reader(core)
    read_all(behind)
    say(core, 101, 102)
    core.handle(Compacted(120), 0.0)
    core.history.log.reclaim(1 << 30)
    assert behind.revision < core.history.log.floor
    assert read_all(behind) == []


def test_who_has_resumed_and_lags_in_doubt_is_told_in_the_end() -> None:
    """The log has forgotten what a slow client lacks, and no state may replace it. The client has no ``synced`` yet."""
    core = live(put(5, b"/a/1"))
    say(core, 101, 102)
    resumed = reader(core, Cursor(EPOCH, 100))
    assert words(resumed.read(1)) == ["put@101"]
    core.handle(Compacted(120), 0.0)
    waits = [resumed.waits]
    core.history.log.trim(10_000.0)
    assert read_all(resumed) == []
    waits.append(resumed.waits)
    core.handle(Created(150), 0.0)
    take(core)
    waits.append(resumed.waits)
    assert waits == [False, True, False]
    assert read_all(resumed)[0] == "reset:compacted"


@pytest.mark.parametrize("reclaimed", [False, True])
def test_a_mirror_of_a_replaced_state_is_not_live(reclaimed: bool) -> None:
    """The feed has started anew, and comes into doubt again before the reader was read. A reset cannot come yet."""
    core = live(put(5, b"/a/1"))
    one = reader(core)
    read_all(one)
    core.handle(Compacted(120), 0.0)
    core.handle(Created(150), 0.0)
    lacks = [one.lacks_since]
    take(core)
    lacks.append(one.lacks_since)
    core.handle(Compacted(9999), 0.0)
    if reclaimed:
        core.history.reclaim_view()
    assert read_all(one) == []
    lacks.append(one.lacks_since)
    assert lacks == [None, None, float("-inf")]


DOUBT, CREATED, TAKE = "the feed is in doubt", "its next watch is created", "its next state is read"
ANEW = (DOUBT, CREATED, TAKE)
ALONE = (DOUBT, CREATED, TAKE, "reclaim", "shed", "age", "write", "join", "resume", "await", "read little", "read all")
STEPS = st.one_of(
    st.sampled_from(ALONE).map(lambda one: (one,)),
    st.sampled_from((ANEW, (DOUBT, CREATED, "reclaim", TAKE), (*ANEW, DOUBT), ("write", "write", "resume", DOUBT))),
)


@settings(max_examples=settings().max_examples * 10)  # each is short
@given(st.lists(STEPS, max_size=12))
def test_what_is_called_complete_is_the_newest_state(steps: list[tuple[str, ...]]) -> None:
    """Whatever happens to the feed between two reads: at ``synced`` a client has all of the feed's newest state.

    A client that gets nothing more is up to date, or it is told the opposite, now or in the end.
    """
    core = live(put(5, b"/a/1"), put(6, b"/a/2"), put(7, b"/a/3"))
    states = {100: {5, 6, 7}}
    began = tip = 100
    readers: list[Reader] = []
    mirrors: list[set[int]] = []
    for step in ("join", *itertools.chain.from_iterable(steps), "read all"):
        with contextlib.suppress(InvalidTransitionError):  # nothing has changed then
            if step == "write" and core.state is State.LIVE:
                tip = core.history.log.tip + 1
                say(core, tip)
            elif step == DOUBT:
                core.handle(Compacted(tip + 50), 0.0)
            elif step == CREATED:
                core.handle(Created(tip + 60), 0.0)
            elif step == TAKE:
                items = [put(tip + number, f"/a/{number}".encode()) for number in range(1, 4)]
                core.handle(SnapshotTaken(Snapshot.of(tip + 60, items, block_bytes=1), 1), 0.0)
                began = tip = tip + 60
            elif step == "reclaim" and core.history.reclaim_view():
                for each in readers:
                    each.drop_snapshot()
            elif step == "shed":
                core.history.log.reclaim(1 << 30)
            elif step == "age":
                core.history.log.trim(10_000.0)
            elif step in ("join", "resume", "await"):
                cursor = None if step == "join" else Cursor(EPOCH, began)
                readers.append(reader(core, cursor, min_revision=tip + 1 if step == "await" else 0))
                readers[-1].refuse_backfill()
                mirrors.append(set() if cursor is None else set(states[began]))
        if core.history.view is not None:
            states[tip] = {item.mod_revision for item in core.history.view.snapshot(tip).items}
        size = {"join": 1, "resume": 1, "await": 1, "read little": 1, "read all": 1 << 20}.get(step)
        for each, mirror in zip(readers, mirrors, strict=True):
            for word in words(each.read(size)) if size else ():
                kind, _, number = word.partition("@")
                if kind.startswith("reset"):
                    mirror.clear()
                elif kind == "put":
                    mirror.add(int(number))
                elif kind == "synced":
                    assert int(number) >= began, "the state was replaced"
                    assert mirror >= states[int(number)], "a part is missing"
    for each in readers:
        read_all(each)
        assert each.at_tip or each.waits or each.lacks_revision or each.lacks_since is not None
