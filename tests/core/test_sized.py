"""Objects with a length are true, even if they are empty."""

from __future__ import annotations

from app.core.log import Bounds, Log
from app.core.multiplex import Multiplexer
from app.core.refcounts import RefCounts
from app.core.slow_reader import RetryPenalty


def test_an_empty_one_is_true() -> None:
    """``given or another`` returns *another* only for None, not for an empty object."""
    for empty in (Multiplexer(), RetryPenalty(), RefCounts[str](), Log(Bounds(1, 1, 1.0))):
        assert len(empty) == 0
        assert empty
