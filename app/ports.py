"""What the feeds need of the world outside: an etcd, a clock, chance, tasks.

The real ones are ``app.etcd`` and asyncio's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from .core.errors import UnavailableError
from .core.feed_messages import StreamKind
from .core.keys import KeyRange
from .core.multiplex import WatchCallback
from .core.snapshot import Snapshot

logger = logging.getLogger("gateway")

T = TypeVar("T")

Clock = Callable[[], float]  # monotonic seconds
Draw = Callable[[], float]  # uniform in [0, 1)


class BrokenGatewayError(Exception):
    """A defect of ours, which is in the log, has ended a task that all others depend on."""


def spawn(work: Coroutine[Any, Any, T], *, name: str, died: Callable[[Exception], None]) -> asyncio.Task[T]:
    """A task whose death is heard: what it raises is logged, and *died* is called with it.

    One that nobody awaits would end in silence otherwise, and whoever waits for what it was to do would wait for ever.
    """

    def ended(task: asyncio.Task[T]) -> None:
        error: BaseException | None
        if task.cancelled():
            # gRPC raises CancelledError, too, for a call that its server cancels: then nobody has cancelled the task.
            error = None if task.cancelling() else RuntimeError("it was cancelled by nobody")
        else:
            error = task.exception()
        if error is not None:
            logger.error("task failed", exc_info=error, extra={"task": name})
            died(error if isinstance(error, Exception) else RuntimeError(str(error)))

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    return task


class Watch(Protocol):
    """One watch at etcd, open or waiting for a connection."""

    def cancel(self) -> None:
        """Let it go: its callback is not called any more. Synchronous and idempotent."""

    def await_proof(self, wanted: bool) -> None:
        """Ask for progress often, or no longer."""

    def proven_at(self, reached: int) -> float | None:
        """Nothing committed before this time (monotonic seconds) is missing; None while that is not known.

        *reached*: everything up to this revision was said.
        """


# What clients are told of an etcd that can't be used, where nothing more is known.
OUT_OF_REACH = "etcd is out of reach"


@dataclass(frozen=True, slots=True)
class Condition:
    """How the upstream is, for ``/readyz``, ``/v1/feeds`` and the metrics.

    ``told``: what clients may know of ``reason``, which holds addresses.
    """

    endpoint: str
    version: str
    state: Literal["connecting", "ready", "down"]
    since: float  # wall-clock seconds
    reason: str
    told: str = OUT_OF_REACH

    def error(self) -> UnavailableError:
        """For who asks meanwhile."""
        return UnavailableError(self.told, cause=f"{self.endpoint}: {self.reason}")


class Etcd(Protocol):
    """The upstream as feeds see it."""

    @property
    def cluster_id(self) -> int:
        """Of the cluster last heard of; 0 before."""

    @property
    def progress_trusted(self) -> bool:
        """Whether on-demand progress of the member we talk to may be believed."""

    @property
    def condition(self) -> Condition:
        """How it is."""

    def watch(self, watched: KeyRange, start: int, callback: WatchCallback, *, stream_kind: StreamKind) -> Watch:
        """Open a watch; while there is no connection, or no stream for it, it waits for one."""

    async def snapshot(self, watched: KeyRange, budget: Callable[[int], None]) -> tuple[Snapshot, int]:
        """The whole range at one linearizable revision, and the cluster's id.

        *budget* is called with the bytes of each page and may raise to stop.
        """

    async def probe(self, watched: KeyRange, revision: int) -> Literal["ok", "compacted", "future"]:
        """Whether *revision* is still readable; *watched* names a key that may be read."""

    async def revision(self, watched: KeyRange) -> int:
        """A linearizable revision read begun after this call; shared, at most one a second."""
