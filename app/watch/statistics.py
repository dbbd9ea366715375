"""What feeds and the registry hold at one moment, as frozen values: for the metrics and ``/v1/feeds``."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.feed import State
from ..core.keys import KeyRange


@dataclass(frozen=True, slots=True)
class SubscriberStatistics:
    """One subscriber."""

    address: str
    user_agent: str
    request_id: str
    age: float  # seconds since it came
    behind: int  # revisions of its range that it has still to be sent
    bytes: int  # written to it


@dataclass(frozen=True, slots=True)
class FeedStatistics:
    """One feed, and what its subscribers come to."""

    range: KeyRange
    state: State
    started: float  # wall clock, seconds
    revision: int  # how far its log is known to be complete
    keys: int
    bytes: int
    staleness: float  # seconds since etcd last proved it current
    stale: bool
    backfilling: bool  # a second watch reads history for old cursors
    trouble: str  # why it is not live; empty if nothing is known
    subscribers: int
    lag: int  # revisions that the slowest subscriber has still to be sent

    @property
    def lingering(self) -> bool:
        """Whether nobody follows it."""
        return self.subscribers == 0


@dataclass(frozen=True, slots=True)
class RegistryStatistics:
    """All feeds, and what was counted since the process began."""

    feeds: tuple[FeedStatistics, ...]
    subscribers: int  # those that are leaving included
    bytes: int  # of all feeds, what is being read for them included
    bytes_max: int  # of the budget that feeds and REST answers share
    draining: bool
    feeds_started: int
    events: int  # published by all feeds there were
