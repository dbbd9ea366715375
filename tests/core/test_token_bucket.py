"""``app.core.token_bucket`` against buckets that are filled step by step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.core.token_bucket import TokenBuckets

NAMES = ("a", "b", "c")
# Powers of two, and times in 64ths of a second: the sums have no rounding, so the model and the code agree exactly.
rates = st.sampled_from([1, 2, 4, 16])
requests = st.lists(st.tuples(st.integers(0, 96), st.sampled_from(NAMES)), max_size=60)


@given(rates, requests)
def test_as_a_bucket_that_is_filled(rate: int, asked: list[tuple[int, str]]) -> None:
    """A token is free exactly if the bucket of the name has one; the wait is exactly the time until it has one."""
    buckets, now = TokenBuckets(rate), 1000.0
    level, seen = dict.fromkeys(NAMES, float(rate)), dict.fromkeys(NAMES, now)
    for step, name in asked:
        now += step / 64
        level[name] = min(float(rate), level[name] + (now - seen[name]) * rate)
        seen[name] = now
        assert buckets.wait(name, now) == max(0.0, (1 - level[name]) / rate)
        if level[name] >= 1:
            level[name] -= 1
            buckets.take(name, now)


@given(st.integers(1, 1000), st.floats(0, 1e7), st.lists(st.floats(0, 0.3), min_size=1, max_size=300))
def test_never_more_than_the_rate(rate: int, start: float, steps: list[float]) -> None:
    """In any span of time at most *rate* tokens are taken at once, and then *rate* a second."""
    buckets, now, taken = TokenBuckets(rate), start, 0
    for step in steps:
        now += step
        if not buckets.wait("a", now):
            buckets.take("a", now)
            taken += 1
    assert taken <= (now - start) * rate + rate + 1


@given(st.integers(1, 1000))
def test_a_full_bucket_has_all_its_tokens(rate: int) -> None:
    """Rounding takes no token away: at any rate, *rate* tokens can be taken at once, and no further one."""
    buckets = TokenBuckets(rate)
    for _ in range(rate):
        assert buckets.wait("a", 1e6) == 0
        buckets.take("a", 1e6)

    assert buckets.wait("a", 1e6) > 0


def test_an_empty_bucket_owes_nothing() -> None:
    """Tokens that were taken from an empty bucket, by wrong credentials, do not add up: a second later it is full."""
    buckets = TokenBuckets(2)
    for _ in range(100):
        buckets.take("a", 5.0)

    assert buckets.wait("a", 5.0) == 0.5
    assert buckets.wait("a", 5.5) == 0
    buckets.take("b", 6.0)
    assert len(buckets) == 1


@given(rates, requests)
def test_only_recent_names_are_kept(rate: int, asked: list[tuple[int, str]]) -> None:
    """A name is kept for at most one second after its last token."""
    buckets, now, last = TokenBuckets(rate), 0.0, dict.fromkeys(NAMES, -9.0)
    for step, name in asked:
        now += step / 64
        buckets.take(name, now)
        last[name] = now
        assert len(buckets) <= sum(now - taken < 1.0 or taken == now for taken in last.values())


def test_the_number_of_buckets_is_bounded() -> None:
    """With too many names, the bucket that was used longest ago is forgotten; all others count on."""
    buckets = TokenBuckets(1, most=3)
    for name in ("a", "b", "a", "c", "d"):
        buckets.take(name, 1.0)

    assert len(buckets) == 3
    assert [name for name in "abcd" if buckets.wait(name, 1.0)] == ["a", "c", "d"]
