"""Resolves a reader's cursor: reads history below the log, or proves a cursor that is ahead of the channel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..core.errors import GatewayError
from ..core.reader import Reader, Wants
from ..ports import spawn
from .channel import Channel

logger = logging.getLogger("gateway.stream")

# Seconds between a failed linearizable read and the next one.
READ_AGAIN = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class TipListener:
    """Wakes a stream. The stream may await the tip for another reason too, and so may a task that has not ended."""

    wake: Callable[[], None]


class CursorResolver:
    """Serves one reader until its cursor is resolved, with at most one task, for what the reader wants now.

    Args:
        sync_timeout: seconds that the channel has to reach the cursor by itself, before the state is read.
        wake: called after the reader has received something.
        failed: called with the exception of a defect.
    """

    __slots__ = ("_channel", "_failed", "_reader", "_serves", "_sync_timeout", "_task", "_wake")

    def __init__(
        self,
        channel: Channel,
        reader: Reader,
        *,
        sync_timeout: float,
        wake: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._channel = channel
        self._reader = reader
        self._sync_timeout = sync_timeout
        self._wake = wake
        self._failed = failed
        self._task: asyncio.Task[None] | None = None
        self._serves = Wants.NOTHING  # what the task is for

    def advance(self) -> bool:
        """Start to fetch what the reader wants. Return True if the reader should be read again at once."""
        wants = self._reader.wants
        if wants is not self._serves:
            self.stop()
            self._serves = wants
            if wants is Wants.LINEARIZABLE:
                self._task = spawn(self._read_linearizable(), name="stream-linearizable", died=self._failed)
            elif wants is Wants.CATCH_UP:
                self._task = spawn(self._await_catch_up(), name="stream-catch-up", died=self._failed)
        if wants is not Wants.BACKFILL:
            return False
        asked = self._reader.asked
        assert asked is not None, "only a cursor can want history"
        if not self._channel.want_backfill(asked):
            self._reader.refuse_backfill()
        return True

    def stop(self) -> None:
        """Cancel the task, if there is one. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._serves = Wants.NOTHING

    async def _read_linearizable(self) -> None:
        with self._awaiting_tip():  # progress may take the channel to the cursor before the read is answered
            while True:
                try:
                    revision = await self._channel.linearizable_revision()
                except GatewayError as error:  # etcd is out of reach: the status reports that, so only retry here
                    logger.debug("no linearizable revision", extra={"reason": str(error)})
                    await asyncio.sleep(READ_AGAIN)
                    continue
                self._reader.give_linearizable(revision)
                self._wake()
                return

    async def _await_catch_up(self) -> None:
        """Give the channel time to prove that it has reached the cursor; then read the state afresh."""
        with self._awaiting_tip():
            self._wake()  # the tip may have moved before this task began
            while True:
                await asyncio.sleep(self._sync_timeout)
                asked = self._reader.asked
                if asked is None:
                    return  # another wake has resolved the cursor
                snapshot = await self._channel.fresh_snapshot(asked)
                if snapshot is not None:
                    self._reader.give_snapshot(snapshot)
                    self._wake()
                    return

    @contextlib.contextmanager
    def _awaiting_tip(self) -> Iterator[None]:
        """Wake the stream when the channel's tip moves."""
        listener = TipListener(self._wake)
        self._channel.await_tip(listener)
        try:
            yield
        finally:
            self._channel.ignore_tip(listener)
