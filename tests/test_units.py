"""Durations and sizes: what is shown is parsed to the same value. ``tests/test_settings.py`` has what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings import MAX_SECONDS
from app.units import seconds, show_seconds, show_size, size


@given(st.integers(0, MAX_SECONDS * 1000))
def test_a_duration_that_is_shown_is_parsed(milliseconds: int) -> None:
    """To the millisecond, for every duration that a setting can have."""
    assert seconds(show_seconds(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=1e-9, rel=1e-12)


@given(st.integers(0, 1 << 50))
def test_a_size_that_is_shown_is_parsed(number: int) -> None:
    """To the byte."""
    assert size(show_size(number)) == number


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0s"), (0.5, "500ms"), (1.5, "1.5s"), (75, "75s"), (600, "10m"), (7200, "2h"), (0.0001, "0.1ms")],
)
def test_durations(value: float, text: str) -> None:
    """The largest unit without a fraction."""
    assert show_seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0B"), (1000, "1000B"), (65536, "64KiB"), (256 << 20, "256MiB"), (1 << 30, "1GiB")]
)
def test_sizes(value: int, text: str) -> None:
    """The largest unit without a fraction."""
    assert show_size(value) == text


def test_other_values_stay_as_they_are() -> None:
    """A program passes numbers."""
    assert (seconds(1.5), size(7)) == (1.5, 7)
