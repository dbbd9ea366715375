"""One subscriber of a feed, as the registry and /v1/feeds see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.watch.notifier import Bell

if TYPE_CHECKING:
    from app.core.reader import Reader
    from app.watch.feed import Feed


@dataclass(slots=True, eq=False)
class Subscriber:
    """A lease on a feed, who holds it, and the bell that wakes it."""

    feed: Feed
    address: str
    user_agent: str
    request_id: str
    since: float  # monotonic seconds
    bell: Bell = field(init=False)
    reader: Reader | None = None
    # Why the registry wants it to end: a reason of the wire contract's ``close``.
    closing: str | None = None
    bytes: int = 0

    def __post_init__(self) -> None:
        self.bell = Bell(self.feed.notifier)

    @property
    def behind(self) -> int:
        """Revisions of its range that it has still to be sent."""
        return self.reader.behind if self.reader is not None else 0

    def age(self, now: float) -> float:
        """Seconds since it came."""
        return now - self.since

    def close(self, reason: str) -> None:
        """Ask it to end; it is woken, says why, and leaves by itself."""
        if self.closing is None:
            self.closing = reason
        self.bell.ring()
