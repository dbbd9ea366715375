"""What streams count as they go: plain integers, read by the metrics when somebody scrapes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Since the process began, but for ``serving``."""

    opened: int = 0
    serving: Counter[str] = field(default_factory=Counter)  # now, by sink
    deliveries: int = 0  # events and snapshot items written to subscribers
    bytes: int = 0
    resets: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
