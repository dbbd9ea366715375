"""Objects with a length are true, even if they are empty."""

from __future__ import annotations

from app.core.log import Bounds, Log
from app.core.multiplex import Multiplexer
from app.core.quotas import Quota
from app.core.refcounts import RefCounts
from app.core.retry_penalty import RetryPenalty
from app.core.token_bucket import TokenBuckets


def test_an_empty_one_is_true() -> None:
    """``given or another`` returns *another* only for None, not for an empty object."""
    others = (Quota("identity"), TokenBuckets(1))
    for empty in (Multiplexer(), RetryPenalty(), RefCounts[str](), Log(Bounds(1, 1, 1.0)), *others):
        assert len(empty) == 0
        assert empty
