"""The rules for slow readers, by properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.slow_reader import MAX_LAGS, MAX_SEND_TIMEOUTS, RetryPenalty, SlowReaderPolicy, StallTimer

rates = st.integers(1, 1 << 20)
writes = st.lists(st.tuples(st.integers(1, 100_000), st.floats(0, 60)), max_size=40)


@given(
    rate=rates, pause=st.floats(0.1, 60), sizes=st.lists(st.integers(1, 100_000), max_size=40), faster=st.floats(1, 9)
)
def test_who_sustains_the_rate_is_never_too_slow(rate: int, pause: float, sizes: list[int], faster: float) -> None:
    """A client that sustains the rate is never too slow, however large the state, with one pause anywhere."""
    policy = SlowReaderPolicy(pause, rate)
    policy.begin_snapshot()
    for number, size in enumerate(sizes):
        policy.wrote(size, size / (rate * faster) + (0.9 * pause if number == len(sizes) // 2 else 0))
        assert not policy.too_slow


@given(rate=rates, pause=st.floats(0.1, 60), seconds=st.floats(0.1, 60), slower=st.floats(0.01, 0.5))
def test_who_stays_below_it_is_too_slow_in_the_end(rate: int, pause: float, seconds: float, slower: float) -> None:
    """A client at half the rate or less, in a snapshot without end, is too slow after twice the pause and one write."""
    policy = SlowReaderPolicy(pause, rate)
    policy.begin_snapshot()
    waited = 0.0
    while not policy.too_slow:
        assert waited <= 2.001 * pause
        policy.wrote(int(rate * slower * seconds), seconds)
        waited += seconds


@given(writes)
def test_only_snapshots_have_a_rate(found: list[tuple[int, float]]) -> None:
    """After the snapshot, a reader may be as slow as the log allows; with a rate of 0, always."""
    following, unbounded = SlowReaderPolicy(0.1, 1 << 30), SlowReaderPolicy(0.1, 0)
    following.begin_snapshot()
    following.end_snapshot()
    unbounded.begin_snapshot()
    for size, seconds in found:
        following.wrote(size, seconds)
        unbounded.wrote(size, seconds)
    assert not following.too_slow
    assert not unbounded.too_slow


def test_each_snapshot_is_measured_by_itself() -> None:
    """The rate of each snapshot counts from its own start, not from earlier snapshots or the time between."""
    policy = SlowReaderPolicy(1.0, 1000)
    policy.begin_snapshot()
    policy.wrote(1000, 2.5)
    assert policy.too_slow
    policy.begin_snapshot()
    assert not policy.too_slow
    policy.wrote(1000, 1.5)
    assert not policy.too_slow


@given(st.lists(st.sampled_from(["lag", "catch up", "snapshot"]), max_size=30))
def test_lags_count_until_it_has_caught_up(steps: list[str]) -> None:
    """Only lags in a row count, up to the permitted number."""
    policy, row = SlowReaderPolicy(), 0
    for step in steps:
        if step == "lag":
            policy.lag()
            row += 1
        elif step == "catch up":
            policy.catch_up()
            row = 0
        else:
            policy.begin_snapshot()
            policy.end_snapshot()
        assert policy.too_slow == (row >= MAX_LAGS)
        assert policy.after_a_reset == (row > 0)


def test_behind_a_reset_in_a_snapshot() -> None:
    """The sent part of a snapshot is useless until the snapshot is complete."""
    policy = SlowReaderPolicy()
    assert not policy.after_a_reset
    policy.begin_snapshot()
    assert policy.after_a_reset
    policy.end_snapshot()
    assert not policy.after_a_reset


STEPS = ("begin_snapshot", "end_snapshot", "begin_flush", "end_flush", "lag", "catch_up", "wrote")
steps_of_a_reader = st.lists(st.sampled_from(STEPS), max_size=30)


def take(policy: SlowReaderPolicy, step: str) -> tuple[bool, bool]:
    """Report one step; return what the policy then finds."""
    getattr(policy, step)(*((10, 20.0) if step == "wrote" else ()))
    return policy.too_slow, policy.after_a_reset


@given(before=steps_of_a_reader, after=steps_of_a_reader)
def test_a_policy_at_rest_is_as_good_as_new(before: list[str], after: list[str]) -> None:
    """A reader may drop a policy at rest, and make a new one when it needs one."""
    policy, new = SlowReaderPolicy(), SlowReaderPolicy()
    for step in before:
        take(policy, step)
    if policy.at_rest:
        for step in after:
            assert take(policy, step) == take(new, step)


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
