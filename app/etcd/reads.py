"""Ranges: single reads, pages of one revision, snapshots, probes; shared where that stays linearizable, and capped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from aetcd import rpc

from app.core.errors import (
    CompactedError,
    DeniedError,
    FutureRevisionError,
    OverCapacityError,
    TooLargeError,
    TooSlowError,
)
from app.core.events import KeyValue
from app.core.keys import KeyRange
from app.core.snapshot import Snapshot
from app.etcd.cluster import ForeignClusterError
from app.etcd.convert import key_value, range_error, unavailable
from app.etcd.link import Link
from app.etcd.login import LoginError
from app.etcd.shared import SharedReads
from app.ports import Clock

T = TypeVar("T")

# Seconds for one Range; without quorum a linearizable one would block for ever.
RANGE_TIMEOUT = 5.0
# A Range has no byte limit at etcd: pages start small and grow towards this many bytes. What is behind them may be
# larger: 3,000 small keys and 700 of 1 MB made a third page of 4,096 keys and 700 MB, which no RANGE_TIMEOUT was long
# enough for. So a page that does not fit a message, or does not come in time, is asked for again with fewer keys.
PAGE_BYTES = 2 * 1024 * 1024
FIRST_PAGE = 256
MAX_PAGE = 10_000
# No etcd gets there: a million writes a second take 146,000 years.
FUTURE = 1 << 62
# Seconds between two shared reads of the current revision.
REVISION_INTERVAL = 1.0
# Requests waiting for a Range beyond those in flight, per Range that may be: more are refused at once.
QUEUE_PER_RANGE = 64


@dataclass(frozen=True, slots=True)
class Listing:
    """Some items of a range at one revision. ``more``: there are others behind the last."""

    revision: int
    items: list[KeyValue]
    count: int
    more: bool
    cluster_id: int


class Reads:
    """See the module.

    Args:
        link: waits for a usable connection or raises UnavailableError.
        known: the highest (revision, raft term) heard of.
        note: sees the header of every answer, with what was known when it was asked for.
        max_ranges: Ranges in flight.
        on_proof: sees when each linearizable read was asked for, and the revision that it answered.
        on_slow: called when a Range was not answered in time.
    """

    def __init__(
        self,
        link: Callable[[], Awaitable[Link]],
        known: Callable[[], tuple[int, int]],
        note: Callable[[tuple[int, int], Any], None],
        *,
        max_ranges: int,
        clock: Clock,
        on_proof: Callable[[float, int], None] = lambda _asked_at, _revision: None,
        on_slow: Callable[[], None] = lambda: None,
    ) -> None:
        self._link = link
        self._note = note
        self._on_proof = on_proof
        self._on_slow = on_slow
        self._known = known
        self._max_ranges = max_ranges
        self._slots = asyncio.Semaphore(max_ranges)
        self._queued = 0
        self._clock = clock
        self._shared = SharedReads()
        self._revision_at = float("-inf")
        self.ranges_total = 0

    async def aclose(self) -> None:
        """Cancel what is under way."""
        await self._shared.aclose()

    async def shared(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """*read*, together with whoever asks for the same *key*."""
        return await self._shared.run(key, read)

    async def listing(self, watched: KeyRange, *, limit: int, keys_only: bool, start: bytes, revision: int) -> Listing:
        """Up to *limit* items from key *start* (empty: the first), at *revision* (0: now).

        Raises:
            CompactedError, FutureRevisionError, UnavailableError, EtcdRefusedError, TooLargeError, OverCapacityError.
        """
        items: list[KeyValue] = []
        size = 0
        count: int | None = None
        async for page in self._pages(watched, limit=limit, keys_only=keys_only, start=start, revision=revision):
            count = page.count if count is None else count  # the later ones count from where they start
            items += page.items
            size += sum(item.size for item in page.items)
            if not page.more or len(items) >= limit or size >= 8 * PAGE_BYTES:
                return Listing(page.revision, items, count, page.more, page.cluster_id)
        raise AssertionError("pages end with one that has no more")  # pragma: no cover

    async def count(self, watched: KeyRange) -> Listing:
        """How many keys there are now."""
        response = await self._range(rpc.RangeRequest(key=watched.start, range_end=watched.end, count_only=True))
        return Listing(response.header.revision, [], response.count, False, response.header.cluster_id)

    async def snapshot(self, watched: KeyRange, budget: Callable[[int], None]) -> tuple[Snapshot, int]:
        """The whole range at one linearizable revision; *budget* may raise to stop. Raises as ``listing``."""
        items: list[KeyValue] = []
        async for page in self._pages(watched, limit=None, keys_only=False, start=b"", revision=0):
            items += page.items
            budget(sum(item.size for item in page.items))
            if not page.more:
                return Snapshot.of(page.revision, items), page.cluster_id
        raise AssertionError("pages end with one that has no more")  # pragma: no cover

    async def _pages(
        self, watched: KeyRange, *, limit: int | None, keys_only: bool, start: bytes, revision: int
    ) -> AsyncIterator[Listing]:
        """Pages at one revision; the later ones' own headers name the current revision, not theirs (pitfall 6)."""
        size, pinned, got = FIRST_PAGE if watched.end else 1, revision, 0
        key = start or watched.start
        while True:
            ask = size if limit is None else min(size, limit - got)
            request = rpc.RangeRequest(key=key, range_end=watched.end, limit=ask, revision=pinned, keys_only=keys_only)
            try:
                response = await self._range(request)
            except (TooLargeError, TooSlowError) as error:
                # To a REST reader, a first page that does not come is an etcd without quorum: one time-out, not four.
                if ask == 1 or (isinstance(error, TooSlowError) and limit is not None and not got):
                    raise
                size = max(1, ask // 8)
                continue
            pinned = pinned or response.header.revision
            items = [key_value(kv) for kv in response.kvs]
            got += len(items)
            yield Listing(pinned, items, response.count, response.more, response.header.cluster_id)
            if not response.more or (limit is not None and got >= limit):
                return
            key = items[-1].key + b"\0"
            page_bytes = sum(item.size for item in items)
            size = max(1, min(MAX_PAGE, size * 4, size * PAGE_BYTES // page_bytes))

    async def probe(self, watched: KeyRange, revision: int) -> Literal["ok", "compacted", "future"]:
        """Whether *revision* is still readable; asked once for all who ask it, whatever their range.

        *watched* only names a key that may be read: the answer is the store's. Costs no keys.
        """

        async def read() -> Literal["ok", "compacted", "future"]:
            try:
                await self._range(rpc.RangeRequest(key=watched.start, count_only=True, revision=revision))
            except CompactedError:
                return "compacted"
            except FutureRevisionError:
                return "future"
            return "ok"

        return await self._of_the_store(("probe", revision), watched, read)

    async def permitted(self, watched: KeyRange, *, serializable: bool = False) -> bool:
        """Whether etcd's roles let us read the whole range. Raises GatewayError when there is no answer.

        Asked at a revision that is yet to come: roles are looked at first, and then nothing is read (a count, with
        whatever limit, would walk all of the range).
        """
        request = rpc.RangeRequest(
            key=watched.start,
            range_end=watched.end,
            revision=FUTURE,
            count_only=True,
            limit=1,
            serializable=serializable,
        )
        try:
            await self._range(request)
        except DeniedError:
            return False
        except FutureRevisionError:
            pass
        return True

    async def revision(self, watched: KeyRange) -> int:
        """A linearizable revision read begun after this call, shared, at most one a second."""

        async def read() -> int:
            wait = self._revision_at + REVISION_INTERVAL - self._clock()
            if wait > 0:
                await asyncio.sleep(wait)
            self._revision_at = self._clock()
            response = await self._range(rpc.RangeRequest(key=watched.start, count_only=True))
            return int(response.header.revision)

        return await self._of_the_store("revision", watched, read)

    async def _of_the_store(self, key: Hashable, watched: KeyRange, read: Callable[[], Awaitable[T]]) -> T:
        """Shared by all ranges; when the one whose key was asked for is denied, only with those of the same range."""
        try:
            return await self._shared.run(key, read)
        except DeniedError:
            return await self._shared.run((key, watched), read)

    async def _range(self, request: Any) -> Any:
        if self._queued >= self._max_ranges * QUEUE_PER_RANGE:
            msg = f"{self._queued} reads wait already for the {self._max_ranges} Ranges that may be in flight"
            raise OverCapacityError(msg, code="too-many-ranges")
        self._queued += 1
        try:
            async with self._slots:
                link = await self._link()
                return await self._call(link, request)
        finally:
            self._queued -= 1

    async def _call(self, link: Link, request: Any) -> Any:
        self.ranges_total += 1
        known, asked_at = self._known(), self._clock()
        try:
            response = await link.range(request, RANGE_TIMEOUT)
        except LoginError as error:
            link.fail(str(error))
            raise unavailable(link.endpoint, str(error)) from None
        except rpc.AioRpcError as error:
            if error.code() is rpc.StatusCode.UNAVAILABLE:
                link.fail(error.details() or "unavailable")
            elif error.code() is rpc.StatusCode.DEADLINE_EXCEEDED:
                self._on_slow()  # it may be this one Range's fault, or the member's
            raise range_error(link.endpoint, error) from None
        except asyncio.CancelledError:
            # A link that is given up closes its channel, and that cancels its calls: not us.
            task = asyncio.current_task()
            if not link.failed.done() or task is None or task.cancelling():
                raise
            raise unavailable(link.endpoint, link.failed.result()) from None
        try:
            # One member's own word may be behind the cluster's: that is no restore.
            self._note((0, 0) if request.serializable else known, response.header)
        except ForeignClusterError as error:
            link.fail(str(error))
            raise unavailable(link.endpoint, str(error)) from None
        if not request.serializable:
            self._on_proof(asked_at, response.header.revision)
        return response
