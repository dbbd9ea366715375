"""A flush: the newest event of each key that has changed in a passage of the log (``mode=latest``).

Must live here: which events of a passage a client needs. Must not: when a flush is due (``log``), a reader's position
(``reader``).

Theory of operation
    A flush takes a mirror from its *start*, the position of the reader, to its *end*, the log's tip when the flush was
    made. The flush carries the newest event of each key that changed in between, in the order of revisions. A mirror
    that has only a part of them matches no revision. So they are sent like the events of one revision: all but the last
    have ``more``, and only the last has an id, which is *end*.

    A flush may be as large as the log. It is encoded piece by piece, as the subscriber takes it. A slow subscriber
    holds references to the events until then, and at most one piece in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .events import Batch, Event
from .frames import Representation, events_frame

# Bytes of a piece at most (``Event.size``), unless a single event has more: one write sends one piece.
PIECE_SIZE = 64 * 1024


def coalesce(batches: Sequence[Batch]) -> list[Event]:
    """Return the newest event of each key in *batches*, in the order of revisions."""
    newest: dict[bytes, Event] = {}
    for batch in reversed(batches):
        for event in reversed(batch.events):
            newest.setdefault(event.key, event)
    return list(reversed(newest.values()))


class Flush:
    """One flush, encoded. All readers at the same position share it, and its bytes.

    Args:
        batches: all of the log in (*start*, *end*]; at least one.
        may_keep: asked before encoded bytes are kept.
    """

    __slots__ = ("_frames", "_may_keep", "_shared", "bytes", "end", "pieces", "start")

    def __init__(self, batches: Sequence[Batch], start: int, end: int, may_keep: Callable[[int], bool]) -> None:
        self.start = start
        self.end = end
        self.pieces = _pieces(coalesce(batches))
        self.bytes = 0  # encoded bytes that are kept
        self._may_keep = may_keep
        self._frames: dict[tuple[int, Representation], bytes] = {}
        self._shared = True

    def frame(self, number: int, representation: Representation) -> bytes:
        """Return a piece as bytes on the wire. While the log holds the flush, the bytes are encoded once."""
        frame = self._frames.get((number, representation))
        if frame is None:
            form, encoding, epoch, keys_only = representation
            last = number == len(self.pieces) - 1
            cursor = f"{epoch}-{self.end}" if last else None
            frame = events_frame(self.pieces[number], form, encoding, cursor, keys_only=keys_only)
            # Making room may make the log forget this flush.
            if self._shared and self._may_keep(len(frame)) and self._shared:
                self._frames[number, representation] = frame
                self.bytes += len(frame)
        return frame

    def forget(self) -> None:
        """Keep no bytes from now on: the log has moved on, and only slow readers need the rest of this flush."""
        self._shared, self.bytes = False, 0
        self._frames.clear()


def _pieces(events: Sequence[Event]) -> list[Sequence[Event]]:
    """Return *events* in pieces of at most about ``PIECE_SIZE``."""
    pieces: list[Sequence[Event]] = []
    begin = size = 0
    for number, event in enumerate(events):
        if number > begin and size + event.size > PIECE_SIZE:
            pieces.append(events[begin:number])
            begin, size = number, 0
        size += event.size
    return [*pieces, events[begin:]]
