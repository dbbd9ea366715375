"""How a feed's watch proves that nothing is missing, and what it said until then, which is held back.

``feed`` has the reasons for each plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from .events import Batch, Event
from .feed_messages import StreamKind


@dataclass(frozen=True, slots=True)
class Anchor:
    """A revision whose events we know, to be seen again after a break.

    ``exact``: *events* are all of them. Otherwise they are those that a snapshot still held, and what lies between
    ``revision`` and ``snapshot_revision`` is known as state only.
    """

    revision: int
    events: Sequence[Event]
    exact: bool
    snapshot_revision: int

    def matches(self, batch: Batch) -> bool:
        """Whether *batch* is this revision as we know it."""
        if batch.revision != self.revision:
            return False
        if self.exact:
            return batch.events == self.events
        return all(event in batch.events for event in self.events)


class Plan(Enum):
    """How a watch proves itself."""

    SNAPSHOT = "snapshot"  # the watch opens from now on, then a snapshot is taken
    OVERLAP = "overlap"  # the watch starts at the anchor and must bring it again
    PROBE = "probe"  # the watch starts after the log's tip, and a Range at the tip must still answer


class Oversized(Enum):
    """Whether a message over the limit was of this feed's watch."""

    NO = "no"
    MAYBE = "maybe"  # it broke a stream that the watch shared: the watch gets a stream to itself, until it is clear
    CERTAIN = "certain"  # it broke the watch's own stream: the next snapshot stands for what is too large


@dataclass(slots=True)
class Proof:
    """The proof under way of one watch, and the batches that are held back until it is complete."""

    plan: Plan
    most_bytes: int  # of what is held back
    start: int = 0  # the revision that the watch starts at; 0: from now on
    floor: int = 0  # nothing above it may be compacted while we read
    target: int = 0  # complete when everything up to it was said
    stream_kind: StreamKind = "live"
    created: bool = False
    behind: bool = False  # the watch says that etcd may still serve it from history: what it brings may lack something
    late: bool = False  # its last message came late
    held: list[Batch] = field(default_factory=list)
    bytes: int = 0  # of what is held back

    def hold(self, found: Sequence[Batch]) -> bool:
        """Keep *found* aside. False when it is too much."""
        self.held.extend(found)
        self.bytes += sum(batch.size for batch in found)
        # One revision may be larger than the bound; two that together are must not both be.
        return self.bytes <= self.most_bytes or len(self.held) == 1

    def held_after(self, revision: int) -> list[Batch]:
        """What is held back of later revisions than *revision*."""
        return [batch for batch in self.held if batch.revision > revision]
