"""Reads etcd's history from etcd, by its own watch: it trusts nothing of the gateway.

The oracle asks without fragments, so a response never divides a revision. It restarts after the last revision that it
has, and the nemesis compacts no further than that, so the oracle never meets the hole at a compaction revision.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from aetcd import rpc

from tests.consistency.access import Access, Metadata
from tests.consistency.history import Change, Chronicle, History, kept

# Seconds; writers never pause so long: a silent member is frozen, cut off or gone.
SILENCE = 1.0


class Oracle:
    """Follows all keys, from member to member, into a ``Chronicle``."""

    def __init__(self, endpoints: Sequence[str], access: Access) -> None:
        self._endpoints = endpoints
        self._access = access
        self._turn = itertools.count()
        self.paused = False
        self._task: asyncio.Task[None] | None = None
        self.chronicle = Chronicle()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run in the background."""
        task = self._task = asyncio.create_task(self._run(), name="oracle")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def pause(self) -> None:
        """etcd is being restored: incoming events belong to no history yet."""
        self.paused = True

    def resume(self, history: History, restored_to: int) -> None:
        """etcd runs again, from a snapshot of *history* at *restored_to*."""
        self.chronicle.restore(history, restored_to, time.monotonic())
        self.paused = False

    async def reach(self, revision: int) -> None:
        """Wait until the oracle knows everything up to *revision*."""
        async with asyncio.timeout(60):
            while self.chronicle.now.tip < revision:
                assert self._task is not None
                if self._task.done():
                    self._task.result()
                await asyncio.sleep(0.02)

    async def _run(self) -> None:
        while True:
            endpoint = self._endpoints[next(self._turn) % len(self._endpoints)]
            with contextlib.suppress(TimeoutError, rpc.AioRpcError, ConnectionError):
                async with self._access.channel(endpoint) as (channel, metadata):
                    await self._follow(channel, metadata)
            await asyncio.sleep(0.05)

    async def _follow(self, channel: Any, metadata: Metadata) -> None:
        if self.paused:
            return
        history = self.chronicle.now
        request = rpc.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=history.tip + 1)
        call = rpc.WatchStub(channel).Watch(metadata=(("hasleader", "true"), *metadata))
        try:
            async with asyncio.timeout(SILENCE):
                await call.write(rpc.WatchRequest(create_request=request))
            while True:
                async with asyncio.timeout(SILENCE):
                    response = await call.read()
                if response is grpc.aio.EOF or self.paused or history.ended:
                    return
                assert not response.compact_revision, "the nemesis compacted revisions that the oracle lacks"
                if response.canceled:
                    return
                self._take(response)
        finally:
            call.cancel()

    def _take(self, response: Any) -> None:
        at = time.monotonic()
        for revision, events in itertools.groupby(response.events, key=lambda event: event.kv.mod_revision):
            self.chronicle.now.add(revision, [_change(event) for event in events], at)


def _change(event: Any) -> Change:
    kv = event.kv
    if event.type:  # DELETE
        return Change(kv.key, kv.mod_revision)
    return Change(kv.key, kv.mod_revision, kept(kv.value), kv.create_revision, kv.version, kv.lease)
