"""``app.core.round_robin`` on a given clock: everyone is served in turn, and others get their part of the time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.round_robin import LEAST, MOST, RoundRobin
from app.core.turn_share import SHARE

SECONDS = st.floats(min_value=0.0, max_value=0.05)


class Working:
    """A member that needs *turns* turns, each of which takes *cost* seconds of the clock."""

    def __init__(self, queue: RoundRobin, clock: list[float], turns: int, cost: float) -> None:
        self.queued = False
        self._queue = queue
        self._clock = clock
        self.left = turns
        self.cost = cost
        self.served = 0

    def take_turn(self) -> None:
        """See ``Member``."""
        assert not self.queued
        self.left -= 1
        self._clock[0] += self.cost
        self.served += 1
        if self.left:
            self._queue.add(self)


class Turns:
    """A loop's turns: members, and others that take time between the turns."""

    def __init__(self) -> None:
        self.clock = [100.0]
        self.queue = RoundRobin(lambda: self.clock[0])

    def add(self, turns: int, cost: float) -> Working:
        """Add a member."""
        member = Working(self.queue, self.clock, turns, cost)
        self.queue.add(member)
        return member

    def turn(self, others: float) -> float:
        """Let others take their time, and then the members. Return the seconds that the members took."""
        self.clock[0] += others
        began = self.clock[0]
        self.queue.turn()
        return self.clock[0] - began


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.lists(SECONDS, max_size=20), SECONDS)
def test_all_are_served_and_nobody_twice_before_the_next(turns: list[int], others: list[float], cost: float) -> None:
    """Each member gets all its turns, and at no time one member has had two turns more than another that waits."""
    loop = Turns()
    members = [loop.add(count, cost) for count in turns]
    rest = iter(others)
    while len(loop.queue):
        before = [member.served for member in members]
        loop.turn(next(rest, 0.0))
        after = [member.served for member in members]
        assert after != before
        waiting = [count for count, member in zip(after, members, strict=True) if member.queued]
        assert not waiting or max(waiting) - min(waiting) <= 1

    assert [member.served for member in members] == turns
    assert not any(member.queued for member in members)


@given(st.lists(SECONDS, min_size=2, max_size=30), st.floats(min_value=0.00001, max_value=0.002))
def test_others_get_their_part(others: list[float], cost: float) -> None:
    """Members take at most SHARE of a turn, never more than MOST, and at least one of them is served.

    A turn that is shorter than what LEAST allows gives them LEAST. The last member may exceed the time by its cost.
    """
    loop = Turns()
    for _ in range(5):
        loop.add(1_000_000, cost)
    loop.turn(0.0)
    for seconds in others:
        took = loop.turn(seconds)
        allowed = min(max(LEAST, SHARE * (seconds + took)), MOST)
        assert cost * 0.999 <= took <= allowed + cost * 1.001


@given(st.integers(1, 50), st.floats(min_value=0.00001, max_value=0.002))
def test_an_idle_loop_is_theirs(count: int, cost: float) -> None:
    """If the loop has nothing else to do, a turn of the loop is spent on members."""
    loop = Turns()
    for _ in range(count):
        loop.add(1_000_000, cost)
    spent = [loop.turn(0.0) for _ in range(5)]

    assert min(spent) >= LEAST * 0.999


def test_time_before_the_queue_counts_for_nobody() -> None:
    """A loop that was busy for a second before anybody waited does not give the first member a longer turn."""
    loop = Turns()
    loop.add(1, 0.0001)
    loop.turn(0.0)
    loop.clock[0] += 1.0
    for _ in range(1000):
        loop.add(1, 0.0001)

    assert loop.turn(0.0) == pytest.approx(LEAST, abs=0.0001)


def test_who_left_is_not_served() -> None:
    """A member that is discarded, also twice, or by another one's turn, gets no turn. It may come again."""
    loop = Turns()
    first, second = loop.add(1, 0.0), loop.add(1, 0.0)
    loop.queue.discard(first)
    loop.queue.discard(first)
    loop.queue.add(second)
    assert (first.queued, second.queued, len(loop.queue)) == (False, True, 1)
    loop.turn(0.0)
    assert (first.served, second.served) == (0, 1)
    loop.queue.add(first)
    loop.turn(0.0)

    assert first.served == 1
