"""One reader's way through the blocks of a snapshot: which ones are sent, and the bytes of the next ones."""

from __future__ import annotations

from itertools import islice

from .selection import Selection
from .snapshot import Snapshot
from .view import View


class BlockReader:
    """See the module. *form*: see ``app.core.frames``.

    It holds the snapshot, and not only the blocks: a fresh snapshot is counted as memory until nobody holds it.
    """

    __slots__ = ("_form", "_selection", "_sent", "_snapshot")

    def __init__(self, snapshot: Snapshot, selection: Selection, form: str) -> None:
        self._snapshot = snapshot
        self._selection = selection
        self._form = form
        self._sent = 0  # blocks

    @property
    def over(self) -> bool:
        """Whether all blocks were returned."""
        return self._sent == len(self._snapshot.blocks)

    def read(self, view: View) -> tuple[bytes, int]:
        """Return the next block, encoded now if it was not, and the number of its items. Nothing if all are sent."""
        if self.over:
            return b"", 0
        block, selection = self._snapshot.blocks[self._sent], self._selection
        self._sent += 1
        frame = view.frame(block, self._form, selection.encoding, keys_only=selection.keys_only)
        return frame, len(block.items)

    def read_encoded(self, view: View, size: int) -> tuple[list[bytes], int]:
        """Return the next blocks that are encoded already, *size* bytes at most, and the number of their items.

        The last block is not among them.
        """
        frames: list[bytes] = []
        items, selection, blocks = 0, self._selection, self._snapshot.blocks
        for block in islice(blocks, self._sent, max(self._sent, len(blocks) - 1)):
            frame = view.kept_frame(block, self._form, selection.encoding, keys_only=selection.keys_only)
            if frame is None or len(frame) > size:
                break
            frames.append(frame)
            size -= len(frame)
            items += len(block.items)
        self._sent += len(frames)
        return frames, items
