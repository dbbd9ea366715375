"""The interfaces through which feeds use the outside world: etcd, a clock, randomness, tasks.

``app.etcd`` and asyncio provide the real implementations.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from .core.ended_histories import EndedHistories
from .core.errors import UnavailableError
from .core.feed_messages import StreamKind, WatchCallback
from .core.keys import KeyRange
from .core.merged_metrics import Family
from .core.quotas import Caller
from .core.reasons import CloseReason, Denial
from .core.selection import Ranges
from .core.snapshot import Snapshot
from .core.witnessed_history import WitnessedHistory
from .core.worker_report import Report

logger = logging.getLogger("gateway")

T = TypeVar("T")

Clock = Callable[[], float]  # monotonic seconds
Draw = Callable[[], float]  # uniform in [0, 1)


class BrokenGatewayError(Exception):
    """A defect in the gateway has ended a task that all others depend on. The log has the details."""


def spawn(work: Coroutine[Any, Any, T], *, name: str, died: Callable[[Exception], None]) -> asyncio.Task[T]:
    """Start a task. If the task raises, log the exception and call *died* with it.

    Otherwise a task that nobody awaits would fail silently, and a caller that waits for its effect would wait for ever.
    """

    def ended(task: asyncio.Task[T]) -> None:
        error: BaseException | None
        if task.cancelled():
            # gRPC also raises CancelledError when the server cancels a call. Then nothing has cancelled the task.
            error = None if task.cancelling() else RuntimeError("the task ended as cancelled, but nothing cancelled it")
        else:
            error = task.exception()
        if error is not None:
            logger.error("task failed", exc_info=error, extra={"task": name})
            died(error if isinstance(error, Exception) else RuntimeError(str(error)))

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    return task


class Permit(Protocol):
    """What lets a stream read: ``app.access.permit``."""

    @property
    def expires(self) -> float | None:
        """Wall-clock seconds at which the stream must end; None: never."""

    @property
    def session(self) -> str:
        """The id of the browser's session that has opened the stream; empty if a session has not."""

    def renewed(self) -> Permit | CloseReason:
        """Return the permit as it is after the files have changed, or why the stream must be closed."""

    def note(self, decision: Denial, *, address: str, request_id: str) -> None:
        """Write in the audit log that the stream must end."""


class Admission(Protocol):
    """What the hub holds for one stream of a worker, until ``release``."""

    on_close: Callable[[CloseReason], None] | None  # called when the hub cannot serve the ranges any more

    @property
    def closed(self) -> CloseReason | None:
        """Why that was so before ``on_close`` was set."""

    def release(self) -> None:
        """Let go. Synchronous and idempotent."""


class Hub(Protocol):
    """The process that holds the feeds and the limits for all workers, as a worker sees it (``app.workers``)."""

    @property
    def socket(self) -> str:
        """The path of the Unix socket at which the hub serves."""

    @property
    def heard_at(self) -> float:
        """When the hub has last given a sign of life, in monotonic seconds. It does so every second."""

    def tell_ended(self, session: str, sealed_by: str, expires: float) -> None:
        """Tell all other workers that a browser's session has ended: ``app.access.identity.Session``."""

    def tell_failed(self, address: str) -> None:
        """Tell all other workers that wrong credentials came from *address*."""

    def tell_bookmarks_due(self, ranges: Ranges, host: str, revision: int) -> None:
        """Tell all other workers that an edge at *host* asks for bookmarks on its streams, at *revision*."""

    async def admit(self, ranges: Ranges, *, caller: Caller | None, has_cursor: bool) -> Admission:
        """Count one stream for the limits of all workers together, and let the feeds of *ranges* begin.

        Raises:
            GatewayError: as ``Registry.subscribe`` of a single process raises it.
            UnavailableError: the hub does not answer.
        """

    async def check_join(self, ranges: Ranges, *, caller: Caller | None) -> None:
        """Raise what ``admit`` would raise now. Nothing is counted or held."""

    async def begin_read(self, caller: Caller) -> Admission:
        """Count a read for its caller's quotas in all workers together.

        Raises:
            OverCapacityError: a quota is reached.
            UnavailableError: the hub does not answer.
        """


class Workers(Protocol):
    """The workers, as the hub's endpoints see them."""

    async def reports(self, only: Ranges | None = None) -> Sequence[Report]:
        """Return what each worker holds: all channels, or the one of these ranges with its subscribers."""

    @property
    def ended(self) -> Sequence[Family]:
        """What ended workers have counted."""


class Watch(Protocol):
    """One watch at etcd, open or waiting for a connection."""

    def cancel(self) -> None:
        """Cancel the watch: its callback is not called any more. Synchronous and idempotent."""

    def await_proof(self, wanted: bool) -> None:
        """Set whether to request progress often, because the watch has something to prove."""

    def hasten(self, wanted: bool) -> None:
        """Set whether to request progress as fast as the stream allows, because a merge waits for it.

        That is at most 200 times a second, and one request at a time. Without effect where progress is not trusted. A
        gateway sends progress by itself (``Etcd.tell_merged``), and is requested to only when none comes.
        """

    def proven_at(self, reached: int) -> float | None:
        """Return the time (monotonic seconds) before which no committed event is missing; None while it is unknown.

        *reached*: the watch has delivered everything up to this revision. Only a gateway's watch returns an earlier
        time than before (``Etcd.is_gateway``).
        """


# The reason that clients see for an etcd that cannot be used, unless a more specific one is known.
OUT_OF_REACH = "etcd is out of reach"


@dataclass(frozen=True, slots=True)
class Condition:
    """The state of the upstream, for ``/readyz``, ``/v1/feeds`` and the metrics.

    ``told`` is the reason that clients may see: ``reason`` holds addresses.
    """

    endpoint: str
    version: str
    state: Literal["connecting", "ready", "down"]
    since: float  # wall-clock seconds
    reason: str
    told: str = OUT_OF_REACH

    def error(self) -> UnavailableError:
        """Return the error for requests that arrive in this condition."""
        return UnavailableError(self.told, cause=f"{self.endpoint}: {self.reason}")


@dataclass(frozen=True, slots=True)
class UpstreamStatistics:
    """The gateway's use of its upstream at one moment, and counts since the process began.

    For the metrics, ``/v1/feeds`` and ``/readyz``.
    """

    condition: Condition
    reached: bool  # whether an upstream has ever answered
    watchers: int
    highest_revision: int  # the highest that this process knows, in this history
    reconnects: int
    ranges: int  # Ranges sent to etcd, except one per connection


class Etcd(Protocol):
    """The upstream as feeds see it."""

    @property
    def cluster_id(self) -> int:
        """The id of the cluster that the gateway follows; 0 before etcd's first answer."""

    @property
    def is_gateway(self) -> bool:
        """Whether the upstream is another gateway.

        Its watches say ``Reset`` if their history does not go on, and withdraw what they have proven when the upstream
        becomes stale.
        """

    @property
    def ended(self) -> EndedHistories:
        """The histories that the process knows to have ended. Its feeds add to them."""

    @property
    def witnessed(self) -> WitnessedHistory | None:
        """What is known of the present history, for gateways below; None if nothing is."""

    @property
    def can_be_followed(self) -> bool:
        """Whether gateways below may have streams: they must know of which history a stream is, before its events."""

    def reach(self, most: int) -> int:
        """Return how many revisions back the upstream can be asked for history, if this gateway asks for *most*."""

    @property
    def progress_trusted(self) -> bool:
        """Whether the present member's answers to progress requests can be trusted. False while there is no member."""

    @property
    def member_known(self) -> bool:
        """Whether the gateway knows the member that serves its watches: ``progress_trusted`` is then about that member.

        False while the gateway connects, while etcd is out of reach, and until the member has been asked for its
        version. Then the caller must wait, or answer that etcd is unavailable. The caller must not conclude that
        progress cannot be trusted.
        """

    @property
    def watch_version(self) -> str:
        """The version of the member that serves the watches; empty if it is not known.

        Behind one name, ``Condition.version`` may be that of another member, which serves the reads.
        """

    @property
    def condition(self) -> Condition:
        """The present condition."""

    def watch(self, watched: KeyRange, start: int, callback: WatchCallback, *, stream_kind: StreamKind) -> Watch:
        """Open a watch. The watch waits while there is no connection, or no stream with room for it."""

    def tell_merged(self, watched: Ranges) -> None:
        """Let another gateway send the progress of these ranges as soon as a merge of them needs it.

        Called each time that a merge begins to wait, so mostly without effect. At etcd, the watches request it
        (``Watch.hasten``).
        """

    async def snapshot(
        self, ranges: Sequence[KeyRange], budget: Callable[[int], None], *, newest: bool = False
    ) -> tuple[Snapshot, int]:
        """Return all keys of the ranges at one linearizable revision, and the cluster's id.

        *ranges*: at least one; no key is in two of them. *budget* is called with the size of each page in bytes. It may
        raise to stop the read. *newest*: also from another gateway, which otherwise may answer from its memory: with a
        state that its watches have reached.
        """

    async def probe(self, watched: KeyRange, revision: int) -> Literal["ok", "compacted", "future"]:
        """Return whether *revision* is still readable; *watched* names a key that the gateway may read."""

    async def revision(self, watched: KeyRange) -> int:
        """Return a linearizable revision from a read that began after this call. Shared; at most one read a second."""
