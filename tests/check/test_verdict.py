"""``app.check.verdict`` against a simulated world: the test knows what leaks in it and what others do meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.check import verdict
from app.check.verdict import (
    GRACE,
    Checked,
    EtcdCounts,
    GatewayCounts,
    Outcome,
    Round,
    Sample,
    Verdict,
    conclude,
    returned,
)

LINGER = 30.0
NOTHING = EtcdCounts(0, 0)
# Leaks that the gateway's own counts show, and leaks that only etcd's counts show.
KNOWN = ("watches", "streams", "leases", "lingers", "unshared")
UNKNOWN = ("unseen watches", "unseen streams", "unseen unshared")


@dataclass(frozen=True)
class Noise:
    """What others do before a look."""

    foreign: EtcdCounts = NOTHING  # changes at etcd
    feeds: int = 0  # new feeds on other ranges of the gateway, each with a subscriber
    waiting: int = 0  # how many of the feeds have no watch at the moment
    starting: int = 0  # additional subscribers without a connection yet
    on_range: int = 0
    reconnects: int = 0
    restarts: int = 0
    history: int = 0  # feeds whose history is read for an old cursor, on a second watch


QUIET = Noise()


@dataclass
class World:
    """A gateway and an etcd. *leak* names what each round leaves."""

    leak: str = ""
    foreign: EtcdCounts = NOTHING
    feeds: int = 0
    waiting: int = 0
    starting: int = 0
    on_range: int = 0
    reconnects: int = 0
    restarts: int = 0
    history: int = 0
    opened: int = 0
    lost: EtcdCounts = NOTHING
    unseen: EtcdCounts = NOTHING
    kept: int = 0  # our subscribers that were not released
    lingers: bool = False
    seen: list[Sample] = field(default_factory=list)

    def hear(self, noise: Noise) -> None:
        """Apply what others do."""
        self.foreign = self.foreign + noise.foreign
        self.feeds += noise.feeds
        self.waiting, self.starting = min(noise.waiting, self.feeds), noise.starting
        self.history = min(noise.history, self.feeds)
        self.on_range += noise.on_range
        self.reconnects += noise.reconnects
        self.restarts += noise.restarts

    def look(self, ours: int, noise: Noise = QUIET, quiet: float = 0.0) -> Sample:
        """What the check sees with so many of our streams open."""
        self.hear(noise)
        subscribers = ours + self.kept
        on_range = int(bool(subscribers or self.lingers or self.on_range))
        feeds = self.feeds + on_range
        unshared = ours - 1 if self.leak == "unshared" and ours else 0
        held = EtcdCounts(feeds - self.waiting + unshared, int(feeds > 0)) + self.lost
        beyond = EtcdCounts(ours - 1, 0) if self.leak == "unseen unshared" and ours else NOTHING
        served = self.feeds + ours + self.on_range
        gateway = GatewayCounts(
            process=f"gw since {self.restarts}",
            reconnects=self.reconnects,
            opened=self.opened,
            feeds=feeds,
            live=feeds - self.waiting,
            held=held + EtcdCounts(self.history, 0),
            history=self.history,
            subscribers=served + self.kept + self.starting,
            served=served,
        )
        checked = Checked(on_range, subscribers, self.on_range, quiet, LINGER)
        sample = Sample(gateway, checked, self.foreign + gateway.held + self.unseen + beyond)
        self.seen.append(sample)
        return sample

    def round(self, streams: int, *noises: Noise, direct: bool = True) -> Round:
        """Streams come and go; the first noise is before ``open``, the others are before each later look."""
        self.opened += streams
        during = self.look(streams, noises[0])
        match self.leak:
            case "watches":
                self.lost += EtcdCounts(1, 0)
            case "streams":
                self.lost += EtcdCounts(0, 1)
            case "unseen watches":
                self.unseen += EtcdCounts(1, 0)
            case "unseen streams":
                self.unseen += EtcdCounts(0, 1)
            case "leases":
                self.kept = streams
            case "lingers":
                self.lingers = True
        quiet = LINGER + GRACE + 1
        return Round(streams, during, tuple(self.look(0, noise, quiet) for noise in noises[1:]), direct)


small = st.integers(-2, 2)
noises = st.builds(
    Noise,
    foreign=st.builds(EtcdCounts, small, small),
    feeds=st.integers(0, 2),
    history=st.integers(0, 2),
    waiting=st.integers(0, 2),
    starting=st.integers(0, 2),
    on_range=st.sampled_from([0, 0, 0, 1]),
    reconnects=st.sampled_from([0, 0, 0, 1]),
    restarts=st.sampled_from([0, 0, 0, 1]),
)
# The noises of one round: before its streams, and before two later looks.
scripts = st.lists(st.tuples(noises, noises, noises), min_size=1, max_size=4)
worlds = st.builds(World, foreign=st.builds(EtcdCounts, st.integers(0, 9), st.integers(0, 9)), feeds=st.integers(0, 3))
streams = st.integers(1, 100)


def play(world: World, number: int, script: list[tuple[Noise, Noise, Noise]]) -> tuple[Sample, list[Round]]:
    """Play all rounds of a script."""
    return world.look(0), [world.round(number, *each) for each in script]


def still(rounds: int) -> list[tuple[Noise, Noise, Noise]]:
    """A script in which others do nothing."""
    return [(QUIET, QUIET, QUIET)] * rounds


def said(verdict: Verdict) -> str:
    return "; ".join(verdict.reasons)


# --- without others ---------------------------------------------------------------------------------------------------


@given(world=worlds, number=streams, rounds=st.integers(1, 4))
def test_without_a_leak_and_without_others_all_is_back(world: World, number: int, rounds: int) -> None:
    """Without a leak and without others, all counts are back, whatever etcd and the gateway held before."""
    before, done = play(world, number, still(rounds))
    verdict = conclude(before, done)

    assert verdict.outcome is Outcome.BACK
    assert str(world.foreign + done[-1].after.gateway.held) in said(verdict)
    assert returned(before, done[-1].after)


@given(world=worlds, number=st.integers(2, 100), rounds=st.integers(2, 4), leak=st.sampled_from(KNOWN))
def test_a_leak_that_the_gateway_counts(world: World, number: int, rounds: int, leak: str) -> None:
    """The gateway's counts alone prove the leak; a lost stream is proven only if no other feed may have needed it."""
    world.leak = leak
    assume(leak != "streams" or not world.feeds)
    before, done = play(world, number, still(rounds))
    words = {
        "watches": "watcher",
        "streams": "watch stream",
        "leases": "whose connection is closed",
        "lingers": "for no subscriber",
        "unshared": "not shared",
    }
    verdict = conclude(before, done)

    assert verdict.outcome is Outcome.LEAK
    assert words[leak] in said(verdict)


@given(world=worlds, number=st.integers(2, 100), rounds=st.integers(1, 4), leak=st.sampled_from(UNKNOWN), late=noises)
def test_a_leak_that_only_etcd_counts(world: World, number: int, rounds: int, leak: str, late: Noise) -> None:
    """A leak is suspected until etcd's counts have stood still without streams; after one round it stays suspected."""
    world.leak = leak
    before, done = play(world, number, still(rounds))
    quiet = [world.look(0), world.look(0)]
    verdict = conclude(before, done, quiet)

    assert conclude(before, done).outcome is Outcome.UNKNOWN
    assert conclude(before, done).suspicious
    assert verdict.outcome is (Outcome.LEAK if rounds > 1 else Outcome.UNKNOWN)
    assert "1 watch" in said(verdict) or "not shared" in said(verdict) or rounds == 1
    assume(late.foreign != NOTHING)
    moved = conclude(before, done, [*quiet, world.look(0, Noise(foreign=late.foreign))])
    assert moved.outcome is Outcome.UNKNOWN
    assert not moved.suspicious


# --- others -----------------------------------------------------------------------------------------------------------


@given(world=worlds, number=streams, script=scripts, control=st.none() | st.lists(noises, min_size=1))
def test_what_others_do_is_never_a_leak(
    world: World, number: int, script: list[tuple[Noise, Noise, Noise]], control: list[Noise] | None
) -> None:
    """What others do is never called a leak, unless it looks exactly like a leak in each round and only then."""
    before, done = play(world, number, script)
    looks = [world.look(0, noise) for noise in control or ()]
    assume(not looks or any(look.foreign != done[-1].after.foreign for look in looks))

    assert conclude(before, done, looks).outcome is not Outcome.LEAK


@given(world=worlds, number=st.integers(2, 100), script=scripts, leak=st.sampled_from(KNOWN + UNKNOWN))
def test_nothing_that_others_do_hides_a_leak(
    world: World, number: int, script: list[tuple[Noise, Noise, Noise]], leak: str
) -> None:
    """A leak is never called back, unless others release, at every look, exactly what was left at etcd."""
    world.leak = leak
    before, done = play(world, number, script)
    if leak in UNKNOWN:
        assume(any(sample.foreign != before.foreign for each in done for sample in (each.open, each.after)))
    if leak == "streams":
        # Otherwise the lost stream may stand for a stream that the gateway has closed for others.
        assume(any(each.after.gateway.held.streams != before.gateway.held.streams for each in done))

    assert conclude(before, done).outcome is not Outcome.BACK


@given(world=worlds, script=scripts)
def test_a_restart_is_never_judged(world: World, script: list[tuple[Noise, Noise, Noise]]) -> None:
    """A restart, or several gateways behind one address, gives no verdict."""
    before, done = play(world, 4, script)
    assume(world.restarts)
    verdict = conclude(before, done)

    assert verdict.outcome is Outcome.UNKNOWN
    assert "restarted" in said(verdict)


# --- single cases -----------------------------------------------------------------------------------------------------


def plain(**changed: Any) -> tuple[Sample, Round]:
    """A round without a leak; *changed* replaces counts of the range while it is open."""
    world = World()
    before, (done,) = play(world, 4, still(1))
    return before, replace(done, open=replace(done.open, checked=replace(done.open.checked, **changed)))


def pinned(sample: Sample, **gateway: Any) -> Sample:
    """The sample as if the range lay in a pin: one more feed with its watcher and stream, all the time."""
    counts = sample.gateway
    counts = replace(counts, feeds=counts.feeds + 1, live=counts.live + 1, held=counts.held + EtcdCounts(1, 0))
    return replace(
        sample,
        checked=replace(sample.checked, pinned=True),
        gateway=replace(counts, **gateway),
        etcd=sample.etcd + EtcdCounts(1, 0),
    )


def test_a_pinned_range_costs_no_watcher() -> None:
    """The verdict says so; a channel that stays is a leak all the same."""
    before, done = play(World(), 4, still(1))
    verdict = conclude(
        pinned(before), [replace(done[0], open=pinned(done[0].open), looks=tuple(map(pinned, done[0].looks)))]
    )
    assert verdict.outcome is Outcome.BACK
    assert "cost etcd no watcher: the range is pinned" in said(verdict)

    before, done = play(World(leak="lingers"), 4, still(1))
    verdict = conclude(
        pinned(before), [replace(done[0], open=pinned(done[0].open), looks=tuple(map(pinned, done[0].looks)))]
    )
    assert verdict.outcome is Outcome.LEAK
    assert "the range still has a channel, for no subscriber" in said(verdict)


def test_a_pin_that_is_unavailable_is_named() -> None:
    """Its feed never has a watch, so the counts never add up."""
    before = pinned(World().look(0), live=0, unavailable=1)

    assert "1 pin cannot be held, see /readyz" in said(conclude(before, []))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"others": 1}, "another client follows the range (1 subscriber)"),
        ({"ours": 2}, "of 4 open streams the gateway whose counts were read has 2"),
        ({"feeds": 0, "ours": 0}, "has 0, in 0 feeds"),
        ({"feeds": 2}, "has 4, in 2 feeds"),
    ],
)
def test_not_one_feed_for_ours_alone(changed: dict[str, int], reason: str) -> None:
    """While our streams are open, the range must have one feed, and no subscribers but ours."""
    before, done = plain(**changed)
    verdict = conclude(before, [done])

    assert verdict.outcome is Outcome.UNKNOWN
    assert reason in said(verdict)


def test_connections_that_something_between_may_keep() -> None:
    """A connection that a proxy still keeps is not a leak of the gateway."""
    world = World(leak="leases")
    before = world.look(0)
    done = world.round(4, QUIET, QUIET, QUIET)
    served = [replace(look, gateway=replace(look.gateway, served=look.gateway.subscribers)) for look in done.looks]
    behind = replace(done, looks=tuple(served), direct=False)
    verdict = conclude(before, [behind])

    assert conclude(before, [replace(behind, direct=True)]).outcome is Outcome.LEAK
    assert "4 subscribers, of which it serves 0" in said(conclude(before, [replace(done, direct=False)]))
    assert verdict.outcome is Outcome.UNKNOWN
    assert "use the URL of the process itself" in said(verdict)


@pytest.mark.parametrize(("quiet", "outcome"), [(LINGER + GRACE, Outcome.UNKNOWN), (LINGER + GRACE + 1, Outcome.LEAK)])
def test_a_feed_before_the_first_stream(quiet: float, outcome: Outcome) -> None:
    """A feed without subscribers may linger for the gateway's linger, not longer."""
    world = World(lingers=True)

    assert conclude(world.look(0, quiet=quiet), []).outcome is outcome


@pytest.mark.parametrize(("unread", "outcome"), [(LINGER + GRACE, Outcome.UNKNOWN), (LINGER + GRACE + 1, Outcome.LEAK)])
def test_a_feed_that_reads_may_keep(unread: float, outcome: Outcome) -> None:
    """Whoever polls the range from memory keeps its feed, and is no subscriber. Nobody keeps our subscribers."""
    before = World(lingers=True).look(0, quiet=1000.0)
    kept = conclude(replace(before, checked=replace(before.checked, unread=unread)), [])
    world = World(leak="leases")
    start, (done,) = play(world, 4, still(1))
    looks = tuple(replace(look, checked=replace(look.checked, unread=0.0)) for look in done.looks)

    assert kept.outcome is outcome
    assert outcome is Outcome.LEAK or "other clients may have used it until 40 s ago" in said(kept)
    assert "4 subscribers whose connection is closed" in said(conclude(start, [replace(done, looks=looks)]))


def test_metrics_of_another_member() -> None:
    """Metrics that stand still while the gateway's watch comes and goes are another member's."""
    before, done = plain()
    other = replace(done, open=replace(done.open, etcd=before.etcd))
    verdict = conclude(before, [other])

    assert (verdict.outcome, verdict.suspicious) == (Outcome.UNKNOWN, False)
    assert "name them all with --etcd-metrics" in said(verdict)


def test_a_moment_proves_nothing() -> None:
    """Counts are inconsistent while others come and go: a leak must show in every look, and in more than one."""
    world = World(leak="watches")
    before = world.look(0)
    done = world.round(4, QUIET, QUIET, QUIET)

    assert conclude(before, [done]).outcome is Outcome.LEAK
    assert conclude(before, [replace(done, looks=done.looks[:1])]).outcome is Outcome.UNKNOWN
    assert conclude(before, [replace(done, looks=(before, *done.looks))]).outcome is Outcome.UNKNOWN


def test_nothing_was_done() -> None:
    """Without a round, nothing is known."""
    assert conclude(World().look(0), []).outcome is Outcome.UNKNOWN


def test_it_only_concludes() -> None:
    """The verdict uses neither a clock nor a loop: the same counts give the same verdict."""
    source = Path(verdict.__file__).read_text()
    modules = {line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))}

    assert modules == {"__future__", "collections.abc", "dataclasses", "enum"}
