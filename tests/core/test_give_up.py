"""A feed that gives up its old state for the new one: its readers wait for a reset, and nobody joins meanwhile."""

from __future__ import annotations

from app.core.feed import FeedCore, State
from app.core.feed_messages import SnapshotFailed, SnapshotTaken, TakeSnapshot
from app.core.multiplex import Compacted, Created
from app.core.reader import Phase, Reader
from app.core.snapshot import Snapshot
from tests.core.test_reader import live, put, reader, say, words

NEWS = [put(150, b"/a/new")]


def doubted() -> FeedCore:
    """A feed of three keys whose history was compacted away; its fresh start is reading."""
    core = live(put(5, b"/a/1"), put(6, b"/a/2"), put(7, b"/a/3"))
    say(core, 101, 102)
    core.handle(Compacted(120), 0.0)
    assert core.state is State.OPENING
    assert core.handle(Created(150), 0.0) == (TakeSnapshot(),)
    return core


def take(core: FeedCore) -> None:
    """The new state is read."""
    core.handle(SnapshotTaken(Snapshot.of(150, NEWS, block_bytes=1), 1), 0.0)


def read_all(each: Reader) -> list[str]:
    """All that it has now, for short."""
    said = b""
    while data := each.read(1 << 20):
        said += data
    return words(said)


def test_all_of_it_is_given_back() -> None:
    """View, what is encoded, and log; the position stays, so that a restore shows."""
    core = doubted()
    held, tip = core.bytes, core.history.log.tip
    assert core.history.reclaim_view() == held > 0
    assert (core.bytes, core.history.view, core.history.log.tip, core.history.view_reclaimed) == (0, None, tip, True)
    assert core.history.reclaim_view() == 0
    take(core)
    assert core.state is State.LIVE
    assert not core.history.view_reclaimed


def test_a_state_that_is_not_in_doubt_stays() -> None:
    """It is served, and what grows gives way to it."""
    core = live(put(5))
    assert core.history.reclaim_view() == 0
    assert core.history.view is not None


def test_who_is_within_a_state_that_is_given_up_is_told_in_the_end() -> None:
    """It can be told nothing else before its ``synced``. One that follows has its mirror, and is stale."""
    core = live(put(5, b"/a/1"), put(6, b"/a/2"))
    within, follows = reader(core), reader(core)
    within.read(1)
    read_all(follows)
    core.handle(Compacted(120), 0.0)
    assert not within.waits_in_vain(11.0, 10.0, in_trouble=True)
    core.history.reclaim_view()
    assert within.waits_in_vain(11.0, 10.0, in_trouble=True)
    assert not within.waits_in_vain(9.0, 10.0, in_trouble=True)
    assert not follows.waits_in_vain(11.0, 10.0, in_trouble=True)


def test_readers_wait_and_are_reset() -> None:
    """Those who follow, those who are behind, those in the middle of the state, and joiners."""
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
    assert words(follows.beat(stale=True)) == ["bookmark@102"]
    assert within.phase is Phase.SNAPSHOT
    take(core)
    for each in (behind, within, follows):
        assert read_all(each) == ["reset:compacted", "put@150", "synced@150"]
    assert read_all(joins) == ["reset:initial", "put@150", "synced@150"]


def test_a_state_that_cannot_be_read_is_tried_again() -> None:
    """Without the old one; what is said then is the same."""
    core = doubted()
    core.history.reclaim_view()
    core.handle(SnapshotFailed(), 0.0)
    assert core.state is State.START_RETRY
    assert core.bytes == 0
