"""``app.core.witnessed_history``: what a gateway reports of etcd's history arrives as it was sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.witnessed_history import ROUNDING, HistoryProgress, WitnessedHistory

LARGE = st.integers(0, 2**64 - 1)
PROGRESS = st.builds(HistoryProgress, LARGE, LARGE, LARGE)
# Seconds of a monotonic clock, and between two moments.
MOMENT = st.floats(0, 1e9, allow_nan=False)
WHILE = st.floats(0, 1e6, allow_nan=False)


@given(cluster_id=LARGE, first=PROGRESS, highest=PROGRESS, began=MOMENT, before=WHILE, way=WHILE, other_clock=MOMENT)
def test_the_read_is_never_taken_for_a_later_one(
    cluster_id: int,
    first: HistoryProgress,
    highest: HistoryProgress,
    began: float,
    before: float,
    way: float,
    other_clock: float,
) -> None:
    """Wherever a request and its answer spend their time, and whatever the other process' clock says.

    The request is sent *before* seconds after the read began, and is on its *way* until the answer is made.
    """
    told = WitnessedHistory(cluster_id, first, began, highest).header(began + before + way)
    read = WitnessedHistory.parse(told, other_clock + before)
    assert read is not None
    assert (read.cluster_id, read.first, read.highest) == (cluster_id, first, highest)
    assert read.first_at <= other_clock + 1e-6  # of floats as large as these
    assert read.first_at >= other_clock - way - 2 * ROUNDING - 1e-6


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "g; first=1-1-1; highest=1-1-1; age=1",
        "1; first=1-1; highest=1-1-1; age=1",
        "1; first=1-1-1; highest=1-1-1; age=-1",
        "1; first=1-1-1; highest=1-1-1; age=nan",
        "1; first=1-1-1; highest=1-1-1; age=1e3",
        "1; first=1-1-1; highest=1-1-1; age=1 ",
        f"1; first={'1' * 200}-1-1; highest=1-1-1; age=1",
    ],
)
def test_what_cannot_be_read_reports_nothing(text: str) -> None:
    """Something between the gateways may have changed it."""
    assert WitnessedHistory.parse(text, 0.0) is None


@pytest.mark.parametrize(
    ("mine", "theirs", "fell"),
    [
        ((5, 2, 9), (5, 2, 9), False),
        ((4, 2, 9), (5, 2, 9), True),
        ((5, 1, 9), (5, 2, 9), True),
        ((5, 2, 8), (5, 2, 9), True),
        ((6, 3, 10), (5, 2, 9), False),
        ((6, 3, 0), (5, 2, 9), False),
        ((0, 0, 0), (5, 2, 9), False),
        ((5, 2, 9), (5, 2, 0), False),
    ],
    ids=str,
)
def test_progress_that_fell(mine: tuple[int, int, int], theirs: tuple[int, int, int], fell: bool) -> None:
    """One of the three is enough. 0 is not known, and says nothing."""
    assert HistoryProgress(*mine).fell_below(HistoryProgress(*theirs)) is fell


def test_the_highest_of_each() -> None:
    """Each of the three by itself: two gateways know different things."""
    assert HistoryProgress(5, 3, 9).raised_to(HistoryProgress(7, 2, 0)) == (7, 3, 9)
