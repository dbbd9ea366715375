"""How streams are sent away when a gateway stops: one after the other, so that their clients do not come to the other
replicas as one storm.
"""

from __future__ import annotations


class Drain:
    """*count* streams, no more than *pace* a second of them; faster when *window* seconds would not do for that."""

    def __init__(self, count: int, *, window: float, pace: float) -> None:
        self.count = count
        self.seconds = min(window, count / pace)

    def due(self, elapsed: float) -> int:
        """How many are to be gone *elapsed* seconds after the first."""
        if elapsed >= self.seconds:
            return self.count
        return min(self.count, 1 + int(self.count * elapsed / self.seconds))
