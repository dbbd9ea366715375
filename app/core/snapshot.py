"""All keys of a range at one revision, in blocks that are shared by all who join near it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

from .events import KeyValue

# Items of a block: about 2 ms of the loop's time when none was encoded before.
MAX_ITEMS = 1024
# Bytes of a block (``KeyValue.size``), but where a single item has more: as much is written at a time.
MAX_BYTES = 64 * 1024

_by_key = attrgetter("key")


class Block:
    """Some items in a row, by key; immutable, and known by its identity."""

    __slots__ = ("items", "size")

    def __init__(self, items: Sequence[KeyValue], size: int) -> None:
        self.items = items
        self.size = size


class Snapshot:
    """Immutable. Snapshots that follow one another share the blocks in which nothing has changed."""

    __slots__ = ("__weakref__", "blocks", "revision")

    def __init__(self, revision: int, blocks: Sequence[Block]) -> None:
        self.revision = revision
        self.blocks = blocks

    @classmethod
    def of(cls, revision: int, items: Iterable[KeyValue], block_bytes: int = MAX_BYTES) -> Snapshot:
        """*items* in no promised order."""
        return cls(revision, blocks_of(items, block_bytes))

    @property
    def items(self) -> list[KeyValue]:
        """All of them, by key."""
        return [item for block in self.blocks for item in block.items]

    @property
    def size(self) -> int:
        """Bytes of memory its items are counted with."""
        return sum(block.size for block in self.blocks)


def blocks_of(items: Iterable[KeyValue], most_bytes: int) -> list[Block]:
    """*items* in blocks of about *most_bytes* at the most; an item that has more is one of its own."""
    blocks: list[Block] = []
    some: list[KeyValue] = []
    size = 0
    for item in sorted(items, key=_by_key):
        if some and (len(some) == MAX_ITEMS or size + item.size > most_bytes):
            blocks.append(Block(some, size))
            some, size = [], 0
        some.append(item)
        size += item.size
    if some:
        blocks.append(Block(some, size))
    return blocks
