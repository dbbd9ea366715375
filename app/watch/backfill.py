"""The read of a feed's history at run time: its watch, timeout and probe. A failure affects only readers that asked.

``app.core.backfill`` makes all decisions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..core.backfill import Backfill, Stage
from ..core.errors import GatewayError
from ..core.feed_messages import (
    AwaitProof,
    BackfillInput,
    CloseWatch,
    Command,
    EndProof,
    NoRoom,
    OpenWatch,
    Probe,
    Probed,
    Refused,
    Stop,
    SyncTimeout,
    WantBackfill,
    WatchInput,
)
from ..core.keys import KeyRange
from ..ports import Clock, Etcd, Watch
from .cancel import cancel_watch
from .task_scope import TaskScope

logger = logging.getLogger("gateway.feed")


class RunningBackfill:
    """See the module.

    Args:
        timeout: seconds for each stage: waiting for a turn, reading, confirming.
        has_room: returns whether what is held fits the memory that all feeds share; called after each input.
        on_change: called after each input: readers may have something to read.
        on_denied: called when etcd's roles no longer let the gateway read the range.
    """

    def __init__(
        self,
        core: Backfill,
        watched: KeyRange,
        etcd: Etcd,
        *,
        timeout: float,
        has_room: Callable[[], bool],
        on_change: Callable[[], None],
        on_denied: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._core = core
        self._range = watched
        self._etcd = etcd
        self._timeout = timeout
        self._has_room = has_room
        self._on_change = on_change
        self._on_denied = on_denied
        self._clock = clock
        self._watch: Watch | None = None
        self._probe_task: asyncio.Task[None] | None = None
        self._now = 0.0
        self.scope = TaskScope(f"feed history {watched}", lambda _error: self._abandon())

    @property
    def watching(self) -> bool:
        """Whether this read holds a watch, open or waiting for a stream."""
        return self._watch is not None

    @property
    def active(self) -> bool:
        """Whether history is being read."""
        return self._core.stage is not Stage.RESTING

    def want(self, revision: int | None) -> None:
        """Read back as far as a cursor at *revision* needs, and further. None: the revision is not known yet."""
        self.handle(WantBackfill(revision))

    def make_room(self) -> None:
        """Abort the read because memory is short: history that is not proven yet is freed first."""
        if self.active:
            self.handle(NoRoom())

    def stop(self) -> None:
        """Abort the read because the feed has ended, or its history does not go on."""
        if self.active:
            self._core.handle(Stop(), self._now)
            self._close()

    def end(self) -> None:
        """Stop for good, and let go of the owner, which is then freed without the garbage collector."""
        self.stop()
        self.scope.end()
        self._has_room, self._on_change, self._on_denied = _has_room, _nothing, _nothing

    def handle(self, given: BackfillInput) -> None:
        """Pass one input to the core and execute its commands. A defect ends the read, but not the feed."""
        try:
            self._step(given)
            # To ask counts what is held, which may let others have bytes, and so end this read.
            if not self._has_room() and self.active:
                self._step(NoRoom())
        except Exception:
            logger.exception("history read failed", extra={"range": str(self._range), "stage": self._core.stage.value})
            self._abandon()
        else:
            self._on_change()

    def _abandon(self) -> None:
        self._core.abandon(self._now)
        self._close()
        self._on_change()

    def _step(self, given: BackfillInput) -> None:
        self._now = self._clock()
        for command in self._core.handle(given, self._now):
            self._execute(command)

    def _from_watch(self, given: WatchInput) -> None:
        if isinstance(given, Refused) and given.denied:
            self._on_denied()
        else:
            self.handle(given)

    def _execute(self, command: Command) -> None:
        match command:
            case OpenWatch(start, stream_kind):
                self._close_watch()
                self._watch = self._etcd.watch(self._range, start, self._from_watch, stream_kind=stream_kind)
                self._watch.await_proof(True)
            case CloseWatch():
                self._close_watch()
            case AwaitProof():
                self.scope.set_timer(SyncTimeout, self._timeout, self._timed_out)
            case EndProof():
                self._close()
            case Probe(revision):
                self._probe_task = self.scope.spawn(self._probe(revision))
            case _:
                msg = f"a read of history cannot execute {command}"
                raise AssertionError(msg)

    def _close(self) -> None:
        self._close_watch()
        self.scope.cancel()
        self._probe_task = None

    def _close_watch(self) -> None:
        watch, self._watch = self._watch, None
        cancel_watch(watch)

    def _timed_out(self) -> None:
        logger.warning("history not read in time", extra={"range": str(self._range), "stage": self._core.stage.value})
        self.handle(SyncTimeout())

    async def _probe(self, revision: int) -> None:
        try:
            outcome = await self._etcd.probe(self._range, revision)
        except GatewayError as error:
            logger.warning("history probe failed", extra={"range": str(self._range), "reason": str(error)})
            given = Probed("failed")
        else:
            given = Probed(outcome)
        # The answer itself can end the read: its header may reveal a restore. Then nobody waits for the answer.
        if self._probe_task is asyncio.current_task():
            self.handle(given)


def _has_room() -> bool:
    """Return that there is room: nothing is held after the end."""
    return True


def _nothing() -> None:
    """Do nothing: the owner has ended."""
