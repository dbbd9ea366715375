"""The check of all streams after a change: who is closed, in slices, and what a second change or a defect does."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from app.core.keys import KeyRange
from app.core.reasons import CloseReason
from app.ports import Permit
from app.stream.recheck import Recheck
from app.stream.slices import LEAST
from app.watch.subscriber import Subscriber
from tests.support.feeds import followed
from tests.support.waiting import eventually
from tests.watch.world import World

Outcome = Callable[[], "CloseReason | None"]


@dataclass(frozen=True)
class StubPermit:
    """A permit whose fate a test decides."""

    name: str
    outcome: Outcome = field(compare=False)
    expires: float | None = field(default=None, compare=False)
    session: str = ""

    def renewed(self) -> Permit | CloseReason:
        """See ``Permit``."""
        return self.outcome() or self

    def note(self, decision: str, *, address: str, request_id: str) -> None:
        """See ``Permit``."""


class Streams:
    """Subscribers with permits, on a registry without etcd. The clock moves by *step* whenever it is read."""

    def __init__(self, step: float = 0.0) -> None:
        self.world = World()
        self.now = 0.0
        self.step = step
        self.recheck = Recheck(self.world.registry, self.clock)

    def clock(self) -> float:
        """See ``app.ports.Clock``."""
        self.now += self.step
        return self.now

    def subscribe(self, permit: StubPermit | None, *ranges: KeyRange) -> Subscriber:
        """Add a subscriber with a permit."""
        subscriber = self.world.subscribe(*ranges)
        subscriber.permit = permit
        return subscriber

    async def done(self) -> None:
        """Return at the end of the pass."""

        async def ended() -> bool:
            return not self.recheck.running

        await eventually(ended)

    async def over(self, subscribers: Sequence[Subscriber]) -> None:
        """Release everything."""
        for subscriber in subscribers:
            subscriber.release()
        await self.world.empty()


async def test_exactly_the_denied_are_closed() -> None:
    """On one feed, those who may no longer read are closed with the reason, also one that is about to end for another
    reason; all others are untouched.
    """
    streams = Streams()
    asked: list[str] = []

    def fate(name: str, reason: CloseReason | None) -> StubPermit:
        def outcome() -> CloseReason | None:
            asked.append(name)
            return reason

        return StubPermit(name, outcome)

    fates = [fate("a", None), fate("b", "revoked"), fate("a", None), fate("c", "scope-changed"), fate("b", "revoked")]
    members = [streams.subscribe(one) for one in fates]
    unchecked, leaving, gone = streams.subscribe(None), streams.subscribe(fates[1]), streams.subscribe(fates[1])
    leaving.closing = "drain"
    gone.release()
    streams.recheck.begin()

    assert [member.closing for member in members] == [None, "revoked", None, "scope-changed", "revoked"]
    assert (unchecked.closing, leaving.closing, gone.closing) == (None, "revoked", None)
    assert asked == ["a", "b", "c"], "equal permits are asked once"
    assert not streams.recheck.running
    await streams.over([*members, unchecked, leaving])


@pytest.mark.parametrize("by", ["a change of the rules", "the end of the session"])
async def test_who_leaves_a_failed_channel_is_denied(by: str) -> None:
    """A slow client takes the rest of what was read before the failure, so it must be denied like all others."""
    streams = Streams()
    denied = streams.subscribe(StubPermit("a", lambda: "revoked", session="a"))
    kept = streams.subscribe(StubPermit("b", lambda: None, session="b"))
    gone = streams.subscribe(StubPermit("c", lambda: "revoked", session="a"))
    streams.world.registry.channels.feeds.failed(followed(denied), "too-large")
    gone.release()
    if by == "a change of the rules":
        streams.recheck.begin()
    else:
        streams.recheck.end_session("a")

    assert [one.closing for one in (denied, kept, gone)] == ["revoked", "too-large", "too-large"]
    registry = streams.world.registry
    assert (registry.subscribers(), registry.readers()) == ([], [denied, kept])
    await streams.over([denied, kept])
    assert registry.readers() == []


async def test_a_pass_is_done_in_slices() -> None:
    """A slice ends when its time is over; the loop serves others before the next one.

    An event needs about three turns of the loop, so that it waits for three slices. With slices of 4 ms, the others'
    events took three times as long while a role was taken away.
    """
    streams = Streams(step=LEAST / 4)
    members = [streams.subscribe(StubPermit(str(number), lambda: "revoked")) for number in range(40)]
    streams.recheck.begin()
    closed = sum(member.closing is not None for member in members)

    assert 0 < closed < 10
    await streams.done()
    assert all(member.closing == "revoked" for member in members)
    await streams.over(members)


async def test_a_change_during_a_pass() -> None:
    """A second change checks those again who were checked by the first: the last rules count."""
    streams = Streams(step=LEAST / 4)
    rules: list[CloseReason | None] = [None]
    members = [streams.subscribe(StubPermit(str(number), lambda: rules[0])) for number in range(40)]
    streams.recheck.begin()
    rules[0] = "revoked"
    streams.recheck.begin()
    await streams.done()

    assert all(member.closing == "revoked" for member in members)
    await streams.over(members)


async def test_those_who_leave_during_a_pass() -> None:
    """A subscriber that is released during a pass is not closed."""
    streams = Streams(step=LEAST / 4)
    members = [streams.subscribe(StubPermit(str(number), lambda: "revoked")) for number in range(40)]
    streams.recheck.begin()
    members[-1].release()
    await streams.done()

    assert members[-1].closing is None
    await streams.over(members)


async def test_a_defect_in_a_check(caplog: pytest.LogCaptureFixture) -> None:
    """A check that raises denies, and the other streams are checked."""

    def defect() -> CloseReason | None:
        raise RuntimeError("seeded")

    streams = Streams()
    members = [streams.subscribe(StubPermit("a", defect)), streams.subscribe(StubPermit("b", lambda: None))]
    streams.recheck.begin()

    assert [member.closing for member in members] == ["revoked", None]
    assert "a permit could not be checked" in caplog.text
    await streams.over(members)


async def test_the_end_of_a_session_closes_its_streams_alone() -> None:
    """Exactly the streams that the session has opened, without asking whether any permit still holds."""
    streams = Streams()
    permits = [StubPermit(name, lambda: "expired", session=name) for name in ("a", "b", "a", "")]
    members = [streams.subscribe(one) for one in (*permits, None)]
    gone = streams.subscribe(permits[0])
    gone.release()
    streams.recheck.end_session("a")

    assert [member.closing for member in members] == ["revoked", None, "revoked", None, None]
    assert gone.closing is None
    await streams.over(members)


async def test_a_pass_leaves_nothing() -> None:
    """A pass that is over holds no permit: 20,000 of them would stay until the next change."""
    streams = Streams(step=LEAST / 4)
    members = [streams.subscribe(StubPermit(str(number), lambda: None)) for number in range(40)]
    permits = [weakref.ref(member.permit) for member in members if member.permit is not None]
    streams.recheck.begin()
    await streams.done()
    await streams.over(members)
    members.clear()

    assert (len(permits), [permit for permit in permits if permit() is not None]) == (40, [])
