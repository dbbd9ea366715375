"""``app.core.merge_below``: what a merge of a gateway below waits for is known here, without being asked."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from app.core.events import Batch, KeyValue
from app.core.history import History
from app.core.keys import KeyRange
from app.core.log import Bounds
from app.core.merge_below import MergeBelow
from app.core.selected_history import SelectedHistory
from app.core.selection import Ranges
from app.core.snapshot import Snapshot
from tests.core.test_selected_history import NoOlder

RANGES: list[Ranges] = [(KeyRange("prefix", b"/%d/" % number),) for number in range(3)]


def begun(revision: int) -> History:
    """A history without keys."""
    history = History(Bounds())
    history.install(Snapshot.of(revision, []), 1, oversized=False)
    return history


def put(history: History, number: int, revision: int) -> None:
    """An event of a new key in a range."""
    assert history.publish(Batch(revision, [KeyValue(b"/%d/%d" % (number, revision), b"", revision, revision, 1)]), 0.0)


def of(histories: list[History], on_wait: Callable[[], None] = lambda: None) -> MergeBelow:
    """A merge of all ranges, which has begun."""
    merge = MergeBelow(list(zip(histories, RANGES, strict=False)), on_wait)
    merge.follow()
    return merge


@given(
    tips=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    steps=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30),
)
def test_what_is_proven_here_is_all_that_the_merge_below_needs(tips: list[int], steps: list[tuple[int, bool]]) -> None:
    """The gateway below gets every event, and each move of a tip. etcd proves only the ranges that are awaited here."""
    above, below = [begun(tip) for tip in tips], [begun(1) for _ in tips]
    revision = max(tips)
    merge = of(above)
    selected = SelectedHistory(
        [(history, NoOlder(), ranges) for history, ranges in zip(below, RANGES, strict=True)], Bounds(), lambda: None
    )
    selected.follow(0.0)

    def prove() -> None:
        for part in merge.awaited:
            part.history.advance(revision, 0.0)
        assert not merge.awaited
        for here, there in zip(above, below, strict=True):
            there.advance(here.log.tip, 0.0)

    prove()
    for number, in_range in steps:
        revision += 1  # of another key of etcd's, unless it is in one of the ranges
        if in_range:
            put(above[number], number, revision)
            put(below[number], number, revision)
        prove()
    assert not selected.awaited
    assert selected.log.tip >= max((history.log.last.revision for history in above if history.log.last), default=0)


def test_progress_is_awaited_by_nobody() -> None:
    """An answer of etcd is above all events. If the others had to reach it, each answer would ask for the next one."""
    waits: list[int] = []
    histories = [begun(5), begun(5)]
    merge = of(histories, lambda: waits.append(len(merge.awaited)))
    histories[0].advance(9, 0.0)
    assert (waits, merge.awaited) == ([], frozenset())
    put(histories[0], 0, 10)
    assert waits == [1]
    histories[1].advance(9, 0.0)
    assert waits == [1]
    histories[1].advance(12, 0.0)
    assert waits == [1, 0]


def test_a_new_generation_is_awaited_from_its_own_revision() -> None:
    """After a restore all revisions are lower. What was written before must not be awaited for ever."""
    histories = [begun(5), begun(5)]
    merge = of(histories)
    put(histories[0], 0, 100)
    assert merge.awaited == {merge.parts[1]}
    for history in histories:
        history.unproven = "restored"
        history.install(Snapshot.of(7, []), 1, oversized=False)
    assert not merge.awaited


def test_who_has_left_waits_for_nothing() -> None:
    """The feeds tell it nothing any more."""
    histories = [begun(5), begun(5)]
    waits: list[int] = []
    merge = of(histories, lambda: waits.append(len(merge.awaited)))
    put(histories[0], 0, 6)
    histories[0].followers.forget()
    merge.leave()
    merge.leave()
    assert waits == [1, 0]
    assert [len(history.followers) for history in histories] == [0, 0]
