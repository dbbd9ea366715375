"""The log of a feed: the last revisions of its range, one batch per revision.

Readers are positions in the log, (generation, revision); nothing here grows with their number. The log is bounded by
batches, bytes and age, and never evicts a part of a revision. Only age evicts the newest batch, so that even a single
revision larger than the bound reaches every reader that keeps up.

Theory of operation
    ``floor``  the log has every event of the range with a revision above ``floor`` and up to ``tip``;
    ``tip``    the log is known to be complete up to here (the last batch, or further by trusted progress);
    a new ``generation`` means that the earlier history is not known to continue: all its readers start anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .always_true import AlwaysTrue
from .events import Batch
from .flush import Flush
from .frames import Representation, batch_frame

# Asked before this many bytes are kept that could be encoded again. True: the bytes are counted, and may be kept.
MayKeep = Callable[[int], bool]
EVERYTHING = 1 << 62  # bytes
# Memory of a frame that an entry keeps, beside its bytes: the object, and its place in a dict. Measured with
# tracemalloc on CPython 3.11: 217 bytes for the first one of an entry.
FRAME_OVERHEAD = 232


def keep_all(_size: int) -> bool:
    """Keep everything: the default when memory is not limited."""
    return True


@dataclass(frozen=True, slots=True)
class LogSlice:
    """The bytes that a reader at *start* receives in one read, and the position *end* that they lead to."""

    start: int
    size: int  # the size requested
    representation: Representation
    end: int
    data: bytes
    events: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of a log. The first that is reached evicts."""

    batches: int = 4096
    bytes: int = 16 * 1024 * 1024
    age: float = 600.0  # seconds


class LogEntry:
    """A batch in a log."""

    __slots__ = ("at", "batch", "frames", "size")

    def __init__(self, batch: Batch, at: float) -> None:
        self.batch = batch
        self.at = at  # when the batch arrived, by the log's own clock (seconds)
        self.size = batch.size  # of the batch and its frames
        # The batch as bytes on the wire: encoded once, however many readers receive it.
        self.frames: dict[Representation, bytes] = {}

    def wire_size(self, representation: Representation | None = None) -> int:
        """About how many bytes the batch has in a stream. The log of a selection counts only references as its size.

        The frames of other representations say little: a megabyte may be deflated to a thousand bytes.
        """
        frame = self.frames.get(representation) if representation is not None else None
        return len(frame) if frame is not None else sum(event.wire_size for event in self.batch.events)


class Log(AlwaysTrue):
    """See the module. All methods are synchronous and cost O(log n) or less, except ``restart`` and ``prepend``."""

    __slots__ = (
        "_bounds",
        "_edge",
        "_entries",
        "_last_flush",
        "_revisions",
        "_slice_bytes",
        "_start",
        "bytes",
        "floor",
        "generation",
        "last_slice",
        "may_keep",
        "overfull",
        "tip",
    )  # fmt: skip

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._entries: list[LogEntry] = []
        self._revisions: list[int] = []
        self.generation = 0
        self.floor = 0
        self.tip = 0
        self._start = 0  # the revision at which the generation began
        self._edge = 0  # nothing up to here may be held: see ``forget``
        # The newest revision of this generation that a bound of size has evicted; 0 if none, or if batches have left
        # for another reason since. History below it would be evicted again at once: the log is still full.
        self.overfull = 0
        self.bytes = 0
        self.may_keep: MayKeep = keep_all
        # The last slice, while it is still valid: all readers that keep up request the same slice.
        self.last_slice: LogSlice | None = None
        self._slice_bytes = 0  # bytes of that slice which no entry owns
        # The last flush, while it is still valid: readers that keep up are flushed at the same positions.
        self._last_flush: Flush | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first(self) -> Batch | None:
        """The oldest batch in the log. The range has no other event between the floor and this batch."""
        return self._entries[0].batch if self._entries else None

    @property
    def last(self) -> Batch | None:
        """The newest batch in the log."""
        return self._entries[-1].batch if self._entries else None

    def restart(self, revision: int) -> None:
        """Begin a new generation at the snapshot of *revision*."""
        self.generation += 1
        self._entries, self._revisions, self.bytes = [], [], 0
        self._forget_slice()
        self.floor = self.tip = self._start = self._edge = revision
        self.overfull = 0

    def append(self, batch: Batch, now: float) -> None:
        """Add the next complete revision.

        Raises:
            ValueError: the revision is not above the tip; nothing was changed.
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
        """Move the tip forward by trusted progress. The tip never moves back."""
        self.tip = max(self.tip, revision)

    def prepend(self, older: Sequence[Batch], floor: int, now: float) -> None:
        """Add proven history below the floor: all batches of (*floor*, ``self.floor``], in order.

        If the result exceeds the bounds, the oldest batches are evicted.
        """
        kept = [batch for batch in older if floor < batch.revision <= self.floor]
        self._forget_slice()
        self._entries[:0] = [LogEntry(batch, now) for batch in kept]
        self._revisions[:0] = [batch.revision for batch in kept]
        self.bytes += sum(batch.size for batch in kept)
        self.floor = floor
        self.trim(now)

    def trim(self, now: float) -> None:
        """Evict the oldest batches while a bound is exceeded. Only age evicts the newest batch."""
        bounds, count, drop, size = self._bounds, len(self._entries), 0, self.bytes
        while count - drop > 1 and (count - drop > bounds.batches or size > bounds.bytes):
            size -= self._entries[drop].size
            drop += 1
        overfull = self._revisions[drop - 1] if drop else self.overfull
        while drop < count and now - self._entries[drop].at > bounds.age:
            drop, overfull = drop + 1, 0
        self._evict(drop)
        self.overfull = overfull

    def reclaim(self, size: int) -> int:
        """Evict the oldest batches until *size* bytes are free, but keep the newest. Return the bytes freed."""
        drop, freed = 0, 0
        while freed < size and drop < len(self._entries) - 1:
            freed += self._entries[drop].size
            drop += 1
        self._evict(drop)
        self.overfull = 0
        return freed

    def clear(self) -> int:
        """Drop all batches, and keep the position. Return the bytes freed."""
        freed = self.bytes
        self._evict(len(self._entries))
        self.floor, self.overfull = self.tip, 0
        return freed

    def forget(self, revision: int) -> None:
        """Evict all batches up to *revision*. The floor moves only as far as the batches that are evicted."""
        self._edge = max(self._edge, revision)
        if self._revisions and self._revisions[0] <= revision:
            self._evict(bisect_right(self._revisions, revision))

    def _evict(self, drop: int) -> None:
        if drop:
            self._forget_slice()
            self.floor = self._revisions[drop - 1]
            self.bytes -= sum(entry.size for entry in self._entries[:drop])
            del self._entries[:drop]
            del self._revisions[:drop]

    def slice(self, revision: int, size: int, representation: Representation) -> LogSlice | None:
        """Return what a reader at *revision* receives next; None if there is nothing.

        The slice has about *size* bytes at most, but always whole revisions and at least one. The log must cover
        *revision*.
        """
        last = self.last_slice
        if last is None or last.start != revision or last.size != size or last.representation != representation:
            last = self._make_slice(revision, size, representation)
            self.last_slice, self._slice_bytes = None, 0
            if last is not None:
                self.last_slice, self._slice_bytes = last, 0 if self._is_frame(last) else len(last.data)
        return last

    def flush_from(self, revision: int) -> Flush | None:
        """Return all that a reader at *revision* lacks, coalesced by key; None if there is nothing.

        The log must cover *revision*.
        """
        last = self._last_flush
        if last is None or last.start != revision:
            batches = self.after(revision, EVERYTHING)
            if not batches:
                return None
            if last is not None:
                last.forget()
            self._last_flush = last = Flush(batches, revision, self.tip, self.may_keep)
        return last

    @property
    def cached_bytes(self) -> int:
        """Bytes that the log keeps for its readers, and that no entry owns."""
        return self._slice_bytes + (self._last_flush.bytes if self._last_flush is not None else 0)

    def _forget_slice(self) -> None:
        self.last_slice, self._slice_bytes = None, 0
        if self._last_flush is not None:
            self._last_flush.forget()
            self._last_flush = None

    def _is_frame(self, log_slice: LogSlice) -> bool:
        """Whether the bytes of the slice are the bytes that its only entry keeps."""
        number = bisect_right(self._revisions, log_slice.end) - 1
        # Making room for another frame of the slice may have evicted that entry.
        return number >= 0 and self._entries[number].frames.get(log_slice.representation) is log_slice.data

    def _make_slice(self, revision: int, size: int, representation: Representation) -> LogSlice | None:
        found = self._entries_after(revision, size, representation)
        if not found:
            return None
        if len(found) > 1 and found[-1].wire_size(representation) > size:
            # Send the large batch alone, next time: joined with others, it would be copied for each reader, however
            # large it is.
            found = found[:-1]
        frames = [self._frame(entry, representation) for entry in found]
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        events = sum(len(entry.batch.events) for entry in found)
        return LogSlice(revision, size, representation, found[-1].batch.revision, data, events)

    def _frame(self, entry: LogEntry, representation: Representation) -> bytes:
        """Return an entry as bytes. They are encoded once, and counted as long as the log holds the entry."""
        frame = entry.frames.get(representation)
        if frame is None:
            form, encoding, epoch, keys_only = representation
            frame = batch_frame(entry.batch, form, encoding, epoch, keys_only=keys_only)
            size = len(frame) + FRAME_OVERHEAD
            # Making room may evict the oldest entries, and this entry with them.
            if self.may_keep(size) and entry.batch.revision > self.floor:
                entry.frames[representation] = frame
                entry.size += size
                self.bytes += size
        return frame

    def covers(self, revision: int) -> bool:
        """Whether the log has all events that a reader at *revision* lacks."""
        return revision >= self.floor

    def after(self, revision: int, size: int) -> Sequence[Batch]:
        """Return the batches above *revision*: about *size* bytes of them in a stream, but at least one.

        Empty if there is none. The log must cover *revision*.
        """
        return [entry.batch for entry in self._entries_after(revision, size)]

    def _entries_after(self, revision: int, size: int, representation: Representation | None = None) -> list[LogEntry]:
        start = bisect_right(self._revisions, revision)
        if size >= EVERYTHING:
            return self._entries[start:]
        stop = start
        while stop < len(self._entries) and (stop == start or size > 0):
            size -= self._entries[stop].wire_size(representation)
            stop += 1
        return self._entries[start:stop]

    def lacks_since(self, revision: int) -> float | None:
        """Return when the oldest batch arrived that a reader at *revision* has not read, by the log's clock.

        None if the reader has read everything. Minus infinity if the log has evicted that batch.
        """
        if revision < self.floor:
            return float("-inf")
        start = bisect_right(self._revisions, revision)
        return self._entries[start].at if start < len(self._entries) else None

    def flush_due(self, revision: int, interval: float) -> float | None:
        """Return when a reader at *revision* is due for its next flush, by the log's clock. None if it lacks nothing.

        The flush is due *interval* seconds after the first batch arrived that the reader lacks. So two flushes are
        never closer than *interval*. The flush is due earlier if the log might forget that batch before: a reset would
        cost the client more.
        """
        since = self.lacks_since(revision)
        if since is None or self._may_soon_forget(revision):
            return since
        return since + min(interval, self._bounds.age / 2)

    def _may_soon_forget(self, revision: int) -> bool:
        """Whether half of what the log can hold has come after *revision*."""
        bounds, behind = self._bounds, self.behind(revision)
        if 2 * behind > bounds.batches or 2 * behind * self.bytes > bounds.bytes * len(self._entries):
            return True
        # The log of a selection forgets what its feeds forget, and a log forgets early when memory is short.
        edge = max(self.floor, self._edge)
        first = bisect_right(self._revisions, revision)
        if first < len(self._revisions):
            revision = self._revisions[first] - 1  # the reader lacks nothing before
        return edge > self._start and 2 * revision < edge + self.tip

    def behind(self, revision: int) -> int:
        """Return how many revisions of this range a reader at *revision* has not read."""
        return len(self._revisions) - bisect_right(self._revisions, revision)
