"""The log of a feed: the last revisions of its range, one batch a revision.

Readers are positions in it, (generation, revision); nothing here grows with their number. Bounded by batches, bytes
and age, never evicting part of a revision, and always keeping the newest batch: a single revision larger than the bound
still reaches everyone who keeps up.

Theory of operation
    ``floor``  every event of the range with a revision above it, up to ``tip``, is in the log;
    ``tip``    how far the log is known to be complete (the last batch, or further by trusted progress);
    a new ``generation`` means that the history before is not known to continue: all its readers start anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .events import Batch
from .frames import batch_frame
from .sized import Sized

# How a reader is told of a batch: format, encoding, epoch.
Representation = tuple[str, str, str]
# Is asked before so many bytes are kept that can be made again; True counts them.
MayKeep = Callable[[int], bool]


def keep_all(_size: int) -> bool:
    """Memory does not matter."""
    return True


@dataclass(frozen=True, slots=True)
class LogSlice:
    """What a reader is sent in one go: it stood at *start*, and stands at *end* then."""

    start: int
    size: int  # asked for
    representation: Representation
    end: int
    data: bytes
    events: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a log may hold; whichever is reached first evicts."""

    batches: int = 4096
    bytes: int = 16 * 1024 * 1024
    age: float = 600.0  # seconds


class LogEntry:
    """A batch in a log."""

    __slots__ = ("at", "batch", "frames", "size")

    def __init__(self, batch: Batch, at: float) -> None:
        self.batch = batch
        self.at = at  # when the log took it in, in the log's own clock (seconds)
        self.size = batch.size  # with its frames
        # Its bytes on the wire: encoded once, however many read them.
        self.frames: dict[Representation, bytes] = {}


class Log(Sized):
    """See the module. All methods are synchronous and cost O(log n) or less, but for ``restart`` and ``prepend``."""

    __slots__ = (
        "_bounds",
        "_entries",
        "_revisions",
        "_slice",
        "bytes",
        "floor",
        "generation",
        "may_keep",
        "passing",
        "tip",
    )  # fmt: skip

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._entries: list[LogEntry] = []
        self._revisions: list[int] = []
        self.generation = 0
        self.floor = 0
        self.tip = 0
        self.bytes = 0
        self.may_keep: MayKeep = keep_all
        # The last that was asked for, as long as it is the answer: those who keep up all ask for the same.
        self._slice: LogSlice | None = None
        self.passing = 0  # bytes of that which are no batch's

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first(self) -> Batch | None:
        """The oldest batch it holds: nothing else lies between its floor and that."""
        return self._entries[0].batch if self._entries else None

    @property
    def last(self) -> Batch | None:
        """The newest batch it holds."""
        return self._entries[-1].batch if self._entries else None

    def restart(self, revision: int) -> None:
        """Begin a new generation at the snapshot of *revision*."""
        self.generation += 1
        self._entries, self._revisions, self.bytes = [], [], 0
        self._forget_slice()
        self.floor = self.tip = revision

    def append(self, batch: Batch, now: float) -> None:
        """Take in the next complete revision.

        Raises:
            ValueError: it is not above the tip; then nothing is changed.
        """
        if batch.revision <= self.tip:
            msg = f"batch {batch.revision} is not above the tip {self.tip}"
            raise ValueError(msg)
        self._forget_slice()
        self._entries.append(LogEntry(batch, now))
        self._revisions.append(batch.revision)
        self.bytes += batch.size
        self.tip = batch.revision
        self.trim(now)

    def advance(self, revision: int) -> None:
        """Move the tip by trusted progress; never back."""
        self.tip = max(self.tip, revision)

    def prepend(self, older: Sequence[Batch], floor: int, now: float) -> None:
        """Add proven history below the floor: all batches of (*floor*, ``self.floor``], in order.

        What does not fit the bounds is cut at its old end.
        """
        kept = [batch for batch in older if floor < batch.revision <= self.floor]
        self._forget_slice()
        self._entries[:0] = [LogEntry(batch, now) for batch in kept]
        self._revisions[:0] = [batch.revision for batch in kept]
        self.bytes += sum(batch.size for batch in kept)
        self.floor = floor
        self.trim(now)

    def trim(self, now: float) -> None:
        """Evict what is over a bound, oldest first; the newest batch stays but for its age."""
        bounds, count, drop, size = self._bounds, len(self._entries), 0, self.bytes
        while count - drop > 1 and (count - drop > bounds.batches or size > bounds.bytes):
            size -= self._entries[drop].size
            drop += 1
        while drop < count and now - self._entries[drop].at > bounds.age:
            drop += 1
        self._evict(drop)

    def reclaim(self, size: int) -> int:
        """Give back at least *size* bytes if that can be, oldest first, keeping the newest batch; bytes given back."""
        drop, given = 0, 0
        while given < size and drop < len(self._entries) - 1:
            given += self._entries[drop].size
            drop += 1
        self._evict(drop)
        return given

    def clear(self) -> int:
        """Forget all of it, and keep the position; bytes given back."""
        given = self.bytes
        self._evict(len(self._entries))
        self.floor = self.tip
        return given

    def _evict(self, drop: int) -> None:
        if drop:
            self._forget_slice()
            self.floor = self._revisions[drop - 1]
            self.bytes -= sum(entry.size for entry in self._entries[:drop])
            del self._entries[:drop]
            del self._revisions[:drop]

    def slice(self, revision: int, size: int, representation: Representation) -> LogSlice | None:
        """What a reader at *revision* is sent next: about *size* bytes at the most, but whole revisions and at least
        one; None when there is none.

        Only to be asked for revisions that the log ``covers``.
        """
        last = self._slice
        if last is None or last.start != revision or last.size != size or last.representation != representation:
            last = self._make_slice(revision, size, representation)
            self._forget_slice()
            if last is not None:
                self._slice, self.passing = last, 0 if self._is_frame(last) else len(last.data)
        return last

    def _forget_slice(self) -> None:
        self._slice, self.passing = None, 0

    def _is_frame(self, log_slice: LogSlice) -> bool:
        """Whether its bytes are those that its one entry keeps."""
        number = bisect_right(self._revisions, log_slice.end) - 1
        return self._entries[number].frames.get(log_slice.representation) is log_slice.data

    def _make_slice(self, revision: int, size: int, representation: Representation) -> LogSlice | None:
        found = self._entries_after(revision, size)
        if not found:
            return None
        if len(found) > 1 and found[-1].size > size:
            # It goes alone, next: joined with others it would be copied for each reader, however large it is.
            found = found[:-1]
        frames = [self._frame(entry, representation) for entry in found]
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        events = sum(len(entry.batch.events) for entry in found)
        return LogSlice(revision, size, representation, found[-1].batch.revision, data, events)

    def _frame(self, entry: LogEntry, representation: Representation) -> bytes:
        """An entry as bytes: encoded once, and counted for as long as the log holds it."""
        frame = entry.frames.get(representation)
        if frame is None:
            frame = batch_frame(entry.batch, *representation)
            # While room is made the log may lose its old end, and the entry with it.
            if self.may_keep(len(frame)) and entry.batch.revision > self.floor:
                entry.frames[representation] = frame
                entry.size += len(frame)
                self.bytes += len(frame)
        return frame

    def covers(self, revision: int) -> bool:
        """Whether a reader at *revision* finds all that it lacks here."""
        return revision >= self.floor

    def after(self, revision: int, size: int) -> Sequence[Batch]:
        """The batches above *revision*, up to about *size* bytes of them but at least one; empty when there is none.

        Only to be asked for revisions that the log ``covers``.
        """
        return [entry.batch for entry in self._entries_after(revision, size)]

    def _entries_after(self, revision: int, size: int) -> list[LogEntry]:
        start = bisect_right(self._revisions, revision)
        stop = start
        while stop < len(self._entries) and (stop == start or size > 0):
            size -= self._entries[stop].size
            stop += 1
        return self._entries[start:stop]

    def lacks_since(self, revision: int) -> float | None:
        """When the oldest batch came that a reader at *revision* has still to read, in the log's clock; None: none.

        Minus infinity when that batch is gone.
        """
        if revision < self.floor:
            return float("-inf")
        start = bisect_right(self._revisions, revision)
        return self._entries[start].at if start < len(self._entries) else None

    def behind(self, revision: int) -> int:
        """How many revisions of this range a reader at *revision* has still to read."""
        return len(self._revisions) - bisect_right(self._revisions, revision)
