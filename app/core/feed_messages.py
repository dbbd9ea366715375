"""What goes into a feed's two state machines, and what comes out: its own life (``feed``), and the read of older
history beside it (``backfill``). Each has a watch of its own, which these messages are about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .multiplex import WatchInput
from .snapshot import Snapshot

# Which stream a watch goes to: one of those that live ones share, the one for histories, or one that it has to itself.
StreamKind = Literal["live", "catch-up", "dedicated"]


# Inputs beside those of the watch itself.
@dataclass(frozen=True, slots=True)
class Start:
    """Somebody wants this feed. *backfill*: somebody with a cursor does."""

    backfill: bool


@dataclass(frozen=True, slots=True)
class WantBackfill:
    """A joiner's cursor lies below the log's floor. *revision*: of the cursor, where it is known."""

    revision: int | None = None


@dataclass(frozen=True, slots=True)
class NoRoom:
    """What is held back does not fit the memory that all feeds share."""


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """All pages of the Range, at one revision."""

    snapshot: Snapshot
    cluster_id: int


@dataclass(frozen=True, slots=True)
class SnapshotFailed:
    """The Range failed for good; the shell has logged why."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What a count-only Range at the asked revision said."""

    outcome: Literal["ok", "compacted", "future", "failed"]


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The wait of a ``Retry`` is over."""


@dataclass(frozen=True, slots=True)
class SyncTimeout:
    """``GATEWAY_SYNC_TIMEOUT`` has passed since ``AwaitProof``, without proof."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The cluster's history is another one: a new cluster id, or a linearizable revision that fell."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Nobody wants this feed any more."""


FeedInput = Start | SnapshotTaken | SnapshotFailed | Probed | RetryDue | SyncTimeout | Restored | Stop | WatchInput
BackfillInput = WantBackfill | NoRoom | Probed | SyncTimeout | Stop | WatchInput


# Commands.
@dataclass(frozen=True, slots=True)
class OpenWatch:
    """Open a watch at *start* (0: from now); any other of this machine is closed before."""

    start: int
    stream_kind: StreamKind = "live"


@dataclass(frozen=True, slots=True)
class CloseWatch:
    """Close the watch; nothing of it is to be fed back any more."""


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Read the whole range at one linearizable revision."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask whether *revision* is still readable."""

    revision: int


@dataclass(frozen=True, slots=True)
class Retry:
    """Wait, by the backoff of *attempt*, then say ``RetryDue``."""

    attempt: int


@dataclass(frozen=True, slots=True)
class AwaitProof:
    """Ask for progress until ``EndProof``, and say ``SyncTimeout`` if that takes too long."""


@dataclass(frozen=True, slots=True)
class EndProof:
    """The proof came, or is no longer wanted."""


Command = OpenWatch | CloseWatch | TakeSnapshot | Probe | Retry | AwaitProof | EndProof
Commands = tuple[Command, ...]
