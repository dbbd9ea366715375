"""``app.core.staleness``: a feed is live only while etcd has proven it lately."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.staleness import Outage, Staleness

LIMIT = 10.0
WALL = 1_700_000_000.0
TIMES = st.floats(0, 100)


def test_a_feed_without_a_proof_becomes_stale() -> None:
    """A feed begins live, and is stale when the limit has passed. The time that clients see is that of its start."""
    staleness = Staleness(LIMIT, 5.0, withdraws=False)
    assert not staleness.update(15.0, WALL, has_view=True)
    assert staleness.since is None
    assert staleness.update(15.5, WALL, has_view=True)
    assert staleness.since == WALL - 10.5
    assert not staleness.update(20.0, WALL + 4.5, has_view=True), "stale since the same time"
    assert staleness.since == WALL - 10.5


def test_a_proof_makes_it_live() -> None:
    staleness = Staleness(LIMIT, 0.0, withdraws=False)
    assert staleness.update(11.0, WALL, has_view=True)
    staleness.note(None)
    assert not staleness.update(11.0, WALL, has_view=True), "no proof is no change"
    staleness.note(10.0)
    assert staleness.update(11.0, WALL, has_view=True)
    assert (staleness.since, staleness.age(11.0)) == (None, 1.0)


def test_without_its_view_a_feed_is_stale() -> None:
    """The gateway has dropped the view to free memory: whatever etcd proves, nothing current can be shown."""
    staleness = Staleness(LIMIT, 0.0, withdraws=False)
    assert staleness.update(1.0, WALL, has_view=False)
    assert staleness.since == WALL - 1.0
    assert staleness.update(1.0, WALL, has_view=True)


@pytest.mark.parametrize("withdraws", [False, True], ids=["etcd", "a gateway"])
@given(proofs=st.lists(st.none() | TIMES))
def test_only_a_gateway_withdraws(withdraws: bool, proofs: list[float | None]) -> None:
    """The last proof of a gateway counts, and the latest proof of etcd."""
    staleness = Staleness(LIMIT, 0.0, withdraws=withdraws)
    for proof in proofs:
        staleness.note(proof)
    given_times = [proof for proof in proofs if proof is not None]
    last = given_times[-1] if given_times else 0.0
    assert staleness.age(100.0) == 100.0 - (last if withdraws else max([0.0, *given_times]))


def test_what_came_in_an_outage_may_be_as_old_as_the_last_proof() -> None:
    """The outage begins at the last proof before, whatever is proven meanwhile; what came before it keeps its age."""
    staleness = Staleness(LIMIT, 0.0, withdraws=False)
    staleness.note(5.0)
    assert staleness.update(16.0, WALL, has_view=True)
    outages = [staleness.outage]  # it has not ended
    staleness.note(40.0)
    assert staleness.update(41.0, WALL, has_view=True)
    outages.append(staleness.outage)

    outage = Outage(proven_at=5.0, ended_at=41.0)
    assert outages == [None, outage]
    assert [outage.oldest(arrived_at) for arrived_at in (4.0, 6.0, 41.0, 41.5)] == [4.0, 5.0, 5.0, 41.5]
