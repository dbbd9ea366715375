"""``app.api.kv_memory``: an answer's memory belongs to the answer, or to nobody."""

from __future__ import annotations

import pytest

from app.api.kv_memory import answer_memory
from app.core.budget import Budget, Use


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
