"""All keys of a range at one revision, in blocks that all readers who join at about that revision share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter

from .events import KeyValue

# Items in a block at most: about 2 ms of the event loop's time if none is encoded yet.
MAX_ITEMS = 1024
# Bytes in a block at most (``KeyValue.wire_size``), unless a single item has more. One write sends one block: it has
# room for 64 KiB, so that some escapes fit. When the items' memory was counted instead, a block of small values had
# 39 KiB on the wire, and a herd took 20 % more CPU.
MAX_BYTES = 60 * 1024

_by_key = attrgetter("key")


def _first_key(block: Block) -> bytes:
    return block.items[0].key


class Block:
    """Some consecutive items, sorted by key. Immutable, and compared by identity."""

    __slots__ = ("__weakref__", "_newest", "items", "size")

    def __init__(self, items: Sequence[KeyValue]) -> None:
        self.items = items
        self.size = sum(item.size for item in items)
        self._newest = 0  # not known yet

    @property
    def newest(self) -> int:
        """The greatest ``mod_revision`` of the items."""
        if not self._newest:
            self._newest = max(item.mod_revision for item in self.items)
        return self._newest


class Snapshot:
    """The items of a range at one revision, immutable. Successive snapshots share the blocks that have not changed."""

    __slots__ = ("__weakref__", "_count", "_newest", "blocks", "revision")

    def __init__(self, revision: int, blocks: Sequence[Block]) -> None:
        self.revision = revision
        self.blocks = blocks
        # Not known yet. Thousands of clients may ask, and each would look at all blocks.
        self._count = self._newest = -1

    @classmethod
    def of(cls, revision: int, items: Iterable[KeyValue], block_bytes: int = MAX_BYTES) -> Snapshot:
        """Return a snapshot of *items*, which may come in any order."""
        return cls(revision, blocks_of(items, block_bytes))

    @property
    def items(self) -> list[KeyValue]:
        """All items, sorted by key."""
        return [item for block in self.blocks for item in block.items]

    @property
    def size(self) -> int:
        """Bytes of memory that count for the items."""
        return sum(block.size for block in self.blocks)

    @property
    def count(self) -> int:
        """The number of items."""
        if self._count < 0:
            self._count = sum(len(block.items) for block in self.blocks)
        return self._count

    @property
    def newest(self) -> int:
        """The greatest ``mod_revision`` of the items; 0 if there is none."""
        if self._newest < 0:
            self._newest = max((block.newest for block in self.blocks), default=0)
        return self._newest

    def page(self, start: bytes, limit: int) -> Iterator[Block]:
        """Yield the items from key *start* on, at most *limit*, in blocks. A wholly wanted block is shared."""
        number = max(0, bisect_right(self.blocks, start, key=_first_key) - 1)
        for block in islice(self.blocks, number, None):
            items = block.items if block.items[0].key >= start else [each for each in block.items if each.key >= start]
            items = items[:limit] if len(items) > limit else items
            if not items:
                continue
            yield block if len(items) == len(block.items) else Block(items)
            limit -= len(items)
            if not limit:
                return


def blocks_of(items: Iterable[KeyValue], most_bytes: int) -> list[Block]:
    """Return *items* in blocks of at most about *most_bytes* on the wire. A larger item gets its own block."""
    blocks: list[Block] = []
    some: list[KeyValue] = []
    size = 0
    for item in sorted(items, key=_by_key):
        if some and (len(some) == MAX_ITEMS or size + item.wire_size > most_bytes):
            blocks.append(Block(some))
            some, size = [], 0
        some.append(item)
        size += item.wire_size
    if some:
        blocks.append(Block(some))
    return blocks
