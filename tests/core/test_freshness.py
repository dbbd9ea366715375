"""``app.core.freshness``: a subscriber is live only if it has received everything, and recently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.freshness import STEPS, Freshness

LIMIT = 10.0


def judged(
    fresh: Freshness, now: float, *, lacks: float | None = None, written: int = 0, unacked_bytes: int = 0
) -> bool:
    """A short form of ``update``."""
    return fresh.update(now, lacks_since=lacks, written=written, unacked_bytes=unacked_bytes)


def test_who_has_everything_is_current() -> None:
    """A subscriber that has received everything is current for ever, however much was written."""
    fresh = Freshness(LIMIT)
    for now in range(100):
        fresh.wrote(1000 * now, float(now))
        assert not judged(fresh, float(now), written=1000 * (now + 1))
        assert fresh.age == 0


def test_what_was_not_sent_has_an_age() -> None:
    """A subscriber is stale when it lacks a change for longer than the limit. It is current again only below half the
    limit, so that the state does not flap.
    """
    fresh = Freshness(LIMIT)
    assert not judged(fresh, 10.0, lacks=0.0)
    assert judged(fresh, 10.1, lacks=0.0)
    assert judged(fresh, 10.2, lacks=1.0)
    assert judged(fresh, 12.0, lacks=6.9)
    assert not judged(fresh, 12.0, lacks=7.0)
    assert not judged(fresh, 17.0, lacks=7.0)
    assert judged(fresh, 17.1, lacks=7.0)
    assert not judged(fresh, 17.2)


def test_what_is_gone_from_the_log_is_older_than_anything() -> None:
    """A change that is gone from the log has not been sent, and its age is unknown: the subscriber is stale."""
    fresh = Freshness(LIMIT)
    assert judged(fresh, 0.0, lacks=float("-inf"))
    assert not judged(fresh, 0.0)


def test_what_was_not_taken_has_an_age_too() -> None:
    """Written bytes that the client has not read have an age, too.

    The age is overestimated by at most a quarter of the limit, and never underestimated.
    """
    fresh = Freshness(LIMIT)
    for second in range(60):
        fresh.wrote(100 * second, float(second))
    for waiting in range(1, 10):
        judged(fresh, 60.0, written=6000, unacked_bytes=100 * waiting)
        assert waiting <= fresh.age <= waiting + LIMIT / STEPS
    assert judged(fresh, 60.0, written=6000, unacked_bytes=1100)
    assert judged(fresh, 60.0, written=6000, unacked_bytes=6000)
    assert not judged(fresh, 60.0, written=6000, unacked_bytes=0)
    assert not judged(fresh, 99.0, written=6000, unacked_bytes=0)


def test_both_add_up() -> None:
    """The client reads new bytes after all waiting bytes; the change that it lacks has grown older by then."""
    fresh = Freshness(LIMIT)
    fresh.wrote(0, 0.0)
    assert not judged(fresh, 5.0, lacks=1.0, written=100, unacked_bytes=50)
    assert judged(fresh, 5.0, lacks=-1.0, written=100, unacked_bytes=50)


@given(writes=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 1 << 20)), max_size=300))
def test_marks_are_few(writes: list[tuple[float, int]]) -> None:
    """The number of marks is bounded, however much is written."""
    fresh, now, before = Freshness(LIMIT), 0.0, 0
    for pause, size in writes:
        now += pause
        if now >= fresh.mark_due:
            fresh.wrote(before, now)
        before += size
        assert len(fresh._marks) <= 2 * (STEPS + 2)


@given(
    limit=st.floats(0.5, 60),
    fill=st.floats(0.05, 0.5),
    backlog=st.floats(1, 20),
    steps=st.integers(20, 200),
)
def test_nobody_reads_live_who_lacks_what_is_old(limit: float, fill: float, backlog: float, steps: int) -> None:
    """After a burst, with a client of a constant rate, a state that was judged live is still true when the client reads
    it.

    Args:
        fill: the seconds in which the client reads full buffers, as a part of *limit*.
        backlog: the seconds in which the client reads everything, as a multiple of *limit*.
        steps: the number of judgements in a *limit*.
    """
    rate, fresh, flips, was = 1_000_000 / limit, Freshness(limit), 0, False
    capacity, total = int(rate * fill * limit), int(rate * backlog * limit)
    written = now = 0.0
    while now < (backlog + 2) * limit:
        taken = min(float(total), rate * now)
        room = min(float(total), taken + capacity)
        if room > written:
            if now >= fresh.mark_due:
                fresh.wrote(int(written), now)
            written = room
        late = judged(
            fresh, now, lacks=0.0 if written < total else None, written=int(written), unacked_bytes=int(written - taken)
        )
        read_at = now + (written - taken) / rate
        if not late and written < total:
            assert read_at <= limit * (1 + 2 / steps) + 1e-6
        flips += late is not was
        was = late
        now += limit / steps
    assert not was
    assert flips in (0, 2), "the state must not flap"
    assert flips == 2 or backlog <= 1 + fill + 2 / steps


@pytest.mark.parametrize("limit", [0.2, 10.0])
def test_a_burst_that_is_taken_at_once_is_nothing(limit: float) -> None:
    """A burst that the client reads at once makes nothing late: bytes under way are only a round trip old."""
    fresh = Freshness(limit)
    for second in range(100):
        now = float(second)
        if now >= fresh.mark_due:
            fresh.wrote(1000 * second, now)
        assert not judged(fresh, now + 0.01, lacks=now, written=1000 * (second + 1), unacked_bytes=1000)
        assert not judged(fresh, now + 0.02, written=1000 * (second + 1))
