"""What streams count as they go: plain integers, read by the metrics when somebody scrapes.

Each is added to when something happens, and nothing is ever summed over the streams that are there: a counter that is
such a sum falls when a stream is no longer among them and has not yet handed in its part.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from app.core.reader import Counts


@dataclass(slots=True)
class Counters:
    """Since the process began, but for ``serving``."""

    opened: int = 0
    serving: Counter[str] = field(default_factory=Counter)  # now, by sink
    bytes: int = 0
    handed: Counts = field(default_factory=Counts)  # to all readers
    closed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
