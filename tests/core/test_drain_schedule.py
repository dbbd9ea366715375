"""``app.core.drain_schedule``: every stream is closed in time, without a storm."""

from __future__ import annotations

import bisect
import random

from hypothesis import given
from hypothesis import strategies as st

from app.core.drain_schedule import DrainSchedule
from app.settings import Settings
from app.stream.streams import RETRY_MS

counts = st.integers(0, 20_000)
windows = st.floats(0, 100)
paces = st.floats(1, 1000)


@given(counts, windows, paces)
def test_all_are_gone_at_the_end_and_the_end_is_within_the_window(count: int, window: float, pace: float) -> None:
    """All streams are closed at the end of the window, however many there are."""
    drain = DrainSchedule(count, window=window, pace=pace)
    assert drain.seconds <= window
    assert drain.due(drain.seconds) == count


@given(counts, windows, paces, st.lists(st.floats(0, 1), min_size=2).map(sorted))
def test_they_go_evenly(count: int, window: float, pace: float, moments: list[float]) -> None:
    """Between two moments no more streams are closed than their share, and the number of closed streams never falls."""
    drain = DrainSchedule(count, window=window, pace=pace)
    at = [moment * drain.seconds for moment in moments]
    due = [drain.due(moment) for moment in at]
    assert due == sorted(due)
    if count <= window * pace:
        for before, after, start, end in zip(due, due[1:], at, at[1:], strict=False):
            assert after - before <= pace * (end - start) + 1.001


def test_a_few_go_at_once() -> None:
    """A few streams are closed at once: one stream does not wait 30 seconds."""
    assert DrainSchedule(1, window=30, pace=100).seconds == 0.01
    assert DrainSchedule(0, window=30, pace=100).due(0) == 0
    assert DrainSchedule(6000, window=30, pace=100).seconds == 30


def test_they_come_back_evenly() -> None:
    """With the defaults, 1,000 streams close one by one and reconnect after a random time, without a storm."""
    window, pace = (Settings.model_fields[name].default for name in ("drain_window", "drain_pace"))
    drain, rng = DrainSchedule(1000, window=window, pace=pace), random.Random(1)

    def busiest_second(goes: list[float]) -> int:
        arrivals = sorted(at + rng.uniform(*RETRY_MS) / 1000 for at in goes)
        return max(bisect.bisect_left(arrivals, at + 1) - number for number, at in enumerate(arrivals))

    ticks = [tick / 1000 for tick in range(int(drain.seconds * 1000) + 1)]
    due = [drain.due(tick) for tick in ticks]
    goes = [tick for tick, before, now in zip(ticks, [0, *due], due, strict=False) for _ in range(now - before)]
    assert len(goes) == 1000
    assert busiest_second(goes) <= 1.5 * pace
    assert busiest_second([0.0] * 1000) > 2 * pace  # the rate if all came at once
