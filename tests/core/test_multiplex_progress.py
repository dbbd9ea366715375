"""Which answers to progress requests ``app.core.multiplex`` trusts, and which messages it considers late."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import app.core.multiplex as multiplex_module
from app.core.events import KeyValue
from app.core.feed_messages import Batches, Created, Progress, WatchInput
from app.core.keys import KeyRange
from app.core.multiplex import Message, Multiplexer, ProgressRequest, Request
from tests.core.stream_model import StreamModel

RANGE = KeyRange("prefix", b"/a/")
CAPACITY, ROUND = 4, 3


class Followed:
    """A watch of ours, and the revisions that it received."""

    def __init__(self, every: int, start: int) -> None:
        self.every, self.start = every, start
        self.watch_id = 0
        self.told: list[int] = []
        self.progress = 0
        self.answers = 0  # how many answers it received
        self.asked_for_all = 0  # how many requests for all watches were made before this watch
        self.wished = False  # it has been hastened, or has awaited proof
        self.late = self.slow = False  # of the last message

    def has(self, revision: int) -> bool:
        """Whether the watch has received all its revisions up to *revision*."""
        return [r for r in self.told if r <= revision] == self.owed(revision, self.start)

    def owed(self, revision: int, first: int) -> list[int]:
        """The revisions that the watch must have received up to *revision*."""
        return [r for r in range(first, revision + 1) if r % self.every == 0]


class ProgressMachine(RuleBasedStateMachine):
    """Takes etcd's steps and the gateway's in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.mux = Multiplexer()
        self.etcd = StreamModel("silent", CAPACITY, ROUND)
        self.watches: list[Followed] = []
        self.asked_for_all = 0

    @initialize(answering=st.sampled_from(["early", "deferring", "silent"]), writes=st.integers(0, 6))
    def begin(self, answering: Any, writes: int) -> None:
        """Begin with a member of some version, with some history."""
        self.etcd.answering = answering
        self.etcd.revision += writes

    def send(self, request: Request, every: int = 0) -> None:
        """Send a request to etcd."""
        self.etcd.requests.append((request, every))

    # --- the gateway -------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.watches) < 6)
    @rule(every=st.integers(1, 4), back=st.integers(0, 6), waits=st.booleans())
    def create(self, every: int, back: int, waits: bool) -> None:
        """Open a watch that starts in the past, or from the next revision on."""
        followed = Followed(every, max(1, self.etcd.revision + 1 - back))

        def hear(given: WatchInput) -> None:
            if isinstance(given, Batches):
                followed.told += [batch.revision for batch in given.batches]
                followed.late, followed.slow = given.late, given.slow
            elif isinstance(given, Progress):
                followed.progress = given.revision
                followed.answers += 1
                if given.trusted:
                    assert followed.told == followed.owed(given.revision, followed.start), (
                        "the gateway trusted an answer too early"
                    )

        request = self.mux.create(RANGE, followed.start, hear)
        followed.watch_id = request.watch_id
        self.mux.await_proof(request.watch_id, wanted=waits)
        followed.wished = waits
        followed.asked_for_all = self.asked_for_all
        self.watches.append(followed)
        self.send(request, every)

    @precondition(lambda self: self.watches)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Cancel a watch."""
        followed = data.draw(st.sampled_from(self.watches))
        self.watches.remove(followed)
        request = self.mux.cancel(followed.watch_id)
        assert request is not None
        self.send(request)

    @precondition(lambda self: self.watches)
    @rule(data=st.data(), wanted=st.booleans())
    def hasten(self, data: st.DataObject, wanted: bool) -> None:
        """A merge waits for a watch, or no longer."""
        followed = data.draw(st.sampled_from(self.watches))
        followed.wished |= wanted
        self.mux.hasten(followed.watch_id, wanted=wanted)

    @rule(count=st.integers(1, 3), for_all=st.booleans())
    def ask(self, count: int, for_all: bool) -> None:
        """Ask for progress."""
        for _ in range(count):
            self.asked_for_all += for_all
            for request in self.mux.ask(for_all=for_all):
                self.send(request)

    @invariant()
    def quiet_watches_receive_nothing_extra(self) -> None:
        """A watch that waits for nothing receives one answer for each request for all: 200 a second cost too much."""
        for followed in self.watches:
            if not followed.wished:
                assert followed.answers <= self.asked_for_all - followed.asked_for_all + 1

    @rule(control_first=st.booleans(), count=st.integers(1, 8))
    def receive(self, control_first: bool, count: int) -> None:
        """Receive the next messages of etcd."""
        for _ in range(count):
            sent = self.etcd.send(control_first=control_first)
            if sent is None:
                return
            message, fate = sent
            before = {followed.watch_id: len(followed.told) for followed in self.watches}
            self.mux.receive(message, progress_trusted=self.etcd.answering != "early", may_lose=True)
            for followed in self.watches:
                told = followed.watch_id == message.watch_id and len(followed.told) > before[message.watch_id]
                if told and not self.etcd.hidden:
                    assert followed.late or followed.slow or fate != "victim", (
                        "the message found the channel full, so it is late"
                    )
                    assert followed.slow or fate != "lagged", "etcd serves the watch from history"
            for request in self.mux.follow_up():
                self.send(request)

    # --- etcd --------------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 4))
    def serve(self, count: int) -> None:
        """etcd reads requests."""
        for _ in range(count):
            self.etcd.serve()
            self.etcd.register()

    @rule()
    def serve_half(self) -> None:
        """etcd reads one request; of a create, only the revision."""
        self.etcd.serve()

    @rule()
    def register(self) -> None:
        """etcd does the rest of a create."""
        self.etcd.register()

    @rule()
    def write(self) -> None:
        """A client writes: etcd sends the event, but the revision is not the store's yet."""
        self.etcd.write()

    @rule()
    def commit(self) -> None:
        """The written revision becomes the store's."""
        self.etcd.commit()

    @rule(count=st.integers(1, 6))
    def write_much(self, count: int) -> None:
        """A client writes several revisions."""
        for _ in range(count):
            self.etcd.commit()
            self.etcd.write()
            self.etcd.commit()

    @rule()
    def sync(self) -> None:
        """etcd runs one round of catching up."""
        self.etcd.sync()

    @rule()
    def move_victims(self) -> None:
        """etcd tries again to send the refused messages."""
        self.etcd.move_victims()

    def teardown(self) -> None:
        """Without further faults, every waiting watch gets progress to the end: no lost answer stops it for ever."""
        for number, followed in enumerate(self.watches):
            wish = self.mux.hasten if number % 2 else self.mux.await_proof
            wish(followed.watch_id, wanted=True)
        self.etcd.commit()
        target = self.etcd.revision
        for _ in range(60):
            self.write_much(count=1)  # 3.5.8 to 3.5.12 are silent until something happens: etcd #17507
            for request in self.mux.ask(for_all=False):
                self.send(request)
            for _ in range(40):
                self.etcd.serve()
                self.etcd.register()
                self.etcd.move_victims()
                self.etcd.sync()
                self.receive(control_first=True, count=8)
            if all(followed.progress >= target and followed.has(target) for followed in self.watches):
                break
        for followed in self.watches:
            assert followed.progress >= target
            assert followed.has(target)


@pytest.fixture(name="_small")
def _small_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel as small as the model's, with marks that fit."""
    monkeypatch.setattr(multiplex_module, "CHANNEL", CAPACITY)
    monkeypatch.setattr(multiplex_module, "ROUND_REVISIONS", ROUND)
    monkeypatch.setattr(multiplex_module, "MARK_EVERY", 2)
    monkeypatch.setattr(multiplex_module, "MARKS", 4)


@pytest.mark.usefixtures("_small")
def test_no_answer_is_believed_too_early_and_no_slow_watch_missed() -> None:
    """In any order of steps, progress covers only received events, and messages that met a full channel are late."""
    run_state_machine_as_test(
        ProgressMachine,
        settings=settings(
            stateful_step_count=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
        ),
    )


@pytest.mark.parametrize(("wish", "requests"), [("await_proof", 3), ("hasten", 1), ("", 1)])
def test_requests_whose_answers_a_watch_lacks(wish: str, requests: int) -> None:
    """Four answers were lost before the watch was created. The watch gets its proof in one more round of requests.

    A hastened watch needs no such round: each answer is followed by a request anyway.
    """
    mux, heard = Multiplexer(), list[WatchInput]()
    mux.create(RANGE, 0, lambda _given: None)
    mux.receive(Message(1, 5, created=True), progress_trusted=True)
    for _ in range(4):
        mux.ask(for_all=False)
    mux.create(RANGE, 0, heard.append)
    mux.receive(Message(2, 5, created=True), progress_trusted=True)
    if wish:
        getattr(mux, wish)(2, wanted=True)
    assert len(mux.ask(for_all=False)) == 1
    mux.receive(Message(-1, 5), progress_trusted=True)
    assert heard == [Created(5)], "the answer may be older than the watch"
    assert len(mux.ask(for_all=False)) == requests


@pytest.mark.usefixtures("_small")
def test_an_answer_decides_on_a_late_watch_that_waits_for_nothing() -> None:
    """The watch's feed must learn that the watch may lack events, although nobody waits for the watch's progress."""
    mux, heard = Multiplexer(), list[WatchInput]()
    mux.create(RANGE, 0, heard.append)
    mux.receive(Message(1, 1, created=True), progress_trusted=True, may_lose=True)
    for revision in range(2, CAPACITY + 4):
        event = KeyValue(b"/a/k", b"", 2, revision, 1)
        mux.receive(Message(1, revision, events=[event]), progress_trusted=True, may_lose=True)
        if isinstance(heard[-1], Batches) and heard[-1].late:
            break
    assert mux.follow_up() == [ProgressRequest()]
    mux.receive(Message(-1, 99), progress_trusted=True, may_lose=True)
    assert heard[-1] == Batches((), slow=True)


def test_only_trusted_progress_is_hastened() -> None:
    """The member's version is known with its first message. Untrusted answers release nothing, however many come."""
    mux = Multiplexer()
    mux.create(RANGE, 0, lambda _given: None)
    mux.hasten(1, wanted=True)
    assert not mux.hastened
    mux.receive(Message(1, 5, created=True), progress_trusted=False)
    assert not mux.hastened
    mux.receive(Message(-1, 5), progress_trusted=True)
    assert mux.hastened
    mux.cancel(1)
    assert not mux.hastened
