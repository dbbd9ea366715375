"""``app.api.kv_memory``: an answer's memory belongs to the answer, or to nobody."""

from __future__ import annotations

import asyncio

import pytest

from app.api import kv_memory as module
from app.api.kv_memory import AnswerMemory, answer_memory
from app.core.budget import PAGE_BYTES, Budget, Use
from app.core.errors import OverCapacityError
from tests.support.waiting import HANG


async def test_the_answer_owns_the_memory() -> None:
    """The block has made the owner, which releases the hold later."""
    budget = Budget(1 << 30)
    async with answer_memory(budget, 100) as hold:
        pass
    assert (budget.of(Use.ANSWER), hold.released) == (100, False)
    hold.release()
    assert budget.of(Use.ANSWER) == 0


async def test_a_read_that_fails_keeps_nothing() -> None:
    """Whatever it was that failed: the error is the read's own."""
    budget = Budget(1 << 30)
    with pytest.raises(KeyError):
        async with answer_memory(budget):
            raise KeyError
    assert budget.of(Use.ANSWER) == 0


async def test_an_answer_of_a_known_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside other answers it must fit in a quarter of the budget. Alone it may be outside of it.

    Nothing is waited for: the other gateway would hold the body meanwhile.
    """
    monkeypatch.setattr(module, "RESERVE_TIMEOUT", 1e6)
    budget = Budget(16 * PAGE_BYTES)
    async with AnswerMemory(budget) as first:
        await first.need(100)
        assert budget.of(Use.ANSWER) == PAGE_BYTES
        await first.need(2 * PAGE_BYTES)
    with pytest.raises(OverCapacityError) as refused:
        async with asyncio.timeout(HANG), AnswerMemory(budget) as second:
            await second.need(3 * PAGE_BYTES)
    assert (refused.value.code, budget.of(Use.ANSWER)) == ("too-many-reads", 2 * PAGE_BYTES)
    first.hold.release()
    async with AnswerMemory(budget) as alone:
        await alone.need(5 * PAGE_BYTES)
    assert (budget.of(Use.ANSWER), budget.outside) == (5 * PAGE_BYTES, 5 * PAGE_BYTES)
    alone.hold.release()
    assert (budget.of(Use.ANSWER), budget.waiting(Use.ANSWER)) == (0, 0)
