"""Which connections are accepted at the limit of open files, and which give way."""

from __future__ import annotations

import logging
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from app.core.capacity import Capacity
from app.server.admission import EVICTIONS, Admission
from app.stream.transport import has_unread


class Clock:
    """A loop's clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        """See ``asyncio.AbstractEventLoop``."""
        return self.now


class Connection:
    """The part of a connection that the admission uses; *sock*: the socket of its transport."""

    def __init__(self, loop: Clock, sock: socket.socket | None = None) -> None:
        self.loop = loop
        self.transport = SimpleNamespace(get_extra_info=lambda _name: sock)
        self.gave_way = False

    def give_way(self) -> None:
        """See ``app.server.protocol``."""
        self.gave_way = True


def test_the_one_that_is_idle_longest_gives_way(caplog: pytest.LogCaptureFixture) -> None:
    """The connection that has been idle longest gives way; a busy one does not. The log reports evictions once in
    EVICTIONS seconds, with their number.
    """
    clock, capacity = Clock(), Capacity[Any](2, 1)
    admission = Admission(capacity)
    busy, first, second, third, late = (Connection(clock) for _ in range(5))
    with caplog.at_level(logging.WARNING, "gateway.http"):
        for connection in (busy, first):
            admission.let_in(connection)  # type: ignore[arg-type]
        capacity.mark_busy(busy)
        assert caplog.records == []
        for connection in (second, third):
            admission.let_in(connection)  # type: ignore[arg-type]
            capacity.leave(first if connection is second else second)
        assert len(caplog.records) == 1
        clock.now += EVICTIONS
        admission.let_in(late)  # type: ignore[arg-type]

    assert [one.gave_way for one in (busy, first, second, third, late)] == [False, True, True, True, False]
    assert [vars(record)["closed_so_far"] for record in caplog.records] == [1, 3]


def test_a_request_that_was_not_read_is_spared() -> None:
    """Hundreds may arrive in one turn of the loop. Who has sent a request is not taken for a client without one."""
    clock, capacity = Clock(), Capacity[Any](2, 1)
    admission = Admission(capacity)
    (ours, client), (silent_ours, _silent) = pairs = socket.socketpair(), socket.socketpair()
    asking, silent, late = Connection(clock, ours), Connection(clock, silent_ours), Connection(clock)
    client.send(b"GET /livez HTTP/1.1\r\n")
    for connection in (asking, silent, late):
        admission.let_in(connection)  # type: ignore[arg-type]

    assert [one.gave_way for one in (asking, silent, late)] == [False, True, False]
    for pair in pairs:
        for sock in pair:
            sock.close()
    assert not has_unread(asking.transport), "a closed one has nothing"  # type: ignore[arg-type]  # a stand-in with a socket
