"""``app.core.turn_share`` on a given clock: how long each slice of long work may take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.turn_share import LATE_MOST, LATE_SHARE, SHARE, TurnShare

LEAST, MOST = 0.0001, 0.0005
SECONDS = st.floats(min_value=0.0, max_value=0.05)


class Loop:
    """A loop's turns, and slices of work that end when their time is over."""

    def __init__(self) -> None:
        self.now = 100.0
        self._share = TurnShare(lambda: self.now, least=LEAST, most=MOST)

    def slice(self, *, more: bool = True, late: bool = False) -> float:
        """Do a slice, and return its seconds."""
        began, self.now = self.now, self._share.begin(late=late)
        self._share.end(more=more)
        return self.now - began


@given(st.lists(SECONDS, min_size=1, max_size=30))
def test_a_slice_is_a_share_of_its_turn(others: list[float]) -> None:
    """A slice takes SHARE of the time since the one before, itself included: at least LEAST, at most MOST."""
    loop = Loop()
    loop.slice()
    for seconds in others:
        loop.now += seconds
        took = loop.slice()
        assert took == pytest.approx(min(max(LEAST, SHARE * (seconds + took)), MOST), abs=1e-9)


@given(st.lists(SECONDS, min_size=1, max_size=30))
def test_a_late_slice_is_a_larger_share(others: list[float]) -> None:
    """Work that is late takes LATE_SHARE of each turn: at least LEAST, at most LATE_MOST."""
    loop = Loop()
    loop.slice()
    for seconds in others:
        loop.now += seconds
        took = loop.slice(late=True)
        assert took == pytest.approx(min(max(LEAST, LATE_SHARE * (seconds + took)), LATE_MOST), abs=1e-9)


def test_time_without_work_counts_for_nobody() -> None:
    """A loop that was busy before there was work gives its first slice no more than LEAST."""
    loop = Loop()
    loop.slice(more=False)
    loop.now += 1.0

    assert loop.slice() == pytest.approx(LEAST)
