"""``app.core.known_history``: a restore is proven by what was known before, and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from app.core.known_history import PATIENCE, KnownHistory, UnclearHistoryError
from app.core.witnessed_history import HistoryProgress, WitnessedHistory

CLUSTER = 7
# Seconds. In a random walk of fifty steps every unclear report stays unclear.
STEP = 1 / 16
OFFSETS = (0.0, 0.5 * STEP, 4.5 * STEP)


def report(first: tuple[int, int, int], at: float, highest: tuple[int, int, int] | None = None) -> WitnessedHistory:
    """A report of a gateway that has seen *first* at the time *at*."""
    return WitnessedHistory(CLUSTER, HistoryProgress(*first), at, HistoryProgress(*(highest or first)))


def known() -> KnownHistory:
    """A gateway that has known at 10 s that etcd was at revision 80, in raft term 4, at index 300."""
    made = KnownHistory()
    assert made.take(report((13, 2, 10), 1.0, (80, 4, 300)), 10.0) is None
    return made


def test_an_upstream_that_was_started_after_a_restore() -> None:
    """Its first read found less than was known before. The rest of its reports prove nothing more."""
    history = known()
    assert history.take(report((60, 2, 12), 11.0, (95, 5, 40)), 20.0) == 80
    assert history.highest == (95, 5, 40)
    assert history.take(report((60, 2, 12), 11.0, (96, 5, 41)), 21.0) is None
    witnessed = history.witnessed()
    assert witnessed is not None
    assert (witnessed.first, witnessed.first_at, witnessed.highest) == ((60, 2, 12), 11.0, (96, 5, 41))


def test_a_restore_whose_revision_has_passed() -> None:
    """The raft index began anew."""
    assert known().take(report((95, 4, 12), 11.0), 20.0) == 80


def test_an_upstream_that_lags() -> None:
    """Its first read began before the revision was known elsewhere: the two may be of one history."""
    history = known()
    assert history.take(report((60, 4, 250), 9.0), 20.0) is None
    assert history.highest == (80, 4, 300)


def test_a_report_that_may_be_older() -> None:
    """Nothing of it is taken: a new history that has passed ours would hide the restore. The next one proves it."""
    history = known()
    with pytest.raises(UnclearHistoryError):
        history.take(report((60, 4, 12), 9.5, (95, 4, 40)), 11.5, late=1.5)
    assert (history.highest, history.witnessed()) == ((80, 4, 300), report((13, 2, 10), 1.0, (80, 4, 300)))
    assert history.take(report((60, 4, 12), 10.5, (95, 4, 40)), 12.0, late=0.25) == 80


def test_a_report_that_is_surely_older() -> None:
    """Its upstream lags, and may be followed."""
    history = known()
    assert history.take(report((60, 4, 250), 9.0, (70, 4, 280)), 11.5, late=0.5) is None


def test_a_connection_that_was_judged_before() -> None:
    """What it has found first is below what it has told since. A late answer of it is no reason for doubt."""
    history = known()
    assert history.take(report((13, 2, 10), 1.0, (81, 4, 301)), 11.0, late=10.0) is None


def test_a_report_that_stays_unclear() -> None:
    """After some time its upstream counts as one that lags. A report that comes sooner can still prove a restore."""
    history = known()
    unclear = report((60, 4, 12), 9.5, (95, 4, 40))
    with pytest.raises(UnclearHistoryError):
        history.take(unclear, 10.0 + PATIENCE - 0.5, late=1.0)
    assert history.take(unclear, 10.0 + PATIENCE, late=1.0) is None
    assert history.highest == (95, 4, 300)
    assert history.take(report((60, 4, 12), 10.25, (96, 4, 41)), 30.0, late=0.25) == 95


def test_each_value_is_known_since_its_own_time() -> None:
    """The revision rises all the time. What is known of the term and the index is older, and proves a restore."""
    history = known()
    assert history.take(report((13, 2, 10), 1.0, (95, 4, 300)), 15.0) is None
    assert history.take(report((60, 4, 12), 11.0), 20.0) == 95


def test_an_upstream_that_has_not_noticed() -> None:
    """What it says of the ended history does not come back into what is known."""
    history = known()
    assert history.take(report((60, 2, 12), 11.0), 20.0) == 80
    assert history.take(report((13, 2, 10), 1.0, (85, 4, 310)), 21.0) is None
    assert history.highest == (60, 2, 12)
    assert history.take(report((61, 2, 13), 22.0), 23.0) is None


def test_another_cluster() -> None:
    """Its numbers have nothing to do with those of the first one. The upstream says what it follows."""
    history = known()
    other = WitnessedHistory(8, HistoryProgress(1, 1, 1), 11.0, HistoryProgress(2, 1, 2))
    assert history.take(other, 12.0) is None
    assert history.highest == (2, 1, 2)


def test_nothing_is_known_at_first() -> None:
    """A gateway that knows nothing reports nothing."""
    assert KnownHistory().witnessed() is None


@dataclass
class Root:
    """A gateway at etcd: what its connection has found first, and the most that it has seen since."""

    first: HistoryProgress
    first_at: float
    highest: HistoryProgress
    history: int


class Gateways(RuleBasedStateMachine):
    """Gateways that lag behind etcd as they like, one that follows all of them, and answers that take their time."""

    roots = Bundle("roots")
    answers = Bundle("answers")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.history = 0
        self.etcd = HistoryProgress(1, 1, 1)
        self.below = KnownHistory()
        self.believed = 0  # the history that the gateway below takes for the present one
        self.seen = HistoryProgress(0, 0, 0)  # the most that any report in time has told of that history
        self.seen_at = [0.0, 0.0, 0.0]
        self.overtaken = False  # a report of a later history was in time, and had nothing that fell

    @rule(revision=st.integers(0, 3), term=st.integers(0, 1), index=st.integers(0, 3))
    def write(self, revision: int, term: int, index: int) -> None:
        """etcd goes on."""
        self.etcd = HistoryProgress(*(a + b for a, b in zip(self.etcd, (revision, term, index), strict=True)))
        self.now += STEP

    @rule(target=roots)
    def connect(self) -> Root:
        """A gateway connects to etcd, and reads."""
        self.now += STEP
        return Root(self.etcd, self.now, self.etcd, self.history)

    @rule(root=roots)
    def look(self, root: Root) -> None:
        """A gateway sees how far etcd is; after a restore it has no connection any more."""
        if root.history == self.history:
            root.highest = self.etcd

    @rule(target=answers, root=roots)
    def answer(self, root: Root) -> tuple[WitnessedHistory, int]:
        """A gateway reports; the report is on its way."""
        return WitnessedHistory(CLUSTER, root.first, root.first_at, root.highest), root.history

    @precondition(lambda self: self.history < 2)
    @rule(revision=st.integers(1, 5), index=st.integers(1, 5))
    def restore(self, revision: int, index: int) -> None:
        """etcd has another history."""
        self.now += STEP
        self.history += 1
        self.etcd = HistoryProgress(revision, 1, index)

    @rule(answer=answers, early=st.sampled_from(OFFSETS), late=st.sampled_from(OFFSETS))
    def receive(self, answer: tuple[WitnessedHistory, int], early: float, late: float) -> None:
        """A report arrives, as often as the network likes. Its read began *early* after the first moment at which it
        may have begun, and *late* before the last one.
        """
        told, history = answer
        self.now += STEP
        fell_at = [at for mine, most, at in zip(told.first, self.seen, self.seen_at, strict=True) if mine < most]
        proves = any(told.first_at > at for at in fell_at)
        try:
            ended = self.below.take(replace(told, first_at=told.first_at - early), self.now, late=early + late)
        except UnclearHistoryError:
            unclear = any(-late <= told.first_at - at <= early for at in fell_at)
            assert self.overtaken or unclear, "a clear report was not taken"
            return
        if ended is not None:
            assert history > self.believed, "a restore that was none"
            self.believed, self.seen, self.seen_at, self.overtaken = history, told.highest, [self.now] * 3, False
        elif history == self.believed:
            for place, (known, value) in enumerate(zip(self.seen, told.highest, strict=True)):
                if value > known:
                    self.seen_at[place] = self.now
            self.seen = self.seen.raised_to(told.highest)
        elif history > self.believed:
            assert self.overtaken or not proves, "a proof was missed"
            self.overtaken = True

    @invariant()
    def reports_what_is_known(self) -> None:
        """What is reported to gateways below is not less than the last report."""
        witnessed = self.below.witnessed()
        assert witnessed is None or witnessed.highest == self.below.highest


TestGateways = Gateways.TestCase
