"""Which connections are accepted at the limit of open files, and which give way."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from app.core.capacity import Capacity
from app.server.admission import EVICTIONS, Admission


class Clock:
    """A loop's clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        """See ``asyncio.AbstractEventLoop``."""
        return self.now


class Connection:
    """The part of a connection that the admission uses."""

    def __init__(self, loop: Clock) -> None:
        self.loop = loop
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
