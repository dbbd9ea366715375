"""``app.core.retry_penalty``: who was too slow again and again stays away longer, and is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.retry_penalty import RetryPenalty

draws = st.floats(0, 1, exclude_max=True)


@given(st.lists(draws, min_size=2, max_size=20))
def test_waits_double_up_to_the_cap(found: list[float]) -> None:
    """Each wait is longer than the last, for a client that obeys the wait and is too slow again."""
    retry_penalty, now, waits = RetryPenalty(first=5_000, cap=300_000), 0.0, []
    for draw in found:
        waits.append(retry_penalty.add("a", now, draw))
        now += waits[-1] / 1000 + 60
    for number, wait in enumerate(waits):
        ceiling = min(300_000, 5_000 * 2**number)
        assert 0.75 * ceiling - 1 <= wait <= ceiling
        if number and ceiling < 300_000:
            assert wait > waits[number - 1]


@pytest.mark.parametrize(
    ("pause", "count"), [(0, 4), (299, 4), (300, 3), (600, 2), (900, 1), (10**6, 1)], ids=lambda value: str(value)
)
def test_it_forgets(pause: int, count: int) -> None:
    """One penalty is forgotten for each five minutes after the end of the wait."""
    retry_penalty, now = RetryPenalty(forget=300.0), 0.0
    for _ in range(3):
        now += retry_penalty.add("a", now, 0.5) / 1000
    assert retry_penalty.add("a", now + pause, 0.0) == 3750 * 2 ** (count - 1)


def test_a_day_of_it_is_forgiven_in_an_hour() -> None:
    """Penalties are counted only up to the cap, so that an hour is enough to forget a day of them."""
    retry_penalty, now = RetryPenalty(), 0.0
    for _ in range(1000):
        now += retry_penalty.add("a", now, 0.5) / 1000
    assert retry_penalty.add("a", now + 3600, 0.0) == 3750


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1000), draws), max_size=200))
def test_it_is_bounded_and_keeps_the_latest(found: list[tuple[int, float, float]]) -> None:
    """The list has a bound and keeps the most recent clients; a clock that goes back does no harm."""
    retry_penalty = RetryPenalty(size=8, forget=1e9)
    recent: list[int] = []
    for who, now, draw in found:
        known = who in recent
        wait = retry_penalty.add(who, now, draw)
        assert known or wait <= 5_000
        assert not known or wait >= 7_500
        recent = [*(other for other in recent if other != who), who][-8:]
        assert len(retry_penalty) == len(recent)
