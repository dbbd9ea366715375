"""``app.core.multiplex`` against a simulated watch stream."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.core.events import Delete, Event, KeyValue
from app.core.feed_messages import Batches, Compacted, Created, Lost, Progress, Refused, WatchInput
from app.core.keys import KeyRange
from app.core.multiplex import MOST_PENDING, CancelRequest, CreateRequest, Message, Multiplexer

RANGE = KeyRange("prefix", b"/a/")


def put(key: bytes, revision: int) -> KeyValue:
    """A first put."""
    return KeyValue(key, b"v", revision, revision, 1)


class Served:
    """A watch as the simulated etcd holds it, and the inputs that its sink must have received."""

    def __init__(self, watch_id: int) -> None:
        self.id = watch_id
        self.heard: list[WatchInput] = []
        self.expected: list[WatchInput] = []
        self.created = False  # etcd holds the watch, and counts it until our cancel
        self.answered = False
        self.cancelled_by_etcd = False
        self.let_go = False  # the gateway cancelled it
        self.cancels = 0
        self.wishes: set[str] = set()
        self.broken: list[Event] = []  # sent as fragments, not completed
        self.revision = 1


class StreamMachine(RuleBasedStateMachine):
    """Plays etcd's part of a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.mux = Multiplexer()
        self.watches: list[Served] = []
        self.unanswered: list[Served] = []
        self.ids: set[int] = set()

    def say(self, message: Message, *, trusted: bool = True) -> None:
        """etcd sends a message."""
        self.mux.receive(message, progress_trusted=trusted)

    def expect(self, served: Served, given: WatchInput) -> None:
        """The watch's sink must get this input, unless the watch was cancelled."""
        if not served.let_go:
            served.expected.append(given)

    def held(self) -> list[Served]:
        """The watches that the gateway holds."""
        return [one for one in self.watches if not one.let_go and (one.created or not one.answered)]

    def running(self) -> list[Served]:
        """The watches for which etcd would send something: etcd has not seen our cancels yet."""
        return [one for one in self.watches if one.created and not one.cancelled_by_etcd]

    # --- the gateway -------------------------------------------------------------------------------------------------

    @rule(start=st.integers(0, 9))
    def create(self, start: int) -> None:
        """The gateway opens a watch."""
        heard: list[WatchInput] = []
        request = self.mux.create(RANGE, start, heard.append)
        assert request == CreateRequest(request.watch_id, RANGE, start)
        assert request.watch_id > 0
        assert request.watch_id not in self.ids
        self.ids.add(request.watch_id)
        served = Served(request.watch_id)
        served.heard = heard
        self.watches.append(served)
        self.unanswered.append(served)

    @precondition(lambda self: self.watches)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """The gateway cancels a watch, perhaps for the second time, perhaps before etcd has answered."""
        served = data.draw(st.sampled_from(self.watches))
        refused = served.answered and not served.created
        request = self.mux.cancel(served.id)
        if served.let_go or refused:
            assert request is None
        else:
            assert request == CancelRequest(served.id)
            served.cancels += 1
        served.let_go = True

    # --- etcd --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.unanswered)
    @rule(revision=st.integers(1, 99))
    def say_created(self, revision: int) -> None:
        """etcd holds a watch."""
        served = self.unanswered.pop(0)
        served.answered = served.created = True
        self.expect(served, Created(revision))
        self.say(Message(served.id, revision, created=True))

    @precondition(lambda self: self.unanswered)
    @rule(echoes=st.booleans())
    def refuse(self, echoes: bool) -> None:
        """etcd refuses a watch, under the requested id (3.5.1) or -1 (newer)."""
        served = self.unanswered.pop(0)
        served.answered = True
        self.expect(served, Refused("permission denied"))
        watch_id = served.id if echoes else -1
        self.say(Message(watch_id, created=True, canceled=True, cancel_reason="permission denied"))

    @precondition(lambda self: self.unanswered)
    @rule(revision=st.integers(1, 99))
    def create_and_compact(self, revision: int) -> None:
        """etcd holds a watch whose start is compacted, and reports both at once."""
        served = self.unanswered.pop(0)
        served.answered = served.created = served.cancelled_by_etcd = True
        self.expect(served, Created(revision))
        self.expect(served, Compacted(7))
        self.say(Message(served.id, revision, created=True, canceled=True, compact_revision=7))

    @precondition(lambda self: self.running())
    @rule(data=st.data(), pieces=st.integers(1, 4), break_off=st.booleans())
    def send_events(self, data: st.DataObject, pieces: int, break_off: bool) -> None:
        """etcd sends whole revisions, in fragments that divide them anywhere; or fragments that never end."""
        served = data.draw(st.sampled_from(self.running()))
        if served.broken:
            return
        events: list[Event] = []
        for _ in range(data.draw(st.integers(1, 3))):
            served.revision += data.draw(st.integers(1, 3))
            count = data.draw(st.integers(1, 3))
            events += [put(b"/a/%d" % index, served.revision) for index in range(count)]
            events.append(Delete(b"/a/gone", served.revision))
        cuts = sorted(data.draw(st.integers(0, len(events))) for _ in range(pieces - 1))
        parts = [events[a:b] for a, b in zip([0, *cuts], [*cuts, len(events)], strict=True)]
        for part in parts[:-1]:
            self.say(Message(served.id, 99, fragment=True, events=part))
        if break_off:
            served.broken = [event for part in parts[:-1] for event in part]
            return
        if not parts[-1] and not any(parts[:-1]):
            return
        served.expected += [] if served.let_go else [Whole(events)]
        self.say(Message(served.id, 99, events=parts[-1]))

    @precondition(lambda self: self.running())
    @rule(data=st.data(), compacted=st.booleans())
    def cancel_by_etcd(self, data: st.DataObject, compacted: bool) -> None:
        """etcd cancels a watch, because of a compaction or for another reason; an unfinished message is cut off."""
        served = data.draw(st.sampled_from(self.running()))
        served.cancelled_by_etcd = True
        served.broken = []
        if compacted:
            self.expect(served, Compacted(7))
            self.say(Message(served.id, canceled=True, compact_revision=7))
        else:
            self.expect(served, Refused("etcd is closing"))
            self.say(Message(served.id, canceled=True, cancel_reason="etcd is closing"))

    @precondition(lambda self: any(one.created for one in self.watches))
    @rule(data=st.data())
    def send_late(self, data: st.DataObject) -> None:
        """etcd answers a cancel, and sends events that were under way: no sink gets them."""
        served = data.draw(st.sampled_from([one for one in self.watches if one.created]))
        if served.let_go or served.cancelled_by_etcd:
            self.say(Message(served.id, 50, events=[put(b"/a/late", 500)]))
            self.say(Message(served.id, 50))
            self.say(Message(served.id, 50, canceled=True))

    @precondition(lambda self: self.running())
    @rule(data=st.data(), revision=st.integers(1, 99))
    def own_progress(self, data: st.DataObject, revision: int) -> None:
        """A response of progress_notify has the watch's own id: trusted, in any version."""
        served = data.draw(st.sampled_from(self.running()))
        if not served.broken:
            self.expect(served, Progress(revision, trusted=True))
            self.say(Message(served.id, revision), trusted=False)

    @precondition(lambda self: self.watches)
    @rule(data=st.data(), wish=st.sampled_from(["await_proof", "hasten"]), wanted=st.booleans())
    def wish(self, data: st.DataObject, wish: str, wanted: bool) -> None:
        """A watch awaits proof, or a merge waits for the watch, or no longer."""
        served = data.draw(st.sampled_from(self.watches))
        getattr(self.mux, wish)(served.id, wanted=wanted)
        if wanted:
            served.wishes.add(wish)
        else:
            served.wishes.discard(wish)

    @rule(revision=st.integers(1, 99), trusted=st.booleans(), for_all=st.booleans())
    def progress(self, revision: int, trusted: bool, for_all: bool) -> None:
        """An answer is for all watches that etcd holds, or for those that wait for it; its version decides on trust."""
        self.mux.ask(for_all=for_all)
        for served in self.running():
            if for_all or served.wishes:
                self.expect(served, Progress(revision, trusted=trusted))
        self.say(Message(-1, revision), trusted=trusted)
        assert self.mux.hastened == (trusted and any("hasten" in served.wishes for served in self.held()))
        assert self.mux.awaited == any("await_proof" in served.wishes for served in self.held())

    @rule(watch_id=st.sampled_from([-1, 0, 10**9]))
    def nonsense(self, watch_id: int) -> None:
        """etcd sends messages without a recipient: an unrequested created, events and cancels of unknown watches."""
        self.say(Message(watch_id, 3, created=True))
        self.say(Message(watch_id, 3, events=[put(b"/a/x", 3)]))
        self.say(Message(watch_id, 3, canceled=True))
        if not self.unanswered:
            self.say(Message(watch_id, 3, created=True, canceled=True))

    @rule(too_large=st.booleans())
    def lose(self, too_large: bool) -> None:
        """The stream breaks: each watch is notified once, unless etcd ended the watch before.

        Unfinished messages are dropped.
        """
        for served in self.watches:
            ended = served.cancelled_by_etcd or (served.answered and not served.created)
            if not ended:
                self.expect(served, Lost("broken", too_large))
            served.let_go = True
        self.mux.lose("broken", too_large=too_large)
        self.watches = [one for one in self.watches if not self.compare(one)]
        self.unanswered = []
        assert len(self.mux) == 0

    # --- invariants --------------------------------------------------------------------------------------------------

    def compare(self, served: Served) -> bool:
        """Each sink received exactly the inputs for it, in order."""
        assert len(served.heard) == len(served.expected)
        for heard, expected in zip(served.heard, served.expected, strict=True):
            if isinstance(expected, Whole):
                assert isinstance(heard, Batches)
                assert tuple(event for batch in heard.batches for event in batch.events) == expected.events
                revisions = [batch.revision for batch in heard.batches]
                assert revisions == sorted(set(revisions))
                for batch in heard.batches:
                    assert {event.mod_revision for event in batch.events} == {batch.revision}
            else:
                assert heard == expected
        return True

    @invariant()
    def heard_what_was_said(self) -> None:
        """Every sink is as in ``compare``."""
        for served in self.watches:
            self.compare(served)

    @invariant()
    def counts_what_etcd_holds(self) -> None:
        """A watch counts from its create until our cancel, its refusal, or the stream's end."""
        held = [one for one in self.watches if not one.let_go and (one.created or not one.answered)]
        assert len(self.mux) == len(held)

    def teardown(self) -> None:
        """Each created watch gets one cancel; a refused watch gets no cancel after its refusal."""
        for served in self.watches:
            if not served.let_go and self.mux.cancel(served.id) is not None:
                served.cancels += 1
            assert self.mux.cancel(served.id) is None
        assert all(served.cancels == 1 for served in self.watches if served.created)
        assert all(served.cancels <= 1 for served in self.watches)
        assert len(self.mux) == 0


class Whole(Batches):
    """Complete revisions, as the list of their events."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__(())
        object.__setattr__(self, "events", tuple(events))

    events: tuple[Event, ...]


TestStream = StreamMachine.TestCase


def test_a_refusal_without_id_is_the_oldest_unanswered_one_s() -> None:
    """Of two unanswered creates, a refusal under -1 refuses the first, not the second."""
    mux = Multiplexer()
    first: list[WatchInput] = []
    second: list[WatchInput] = []
    mux.create(RANGE, 0, first.append)
    other = mux.create(RANGE, 0, second.append)
    mux.receive(Message(-1, created=True, canceled=True, cancel_reason="no"), progress_trusted=True)
    mux.receive(Message(other.watch_id, 5, created=True), progress_trusted=True)
    assert first == [Refused("no")]
    assert second == [Created(5)]


def test_falling_revisions_reach_nobody() -> None:
    """A stream that goes back is broken: the error ends the stream, and no sink has received a part."""
    mux = Multiplexer()
    heard: list[WatchInput] = []
    watch = mux.create(RANGE, 0, heard.append)
    mux.receive(Message(watch.watch_id, 5, created=True), progress_trusted=True)
    with pytest.raises(ValueError, match="after"):
        mux.receive(Message(watch.watch_id, 9, events=[put(b"/a/1", 8), put(b"/a/2", 7)]), progress_trusted=True)
    assert heard == [Created(5)]


def test_who_lets_another_go_is_obeyed_at_once() -> None:
    """A sink cancels another watch while all watches get progress: the other watch gets nothing more."""
    mux = Multiplexer()
    heard: list[WatchInput] = []

    def first(given: WatchInput) -> None:
        if isinstance(given, Progress):
            mux.cancel(other.watch_id)

    one = mux.create(RANGE, 0, first)
    other = mux.create(RANGE, 0, heard.append)
    for watch in (one, other):
        mux.receive(Message(watch.watch_id, 5, created=True), progress_trusted=True)
    mux.ask(for_all=True)
    mux.receive(Message(-1, 6), progress_trusted=True)
    assert heard == [Created(5)]


def test_a_watch_that_is_let_go_when_created_hears_nothing_more() -> None:
    """A sink that cancels its own watch on "created" does not learn of a compaction."""
    mux = Multiplexer()
    heard: list[WatchInput] = []

    def sink(given: WatchInput) -> None:
        heard.append(given)
        mux.cancel(watch.watch_id)

    watch = mux.create(RANGE, 0, sink)
    mux.receive(Message(watch.watch_id, 5, created=True, canceled=True, compact_revision=3), progress_trusted=True)
    assert heard == [Created(5)]


def test_who_lets_another_go_when_the_stream_breaks_is_obeyed() -> None:
    """A sink cancels another watch on ``Lost``: the other watch gets nothing more."""
    mux = Multiplexer()
    heard: list[WatchInput] = []
    mux.create(RANGE, 0, lambda _given: heard_nothing())
    other = mux.create(RANGE, 0, heard.append)

    def heard_nothing() -> None:
        mux.cancel(other.watch_id)

    mux.lose("broken")
    assert heard == []
    assert len(mux) == 0


def test_a_watch_that_is_let_go_waits_for_no_proof() -> None:
    """The feed of a cancelled watch may still say whether it waits: that changes nothing, and is no error."""
    mux = Multiplexer()
    watch = mux.create(RANGE, 0, lambda _given: None)
    mux.cancel(watch.watch_id)
    mux.await_proof(watch.watch_id, wanted=True)
    assert mux.follow_up() == []
    assert len(mux) == 0


def test_what_is_complete_of_a_large_response_does_not_wait_for_its_end() -> None:
    """Complete revisions of a large response are passed on, as waiting events are not counted. An incomplete revision
    still waits, and is dropped when cut.
    """
    mux, heard = Multiplexer(), list[WatchInput]()
    watch_id = mux.create(KeyRange("prefix", b"/a/"), 1, heard.append).watch_id
    mux.receive(Message(watch_id, 9, created=True), progress_trusted=True)
    large = b"x" * (MOST_PENDING // 2)

    def fragment(*revisions: int) -> None:
        events = [KeyValue(b"/a/k", large, 2, revision, 1) for revision in revisions]
        mux.receive(Message(watch_id, 99, fragment=True, events=events), progress_trusted=True)

    def revisions() -> list[int]:
        return [batch.revision for given in heard if isinstance(given, Batches) for batch in given.batches]

    fragment(2)
    fragment(3)
    assert revisions() == [2]
    fragment(3)
    fragment(4)
    fragment(5)
    assert revisions() == [2, 3, 4]
    mux.lose("gone")
    assert revisions() == [2, 3, 4]
    assert [len(batch.events) for given in heard if isinstance(given, Batches) for batch in given.batches] == [1, 2, 1]
