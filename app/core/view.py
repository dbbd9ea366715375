"""The view of a feed: its range's keys and values now, folded from a snapshot and the batches after it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from .encoding import event_body
from .events import Batch, Event, KeyValue
from .frames import snapshot_frame
from .log import MayKeep, keep_all
from .sized import Sized
from .snapshot import MAX_BYTES, MAX_ITEMS, Block, Snapshot, blocks_of

# A block that has become so much smaller than the largest goes into the one in front of it.
SMALL = 4


class View(Sized):
    """Latest value per key at ``revision``; ``bytes``: what it holds, and ``encoded``: what of that it can do without.

    The keys are divided, in their order, into *parts*. A snapshot has a block for each, and the next one shares the
    blocks in whose part nothing was written; each item is encoded once, and each block framed once.
    """

    __slots__ = (
        "_blocks", "_bodies", "_bounds", "_frames", "_keys", "_may_keep", "_parts", "_snapshot", "bytes", "encoded",
        "revision",
    )  # fmt: skip

    def __init__(self, snapshot: Snapshot, may_keep: MayKeep = keep_all) -> None:
        self._may_keep = may_keep
        self._bounds: list[bytes] = [b""]  # of each part: none of its keys is smaller, and all of those in front are
        self._parts: list[dict[bytes, KeyValue]] = [{}]  # one at the least
        self._blocks: list[Block | None] = [None]  # of each part: None when it has been written since
        self._frames: dict[Block, dict[tuple[str, str], bytes]] = {}  # of those blocks, by format and encoding
        self._bodies: dict[str, dict[bytes, bytes]] = {}  # by encoding and key
        self._snapshot: Snapshot | None = snapshot
        self._replace(0, snapshot.blocks)
        self._keys = sum(map(len, self._parts))
        self.revision = snapshot.revision
        self.bytes = snapshot.size
        self.encoded = 0

    def __len__(self) -> int:
        return self._keys

    def follows(self, batch: Batch) -> bool:
        """Whether *batch* can be what came next in this history.

        etcd counts the puts of a key since it was created (``version``; API reference, ``KeyValue``). So a revision of
        another history, or one before which something is missing, gives itself away by the keys that it shares with
        what we hold. A key may come twice in a revision: etcd's check for that (checkIntervals in its v3rpc/key.go)
        lets pass a put after a delete of all from the key on, and a delete after a put when both are nested.
        """
        within: dict[bytes, Event] = {}
        for event in batch.events:
            if not event.follows(within.get(event.key) or self._find(event.key)):
                return False
            within[event.key] = event
        return True

    def holds(self, last: Iterable[Event]) -> bool:
        """Whether the last event of each of these keys is what we hold of them."""
        return all(self._find(event.key) == (event if isinstance(event, KeyValue) else None) for event in last)

    def apply(self, batch: Batch) -> None:
        """Fold one complete revision in."""
        for event in batch.events:
            number = bisect_right(self._bounds, event.key) - 1
            part = self._parts[number]
            old = part.get(event.key)
            if old is not None:
                self.bytes -= old.size
                for bodies in self._bodies.values():
                    self._count(-len(bodies.pop(event.key, b"")))
            if isinstance(event, KeyValue):
                part[event.key] = event
                self.bytes += event.size
                self._keys += old is None
            elif old is not None:
                del part[event.key]
                self._keys -= 1
            self._leave(number)
            if len(part) > 2 * MAX_ITEMS:  # who joins next would wait for all of them at once
                self._replace(number, blocks_of(part.values(), MAX_BYTES))
        self.revision = batch.revision
        self._snapshot = None

    def snapshot(self, revision: int) -> Snapshot:
        """The state as an immutable value, known to be exact up to *revision* (the log's tip, never below the view).

        One object is shared until the next batch, however many join.
        """
        if self._snapshot is None:
            self._snapshot = Snapshot(revision, self._latest())
        elif self._snapshot.revision != revision:
            self._snapshot = Snapshot(revision, self._snapshot.blocks)
        return self._snapshot

    def frame(self, block: Block, form: str, encoding: str) -> bytes:
        """The items of a snapshot's *block* as they are sent.

        Made once for all, until one of them is written, where there is memory to keep that; else for each.
        """
        frames = self._frames.get(block, {})
        frame = frames.get((form, encoding))
        if frame is None:
            frame = snapshot_frame(self._bodies_of(block, encoding), form)
            if block in self._frames and self._may_keep(len(frame)):
                frames[form, encoding] = frame
                self._count(len(frame))
        return frame

    def reclaim(self) -> int:
        """Drop what is encoded; bytes given back. It is encoded again when somebody needs it."""
        given = self.encoded
        self._bodies = {}
        for frames in self._frames.values():
            frames.clear()
        self._count(-given)
        return given

    def _count(self, size: int) -> None:
        self.encoded += size
        self.bytes += size

    def _bodies_of(self, block: Block, encoding: str) -> list[bytes]:
        """Items' JSON objects without their closing brace; each encoded once, as long as it is its key's latest."""
        known = self._bodies.setdefault(encoding, {})
        own = block in self._frames
        bodies: list[bytes] = []
        made: dict[bytes, bytes] = {}
        for item in block.items:
            latest = own or self._find(item.key) is item
            body = known.get(item.key) if latest else None
            if body is None:
                body = event_body(item, encoding)
                if latest:
                    made[item.key] = body
            bodies.append(body)
        size = sum(map(len, made.values()))
        if made and self._may_keep(size):
            # Asked anew: to make room for others, the bodies may have been reclaimed meanwhile.
            self._bodies.setdefault(encoding, {}).update(made)
            self._count(size)
        return bodies

    # --- parts -------------------------------------------------------------------------------------------------------

    def _find(self, key: bytes) -> KeyValue | None:
        return self._parts[bisect_right(self._bounds, key) - 1].get(key)

    def _leave(self, number: int) -> None:
        """The block of this part does not say any more what is there."""
        block = self._blocks[number]
        if block is not None:
            self._blocks[number] = None
            self._count(-sum(map(len, self._frames.pop(block).values())))

    def _replace(self, number: int, blocks: Sequence[Block]) -> None:
        """A part, whose block is left, by one for each of *blocks*; the first begins where it began."""
        if not blocks:
            return
        span = slice(number, number + 1)
        self._bounds[span] = [self._bounds[number], *(block.items[0].key for block in blocks[1:])]
        self._parts[span] = [{item.key: item for item in block.items} for block in blocks]
        self._blocks[span] = blocks
        self._frames.update((block, {}) for block in blocks)

    def _latest(self) -> list[Block]:
        """Blocks of what is there now: none too large, and not many small ones."""
        for number in range(len(self._parts) - 1, -1, -1):
            if self._blocks[number] is None and not self._merge(number):
                part = self._parts[number]
                size = sum(item.size for item in part.values())
                pieces = max(-(-size // MAX_BYTES), -(-len(part) // MAX_ITEMS), 1)
                # Pieces of one size: were the first one full, the next put of a new key would divide it again.
                self._replace(number, blocks_of(part.values(), -(-size // pieces)))
        return [block for block in self._blocks if block is not None]

    def _merge(self, number: int) -> bool:
        """Put a part that has become small into the one in front, where that has room; whether it went."""
        part = self._parts[number]
        if number == 0:
            if part or len(self._parts) == 1:
                return False
            self._bounds[1] = self._bounds[0]
        elif part:
            before = self._parts[number - 1]
            size = sum(item.size for item in part.values())
            if size > MAX_BYTES // SMALL or len(part) > MAX_ITEMS // SMALL or len(part) + len(before) > MAX_ITEMS:
                return False
            if size + sum(item.size for item in before.values()) > MAX_BYTES:
                return False
            self._leave(number - 1)
            before.update(part)
        del self._bounds[number], self._parts[number], self._blocks[number]
        return True
