"""``app.core.slow_reader``: when a reader is too slow, by properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.core.slow_reader import MAX_LAGS, SlowReaderPolicy

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
