"""``app.core.feed`` by named examples: the result of each input in each state, and the proof of each plan.

Random walks are in ``test_feed_machine``; here the table is a specification to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import pytest
from hypothesis import given as given_by
from hypothesis import strategies as st

from app.core.events import Batch, Delete, Event, KeyValue
from app.core.feed import TABLE, FeedCore, State
from app.core.feed_messages import (
    AwaitProof,
    Batches,
    CloseWatch,
    Command,
    Commands,
    Compacted,
    Created,
    EndProof,
    FeedInput,
    Lost,
    OpenWatch,
    Probe,
    Probed,
    Progress,
    Refused,
    Reset,
    Restored,
    Retry,
    RetryDue,
    SnapshotFailed,
    SnapshotTaken,
    Start,
    Stop,
    SyncTimeout,
    TakeSnapshot,
    TellRestored,
    WantBackfill,
)
from app.core.log import Bounds
from app.core.reasons import ResetReason
from app.core.snapshot import Snapshot
from app.core.state_table import InvalidTransitionError

BOUNDS = Bounds(batches=100, bytes=3000, age=600.0)
REACH_BACK = 50
EVERYTHING = 1 << 40


def put(revision: int, key: bytes = b"", value: bytes = b"v") -> KeyValue:
    """A first put: of a key that no other revision has, unless *key* is given."""
    return KeyValue(key or b"%d" % revision, value, revision, revision, 1)


def batches(*revisions: int) -> Batches:
    """A first put in each of *revisions*."""
    return Batches(tuple(Batch(revision, [put(revision)]) for revision in revisions))


def late(*revisions: int) -> Batches:
    """A first put in each of *revisions*, in a message that may have found etcd's channel full."""
    return Batches(batches(*revisions).batches, late=True)


def said(*events: Event) -> Batches:
    """One revision with these events."""
    return Batches((Batch(events[0].mod_revision, events),))


def heavy(*revisions: int) -> Batches:
    """Revisions so large that two do not fit the bounds."""
    return Batches(tuple(Batch(revision, [put(revision, value=b"v" * 1200)]) for revision in revisions))


def taken(revision: int, *items: KeyValue, cluster_id: int = 1) -> SnapshotTaken:
    """A snapshot."""
    return SnapshotTaken(Snapshot.of(revision, items), cluster_id)


@dataclass(frozen=True)
class Path:
    """Inputs that lead a new feed to some state."""

    inputs: tuple[FeedInput, ...]
    reach_back: int = REACH_BACK

    def then(self, *inputs: FeedInput) -> Path:
        """The path with more inputs."""
        return Path((*self.inputs, *inputs), self.reach_back)

    def walk(self) -> FeedCore:
        """A new feed after these inputs."""
        core = FeedCore(BOUNDS, self.reach_back)
        for given in self.inputs:
            core.handle(given, 0.0)
        return core


TAKEN = taken(100, put(90))
SURE = Progress(100, trusted=True)

IDLE = Path(())
OPENING = IDLE.then(Start(backfill=False))
SNAPSHOTTING = OPENING.then(Created(99))
START_RETRY = OPENING.then(Lost("gone"))
LIVE = SNAPSHOTTING.then(TAKEN)
WATCH_RETRY = LIVE.then(Lost("gone"))
# The anchor is the snapshot's newest put, at 90.
OVERLAP = WATCH_RETRY.then(RetryDue())
# Quiet for longer than the feed may reach back: no anchor is near enough.
QUIET = LIVE.then(Progress(141, trusted=True))
PROBE = QUIET.then(Lost("gone"), RetryDue())
CONFIRMING_PROBE = PROBE.then(Created(141))
# A message over the limit broke a stream; the message may have been this feed's.
TOO_LARGE = Lost("too large", too_large=True)
ALONE = LIVE.then(TOO_LARGE, RetryDue())
ALONE_LIVE = ALONE.then(Created(105), batches(90))
ALONE_CONFIRMING = PROBE.then(TOO_LARGE, RetryDue(), Created(141))
CLOSED = LIVE.then(Stop())

# An upstream gateway has lost the history.
RESET = Reset("lagged")

ANEW = (CloseWatch(), OpenWatch(0))
UNPROVEN_ANEW = (EndProof(), *ANEW)

Case = tuple[Path, FeedInput, State, tuple[Command, ...]]
S = State
CASES: dict[str, Case] = {
    # A fresh watch first, then the snapshot.
    "nobody has a cursor: the watch first": (IDLE, Start(backfill=False), S.OPENING, (OpenWatch(0),)),
    "somebody has a cursor: no other way": (IDLE, Start(backfill=True), S.OPENING, (OpenWatch(0),)),
    "stopped before it began": (IDLE, Stop(), S.CLOSED, (CloseWatch(),)),
    "the watch is open: now the snapshot": (OPENING, Created(99), S.SNAPSHOTTING, (TakeSnapshot(),)),
    "refused": (OPENING, Refused("no"), S.START_RETRY, (CloseWatch(), Retry(0))),
    "compacted, though from now on": (OPENING, Compacted(5), S.START_RETRY, (CloseWatch(), Retry(0))),
    "lost before it opened": (OPENING, Lost("gone"), S.START_RETRY, (CloseWatch(), Retry(0))),
    "progress of a watch that says nothing yet": (OPENING, SURE, S.OPENING, ()),
    "restored before the snapshot": (OPENING, Restored(), S.OPENING, ()),
    "the upstream resets it before it opened": (OPENING, RESET, S.START_RETRY, (CloseWatch(), Retry(0))),
    "stopped while opening": (OPENING, Stop(), S.CLOSED, (CloseWatch(),)),
    "the snapshot is there": (SNAPSHOTTING, TAKEN, S.LIVE, ()),
    "what came after the snapshot does not follow from it": (
        SNAPSHOTTING.then(said(put(101, b"90"))), TAKEN, S.OPENING, ANEW
    ),
    "no snapshot": (SNAPSHOTTING, SnapshotFailed(), S.START_RETRY, (CloseWatch(), Retry(0))),
    "events before the snapshot": (SNAPSHOTTING, batches(100, 101), S.SNAPSHOTTING, ()),
    "more events before the snapshot than fit": (
        SNAPSHOTTING.then(heavy(101)), heavy(102), S.START_RETRY, (CloseWatch(), Retry(0))
    ),
    "progress before the snapshot": (SNAPSHOTTING, SURE, S.SNAPSHOTTING, ()),
    "compacted before the snapshot": (SNAPSHOTTING, Compacted(5), S.START_RETRY, (CloseWatch(), Retry(0))),
    "refused before the snapshot": (SNAPSHOTTING, Refused("no"), S.START_RETRY, (CloseWatch(), Retry(0))),
    "lost before the snapshot": (SNAPSHOTTING, Lost("gone"), S.START_RETRY, (CloseWatch(), Retry(0))),
    "restored while the snapshot is read": (SNAPSHOTTING, Restored(), S.START_RETRY, (CloseWatch(), Retry(0))),
    "the upstream resets it before the snapshot": (SNAPSHOTTING, RESET, S.START_RETRY, (CloseWatch(), Retry(0))),
    "stopped before the snapshot": (SNAPSHOTTING, Stop(), S.CLOSED, (CloseWatch(),)),
    "again": (START_RETRY, RetryDue(), S.OPENING, (OpenWatch(0),)),
    "restored meanwhile": (START_RETRY, Restored(), S.START_RETRY, ()),
    "stopped meanwhile": (START_RETRY, Stop(), S.CLOSED, (CloseWatch(),)),
    # A watch that started in the past must prove itself.
    "catching up: proof is wanted": (OVERLAP, Created(100), S.CATCHING_UP, (AwaitProof(),)),
    "nothing lies between: no proof needed": (PROBE, Created(141), S.CONFIRMING, (EndProof(), Probe(141))),
    "something may lie between": (PROBE, Created(142), S.CATCHING_UP, (AwaitProof(),)),
    "the anchor as we know it": (OVERLAP, said(put(90)), S.LIVE, (EndProof(),)),
    "news, not yet all": (PROBE.then(Created(144)), batches(143), S.CATCHING_UP, ()),
    "news, all of them": (PROBE.then(Created(144)), batches(144), S.CONFIRMING, (EndProof(), Probe(141))),
    "slow, and nothing of ours yet": (PROBE.then(Created(144)), Batches((), slow=True), S.CATCHING_UP, ()),
    "another anchor": (OVERLAP, said(put(90, value=b"x")), S.OPENING, (*UNPROVEN_ANEW, TellRestored())),
    "another revision than the anchor's": (OVERLAP, batches(91), S.OPENING, UNPROVEN_ANEW),
    "progress to the end": (
        PROBE.then(Created(144)), Progress(144, trusted=True), S.CONFIRMING, (EndProof(), Probe(141))
    ),
    "progress before the end": (PROBE.then(Created(144)), Progress(143, trusted=True), S.CATCHING_UP, ()),
    "progress of a version that overtakes": (
        PROBE.then(Created(144)), Progress(144, trusted=False), S.CATCHING_UP, ()
    ),
    "progress before it was created": (PROBE, Progress(144, trusted=True), S.CATCHING_UP, ()),
    "progress, and no anchor": (OVERLAP.then(Created(100)), SURE, S.OPENING, UNPROVEN_ANEW),
    "the anchor compacted": (OVERLAP, Compacted(95), S.CATCHING_UP, (EndProof(), OpenWatch(101))),
    "all compacted": (OVERLAP, Compacted(101), S.OPENING, UNPROVEN_ANEW),
    "no proof in time": (OVERLAP, SyncTimeout(), S.OPENING, UNPROVEN_ANEW),
    "catching up refused": (OVERLAP, Refused("no"), S.WATCH_RETRY, (EndProof(), CloseWatch(), Retry(1))),
    "lost again": (OVERLAP, Lost("gone"), S.WATCH_RETRY, (EndProof(), CloseWatch(), Retry(1))),
    "restored while catching up": (OVERLAP, Restored(), S.OPENING, UNPROVEN_ANEW),
    "the upstream does not go on": (PROBE, RESET, S.OPENING, UNPROVEN_ANEW),
    "stopped while catching up": (OVERLAP, Stop(), S.CLOSED, (EndProof(), CloseWatch())),
    # Complete, if nothing below was compacted during the read.
    "proven": (CONFIRMING_PROBE, Probed("ok"), S.LIVE, ()),
    "proven on a stream to itself: now to a live one": (
        ALONE_CONFIRMING, Probed("ok"), S.CATCHING_UP, (EndProof(), OpenWatch(142))
    ),
    "compacted under it": (CONFIRMING_PROBE, Probed("compacted"), S.OPENING, ANEW),
    "a member that has not heard of its start": (CONFIRMING_PROBE, Probed("future"), S.OPENING, ANEW),
    "no answer": (CONFIRMING_PROBE, Probed("failed"), S.WATCH_RETRY, (CloseWatch(), Retry(1))),
    "events meanwhile": (CONFIRMING_PROBE, batches(142), S.CONFIRMING, ()),
    "more events meanwhile than fit": (CONFIRMING_PROBE.then(heavy(142)), heavy(143), S.OPENING, ANEW),
    "progress meanwhile": (CONFIRMING_PROBE, SURE, S.CONFIRMING, ()),
    "a late anchor compacted while confirming": (
        OVERLAP.then(Created(100), late(90)), Compacted(95), S.CATCHING_UP, (EndProof(), OpenWatch(101))
    ),
    "compacted after a tip without anchor": (CONFIRMING_PROBE, Compacted(141), S.OPENING, ANEW),
    "refused meanwhile": (CONFIRMING_PROBE, Refused("no"), S.WATCH_RETRY, (CloseWatch(), Retry(1))),
    "lost meanwhile": (CONFIRMING_PROBE, Lost("gone"), S.WATCH_RETRY, (CloseWatch(), Retry(1))),
    "restored while confirming": (CONFIRMING_PROBE, Restored(), S.OPENING, ANEW),
    "the upstream does not go on, while confirming": (CONFIRMING_PROBE, RESET, S.OPENING, ANEW),
    "stopped while confirming": (CONFIRMING_PROBE, Stop(), S.CLOSED, (CloseWatch(),)),
    # The inputs that a live feed gets, and those that may end its being live.
    "news": (LIVE, batches(101, 103), S.LIVE, ()),
    "what the snapshot holds": (LIVE, batches(95), S.LIVE, ()),
    "what cannot be: not after the tip": (QUIET, batches(120), S.OPENING, ANEW),
    "progress": (LIVE, Progress(105, trusted=True), S.LIVE, ()),
    "compaction overtook a slow watch": (LIVE, Compacted(100), S.CATCHING_UP, (EndProof(), OpenWatch(101))),
    "compaction overtook us too": (LIVE, Compacted(101), S.OPENING, ANEW),
    "history where news should be: the watch was a slow one": (
        LIVE, Batches(batches(101, 103).batches, slow=True), S.CATCHING_UP, (EndProof(), OpenWatch(90))
    ),
    "something was written after a late message": (
        LIVE.then(late(101)), Batches((), slow=True), S.CATCHING_UP, (EndProof(), OpenWatch(101))
    ),
    "late news are right": (LIVE, late(101), S.LIVE, ()),
    "a late anchor needs a probe, too": (
        OVERLAP.then(Created(103)), late(90, 103), S.CONFIRMING, (EndProof(), Probe(90))
    ),
    "a late anchor, and it was compacted": (
        OVERLAP.then(Created(103), late(90, 103)), Probed("compacted"), S.OPENING, ANEW
    ),
    "slow before the snapshot": (
        SNAPSHOTTING.then(Batches((), slow=True)), TAKEN, S.CATCHING_UP, (EndProof(), OpenWatch(90))
    ),
    "slow while confirming": (
        CONFIRMING_PROBE.then(Batches((), slow=True)), Probed("ok"), S.CATCHING_UP, (EndProof(), OpenWatch(142))
    ),
    "refused while live": (LIVE, Refused("no"), S.WATCH_RETRY, (CloseWatch(), Retry(0))),
    "lost": (LIVE, Lost("gone"), S.WATCH_RETRY, (CloseWatch(), Retry(0))),
    "restored": (LIVE, Restored(), S.OPENING, ANEW),
    "the upstream does not go on, while live": (LIVE, RESET, S.OPENING, ANEW),
    "stopped": (LIVE, Stop(), S.CLOSED, (CloseWatch(),)),
    "after a break: at the anchor": (WATCH_RETRY, RetryDue(), S.CATCHING_UP, (EndProof(), OpenWatch(90))),
    "after a break: no anchor is near": (
        QUIET.then(Lost("gone")), RetryDue(), S.CATCHING_UP, (EndProof(), OpenWatch(142))
    ),
    # A message over the limit: each watch of the stream goes on alone, and then it is known whose message it was.
    "too large while live": (LIVE, TOO_LARGE, S.WATCH_RETRY, (CloseWatch(), Retry(0))),
    "too large while catching up": (OVERLAP, TOO_LARGE, S.WATCH_RETRY, (EndProof(), CloseWatch(), Retry(1))),
    "too large while confirming": (CONFIRMING_PROBE, TOO_LARGE, S.WATCH_RETRY, (CloseWatch(), Retry(1))),
    "too large before the snapshot": (SNAPSHOTTING, TOO_LARGE, S.START_RETRY, (CloseWatch(), Retry(0))),
    "on alone, at the anchor": (
        LIVE.then(TOO_LARGE), RetryDue(), S.CATCHING_UP, (EndProof(), OpenWatch(90, "dedicated"))
    ),
    "on alone, without anchor": (
        PROBE.then(TOO_LARGE), RetryDue(), S.CATCHING_UP, (EndProof(), OpenWatch(142, "dedicated"))
    ),
    "lost for another reason, and still a suspect": (
        ALONE.then(Lost("gone")), RetryDue(), S.CATCHING_UP, (EndProof(), OpenWatch(90, "dedicated"))
    ),
    "alone, and the anchor came: there may be more": (ALONE.then(Created(105)), batches(90), S.LIVE, (EndProof(),)),
    "alone, and that was all: back": (
        ALONE.then(Created(100)), batches(90), S.CATCHING_UP, (EndProof(), OpenWatch(90))
    ),
    "alone, with all news: back": (ALONE_LIVE, batches(105), S.CATCHING_UP, (EndProof(), OpenWatch(105))),
    "alone, and no more news: back": (
        ALONE_LIVE, Progress(105, trusted=False), S.CATCHING_UP, (EndProof(), OpenWatch(90))
    ),
    "it was ours": (ALONE, TOO_LARGE, S.OPENING, UNPROVEN_ANEW),
    "it was ours, after others": (ALONE_LIVE, TOO_LARGE, S.OPENING, ANEW),
    "it was ours, without anchor": (ALONE_CONFIRMING, TOO_LARGE, S.OPENING, ANEW),
    "restored after a break": (WATCH_RETRY, Restored(), S.OPENING, ANEW),
    "stopped after a break": (WATCH_RETRY, Stop(), S.CLOSED, (CloseWatch(),)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_state_makes_of_an_input(name: str) -> None:
    """Each input leads to the expected state and commands, in order."""
    path, given, state, commands = CASES[name]
    core = path.walk()
    assert core.handle(given, 0.0) == commands
    assert core.state is state


def test_every_way_of_the_table_is_shown() -> None:
    """The examples reach every row of the table, and no transition leads outside the table."""
    shown = {(path.walk().state, type(given), state) for path, given, state, _ in CASES.values()}
    promised = {(state, given, to) for (state, given), entry in TABLE.items() for to in entry.leads_to}
    assert shown - promised == set()
    assert promised - shown == set()


PLACES = (
    IDLE,
    OPENING,
    SNAPSHOTTING,
    START_RETRY,
    OVERLAP,
    PROBE,
    CONFIRMING_PROBE,
    LIVE,
    WATCH_RETRY,
    CLOSED,
)
INPUTS: tuple[FeedInput, ...] = (
    Start(backfill=True), TAKEN, SnapshotFailed(), Probed("ok"), RetryDue(), SyncTimeout(), Restored(),
    Stop(), Created(200), batches(200), Progress(200, trusted=True), Compacted(200), Refused("no"), Lost("gone"),
    RESET,
)  # fmt: skip


def portrait(core: FeedCore) -> list[object]:
    """Everything that a feed knows."""
    history = core.history
    log, view, proof = history.log, history.view, core._proof
    return [
        dict(vars(core)),
        dict(vars(history)),
        (log.generation, log.floor, log.tip, len(log), log.bytes),
        None if view is None else (view.revision, len(view), view.bytes),
        None if proof is None else replace(proof, held=list(proof.held)),
    ]


def test_what_a_state_does_not_know_changes_nothing() -> None:
    """Every pair of state and input that the table lacks is refused by name, and leaves the feed unchanged."""
    assert {path.walk().state for path in PLACES} == set(State)
    assert {type(given) for given in INPUTS} == set(get_args(FeedInput))
    for path in PLACES:
        for given in INPUTS:
            core = path.walk()
            if (core.state, type(given)) in TABLE:
                continue
            before = portrait(core)
            with pytest.raises(InvalidTransitionError, match=f"{type(given).__name__} in state {core.state.value}"):
                core.handle(given, 0.0)
            assert portrait(core) == before


def revisions(core: FeedCore) -> list[int]:
    """The revisions in the feed's log."""
    return [batch.revision for batch in core.history.log.after(core.history.log.floor, EVERYTHING)]


def state(core: FeedCore) -> dict[bytes, int]:
    """The keys of the feed's view, and the revisions that wrote them."""
    assert core.history.view is not None
    return {item.key: item.mod_revision for item in core.history.view.snapshot(core.history.log.tip).items}


def send(core: FeedCore, *inputs: FeedInput) -> Commands:
    """Pass the inputs one after the other; return the commands of the last."""
    commands: Commands = ()
    for given in inputs:
        commands = core.handle(given, 0.0)
    return commands


def test_a_fresh_start_publishes_what_the_snapshot_lacks() -> None:
    """Events up to the snapshot are in the snapshot already; later events are published once."""
    core = SNAPSHOTTING.then(batches(90, 100, 101), batches(103)).walk()
    assert not core.history.joinable
    send(core, TAKEN)
    assert core.history.joinable
    assert (revisions(core), core.history.log.floor, core.history.log.tip) == ([101, 103], 100, 103)
    assert (state(core), core.history.events) == ({b"90": 90, b"101": 101, b"103": 103}, 2)


def test_what_was_held_before_a_retry_is_forgotten() -> None:
    """Events held before a retry are forgotten: the next watch sends them again, or the next snapshot includes them."""
    core = SNAPSHOTTING.then(batches(101), Lost("gone")).walk()
    assert core.bytes == 0
    send(core, RetryDue(), Created(102), taken(102, put(102)))
    assert (revisions(core), core.history.log.tip) == ([], 102)


def test_only_trusted_progress_moves_the_tip() -> None:
    """Progress that may overtake events proves nothing; the view and the generation stay."""
    core = LIVE.walk()
    send(core, Progress(105, trusted=False))
    assert core.history.log.tip == 100
    send(core, Progress(105, trusted=True))
    assert (core.history.log.tip, core.history.log.generation, revisions(core)) == (105, 1, [])


def test_one_revision_larger_than_the_bound_is_held() -> None:
    """A revision larger than the bound is held: it reaches every reader that keeps up, as in the log."""
    giant = said(put(142, value=b"v" * 5000))
    core = CONFIRMING_PROBE.walk()
    assert send(core, giant) == ()
    send(core, Probed("ok"))
    assert revisions(core) == [142]


# --- OVERLAP ---------------------------------------------------------------------------------------------------------


def test_after_a_break_it_goes_on_after_the_anchor() -> None:
    """The anchor comes again and is not published again; the missed revisions are published."""
    core = LIVE.then(batches(105), Lost("gone")).walk()
    assert send(core, RetryDue()) == (EndProof(), OpenWatch(105))
    send(core, Created(107), batches(105, 106, 107))
    assert (core.state, revisions(core), core.history.events) == (State.LIVE, [105, 106, 107], 3)
    assert core.history.log.generation == 1


@pytest.mark.parametrize(
    ("found", "proven"),
    [
        ((put(105, b"a"), put(105, b"b")), True),
        ((put(105, b"a"),), False),
        ((put(105, b"b"), put(105, b"a")), False),
        ((put(105, b"a"), put(105, b"b"), put(105, b"c")), False),
        ((put(105, b"a"), put(105, b"b", b"x")), False),
        ((put(105, b"a"), Delete(b"b", 105)), False),
    ],
)
def test_an_anchor_that_was_seen_must_come_whole(found: Sequence[Event], proven: bool) -> None:
    """Of a revision that etcd sent to the feed, the feed knows every event, so all must come again."""
    core = LIVE.then(said(put(105, b"a"), put(105, b"b")), Lost("gone"), RetryDue()).walk()
    send(core, said(*found))
    assert (core.state is State.LIVE) == proven


def test_an_anchor_of_a_snapshot_may_bring_more() -> None:
    """Of a revision in a snapshot, the feed only knows the puts that were not overwritten or deleted since."""
    core = OVERLAP.walk()
    send(core, said(put(90), Delete(b"b", 90), put(90, b"c")))
    assert (core.state, state(core)) == (State.LIVE, {b"90": 90})


def test_what_the_snapshot_covers_is_not_published() -> None:
    """Between its newest put and its revision a snapshot hides deletes: they are known as state, not as events."""
    core = OVERLAP.walk()
    send(core, Batches((*batches(90).batches, Batch(95, [Delete(b"b", 95)]), Batch(101, [put(101)]))))
    assert (core.state, revisions(core)) == (State.LIVE, [101])


def test_an_event_where_there_was_none_is_of_another_etcd() -> None:
    """An event where progress had ruled out events is of another etcd."""
    core = LIVE.then(Progress(120, trusted=True), Lost("gone"), RetryDue()).walk()
    assert send(core, batches(90, 110)) == UNPROVEN_ANEW


# --- an event must follow from the view -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "before"),
    [(LIVE, ()), (OVERLAP, (said(put(90)),)), (CONFIRMING_PROBE, ())],
    ids=["live", "after a break", "after the tip"],
)
def test_what_does_not_come_next_is_not_published(path: Path, before: Sequence[FeedInput]) -> None:
    """When a key's version jumps, something is missing, or the history is another one.

    The events before the jump stay.
    """
    core = path.then(*before).walk()
    first, second = KeyValue(b"90", b"w", 90, 151, 2), KeyValue(b"90", b"w", 90, 152, 4)
    commands = send(core, Batches((Batch(151, [first]), Batch(152, [second]))))
    if core.state is State.CONFIRMING:
        commands = send(core, Probed("ok"))
    assert commands[-len(ANEW) :] == ANEW
    assert (revisions(core)[-1], core.history.unproven) == (151, "restored")
    send(core, Created(200), taken(200, put(200)))
    assert (core.history.reason, core.history.log.generation) == ("restored", 2)


# --- PROBE -----------------------------------------------------------------------------------------------------------


def test_the_anchor_is_used_as_far_as_it_may_reach() -> None:
    """The anchor is used up to its reach: one revision further, etcd would have to scan too many revisions."""
    core = LIVE.then(Progress(90 + REACH_BACK, trusted=True), Lost("gone")).walk()
    assert send(core, RetryDue()) == (EndProof(), OpenWatch(90))


def test_an_empty_range_has_no_anchor() -> None:
    """An empty range has no anchor that could be seen again: the watch goes on after the tip."""
    core = SNAPSHOTTING.then(taken(100), Lost("gone")).walk()
    assert send(core, RetryDue()) == (EndProof(), OpenWatch(101))


def test_after_the_tip_news_wait_for_the_probe() -> None:
    """News after the tip are held until the revision at the tip was read: then nothing was compacted in between."""
    core = PROBE.then(Created(144)).walk()
    assert send(core, batches(143)) == ()
    assert send(core, batches(144)) == (EndProof(), Probe(141))
    send(core, batches(145))
    assert revisions(core) == []
    send(core, Probed("ok"))
    assert (core.state, revisions(core), core.history.log.tip) == (State.LIVE, [143, 144, 145], 145)
    assert core.history.log.generation == 1


@pytest.mark.parametrize("outcome", ["compacted", "future", "failed"])
def test_without_an_answer_nothing_held_is_published(outcome: Literal["compacted", "future", "failed"]) -> None:
    """Without an answer, no held event is published, and the memory is released."""
    core = CONFIRMING_PROBE.then(batches(142)).walk()
    before = core.bytes
    send(core, Probed(outcome))
    assert (revisions(core), core.history.log.tip) == ([], 141)
    assert core.bytes < before


# --- the reason that readers get -------------------------------------------------------------------------------------

DELETED = LIVE.then(said(Delete(b"90", 105)), Lost("gone"), RetryDue(), Created(105))


@pytest.mark.parametrize(
    ("path", "given", "reason"),
    [
        (LIVE, Restored(), "restored"),
        (LIVE, Compacted(101), "compacted"),
        (QUIET, batches(120), "restored"),
        (OVERLAP, SyncTimeout(), "unproven"),
        (OVERLAP, said(put(90, value=b"x")), "restored"),
        (OVERLAP, Compacted(101), "compacted"),
        (PROBE, Compacted(141), "compacted"),
        # A compaction exactly there keeps puts and removes deletes.
        (OVERLAP.then(Created(100)), SURE, "restored"),
        (DELETED, Progress(105, trusted=True), "unproven"),
        (CONFIRMING_PROBE, Probed("compacted"), "compacted"),
        (CONFIRMING_PROBE, Probed("future"), "restored"),
        (CONFIRMING_PROBE.then(heavy(142)), heavy(143), "lagged"),
        (PROBE.then(Created(150), heavy(142)), heavy(143), "lagged"),
        (ALONE, TOO_LARGE, "lagged"),
    ],
)
def test_why_a_generation_ended(path: Path, given: FeedInput, reason: ResetReason) -> None:
    """The old view is not given to new readers, and the new view has the reason for the reset."""
    core = path.walk()
    assert (core.history.joinable, core.history.reason, core.history.log.generation) == (True, "initial", 1)
    send(core, given)
    assert not core.history.joinable
    assert core.history.view is not None, "present readers keep the view until then"
    assert core.history.log.generation == 1
    send(core, Created(200), taken(200, put(200)))
    assert (core.history.joinable, core.history.reason, core.history.log.generation) == (True, reason, 2)
    assert (core.history.log.floor, core.history.log.tip, revisions(core), state(core)) == (200, 200, [], {b"200": 200})


def test_another_cluster_is_another_history() -> None:
    """Whatever ended the old generation, the revisions of another cluster mean nothing in the new one."""
    core = OVERLAP.then(SyncTimeout(), Created(200), taken(200, put(200), cluster_id=2)).walk()
    assert (core.history.reason, core.history.cluster_id) == ("restored", 2)


@pytest.mark.parametrize(("revision", "reason"), [(99, "restored"), (100, "unproven")])
def test_a_snapshot_below_the_tip_is_of_another_history(revision: int, reason: ResetReason) -> None:
    """A snapshot is linearizable, so a snapshot below the feed's tip is of another history."""
    core = OVERLAP.then(SyncTimeout(), Created(revision), taken(revision)).walk()
    assert core.history.reason == reason


@pytest.mark.parametrize("meanwhile", [(), (Created(150),), (Lost("gone"),)], ids=["opening", "reading", "waiting"])
def test_a_restore_during_a_fresh_start_is_the_reason(meanwhile: tuple[FeedInput, ...]) -> None:
    """The fresh start had another reason, and the new history has passed the tip: nothing else tells of the restore."""
    core = CONFIRMING_PROBE.then(Probed("compacted"), *meanwhile, Restored()).walk()
    if meanwhile:
        send(core, RetryDue())
    send(core, Created(150), taken(150, put(149)))
    assert (core.history.log.tip, core.history.reason, core.history.ended_revision) == (150, "restored", 149)


# --- a message over the limit ----------------------------------------------------------------------------------------

AFTER_IT = ALONE.then(TOO_LARGE, Created(200), taken(200, put(198)))


def test_what_was_too_large_is_not_asked_for_again() -> None:
    """The large message may be the snapshot's newest revision.

    So there is no anchor until there are news, and no older history.
    """
    core = AFTER_IT.walk()
    assert not core.may_backfill(199, 60.0, trusted=True)
    assert core.may_backfill(200, 60.0, trusted=True)
    assert send(core, Lost("gone"), RetryDue()) == (EndProof(), OpenWatch(201))
    send(core, Created(200), Probed("ok"), batches(205))
    assert send(core, Lost("gone"), RetryDue()) == (EndProof(), OpenWatch(205))
    send(core, Created(205), batches(205))
    assert core.backfill.handle(WantBackfill(204), 60.0) == (AwaitProof(), OpenWatch(201, "backfill"))


def test_another_history_may_fit() -> None:
    """After a restore, the large message is in the old history, and the new history may fit."""
    core = AFTER_IT.then(Restored(), Created(150), taken(150, put(149))).walk()
    assert core.history.reason == "restored"
    assert core.history.oversized_revision == 0
    assert send(core, Lost("gone"), RetryDue()) == (EndProof(), OpenWatch(149))


def test_a_fresh_start_is_above_suspicion() -> None:
    """Whatever caused a fresh start: a watch from now on goes to a shared stream, and stays there."""
    core = ALONE.then(SyncTimeout(), Created(200), taken(200, put(200)), Lost("gone")).walk()
    assert send(core, RetryDue()) == (EndProof(), OpenWatch(200))
    assert send(core, TOO_LARGE) == (EndProof(), CloseWatch(), Retry(1))


# --- limits ----------------------------------------------------------------------------------------------------------


def test_retries_are_counted_until_it_is_live() -> None:
    """Opening a watch is not a success yet: the backoff grows until a watch proves itself, and then starts anew."""
    core = IDLE.walk()
    waits: list[Commands] = []
    send(core, Start(backfill=False))
    for _ in range(3):
        waits.append(send(core, Created(99), SnapshotFailed()))
        send(core, RetryDue())
    send(core, Created(100), TAKEN)
    for _ in range(2):
        waits.append(send(core, Lost("gone"))[-2:])
        send(core, RetryDue())
    send(core, said(put(90)))
    waits.append(send(core, Lost("gone")))
    assert waits == [(CloseWatch(), Retry(attempt)) for attempt in (0, 1, 2, 0, 1, 0)]


sizes = st.lists(st.integers(0, 1500), max_size=12)


@given_by(
    path=st.sampled_from([SNAPSHOTTING, PROBE, CONFIRMING_PROBE]),
    first=st.sampled_from([60, 95, 300]),
    sizes=sizes,
)
def test_what_is_held_back_is_bounded(path: Path, first: int, sizes: Sequence[int]) -> None:
    """Before the proof, the feed holds at most the log's bound, or one revision; and the held bytes are counted."""
    core = path.walk()
    before, start = core.state, core.history.bytes
    for revision, size in enumerate(sizes, first):
        if core.state not in (before, State.CONFIRMING):
            break
        send(core, said(put(revision, value=b"v" * size)))
        if core._proof is None:
            assert core.bytes == start
            continue
        held, size = core._proof.held, core._proof.bytes
        assert size == sum(batch.size for batch in held)
        assert size <= BOUNDS.bytes or len(held) == 1
        assert core.bytes == start + size


def test_the_greatest_compaction_is_remembered() -> None:
    """A lagging member reports a lower compaction; a live watch learns of compactions too."""
    core = LIVE.then(Compacted(95)).walk()
    assert core.backfill.why_not(80) == "compacted"


# --- a watch that may have been slow ----------------------------------------------------------------------------------


def test_what_a_slow_watch_brings_is_not_published() -> None:
    """Events of a slow watch are published neither in place of news, nor while the probe is under way."""
    core = LIVE.walk()
    send(core, Batches(batches(101, 103).batches, slow=True))
    assert (revisions(core), core.history.log.tip) == ([], 100)
    core = CONFIRMING_PROBE.then(Batches(batches(151).batches, slow=True), Probed("ok")).walk()
    assert (revisions(core), core.history.log.tip) == ([], 141)


def test_a_full_round_of_what_is_known_does_not_come_for_ever() -> None:
    """Deletes after the snapshot's newest put are not news: the next watch starts where this watch ended."""
    core = OVERLAP.then(Created(100)).walk()
    found = (*batches(90).batches, Batch(95, [Delete(b"b", 95)]))
    assert send(core, Batches(found, slow=True)) == (EndProof(), OpenWatch(95))
    assert core.history.log.tip == 100


@pytest.mark.parametrize("reason", ["lagged", "compacted", "restored", "unproven"])
def test_the_reason_of_an_upstream_reset_reaches_the_readers(reason: ResetReason) -> None:
    """The next generation begins with the reason that the upstream gateway has stated."""
    core = LIVE.then(Reset(reason), Created(120), taken(120, put(110))).walk()
    assert core.history.reason == reason
    assert core.history.restores == (2 if reason == "restored" else 0)


def test_a_feed_that_is_told_of_resets_need_not_overlap() -> None:
    """A watch at another gateway resumes after the tip, however near the anchor is."""
    core = FeedCore(BOUNDS, REACH_BACK, resets_told=True)
    for given in WATCH_RETRY.inputs:
        core.handle(given, 0.0)
    assert core.handle(RetryDue(), 0.0) == (EndProof(), OpenWatch(101))
