"""The schedule by which a stopping gateway closes its streams.

The gateway closes one stream after the other, so that the clients do not all reconnect to the other replicas at once.
"""

from __future__ import annotations


class DrainSchedule:
    """Closes *count* streams at *pace* a second, or faster if that would take longer than *window* seconds."""

    def __init__(self, count: int, *, window: float, pace: float) -> None:
        self.count = count
        self.seconds = min(window, count / pace)

    def due(self, elapsed: float) -> int:
        """Return how many streams must be closed *elapsed* seconds after the first."""
        if elapsed >= self.seconds:
            return self.count
        return min(self.count, 1 + int(self.count * elapsed / self.seconds))
