"""The read of a feed's history, running: its watch, its time-out, its probe. What fails here costs only who asked.

It decides nothing itself: ``app.core.backfill`` does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..core.backfill import Stage
from ..core.errors import GatewayError
from ..core.feed import FeedCore
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
    Stop,
    SyncTimeout,
    WantBackfill,
)
from ..core.keys import KeyRange
from ..core.multiplex import Refused, WatchInput
from ..ports import Clock, Etcd, Watch, spawn
from .cancel import cancel_watch

logger = logging.getLogger("gateway.feed")


class RunningBackfill:
    """See the module.

    Args:
        timeout: seconds that each may take: to have its turn, to be read, to be confirmed.
        has_room: whether what is held fits the memory that all feeds share; asked after each input.
        on_change: called after each input: readers may go on.
        on_denied: called when etcd's roles do not let us read the range any more.
    """

    def __init__(
        self,
        core: FeedCore,
        watched: KeyRange,
        etcd: Etcd,
        *,
        timeout: float,
        has_room: Callable[[], bool],
        on_change: Callable[[], None],
        on_denied: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._feed = core
        self._core = core.backfill
        self._range = watched
        self._etcd = etcd
        self._timeout = timeout
        self._has_room = has_room
        self._on_change = on_change
        self._on_denied = on_denied
        self._clock = clock
        self._watch: Watch | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._probe_task: asyncio.Task[None] | None = None
        self._now = 0.0
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def watching(self) -> bool:
        """Whether it holds a watch, or waits for one."""
        return self._watch is not None

    @property
    def active(self) -> bool:
        """Whether history is being read."""
        return self._core.stage is not Stage.RESTING

    def want(self, revision: int | None) -> None:
        """Read as far as a cursor at *revision* needs, and further; None: of a cursor that nobody has read yet."""
        self.handle(WantBackfill(revision))

    def make_room(self) -> None:
        """Memory is short: what is not yet proven goes first."""
        if self.active:
            self.handle(NoRoom())

    def stop(self) -> None:
        """The feed, or the history that it tells of, has ended."""
        if self.active:
            self._core.handle(Stop(), self._now)
            self._close()

    def handle(self, given: BackfillInput) -> None:
        """Give the core one input and do what it says. An error of ours ends the read, and not the feed."""
        try:
            self._step(given)
            if self.active and not self._has_room():
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
                self._set_timer()
            case EndProof():
                self._close()
            case Probe(revision):
                self._probe_task = spawn(
                    self._probe(revision), name=f"feed history {self._range}", died=lambda _error: self._abandon()
                )
                self.tasks.add(self._probe_task)
                self._probe_task.add_done_callback(self.tasks.discard)
            case _:
                msg = f"{command} is not for a read of history"
                raise AssertionError(msg)

    def _set_timer(self) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(self._timeout, self._timed_out)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._close_watch()
        self._cancel_timer()
        if self._probe_task is not None:
            self._probe_task.cancel()
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
        # An answer can be what ends the read (a restore is noticed by its header): then nobody waits for it.
        if self._probe_task is asyncio.current_task():
            self.handle(given)
