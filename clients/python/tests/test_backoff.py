"""When and where a client connects next."""

from __future__ import annotations

import pytest
from etcd_watch_client.backoff import Backoff
from hypothesis import given
from hypothesis import strategies as st

draws = st.floats(0, 1)


@given(st.integers(1, 5), draws, st.lists(st.tuples(st.floats(0, 1e14), draws), max_size=40))
def test_no_delay_is_too_long_and_each_gateway_has_its_turn(
    gateways: int, first: float, attempts: list[tuple[float, float]]
) -> None:
    """No gateway is left out, and no delay is longer than the longest."""
    backoff = Backoff(gateways, first)
    start = backoff.index
    assert 0 <= start < gateways
    for number, (asked, draw) in enumerate(attempts, start=1):
        delay = backoff.delay(asked, draw)
        assert backoff.index == (start + number) % gateways
        assert 0 <= delay <= 300
        if number % gateways == 0:
            assert delay >= min(asked or 0.2, 300)


def test_one_gateway_is_asked_less_and_less_often() -> None:
    """The delay doubles to 30 s, and starts again after a success."""
    backoff = Backoff(1, 0)
    assert [backoff.delay(0, 1) for _ in range(6)] == [2, 4, 8, 16, 30, 30]
    backoff.succeed()
    assert backoff.delay(0, 0) == pytest.approx(0.2)


def test_another_gateway_is_asked_at_once() -> None:
    """A rollout of one gateway costs its clients a moment; only a round of failures is followed by a longer delay."""
    backoff = Backoff(3, 0.99)
    assert backoff.index == 2
    assert [backoff.delay(0, 1) for _ in range(4)] == [0.1, 0.1, 2, 0.1]
    assert Backoff(2, 0).delay(4.2, 1) == 1


def test_a_gateway_is_asked_when_it_says() -> None:
    """`retry_ms` and Retry-After count, up to five minutes, with a random time on top: many are told the same."""
    assert Backoff(1, 0).delay(4.2, 0) == 4.2
    assert Backoff(1, 0).delay(7, 1) == 8
    assert Backoff(1, 0).delay(1e9, 0) == 300
