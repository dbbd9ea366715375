"""The settings of feeds, channels and the registry."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.log import Bounds


@dataclass(frozen=True, slots=True)
class Limits:
    """A group of settings, by name (``Settings.group``). ``log`` is a group too: the names that begin with LOG."""

    max_subscribers: int
    max_feeds: int
    max_channels: int
    linger: float  # seconds, like all times here
    log: Bounds
    reach_back: int
    sync_timeout: float
    stale_after: float
    drain_window: float
    drain_pace: int
