"""``app.core.budget`` against a list of all holds: never above the limit, and everything released exactly once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.core.budget import ANSWERS_SHARE, MOST_PAGES, PAGES_SHARE, Budget, Hold, Use

LIMIT = 1000
ASKED = (Use.PAGE, Use.ANSWER)
sizes = st.integers(0, 400) | st.integers(0, 2 * LIMIT)


class BudgetMachine(RuleBasedStateMachine):
    """Owners that ask, grow, cancel, release and are revoked in any order; a cache that gives way."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(LIMIT)
        self.budget.make_room = self.make_room
        self.cache = self.budget.hold(Use.FEED)
        self.owned: list[Hold] = []
        self.gone: list[Hold] = []
        self.told: Counter[Hold] = Counter()
        self.revoked: Counter[Hold] = Counter()

    def make_room(self, size: int) -> None:
        """Shrink the cache by the bytes that are missing."""
        lacks = max(0, self.budget.lacks(size))
        self.cache.set(max(0, self.cache.size - lacks))

    def pick(self, data: st.DataObject, holds: list[Hold]) -> Hold:
        """One of the holds."""
        return holds[data.draw(st.integers(0, len(holds) - 1))]

    @rule(use=st.sampled_from(ASKED), size=sizes)
    def ask(self, use: Use, size: int) -> None:
        """An owner that asks is notified exactly once when its hold is granted, now or later."""
        told: list[Hold] = []

        def on_granted() -> None:
            for hold in told:
                self.told[hold] += 1

        hold = self.budget.ask(use, size, on_granted)
        told.append(hold)
        self.told[hold] += hold.granted  # a grant at once comes before ``told`` has the hold
        hold.on_revoked = lambda: self.revoked.update([hold])
        self.owned.append(hold)

    @rule()
    def begin(self) -> None:
        """Take a hold for a feed, or for a state to be read."""
        self.owned.append(self.budget.hold(Use.FEED))

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), size=sizes)
    def grow(self, data: st.DataObject, size: int) -> None:
        """A hold grows by the whole size, or not at all."""
        hold = self.pick(data, self.owned)
        before = hold.size
        grew = hold.grow(size)
        assert hold.size == before + (size if grew else 0)
        assert not grew or hold.granted

    @precondition(lambda self: any(hold.granted for hold in self.owned))
    @rule(data=st.data(), share=st.floats(0, 1))
    def shrink(self, data: st.DataObject, share: float) -> None:
        """The owner needs less than it asked for."""
        hold = self.pick(data, [hold for hold in self.owned if hold.granted])
        hold.set(int(hold.size * share))

    @precondition(lambda self: self.budget.lacks() <= 0)
    @rule()
    def fill_the_cache(self) -> None:
        """The cache takes all memory that is free."""
        self.cache.set(self.cache.size - self.budget.lacks())

    @rule(size=sizes)
    def hear(self, size: int) -> None:
        """An event arrives: the cache gives way, then the answers; if that is not enough, the event's feed ends."""
        feed = self.budget.hold(Use.FEED)
        feed.set(size)

        def make_room(more: int) -> None:
            self.make_room(more)
            for hold in self.budget.holds(Use.ANSWER):
                if self.budget.lacks(more) > 0 and not hold.outside:
                    hold.revoke()
                    self.owned.remove(hold)
                    self.gone.append(hold)

        if self.budget.settle(make_room):
            self.owned.append(feed)
        else:
            assert size > LIMIT - sum(hold.size for hold in self.owned if hold.use is Use.FEED)
            feed.release()
            self.gone.append(feed)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Release a hold, even one that still waits: a cancelled request."""
        hold = self.pick(data, self.owned)
        self.owned.remove(hold)
        hold.release()
        self.gone.append(hold)

    @precondition(lambda self: self.gone)
    @rule(data=st.data(), size=sizes)
    def use_what_is_gone(self, data: st.DataObject, size: int) -> None:
        """Using a released hold has no effect, however often (the invariants check that)."""
        hold = self.pick(data, self.gone)
        hold.release()
        hold.set(size)
        assert not hold.grow(size)

    @invariant()
    def never_above_the_limit(self) -> None:
        """Feeds and answers stay within the limit, and pages within their half.

        One page and one answer may be outside.
        """
        holds = [self.cache, *(hold for hold in self.owned if hold.granted)]
        inside = [hold for hold in holds if not hold.outside]
        assert self.budget.held == sum(hold.size for hold in inside if hold.use is not Use.PAGE) <= LIMIT
        assert self.budget.paged == sum(hold.size for hold in inside if hold.use is Use.PAGE) <= LIMIT // MOST_PAGES
        outside = [hold for hold in holds if hold.outside]
        assert self.budget.outside == sum(hold.size for hold in outside)
        assert max(Counter(hold.use for hold in outside).values(), default=0) <= 1
        assert Use.FEED not in {hold.use for hold in outside}
        for use in Use:
            assert self.budget.of(use) == sum(hold.size for hold in holds if hold.use is use)
            assert set(self.budget.holds(use)) == {hold for hold in holds if hold.use is use}

    @invariant()
    def given_back_once(self) -> None:
        """A released hold has no bytes, and was notified of at most one grant and one revocation."""
        assert all(hold.size == 0 and hold.released for hold in self.gone)
        assert all(count == 1 for count in self.revoked.values())
        for hold in self.owned:
            if hold.use in ASKED:
                assert self.told[hold] == hold.granted
        assert max(self.told.values(), default=0) <= 1

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        """The first waiting hold of each use does not fit, even with the cache's share.

        The place outside is taken.
        """
        budget = self.budget
        for use in ASKED:
            waiting = [hold for hold in self.owned if hold.use is use and not hold.granted]
            assert budget.waiting(use) == len(waiting)
            if not waiting:
                continue
            first = waiting[0]  # in the order of the requests
            if use is Use.PAGE:
                assert any(hold.outside for hold in budget.holds(use))
                pages = budget.paged + first.asked
                evicts = self.cache.size if pages <= LIMIT // PAGES_SHARE else 0
                assert budget.lacks(pages) > evicts or pages > LIMIT // MOST_PAGES
            else:
                assert budget.holds(use)
                within = budget.of(use) + first.asked <= LIMIT // ANSWERS_SHARE
                assert not within or budget.lacks(first.asked) > self.cache.size

    def teardown(self) -> None:
        """When everything is released, nothing is held, and no hold waits."""
        while self.owned:
            self.owned.pop().release()
        self.cache.release()
        assert (self.budget.held, self.budget.paged, self.budget.outside) == (0, 0, 0)
        assert all(self.budget.waiting(use) == 0 and not self.budget.holds(use) for use in Use)


BudgetMachine.TestCase.settings = settings(stateful_step_count=40)
TestBudget = BudgetMachine.TestCase


def test_a_page_is_always_read() -> None:
    """However full the feeds are, pages are read one at a time, in the order of the requests.

    A release grants the next.
    """
    budget = Budget(100)
    budget.hold(Use.FEED).set(100)
    turns: list[str] = []
    first = budget.ask(Use.PAGE, 500)
    second = budget.ask(Use.PAGE, 500, lambda: turns.append("second"))
    third = budget.ask(Use.PAGE, 1, lambda: turns.append("third"))
    assert (first.granted, second.granted, third.granted) == (True, False, False)
    first.release()
    assert turns == ["second"]
    second.release()
    assert turns == ["second", "third"]
    assert third.outside


def test_answers_leave_the_feeds_alone() -> None:
    """Answers get a quarter; beyond that quarter they wait, even if there is room."""
    budget = Budget(100)
    first = budget.ask(Use.ANSWER, 20)
    second = budget.ask(Use.ANSWER, 20)
    assert first.granted
    assert not second.granted
    assert not first.grow(6)
    assert first.grow(5)
    assert budget.held == 25
    first.release()
    assert second.granted


def test_what_is_given_back_while_room_is_made_goes_to_whom_it_is_made_for() -> None:
    """Other waiting holds do not take it: a feed would give up everything that it has, and get nothing."""
    budget = Budget(100)
    cache, feed = budget.hold(Use.FEED), budget.hold(Use.FEED)
    cache.set(100)
    budget.ask(Use.PAGE, 300)  # granted outside
    waits = budget.ask(Use.PAGE, 10)
    assert not waits.granted
    assert feed.grow(30, lambda size: cache.set(cache.size - budget.lacks(size)))
    assert (feed.size, cache.size, waits.granted) == (30, 70, False)


@pytest.mark.parametrize("use", ASKED)
def test_what_comes_inside_makes_place_outside(use: Use) -> None:
    """A hold that was granted outside grows only when the whole hold fits."""
    budget = Budget(100)
    feed = budget.hold(Use.FEED)
    feed.set(100)
    hold = budget.ask(use, 10)
    assert hold.outside
    assert not hold.grow(1)
    feed.set(50)
    assert hold.grow(1)
    assert not hold.outside
    assert (budget.held + budget.paged, budget.outside) == (61, 0)


def test_no_feed_ends_for_the_sake_of_a_page() -> None:
    """A page is released within a moment, so no feed ends for it.

    No other page is granted until everything fits again.
    """
    budget = Budget(100)
    feed = budget.hold(Use.FEED)
    page = budget.ask(Use.PAGE, 50)
    assert not page.outside
    feed.set(90)
    assert budget.settle()
    assert feed.grow(10)
    assert not feed.grow(1)
    second, third = budget.ask(Use.PAGE, 1), budget.ask(Use.PAGE, 1)
    assert (second.outside, third.granted) == (True, False)


def test_bytes_that_another_hold_takes_over_are_granted_to_nobody() -> None:
    """The budget does not even look who waits: that comes with the next release."""
    budget = Budget(100)
    read, feed = budget.hold(Use.FEED), budget.hold(Use.FEED)
    feed.set(40)
    read.set(60)
    budget.make_room = lambda _size: feed.set(40)
    budget.ask(Use.PAGE, 10)  # granted outside
    waits = budget.ask(Use.PAGE, 10)
    feed.take_over(read)
    assert (feed.size, read.size, budget.held, waits.granted) == (100, 0, 100, False)
    feed.set(60)
    read.release()
    assert (budget.held, budget.of(Use.FEED), waits.granted) == (60, 60, True)


def test_a_hold_whose_owner_asked_for_no_notice_is_revoked_too() -> None:
    """An owner that sets no ``on_revoked`` loses its hold without a notice, and releases it again without harm."""
    budget = Budget(LIMIT)
    hold = budget.ask(Use.ANSWER, 10, lambda: None)

    assert hold.revoke() == 10
    hold.release()
    assert (hold.released, budget.lacks(LIMIT)) == (True, 0)
