"""From one process to a fleet: what must hold for every fleet, and that the page shows what is calculated."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scaling
from benchmarks.scaling import FLEET, LAYOUTS, Fleet, Measured
from tools.figures import BENCHMARKS, measured

fleets = st.builds(
    Fleet,
    subscribers=st.integers(1, 10_000_000),
    ranges=st.integers(1, 100_000),
    changes=st.floats(0, 5_000),
    zones=st.integers(2, 5),
    workers=st.sampled_from([1, 4]),
)


def test_the_page_shows_what_is_calculated() -> None:
    """``python -m benchmarks.scaling --write`` writes the tables; all of them are on the page."""
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert page == scaling.written(page)
    assert [name for name in scaling.TABLES if f"<!-- scaling: {name} -->" not in page] == []


def test_the_figures_are_those_of_the_benchmarks() -> None:
    """A process that has become faster by a tenth makes another fleet."""
    sections = measured(BENCHMARKS.read_text(encoding="utf-8"))
    single = float(sections["One event at a time, 5,000 subscribers"]["gateway"][0])
    burst = float(sections["A burst of 2,000 events, 1,000 subscribers"]["gateway"][1])
    assert [1e6 * seconds for seconds in Measured().delivery] == pytest.approx([single, burst], rel=0.1)


@given(fleets, st.sampled_from(LAYOUTS))
def test_a_zone_may_be_lost(fleet: Fleet, layout: str) -> None:
    """The edges of the other zones have room for all streams; and every zone has as many edges."""
    found = scaling.plan(fleet, layout)
    left = found.edges * (fleet.zones - 1) / fleet.zones
    assert fleet.subscribers <= left * fleet.streams * fleet.workers
    assert found.edges % fleet.zones == 0
    assert found.at_roots <= fleet.streams
    assert 0 <= found.feeds <= fleet.ranges


@given(fleets, st.sampled_from(LAYOUTS))
def test_etcd_does_not_see_subscribers(fleet: Fleet, layout: str) -> None:
    """Ten times as many subscribers with as many roots are as many watches, and never fewer edges."""
    one, ten = (scaling.plan(replace(fleet, subscribers=times * fleet.subscribers), layout) for times in (1, 10))
    assert one.watches / one.roots == ten.watches / ten.roots
    assert one.edges <= ten.edges


@given(st.integers(1, 5_000), st.floats(1e-6, 0.01))
def test_a_herd_waits_for_itself(clients: int, seconds: float) -> None:
    """The last one is served after it has come, and after all others were: never later than both together."""
    found = scaling.last_synced(clients, (1.0, 5.0), seconds)
    last = 5.0 - 2.0 / clients
    assert found >= max(last, 1.0 + clients * seconds)
    assert found <= last + clients * seconds + 1e-6


@given(st.integers(1, 100_000), st.integers(0, 100_000))
def test_how_many_ranges_are_followed(ranges: int, subscribers: int) -> None:
    """No more than there are, and no more than there are subscribers."""
    assert 0 <= scaling.distinct(ranges, subscribers) <= min(ranges, subscribers) + 1e-6


def test_a_pin_is_what_makes_the_loss_of_a_root_short() -> None:
    """The advice of the page."""
    seconds = [scaling.root_lost(FLEET, layout) for layout in LAYOUTS]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] < 1 < 60 < seconds[0]
