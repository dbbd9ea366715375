"""The view of a feed: the current keys and values of its range, made of a snapshot and the batches after it."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

from .always_true import AlwaysTrue
from .deflate import DeflatedPart
from .encoding import event_body
from .events import Batch, Event, KeyValue
from .frames import GZIP, LIST, snapshot_frame
from .log import MayKeep, keep_all
from .selection import Ranges
from .snapshot import MAX_BYTES, MAX_ITEMS, Block, Snapshot, blocks_of
from .table_memory import keep, kept_size, whole_size

# A part that has shrunk below a quarter (1 / SMALL) of the limits is merged into the part before it.
SMALL = 4

F = TypeVar("F", bytes, DeflatedPart)
# What is encoded of a block: by form, encoding, and whether without values.
Frames = dict[tuple[str, str, bool], bytes | DeflatedPart]


class View(AlwaysTrue):
    """The latest value of each key at ``revision``.

    ``bytes`` is all memory that the view holds. ``encoded`` is the share of it that can be dropped and encoded again.
    The keys are divided, in their order, into *parts*. A snapshot has one block for each part, and the next snapshot
    shares the blocks of the parts in which nothing was written. Each item is encoded once, and each block is framed
    once.
    """

    __slots__ = (
        "__weakref__", "_blocks", "_bodies", "_bounds", "_frames", "_keys", "_may_keep", "_parts", "_replaced_frames",
        "_snapshot", "bytes", "encoded", "revision",
    )  # fmt: skip

    def __init__(self, snapshot: Snapshot, may_keep: MayKeep = keep_all) -> None:
        self._may_keep = may_keep
        self._bounds: list[bytes] = [b""]  # the lower bound of each part; all keys of earlier parts are smaller
        self._parts: list[dict[bytes, KeyValue]] = [{}]  # at least one
        self._blocks: list[Block | None] = [None]  # of each part; None after a write to the part
        self._frames: dict[Block, Frames] = {}
        # Of blocks that were replaced: those with gzip, as long as a reader holds the block. When 1,000 clients joined
        # a range with 33 to 63 puts a second, to deflate such blocks for each reader took four times the CPU of plain
        # frames.
        self._replaced_frames: dict[weakref.ref[Block], Frames] = {}
        self._bodies: dict[tuple[str, bool], dict[bytes, bytes]] = {}  # JSON objects, by encoding, then by key
        self._snapshot: Snapshot | None = snapshot
        self._replace(0, snapshot.blocks)
        self._keys = sum(map(len, self._parts))
        self.revision = snapshot.revision
        self.bytes = snapshot.size
        self.encoded = 0

    def __len__(self) -> int:
        return self._keys

    def follows(self, batch: Batch) -> bool:
        """Whether *batch* can come next in this history.

        etcd counts the puts of a key since its creation (``version``; API reference, ``KeyValue``). So a batch of
        another history, or a batch after a gap, is revealed by the keys that it shares with the view. A key may come
        twice in a revision: etcd's check against that (checkIntervals in its v3rpc/key.go) lets pass a put after a
        delete of all keys from that key on, and a delete after a put when both are nested.
        """
        within: dict[bytes, Event] = {}
        for event in batch.events:
            if not event.follows(within.get(event.key) or self._find(event.key)):
                return False
            within[event.key] = event
        return True

    def holds(self, last: Iterable[Event]) -> bool:
        """Whether the view agrees with these events, each of which is the last one of its key."""
        return all(self._find(event.key) == (event if isinstance(event, KeyValue) else None) for event in last)

    def apply(self, batch: Batch) -> None:
        """Apply one complete revision."""
        for event in batch.events:
            number = bisect_right(self._bounds, event.key) - 1
            part = self._parts[number]
            old = part.get(event.key)
            if old is not None:
                self._forget(old)
            if isinstance(event, KeyValue):
                part[event.key] = event
                self.bytes += event.size
                self._keys += old is None
            elif old is not None:
                del part[event.key]
                self._keys -= 1
            self._drop_block(number)
            # The next reader that joins would wait for the encoding of all these items at once.
            if len(part) > 2 * MAX_ITEMS:
                self._replace(number, blocks_of(part.values(), MAX_BYTES))
        self.revision = batch.revision
        self._snapshot = None

    def _forget(self, old: KeyValue) -> None:
        """Stop counting an item that is not the latest of its key any more, and drop what is encoded of it."""
        self.bytes -= old.size
        for bodies in self._bodies.values():
            body = bodies.pop(old.key, None)
            if body is not None:
                self._count(-kept_size(body))

    def snapshot(self, revision: int) -> Snapshot:
        """Return the state as an immutable value that is exact up to *revision* (the log's tip, never below the view).

        All readers share one object until the next batch.
        """
        if self._snapshot is None:
            self._snapshot = Snapshot(revision, self._latest())
        elif self._snapshot.revision != revision:
            self._snapshot = Snapshot(revision, self._snapshot.blocks)
        return self._snapshot

    def within(self, ranges: Ranges) -> list[Block]:
        """Return the items of *ranges*, which are canonical, in blocks by key. A block inside a range is shared.

        Only the parts in which the ranges lie are looked at: a snapshot would sort all parts that were written.
        """
        found: list[Block] = []
        for one in ranges:
            written: list[KeyValue] = []  # of successive parts without a block
            for number in range(bisect_right(self._bounds, one.name) - 1, len(self._parts)):
                if self._bounds[number] > one.name and not one.contains(self._bounds[number]):
                    break
                block = self._blocks[number]
                if block is not None and one.contains(block.items[0].key) and one.contains(block.items[-1].key):
                    found += [*blocks_of(written, MAX_BYTES), block]
                    written = []
                else:
                    written += [item for item in self._parts[number].values() if one.contains(item.key)]
            found += blocks_of(written, MAX_BYTES)
        return found

    def frame(self, block: Block, form: str, encoding: str, *, keys_only: bool = False) -> bytes:
        """Return the items of a snapshot's *block* as bytes on the wire.

        The frame is made once for all readers, and kept until one of its items is written; with gzip until no reader
        holds the block. If there is no memory to keep it, it is made for each reader.
        """
        frames = self._frames.get(block)
        if frames is None and form.endswith(GZIP):
            frames = self._replaced_frames.get(weakref.ref(block))
            if frames is None:
                frames = self._keep_replaced(block, {})
        return self._once(
            frames,
            (form, encoding, keys_only),
            lambda: snapshot_frame(self._bodies_of(block, encoding, keys_only), form),
        )

    def kept_frame(self, block: Block, form: str, encoding: str, *, keys_only: bool) -> bytes | None:
        """Return what ``frame`` returns if that is kept already; None if it must be made first."""
        frames = self._frames.get(block)
        return cast("bytes | None", frames.get((form, encoding, keys_only))) if frames is not None else None

    def deflated_items(self, block: Block, encoding: str, *, keys_only: bool) -> DeflatedPart:
        """Return the items of a snapshot's *block* as a part of a list with gzip, which is kept as frames are."""
        return self._once(
            self._frames.get(block),
            (LIST + GZIP, encoding, keys_only),
            lambda: DeflatedPart.of(snapshot_frame(self._bodies_of(block, encoding, keys_only), LIST)),
        )

    def _once(self, frames: Frames | None, what: tuple[str, str, bool], make: Callable[[], F]) -> F:
        """Return the frame in *frames*. Make it if it is missing, and keep it if there is room (None: keep nothing)."""
        frame = cast("F | None", frames.get(what)) if frames is not None else None
        if frame is None:
            frame = make()
            if frames is not None and self._may_keep(kept_size(frame)):
                self._count(keep(frames, {what: frame}))
        return frame

    def _keep_replaced(self, block: Block, frames: Frames) -> Frames:
        """Keep *frames* until nobody holds *block*, which is not the view's own."""
        drop = weakref.WeakMethod(self._drop_replaced)

        def end(gone: weakref.ref[Block]) -> None:
            if (method := drop()) is not None:
                method(gone)

        self._replaced_frames[weakref.ref(block, end)] = frames
        return frames

    def _drop_replaced(self, gone: weakref.ref[Block]) -> None:
        self._count(-whole_size(self._replaced_frames.pop(gone)))

    def reclaim(self) -> int:
        """Drop everything that is encoded, and encode it again when needed. Return the bytes freed."""
        freed = self.encoded
        self._bodies = {}
        for frames in (*self._frames.values(), *self._replaced_frames.values()):
            frames.clear()
        self._count(-freed)
        return freed

    def _count(self, size: int) -> None:
        self.encoded += size
        self.bytes += size

    def _bodies_of(self, block: Block, encoding: str, keys_only: bool) -> list[bytes]:
        """Return the items' JSON objects without the closing brace. Each key's latest item is encoded only once."""
        known = self._bodies.setdefault((encoding, keys_only), {})
        own = block in self._frames
        bodies: list[bytes] = []
        made: dict[bytes, bytes] = {}
        for item in block.items:
            latest = own or self._find(item.key) is item
            body = known.get(item.key) if latest else None
            if body is None:
                body = event_body(item, encoding, keys_only=keys_only)
                if latest:
                    made[item.key] = body
            bodies.append(body)
        if made and self._may_keep(sum(map(kept_size, made.values()))):
            # Look up the dict again: making room for these bodies may have reclaimed it.
            self._count(keep(self._bodies.setdefault((encoding, keys_only), {}), made))
        return bodies

    # --- parts -------------------------------------------------------------------------------------------------------

    def _find(self, key: bytes) -> KeyValue | None:
        return self._parts[bisect_right(self._bounds, key) - 1].get(key)

    def _drop_block(self, number: int) -> None:
        """Drop the block of a part that was written."""
        block = self._blocks[number]
        if block is not None:
            self._blocks[number] = None
            frames = self._frames.pop(block)
            deflated = {
                what: frame for what, frame in frames.items() if what[0].endswith(GZIP) and what[0] != LIST + GZIP
            }
            self._count(whole_size(deflated) - whole_size(frames))
            if deflated:
                self._keep_replaced(block, deflated)

    def _replace(self, number: int, blocks: Sequence[Block]) -> None:
        """Replace a part, whose block was dropped, by one part per block. The first keeps the old lower bound."""
        if not blocks:
            return
        span = slice(number, number + 1)
        self._bounds[span] = [self._bounds[number], *(block.items[0].key for block in blocks[1:])]
        self._parts[span] = [{item.key: item for item in block.items} for block in blocks]
        self._blocks[span] = blocks
        self._frames.update((block, {}) for block in blocks)

    def _latest(self) -> list[Block]:
        """Return the current items in blocks: none too large, and not many small ones."""
        for number in range(len(self._parts) - 1, -1, -1):
            if self._blocks[number] is None and not self._merge(number):
                part = self._parts[number]
                size = sum(item.wire_size for item in part.values())
                pieces = max(-(-size // MAX_BYTES), -(-len(part) // MAX_ITEMS), 1)
                # Pieces of equal size: if the first one were full, the next put of a new key would divide it again.
                self._replace(number, blocks_of(part.values(), -(-size // pieces)))
        return [block for block in self._blocks if block is not None]

    def _merge(self, number: int) -> bool:
        """Merge a part that has become small into the part before it, if there is room. Return whether it is merged."""
        part = self._parts[number]
        if number == 0:
            if part or len(self._parts) == 1:
                return False
            self._bounds[1] = self._bounds[0]
        elif part:
            before = self._parts[number - 1]
            size = sum(item.wire_size for item in part.values())
            if size > MAX_BYTES // SMALL or len(part) > MAX_ITEMS // SMALL or len(part) + len(before) > MAX_ITEMS:
                return False
            if size + sum(item.wire_size for item in before.values()) > MAX_BYTES:
                return False
            self._drop_block(number - 1)
            before.update(part)
        del self._bounds[number], self._parts[number], self._blocks[number]
        return True
