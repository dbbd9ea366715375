"""``app.core.ended_histories``: no cursor of a history that a restore has ended is resumed in the next one."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from app.core.cursor import Cursor
from app.core.ended_histories import EndedHistories
from app.core.events import Batch, Delete
from app.core.feed import FeedCore
from app.core.feed_messages import Batches, Created, OpenWatch, Progress, SnapshotTaken, Start, WantBackfill
from app.core.history import History
from app.core.log import Bounds
from app.core.snapshot import Snapshot
from tests.core.test_reader import EPOCH, KEYS, PLENTY, SELECTION, ReaderMachine, epoch_of, live, put, reader, words
from tests.core.test_reader import restore as replace

pytestmark = pytest.mark.usefixtures("one_item_blocks")
RESET = "reset:restored"


def restored(at: int) -> FeedCore:
    """A feed that has followed a history up to 100, and then another one of the same cluster, from *at* on."""
    core = live(put(90))
    replace(core, put(40), revision=at, cluster_id=1)
    return core


def first(core: FeedCore, revision: int, *, for_gateway: bool = False) -> str:
    """The first event of a stream that resumes at *revision*; "" if it must wait."""
    read = words(reader(core, Cursor(EPOCH, revision), for_gateway=for_gateway).read(PLENTY))
    return read[0] if read else ""


def test_each_cluster_has_its_own() -> None:
    """Another cluster's cursors have another epoch. Nothing that is noted later takes anything back."""
    ended = EndedHistories()
    assert ended.revision(1) == 0
    ended.note(1, 100)
    ended.note(1, 50)
    ended.note(2, 70)
    assert [ended.revision(cluster_id) for cluster_id in (1, 2, 3)] == [100, 70, 0]


def test_a_lower_history() -> None:
    """Up to the end of the old history, a revision may be of either history. Above, it is of the new one."""
    core = restored(50)
    assert core.history.ended_revision == 100
    core.handle(Progress(120, trusted=True), 0.0)
    assert [first(core, revision) for revision in (49, 50, 99, 100)] == [RESET] * 4
    assert [first(core, revision) for revision in (101, 120)] == ["synced@120"] * 2


def test_a_history_that_has_passed_the_old_one() -> None:
    """What the gateway knows of the new history begins at its state. A client may know more of the old one."""
    core = restored(110)
    assert core.history.ended_revision == 109
    assert [first(core, revision) for revision in (100, 109)] == [RESET] * 2
    assert first(core, 110) == "synced@110"


def test_a_delete_that_fits_both_histories() -> None:
    """The first event after the cursor is a delete, which has no count of puts."""
    core = restored(50)
    core.handle(Batches((Batch(101, [Delete(KEYS[0], 101)]),)), 0.0)
    assert words(reader(core, Cursor(EPOCH, 100)).read(PLENTY)) == [RESET, "synced@101"]


def test_another_cluster_is_no_restore() -> None:
    """All replicas take another cluster's state at different revisions, and its cursors are good at each."""
    core = live(put(90))
    replace(core, revision=110, cluster_id=2)
    assert core.history.ended_revision == 0
    core.handle(Progress(120, trusted=True), 0.0)
    one = reader(core, Cursor(epoch_of(2, SELECTION), 111))
    assert words(one.read(PLENTY)) == ["synced@120"]


def test_the_feeds_of_a_process_know_the_same() -> None:
    """A feed ends, or begins, and the client's cursor stays."""
    ended = EndedHistories()
    core = FeedCore(Bounds(), 50, ended=ended)
    ended.note(1, 130)
    core.handle(Start(backfill=False), 0.0)
    core.handle(Created(110), 0.0)
    core.handle(SnapshotTaken(Snapshot.of(110, []), 1), 0.0)
    assert first(core, 120) == RESET, "without waiting for a linearizable read"
    assert first(core, 131) == ""
    assert History(Bounds(), ended).ended_revision == 0, "the feed does not know its cluster yet"


@pytest.mark.parametrize(("at", "start"), [(50, 51), (110, 110)])
def test_no_history_is_read_for_cursors_that_are_not_resumed(at: int, start: int) -> None:
    """A gateway above would answer such a read with a reset. A read never begins beyond the log's floor."""
    core = restored(at)
    core.handle(Progress(at + 20, trusted=True), 0.0)
    assert not core.may_backfill(start - 2, 0.0, trusted=True)
    assert core.may_backfill(start - 1, 0.0, trusted=True)
    assert OpenWatch(start, "backfill") in core.backfill.handle(WantBackfill(), 0.0)


def test_a_gateway_below_is_told() -> None:
    """It may have started after the restore. Clients are not told: they have no use for it."""
    core = restored(50)
    core.handle(Progress(120, trusted=True), 0.0)
    told = reader(core, Cursor(EPOCH, 120), for_gateway=True).read(PLENTY)
    assert b'"ended_revision":100' in told
    assert b"ended_revision" not in reader(core, Cursor(EPOCH, 120)).read(PLENTY)
    assert b"ended_revision" not in reader(live(), Cursor(EPOCH, 100), for_gateway=True).read(PLENTY)


class RestoreMachine(ReaderMachine):
    """``ReaderMachine`` with restores that keep the cluster's id, so that the old history's cursors look like the new
    one's. ``histories`` has only the states of the present history.
    """

    @rule(back=st.integers(-20, 20), same=st.booleans(), away=st.booleans())
    def restore_in_place(self, back: int, same: bool, away: bool) -> None:
        """*away*: the client is not connected at the restore."""
        revision = max(1, self.core.history.log.tip - back)
        self.now = {KEYS[0]: put(revision)} if same else {}
        self.histories[epoch_of(self.cluster, SELECTION)] = {}
        replace(self.core, *self.now.values(), revision=revision, cluster_id=self.cluster)
        self.note()
        if away:
            self.come_back()
        else:
            self.read(0)


TestRestores = RestoreMachine.TestCase
TestRestores.settings = settings(stateful_step_count=40)
