"""One reader's way through the pieces of a flush: which ones are sent, and the bytes of the next one."""

from __future__ import annotations

from .flush import Flush
from .frames import Representation


class FlushReader:
    """See the module. ``start`` and ``end`` are the positions between which the flush takes the reader."""

    __slots__ = ("_flush", "_sent")

    def __init__(self, flush: Flush) -> None:
        self._flush = flush
        self._sent = 0  # pieces

    @property
    def start(self) -> int:
        """The position from which the flush began."""
        return self._flush.start

    @property
    def end(self) -> int:
        """The position that the last piece leads to."""
        return self._flush.end

    @property
    def over(self) -> bool:
        """Whether all pieces were returned."""
        return self._sent == len(self._flush.pieces)

    def read(self, representation: Representation) -> tuple[bytes, int]:
        """Return the next piece as bytes on the wire, and the number of its events. Call this only until ``over``."""
        number = self._sent
        self._sent += 1
        return self._flush.frame(number, representation), len(self._flush.pieces[number])
