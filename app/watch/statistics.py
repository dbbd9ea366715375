"""What feeds, channels and the registry hold at one moment, as frozen values for the metrics and ``/v1/feeds``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.feed import State
from ..core.keys import KeyRange
from ..core.selection import Ranges


@dataclass(frozen=True, slots=True)
class SubscriberStatistics:
    """One subscriber."""

    address: str
    user_agent: str
    request_id: str
    age: float  # seconds since it subscribed
    behind: int  # revisions of its range that it has not been sent yet
    bytes: int  # written to it


@dataclass(frozen=True, slots=True)
class FeedStatistics:
    """One feed, with a summary of its subscribers."""

    range: KeyRange
    state: State
    started: float  # wall clock, seconds
    revision: int  # the revision up to which its log is known to be complete
    keys: int
    bytes: int
    staleness: float  # seconds since etcd last proved it current
    stale: bool
    backfilling: bool  # a second watch reads history for old cursors
    trouble: str  # why it is not live; empty if the reason is not known
    pinned: bool
    reserved: int  # bytes that a pinned feed keeps free for its next state
    holders: tuple[Ranges, ...]  # the channels that hold it
    subscribers: int  # of all its channels
    lag: int  # revisions that the slowest subscriber has not been sent yet

    @property
    def lingering(self) -> bool:
        """Whether the feed has no subscriber, and ends if none comes."""
        return self.subscribers == 0 and not self.pinned


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """One channel, with a summary of its subscribers."""

    ranges: Ranges
    feeds: tuple[KeyRange, ...]  # that it is made from
    revision: int  # the revision up to which its log is known to be complete
    keys: int
    bytes: int  # beside what its feeds hold
    state: Literal["waiting", "live", "stale"]  # waiting: for its first view
    trouble: str  # why it is not live; empty if the reason is not known
    subscribers: int
    lag: int  # revisions that the slowest subscriber has not been sent yet

    @property
    def lingering(self) -> bool:
        """Whether the channel has no subscriber."""
        return self.subscribers == 0


@dataclass(frozen=True, slots=True)
class PinStatistics:
    """One pinned range (``GATEWAY_PIN``).

    ``state``: ``waiting`` until the pin has been live for the first time; ``unavailable`` while the gateway cannot hold
    the pin, and refuses its ranges; otherwise ``held``, and the pin's feed has the details.
    """

    range: KeyRange
    state: Literal["waiting", "held", "unavailable"]
    trouble: str  # why it is not held; empty if the reason is not known


@dataclass(frozen=True, slots=True)
class RegistryStatistics:
    """All feeds, and counts since the process began."""

    channels: int  # 10,000 of them take long to describe: ``Registry.channel_statistics`` does so for /v1/feeds
    channels_lingering: int
    feeds: tuple[FeedStatistics, ...]
    subscribers: int  # including those that are leaving
    bytes: int  # held by all feeds, including what is being read for them
    bytes_max: int  # the limit of the budget that feeds and REST answers share
    draining: bool
    feeds_started: int
    events: int  # published by all feeds, ended ones included
    pins: tuple[PinStatistics, ...]  # all, in the order of the setting
