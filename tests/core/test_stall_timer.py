"""``app.core.stall_timer``: a write ends when the client takes nothing, and after a while in any case."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.core.stall_timer import MAX_SEND_TIMEOUTS, StallTimer


@given(timeout=st.floats(0.1, 60), looks=st.integers(1, 10))
def test_a_write_of_which_nothing_is_taken_ends_after_the_timeout(timeout: float, looks: int) -> None:
    """The write ends exactly at the timeout, not a check earlier or later."""
    stall = StallTimer(timeout, 1000)
    assert [stall.ends(1000, timeout / looks) for _ in range(looks)] == [False] * (looks - 1) + [True]


@given(timeout=st.floats(0.1, 60), looks=st.integers(1, 10))
def test_a_write_that_moves_goes_on_but_not_for_ever(timeout: float, looks: int) -> None:
    """A byte now and then is not enough to keep a write alive for ever."""
    unacked_bytes = 10**6
    stall = StallTimer(timeout, unacked_bytes)
    count = 0
    while not stall.ends(unacked_bytes := unacked_bytes - 1, timeout / looks):
        count += 1
    assert count == MAX_SEND_TIMEOUTS * looks - 1


def test_what_moves_gets_its_time_anew() -> None:
    """The idle time counts from the last byte that the client read."""
    stall = StallTimer(1.0, 100)
    assert [stall.ends(left, 0.5) for left in (100, 99, 99, 50, 50, 50)] == [False] * 5 + [True]
