"""An upstream in the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from app.etcd.upstream import Upstream


@contextlib.asynccontextmanager
async def connecting(*endpoints: str, before: Callable[[Upstream], None] | None = None) -> AsyncIterator[Upstream]:
    """A running upstream; *before* is called with it before it has a link."""
    clock = asyncio.get_running_loop().time
    upstream = Upstream(endpoints, stale_after=60, max_ranges=4, clock=clock, draw=lambda: 0.0)
    if before is not None:
        before(upstream)
    task = asyncio.create_task(upstream.run())
    try:
        yield upstream
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await upstream.aclose()
