"""The judge itself: what it accepts, and each error that it must not accept."""

from __future__ import annotations

from typing import Any

import pytest

from tests.consistency.history import SHORT, Change, Chronicle, Several, Watched, kept
from tests.consistency.judge import Judge, ViolationError
from tests.support.streams import Event

RANGE = Watched("prefix", b"/a/")
E = "0123abcd"


def a_put(key: str, revision: int, create: int, version: int, **more: Any) -> dict[str, Any]:
    """A put as it is on the wire."""
    return {
        "type": "put", "key": key, "value": "v", "create_revision": create, "mod_revision": revision,
        "version": version, **more,
    }  # fmt: skip


def event(data: dict[str, Any], revision: int | None = None) -> Event:
    """An event with the cursor of *revision*."""
    return Event(data["type"], data, None if revision is None else f"{E}-{revision}")


def reset(reason: str = "initial") -> Event:
    """The beginning of a state: a reset event."""
    return event({"type": "reset", "reason": reason, "ranges": ["prefix=/a/"]}, 0)


def synced(revision: int) -> Event:
    """The end of a state, or of a replay: a synced event."""
    return event({"type": "synced", "revision": revision, "heartbeat": 1}, revision)


def bookmark(revision: int, state: str = "live") -> Event:
    """A bookmark, as a heartbeat."""
    return event({"type": "bookmark", "revision": revision, "state": state}, revision)


def delete(key: str, revision: int, **more: Any) -> dict[str, Any]:
    """A delete as it is on the wire."""
    return {"type": "delete", "key": key, "mod_revision": revision, **more}


K, L = b"/a/k", b"/a/l"
TRUTH: list[tuple[int, list[Change]]] = [
    (2, [Change(K, 2, b"v", 2, 1)]),
    (3, [Change(b"/other", 3, b"v", 3, 1)]),
    (4, [Change(K, 4, b"v", 2, 2), Change(L, 4, b"v", 4, 1)]),
    (5, [Change(L, 5)]),
    (6, [Change(K, 6, b"v", 2, 3)]),
]
AT_2 = [reset(), event(a_put("/a/k", 2, 2, 1)), synced(2)]
FOUR = [event(a_put("/a/k", 4, 2, 2, more=True)), event(a_put("/a/l", 4, 4, 1), 4)]
FIVE = event(delete("/a/l", 5), 5)
SIX = event(a_put("/a/k", 6, 2, 3), 6)


@pytest.fixture(name="judge")
def _judge() -> Judge:
    chronicle = Chronicle()
    for revision, changes in TRUTH:
        chronicle.now.add(revision, changes, float(revision))
    return Judge(RANGE, chronicle, bound=5.0)


def see(judge: Judge, *events: Event, now: float = 10.0) -> None:
    """Pass one stream's events to the judge."""
    judge.connect("a stream", now)
    for one in events:
        judge.receive(one, now)


def test_a_state_may_end_before_its_end(judge: Judge) -> None:
    """A generation that ends while its state is sent: the reset has the reason of the next generation."""
    see(judge, reset(), event(a_put("/a/k", 2, 2, 1)), reset("compacted"), event(a_put("/a/k", 2, 2, 1)), synced(3))
    judge.settle(final=True)
    assert judge.resets == ["initial", "compacted"]
    with pytest.raises(ViolationError, match="a reset of nothing"):
        see(Judge(RANGE, judge.chronicle, bound=5.0), reset("compacted"))


def test_the_truth_passes(judge: Judge) -> None:
    """The judge accepts a state, changes, a transaction, a bookmark; and, resumed, the rest."""
    see(judge, *AT_2, *FOUR, bookmark(4))
    see(judge, FIVE, SIX, synced(6), bookmark(6))
    judge.settle(final=True)

    assert judge.stand == 6
    assert judge.cursor == f"{E}-6"


def test_what_history_has_confirmed_is_a_delivery(judge: Judge) -> None:
    """Neither half a revision nor what nobody has compared yet counts; an item of a state counts, a read does not."""
    see(judge, *AT_2, *FOUR, FOUR[0])
    assert judge.delivered == {}
    judge.settle()
    assert (judge.delivered, judge.items) == ({0: 3}, 1)
    judge.connect("an edge", 10.0, tier=2)
    judge.receive(FIVE, 10.0)
    judge.adopt(f"{E}-6", 6, [a_put("/a/k", 6, 2, 3)], 10.0)
    judge.settle(final=True)
    assert (judge.delivered, judge.items) == ({0: 3, 2: 1}, 1)


@pytest.mark.parametrize("size", [SHORT, SHORT + 1, 30_000])
def test_a_long_value_is_compared(size: int) -> None:
    """History keeps a digest of a long value: the same value passes, and one with another byte does not."""
    chronicle = Chronicle()
    chronicle.now.add(2, [Change(K, 2, kept(b"v" * size), 2, 1)], 2.0)

    def judged(value: str) -> None:
        judge = Judge(RANGE, chronicle, bound=5.0)
        see(judge, reset(), event({**a_put("/a/k", 2, 2, 1), "value": value}), synced(2))
        judge.settle(final=True)

    judged("v" * size)
    with pytest.raises(ViolationError, match="no history knows this"):
        judged("v" * (size - 1) + "w")
    assert len(kept(b"v" * size)) <= SHORT


def test_a_cut_revision_comes_again(judge: Judge) -> None:
    """A revision that a stream leaves unfinished counts for nothing, and must come again."""
    see(judge, *AT_2, FOUR[0])
    see(judge, *FOUR, synced(4))
    judge.settle(final=True)


@pytest.mark.parametrize(
    ("events", "why"),
    [
        pytest.param([*AT_2, FIVE], "no history knows this", id="a lost revision"),
        pytest.param([*AT_2, bookmark(4)], "no history knows this", id="a bookmark ahead of its subscriber"),
        pytest.param([*AT_2, *FOUR, bookmark(7)], "no history knows this", id="a bookmark ahead of etcd"),
        pytest.param([*AT_2, *FOUR, *FOUR], "came again", id="a revision twice"),
        pytest.param([*AT_2, *FOUR, event(a_put("/a/k", 2, 2, 1), 2)], "came again", id="out of order"),
        pytest.param([*AT_2, event(a_put("/a/k", 4, 2, 2), 4)], "no history knows this", id="half a revision"),
        pytest.param([*AT_2, FOUR[0], SIX], "not completed", id="an unfinished revision"),
        pytest.param([*AT_2, FOUR[0], bookmark(2)], "id inside a revision", id="a bookmark inside a revision"),
        pytest.param(
            [*AT_2, event(a_put("/a/k", 4, 2, 2, more=True), 4)], "id inside a revision", id="an id inside a revision"
        ),
        pytest.param([reset(), synced(2)], "no history knows this", id="synced too early"),
        pytest.param([reset(), event(a_put("/a/k", 2, 2, 1), 2)], "id inside a snapshot", id="an id in a snapshot"),
        pytest.param([reset(), *[AT_2[1]] * 2], "twice in a snapshot", id="a key twice in a snapshot"),
        pytest.param([*AT_2, synced(2)], "synced twice", id="synced twice"),
        pytest.param([synced(2)], "synced without a state", id="synced with nothing"),
        pytest.param([*FOUR], "before any state", id="changes with nothing"),
        pytest.param([*AT_2, *FOUR, reset("lagged"), AT_2[1], synced(2)], "a reset to before", id="a reset to before"),
        pytest.param([Event("reset", reset().data, f"{E}-2")], "carries revision 0", id="a reset's id"),
        pytest.param([*AT_2, event(a_put("/other", 3, 3, 1), 3)], "another range", id="another range"),
        pytest.param(
            [*AT_2, event({"type": "close", "reason": "drain", "retry_ms": 1}), *FOUR], "after close", id="after close"
        ),
        pytest.param([*AT_2, event(a_put("/a/k", 4, 2, 9), 4)], "no history knows this", id="another version"),
    ],
)
def test_what_must_not_be(judge: Judge, events: list[Event], why: str) -> None:
    """The judge rejects each way to a wrong mirror."""

    def judged() -> None:
        see(judge, *events)
        judge.settle(final=True)

    with pytest.raises(ViolationError, match=why):
        judged()


def test_a_resume_that_skips(judge: Judge) -> None:
    """The judge rejects a resume with a cursor off by one."""
    see(judge, *AT_2)
    see(judge, FIVE)
    with pytest.raises(ViolationError, match="no history knows this"):
        judge.settle(final=True)


def test_a_cursor_of_another_request(judge: Judge) -> None:
    """A gateway can only answer the cursor of another request with a reset."""
    judge.bring("ffffffff-4")
    with pytest.raises(ViolationError, match="without a state"):
        see(judge, event({"type": "synced", "revision": 6, "heartbeat": 1}, 6))


def test_live_while_something_is_missing(judge: Judge) -> None:
    """A mirror may report live while something is missing, up to its bound; beyond the bound, that is a lie. Stale or
    silent streams do not report that they are live.
    """
    see(judge, *AT_2, *FOUR, now=10.0)
    judge.check_live(12.9)
    for now in (11.0, 12.0, 13.0, 14.0, 15.0):
        judge.receive(bookmark(4), now)
    with pytest.raises(ViolationError, match="reports live at 4"):
        judge.check_live(15.1)
    judge.receive(bookmark(4, "stale"), 16.0)
    judge.check_live(16.1)


SEVERAL = Several((Watched("prefix", b"/other"), Watched("key", L), Watched("key", K)))
NAMES = ["key=/a/k", "key=/a/l", "prefix=/other"]
THREE = event(a_put("/other", 3, 3, 1), 3)


def several(judge: Judge) -> Judge:
    """A judge of several ranges."""
    return Judge(SEVERAL, judge.chronicle, bound=5.0)


def begin(names: list[str]) -> list[Event]:
    """The state at 2, of ranges of these names."""
    return [event({"type": "reset", "reason": "initial", "ranges": names}, 0), *AT_2[1:]]


def test_several_ranges_are_one(judge: Judge) -> None:
    """The order of one revision's events is free; everything else is as for one range."""
    judge = several(judge)
    put_l, put_k = event(a_put("/a/l", 4, 4, 1, more=True)), event(a_put("/a/k", 4, 2, 2), 4)
    see(judge, *begin(NAMES), THREE, put_l, put_k, FIVE, SIX, bookmark(6))
    judge.settle(final=True)
    assert judge.stand == 6


@pytest.mark.parametrize(
    ("events", "why"),
    [
        pytest.param([*begin(NAMES), *FOUR], "no history knows this", id="released without another range"),
        pytest.param([*begin(NAMES), THREE, event(a_put("/a/k", 4, 2, 2), 4)], "no history knows", id="divided"),
        pytest.param(
            [*begin(NAMES), THREE, event(a_put("/a/k", 4, 2, 2), 4), event(a_put("/a/l", 4, 4, 1), 4)],
            "came again",
            id="divided, and completed",
        ),
        pytest.param(begin([*reversed(NAMES)]), "a reset of", id="ranges that are not sorted"),
        pytest.param(begin(NAMES[:2]), "a reset of", id="not all ranges"),
        pytest.param(
            [*begin(NAMES), event({"type": "status", "state": "stale", "ranges": ["prefix=/a/"]})],
            "the status of other ranges",
            id="the status of another range",
        ),
    ],
)
def test_what_must_not_be_of_several_ranges(judge: Judge, events: list[Event], why: str) -> None:
    """The judge rejects what is not true of all ranges."""

    def judged() -> None:
        one = several(judge)
        see(one, *events)
        one.settle(final=True)

    with pytest.raises(ViolationError, match=why):
        judged()


def test_a_stream_of_keys(judge: Judge) -> None:
    """It has every put, and no value."""
    judge = Judge(RANGE, judge.chronicle, bound=5.0, keys_only=True)

    def bare(one: Event) -> Event:
        return Event(one.type, {name: value for name, value in one.data.items() if name != "value"}, one.id)

    see(judge, *map(bare, [*AT_2, *FOUR, FIVE, SIX]))
    judge.settle(final=True)
    judge.forget()
    with pytest.raises(ViolationError, match="a value on a stream of keys"):
        see(judge, *map(bare, AT_2), *FOUR)


FLUSH = [event(delete("/a/l", 5, more=True)), event(a_put("/a/k", 6, 2, 3), 6)]


@pytest.mark.parametrize(
    ("events", "why"),
    [
        pytest.param(FLUSH, "", id="the truth"),
        pytest.param(
            [event(a_put("/a/k", 4, 2, 2, more=True)), event(a_put("/a/l", 4, 4, 1), 4), *FLUSH], "", id="two"
        ),
        pytest.param([event(delete("/a/l", 5), 5)], "no history knows this", id="a key is missing"),
        pytest.param([event(a_put("/a/k", 6, 2, 3), 6)], "no history knows this", id="a delete is missing"),
        pytest.param([FOUR[0], *FLUSH], "no history knows this", id="a key twice"),
        pytest.param(
            [event(a_put("/a/k", 4, 2, 2, more=True)), event(a_put("/a/l", 4, 4, 1), 5)],
            "no history knows this",
            id="an id from the end of the flush",
        ),
        pytest.param(
            [event(a_put("/a/k", 6, 2, 3, more=True)), event(delete("/a/l", 5), 6)], "not in order", id="not in order"
        ),
    ],
)
def test_the_newest_of_each_key(judge: Judge, events: list[Event], why: str) -> None:
    """A flush is the newest change of each key between two ids."""
    judge = Judge(RANGE, judge.chronicle, bound=5.0, latest=True)

    def judged() -> None:
        see(judge, *AT_2, *events)
        judge.settle(final=True)

    if why:
        with pytest.raises(ViolationError, match=why):
            judged()
    else:
        judged()


def test_a_quiet_mirror_moves_on(judge: Judge) -> None:
    """With progress that can be trusted, a cursor must not grow old."""
    moves = Judge(Watched("key", b"/quiet"), judge.chronicle, bound=5.0, moves=True)
    quiet = event({"type": "reset", "reason": "initial", "ranges": ["key=/quiet"]}, 0)
    see(moves, quiet, synced(3), now=4.0)
    for now in range(5, 10):
        moves.receive(bookmark(3), now)
        moves.check_live(now)
    moves.receive(bookmark(3), 10.0)
    with pytest.raises(ViolationError, match="does not move on"):
        moves.check_live(10.0)
    moves.receive(bookmark(6), 10.0)
    moves.check_live(10.0)


def test_a_restore_that_nobody_noticed(judge: Judge) -> None:
    """The new history has passed the mirror's revision, and its changes come as if they were of the old history."""
    see(judge, *AT_2, *FOUR, FIVE, SIX)
    chronicle = judge.chronicle
    chronicle.restore(chronicle.now, 3, at=20.0)
    chronicle.now.add(7, [Change(K, 7, b"w", 2, 2)], 21.0)
    judge.receive(event({**a_put("/a/k", 7, 2, 2), "value": "w"}, 7), 21.0)

    with pytest.raises(ViolationError, match="no history knows this"):
        judge.settle(final=True)


def test_a_restore_that_changes_nothing_for_the_range(judge: Judge) -> None:
    """A mirror whose content is the same in both histories may go on."""
    see(judge, *AT_2)
    chronicle = judge.chronicle
    chronicle.restore(chronicle.now, 2, at=20.0)
    chronicle.now.add(9, [Change(K, 9, b"v", 2, 2)], 21.0)
    judge.receive(event(a_put("/a/k", 9, 2, 2), 9), 21.0)
    judge.settle(final=True)
