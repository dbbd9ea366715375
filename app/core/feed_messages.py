"""The inputs and the commands of a feed's two state machines.

One machine is the feed's own life (``feed``). The other reads older history beside it (``backfill``). Each machine has
its own watch, and these messages concern that watch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .events import Batch
from .reasons import ResetReason
from .snapshot import Snapshot

# The kind of stream that carries a watch: one that live watches share, one for reading history, or one that this watch
# has to itself.
StreamKind = Literal["live", "backfill", "dedicated"]


# What a watch says, whoever serves it: etcd (``multiplex``) or another gateway (``gateway_watch``).
@dataclass(frozen=True, slots=True)
class Created:
    """etcd holds the watch. *revision*: the store's at about that time; events up to it may still follow."""

    revision: int


@dataclass(frozen=True, slots=True)
class Batches:
    """Complete revisions, in order.

    ``late``: the message came late (see ``multiplex``), and later messages may lack events. ``slow``: etcd may serve
    these events or the next from history, at a version that then loses events; ``batches`` may be empty.
    """

    batches: tuple[Batch, ...]
    slow: bool = False
    late: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """All events up to *revision* have come, if *trusted*. Otherwise the progress shows only that the stream is alive.

    The multiplexer passes no answer to a watch that may be younger than the answer: see ``multiplex``.
    """

    revision: int
    trusted: bool


@dataclass(frozen=True, slots=True)
class Compacted:
    """etcd cancelled the watch: the events that it requested are compacted up to *revision*."""

    revision: int


@dataclass(frozen=True, slots=True)
class Refused:
    """etcd refused the watch, or ended it for another reason. *denied*: etcd's roles are certainly the reason."""

    reason: str
    denied: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """The watch's stream is gone. *too_large*: a message over the limit, of one of its watches, broke it."""

    reason: str
    too_large: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """The history that the watch follows does not go on, for this reason. Only an upstream gateway says so."""

    reason: ResetReason


WatchInput = Created | Batches | Progress | Compacted | Refused | Lost | Reset
WatchCallback = Callable[[WatchInput], None]


# The other inputs.
@dataclass(frozen=True, slots=True)
class Start:
    """A subscriber wants this feed. *backfill*: a subscriber with a cursor does."""

    backfill: bool


@dataclass(frozen=True, slots=True)
class WantBackfill:
    """A new subscriber's cursor lies below the log's floor. *revision*: the cursor's, if known."""

    revision: int | None = None


@dataclass(frozen=True, slots=True)
class NoRoom:
    """The batches that are held back do not fit in the memory that all feeds share."""


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """All pages of the Range, at one revision."""

    snapshot: Snapshot
    cluster_id: int


@dataclass(frozen=True, slots=True)
class SnapshotFailed:
    """The Range failed after all retries; the shell has logged the reason."""


@dataclass(frozen=True, slots=True)
class Probed:
    """The outcome of a count-only Range at the requested revision."""

    outcome: Literal["ok", "compacted", "future", "failed"]


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The wait of a ``Retry`` is over."""


@dataclass(frozen=True, slots=True)
class SyncTimeout:
    """``GATEWAY_SYNC_TIMEOUT`` has passed since ``AwaitProof`` without a proof."""


@dataclass(frozen=True, slots=True)
class Restored:
    """etcd has another history: the cluster id is new, or a linearizable revision is lower than before."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Nothing needs this feed any more."""


FeedInput = Start | SnapshotTaken | SnapshotFailed | Probed | RetryDue | SyncTimeout | Restored | Stop | WatchInput
BackfillInput = WantBackfill | NoRoom | Probed | SyncTimeout | Stop | WatchInput


# Commands.
@dataclass(frozen=True, slots=True)
class OpenWatch:
    """Open a watch at *start* (0: from now). Close the other watch of this state machine first."""

    start: int
    stream_kind: StreamKind = "live"


@dataclass(frozen=True, slots=True)
class CloseWatch:
    """Close the watch, and pass on none of its messages any more."""


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Read the whole range at one linearizable revision."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask etcd whether *revision* is still readable."""

    revision: int


@dataclass(frozen=True, slots=True)
class TellRestored:
    """Send ``Restored`` to all feeds of the process: etcd has another history, and this feed alone can prove it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Wait for the backoff of *attempt*, then send ``RetryDue``."""

    attempt: int


@dataclass(frozen=True, slots=True)
class AwaitProof:
    """Ask for progress until ``EndProof``, and send ``SyncTimeout`` if that takes too long."""


@dataclass(frozen=True, slots=True)
class EndProof:
    """The proof has come, or is no longer needed."""


Command = OpenWatch | CloseWatch | TakeSnapshot | Probe | TellRestored | Retry | AwaitProof | EndProof
Commands = tuple[Command, ...]
