"""What streams count as they go: plain integers, read by the metrics when somebody scrapes.

Each is added to when something happens, and nothing is ever summed over the streams that are there: a counter that is
such a sum falls when a stream is no longer among them and has not yet handed in its part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.core.reader import Counts
from app.stream.sink import SINKS


@dataclass(slots=True)
class Counters:
    """Since the process began, but for ``serving``."""

    opened: int = 0
    serving: Counter[str] = field(default_factory=Counter)  # now, by sink
    bytes: int = 0
    handed: Counts = field(default_factory=Counts)  # to all readers
    closed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def statistics(self) -> StreamStatistics:
        """A copy that stays as it is."""
        return StreamStatistics(
            opened=self.opened,
            serving={name: self.serving[name] for name in SINKS},
            bytes=self.bytes,
            items=self.handed.items,
            resets=dict(self.handed.resets),
            closed=dict(self.closed),
            refused=dict(self.refused),
        )


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """What ``Counters`` had counted at one moment; ``serving`` is by sink, the last three by reason."""

    opened: int
    serving: Mapping[str, int]
    bytes: int
    items: int
    resets: Mapping[str, int]
    closed: Mapping[str, int]
    refused: Mapping[str, int]
