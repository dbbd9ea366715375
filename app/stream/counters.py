"""What streams count: plain integers, which the metrics read at each scrape.

Each is added to when something happens. None is a sum over the open streams: such a sum falls when a stream ends before
its part is added.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from app.core.reader import Counts


@dataclass(slots=True)
class Counters:
    """Counts since the process began, except ``serving``."""

    opened: int = 0
    serving: Counter[str] = field(default_factory=Counter)  # open now, by sink
    bytes: int = 0
    handed: Counts = field(default_factory=Counts)  # what all readers were handed
    closed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
