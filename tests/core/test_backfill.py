"""``app.core.backfill`` by named examples: reading, proving and abandoning history, beside a feed that goes on.

Random walks are in ``test_feed_machine``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import pytest
from hypothesis import given as given_by
from hypothesis import strategies as st

from app.core.backfill import INTERVAL, LONGEST_INTERVAL, TABLE, TRIES, Stage
from app.core.events import Batch, Delete, Event, KeyValue
from app.core.feed import FeedCore, State
from app.core.feed_messages import (
    AwaitProof,
    BackfillInput,
    Batches,
    CloseWatch,
    Command,
    Commands,
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
    Reset,
    Restored,
    Start,
    Stop,
    SyncTimeout,
    WantBackfill,
)
from app.core.log import Bounds
from app.core.reasons import ResetReason
from app.core.state_table import InvalidTransitionError
from tests.core.test_feed import BOUNDS, EVERYTHING, REACH_BACK, batches, heavy, put, revisions, said, taken

# A feed that is live at 100; its newest key was written at 90.
TAKEN = taken(100, put(60), put(70), put(90))
LIVE: tuple[FeedInput, ...] = (Start(backfill=False), Created(99), TAKEN)
# A feed whose log holds two revisions: 101 and 103.
BUSY = (*LIVE, batches(101, 103))
# A feed whose log has grown old: it only knows that nothing has come since 103.
OLD = (*BUSY, Progress(110, trusted=True))

END = (EndProof(), CloseWatch())
TOO_LARGE = Lost("too large", too_large=True)
SURE = Progress(100, trusted=True)
ASK = WantBackfill(60)
ASKED: tuple[BackfillInput, ...] = (ASK,)
OPEN = (ASK, Created(100))
CONFIRMING = (*OPEN, batches(70, 90), SURE)


@dataclass(frozen=True)
class Path:
    """A feed in some state, and the inputs of its backfill since."""

    feed: Sequence[FeedInput]
    history: Sequence[BackfillInput] = ()

    def then(self, *inputs: BackfillInput) -> Path:
        """The path with more inputs."""
        return Path(self.feed, (*self.history, *inputs))

    def walk(self) -> FeedCore:
        """The feed at the end of the path."""
        core = FeedCore(BOUNDS, REACH_BACK)
        for given in self.feed:
            core.handle(given, 0.0)
        if self.feed is OLD:
            core.history.log.trim(BOUNDS.age + 1)
        for told in self.history:
            core.backfill.handle(told, 0.0)
        return core


def send(core: FeedCore, *inputs: BackfillInput, now: float = 0.0) -> Commands:
    """Pass the inputs one after the other; return the commands of the last."""
    commands: Commands = ()
    for given in inputs:
        commands = core.backfill.handle(given, now)
    return commands


AT_REST = Path(LIVE)
OPENING = AT_REST.then(*ASKED)
READING = AT_REST.then(*OPEN)
PROBING = AT_REST.then(*CONFIRMING)
BUSY_READING = Path(BUSY, OPEN)
ALONE = OPENING.then(TOO_LARGE)
TIRED = OPENING.then(*[Lost("gone")] * (TRIES - 1))

S = Stage
FROM_50 = OpenWatch(50, "backfill")
CONFIRM = (CloseWatch(), AwaitProof(), Probe(49))
Case = tuple[Path, BackfillInput, Stage, tuple[Command, ...]]
CASES: dict[str, Case] = {
    "asked": (AT_REST, ASK, S.OPENING, (AwaitProof(), FROM_50)),
    "stopped at rest": (AT_REST, Stop(), S.RESTING, ()),
    "one more asks": (OPENING, WantBackfill(80), S.OPENING, ()),
    "one more asks, with a cursor that is not known": (OPENING, WantBackfill(), S.OPENING, ()),
    "opened": (OPENING, Created(100), S.READING, (AwaitProof(),)),
    "progress of a watch that says nothing yet": (OPENING, SURE, S.OPENING, ()),
    "compacted: what is left of it": (OPENING, Compacted(55), S.OPENING, (AwaitProof(), OpenWatch(56, "backfill"),)),
    "compacted: nothing for anybody": (OPENING, Compacted(61), S.RESTING, END),
    "refused": (OPENING, Refused("no"), S.RESTING, END),
    "lost: again": (OPENING, Lost("gone"), S.OPENING, (AwaitProof(), FROM_50)),
    "lost too often": (TIRED, Lost("gone"), S.RESTING, END),
    "not in time": (OPENING, SyncTimeout(), S.RESTING, END),
    "no room": (OPENING, NoRoom(), S.RESTING, END),
    "stopped": (OPENING, Stop(), S.RESTING, END),
    "too large for somebody: alone": (OPENING, TOO_LARGE, S.OPENING, (AwaitProof(), OpenWatch(50, "dedicated"),)),
    "too large for us": (ALONE, TOO_LARGE, S.RESTING, END),
    "one more asks meanwhile": (READING, WantBackfill(80), S.READING, ()),
    "below the end": (READING, batches(70, 90), S.READING, ()),
    "the end of an empty log: an event at it": (READING, batches(90, 100), S.CONFIRMING, CONFIRM),
    "the end of an empty log: an event above it": (READING, batches(90, 101), S.CONFIRMING, CONFIRM),
    "the end of an empty log: progress": (READING.then(batches(90)), SURE, S.CONFIRMING, CONFIRM),
    "progress before the end": (READING, Progress(99, trusted=True), S.READING, ()),
    "progress of a version that overtakes": (READING, Progress(100, trusted=False), S.READING, ()),
    "an event where there was none": (Path(OLD, (ASK, Created(110))), batches(103, 105), S.RESTING, END),
    "the end of a log that grew old": (Path(OLD, (ASK, Created(110))), batches(101, 103), S.CONFIRMING,
                                       (CloseWatch(), AwaitProof(), Probe(59))),
    "the log's first batch": (BUSY_READING, batches(90, 101), S.CONFIRMING, (CloseWatch(), AwaitProof(), Probe(52))),
    "all below a log that holds something": (BUSY_READING, SURE, S.READING, ()),
    "another first batch": (BUSY_READING, said(put(101, value=b"x")), S.RESTING, END),
    "not the first batch": (BUSY_READING, batches(103), S.RESTING, END),
    "progress without the first batch": (BUSY_READING, Progress(101, trusted=True), S.RESTING, END),
    "compacted while reading": (READING, Compacted(55), S.OPENING, (AwaitProof(), OpenWatch(56, "backfill"),)),
    "compacted while reading: nothing for anybody": (READING, Compacted(61), S.RESTING, END),
    "the upstream has no such history": (OPENING, Reset("lagged"), S.RESTING, END),
    "the upstream's history does not go on": (READING, Reset("lagged"), S.RESTING, END),
    "refused while reading": (READING, Refused("no"), S.RESTING, END),
    "lost while reading": (READING, Lost("gone"), S.OPENING, (AwaitProof(), FROM_50)),
    "lost too often while reading": (TIRED.then(Created(100)), Lost("gone"), S.RESTING, END),
    "not read in time": (READING, SyncTimeout(), S.RESTING, END),
    "no room for what was read": (READING, NoRoom(), S.RESTING, END),
    "more than the log may hold": (READING.then(heavy(65)), heavy(75), S.RESTING, END),
    "stopped while reading": (READING, Stop(), S.RESTING, END),
    "one more asks at the end": (PROBING, WantBackfill(80), S.CONFIRMING, ()),
    "proven": (PROBING, Probed("ok"), S.RESTING, END),
    "compacted under it": (PROBING, Probed("compacted"), S.RESTING, END),
    "a member that has not heard of its start": (PROBING, Probed("future"), S.RESTING, END),
    "no answer": (PROBING, Probed("failed"), S.RESTING, END),
    "no answer in time": (PROBING, SyncTimeout(), S.RESTING, END),
    "no room at the end": (PROBING, NoRoom(), S.RESTING, END),
    "stopped at the end": (PROBING, Stop(), S.RESTING, END),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_stage_makes_of_an_input(name: str) -> None:
    """Each input leads to the expected stage and commands, in order.

    The feed does not change, except at its log's old end.
    """
    path, given, stage, commands = CASES[name]
    core = path.walk()
    before = (
        core.state,
        core.history.log.generation,
        core.history.log.tip,
        core.history.view,
        core.history.unproven,
        core.history.restores,
    )
    news = revisions(core)
    assert core.backfill.handle(given, 0.0) == commands
    assert core.backfill.stage is stage
    assert (
        core.state,
        core.history.log.generation,
        core.history.log.tip,
        core.history.view,
        core.history.unproven,
        core.history.restores,
    ) == before
    assert revisions(core)[len(revisions(core)) - len(news) :] == news


def test_every_way_of_the_table_is_shown() -> None:
    """The examples reach every row of the table, and no transition leads outside the table."""
    shown = {(path.walk().backfill.stage, type(given), stage) for path, given, stage, _ in CASES.values()}
    promised = {(stage, given, to) for (stage, given), entry in TABLE.items() for to in entry.leads_to}
    assert shown - promised == set()
    assert promised - shown == set()


INPUTS: tuple[BackfillInput, ...] = (
    ASK, NoRoom(), Probed("ok"), SyncTimeout(), Stop(), Created(200), batches(200), SURE, Compacted(200),
    Refused("no"), Lost("gone"), Reset("lagged"),
)  # fmt: skip


def test_what_a_stage_does_not_know_changes_nothing() -> None:
    """Every pair of stage and input that the table lacks is refused by name, and changes nothing."""
    assert {type(given) for given in INPUTS} == set(get_args(BackfillInput))
    for path in (AT_REST, OPENING, READING, PROBING):
        for given in INPUTS:
            core = path.walk()
            stage = core.backfill.stage
            if (stage, type(given)) in TABLE:
                continue
            before = (core.backfill.promises(60), core.backfill.bytes, core.bytes)
            with pytest.raises(InvalidTransitionError, match=f"{type(given).__name__} in state {stage.value}"):
                core.backfill.handle(given, 0.0)
            assert (core.backfill.promises(60), core.backfill.bytes, core.bytes) == before
            assert core.backfill.stage is stage


# --- reading ---------------------------------------------------------------------------------------------------------


def test_what_is_proven_goes_below_the_floor() -> None:
    """Proven history goes below the log's floor, once and in the same generation.

    Until then it is promised and counted.
    """
    core = READING.walk()
    before = core.bytes
    assert [core.backfill.promises(revision) for revision in (48, 49, 99)] == [False, True, True]
    send(core, batches(60, 90))
    assert (revisions(core), core.history.log.floor) == ([], 100), "history goes into the log only after its proof"
    assert core.bytes > before
    send(core, SURE, Probed("ok"))
    assert (revisions(core), core.history.log.floor, core.history.log.tip, core.history.log.generation) == (
        [60, 90],
        49,
        100,
        1,
    )
    assert (core.backfill.bytes, core.history.events, core.backfill.promises(60)) == (0, 0, False)


def test_the_feed_goes_on_meanwhile() -> None:
    """The feed's own watch publishes its events, whatever the watch of the backfill sends."""
    core = READING.walk()
    core.handle(batches(101), 0.0)
    send(core, batches(60, 90))
    core.handle(batches(102), 0.0)
    assert (core.state, revisions(core), core.history.log.tip) == (State.LIVE, [101, 102], 102)
    send(core, batches(101), Probed("ok"))
    core.handle(batches(103), 0.0)
    assert (revisions(core), core.history.log.floor, core.history.log.generation) == ([60, 90, 101, 102, 103], 49, 1)


def test_a_young_etcd_has_nothing_below() -> None:
    """At a young etcd, the probe asks for the first revision that exists."""
    core = Path((Start(backfill=False), Created(20), taken(20, put(9)))).walk()
    send(core, WantBackfill(3), Created(20), batches(9))
    assert send(core, Progress(20, trusted=True)) == (CloseWatch(), AwaitProof(), Probe(1))
    send(core, Probed("ok"))
    assert core.history.log.covers(0)


def test_what_the_log_forgets_meanwhile_is_read_too() -> None:
    """When the floor rises during a read, the read goes on to the new floor."""
    core = BUSY_READING.walk()
    core.history.log.reclaim(1)
    assert (core.history.log.floor, revisions(core)) == (101, [103])
    send(core, batches(90, 101))
    assert core.backfill.stage is Stage.READING
    send(core, batches(103), Probed("ok"))
    assert revisions(core) == [90, 101, 103]


def test_a_log_that_went_on_without_it_is_not_joined() -> None:
    """Without the revisions that the log forgot between the end of the read and the proof, there would be a gap."""
    core = BUSY_READING.then(batches(90, 101)).walk()
    core.handle(batches(104), 0.0)
    core.history.log.reclaim(600)
    assert core.history.log.floor > 101
    send(core, Probed("ok"))
    assert (revisions(core), core.history.log.floor, core.backfill.why_not(60)) == ([104], 103, "lagged")


def test_a_log_that_forgot_what_was_met_is_not_joined() -> None:
    """The log forgot the batch at which the read met the log.

    That batch is not part of what was read, so there would be a gap.
    """
    core = BUSY_READING.then(batches(90, 101)).walk()
    core.history.log.reclaim(1)
    assert (core.history.log.floor, revisions(core)) == (101, [103])
    send(core, Probed("ok"))
    assert (revisions(core), core.history.log.floor, core.backfill.why_not(60)) == ([103], 101, "lagged")


def test_another_generation_is_not_joined() -> None:
    """When the feed starts anew, the history that was read belongs to no generation, and is dropped."""
    core = PROBING.walk()
    core.handle(Restored(), 0.0)
    assert not core.history.joinable
    core.handle(Created(100), 0.0)
    core.handle(taken(100, put(90)), 0.0)
    assert not core.backfill.promises(60)
    send(core, Probed("ok"))
    assert (revisions(core), core.history.log.floor) == ([], 100)
    assert core.backfill.why_not(60) == "restored"


def test_history_that_does_not_fit_loses_its_old_end() -> None:
    """The bound holds during the read, the log's own batches included.

    The promise for the dropped end is taken back.
    """
    large = put(70, value=b"v" * 1200)
    core = Path((Start(backfill=False), Created(99), taken(100, large, put(90))), OPEN).walk()
    send(core, WantBackfill(80), heavy(60), said(large), said(put(90)))
    assert core.backfill.bytes <= BOUNDS.bytes
    assert [core.backfill.promises(revision) for revision in (59, 60)] == [False, True]
    assert send(core, SURE) == (CloseWatch(), AwaitProof(), Probe(60))
    send(core, Probed("ok"))
    assert (revisions(core), core.history.log.floor) == ([70, 90], 60)


@given_by(first=st.lists(st.integers(0, 900), max_size=4), sizes=st.lists(st.integers(0, 1500), max_size=12))
def test_what_is_held_is_bounded(first: Sequence[int], sizes: Sequence[int]) -> None:
    """Together with the log, the history never exceeds the log's bound; and its bytes are counted."""
    core = READING.walk()
    for revision, size in enumerate(first, 101):
        core.handle(said(put(revision, value=b"v" * size)), 0.0)
    for revision, size in enumerate(sizes, 60):
        if core.backfill.stage is not Stage.READING:
            break
        alone = core.bytes - core.backfill.bytes
        send(core, said(put(revision, value=b"v" * size)))
        assert core.bytes == alone + core.backfill.bytes
        assert core.backfill.bytes + core.history.log.bytes <= max(BOUNDS.bytes, core.history.log.bytes)


# --- joining the log -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "found", "joins"),
    [
        # The snapshot's newest put must come, unchanged.
        (READING, (put(90),), True),
        (READING, (), False),
        (READING, (put(90, value=b"x"),), False),
        # A key that the history deletes is not in the view; a key that the history puts and does not delete is.
        (READING, (put(90), Delete(b"b", 95)), True),
        (READING, (put(90), put(95)), False),
        (READING, (put(70, b"b"), put(90)), False),
        (READING, (put(70, b"b"), put(90), Delete(b"b", 95)), True),
    ],
)
def test_an_empty_log_is_met_by_what_the_view_holds(path: Path, found: Sequence[Event], joins: bool) -> None:
    """A read joins an empty log if it agrees with the view; any other read is of another history."""
    core = path.walk()
    for event in found:
        send(core, said(event))
    send(core, SURE, Probed("ok"))
    assert revisions(core) == ([event.mod_revision for event in found] if joins else [])
    assert core.backfill.why_not(49) == ("lagged" if joins else "restored")
    assert core.state is State.LIVE


def test_a_log_grown_old_is_met_by_its_last_batch() -> None:
    """When the log has forgotten everything, a read joins at its last batch, which the log still knows exactly."""
    path = Path(OLD, (ASK, Created(110)))
    for last, joins in ((put(103), True), (put(103, value=b"x"), False), (Delete(b"103", 103), False)):
        core = path.walk()
        assert (revisions(core), core.history.log.floor) == ([], 103)
        send(core, batches(90, 101), said(last), Probed("ok"))
        assert revisions(core) == ([90, 101, 103] if joins else [])


def test_what_the_log_holds_must_follow_from_it() -> None:
    """The log's events must follow from the history that was read: a put counts the puts before it."""
    second = KeyValue(b"90", b"w", 90, 102, 2)
    feed = (*LIVE, batches(101), said(second))
    for value, joins in ((b"v", True), (b"x", True)):  # the log knows nothing about this value
        core = Path(feed, OPEN).walk()
        send(core, said(put(90, value=value)), batches(101), Probed("ok"))
        assert (90 in revisions(core)) == joins
    for other in (KeyValue(b"90", b"v", 80, 90, 2), Delete(b"90", 90)):
        core = Path(feed, OPEN).walk()
        send(core, said(other), batches(101), Probed("ok"))
        assert revisions(core) == [101, 102]


# --- refusals and pauses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "given", "reason"),
    [
        (READING, SyncTimeout(), "unproven"),
        (PROBING, Probed("compacted"), "compacted"),
        (PROBING, Probed("failed"), "unproven"),
        (PROBING, Probed("future"), "restored"),
        (READING, Compacted(61), "compacted"),
        (READING, NoRoom(), "lagged"),
        (READING.then(heavy(65)), heavy(75), "lagged"),
        (ALONE, TOO_LARGE, "lagged"),
        (READING, Refused("no"), "unproven"),
        (READING, Reset("compacted"), "compacted"),
        (TIRED, Lost("gone"), "unproven"),
        (BUSY_READING, batches(103), "restored"),
    ],
)
def test_why_a_cursor_is_not_served(path: Path, given: BackfillInput, reason: ResetReason) -> None:
    """A cursor within the read gets the reason of the failure; a cursor below has merely come too late."""
    core = path.walk()
    send(core, given)
    assert core.backfill.why_not(60) == reason
    assert core.backfill.why_not(30) == ("compacted" if isinstance(given, Compacted) else "lagged")


def test_it_is_not_read_for_everybody() -> None:
    """A backfill is allowed within reach, on a live feed with room for it, one at a time, where it can be proven."""
    core = AT_REST.walk()
    assert core.may_backfill(50, 0.0, trusted=True)
    assert not core.may_backfill(49, 0.0, trusted=True)
    assert not core.may_backfill(50, 0.0, trusted=False)
    assert Path(BUSY).walk().may_backfill(60, 0.0, trusted=False), "the log's first batch is a proof"
    assert not OPENING.walk().may_backfill(60, 0.0, trusted=True)
    core.handle(Lost("gone"), 0.0)
    assert not core.may_backfill(50, 0.0, trusted=True)
    full = Path((*LIVE, heavy(101), said(put(102, value=b"v" * 642)))).walk()
    assert full.history.log.bytes == BOUNDS.bytes
    assert not full.may_backfill(60, 0.0, trusted=True)


def test_a_read_is_not_repeated_at_once() -> None:
    """After a successful read there is a pause."""
    core = PROBING.walk()
    send(core, Probed("ok"), now=7.0)
    core.history.log.reclaim(EVERYTHING)
    core.history.log.trim(BOUNDS.age + 1)
    assert not core.may_backfill(60, 7.0 + INTERVAL - 0.1, trusted=True)
    assert core.may_backfill(60, 7.0 + INTERVAL, trusted=True)


def test_what_failed_is_tried_ever_more_seldom() -> None:
    """The pause after a failure doubles each time, up to a bound; a success resets it."""
    core, now, waits = AT_REST.walk(), 0.0, []
    for _ in range(9):
        send(core, ASK, SyncTimeout(), now=now)
        wait = next(w for w in range(10, 10_000) if core.may_backfill(60, now + w, trusted=True))
        waits.append(wait)
        now += wait
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert max(waits) == LONGEST_INTERVAL
    send(core, *CONFIRMING, Probed("ok"), now=now)
    assert not core.may_backfill(60, now + INTERVAL - 1, trusted=True)


def test_what_was_too_much_is_asked_for_by_less_than_half() -> None:
    """A recent cursor does not suffer from an old one: after each failed read, the next may span at most half."""
    core = OPENING.walk()
    send(core, SyncTimeout())
    assert [core.may_backfill(revision, 1.0, trusted=True) for revision in (60, 74, 75, 99)] == [
        False, False, True, True
    ]  # fmt: skip
    assert send(core, WantBackfill(75), now=1.0) == (AwaitProof(), OpenWatch(76, "backfill"))
    send(core, SyncTimeout(), now=1.0)
    assert [core.may_backfill(revision, 2.0, trusted=True) for revision in (75, 87, 88)] == [False, False, True]


def test_reads_end_however_many_ask() -> None:
    """With impatient cursors of every age, there are no more reads than halves."""
    core, reads = AT_REST.walk(), 0
    for asked in range(50, 100):
        if core.may_backfill(asked, 0.0, trusted=True):
            send(core, WantBackfill(asked), SyncTimeout())
            reads += 1
    assert 2 <= reads <= 6


def test_what_does_not_fit_messages_is_not_asked_for_again() -> None:
    """A range that does not fit into messages is not read again.

    Later cursors are served with the revisions above it.
    """
    core = ALONE.walk()
    send(core, TOO_LARGE)
    assert not core.may_backfill(99, 1e6, trusted=True)
    core.handle(batches(*range(101, 103)), 0.0)
    core.history.log.reclaim(300)
    assert core.may_backfill(100, 1e6, trusted=True)
    assert send(core, WantBackfill(100), now=1e6) == (AwaitProof(), OpenWatch(101, "backfill"))


def test_whoever_waits_for_the_start_is_served_first() -> None:
    """As soon as there is a view, clients without a cursor are served.

    History is read for those with a cursor, however old.
    """
    core = Path((Start(backfill=True), Created(99))).walk()
    assert not core.owes_backfill
    core.handle(taken(100, put(90)), 0.0)
    assert (core.state, core.history.joinable, core.owes_backfill) == (State.LIVE, True, True)
    assert send(core, WantBackfill()) == (AwaitProof(), FROM_50)
    assert not core.owes_backfill
    send(core, Created(100), heavy(60), heavy(80))
    assert core.backfill.stage is Stage.READING, "the read goes on: the cursors that it is for are not known yet"


def test_an_error_of_ours_is_a_failure() -> None:
    """After an error of the gateway's own code, the same read is not tried again at once."""
    core = READING.walk()
    core.backfill.abandon(0.0)
    assert (core.backfill.stage, core.backfill.bytes) == (Stage.RESTING, 0)
    assert not core.may_backfill(60, 1.0, trusted=True)
    core.backfill.abandon(0.0)


def test_bounds_of_a_log_without_room_for_a_batch() -> None:
    """The log's number of batches is a bound for a backfill, too."""
    core = FeedCore(Bounds(batches=2, bytes=3000, age=600.0), REACH_BACK)
    for given in (*LIVE, batches(101)):
        core.handle(given, 0.0)
    send(core, WantBackfill(80), Created(101), Batches((Batch(60, [put(60)]), Batch(70, [put(70)]))))
    assert not core.backfill.promises(59)
    assert core.backfill.promises(80)
    core.handle(batches(102), 0.0)
    assert not core.may_backfill(80, 0.0, trusted=True)
