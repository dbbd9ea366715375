"""Snapshots for readers whose cursor is ahead of what the channel can prove."""

from __future__ import annotations

import asyncio
import weakref

from ..core.errors import CompactedError, FutureRevisionError, GatewayError
from ..core.readable_history import ReadableHistory
from ..core.snapshot import Snapshot
from ..ports import Clock
from .state_reader import StateReader


class FreshSnapshots:
    """See the module. All readers of one generation share one read.

    Args:
        state: reads the ranges.
        history: of the channel. A snapshot of an earlier generation is worthless.
        keep: seconds for which a snapshot is kept for further readers.
    """

    def __init__(self, state: StateReader, history: ReadableHistory, *, keep: float, clock: Clock) -> None:
        self._state = state
        self._history = history
        self._keep = keep
        self._clock = clock
        self._stopped = False
        self._latest: tuple[int, Snapshot] | None = None
        self._latest_at = 0.0
        self.task: asyncio.Task[Snapshot] | None = None
        self._generation = -1  # of the log, when the task began

    async def get(self, at_least: int) -> Snapshot | None:
        """Return a snapshot at or above *at_least*, a revision that the channel has not reached.

        None if the read fails, if its revision is too low, or if the log's generation, or the channel, has ended.
        """
        generation = self._history.log.generation
        if self._latest is not None and self._latest[0] != generation:
            self._latest = None
        if self._latest is not None and self._latest[1].revision >= at_least:
            return self._latest[1]  # and no variable: it would hold the snapshot while another one is read
        if self._stopped:
            return None
        if self.task is not None and self._generation != generation:
            self.task.cancel()  # it may have read a history that has ended since
            self.task = None
        if self.task is None:
            names = ", ".join(map(str, self._state.ranges))
            self.task = asyncio.create_task(self._read(), name=f"fresh snapshot {names}")
            self.task.add_done_callback(self._done)
            self._generation = generation
        try:
            snapshot = await asyncio.shield(self.task)
        except (GatewayError, CompactedError, FutureRevisionError):
            return None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return None  # the channel, or the generation, has ended; the caller was not cancelled
        if self._stopped or generation != self._history.log.generation or snapshot.revision < at_least:
            return None
        self._latest, self._latest_at = (generation, snapshot), self._clock()
        return snapshot

    def forget_old(self) -> None:
        """Drop the snapshot after its time: every reader that waited for it has it by now."""
        if self._latest is not None and self._clock() - self._latest_at > self._keep:
            self._latest = None

    def forget(self) -> None:
        """Drop the snapshot now."""
        self._latest = None

    def stop(self) -> None:
        """Cancel the read, and drop the snapshot. Idempotent."""
        self._stopped = True
        self._state.stop()
        self._latest = None
        if self.task is not None:
            self.task.cancel()

    async def _read(self) -> Snapshot:
        snapshot, _cluster, hold = await self._state.read(newest=True)
        # Readers keep the snapshot while it is being sent to them. Its bytes count until the last reader drops it.
        weakref.finalize(snapshot, hold.release).atexit = False
        return snapshot

    def _done(self, task: asyncio.Task[Snapshot]) -> None:
        if self.task is task:
            self.task = None
        if not task.cancelled():
            task.exception()  # mark the error as retrieved: all callers may have gone
