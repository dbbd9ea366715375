"""``app.core.backoff``: waits that grow up to a cap, and are random."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from app.core.backoff import Backoff

draws = st.floats(0, 1, exclude_max=True)


@given(attempt=st.integers(0, 10**9), draw=draws)
@example(attempt=6, draw=0.9999999999999999)
def test_every_wait_is_positive_and_capped(attempt: int, draw: float) -> None:
    """For any number of attempts, a wait is positive, does not overflow, and stays within the cap."""
    backoff = Backoff(first=0.05, cap=2.0)
    assert 0.025 <= backoff.delay(attempt, draw) <= 2.0


@given(attempt=st.integers(0, 60), draw=draws)
def test_waits_never_shrink(attempt: int, draw: float) -> None:
    """With the same draw, a later attempt waits at least as long."""
    backoff = Backoff()
    assert backoff.delay(attempt, draw) <= backoff.delay(attempt + 1, draw)


def test_half_of_a_wait_is_drawn() -> None:
    """The waits of a herd spread over the upper half of the ceiling, which doubles up to the cap."""
    backoff = Backoff(first=0.1, cap=1.0)
    assert [backoff.delay(attempt, 0.0) for attempt in range(6)] == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert backoff.delay(0, 0.5) == 0.1 * 0.75
    assert backoff.delay(50, 0.5) == 0.75
