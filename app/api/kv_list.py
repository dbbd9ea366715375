"""A list of ``/v1/kv`` while it is encoded, page by page or block by block."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..core.budget import PAGE_BYTES, Hold
from ..core.deflate import DeflatedPart, plain_size
from ..core.encoding import list_head, list_items, list_tail
from ..core.etag import ETag
from ..core.events import KeyValue
from ..core.page_token import PageToken
from .kv_gzip import deflate
from .kv_request import KvRead
from .kv_response import KvBody, revoked

ENCODE_SLICE = 1024
# A body that has reached this many bytes of JSON ends there, with ``next_page``.
MOST_BYTES = 16 * 1024 * 1024
# Bytes between items, at most: a stored block with a comma.
SEPARATOR = 6


class KvList:
    """The encoded items of a list, and the hold that counts their bytes."""

    def __init__(self, read: KvRead, hold: Hold) -> None:
        self.count = 0
        self._parts: list[bytes | DeflatedPart] = []
        self._last = b""  # the last key
        self._newest = 0  # the greatest mod_revision
        self._read = read
        self._hold = hold
        self._size = 0  # bytes in memory
        self._length = 0  # bytes of JSON

    async def add(self, items: Sequence[KeyValue]) -> None:
        """Encode items in slices: 100,000 items at once would delay every stream by about 0.2 s."""
        selection = self._read.selection
        for start in range(0, len(items), ENCODE_SLICE):
            some = items[start : start + ENCODE_SLICE]
            encoded = list_items(some, selection.encoding, keys_only=selection.keys_only).encode()
            parts = await deflate(encoded) if self._read.gzip else [encoded]
            self._append(parts, len(some), some[-1].key, max(item.mod_revision for item in some))
            await asyncio.sleep(0)
        self.settle()

    def append(self, encoded: bytes | DeflatedPart, count: int, last: bytes, newest: int) -> None:
        """Add *count* items that are encoded. *last*: the last key. *newest*: the greatest ``mod_revision``."""
        self._append([encoded], count, last, newest)

    def _append(self, parts: Sequence[bytes | DeflatedPart], count: int, last: bytes, newest: int) -> None:
        if self.count:
            self._parts.append(b",")
        self._parts += parts
        self._size += sum(map(len, parts)) + SEPARATOR
        self._length += sum(map(plain_size, parts)) + 1
        self.count += count
        self._last = last
        self._newest = max(self._newest, newest)
        # JSON may be six times as long as the value: a control character becomes "\\u0001".
        if self._size > self._hold.size:
            self._hold.set(self._size)

    def settle(self) -> None:
        """Count what there is, and return to the budget what was reserved for more.

        An empty list keeps what was reserved: others would take it, and a list without an item has no next page.
        """
        if self.count:
            self._hold.set(self._size)
        if self._hold.released:
            raise revoked()

    @property
    def full(self) -> bool:
        """Whether the list must end here, because it has enough items or bytes."""
        return self.count >= self._read.limit or self._length >= MOST_BYTES

    def fits(self, size: int) -> bool:
        """Whether about *size* more bytes may be added. If so, memory is reserved."""
        return not self.full and (self._size + size <= self._hold.size or self._hold.grow(PAGE_BYTES))

    def may_grow(self) -> bool:
        """Whether more may be added. If so, memory for a page is reserved."""
        return self.fits(PAGE_BYTES)

    def body(self, epoch: str, revision: int, count: int, *, more: bool) -> KvBody:
        """Return the answer. *count*: the keys of the selection. *more*: whether there are keys after these."""
        if self._hold.released:
            raise revoked()
        assert self.count or not more, "the next page begins after the last item"
        page = PageToken(epoch, revision, self._last + b"\0") if more else None
        parts = [list_head(revision, f"{epoch}-{revision}"), *self._parts, list_tail(count, more=more)]
        whole = self._read.page is None and page is None
        return KvBody(revision, parts, self._hold, ETag(epoch, self._newest, count) if whole else None, page)
