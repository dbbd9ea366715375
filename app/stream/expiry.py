"""When the credentials that have opened a stream expire: the client is told ahead, and the stream is closed then.

The wall clock decides. It may be stepped while a stream lives, so each look computes anew how long the stream may live.
"""

from __future__ import annotations

from ..core.timestamps import rfc3339
from ..ports import Permit

# Seconds before the expiry at which the client is told: enough to fetch a new token and to open a second stream.
NOTICE = 30.0


class Expiry:
    """The expiry of one stream, in wall-clock seconds. ``look`` at it now and then."""

    __slots__ = ("_at", "_told", "notice_due", "over")

    def __init__(self, at: float, wall: float) -> None:
        self._at = at
        self._told = False
        self.look(wall)

    @classmethod
    def of(cls, permit: Permit | None, wall: float) -> Expiry | None:
        """Return the expiry of a stream with this permit; None if the stream never expires."""
        return cls(permit.expires, wall) if permit is not None and permit.expires is not None else None

    def look(self, wall: float) -> None:
        """Find out what is due at *wall*, the wall clock's seconds."""
        self.notice_due = not self._told and wall >= self._at - NOTICE
        self.over = wall >= self._at

    def next_look(self, wall: float) -> float:
        """Return the seconds until the next look."""
        due = self._at if self._told or self.notice_due else self._at - NOTICE
        return max(0.0, due - wall)

    def take_notice(self) -> str:
        """Return the expiry as the client is told. The client is told once."""
        self._told, self.notice_due = True, False
        return rfc3339(self._at)
