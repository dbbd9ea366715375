"""Waiting for memory: granted in the order of the requests, refused after a while, and always released."""

from __future__ import annotations

import asyncio

import pytest

from app.core.budget import Budget, Hold, Use
from app.core.errors import OverCapacityError
from app.memory import reserve
from tests.support.virtual_time import now, virtually

LIMIT = 1000


async def full() -> tuple[Budget, Hold]:
    """A budget, and a page that holds all of it: the next page must wait."""
    budget = Budget(LIMIT)
    return budget, await reserve(budget, Use.PAGE, LIMIT, timeout=0)


async def test_what_there_is_is_granted_at_once() -> None:
    """Free memory is granted at once; the caller must release it."""
    budget = Budget(LIMIT)
    with await reserve(budget, Use.PAGE, 100, timeout=0) as hold:
        assert (hold.granted, budget.of(Use.PAGE)) == (True, 100)
    assert budget.of(Use.PAGE) == 0


def test_a_wait_ends_with_what_others_give_back() -> None:
    """A waiting request is granted at the moment of a release."""

    async def wait() -> float:
        budget, other = await full()
        asyncio.get_running_loop().call_later(3, other.release)
        hold = await reserve(budget, Use.PAGE, LIMIT, timeout=10)
        assert hold.granted
        return now()

    assert virtually(wait())[0] == 3


def test_a_wait_ends_after_its_timeout() -> None:
    """After its timeout a request holds nothing and no longer waits, and the client is asked to retry."""

    async def wait() -> Budget:
        budget, _ = await full()
        before = budget.of(Use.PAGE)
        with pytest.raises(OverCapacityError) as raised:
            await reserve(budget, Use.PAGE, LIMIT, timeout=10)
        assert raised.value.code == "too-many-reads"
        assert budget.of(Use.PAGE) == before
        return budget

    budget, took = virtually(wait())
    assert (took, budget.waiting(Use.PAGE)) == (10, 0)


async def test_one_that_is_cancelled_waits_no_more() -> None:
    """A cancelled request no longer waits: bytes granted to it would be lost for good."""
    budget, other = await full()
    before = budget.of(Use.PAGE)
    task = asyncio.create_task(reserve(budget, Use.PAGE, LIMIT, timeout=3600))
    await asyncio.sleep(0)
    assert budget.waiting(Use.PAGE) == 1
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), budget.waiting(Use.PAGE), budget.of(Use.PAGE)) == (True, 0, before)
    other.release()
    assert budget.of(Use.PAGE) == before - LIMIT
