"""How often ``app.core.progress_pace`` requests progress, whatever is wished for and answered."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.progress_pace import MANY_UNANSWERED, RELAXED, RETRY, SHORTEST, URGENT, ProgressPace

INTERVAL = 2.5
# Times are compared with a tolerance: sums of floats differ in their last digits.
EXACT = 1e-9


class Paced:
    """A pace, and the wishes and answers that it is given. Requests are made exactly when they are due."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pace = ProgressPace(INTERVAL, self.now)
        self.awaited = self.hastened = False
        self.unanswered = 0
        self.asked: list[float] = []
        self.asked_for_all: list[float] = []

    def due_in(self) -> float:
        """The seconds until the next request."""
        return self.pace.due_in(self.now, awaited=self.awaited, hastened=self.hastened, unanswered=self.unanswered)

    def run(self, seconds: float, *, answer_after: float | None) -> None:
        """Let time pass. Each request is answered after *answer_after*, or never."""
        end, answer_at = self.now + seconds, None
        while True:
            at = self.now + self.due_in()
            if answer_at is not None and answer_at <= min(at, end):
                self.now, answer_at = answer_at, None
                self.pace.answered()
            elif at <= end:
                self.now = at
                self.asked.append(at)
                if self.pace.ask(at):
                    self.asked_for_all.append(at)
                answer_at = None if answer_after is None else at + answer_after
            else:
                self.now = end
                return

    def gaps(self) -> list[float]:
        """The seconds between requests."""
        return [after - before for before, after in itertools.pairwise(self.asked)]


def test_a_quiet_stream_asks_once_per_interval_for_all() -> None:
    """The first request comes one interval after the stream has opened."""
    paced = Paced()
    paced.run(10.1, answer_after=0.001)
    assert paced.asked == paced.asked_for_all == pytest.approx([102.5, 105.0, 107.5, 110.0])


@pytest.mark.parametrize("answer_after", [0.0004, 0.02])
def test_a_hastened_stream_asks_as_fast_as_the_answers_come(answer_after: float) -> None:
    """At once, then after each answer, but at most 200 times a second; one request per interval is for all."""
    paced = Paced()
    paced.hastened = True
    paced.run(5.1, answer_after=answer_after)
    assert paced.asked[0] == 100.0
    assert paced.gaps() == pytest.approx([max(SHORTEST, answer_after)] * len(paced.gaps()))
    assert len(paced.asked_for_all) == 2


def test_a_request_without_an_answer_is_made_again() -> None:
    """A lost answer delays a merge by a quarter of a second; nothing makes the requests more frequent."""
    paced = Paced()
    paced.hastened = True
    paced.run(2.1, answer_after=None)
    assert paced.gaps() == pytest.approx([RETRY] * 8)
    paced.pace.answered()
    assert paced.due_in() == 0.0


@pytest.mark.parametrize(
    ("unanswered", "gap"), [(0, URGENT), (MANY_UNANSWERED - 1, URGENT), (MANY_UNANSWERED, RELAXED)]
)
def test_a_watch_that_awaits_proof_is_asked_for_often(unanswered: int, gap: float) -> None:
    """etcd catches watches up every 100 ms, so the requests do not wait for answers. A slow member gets fewer."""
    paced = Paced()
    paced.awaited, paced.unanswered = True, unanswered
    paced.run(2.1, answer_after=None)
    assert paced.asked[0] == 100.0
    assert paced.gaps() == pytest.approx([gap] * len(paced.gaps()))


def test_an_urged_request_is_for_all_and_waits_for_the_answer_that_is_under_way() -> None:
    """Otherwise the older answer would be taken for the answer to this request."""
    paced = Paced()
    paced.pace.make_due()
    assert paced.due_in() == 0.0
    assert paced.pace.ask(paced.now)
    paced.pace.make_due()
    assert paced.due_in() == pytest.approx(RETRY)
    paced.pace.answered()
    assert paced.due_in() == pytest.approx(SHORTEST)
    paced.now += SHORTEST
    assert paced.pace.ask(paced.now)
    assert paced.due_in() == pytest.approx(INTERVAL)


@given(
    st.lists(
        st.tuples(
            st.booleans(),  # a watch awaits proof
            st.booleans(),  # a watch is hastened
            st.booleans(),  # a request for all is urged
            st.integers(0, 9),  # unanswered requests
            st.floats(0.0, 3.0),  # how long this lasts
            st.none() | st.floats(0.0, 0.5),  # how long an answer takes
        ),
        max_size=12,
    )
)
def test_the_pace_has_bounds(steps: list[tuple[bool, bool, bool, int, float, float | None]]) -> None:
    """At most 200 requests a second, whatever happens. A request for all is never late by more than one lost answer.

    Without wishes, only requests for all are made.
    """
    paced = Paced()
    for awaited, hastened, urged, unanswered, seconds, answer_after in steps:
        paced.awaited, paced.hastened, paced.unanswered = awaited, hastened, unanswered
        if urged:
            paced.pace.make_due()
        before, before_for_all = len(paced.asked), len(paced.asked_for_all)
        paced.run(seconds, answer_after=answer_after)
        if not (awaited or hastened):
            assert len(paced.asked) - before == len(paced.asked_for_all) - before_for_all
        if hastened and seconds > RETRY + EXACT:
            assert len(paced.asked) > before
        if urged and seconds > RETRY + EXACT:
            assert len(paced.asked_for_all) > before_for_all
    assert all(gap >= SHORTEST - EXACT for gap in paced.gaps())
    times = [100.0, *paced.asked_for_all, paced.now]
    assert all(after - before <= INTERVAL + RETRY + EXACT for before, after in itertools.pairwise(times))
