"""The limit of connections, and the connection that is closed when the limit is reached."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from app.core.capacity import Capacity
from app.core.errors import OverCapacityError


def test_the_longest_idle_gives_way() -> None:
    """The connection that has been idle for longest is closed: neither a busy one, nor one that became idle later."""
    capacity: Capacity[str] = Capacity(3, 1)
    assert [capacity.arrive(name) for name in "abc"] == [None, None, None]
    capacity.mark_busy("a")
    capacity.mark_idle("a")
    capacity.mark_busy("b")

    assert capacity.arrive("d") == "c"
    capacity.leave("c")
    assert capacity.arrive("e") == "a"
    capacity.leave("a")
    assert (capacity.connections, capacity.busy, capacity.evicted) == (3, 1, 2)


def test_many_arrive_before_one_has_gone() -> None:
    """Each new connection evicts another one, although a closed connection leaves only later. An evicted connection is
    not busy.
    """
    capacity: Capacity[str] = Capacity(3, 1)
    victims = [capacity.arrive(name) for name in "abcdefg"]

    assert victims == [None, None, None, "a", "b", "c", "d"]
    assert (capacity.connections, capacity.busy, capacity.evicted) == (7, 0, 4)
    for name in "abcd":
        capacity.leave(name)
    assert (capacity.connections, capacity.busy) == (3, 0)
    assert capacity.arrive("h") == "e"


def test_who_has_a_request_in_the_socket_is_spared_once() -> None:
    """Such a connection comes last. If its request does not come to an end, it goes as the others do."""
    capacity: Capacity[str] = Capacity(3, 1)
    asking = {"a", "b"}
    victims = [capacity.arrive(name, asking.__contains__) for name in "abcdefg"]

    assert victims == [None, None, None, "c", "d", "a", "b"]


def test_when_all_are_busy_the_new_one_goes() -> None:
    """When all connections are busy, the new one is closed."""
    capacity: Capacity[str] = Capacity(2, 0)
    for name in "ab":
        capacity.arrive(name)
        capacity.mark_busy(name)

    assert capacity.arrive("c") == "c"


def test_spare_ones_are_not_for_what_takes_long() -> None:
    """Spare connections are not for slow requests: the connection that asks is busy itself."""
    capacity: Capacity[int] = Capacity(5, 2)
    for number in range(3):
        capacity.arrive(number)
        capacity.mark_busy(number)
        capacity.check()
    capacity.arrive(3)
    capacity.check()
    capacity.mark_busy(3)
    with pytest.raises(
        OverCapacityError, match="4 connections are in use; the limit of open files allows 3: retry later"
    ) as caught:
        capacity.check()

    assert (caught.value.status, caught.value.code) == (429, "too-many-connections")
    capacity.leave(0)
    capacity.check()


def test_the_gateways_own_connections_leave_less_room() -> None:
    """An edge has a connection for each feed: what it opens, clients cannot have any more."""
    own = [0]
    capacity: Capacity[int] = Capacity(5, 1, lambda: own[0])
    for number in range(3):
        capacity.arrive(number)
        capacity.mark_busy(number)
    capacity.check()
    own[0] = 2
    with pytest.raises(OverCapacityError, match="the limit of open files allows 2"):
        capacity.check()
    assert capacity.arrive(3) == 3
    assert capacity.statistics().limit == 3
    own[0] = 9
    assert capacity.statistics().limit == 0


class Crowd(RuleBasedStateMachine):
    """Connections that come, ask, become idle, and go in any order, and evicted connections that go at once."""

    there = Bundle("there")

    def __init__(self) -> None:
        super().__init__()
        self.capacity: Capacity[int] = Capacity(4, 2)
        self.states: dict[int, bool] = {}  # whether each is busy
        self.count = 0

    @rule(target=there, unread=st.integers(1, 4))
    def arrive(self, unread: int) -> int:
        self.count += 1
        self.states[self.count] = False
        victim = self.capacity.arrive(self.count, lambda one: one % unread == 0)
        if victim is not None:
            assert self.states.pop(victim) is False
            self.capacity.leave(victim)
        return self.count

    @rule(connection=there, busy=st.booleans())
    def change(self, connection: int, busy: bool) -> None:
        if connection in self.states:
            self.states[connection] = busy
            (self.capacity.mark_busy if busy else self.capacity.mark_idle)(connection)

    @rule(connection=consumes(there))
    def leave(self, connection: int) -> None:
        if self.states.pop(connection, None) is not None:
            self.capacity.leave(connection)

    @invariant()
    def counts(self) -> None:
        assert self.capacity.connections == len(self.states) <= 4
        assert self.capacity.busy == sum(self.states.values())
        assert self.capacity.has_room == (self.capacity.busy <= 2)


TestCrowd = Crowd.TestCase
TestCrowd.settings = settings(stateful_step_count=40)
