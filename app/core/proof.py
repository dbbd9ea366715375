"""How a feed's watch proves that nothing is missing, and the batches that are held back until then.

``feed`` explains the reasons for each plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from .events import Batch, Event, KeyValue
from .feed_messages import StreamKind


@dataclass(frozen=True, slots=True)
class Anchor:
    """A revision whose events the feed knows, and which the watch must bring again after a break.

    ``exact``: *events* are all its events. Otherwise they are those that a snapshot still held, and only the state is
    known between ``revision`` and ``snapshot_revision``.
    """

    revision: int
    events: Sequence[Event]
    exact: bool
    snapshot_revision: int

    def matches(self, batch: Batch) -> bool:
        """Whether *batch* is this revision with the events that the feed knows."""
        if batch.revision != self.revision:
            return False
        if self.exact:
            return batch.events == self.events
        return all(event in batch.events for event in self.events)

    def contradicts(self, batch: Batch) -> bool:
        """Whether *batch* is this revision in another history.

        A compaction at the revision removes its deletes and what they deleted, and some versions of etcd lose a delete.
        But the put that a key was left with stays, and no event is added.
        """
        if batch.revision != self.revision:
            return False
        last = {event.key: event for event in self.events}
        left = [event for event in last.values() if isinstance(event, KeyValue)]
        lacks = any(event not in batch.events for event in left)
        return lacks or (self.exact and any(event not in self.events for event in batch.events))


class Plan(Enum):
    """How a watch proves itself."""

    SNAPSHOT = "snapshot"  # the watch opens from now on, and then a snapshot is taken
    OVERLAP = "overlap"  # the watch starts at the anchor and must bring it again
    PROBE = "probe"  # the watch starts after the log's tip, and a Range at the tip must still succeed


class Oversized(Enum):
    """Whether a message over the limit belonged to this feed's watch."""

    NO = "no"
    MAYBE = "maybe"  # it broke a shared stream: the watch gets a dedicated stream until the case is clear
    CERTAIN = "certain"  # it broke the watch's dedicated stream: the next snapshot replaces what is too large


@dataclass(slots=True)
class Proof:
    """The unfinished proof of one watch, and the batches that are held back until the proof is complete."""

    plan: Plan
    most_bytes: int  # the limit of ``bytes``
    start: int = 0  # the revision at which the watch starts; 0: from now on
    floor: int = 0  # etcd must not compact anything above this revision during the proof
    target: int = 0  # the proof is complete when everything up to this revision has come
    stream_kind: StreamKind = "live"
    created: bool = False
    slow: bool = False  # etcd may still serve the watch from history: its batches may lack events
    late: bool = False  # the last message came late
    held: list[Batch] = field(default_factory=list)
    bytes: int = 0  # of the held batches

    def hold(self, found: Sequence[Batch]) -> bool:
        """Hold *found* back. Return False if the held batches are too large."""
        self.held.extend(found)
        self.bytes += sum(batch.size for batch in found)
        # A single revision may exceed the limit; several together may not.
        return self.bytes <= self.most_bytes or len(self.held) == 1

    def held_after(self, revision: int) -> list[Batch]:
        """Return the held batches above *revision*."""
        return [batch for batch in self.held if batch.revision > revision]
