"""``app.core.refcounts`` against a Counter and a list."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.core.refcounts import Acquired, RefCounts

KEYS = ("a", "b", "c", "d")
keys = st.sampled_from(KEYS)


class CountsMachine(RuleBasedStateMachine):
    """``held`` counts the leases, ``lingering`` lists the lingering keys in order.

    ``feeds`` is the set that a shell would run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: RefCounts[str] = RefCounts()
        self.held: Counter[str] = Counter()
        self.lingering: list[str] = []
        self.feeds: set[str] = set()

    @rule(key=keys)
    def acquire(self, key: str) -> None:
        """Only the first lease of a key without a feed starts a feed; a lingering feed is revived."""
        found = self.counts.acquire(key)
        assert (found is Acquired.STARTED) == (key not in self.feeds)
        assert (found is Acquired.REVIVED) == (key in self.lingering)
        assert (found is Acquired.JOINED) == (self.held[key] > 0)
        self.held[key] += 1
        self.feeds.add(key)
        if key in self.lingering:
            self.lingering.remove(key)

    @precondition(lambda self: self.held.total())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """The release of a key's last lease lets the feed linger; an earlier release does not."""
        key = data.draw(st.sampled_from(sorted(self.held.elements())))
        self.held[key] -= 1
        assert self.counts.release(key) == (self.held[key] == 0)
        if not self.held[key]:
            self.lingering.append(key)

    @rule(key=keys)
    def release_what_nobody_holds(self, key: str) -> None:
        """A release too many is refused, and changes nothing (the invariants check that)."""
        if not self.held[key]:
            with pytest.raises(KeyError):
                self.counts.release(key)

    @rule(key=keys)
    def expire(self, key: str) -> None:
        """A timer ends a feed once, and only while the feed has no lease."""
        assert self.counts.expire(key) == (key in self.lingering)
        if key in self.lingering:
            self.lingering.remove(key)
            self.feeds.remove(key)

    @rule(key=keys)
    def drop(self, key: str) -> None:
        """A failed feed is removed with all its leases."""
        assert self.counts.drop(key) == self.held[key]
        self.feeds.discard(key)
        self.held[key] = 0
        if key in self.lingering:
            self.lingering.remove(key)

    @invariant()
    def counts_as_the_model(self) -> None:
        """Every query about every key has the model's answer."""
        for key in KEYS:
            assert self.counts._held.get(key, 0) == self.held[key]
            assert (key in self.counts) == (key in self.feeds)
        assert len(self.counts) == len(self.feeds)
        assert self.counts.oldest_lingering() == (self.lingering[0] if self.lingering else None)
        assert self.counts.lingering() == self.lingering
        assert [key for key in KEYS if self.counts.held(key)] == [key for key in KEYS if self.held[key]]


TestCounts = CountsMachine.TestCase
TestCounts.settings = settings(stateful_step_count=40)


def test_the_life_of_a_range() -> None:
    """Started, joined, left, lingering, revived, left again, expired: each step returns the right action."""
    counts: RefCounts[str] = RefCounts()
    assert counts.acquire("a") is Acquired.STARTED
    assert counts.acquire("a") is Acquired.JOINED
    assert counts.release("a") is False
    assert counts.release("a") is True
    assert counts.acquire("a") is Acquired.REVIVED
    assert counts.expire("a") is False
    assert counts.release("a") is True
    assert counts.expire("a") is True
    assert counts.acquire("a") is Acquired.STARTED


def test_who_was_revived_lingers_anew() -> None:
    """A revived range is the last to expire, not the first."""
    counts: RefCounts[str] = RefCounts()
    for key in ("a", "b"):
        counts.acquire(key)
        counts.release(key)
    assert counts.oldest_lingering() == "a"
    counts.acquire("a")
    counts.release("a")
    assert counts.oldest_lingering() == "b"
