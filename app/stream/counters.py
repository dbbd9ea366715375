"""The counters of all streams: plain integers, which the metrics read at each scrape.

Each counter is increased when something happens. No counter is a sum over the open streams: such a sum falls when a
stream ends before its part is added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.reader import Counts
from ..watch.subscriber import Subscriber
from .sink import SINKS


@dataclass(slots=True)
class Counters:
    """Counts since the process began, except ``serving``, the open streams, and ``held``, the held answers."""

    opened: int = 0
    serving: Counter[str] = field(default_factory=Counter)  # by sink
    held: int = 0  # answers of /v1/kv under way whose requests have a subscriber
    bytes: int = 0
    handed: Counts = field(default_factory=Counts)  # what all readers have returned
    closed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def hold(self, subscriber: Subscriber) -> Subscriber:
        """Count a held answer, from now until its subscriber is released. Return the subscriber."""
        self.held += 1
        release = subscriber.on_release

        def released(subscriber: Subscriber) -> None:
            self.held -= 1  # first: if the release fails, the subscriber must not count as served
            release(subscriber)

        subscriber.on_release = released
        return subscriber

    def statistics(self) -> StreamStatistics:
        """Return a snapshot of the counts."""
        return StreamStatistics(
            opened=self.opened,
            serving={name: self.serving[name] for name in SINKS},
            held=self.held,
            bytes=self.bytes,
            items=self.handed.items,
            resets=dict(self.handed.resets),
            closed=dict(self.closed),
            refused=dict(self.refused),
        )


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """The values of ``Counters`` at one moment. ``serving`` is by sink, the last three are by reason."""

    opened: int
    serving: Mapping[str, int]
    held: int
    bytes: int
    items: int
    resets: Mapping[str, int]
    closed: Mapping[str, int]
    refused: Mapping[str, int]
