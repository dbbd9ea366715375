"""Linearizable reads prove how current a watch is, checked against a history of commits."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.linearizable_reads import GRACE, KEPT, LinearizableReads

STALE_AFTER = 10.0

times = st.floats(0, 100, allow_nan=False)
# The times at which the revisions were committed; the reads, each with its start and its duration.
commits = st.lists(times, max_size=40).map(sorted)
reads = st.lists(st.tuples(times, st.floats(0, 5)), max_size=40).map(sorted)


def committed(history: Sequence[float], at: float) -> int:
    """The cluster's revision at a time."""
    return bisect_right(history, at)


@given(commits, reads, st.integers(0, 40), st.floats(0, 1))
def test_what_is_proven_is_true(
    history: list[float], asked: list[tuple[float, float]], reached: int, luck: float
) -> None:
    """No revision that was committed before the time of a proof is above the revision that was reached."""
    linearizable_reads = LinearizableReads(STALE_AFTER)
    for asked_at, took in asked:
        # A linearizable answer is of some moment between the question and the answer.
        linearizable_reads.note(asked_at, committed(history, asked_at + luck * took))
    proven = linearizable_reads.proven_at(reached)
    if proven is not None:
        assert bisect_left(history, proven) <= reached


@given(st.floats(1, 60), st.lists(st.floats(0, 0.9), min_size=5, max_size=30), st.integers(1, 1000))
def test_a_watch_that_keeps_up_is_never_stale(stale_after: float, latencies: list[float], writes: int) -> None:
    """Reads begin when they are due; a read that takes less than half their interval never makes a feed stale."""
    linearizable_reads = LinearizableReads(stale_after)
    now = since = revision = 0.0
    for latency in latencies:
        asked_at = now + linearizable_reads.due(now, since)
        revision += writes
        now = asked_at + latency * linearizable_reads.interval
        if (before := linearizable_reads.proven_at(int(revision))) is not None:
            # The worst moment: just before the next answer.
            assert now - before <= stale_after
        linearizable_reads.note(asked_at, int(revision))
        assert linearizable_reads.proven_at(int(revision)) == asked_at


def test_one_that_stands_still_is_proven_no_further() -> None:
    """A feed that stands still is proven up to the last read whose revision it had reached."""
    linearizable_reads = LinearizableReads(STALE_AFTER)
    for asked_at, revision in ((0.0, 5), (5.0, 5), (10.0, 6), (15.0, 7)):
        linearizable_reads.note(asked_at, revision)
    assert linearizable_reads.proven_at(5) == 5.0
    assert linearizable_reads.proven_at(6) == 10.0
    assert linearizable_reads.proven_at(100) == 15.0
    assert linearizable_reads.proven_at(4) is None


def test_without_reads_nothing_is_proven() -> None:
    """Without reads nothing is proven; nor after a restore, whose revisions start anew."""
    linearizable_reads = LinearizableReads(STALE_AFTER)
    assert linearizable_reads.proven_at(10) is None
    linearizable_reads.note(1.0, 5)
    linearizable_reads.forget()
    assert linearizable_reads.proven_at(10) is None
    assert linearizable_reads.overdue(1000.0) is None


@pytest.mark.parametrize(
    ("now", "since", "due"),
    [(100.0, 100.0, 5.0), (104.0, 100.0, 1.0), (110.0, 100.0, 0.0), (100.0, 20.0, 3.0), (120.0, 20.0, 0.0)],
)
def test_when_the_next_read_is_due(now: float, since: float, due: float) -> None:
    """The next read is due half of the stale time after the last read, or after the first subscriber needed reads."""
    linearizable_reads = LinearizableReads(STALE_AFTER)
    linearizable_reads.note(98.0, 1)
    assert linearizable_reads.due(now, since) == due


@given(st.lists(st.floats(0, 20), max_size=200))
def test_what_is_overdue_is_old_and_little_is_kept(pauses: list[float]) -> None:
    """When reads are overdue, the latest proof is older than any timeout.

    However many reads there are, few are remembered.
    """
    linearizable_reads = LinearizableReads(STALE_AFTER)
    horizon = STALE_AFTER + GRACE
    now, asked = 0.0, []
    for revision, pause in enumerate(pauses):
        now += pause
        linearizable_reads.note(now, revision)
        asked.append(now)
        overdue = linearizable_reads.overdue(now)
        old = [at for at in asked if at <= now - horizon]
        assert (overdue is not None) == bool(old)
        if overdue is not None:
            assert old[-1] - horizon / KEPT <= overdue.asked_at <= old[-1]
        assert len(linearizable_reads.kept) <= KEPT + 2


def test_an_answer_that_comes_late_proves_no_less() -> None:
    """A read that started before another, and was answered after it, does not take the other's proof back."""
    linearizable_reads = LinearizableReads(STALE_AFTER)
    linearizable_reads.note(5.0, 7)
    linearizable_reads.note(1.0, 6)
    assert linearizable_reads.proven_at(7) == 5.0


def test_a_read_is_overdue_when_its_streams_have_said_stale() -> None:
    """A feed checks once a second, so it has become stale before the gateway leaves the feed's member."""
    linearizable_reads = LinearizableReads(STALE_AFTER)
    assert linearizable_reads.interval + linearizable_reads.answer_timeout >= STALE_AFTER + 1
